"""Ratios of speed against reference implementations, on the same work.

    python benchmarks/run.py --minrf ../minRF

The contestants of a table take turns, so that a machine that slows down does
so for all of them. A ratio is the median, over the rounds, of the reference's
time divided by the contestant's in the same round: above 1 is faster.
"""
import argparse
import multiprocessing
import platform
import re
import statistics
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path

import torch

from flowbook import CFG, DiT, DiTLlama, RectifiedFlow, Trainer, sample
from flowbook.adaln import drop_labels
from flowbook.data import Data, DataSpec, Split


def load_minrf(folder):
    "minRF's modules, with the GPU call in its label dropout taken out"
    found = []
    for name in ("dit", "rf"):
        file = Path(folder, f"{name}.py")
        if not file.exists(): sys.exit(
            f"no {file}: git clone https://github.com/cloneofsimo/minRF,"
            " then pass its folder as --minrf")
        source = file.read_text().replace("drop_ids = drop_ids.cuda()", "")
        module = types.ModuleType(f"minrf_{name}")
        exec(compile(source, file, "exec"), module.__dict__)
        found.append(module)
    return found


class Timer:
    "Lets contestants take turns, and tells how they compare"
    def __init__(self, device, repeats, flops=None):
        self.device, self.repeats, self.flops = device, repeats, flops or {}

    def _seconds(self, work):
        if self.device == "cuda": torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if self.device == "cuda": torch.cuda.synchronize()
        return time.perf_counter() - start

    def table(self, title, contestants, ceiling, warm_up=None):
        "Time them in turn; the first is the reference"
        times = {name: [] for name in contestants}
        for work in 2 * list((warm_up or contestants).values()): work()
        for _ in range(self.repeats):
            for name, work in contestants.items():
                times[name].append(self._seconds(work))
        first = next(iter(times.values()))
        rows = [f"\n## {title}\n", "| | seconds | ratio | lowest to highest |"
                " share of matmul ceiling |", "|---|---|---|---|---|"]
        for name, mine in times.items():
            ratios = sorted(a / b for a, b in zip(first, mine))
            second = statistics.median(mine)
            share = (self.flops.get(name, 0) / second
                     / ceiling["bfloat16" in name])
            rows.append(f"| {name} | {second:.3f} | "
                        f"{statistics.median(ratios):.2f} | {ratios[0]:.2f} to"
                        f" {ratios[-1]:.2f} | "
                        + (f"{share:.0%} |" if share else "not counted |"))
        print("\n".join(rows), flush=True)
        return rows


def flops_of(model, *args):
    "Floating point operations of a forward pass, by PyTorch's counter"
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*args)
    return counter.get_total_flops()


def matmul_ceiling(device, dtype, size=4096):
    "FLOP/s of a large matrix product, best of five"
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    timer, best = Timer(device, 1), 1e9
    for _ in range(6): best = min(best, timer._seconds(lambda: a @ b))
    return 2 * size**3 / best


def train_step(model, x, t, y, device, bf16=False, drop=None, classes=10):
    "A function that makes one training step"
    opt = torch.optim.AdamW(model.parameters(), 1e-4)
    noise = torch.randn_like(x)
    def step():
        labels = drop_labels(y, drop, classes) if drop else y
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            v = model(x, t, labels)
        (v.float() - (noise - x)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    return step


def llama(args, ceiling):
    "One training step of DiT-LLaMA: width 256, depth 10, patch 2, 3x32x32"
    ref, _ = load_minrf(args.minrf)
    d, b = args.device, args.batch or 32
    x, t = torch.randn(b, 3, 32, 32, device=d), torch.rand(b, device=d)
    y = torch.randint(10, (b,), device=d)
    ours = DiTLlama.from_preset("cifar10").to(d)
    theirs = ref.DiT_Llama(3, 32, 2, 256, 10, 8, num_classes=10).to(d)
    narrow = ref.DiT_Llama(3, 32, 2, 256, 10, 8, multiple_of=32).to(d)
    models = {"minRF, float32": (theirs, False),
              "minRF, hidden width 704, float32": (narrow, False),
              "flowbook, float32": (ours, False),
              "minRF, bfloat16": (theirs, True),
              "flowbook, bfloat16": (ours, True)}
    if args.compile: models |= {
        "minRF, compiled, float32": (torch.compile(theirs), False),
        "flowbook, compiled, float32": (torch.compile(ours), False),
        "minRF, compiled, bfloat16": (torch.compile(theirs), True),
        "flowbook, compiled, bfloat16": (torch.compile(ours), True)}
    size = sum(p.numel() for p in theirs.parameters())
    print(f"parameters: flowbook {ours.num_params():,}, minRF {size:,}")
    flops = {name: 3 * flops_of(m, x, t, y) for name, (m, _) in models.items()
             if "compiled" not in name}
    flops |= {n: flops[n.replace(" compiled,", "")] for n in models}
    runs = {name: train_step(m, x, t, y, d, low,
                             0.1 if "flowbook" in name else None)
            for name, (m, low) in models.items()}
    return Timer(d, args.repeats, flops).table(
        f"Training step of DiT-LLaMA, batch {b}", runs, ceiling)


def dit(args, ceiling):
    "DiT-S/2 against diffusers: a training step, and a forward pass"
    from diffusers import DiTTransformer2DModel
    d, b = args.device, args.batch or 8
    x, t = torch.randn(b, 4, 32, 32, device=d), torch.rand(b, device=d)
    y = torch.randint(1000, (b,), device=d)
    theirs = DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=64,
                                   num_layers=12).to(d)
    first, *others = theirs.transformer_blocks
    for block in others:  # as in its checkpoints: one embedding for all
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    ours = DiT.from_diffusers(theirs).to(d)
    low, cost = d == "cuda", DiT.flops(ours) * b
    end = ", bfloat16" if low else ", float32"
    if args.compile:
        ours, theirs = torch.compile(ours), torch.compile(theirs)
        end = ", compiled" + end
    def adapter(x, t, y): return theirs(x, t * 1000, y).sample
    adapter.parameters = theirs.parameters
    models = {"diffusers" + end: adapter, "flowbook" + end: ours}
    flops = dict.fromkeys(models, cost)
    @torch.no_grad()
    def forward(model):
        with torch.autocast(d, torch.bfloat16, enabled=low): model(x, t, y)
    rows = Timer(d, args.repeats, {n: 3 * f for n, f in flops.items()}).table(
        f"Training step of DiT-S/2, batch {b}",
        {n: train_step(m, x, t, y, d, low) for n, m in models.items()}, ceiling)
    return rows + Timer(d, args.repeats, flops).table(
        f"Forward pass of DiT-S/2, batch {b}",
        {n: partial(forward, m) for n, m in models.items()}, ceiling)


def sampling(args, ceiling):
    "64 guided MNIST-size images, 50 steps of Euler"
    ref, rf = load_minrf(args.minrf)
    d, b = args.device, args.batch or 64
    noise = torch.randn(b, 1, 28, 28, device=d)
    y = torch.arange(b, device=d) % 10
    theirs = ref.DiT_Llama(1, 28, dim=64, n_layers=6, n_heads=4).to(d).eval()
    ours = DiTLlama(1, 28, 2, 64, 6, 4, stem_width=16).to(d).eval()
    null, low = torch.full_like(y, 10), d == "cuda"
    def reference(steps=50):
        with torch.autocast(d, torch.bfloat16, enabled=low):
            rf.RF(theirs).sample(noise, y, null, sample_steps=steps, cfg=2.0)
    def flowbook(model, bf16, steps=50):
        with torch.autocast(d, torch.bfloat16, enabled=bf16):
            sample(CFG(model, 2.0, null=10), noise, y, solver="euler",
                   steps=steps)
    runs = {f"minRF's loop, {'bfloat16' if low else 'float32'}": reference}
    models = {"flowbook": ours}
    if args.compile: models["flowbook, compiled"] = torch.compile(ours)
    for name, m in models.items():
        for bf16, dtype in enumerate(("float32", "bfloat16")):
            runs[f"{name}, {dtype}"] = partial(flowbook, m, bool(bf16))
    return Timer(d, args.repeats).table(
        f"Guided sampling of {b} images of 1x28x28, 50 steps, width 64, depth"
        " 6, patch 2", runs, ceiling,
        {name: partial(work, steps=1) for name, work in runs.items()})


def overhead(args, ceiling):
    "What `sample` and `CFG` add to the bare calls of the model"
    d, b, steps = args.device, args.batch or 16, 20
    noise = torch.randn(b, 1, 28, 28, device=d)
    y = torch.arange(b, device=d) % 10
    model = DiTLlama(1, 28, 2, 64, 6, 4, stem_width=16).to(d).eval()
    times = [torch.full((b,), 1 - i / steps, device=d) for i in range(steps)]
    double = [torch.cat([a, a]) for a in (noise, y)]
    @torch.no_grad()
    def bare(x, y):
        for t in times: model(x, t.repeat(len(x) // b), y)
    def ours(model): sample(model, noise, y, "euler", steps)
    def free(x, t, y): return x                  # a model that costs nothing
    guided_free = CFG(free, 2.0, null=10)
    what = f"{steps} evaluations of {b} images"
    rows = Timer(d, args.repeats).table(
        f"Sampling: {what}",
        {"the model's calls alone": partial(bare, noise, y),
         "sample, Euler": partial(ours, model),
         "sample, Euler, a model that costs nothing": partial(ours, free)},
        ceiling)
    return rows + Timer(d, args.repeats).table(
        f"Guided sampling: {what}, doubled",
        {"the model's calls alone, doubled batch": partial(bare, *double),
         "sample with CFG, Euler": partial(ours, CFG(model, 2.0)),
         "the same, a model that costs nothing": partial(ours, guided_free)},
        ceiling)


def peak_memory(device, n, batch_size):
    "Peak MiB above the start of one portion, and of `n` images in portions"
    model = DiTLlama.from_preset("digits").to(device).eval()
    def now():
        if device == "cuda": return torch.cuda.max_memory_allocated() / 2**20
        # on Linux; ru_maxrss would be that of the parent process
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 2**10
    def draw(n):
        noise = torch.randn(n, 1, 8, 8, device=device)
        y = torch.arange(n, device=device) % 10
        sample(CFG(model, 2.0), noise, y, steps=5, batch_size=batch_size)
        return now()
    draw(10)                                     # libraries are loaded now
    start = now()
    return draw(batch_size) - start, draw(n) - start


def memory(args, ceiling):
    "2,000 digits in portions against one portion, in a fresh process"
    n, batch_size = 2000, args.batch or 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        one, many = pool.apply(peak_memory, (args.device, n, batch_size))
    rows = [f"\n## Memory of {n} guided digits in portions of {batch_size}\n",
            "| | peak MiB above the start | ratio |", "|---|---|---|",
            f"| one portion | {one:.0f} | 1.00 |",
            f"| all | {many:.0f} | {many / one:.2f} |"]
    print("\n".join(rows), flush=True)
    return rows


def random_pictures(n, size):
    "Data of noise: its contents cost nothing and change no time"
    split = Split(torch.randint(256, (n, 1, size, size), dtype=torch.uint8),
                  torch.randint(10, (n,)))
    return Data(split, split, DataSpec("noise", 1, (size, size),
                                       tuple("0123456789")))


def bare_loop(model, split, device, precision, batch, steps):
    "The loop that anyone would write, with the parts that Trainer has"
    opt = torch.optim.AdamW(model.parameters(), 2e-3, (0.9, 0.99), fused=True)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
    images, labels = split.images.to(device), split.labels.to(device)
    low = precision == "bf16"
    def run():
        for _ in range(steps):
            i = torch.randint(len(images), (batch,), device=device)
            x = images[i].float() / 127.5 - 1
            y = labels[i].where(torch.rand(batch, device=device) > 0.1, 10)
            noise = torch.randn_like(x)
            t = torch.randn(batch, device=device).sigmoid()
            s = t.view(-1, 1, 1, 1)
            with torch.autocast(device, torch.bfloat16, enabled=low):
                v = model((1 - s) * x + s * noise, t, y)
            (v.float() - (noise - x)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
            average.update_parameters(model)
    return run


def trainer_loop(model, data, precision, batch, steps, compiled=False):
    "The same steps by Trainer"
    trainer = Trainer(model, data, batch_size=batch, precision=precision,
                      compile=compiled)
    def run(): trainer.fit(trainer.step + steps, progress=False)
    return run


def trainer(args, ceiling):
    "Trainer against a bare loop with the same parts: the MNIST preset"
    d, b, steps = args.device, args.batch or 64, 20
    data = random_pictures(2000, 28)
    runs = {}
    for precision in ("no", "bf16"):
        new = partial(DiTLlama.from_preset, "mnist")
        name = "float32" if precision == "no" else "bfloat16"
        runs[f"bare loop, {name}"] = bare_loop(
            new().to(d), data.train, d, precision, b, steps)
        runs[f"Trainer, {name}"] = trainer_loop(new(), data, precision, b,
                                                steps)
    rows = []
    for name in ("float32", "bfloat16"):
        rows += Timer(d, args.repeats).table(
            f"{steps} steps of training in {name}, batch {b}",
            {k: work for k, work in runs.items() if name in k}, ceiling)
    return rows


def minrf_loop(args, batch, steps):
    "minRF's own loop over its MNIST configuration, from rf.py"
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    ref, rf = load_minrf(args.minrf)
    model = ref.DiT_Llama(1, 32, dim=64, n_layers=6, n_heads=4, num_classes=10)
    flow = rf.RF(model.to(args.device))
    opt = torch.optim.Adam(model.parameters(), lr=5e-4)
    transform = transforms.Compose([
        transforms.ToTensor(), transforms.Pad(2),
        transforms.Normalize((0.5,), (0.5,))])
    pictures = random_pictures(60_000, 28).train
    class Pictures(Dataset):  # as torchvision's MNIST: PIL, then transform
        def __len__(self): return len(pictures)
        def __getitem__(self, i):
            image = transforms.functional.to_pil_image(pictures.images[i])
            return transform(image), int(pictures.labels[i])
    loader = DataLoader(Pictures(), batch, shuffle=True, drop_last=True)
    batches = iter(loader)
    lossbin = dict.fromkeys(range(10), 0.0)
    losscnt = dict.fromkeys(range(10), 0)
    def run():
        for _ in range(steps):
            x, c = (a.to(args.device) for a in next(batches))
            opt.zero_grad()
            loss, by_t = flow.forward(x, c)
            loss.backward()
            opt.step()
            loss.item()                          # what it logs at each step
            for t, l in by_t:
                lossbin[int(t * 10)] += l
                losscnt[int(t * 10)] += 1
    return run, sum(p.numel() for p in model.parameters())


def loop(args, ceiling):
    "A training loop of the size of minRF's MNIST model, against its own"
    b, steps = args.batch or 256, 2
    theirs, size = minrf_loop(args, b, steps)
    data = random_pictures(60_000, 32)
    def ours(): return DiTLlama(1, 32, 2, 64, 6, 4, stem_width=32)
    print(f"parameters: flowbook {ours().num_params():,}, minRF {size:,}")
    runs = {"minRF's loop": theirs}
    for name, precision in (("float32", "no"), ("bfloat16", "bf16")):
        for how in (False, True)[:1 + args.compile]:
            runs[f"Trainer, {'compiled, ' * how}{name}"] = trainer_loop(
                ours(), data, precision, b, steps, how)
    return Timer(args.device, args.repeats).table(
        f"{steps} steps of training, batch {b} of 1x32x32, width 64, depth 6,"
        " patch 2", runs, ceiling)


def machine(device):
    "The machine, named by its parts"
    parts = [f"torch {torch.__version__}",
             f"Python {platform.python_version()}",
             f"{torch.get_num_threads()} threads"]
    if device == "cuda": return [torch.cuda.get_device_name(), *parts]
    cpu = subprocess.run(["lscpu"], capture_output=True, text=True).stdout
    name = re.search(r"Model name:\s*(.*)", cpu)
    return [name[1] if name else platform.processor(), *parts]


def main():
    tables = {f.__name__: f for f in
              (llama, dit, sampling, overhead, memory, trainer, loop)}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minrf", default="../minRF", help="its checkout")
    parser.add_argument("--only", choices=tables, help="one table")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, help="another batch size")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile as well (for dit: instead)")
    parser.add_argument("--save", help="append the tables to this file")
    args = parser.parse_args()
    if args.repeats < 7: parser.error("--repeats must be 7 or more")
    torch.manual_seed(0)
    ceiling = {low: matmul_ceiling(args.device, dtype) for low, dtype in
               enumerate((torch.float32, torch.bfloat16))}
    rows = [", ".join(machine(args.device)), "", "Matrix product of 4096 x 4096"
            f": {ceiling[0] / 1e12:.3f} TFLOP/s in float32,"
            f" {ceiling[1] / 1e12:.3f} in bfloat16."]
    print("\n".join(rows), flush=True)
    for name in [args.only] if args.only else tables:
        rows += tables[name](args, ceiling)
        if args.save: Path(args.save).write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
