"One run on one process and on two: the same losses, files and endings"
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import many
import numpy as np
import pytest
from PIL import Image

from flowbook.data import batch_indices
from flowbook.runs import (
    hold_run, load_run, newest_state, read_lines, read_tensors, states)

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone",
       "--nproc-per-node", "2", many.__file__]


def launch(folder, jobs):
    "Start jobs on two processes"
    (folder / "told").mkdir(parents=True)
    log = open(folder / "log.txt", "w")
    return subprocess.Popen(
        [*TWO, json.dumps(jobs), folder / "told"], stdout=log, stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"})


def finish(process, folder):
    "Exit status, the log, and what each process had to tell"
    try: status = process.wait(240)
    finally:
        process.send_signal(signal.SIGTERM)  # if it is still there
        process.wait(60)
    log = (folder / "log.txt").read_text()
    told = [json.loads(p.read_text())
            for p in sorted(folder.glob("told/*.json"))]
    assert len(told) == 2, log
    return status, log, told


def alone(out, **job):
    "A job on this process"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        return many.work({"out": str(out), **job})


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    "The folder of a run on one process, and what it told"
    out = tmp_path_factory.mktemp("one") / "run"
    return out, alone(out)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    "Runs on two processes; the last, `cut`, is ended by SIGTERM to torchrun"
    folder = tmp_path_factory.mktemp("first")
    runs = folder / "runs"
    process = launch(folder, [
        {"name": "whole", "out": f"{runs}/whole"},
        {"name": "parts", "out": f"{runs}/parts", "accumulate": 2},
        {"name": "sharded", "out": f"{runs}/sharded", "sharded": True},
        {"name": "cut", "out": f"{runs}/cut", "slow_from": 10}])
    while process.poll() is None and not read_lines(runs / "cut/metrics.jsonl"):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    return runs, *finish(process, folder)


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    "Runs that go on, on two processes; the last is held by this one"
    folder = tmp_path_factory.mktemp("second")
    runs = folder / "runs"
    runs.mkdir()
    for name in ("cut", "held"): shutil.copytree(first[0] / "cut", runs / name)
    assert alone(runs / "grown", stop_at=13)["stopped"]
    part = {"out": f"{runs}/part", "sharded": True}
    with hold_run(runs / "held"): return runs, *finish(launch(folder, [
        {"name": "part", "stop_at": 13, "slow_disk": True, **part},
        {"name": "part again", "seed": 1, **part},
        {"name": "cut", "out": f"{runs}/cut", "seed": 1},
        {"name": "grown", "out": f"{runs}/grown", "seed": 1},
        {"name": "timed", "out": f"{runs}/timed", "minutes": 0.02},
        {"name": "held", "out": f"{runs}/held"}]), folder)


def close(a, b):
    return len(a) == len(b) and np.abs(np.subtract(a, b)).max() < 1e-5


def files(run):
    "All files of a run but its older states"
    old = states(run)[1:]
    return {str(p.relative_to(run)) for p in run.rglob("*")
            if p.is_file() and p not in old}


def same_end(run, one):
    "The files and, but for rounding, the contents of a run on one process"
    assert files(run) == files(one)
    mine, theirs = (read_lines(r / "metrics.jsonl") for r in (run, one))
    for a, b in zip(mine, theirs, strict=True):
        for name in ("loss", "grad_norm"):
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-4)
        assert a["step"] == b["step"] and close(a["losses"], b["losses"])
    for name in ("model.safetensors", "state/00000030.safetensors"):
        a, b = (read_tensors(r / name)[0] for r in (run, one))
        assert set(a) == set(b)
        for k in b: assert a[k].allclose(b[k], rtol=1e-2, atol=2e-4), (name, k)
    a, b = (np.array(Image.open(r / "samples/000030.png"), dtype=float)
            for r in (run, one))
    assert a.shape == b.shape and np.abs(a - b).max() <= 8
    model, config = load_run(run)
    assert type(model).__name__ == config["model"] == "DiTLlama"


@pytest.mark.parametrize("name", ["whole", "parts", "sharded"])
def test_two_processes_compute_what_one_does(one, first, name):
    runs, status, log, told = first
    for rank in told:
        assert rank["done"][name]["processes"] == 2
        assert close(rank["done"][name]["losses"], one[1]["losses"])
    same_end(runs / name, one[0])


@pytest.mark.parametrize("name", ["whole", "parts", "sharded"])
def test_every_image_is_computed_by_one_process(first, name):
    rows = [sum(rank["done"][name]["rows"], []) for rank in first[3]]
    assert [len(r) for r in rows] == [30 * 16] * 2
    for step in range(30):
        got = [set(r[16 * step:16 * (step + 1)]) for r in rows]
        assert not got[0] & got[1]
        assert got[0] | got[1] == set(batch_indices(1500, 32, step).tolist())


def test_only_the_first_process_writes(first, second):
    for runs, _, _, told in (first, second):
        assert told[0]["written"] and not told[1]["written"]
    expected = {"whole", "parts", "sharded", "cut"}
    assert {p.name for p in first[0].iterdir()} == expected


def test_sigterm_to_the_launcher_saves_and_leaves(first):
    runs, status, log, told = first
    assert status != 0
    assert [rank["done"]["cut"]["stopped"] for rank in told] == [True, True]
    step = newest_state(runs / "cut")[1]["step"]
    assert 5 <= step < 30 and step % 5 == 0
    assert read_lines(runs / "cut/metrics.jsonl")[-1]["step"] == step


def test_sigterm_to_one_process_stops_both(second):
    for rank in second[3]: assert rank["done"]["part"]["stopped"]
    assert second[3][0]["done"]["part again"]["first"] == 15


def test_when_fit_is_over_all_is_written(second):
    "Also where another process does the writing"
    a, b = (rank["done"]["part"] for rank in second[3])
    assert a["newest"] == b["newest"] == "00000015.safetensors"
    assert a["weights"] == b["weights"]


def test_two_processes_agree_on_when_the_time_is_up(second):
    a, b = (rank["done"]["timed"] for rank in second[3])
    _, config = load_run(second[0] / "timed")
    assert a["losses"] == b["losses"]
    assert len(a["losses"]) == config["run"]["steps"] > 0


@pytest.mark.parametrize("before, after", [(2, 2), (2, 1), (1, 2)])
def test_a_run_goes_on_with_more_or_fewer(one, first, second, tmp_path,
                                          before, after):
    if after == 1:
        run = shutil.copytree(first[0] / "cut", tmp_path / "run")
        told = [alone(run, seed=1)]
    else:
        name = "cut" if before == 2 else "grown"
        run, told = second[0] / name, [r["done"][name] for r in second[3]]
    for rank in told:
        assert "error" not in rank, rank["error"]
        assert 0 < rank["first"] < 30 and rank["processes"] == after
        assert close(rank["losses"], one[1]["losses"])
    same_end(run, one[0])


def test_a_sharded_run_goes_on(one, second):
    for rank in second[3]:
        assert rank["done"]["part again"]["kind"] == "DTensor"
        assert close(rank["done"]["part again"]["losses"], one[1]["losses"])
    same_end(second[0] / "part", one[0])


def test_a_sharded_run_goes_on_as_one_piece(one, second, tmp_path):
    run = shutil.copytree(second[0] / "part", tmp_path / "run")
    newest, older = states(run)
    newest.unlink()
    told = alone(run, seed=1)
    assert told["first"] == 15 and told["kind"] == "Parameter"
    assert close(told["losses"], one[1]["losses"])
    same_end(run, one[0])


def test_a_run_that_another_holds_is_refused(first, second):
    runs, status, log, told = second
    assert status != 0 and "is held by another run" in log
    assert "held" not in told[0]["done"]
    for path in (first[0] / "cut").rglob("*"):
        other = runs / "held" / path.relative_to(first[0] / "cut")
        if path.is_file(): assert path.read_bytes() == other.read_bytes()
