"The page that samples: its lines in Node and in a browser, beside ours."
import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from browser import STRICT, Browser, absent, needs_browser, script, serve
from flowbook import CFG, DiTLlama, sample
from flowbook.live import seeded_noise

ROOT = Path(__file__).parent.parent
NODE = shutil.which("node")
SOLVERS = "euler", "heun", "ab2"
needs_node = pytest.mark.skipif(not (STRICT or NODE),
                                reason="no Node on the path")


def node(jobs, *args):
    "What live.mjs answers to a list of jobs"
    done = subprocess.run([NODE, ROOT / "tests/live.mjs", *args], text=True,
                          input=json.dumps(jobs), capture_output=True)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout))


def compared(model, noise, y, how, *args):
    "The largest difference between the page's last states and ours"
    guided = CFG(model, how["guidance"], 10, tuple(how["interval"]))
    ours = sample(guided, noise, y, how["solver"], how["steps"])
    theirs = node([{"noise": x.flatten().tolist(), "y": k, "none": 10, **how}
                   for x, k in zip(noise, y.tolist())], *args)
    return (theirs - ours.flatten(1)).abs().max().item()


def formula(x, t, y):
    "The velocity of live.mjs when it has no file"
    t, y = (z.to(x.dtype)[:, None, None, None] for z in (t, y))
    return x * (0.5 + t) - 0.1 * y * t * t


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A folder `live` as the site has it, or the reason why there is none"
    site = tmp_path_factory.mktemp("site")
    missing = script("live_files").build(site)
    if missing and not STRICT: pytest.skip(missing)
    assert not missing, missing
    return site / "live"


@needs_node
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_noise_is_the_same(seed):
    theirs = node([{"seed": seed, "n": 783}])[0]
    assert (theirs - seeded_noise(seed, (783,))).abs().max() < 1e-6


@needs_node
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance, interval", [
    (1, [0, 1]), (3, [0, 1]), (2, [0.3, 0.7]), (0, [0.1, 0.8])])
def test_a_walk_with_a_formula(solver, guidance, interval):
    noise, y = seeded_noise(1, (2, 1, 4, 4)), torch.tensor([3, 10])
    for steps in (1, 2, 10, 20):
        how = dict(solver=solver, steps=steps, guidance=guidance,
                   interval=interval)
        assert compared(formula, noise, y, how) < 1e-5, steps


def test_the_file_is_the_model(files):
    session = pytest.importorskip("onnxruntime").InferenceSession(
        files / "mnist.onnx")
    model = DiTLlama.from_pretrained("mnist")
    for b in (1, 2, 11):
        x, t, y = torch.randn(b, 1, 28, 28), torch.rand(b), torch.arange(b)
        v, = session.run(None, {"x": x.numpy(), "t": t.numpy(),
                                "y": y.numpy()})
        with torch.no_grad(): apart = torch.tensor(v) - model(x, t, y)
        assert apart.abs().max() <= 1e-3
    text = (files / "mnist.onnx").read_bytes()
    assert b"/" + b"site-packages" not in text and len(text) < 6_000_000


@needs_node
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_pixels_are_the_same(files, solver):
    model = DiTLlama.from_pretrained("mnist")
    noise, y = seeded_noise(1, (2, 1, 28, 28)), torch.tensor([7, 10])
    how = dict(solver=solver, steps=10, guidance=3, interval=[0.1, 0.8])
    assert compared(model, noise, y, how, files) < 1e-2


def bare(site):
    "A page with the machine of the notebook and nothing else, in `site`"
    notebook = json.loads((ROOT / "nbs/23_live.ipynb").read_text())
    text = "\n".join("".join(c["source"]) for c in notebook["cells"])
    machine = re.search(r"^```\{=html\}\n(.*?)^```$", text, re.M | re.S)[1]
    for file in [*ROOT.glob("nbs/live*.*js"), ROOT / "nbs/live.css",
                 ROOT / "nbs/offline.js"]: shutil.copy(file, site)
    (site / "live.html").write_text(
        '<!doctype html><html lang="en"><title>live</title><meta'
        ' name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,">{machine}')
    return "live.html"


def pixels(browser, canvas):
    "What a canvas shows, uint8 (1, 1, 28, 28)"
    text = browser.js(
        "btoa(String.fromCharCode(...document.querySelectorAll('canvas')"
        f"[{canvas}].getContext('2d').getImageData(0, 0, 28, 28).data))")
    data = torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
    return data.view(1, 28, 28, 4)[..., 0][None]


def state(browser): return browser.js("live.dataset.state")


def finished(browser, what, seconds=60):
    "Do something and wait for the drawing; what the page says of it"
    browser.js(f"live.dataset.state = ''; {what}")
    browser.wait("['done', 'failed'].includes(live.dataset.state)", seconds)
    text = browser.js("live.querySelector('[role=status]').textContent")
    assert state(browser) == "done", text
    return text


@pytest.fixture
def page(files):
    "The page in a browser, narrow as a phone"
    if absent(): pytest.skip(absent())
    name = bare(files.parent)
    with serve(files.parent) as url, Browser(390, 844, mobile=True) as browser:
        browser.open(f"{url}/{name}")
        browser.wait("live.dataset.state == 'idle'", 10)
        yield browser


def test_the_page_draws_what_is_asked_for(page):
    from flowbook.classifiers import load_classifier
    from flowbook.data import to_uint8
    judge, model = load_classifier("mnist"), DiTLlama.from_pretrained("mnist")
    assert not any(name.endswith((".onnx", ".gz")) for name in page.requests)
    assert page.js("document.documentElement.scrollWidth") <= 390
    noise = seeded_noise(int(page.js("live.seed.value")), (1, 1, 28, 28))
    assert (to_uint8(noise).int() - pixels(page, 0).int()).abs().max() <= 1
    finished(page, "live.requestSubmit()")       # at first it has to load
    right, seconds = 0, []
    for y in range(10):
        text = finished(page, f"document.getElementById('live-{y}').click()")
        seen = pixels(page, 0)
        right += int(judge(seen).argmax(1)) == y
        seconds.append(float(re.search(r"([\d.]+) s$", text)[1]))
        assert seen.equal(pixels(page, 1)), "at t = 0 the end is the state"
    assert right >= 9
    how = page.js("Object.fromEntries(new FormData(live))")
    assert min(seconds) <= 10, seconds           # a busy machine is slower
    guided = CFG(model, float(how["guidance"]),
                 interval=(float(how["low"]), float(how["high"])))
    ours = sample(guided, seeded_noise(int(how["seed"]), (1, 1, 28, 28)),
                  torch.tensor([9]), how["solver"], int(how["steps"]))
    assert (to_uint8(ours).int() - seen.int()).abs().max() <= 2
    assert page.errors == []


def test_looking_back_and_drawing_again(page):
    finished(page, "live.requestSubmit()")
    last = pixels(page, 0)
    page.key("Home", "[name=frame]")
    assert not last.equal(pixels(page, 0))
    assert page.js("live.frame.nextElementSibling.value") == "t = 1.00"
    page.key("End", "[name=frame]")
    assert last.equal(pixels(page, 0))
    finished(page, "live.another.click()")
    assert not last.equal(pixels(page, 0))
    address = page.js("location.href")           # passes the drawing on
    other = pixels(page, 0)
    page.open(address)
    page.wait("live.dataset.state == 'idle'", 10)
    finished(page, "live.requestSubmit()")
    assert other.equal(pixels(page, 0))
    page.js("live.steps.value = 50; live.requestSubmit()")   # and left for
    finished(page, "live.steps.value = 3; live.requestSubmit()")
    assert page.js("live.frame.max") == "3"
    assert page.errors == []


def test_without_motion_only_the_end_is_shown(page):
    page.media(reduced=True)
    page.js("""var seen = 0, paint = CanvasRenderingContext2D.prototype;
        var put = paint.putImageData;
        paint.putImageData = function (...a) { seen += 1; put.apply(this, a); }
        """)
    finished(page, "live.requestSubmit()")
    assert page.js("seen") == 2


@needs_browser
def test_it_opens_without_a_network(files):
    name = bare(files.parent)
    with Browser() as browser:
        with serve(files.parent) as url:
            browser.open(f"{url}/{name}")
            browser.wait("live.dataset.state == 'idle'", 10)
            finished(browser, "live.requestSubmit()")
            browser.wait("navigator.serviceWorker.ready.then(Boolean)", 20)
            browser.wait("caches.match('live/mnist.onnx').then(Boolean)", 20)
            before, address = pixels(browser, 0), browser.js("location.href")
        browser.open(address)                    # of a server that is gone
        browser.wait("live.dataset.state == 'idle'", 10)
        finished(browser, "live.requestSubmit()")
        assert before.equal(pixels(browser, 0))


@needs_browser
def test_a_site_without_the_model_says_so(tmp_path):
    name = bare(tmp_path)
    (tmp_path / "live").mkdir()
    about = {"missing": "onnx was not installed when the site was built"}
    (tmp_path / "live/about.json").write_text(json.dumps(about))
    with serve(tmp_path) as url, Browser() as browser:
        browser.open(f"{url}/{name}")
        browser.wait("document.body.innerText.includes('onnx was not')", 10)
        assert browser.js("live.hidden") and browser.errors == []
        browser.scripts(False)
        browser.open(f"{url}/{name}")
        assert "JavaScript" in browser.js("document.body.innerText")
