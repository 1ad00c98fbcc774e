"""Ablations at equal time: the arms of flowbook.ablations, several seeds each.

    python benchmarks/ablations.py --data digits --seconds 20 --seeds 3
    python benchmarks/ablations.py --data mnist --seconds 300 --seeds 1

Each worker is a process with one thread. First the arms are timed, in turn, and
the least of five rounds gives the number of steps that an arm makes in its
seconds (arms whose steps are the same work have the same number); then all arms
are trained, seed after seed, in an order that mixes them. A row is written as
soon as its run ends, and a run whose row is there is not done again, so the
same command goes on where it was stopped.
"""
import argparse
import json
import multiprocessing
import os
import random
import time
from functools import lru_cache
from pathlib import Path

import torch

from flowbook.ablations import (
    ARMS, ARMS_FOR, SETTINGS, eyes_for, floor_of, run_arm, seconds_a_step)
from flowbook.data import atomic_write, load_data

SAMPLES = {"digits": 1000, "mnist": 500}


@lru_cache
def loaded(name):
    "A dataset, and what the judge saw in it, once a process"
    data = load_data(name)
    return data, eyes_for(data, cache=True)


def one_thread():
    torch.set_num_threads(1)


def timed(job):
    "An arm and its seconds a step"
    name, arm = job
    return arm, seconds_a_step(loaded(name)[0], arm)


def floor(job):
    name, n = job
    return floor_of(loaded(name)[1], n)


def trained(job):
    "The row of a run, or what became of it"
    name, arm, seed, steps, n = job
    data, eyes = loaded(name)
    try: return run_arm(data, arm, seed, steps, n, eyes)
    except FloatingPointError as e:
        return dict(data=name, arm=arm, seed=seed, failed=str(e))


def written(results):
    "JSON with a line for each row"
    parts = []
    for name, x in results.items():
        rows = ",\n".join("  " + json.dumps(r) for r in x["rows"])
        rest = json.dumps({k: v for k, v in x.items() if k != "rows"})
        parts.append(f'"{name}": {rest[:-1]},\n "rows": [\n{rows}]}}')
    return "{" + ",\n".join(parts) + "}\n"


def machine():
    "The processor's name, if it says so"
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: lines = []
    name = next((x.split(":", 1)[1].strip() for x in lines
                 if x.startswith("model name")), "unknown processor")
    return (f"{name}, {os.cpu_count()} cores, one thread a run,"
            f" torch {torch.__version__}")


def asked():
    "The command line's arguments, checked"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=list(SETTINGS), default="digits")
    parser.add_argument("--seconds", type=float, default=20,
                        help="of training for each run")
    parser.add_argument("--seeds", type=int, default=3,
                        help="of each arm; the base gets twice as many")
    parser.add_argument("--arms", nargs="+", metavar="ARM",
                        help="names in flowbook.ablations.ARMS")
    parser.add_argument("--samples", type=int, help="of each run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="benchmarks/results/ablations.json")
    args = parser.parse_args()
    unknown = [a for a in args.arms or [] if a not in ARMS]
    if unknown: parser.error(f"unknown arm {', '.join(unknown)}: expected "
                             + ", ".join(ARMS))
    for name in ("seconds", "seeds", "workers"):
        if not getattr(args, name) > 0: parser.error(
            f"--{name} must be above 0, got {getattr(args, name)}")
    args.arms = list(dict.fromkeys(args.arms or ARMS_FOR[args.data]))
    args.samples = args.samples or SAMPLES[args.data]
    return parser, args


def opened(parser, args):
    "All results so far, and those of this dataset"
    out = Path(args.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    new = dict(machine=machine(), seconds=args.seconds, n=args.samples)
    mine = results.setdefault(args.data, new | dict(steps={}, rows=[]))
    if {k: mine[k] for k in new} != new: parser.error(
        f"{out} holds {args.data} of {mine['seconds']:g} s, {mine['n']}"
        f" samples, {mine['machine']}: pass another --out, or go on as there")
    return results, mine


def jobs_of(args, mine):
    "The runs that are left: seed by seed, the arms of each in another order"
    done = {(r["arm"], r["seed"]) for r in mine["rows"]}
    for seed in range(2 * args.seeds if args.seeds > 1 else 1):
        arms = args.arms if seed < args.seeds else (
            [a for a in args.arms if a == "base"])
        for arm in random.Random(seed).sample(arms, len(arms)):
            if (arm, seed) not in done: yield (
                args.data, arm, seed, mine["steps"][arm], args.samples)


def main():
    os.environ["OMP_NUM_THREADS"] = "1"          # before workers start
    parser, args = asked()
    results, mine = opened(parser, args)
    mine.pop("failed", None)                     # they are tried again
    def save(): atomic_write(Path(args.out), written(results).encode())
    load_data(args.data)                         # or says what is missing
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(args.workers, one_thread) as pool:
        mine.setdefault("floor", pool.map(floor, [(args.data, args.samples)])[0])
        costs = mine.setdefault("costs", {})     # seconds a step, of each work
        works = dict.fromkeys(ARMS[a].like or a for a in args.arms)
        rounds = [(args.data, a) for _ in range(5) for a in works
                  if a not in costs]
        for arm, cost in pool.imap_unordered(timed, rounds):
            costs[arm] = min(cost, costs.get(arm, cost))
        for arm in args.arms: mine["steps"][arm] = max(
            1, round(args.seconds / costs[ARMS[arm].like or arm]))
        mine["rows"] = [r for r in mine["rows"]  # none of another length
                        if r["steps"] == mine["steps"].get(r["arm"])]
        save()
        jobs, start = list(jobs_of(args, mine)), time.monotonic()
        for i, row in enumerate(pool.imap_unordered(trained, jobs), 1):
            if "failed" in row: mine.setdefault("failed", []).append(row)
            else: mine["rows"].append(row)
            save()
            print(f"{i}/{len(jobs)} {time.monotonic() - start:5.0f} s ",
                  row["arm"], row["seed"], row.get("failed") or
                  f"{row['steps']} steps in {row['seconds']:.1f} s, loss"
                  f" {row['loss']:.4f}, FID {row['fid']:.3g}, accuracy"
                  f" {row['accuracy']:.1%}", flush=True)


if __name__ == "__main__":
    main()
