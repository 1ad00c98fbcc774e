// Draws for live.js, off the page's thread: gets {job, seed, y, steps, ...},
// posts {job, ready}, a {job, frame} a step, and {job, done} or {job, failed}.
import { gaussian, onnxModel, trajectory } from "./live-sampler.mjs";

const SHAPE = [1, 28, 28], NONE = 10;   // of a picture; the null label
let latest, model, queue = Promise.resolve();

// A file beside this one, unpacked if the server has not done so
async function bytes(name) {
  const response = await fetch(new URL(`live/${name}`, import.meta.url));
  if (!response.ok) throw new Error(`${name}: status ${response.status}`);
  const raw = new Uint8Array(await response.arrayBuffer());
  if (raw[0] !== 0x1f || raw[1] !== 0x8b) return raw;
  const unpack = new DecompressionStream("gzip");
  const plain = new Response(new Blob([raw]).stream().pipeThrough(unpack));
  return new Uint8Array(await plain.arrayBuffer());
}

async function load() {
  const [ort, wasm, onnx] = await Promise.all([
    import("./live/ort.mjs"), bytes("ort.wasm.gz"), bytes("mnist.onnx")]);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;   // more need headers that few servers send
  ort.env.wasm.wasmBinary = wasm.buffer;
  const session = await ort.InferenceSession.create(onnx);
  return onnxModel(ort, session, SHAPE);
}

async function draw({ job, seed, ...how }) {
  if (job !== latest) return;
  model ??= await load();
  postMessage({ job, ready: true });
  let evaluations = 0;
  const counted = (xs, ...rest) => {
    evaluations += xs.length;
    return model(xs, ...rest);
  };
  const noise = gaussian(seed, SHAPE.reduce((a, b) => a * b));
  const start = performance.now();
  const walk = trajectory(counted, noise, { ...how, none: NONE });
  for await (const frame of walk) {
    await new Promise((next) => setTimeout(next));   // a newer job, by now?
    if (job !== latest) return;
    postMessage({ job, frame });
  }
  const seconds = (performance.now() - start) / 1000;
  postMessage({ job, done: { evaluations, seconds } });
}

onmessage = ({ data }) => {
  latest = data.job;
  queue = queue.then(() => draw(data)).catch((error) =>
    postMessage({ job: data.job, failed: error.message }));
};
