// The machine of the page "A model in this page": its controls, its pictures,
// their playback. live-worker.mjs draws.
(() => {
  "use strict";
  const SIDE = 28, PACE = 60;   // pixels; milliseconds a frame, at least
  const base = document.currentScript.src;
  const at = (name) => new URL(name, base);
  const note = document.getElementById("live-note");
  const form = document.getElementById("live");
  const field = form.elements;
  const [state, end] = form.querySelectorAll("canvas");
  const status = form.querySelector("[role=status]");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let worker, job = 0, frames = [], done, size, gaussian;

  function say(kind, text) {
    form.dataset.state = kind;
    status.textContent = text;
  }

  function paint(canvas, values) {   // -1 is black, 1 is white
    const image = new ImageData(SIDE, SIDE);
    values.forEach((a, i) => {
      image.data.fill(127.5 * (a + 1), 4 * i, 4 * i + 3);
      image.data[4 * i + 3] = 255;
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function show(i) {
    paint(state, frames[i].x);
    paint(end, frames[i].end);
    field.frame.value = i;
    label(field.frame, `t = ${frames[i].t.toFixed(2)}`);
  }

  function label(input, text) {
    input.nextElementSibling.value = text;
    input.setAttribute("aria-valuetext", text);
  }

  function play(mine, i = 0) {   // frame after frame, as they arrive
    if (mine !== job || form.dataset.state === "failed") return;
    if (calm.matches && done) i = frames.length - 1;
    if (i < frames.length && (done || !calm.matches)) show(i++);
    if (done && i === frames.length) finish();
    else setTimeout(play, PACE, mine, i);
  }

  function finish() {
    field.frame.disabled = false;
    say("done", `${field.steps.value} steps, ${done.evaluations} evaluations`
      + ` of the model, ${done.seconds.toFixed(1)} s`);
  }

  function receive({ data }) {
    if (data.job !== job) return;
    if (data.ready) { say("drawing", "drawing …"); keep(); }
    if (data.frame) frames.push(data.frame);
    if (data.done) done = data.done;
    if (data.failed) say("failed", `That did not work: ${data.failed}.`);
  }

  function broken(error) {   // the next drawing begins with another worker
    worker.terminate();
    worker = null;
    say("failed", "That did not work: "
      + `${error.message || "the worker could not be loaded"}.`);
  }

  function settings() {
    const number = (name) => Number(field[name].value);
    const interval = [number("low"), number("high")].sort((a, b) => a - b);
    return { y: number("y"), steps: number("steps"), seed: number("seed"),
             guidance: number("guidance"), interval,
             solver: field.solver.value };
  }

  function draw() {
    if (!worker) {
      worker = new Worker(at("live-worker.mjs"), { type: "module" });
      worker.onmessage = receive;
      worker.onerror = broken;
      say("loading", `loading ${size} MB, once …`);
    } else say("drawing", "drawing …");
    job += 1;
    frames = [];
    done = null;
    field.frame.disabled = true;
    field.frame.max = field.steps.value;
    worker.postMessage({ job, ...settings() });
    history.replaceState(null, "", "?" + new URLSearchParams(
      [...new FormData(form)]) + location.hash);
    play(job);
  }

  function keep() {   // all that the page has read, to be opened offline
    if (!navigator.serviceWorker || navigator.serviceWorker.controller) return;
    navigator.serviceWorker.register(at("offline.js")).catch(() => {});
    const seen = performance.getEntriesByType("resource").map((e) => e.name)
      .filter((name) => name.startsWith(location.origin));
    const ours = ["live-worker.mjs", "live-sampler.mjs", "live/ort.mjs",
      "live/ort-wasm-simd-threaded.mjs", "live/ort.wasm.gz",
      "live/mnist.onnx"].map((name) => at(name).href);
    caches.open("flowbook").then((cache) => {
      for (const name of new Set([location.pathname, ...seen, ...ours]))
        cache.add(name).catch(() => {});   // the others may do without
    }).catch(() => {});   // storage may be forbidden
  }

  function labels() {   // what each slider says, beside it
    for (const input of form.querySelectorAll("[type=range]"))
      if (input !== field.frame) label(input, input.value);
  }

  function noise() {   // where a drawing will begin, before there is one
    paint(state, gaussian(Number(field.seed.value), SIDE * SIDE));
    label(field.frame, "t = 1.00");
  }

  async function start(about) {
    if (about.missing) throw new Error(about.missing);
    const { interval: [low, high], ...rest } = about.sampling;
    const first = Object.entries({ ...rest, low, high });
    const known = ["y", "steps", "solver", "guidance", "seed", "low", "high"];
    for (const [name, value] of [...first, ...new URLSearchParams(
      location.search)]) if (known.includes(name)) field[name].value = value;
    size = about.megabytes;
    ({ gaussian } = await import(at("live-sampler.mjs")));
    labels();
    noise();
    note.hidden = true;
    form.hidden = false;
    say("idle", `The first drawing loads ${size} MB: the model, and what runs`
      + " it. After that nothing leaves or enters this page.");
  }

  [..."0123456789", "any"].forEach((name, y) => {
    form.querySelector(".live-digits").insertAdjacentHTML("beforeend",
      `<input type="radio" class="btn-check" name="y" id="live-${y}"
        value="${y}"><label class="btn btn-outline-primary" for="live-${y}"
        >${name}</label>`);
  });
  field.y.value = 3;
  for (const output of form.querySelectorAll("output"))
    output.setAttribute("aria-live", "off");   // a slider says its own value
  form.addEventListener("submit", (e) => { e.preventDefault(); draw(); });
  form.addEventListener("input", (e) => {
    if (e.target === field.frame) show(Number(field.frame.value));
    else labels();
  });
  form.addEventListener("change", (e) => {
    if (e.target === field.frame) return;
    if (worker) draw();
    else noise();
  });
  field.another.addEventListener("click", () => {
    field.seed.value = Math.floor(Math.random() * 10000);
    draw();
  });
  fetch(at("live/about.json")).then((r) => r.ok ? r.json()
    : { missing: `live/about.json: status ${r.status}` }
  ).then(start).catch((e) => {
    note.textContent = location.protocol === "file:"
      ? "A page opened from a file may not load a model: serve the folder, say"
        + " with python -m http.server, and open it there."
      : `There is no model in this copy of the page: ${e.message}. The picture`
        + " above shows what it draws.";
  });
})();
