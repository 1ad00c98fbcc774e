// Noise, solvers and guidance for one picture, as flowbook.samplers and
// flowbook.guidance have them. Nothing here knows of a page or of ONNX but
// `onnxModel`, so that tests run the same lines in Node.
//
// A picture is a Float32Array. A model gives velocities for pictures, one time
// and labels: await model([x, ...], t, [y, ...]) is as many pictures.

// The i-th number in [0, 1) of a seed: a counter, scrambled (mulberry32)
function uniform(seed, i) {
  const a = (seed + (i + 1) * 0x6d2b79f5) | 0;
  let z = Math.imul(a ^ (a >>> 15), a | 1);
  z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
  return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
}

// n standard normal numbers, two at a time (Box and Muller 1958)
export function gaussian(seed, n) {
  return Float32Array.from({ length: n }, (_, i) => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform(seed, i - (i % 2))));
    const angle = 2 * Math.PI * uniform(seed, i - (i % 2) + 1);
    return radius * (i % 2 ? Math.sin(angle) : Math.cos(angle));
  });
}

const along = (x, h, v) => x.map((a, i) => a + h * v[i]);

// Each solver yields, a step at a time, the next state and the slope at the
// state before it.
async function* euler(v, x, ts) {
  for (let i = 1; i < ts.length; i++) {
    const slope = await v(x, ts[i - 1]);
    x = along(x, ts[i] - ts[i - 1], slope);
    yield [x, slope];
  }
}

async function* heun(v, x, ts) {
  for (let i = 1; i < ts.length; i++) {
    const h = ts[i] - ts[i - 1];
    const slope = await v(x, ts[i - 1]);
    const then = await v(along(x, h, slope), ts[i]);
    x = along(x, h / 2, along(slope, 1, then));
    yield [x, slope];
  }
}

async function* ab2(v, x, ts) {
  let last = null;
  for (let i = 1; i < ts.length; i++) {
    const h = ts[i] - ts[i - 1];
    const slope = await v(x, ts[i - 1]);
    const r = last ? h / (ts[i - 1] - ts[i - 2]) / 2 : 0;
    x = along(x, h, last ? slope.map((a, k) => a + r * (a - last[k])) : slope);
    last = slope;
    yield [x, slope];
  }
}

const solvers = { euler, heun, ab2 };

// v_null + scale (v_cond - v_null) while t is in the interval, in one batch.
// Times are compared as float32, as torch does: .3 may be .30000000000000004.
function guided(model, { y, none, guidance, interval }) {
  const [low, high] = interval.map(Math.fround);
  return async (x, t) => {
    const now = Math.fround(t);
    if (guidance === 1 || y === none || now < low || now > high)
      return (await model([x], t, [y]))[0];
    const [cond, free] = await model([x, x], t, [y, none]);
    return free.map((a, i) => a + guidance * (cond[i] - a));
  };
}

// From noise to a picture: each time of an even grid, with the state there
// and the end that the velocity there points to, x - t v.
export async function* trajectory(model, x, how) {
  const n = how.steps, v = guided(model, how);
  const ts = Array.from({ length: n + 1 }, (_, i) => 1 - i / n);
  let i = 0;
  for await (const [next, slope] of solvers[how.solver](v, x, ts)) {
    yield { t: ts[i], x, end: along(x, -ts[i], slope) };
    x = next;
    i += 1;
  }
  yield { t: 0, x, end: x };
}

// A model out of a session of ONNX Runtime; shape is that of a picture, c h w
export function onnxModel(ort, session, shape) {
  const size = shape.reduce((a, b) => a * b);
  return async (xs, t, ys) => {
    const n = xs.length, x = new Float32Array(n * size);
    xs.forEach((one, i) => x.set(one, i * size));
    const { v } = await session.run({
      x: new ort.Tensor("float32", x, [n, ...shape]),
      t: new ort.Tensor("float32", new Float32Array(n).fill(t), [n]),
      y: new ort.Tensor("int64", BigInt64Array.from(ys, BigInt), [n]),
    });
    return xs.map((_, i) => v.data.slice(i * size, (i + 1) * size));
  };
}
