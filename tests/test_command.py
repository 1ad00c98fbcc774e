"Faults that need real processes: signals, full disks, a missing network."
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowbook.runs import newest_state, read_lines

TRAIN = ["train", "--batch-size", "32"]


def flowbook(*args, cwd, env=None, **kwargs):
    "Run the command in a process of its own"
    code = "import sys; from flowbook.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})}, **kwargs)


def finish(process):
    "Exit status, output and the last line of errors"
    out, err = process.communicate(timeout=300)
    return process.returncode, out, (err.splitlines() or [""])[-1]


def limit(n_bytes):
    "What a process does first to get a disk that holds `n_bytes` a file"
    def start():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    return start


def test_interrupt_and_resume_change_nothing(tmp_path):
    whole = flowbook(*TRAIN, "--steps", "60", "--out", "whole", cwd=tmp_path)
    assert finish(whole)[0] == 0
    cut = flowbook(*TRAIN, "--steps", "60", "--out", "cut", cwd=tmp_path)
    while not (tmp_path / "cut/config.json").exists(): time.sleep(0.05)
    time.sleep(1)
    cut.send_signal(signal.SIGINT)
    status, out, err = finish(cut)
    assert status == 130, (out, err)
    assert "go on with: flowbook train --resume --out cut" in out
    assert newest_state(tmp_path / "cut")[1]["step"] < 60
    status, out, err = finish(
        flowbook("train", "--resume", "--out", "cut", cwd=tmp_path))
    assert status == 0, err
    for name in ("model.safetensors", "samples/000060.png"):
        a, b = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert a == b, name
    a, b = ([row["losses"] for row in read_lines(tmp_path / run /
             "metrics.jsonl")] for run in ("whole", "cut"))
    assert a == b


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    run = tmp_path / "run"
    first = flowbook(*TRAIN, "--steps", "3", "--out", "run", cwd=tmp_path)
    assert finish(first)[0] == 0
    def files(): return {f.relative_to(run): f.read_bytes()
                         for f in run.rglob("*") if f.is_file()}
    before = files()
    status, out, err = finish(
        flowbook("train", "--resume", "--out", "run", "--steps", "5",
                 cwd=tmp_path, preexec_fn=limit(1_000_000)))
    assert status == 2
    assert "00000005.safetensors could not be written" in err
    assert "untouched" in err
    after = files()
    assert set(after) == set(before)  # no half files
    kept = [f for f in before if f.suffix == ".safetensors"]
    assert len(kept) == 3
    for name in kept: assert after[name] == before[name], name
    assert finish(flowbook("train", "--resume", "--out", "run", "--steps", "5",
                           cwd=tmp_path))[0] == 0


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_network_and_no_data_is_one_line(tmp_path, name):
    dead = "http://127.0.0.1:9"  # nothing listens there
    env = {"FLOWBOOK_DATA": str(tmp_path / "data"), "http_proxy": dead,
           "https_proxy": dead, "no_proxy": ""}
    process = flowbook("train", name, cwd=tmp_path, env=env)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.count("\n") == 1 and f"'{name}' is not in" in err
    assert "FLOWBOOK_DATA" in err and "could not be downloaded" in err
    assert not (tmp_path / "runs").exists()


def test_the_shipped_model_needs_no_network(tmp_path):
    dead = "http://127.0.0.1:9"
    env = {"http_proxy": dead, "https_proxy": dead, "no_proxy": "",
           "HF_HOME": str(tmp_path / "hub")}
    status, out, err = finish(flowbook(
        "sample", "mnist", "--n", "1", "--steps", "2", cwd=tmp_path, env=env))
    assert status == 0, err
    assert (tmp_path / "mnist-grid.png").stat().st_size > 1000


def test_without_a_compiler_it_says_so(tmp_path):
    env = {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c"),
           "OMP_NUM_THREADS": "1"}
    status, out, err = finish(flowbook(
        *TRAIN, "--compile", "--steps", "2", cwd=tmp_path, env=env))
    assert status == 2 and "--no-compile" in err, err


def test_import_is_light_and_silent():
    heavy = ["matplotlib", "sklearn", "torchmetrics", "accelerate", "IPython",
             "nbdev", "torchdiffeq"]
    code = ("import torch, torchvision, sys; before = set(sys.modules);"
            "import flowbook, flowbook.cli;"
            f"print([m for m in {heavy} if m in set(sys.modules) - before])")
    done = subprocess.run([sys.executable, "-c", code], text=True,
                          capture_output=True, check=True)
    assert done.stdout == "[]\n" and done.stderr == ""


def test_modules_are_generated():
    "Every module but `__init__` comes from a notebook of the same name"
    root = Path(__file__).parent.parent
    notebooks = {p.stem.split("_", 1)[1] for p in root.glob("nbs/[0-9]*.ipynb")
                 if "#| default_exp" in p.read_text()}
    modules = {p.stem for p in root.glob("flowbook/*.py")}
    assert modules - {"__init__", "_modidx"} == notebooks
