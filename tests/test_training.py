"What a run has to survive: kills, full disks, damage, files from strangers"
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.functional import dropout

from flowbook import DiTLlama, Trainer, load_data
from flowbook.data import atomic_write
from flowbook.runs import (
    append_line, has_run, hold_run, load_run, newest_state, read_lines,
    read_tensors, states)

# A server that imports all this once; each attempt at a run is a fork of it
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([
    "flowbook.train", "flowbook.plot", "accelerate", "pytest",
    "sklearn.datasets", "sklearn.model_selection", "torchvision.utils"])
CLOCK = "seconds", "images_per_second"
KILLS = 20


# What an attempt does

def tiny():
    "A small model whose training also draws from the global generator"
    model = DiTLlama.from_preset("digits", dim=32, depth=1, num_heads=2)
    model.register_forward_pre_hook(
        lambda model, args: (dropout(args[0], 0.1, model.training), *args[1:]))
    return model


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_writing(how, nth, dice):
    "Be killed in the `nth` write from now: half done, unnamed, or just named"
    written, named, fsync, replace = [], [], os.fsync, Path.replace
    def synced(fd):
        written.append(fd)
        if len(written) == nth and how != "named":
            cut = dice.randrange(1, 200) if how == "half" else 0
            os.truncate(fd, os.fstat(fd).st_size - cut)
            die()
        fsync(fd)
    def replaced(self, target):
        replace(self, target)
        named.append(target)
        if len(named) == nth and how == "named": die()
    os.fsync, Path.replace = synced, replaced


def attempt(job, at):
    "Train, and write down what happened; `at` always holds the step"
    torch.set_num_threads(1)
    os.chdir(job["cwd"])
    def say(**what):
        Path(job["said"] + ".part").write_text(json.dumps(what))
        os.replace(job["said"] + ".part", job["said"])
    def step(trainer):
        at.value = trainer.step
        if job.get("wait_at") == trainer.step:
            while not Path(job["go"]).exists(): time.sleep(0.01)
        if trainer.step == job.get("die_from"):
            die_writing(job["how"], job["nth"], random.Random(job.get("seed")))
        if trainer.step == job.get("fill_at"):
            shutil.copytree(job["out"], job["before"])
            fill(job["out"], job["leave"])
    if "limit" in job:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"],) * 2)
    torch.manual_seed(job.get("seed", 0))
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            trainer = Trainer(
                tiny(), load_data("digits"), out=job["out"], batch_size=32,
                save_seconds=0, sample_every=job.get("sample_every", 30),
                resume=job.get("resume", "auto"), callbacks={"step": step},
                log_with=job.get("log_with"))
        say(step=trainer.step, found=[str(w.message) for w in found])
        step(trainer)
        trainer.fit(job["steps"], log_every=10, progress=False)
    except BaseException as e:
        say(error=f"{type(e).__name__}: {e}")


def fill(folder, leave):
    "Leave `leave` bytes of a disk"
    disk = os.statvfs(folder)
    size = max(0, disk.f_bavail * disk.f_frsize - leave)
    Path(folder, "..", "filler").write_bytes(bytes(size))


# What the tests do

class Attempt:
    "A process that trains: what it is told, where it is, what it says"
    def __init__(self, out, steps, cwd="/", **more):
        self.at = FORK.RawValue("i", -1)
        self.said = Path(more.pop("notes", out)).with_suffix(
            f".{time.monotonic_ns()}.json")
        self.process = FORK.Process(target=attempt, args=({
            "out": str(out), "steps": steps, "cwd": str(cwd),
            "said": str(self.said), **more}, self.at))
        self.process.start()

    def until(self, step):
        "Wait until it is at a step; False if it ended before"
        while self.process.is_alive() and self.at.value < step:
            time.sleep(0.002)
        return self.process.is_alive()

    def finish(self):
        "Exit status, and what it said"
        self.process.join(600)
        if self.process.is_alive(): self.process.kill()
        told = json.loads(self.said.read_text()) if self.said.exists() else {}
        return self.process.exitcode, told


def trained(out, steps, **more):
    "An attempt that must succeed"
    status, said = Attempt(out, steps, **more).finish()
    assert status == 0 and "error" not in said, said
    return said


def files(run):
    "All files of a run but the lock, with their bytes"
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*")
            if p.is_file() and p.name != ".lock"}


def same_run(run, whole):
    "Bit for bit the same run, but for its clock"
    mine, theirs = files(run), files(whole)
    assert set(mine) == set(theirs)
    for name in theirs:
        if name.startswith("state/"): same_state(run / name, whole / name)
        elif name != "metrics.jsonl": assert mine[name] == theirs[name], name
    a, b = (read_lines(r / "metrics.jsonl") for r in (run, whole))
    assert len(a) == len(theirs["metrics.jsonl"].splitlines())
    assert [without(r, CLOCK) for r in a] == [without(r, CLOCK) for r in b]


def same_state(a, b):
    (a, a_info), (b, b_info) = read_tensors(a), read_tensors(b)
    assert {k.split("/")[0] for k in b} == {"model", "ema", "opt", "rng"}
    assert set(a) == set(b) and all(a[k].equal(b[k]) for k in b)
    assert without(a_info, CLOCK) == without(b_info, CLOCK)


def without(row, names):
    return {k: v for k, v in row.items() if k not in names}


def damage(path, dice):
    "Cut a file at a random byte"
    data = path.read_bytes()
    path.write_bytes(data[:dice.randrange(len(data))])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "An uninterrupted run of 60 steps"
    out = tmp_path_factory.mktemp("short") / "run"
    trained(out, 60)
    return out


@pytest.fixture
def disk(tmp_path):
    "A disk of 4 MB, mounted where one process sees it, and we through it"
    (tmp_path / "disk").mkdir()
    mount = 'mount -t tmpfs -o size=4m tmpfs "$0" && echo ready && exec cat'
    try: holder = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", mount, tmp_path / "disk"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL)
    except FileNotFoundError: pytest.skip("no unshare here")
    with holder:
        path = Path(f"/proc/{holder.pid}/root/{tmp_path}/disk")
        ready = holder.stdout.readline() == b"ready\n"
        if ready and os.statvfs(path).f_blocks * 4096 < 5e6: yield path
        else: pytest.skip("mounting is not allowed here")
        holder.stdin.close()


# Killed

def test_killed_20_times_at_random_moments(tmp_path):
    seed = int(os.environ.get("FLOWBOOK_SEED", random.randrange(10**6)))
    print("FLOWBOOK_SEED =", seed)  # pytest shows it if the test fails
    dice, whole, run = random.Random(seed), tmp_path / "whole", tmp_path / "run"
    trained(whole, 400, sample_every=100)
    (tmp_path / "away").mkdir()
    places = (("/", run), (tmp_path, "run"), (tmp_path / "away", "../run"),
              (run.parent, "./away/../run"))
    hows = ["start"] * 3 + ["step"] * 10 + ["half", "unnamed", "named"] * 2
    hows = dice.sample(hows + ["half"], KILLS)
    damaged = dice.sample([i for i in range(4, KILLS) if hows[i] != "start"], 4)
    moments, ours = sorted(dice.randrange(380) for _ in hows), set()
    for i, (how, moment) in enumerate(zip(hows, moments)):
        hurt = states(run)[0] if i in damaged and len(states(run)) > 1 else None
        if hurt:
            damage(hurt, dice)
            ours.add(hurt.name)
        before = newest_step(run)
        cwd, out = dice.choice(places)
        # Its end never comes: an attempt that is not killed waits at step 396
        more = dict(cwd=cwd, sample_every=100, notes=run, wait_at=396,
                    go=tmp_path / "never", seed=i + 1 if has_run(run) else 0)
        if how in ("half", "unnamed", "named"): more |= dict(
            die_from=max(moment, before), how=how,
            nth=dice.choice([1, 2] if how == "named" else [1, 2, 3]))
        one = Attempt(out, 400, **more)
        if how == "start": time.sleep(dice.uniform(0, 0.4))
        elif how == "step":
            assert one.until(moment)
            time.sleep(dice.uniform(0, 0.05))
        if how in ("start", "step"): one.process.kill()
        status, said = one.finish()
        assert status == -signal.SIGKILL, (i, how, moment, said)
        if hurt:
            assert said["step"] == before
            assert [hurt.name in text for text in said["found"]] == [True]
        for text in said.get("found", []):  # a kill alone damages no state
            assert any(name in text for name in ours), text
    assert not (run / "samples/000400.png").exists()
    assert trained(run, 400, sample_every=100, seed=99)["step"] > 0
    same_run(run, whole)


def newest_step(run):
    "The step of the newest intact state"
    if not has_run(run): return 0
    with warnings.catch_warnings(action="ignore"):
        return newest_state(run)[1]["step"]


def test_nothing_stays_of_a_write_that_was_killed(tmp_path):
    run = tmp_path / "run"
    one = Attempt(run, 40, die_from=15, how="half", nth=2)
    assert one.finish()[0] == -signal.SIGKILL
    assert [name for name in files(run) if name.endswith(".part")]
    trained(run, 40)
    assert not [name for name in files(run) if name.endswith(".part")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_leaves(whole, tmp_path, number):
    run, moment = tmp_path / "run", random.randrange(5, 50)
    print("step", moment)
    one = Attempt(run, 60, wait_at=moment, go=tmp_path / "go")
    assert one.until(moment)
    os.kill(one.process.pid, number)
    (tmp_path / "go").touch()
    status, said = one.finish()
    step = newest_state(run)[1]["step"]
    assert status == 0 and moment <= step <= moment + 1
    assert said["error"].startswith("KeyboardInterrupt: stopped and saved")
    assert said["error"].endswith(f"at step {step}")
    assert "step" in trained(run, 60, seed=1, cwd=tmp_path)
    same_run(run, whole)


# Damaged

@pytest.mark.parametrize("what", ["cut", "empty", "zeros", "one bit", "noise"])
def test_a_damaged_state_is_named_and_skipped(whole, tmp_path, what):
    run = shutil.copytree(whole, tmp_path / "run")
    newest, older = states(run)
    data = bytearray(newest.read_bytes())
    if what == "cut": damage(newest, random.Random())
    if what == "empty": newest.write_bytes(b"")
    if what == "zeros": newest.write_bytes(bytes(len(data)))
    if what == "noise": newest.write_bytes(random.randbytes(len(data)))
    if what == "one bit":
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        newest.write_bytes(data)
    said = trained(run, 60, seed=1)
    assert said["step"] == 50
    assert [f"{newest} is damaged" in text for text in said["found"]] == [True]
    same_run(run, whole)
    for path in states(run): path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no intact state"), \
            pytest.warns(UserWarning) as found: newest_state(run)
    for path in (newest, older):
        assert any(str(path) in str(w.message) for w in found)


def test_a_damaged_state_takes_no_place_of_a_good_one(whole, tmp_path):
    "After the next save there are two good states again"
    run = shutil.copytree(whole, tmp_path / "run")
    damage(states(run)[0], random.Random())
    one = Attempt(run, 60, wait_at=53, go=tmp_path / "go", seed=1)
    assert one.until(53)
    os.kill(one.process.pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    assert one.finish()[0] == 0
    assert intact(run) in ([53, 50], [54, 50])


def intact(run):
    "The steps of the states that are intact"
    found = []
    for path in states(run):
        try: found.append(read_tensors(path)[1]["step"])
        except ValueError: pass
    return found


def test_a_run_that_goes_on_needs_its_state_no_more(whole, tmp_path):
    "Whatever happens to the file, it was read"
    run = shutil.copytree(whole, tmp_path / "run")
    damage(states(run)[0], random.Random())
    one = Attempt(run, 60, wait_at=55, go=tmp_path / "go", seed=1)
    assert one.until(55)
    for path in states(run): os.truncate(path, 0)
    (tmp_path / "go").touch()
    status, said = one.finish()
    assert status == 0 and "error" not in said, (status, said)
    assert intact(run) == [60]
    assert (run / "model.safetensors").read_bytes() == (
        whole / "model.safetensors").read_bytes()


class Payload:
    "What a stranger's file would do to whoever unpickles it"
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return os.mkdir, (self.marker,)


def disguises(marker, path):
    "Pickles of every kind, in turn, under the name `path`"
    path.write_bytes(pickle.dumps(Payload(marker)))
    yield "pickle"
    for new in (True, False):
        torch.save(Payload(marker), path, _use_new_zipfile_serialization=new)
        yield "torch.save"


def test_a_pickle_is_refused_and_never_run(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    marker, weights, data = tmp_path / "it ran", run / "model.safetensors", \
        load_data("digits")
    good = weights.read_bytes()
    for _ in disguises(marker, weights):
        message = re.escape(f"{weights} is damaged")
        with pytest.raises(ValueError, match=message): load_run(run)
    weights.write_bytes(good)
    newest, older = states(run)
    for _ in disguises(marker, newest):
        with pytest.warns(UserWarning, match=re.escape(str(newest))):
            trainer = Trainer(tiny(), data, out=run, batch_size=32, resume=True)
        assert trainer.step == 50
    for _ in disguises(marker, older):
        with pytest.raises(FileNotFoundError, match="no intact state"), \
                pytest.warns(UserWarning) as found:
            Trainer(tiny(), data, out=run, batch_size=32, resume=True)
        assert str(older) in str(found[-1].message)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # it would have


# No room

@pytest.mark.parametrize("leave, name", [
    (600_000, "state/00000030.safetensors"), (8_000, "samples/000030.png")])
def test_a_full_disk_changes_nothing(whole, disk, tmp_path, leave, name):
    run, before = disk / "run", tmp_path / "before"
    one = Attempt(run, 60, fill_at=25, leave=leave, before=str(before),
                  notes=tmp_path / "run")
    error = one.finish()[1]["error"]
    assert error.startswith("OSError: ") and "No space left" in error
    assert f"{run / name} could not be written" in error
    assert "what was there before is untouched" in error
    untouched(run, before)
    (disk / "filler").unlink()
    said = trained(run, 60, seed=1, notes=tmp_path / "run")
    assert said == {"step": 20, "found": []}
    same_run(run, whole)


def test_a_limit_on_files_changes_nothing(whole, tmp_path):
    "As on a full disk, but where nothing can be mounted"
    run, before = shutil.copytree(whole, tmp_path / "run"), tmp_path / "before"
    for path in states(run)[:1]: path.unlink()
    shutil.copytree(run, before)
    error = Attempt(run, 60, limit=600_000, seed=1).finish()[1]["error"]
    assert f"{run}/state/00000060.safetensors could not be written" in error
    assert "untouched" in error
    untouched(run, before)
    trained(run, 60, seed=1)
    same_run(run, whole)


def untouched(run, before):
    "All is as before, but that a log or samples may have gone on"
    now, then = files(run), files(before)
    grown = {"metrics.jsonl", "samples/000030.png"}
    assert set(now) - grown == set(then) - grown
    for name in set(then) - grown: assert now[name] == then[name], name
    assert now["metrics.jsonl"].startswith(b"".join(
        then["metrics.jsonl"].splitlines(True)[:2]))


def test_a_line_is_added_whole_or_not_at_all(disk):
    log = disk / "a/metrics.jsonl"
    log.parent.mkdir()
    append_line(log, {"step": 1})
    fill(log.parent, 0)
    for text in ("x" * 10_000, "x" * 1_000_000):
        with pytest.raises(OSError, match="metrics.jsonl could not be writ"):
            append_line(log, {"step": 2, "text": text})
        assert log.read_text() == '{"step": 1}\n'
    with pytest.raises(OSError, match="untouched"):
        atomic_write(log, b"x" * 10_000)
    assert log.read_text() == '{"step": 1}\n'
    assert len(list(log.parent.iterdir())) == 1


# Two at once

def test_the_second_of_two_runs_is_refused(whole, tmp_path):
    run = tmp_path / "run"
    first = Attempt(run, 60, wait_at=35, go=tmp_path / "go")
    assert first.until(35)
    before = files(run)
    for resume, message in (("auto", "held by another run"),
                            (True, "still going on"),
                            (False, "exists already")):
        said = Attempt(run, 60, resume=resume, seed=1).finish()[1]
        assert said["error"].startswith("FileExistsError: ")
        assert str(run) in said["error"] and message in said["error"]
    assert files(run) == before
    (tmp_path / "go").touch()
    assert "error" not in first.finish()[1]
    same_run(run, whole)


def test_a_dead_run_holds_nothing(tmp_path):
    run = tmp_path / "run"
    first = Attempt(run, 30, wait_at=15, go=tmp_path / "never")
    assert first.until(15)
    with pytest.raises(FileExistsError, match="still going on"):
        with hold_run(run): pass
    first.process.kill()
    first.finish()
    with hold_run(run): pass


# TensorBoard

def test_tensorboard_gets_the_losses(whole, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator)
    run = tmp_path / "run"
    trained(run, 20, log_with="tensorboard")
    found = list(run.rglob("events.out.tfevents*"))
    assert len(found) == 1
    events = EventAccumulator(str(found[0]))
    events.Reload()
    rows = read_lines(run / "metrics.jsonl")
    for name in ("loss", "lr", "grad_norm", "images_per_second"):
        got = [(e.step, e.value) for e in events.Scalars(name)]
        assert got == [(r["step"], pytest.approx(r[name])) for r in rows]


@pytest.mark.filterwarnings("ignore:.log_with")
def test_a_missing_tensorboard_is_an_error(tmp_path, monkeypatch):
    import accelerate.tracking
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises((ImportError, ValueError), match="tensorboard"):
        Trainer(tiny(), load_data("digits"), out=tmp_path / "run",
                batch_size=32, log_with="tensorboard")
    assert not (tmp_path / "run").exists()
