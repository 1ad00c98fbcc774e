"""A race on CIFAR-10: quality against minutes of training, on one machine.

    python benchmarks/cifar10_speedrun.py train flowbook --minutes 25
    python benchmarks/cifar10_speedrun.py train minrf --minutes 25
    python benchmarks/cifar10_speedrun.py measure      # or: measure minrf
    python benchmarks/cifar10_speedrun.py sweep

The task: the 50,000 training images and their labels, and nothing else; one
machine, or one GPU; class-conditional samples of 3 x 32 x 32 pixels with at
most 100 evaluations of the model each. The clock starts before the first step
and counts compilation. At fixed shares of the time an entry leaves its weights
in a file; they are measured afterwards. Training that was cut off goes on
where it was when the same command is given again.

Another entry is a class with the four methods of `Ours`, named in ENTRIES.
`sweep` tells which batch size a machine likes, before any of this.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from mnist import numbers
from run import load_minrf, machine, matmul_ceiling
from torch import nn

from flowbook import DiTLlama, RectifiedFlow, load_data
from flowbook.data import atomic_write, batch_indices, generator_for, to_float
from flowbook.evaluate import drawn, extractor_for, look, look_kept
from flowbook.plot import image_grid
from flowbook.presets import RECIPES, recipe_trainer
from flowbook.runs import read_tensors, write_tensors
from flowbook.samplers import Counted
from flowbook.train import held_out_loss, random_flip

SHARES = 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1


class Marks:
    "Keeps weights when a share of the time is over"
    def __init__(self, folder, minutes):
        self.folder = Path(folder, "marks")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.left = [60 * minutes * share for share in SHARES]

    def __call__(self, weights, seconds, images, last=False):
        due = [mark for mark in self.left if last or seconds >= mark]
        if not due: return
        self.left = [mark for mark in self.left if mark not in due]
        file = self.folder / f"{round(due[-1]):06d}.safetensors"
        if not file.exists(): write_tensors(
            file, weights, dict(seconds=seconds, images=images))


class Ours:
    "A recipe of flowbook"
    def __init__(self, args):
        self.args, self.out = args, Path(args.runs, "flowbook")
        self.recipe = RECIPES[args.recipe]

    def train(self, data, device):
        marks = Marks(self.out, self.args.minutes)
        def keep(trainer, row=None):
            images = trainer.step * trainer.settings["batch_size"]
            marks(trainer.average.state_dict(), trainer.seconds, images,
                  last=row is None)
        trainer, _ = recipe_trainer(
            self.args.recipe, data, out=self.out / "run", resume="auto",
            seed=self.args.seed, callbacks={"log": keep, "end": keep})
        trainer.fit(minutes=self.args.minutes)

    def model(self, tensors):
        net = DiTLlama.from_preset(self.recipe.preset, **self.recipe.model)
        net.load_state_dict(tensors)
        return net.eval()

    def sampling(self): return self.recipe.sampling


class Velocity(nn.Module):
    "Another's network with the contract of flowbook's models"
    num_classes = 10
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, y): return self.net(x, t, y)


class Theirs:
    "minRF's CIFAR configuration, trained as its rf.py does"
    def __init__(self, args):
        self.args, self.out = args, Path(args.runs, "minrf")
        self.ref, self.rf = load_minrf(args.minrf)

    def net(self):
        return self.ref.DiT_Llama(3, 32, dim=256, n_layers=10, n_heads=8,
                                  num_classes=10)

    def train(self, data, device):
        torch.manual_seed(self.args.seed)
        net, train = self.net().to(device), data.train.to(device)
        opt = torch.optim.Adam(net.parameters(), lr=5e-4)
        flow, marks = self.rf.RF(net), Marks(self.out, self.args.minutes)
        step, before = self.restore(net, opt)
        start = saved = time.monotonic()
        while (seconds := before + time.monotonic() - start
               ) < 60 * self.args.minutes:
            torch.manual_seed(1_000_003 * self.args.seed + step)
            # kinder than its own loader: the images are on the device
            i = batch_indices(len(train), 256, step, self.args.seed)
            x, c = train[i.to(device)]
            opt.zero_grad()
            loss, _ = flow.forward(random_flip(x), c)
            loss.backward()
            opt.step()
            loss.item()
            step += 1
            seconds = before + time.monotonic() - start
            marks(net.state_dict(), seconds, 256 * step)
            if time.monotonic() - saved > 60:
                saved = time.monotonic()
                self.save(net, opt, step, seconds)
                print(f"{seconds / 60:6.1f} minutes, {256 * step:10,} images,"
                      f" loss {loss:.3f}", flush=True)
        marks(net.state_dict(), seconds, 256 * step, last=True)
        self.save(net, opt, step, seconds)

    def save(self, net, opt, step, seconds):
        "What training needs to go on"
        memory = {f"opt/{i}/{name}": x for i, kept in
                  opt.state_dict()["state"].items() for name, x in kept.items()}
        write_tensors(self.out / "state.safetensors", memory | {
            f"net/{name}": x for name, x in net.state_dict().items()},
            dict(step=step, seconds=seconds))

    def restore(self, net, opt):
        "Steps and seconds of a run that was cut off; 0 and 0 of a new one"
        file = self.out / "state.safetensors"
        if not file.exists(): return 0, 0.0
        tensors, info = read_tensors(file, strict=True)
        net.load_state_dict({k.removeprefix("net/"): x for k, x in
                             tensors.items() if k.startswith("net/")})
        state = {}
        for key, x in tensors.items():
            if key.startswith("opt/"):
                _, i, name = key.split("/")
                state.setdefault(int(i), {})[name] = x
        opt.load_state_dict(opt.state_dict() | {"state": state})
        return info["step"], info["seconds"]

    def model(self, tensors):
        net = self.net()
        net.load_state_dict(tensors)
        return Velocity(net).eval()

    def sampling(self): return dict(guidance=2.0, solver="euler", steps=50)


ENTRIES = {"flowbook": Ours, "minrf": Theirs}


def scores(model, sampling, n, data, net, seen, device, seed):
    "Accuracy, FID, precision and recall of n samples, and the first of them"
    counted, parts = Counted(model), []
    counted.num_classes = 10
    def kept(images):
        for x, y in images:
            parts.append(x)
            yield x, y
    with torch.autocast(device.type, torch.bfloat16):
        found = look(net, kept(drawn(counted, data.spec, n, seed=seed,
                                     progress=True, **sampling)))
    return {"n": n, "evaluations": counted.images / n,
            **numbers(seen[0], found, seen[1])}, parts[0]


def measure_all(args, data, device):
    "A row for each entry and mark: loss on test images, scores of samples"
    torch.set_grad_enabled(False)
    net = extractor_for(data).to(device)
    seen = [look_kept(net, split) for split in (data.train, data.test)]
    some = seen[1][torch.randperm(len(seen[1]), generator=generator_for(
        args.seed, "few"))[:args.n]]
    result = {"seed": args.seed, "recipe": args.recipe,
              "machine": machine(device.type), "rows": [], "real": {
                  "n": len(some), **numbers(seen[0], some, seen[1])}}
    kept = Path(f"{args.save}.json")
    if args.entry and kept.exists(): result["rows"] = [
        row for row in json.loads(kept.read_text())["rows"]
        if row["entry"] != args.entry]
    for name in [args.entry] if args.entry else ENTRIES:
        entry = ENTRIES[name](args)
        files = sorted((entry.out / "marks").glob("*.safetensors"))
        if not files: print(f"{name} has not been trained in {args.runs}")
        for file in files:
            tensors, info = read_tensors(file)
            model = entry.model(tensors).to(device)
            row = dict(entry=name, **info, loss=held_out_loss(
                model, RectifiedFlow(), data.test))
            n = args.n if file == files[-1] or args.every else 0
            if n:
                more, first = scores(model, entry.sampling(), n, data, net,
                                     seen, device, args.seed)
                row |= more
                image_grid(to_float(first[:20]), 10).save(
                    f"{args.save}-{name}-{file.stem}.png")
            print(row, flush=True)
            result["rows"].append(row)
            atomic_write(kept, json.dumps(result, indent=1).encode())


def sweep(args, data, device):
    "Images a second and peak memory of the recipe, by batch and compilation"
    most = matmul_ceiling(device.type, torch.bfloat16)
    print("| batch | compiled | images/s | share of matmul ceiling | GiB |\n"
          "|---|---|---|---|---|")
    for batch in args.batches:
        for compiled in (False, True):
            rows = []
            trainer, _ = recipe_trainer(
                args.recipe, data, batch_size=batch, compile=compiled,
                callbacks={"log": lambda trainer, row: rows.append(row)})
            if device.type == "cuda": torch.cuda.reset_peak_memory_stats()
            trainer.fit(60, log_every=10, progress=False)
            speed = statistics.median(r["images_per_second"] for r in rows[2:])
            share = 3 * trainer.average.flops() * speed / most
            memory = torch.cuda.max_memory_allocated() / 2**30 \
                if device.type == "cuda" else float("nan")
            print(f"| {batch} | {compiled} | {speed:.0f} | {share:.0%} |"
                  f" {memory:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["train", "measure", "sweep"])
    parser.add_argument("entry", nargs="?", choices=list(ENTRIES))
    parser.add_argument("--minutes", type=float, help="of training (default:"
                        " the recipe's)")
    parser.add_argument("--recipe", default="cifar10-gpu" if
                        torch.cuda.is_available() else "cifar10-cpu",
                        choices=[r for r in RECIPES if "cifar10" in r])
    parser.add_argument("--minrf", default="../minRF", help="its checkout")
    parser.add_argument("--runs", default="runs/cifar10_speedrun")
    parser.add_argument("--batches", type=int, nargs="+", default=[
        256, 512, 1024] if torch.cuda.is_available() else [32, 64, 128])
    parser.add_argument("--n", type=int, default=1000, help="samples of the"
                        " last weights of each entry")
    parser.add_argument("--every", action="store_true", help="and of all the"
                        " weights before them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", default="benchmarks/results/cifar10_speedrun",
                        help="where .json goes, and a .png of each file")
    args = parser.parse_args()
    if args.what == "train" and not args.entry: parser.error(
        f"train needs an entry: {', '.join(ENTRIES)}")
    args.minutes = args.minutes or RECIPES[args.recipe].length["minutes"]
    from accelerate import PartialState
    data, device = load_data("cifar10"), PartialState().device
    if args.what == "train": ENTRIES[args.entry](args).train(data, device)
    else: {"measure": measure_all, "sweep": sweep}[args.what](
        args, data, device)


if __name__ == "__main__":
    main()
