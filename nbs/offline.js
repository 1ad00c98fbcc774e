// A service worker: the network first, and without one what was read before.
// Registered by live.js once a model was loaded, not before.
addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

// A store that is full or forbidden is no reason to withhold an answer
async function keep(request, response) {
  try { await (await caches.open("flowbook")).put(request, response); }
  catch (error) { console.info(`not kept: ${request.url}: ${error.message}`); }
}

async function answer(event) {
  const { request } = event;
  try {
    const response = await fetch(request);
    if (response.status === 200)
      event.waitUntil(keep(request, response.clone()));
    return response;
  } catch (error) {
    const kept = await caches.match(
      request, { ignoreSearch: true, cacheName: "flowbook" });
    if (kept) return kept;
    throw error;
  }
}

addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(location.origin))
    event.respondWith(answer(event));
});
