"""Two recipes race on the real MNIST: flowbook's, and minRF's own loop.

    python benchmarks/race.py --minrf ../minRF --minutes 10

They take turns of a minute each on the same machine; the clock stands still
while they are measured. Both are judged on the same 28 x 28 pixels, by the same
draws: the loss of the velocity on 2,000 test images, and the share of 500
samples (no guidance, Euler with 20 steps, noise of seed 0) in which the shipped
classifier sees the class asked for.
"""
import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from run import load_minrf, machine

from flowbook import DiTLlama, RectifiedFlow, Trainer, load_data, sample
from flowbook.classifiers import load_classifier
from flowbook.data import generator_for, to_uint8
from flowbook.plot import show_curves


class Ours:
    "`flowbook train mnist`, for so many minutes"
    def __init__(self, data, args):
        torch.manual_seed(args.seed)
        self.trainer = Trainer(
            DiTLlama.from_preset("mnist"), data, batch_size=64, seed=args.seed,
            precision="bf16", schedule=lambda step, steps: self.rate(step))
        self.budget, self.seconds = 60 * args.minutes, 0.0

    def rate(self, step):
        "The recipe's plateau and decay, over time in place of steps"
        left = 1 - self.seconds / self.budget
        return max(0.0, min((step + 1) / 51, 2 * left, 1.0))

    def train(self, seconds):
        stop = time.time() + seconds
        while time.time() < stop:
            start = time.time()
            self.trainer.fit(self.trainer.step + 5, progress=False)
            self.seconds += time.time() - start

    def model(self): return self.trainer.average

    def images(self): return self.trainer.step * 64


class Theirs:
    "minRF's training loop and MNIST configuration"
    def __init__(self, data, args):
        from torch.utils.data import DataLoader, TensorDataset
        ref, rf = load_minrf(args.minrf)
        torch.manual_seed(args.seed)
        self.net = ref.DiT_Llama(1, 32, dim=64, n_layers=6, n_heads=4,
                                 num_classes=10)
        self.flow = rf.RF(self.net)
        self.opt = torch.optim.Adam(self.net.parameters(), lr=5e-4)
        # kinder than its own loader: the transforms are done beforehand
        x = F.pad(data.train[:][0], (2, 2, 2, 2), value=-1.0)
        loader = DataLoader(TensorDataset(x, data.train.labels), 256,
                            shuffle=True, drop_last=True)
        self.batches = (batch for _ in range(1000) for batch in loader)
        self.done, self.seconds = 0, 0.0

    def train(self, seconds):
        self.net.train()
        stop = time.time() + seconds
        while time.time() < stop:
            start = time.time()
            x, c = next(self.batches)
            self.opt.zero_grad()
            loss, _ = self.flow.forward(x, c)
            loss.backward()
            self.opt.step()
            loss.item()
            self.done += 256
            self.seconds += time.time() - start

    def model(self):
        "Its model in flowbook's terms, on 28 x 28 pixels"
        self.net.eval()
        def velocity(x, t, y):
            return self.net(x, t, y)
        velocity.num_classes = 10
        return velocity

    def images(self): return self.done


def measure(runner, data, judge, pad):
    "Held-out loss and the share of accepted samples"
    model, flow = runner.model(), RectifiedFlow()
    side, total = 28 + 2 * pad, 0.0
    inner = slice(pad, pad + 28)
    with torch.no_grad():
        for part in range(4):
            rows = torch.arange(500 * part, 500 * (part + 1))
            x, y = data.test[rows]
            noise, t, _ = flow.draw(Plain, x, y, generator_for("race", part))
            frame = torch.randn(500, 1, side, side,
                                generator=generator_for("frame", part))
            frame[..., inner, inner] = noise
            padded = F.pad(x, [pad] * 4, value=-1.0)
            v = model(flow.interpolate(padded, frame, t), t, y)
            error = v[..., inner, inner] - (noise - x)
            total += error.square().mean().item() / 4
    y = torch.arange(500) % 10
    noise = torch.randn(500, 1, side, side, generator=generator_for("race"))
    images = sample(model, noise, y, "euler", 20, batch_size=100)
    seen = judge(to_uint8(images[..., inner, inner])).argmax(1)
    return total, (seen == y).float().mean().item()


class Plain: num_classes = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minrf", default="../minRF", help="its checkout")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", default="benchmarks/results/race",
                        help="where .md, .json and .png go")
    args = parser.parse_args()
    data, judge = load_data("mnist"), load_classifier("mnist")
    runners = {"flowbook": (Ours(data, args), 0),
               "minRF": (Theirs(data, args), 2)}
    points = {name: [] for name in runners}
    for minute in range(1, args.minutes + 1):
        for name, (runner, pad) in runners.items():
            runner.train(60 * minute - runner.seconds)
            loss, accuracy = measure(runner, data, judge, pad)
            points[name].append((runner.seconds / 60, runner.images(), loss,
                                 accuracy))
            print(f"{name:9} {runner.seconds / 60:5.1f} minutes, "
                  f"{runner.images():9,} images, loss {loss:.4f}, "
                  f"{accuracy:.1%} accepted", flush=True)
    write(args, points)


def write(args, points):
    "A table, the numbers, and a figure"
    rows = [", ".join(machine("cpu")) + f", seed {args.seed}", "",
            "| minutes | loss, minRF | loss, flowbook | samples accepted,"
            " minRF | flowbook | images seen, minRF | flowbook |",
            "|---|---|---|---|---|---|---|"]
    for (m, n, loss, a), (_, n2, loss2, a2) in zip(points["minRF"],
                                                   points["flowbook"]):
        rows.append(f"| {m:.0f} | {loss:.4f} | {loss2:.4f} | {a:.1%} | {a2:.1%}"
                    f" | {n:,} | {n2:,} |")
    out = Path(args.save)
    out.with_suffix(".md").write_text("\n".join(rows) + "\n")
    out.with_suffix(".json").write_text(json.dumps(points))
    fig = show_curves({name: ([p[0] for p in ps], [p[2] for p in ps])
                       for name, ps in points.items()},
                      "minutes of training", "held-out loss")
    fig.savefig(out.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
