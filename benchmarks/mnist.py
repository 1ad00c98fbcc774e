"""flowbook's MNIST recipe against minRF's own configuration, for as long.

    flowbook train --recipe mnist-cpu --epochs 12 --out runs/mnist-race
    python benchmarks/mnist.py --run runs/mnist-race --minrf ../minRF

minRF trains alone on the machine, by its own loop, for as many seconds as the
run took. Then both are measured on the same 28 x 28 pixels, with noise of the
same seed: by their own sampler's setting and by each other's.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
from race import Theirs
from run import machine

from flowbook import CFG, load_data, sample
from flowbook.data import atomic_write, generator_for, to_float, to_uint8
from flowbook.evaluate import (extractor_for, look, look_kept, measure,
                               noise_for)
from flowbook.plot import image_grid
from flowbook.presets import RECIPES
from flowbook.runs import (load_run, newest_state, read_tensors,
                           write_tensors)
from flowbook.samplers import Counted

recipe = RECIPES["mnist-cpu"].sampling
OURS = {k: v for k, v in recipe.items() if k in ("solver", "steps")}
SETTINGS = {  # name -> guidance, its interval, arguments of sample
    "minRF's: Euler, 50 steps, scale 2": (
        2.0, (0.0, 1.0), dict(solver="euler", steps=50)),
    "ours: {solver}, {steps} steps, scale {guidance:g} for t in {interval}"
    .format(**recipe): (recipe["guidance"], recipe["interval"], OURS),
    "no guidance: {solver}, {steps} steps".format(**recipe): (
        1.0, (0.0, 1.0), OURS)}
OWN = {"minRF": "minRF's", "flowbook": "ours"}


def train(args, seconds):
    "minRF's model after so many seconds, kept in a file"
    runner, file = Theirs(load_data("mnist"), args), Path(args.kept)
    if file.exists():
        tensors, about = read_tensors(file)
        if about["seconds"] < seconds: sys.exit(
            f"{file} was trained for {about['seconds']:.0f} s, not"
            f" {seconds:.0f}: remove it, or pass another --kept")
        runner.net.load_state_dict(tensors)
        return runner.model(), about
    while runner.seconds < seconds:
        runner.train(min(60, seconds - runner.seconds))
        print(f"minRF {runner.seconds / 60:5.1f} minutes, "
              f"{runner.images():9,} images", flush=True)
    about = dict(seconds=runner.seconds, images=runner.images())
    write_tensors(file, runner.net.state_dict(), about)
    return runner.model(), about


def draw(model, setting, n, side, seed):
    "Samples of all classes in turn, cut to 28 x 28, and their labels"
    guidance, interval, how = setting
    guided, pad = CFG(model, guidance, interval=interval), (side - 28) // 2
    for start in range(0, n, 100):
        y = torch.arange(start, start + 100) % 10
        x = sample(guided, noise_for(seed, start, start + 100, (1, side, side)),
                   y, **how)
        yield to_uint8(x[..., pad:pad + 28, pad:pad + 28]), y


def numbers(train, found, test):
    "Accuracy, FID, precision and recall of some images"
    rows = measure(train, found, test, ("fid", "precision_recall"))
    return {"accuracy": found.accuracy(),
            **{r["metric"].lower(): r["value"] for r in rows}}


def asked():
    "The command line's arguments, checked"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/mnist-race", help="our run")
    parser.add_argument("--minrf", default="../minRF", help="its checkout")
    parser.add_argument("--kept", default="runs/minrf-mnist.safetensors",
                        help="where minRF's weights are kept")
    parser.add_argument("--n", type=int, default=1000, help="samples of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", default="benchmarks/results/mnist",
                        help="where .json and the .png of each go")
    args = parser.parse_args()
    if args.n % 100: sys.exit(f"--n must be a multiple of 100, got {args.n}")
    return args


def main():
    args = asked()
    ours, config = load_run(args.run)
    seconds = newest_state(args.run)[1]["seconds"]
    steps = config["run"]["steps"]
    theirs, about = train(args, seconds)
    torch.set_grad_enabled(False)
    data = load_data("mnist")
    net = extractor_for(data)
    seen = [look_kept(net, split) for split in (data.train, data.test)]
    some = seen[1][torch.randperm(len(seen[1]), generator=generator_for(
        args.seed, "few"))[:args.n]]
    result = {"n": args.n, "seed": args.seed, "machine": machine("cpu"),
              "real": numbers(seen[0], some, seen[1]), "rows": [],
              "training": {"flowbook": dict(
                  seconds=seconds, images=steps * config["run"]["batch_size"]),
                  "minRF": about}}
    for how, setting in SETTINGS.items():
        for name, model, side in (("minRF", theirs, 32),
                                  ("flowbook", ours, 28)):
            counted = Counted(model)
            counted.num_classes, parts = 10, []
            def kept(images):
                for x, y in images:
                    parts.append(x)
                    yield x, y
            found = look(net, kept(draw(counted, setting, args.n, side,
                                        args.seed)))
            result["rows"].append(dict(
                model=name, setting=how, evaluations=counted.images / args.n,
                **numbers(seen[0], found, seen[1])))
            print(result["rows"][-1], flush=True)
            if how.startswith(OWN[name]): image_grid(
                to_float(parts[0][:50]), 10).save(f"{args.save}-{name}.png")
            atomic_write(f"{args.save}.json", json.dumps(
                result, indent=1).encode())


if __name__ == "__main__":
    main()
