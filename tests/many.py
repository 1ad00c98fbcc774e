"What test_processes.py runs on one process and on two: jobs, in turn"
import json
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from flowbook import DiTLlama, RectifiedFlow, Trainer, load_data
from flowbook.runs import checksum, read_tensors, states


@contextmanager
def noted(data, rows):
    "Note which images a process computes"
    index = {x.numpy().tobytes(): i for i, x in enumerate(data.train[:][0])}
    plain = RectifiedFlow.errors
    def errors(self, model, x, *more):
        rows.append([index[a.numpy().tobytes()] for a in x])
        return plain(self, model, x, *more)
    RectifiedFlow.errors = errors
    try: yield
    finally: RectifiedFlow.errors = plain


@contextmanager
def sharded():
    "Prepare models as Accelerate's FSDP2 does, which refuses CPUs"
    from accelerate import Accelerator
    from torch.distributed.fsdp import fully_shard
    names = "prepare", "distributed_type", "is_fsdp2"
    plain = {name: getattr(Accelerator, name) for name in names}
    def prepare(self, model, *opts):
        for block in model.blocks: fully_shard(block)
        fully_shard(model)
        for opt in opts:
            group = opt.param_groups[0]
            group["params"], group["fused"] = list(model.parameters()), False
        return [model, *map(self.prepare_optimizer, opts)]
    Accelerator.prepare = prepare
    Accelerator.distributed_type = property(lambda self: "FSDP")
    Accelerator.is_fsdp2 = property(lambda self: True)
    try: yield
    finally:
        for name, value in plain.items(): setattr(Accelerator, name, value)


@contextmanager
def slow_disk():
    "Every write of the first process takes a while"
    plain = os.fsync
    if os.environ.get("RANK") == "0": os.fsync = lambda fd: time.sleep(0.1)
    try: yield
    finally: os.fsync = plain


def step(trainer, job):
    "Slow down, or be asked to stop"
    if trainer.step >= job.get("slow_from", 99): time.sleep(0.5)
    last = trainer.accelerator.num_processes - 1
    if trainer.step == job.get("stop_at") and (
            trainer.accelerator.process_index == last):
        os.kill(os.getpid(), signal.SIGTERM)


def work(job):
    "One job; what this process computed"
    torch.manual_seed(job.get("seed", 0))
    data, rows = load_data("digits"), []
    model = DiTLlama.from_preset("digits", dim=32, depth=1, num_heads=2)
    with ExitStack() as stack:
        stack.enter_context(noted(data, rows))
        for change in (sharded, slow_disk):
            if job.get(change.__name__): stack.enter_context(change())
        trainer = Trainer(
            model, data, out=job["out"], batch_size=32, resume="auto",
            accumulate=job.get("accumulate", 1), sample_every=30,
            callbacks={"step": lambda trainer: step(trainer, job)})
        first, stopped, minutes = trainer.step, False, job.get("minutes")
        length = {"minutes": minutes} if minutes else {"steps": 30}
        try: trainer.fit(**length, log_every=5, progress=False)
        except KeyboardInterrupt: stopped = True
    weights, _ = read_tensors(Path(job["out"], "model.safetensors"))
    return {"newest": states(job["out"])[0].name, "weights": checksum(weights),
            "rows": rows, "losses": trainer.losses, "stopped": stopped,
            "first": first, "kind": type(trainer.averages[0]).__name__,
            "processes": trainer.accelerator.num_processes}


def main(jobs, told):
    "Do jobs; note what was computed and written in told/RANK.json"
    written, done = [], {}
    runs = str(Path(jobs[0]["out"]).parent)
    def audit(event, args):
        if event == "open": writes = args[2] & (os.O_WRONLY | os.O_RDWR)
        else: writes = event in ("os.mkdir", "os.rename", "os.remove",
                                 "os.rmdir", "os.truncate")
        if writes and str(args[0]).startswith(runs):
            written.append((event, args[0]))
    sys.addaudithook(audit)
    for job in jobs:
        try: done[job["name"]] = work(job)
        except RuntimeError as e: done[job["name"]] = {"error": str(e)}
        text = json.dumps({"done": done, "written": list(map(str, written))})
        Path(told, os.environ["RANK"] + ".json").write_text(text)


if __name__ == "__main__": main(json.loads(sys.argv[1]), sys.argv[2])
