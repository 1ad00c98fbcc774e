// live-sampler.mjs in Node, for test_live.py: jobs as JSON on standard input,
// the last states (or the noise of a seed) as JSON on standard output.
// node live.mjs [folder that live_files.py has filled]
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { gunzipSync } from "node:zlib";
import { gaussian, onnxModel, trajectory } from "../nbs/live-sampler.mjs";

// Without a folder: a velocity with a formula, the same in test_live.py
async function formula(xs, t, ys) {
  return xs.map((x, k) => x.map((a) => a * (0.5 + t) - 0.1 * ys[k] * t * t));
}

async function real(folder) {
  const file = (name) => resolve(folder, name);
  const ort = await import(pathToFileURL(file("ort.mjs")));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = gunzipSync(readFileSync(file("ort.wasm.gz")));
  const session = await ort.InferenceSession.create(
    new Uint8Array(readFileSync(file("mnist.onnx"))));
  return onnxModel(ort, session, [1, 28, 28]);
}

const folder = process.argv[2];
const model = folder ? await real(folder) : formula;
const answers = [];
for (const { noise, seed, n, ...how } of JSON.parse(readFileSync(0))) {
  let x = noise ? Float32Array.from(noise) : gaussian(seed, n);
  if (how.steps)
    for await (const frame of trajectory(model, x, how)) x = frame.x;
  answers.push([...x]);
}
process.stdout.write(JSON.stringify(answers));
