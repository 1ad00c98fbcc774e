"The figures to drag move in a real browser: by key, by mouse, by finger."
import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from flowbook.plot import figure, image_grid, show_slider

ROOT = Path(__file__).parent.parent
CHROME = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROME, reason="no Chromium on the path")


class Browser:
    "Chromium without a window, spoken to by its DevTools protocol on a pipe"
    def __init__(self, folder):
        ours, self.write = os.pipe()
        self.read, theirs = os.pipe()
        line = f'exec "$@" 3<&{ours} 4>&{theirs}'
        self.process = subprocess.Popen(
            ["bash", "-c", line, "bash", CHROME, "--headless", "--no-sandbox",
             "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
             f"--user-data-dir={folder}"], pass_fds=(ours, theirs),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(ours), os.close(theirs)
        self.session, self.number, self.rest, self.errors = None, 0, b"", []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target,
                            flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"): self(f"{domain}.enable")
        self("Network.setBlockedURLs", urls=["http://*", "https://*"])

    def hear(self):
        "The next message of the browser"
        while b"\0" not in self.rest:
            more = os.read(self.read, 1 << 20)
            if not more: raise RuntimeError("the browser has gone")
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(message)
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"])
        return message

    def __call__(self, method, **params):
        "Ask for something and wait for the answer"
        self.number += 1
        message = dict(id=self.number, method=method, params=params)
        if self.session: message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.hear()).get("id") != self.number: pass
        if "error" in answer: raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, url, width=1280, script=True, dark=False):
        "Load a page, in a window of some width"
        self.errors.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=900,
             deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setTouchEmulationEnabled", enabled=True)
        self("Emulation.setScriptExecutionDisabled", value=not script)
        self("Emulation.setEmulatedMedia", features=[dict(
            name="prefers-color-scheme", value="dark" if dark else "light")])
        self("Page.navigate", url=url)
        while self.hear().get("method") != "Page.loadEventFired": pass

    def js(self, code):
        "The value of an expression in the page"
        result = self("Runtime.evaluate", expression=code, returnByValue=True)
        if "exceptionDetails" in result: raise RuntimeError(
            result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def key(self, key, code):
        "Press a key"
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                 windowsVirtualKeyCode=code)

    def drag(self, start, end):
        "Press the mouse at a point, move it to another, let it go"
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end),
                             ("mouseReleased", end)):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y,
                 button="left", buttons=int(kind != "mouseReleased"),
                 clickCount=1)

    def swipe(self, start, end):
        "Put a finger on a point, move it to another, lift it"
        for kind, points in (("touchStart", [start]), ("touchMove", [end]),
                             ("touchEnd", [])):
            self("Input.dispatchTouchEvent", type=kind,
                 touchPoints=[dict(x=x, y=y) for x, y in points])

    def shot(self, css=None, n=0):
        "A picture (PNG) of the n-th element that a selector finds, or of all"
        clip = {}
        if css:
            self.js(f"{find(css, n)}.scrollIntoView({{block: 'center'}})")
            box = self.js(f"(r => ({{x: r.x + scrollX, y: r.y + scrollY,"
                          f" width: r.width, height: r.height, scale: 1}}))"
                          f"({find(css, n)}.getBoundingClientRect())")
            clip = dict(clip=box)
        return base64.b64decode(self("Page.captureScreenshot", **clip)["data"])

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.read), os.close(self.write)


def find(css, n=0):
    "JavaScript for the n-th element that a selector finds"
    return f"document.querySelectorAll({json.dumps(css)})[{n}]"


@pytest.fixture(scope="module")
def browser():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A page with two figures of the same settings"
    import torch

    def draw(kind, share):
        x = torch.full((2, 1, 4, 4), 2.0 * share - 1)
        if kind == "split": x[1] = -x[1]
        return image_grid(x, 2, scale=10), f"{kind}, {share:g} of white"

    def curve(phase):
        fig, ax = figure(size=(3, 2))
        ax.plot([0, 1, 2], [phase, 1, 0])
        return fig

    first = show_slider(draw, {"kind": ["both", "split"], "share": [
        0, 0.25, 0.5, 0.75, 1]}, "two squares", start={"share": 0.5})
    second = show_slider(curve, {"phase": [0, 1, 2]}, "a bent line")
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text("<!doctype html><meta charset=utf-8><meta name=viewport"
                    " content=\"width=device-width\"><body>" + first.html
                    + first.html + second.html)
    return path.as_uri()


WINDOW, RANGE, RADIO = (f".flowbook-slider {css}" for css in (
    ".window", "[type=range]", "[type=radio]"))


def middle(browser, css, n=0, share=0.5):
    "A point in an element, some share of its width from the left"
    browser.js(f"{find(css, n)}.scrollIntoView({{block: 'center'}})")
    return browser.js(f"(r => [r.x + {share} * r.width, r.y + r.height / 2])"
                      f"({find(css, n)}.getBoundingClientRect())")


def said(browser, n=0):
    return browser.js(find(".flowbook-slider > output", n) + ".textContent")


def test_still_without_script(browser, page):
    browser.open(page)
    live = browser.shot(WINDOW)
    browser.open(page, script=False)
    assert browser.shot(WINDOW) == live          # the same picture, at start
    assert said(browser) == "kind: both, share: 0.5. both, 0.5 of white"
    assert browser.js(f"{find(RANGE)}.offsetParent === null")  # not shown


@pytest.mark.parametrize("width", [390, 1280])
def test_key_mouse_finger(browser, page, width):
    browser.open(page, width)
    shots = [browser.shot(WINDOW)]
    browser.js(f"{find(RANGE)}.focus()")
    browser.key("ArrowRight", 39)
    assert said(browser) == "both, 0.75 of white"
    assert browser.js(f"{find(RANGE)}.getAttribute('aria-valuetext')") == "0.75"
    shots.append(browser.shot(WINDOW))
    browser.drag(middle(browser, RANGE, 0, 0.75),
                 middle(browser, RANGE, 0, 0.99))
    assert said(browser) == "both, 1 of white"
    shots.append(browser.shot(WINDOW))
    browser.drag(*[middle(browser, RADIO, 1)] * 2)
    assert said(browser) == "split, 1 of white"
    shots.append(browser.shot(WINDOW))
    browser.swipe(middle(browser, RANGE, 0, 0.97),
                  middle(browser, RANGE, 0, 0.02))
    assert said(browser) == "split, 0 of white"
    shots.append(browser.shot(WINDOW))
    assert len(set(shots)) == len(shots)         # each picture is another
    assert said(browser, 1) == "both, 0.5 of white"   # the next one is still
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert not browser.errors


def test_script_twice(browser, page):
    "Running the script again, as a notebook does, changes nothing"
    browser.open(page)
    before = browser.js("document.body.innerHTML")
    browser.js("for (const s of document.scripts) eval(s.textContent)")
    assert browser.js("document.body.innerHTML") == before


def pages_with_sliders():
    "Pages of the built site with figures to drag, if it has been built"
    return [p for p in sorted((ROOT / "_docs").glob("*.html"))
            if 'class="flowbook-slider"' in p.read_text()]


@pytest.mark.parametrize("path", pages_with_sliders(), ids=lambda p: p.stem)
@pytest.mark.parametrize("width", [390, 1280])
def test_site(browser, path, width):
    "Every figure of every page: each of its controls changes the picture"
    browser.open(path.as_uri(), width)
    for n in range(browser.js(f"document.querySelectorAll('{WINDOW}').length")):
        box = find(".flowbook-slider", n)
        count = browser.js(f"{box}.querySelectorAll('.setting').length")
        assert count > 0
        for k in range(count):
            before = browser.shot(WINDOW, n)
            row = f"{box}.querySelectorAll('.setting')[{k}]"
            browser.js(f"{row}.querySelector('[type=range], :checked').focus()")
            for _ in range(2): browser.key("ArrowRight", 39)
            assert browser.shot(WINDOW, n) != before, (path.name, n, k)
        size = browser.js(f"{box}.outerHTML.length")
        assert size < 200_000, (path.name, n, size)
        assert browser.js(f"{box}.querySelector('img').alt.length") > 10
        assert browser.js(f"{box}.getBoundingClientRect().right") <= width
