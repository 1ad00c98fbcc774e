"Headless Chromium through its DevTools protocol: what the tests of the site need."
import base64
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

STRICT = bool(os.environ.get("FLOWBOOK_STRICT"))  # what can't be tested fails

NAMES = "chromium", "chromium-browser", "google-chrome", "chrome"
CODES = {"Enter": 13, "Space": 32, "PageUp": 33, "PageDown": 34, "End": 35,
         "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
         "ArrowDown": 40, "Tab": 9, "Escape": 27}


def chromium():
    "Where the browser is ($CHROMIUM first), None if there is none"
    given = os.environ.get("CHROMIUM")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


def absent():
    "Why there is no browser to test with; None if there is, or has to be"
    if STRICT or chromium() and importlib.util.find_spec("websocket"): return None
    return "no Chromium, or no websocket-client"


needs_browser = pytest.mark.skipif(bool(absent()), reason=str(absent()))


def script(name):
    "A module of .ci, which is no package"
    path = Path(__file__).parent.parent / f".ci/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map,
                      ".mjs": "text/javascript", ".wasm": "application/wasm",
                      ".md": "text/markdown", ".onnx": "application/octet-stream"}

    def log_message(self, *args): pass


@contextlib.contextmanager
def serve(folder):
    "The address at which a folder is served while the context is open"
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally: server.shutdown(); server.server_close()


class Browser:
    "One tab. `errors` and `requests` are those since the last `open`"

    def __init__(self, width=1280, height=900, dark=False, reduced=False,
                 mobile=False, patience=60):
        self.patience, self.requests, self.failed = patience, [], []
        self._count, self._folder = 0, tempfile.mkdtemp()
        self._process = subprocess.Popen(
            [chromium(), "--headless=new", "--remote-debugging-port=0",
             f"--user-data-dir={self._folder}", "--no-sandbox", "--disable-gpu",
             "--no-first-run", "--disable-extensions", "--hide-scrollbars",
             "--disable-background-networking", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._connect()
            for domain in "Page", "Runtime", "Log", "Network": self.ask(f"{domain}.enable")
            self.size(width, height, mobile)
            self.media(dark, reduced)
        except BaseException: self.close(); raise

    def __enter__(self): return self
    def __exit__(self, *args): self.close()

    def close(self):
        with contextlib.suppress(Exception): self._socket.close()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired): self._process.wait(10)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self):
        from websocket import create_connection
        port = Path(self._folder, "DevToolsActivePort")
        self._until(lambda: port.exists() and port.read_text().strip(),
                    "the browser did not start")
        port = port.read_text().split()[0]
        new = Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
        tab = json.load(urlopen(new, timeout=self.patience))
        self._socket = create_connection(
            tab["webSocketDebuggerUrl"], timeout=self.patience,
            suppress_origin=True, enable_multithread=False)

    def _until(self, done, complaint, seconds=None):
        end = time.monotonic() + (seconds or self.patience)
        while not (result := done()):
            if time.monotonic() > end: raise TimeoutError(complaint)
            time.sleep(0.05)
        return result

    def _next(self):
        "One message; an event is noted, an answer is returned"
        m = json.loads(self._socket.recv())
        kind, p = m.get("method"), m.get("params", {})
        if kind == "Runtime.exceptionThrown":
            d = p["exceptionDetails"]
            self.failed.append(d.get("exception", {}).get("description", d["text"]))
        elif kind == "Runtime.consoleAPICalled" and p["type"] in ("error", "assert"):
            self.failed.append(" ".join(str(a.get("value", a.get("description")))
                                        for a in p["args"]))
        elif kind == "Log.entryAdded" and p["entry"]["level"] == "error":
            self.failed.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")
        elif kind == "Network.requestWillBeSent":
            self.requests.append(p["request"]["url"])
        return m

    def ask(self, method, **params):
        "One DevTools command and its result"
        self._count += 1
        self._socket.send(json.dumps(
            {"id": self._count, "method": method, "params": params}))
        while (m := self._next()).get("id") != self._count: pass
        if "error" in m: raise RuntimeError(f"{method}: {m['error']}")
        return m["result"]

    @property
    def errors(self):
        "What the console complained of, and what could not be loaded"
        self.js("0")                                   # events that wait are read
        return list(self.failed)

    def open(self, url):
        "Go to a page and wait until it is loaded"
        self.ask("Page.navigate", url="about:blank")
        self._loaded("about:blank")
        self.requests, self.failed = [], []
        answer = self.ask("Page.navigate", url=url)
        if "errorText" in answer: raise RuntimeError(f"{url}: {answer['errorText']}")
        self._loaded(url)

    def _loaded(self, url):
        address = url.split("#")[0]
        self._until(lambda: self.js(
            "document.readyState == 'complete' && "
            f"location.href.split('#')[0] == {json.dumps(address)}"),
            f"{url} did not load")

    def js(self, expression):
        "The value of an expression in the page (a promise is awaited)"
        result = self.ask("Runtime.evaluate", expression=expression,
                          awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in result:
            d = result["exceptionDetails"]
            raise RuntimeError(d.get("exception", {}).get("description", d["text"]))
        return result["result"].get("value")

    def wait(self, expression, seconds=None):
        "Until an expression is true in the page; its value"
        return self._until(lambda: self.js(expression),
                           f"never true: {expression}", seconds)

    def size(self, width, height=900, mobile=False):
        "The window, in CSS pixels; `mobile` also means touch"
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=mobile)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def media(self, dark=False, reduced=False):
        "What the reader's system prefers"
        want = {"prefers-color-scheme": "dark" if dark else "light",
                "prefers-reduced-motion": "reduce" if reduced else "no-preference"}
        self.ask("Emulation.setEmulatedMedia",
                 features=[{"name": k, "value": v} for k, v in want.items()])

    def scripts(self, on):
        "JavaScript of pages opened from now on (`js` still works)"
        self.ask("Emulation.setScriptExecutionDisabled", value=not on)

    def box(self, selector, n=0):
        "Left, top, width, height of the n-th such element, scrolled into view"
        found = self.js(
            "(() => {"
            f" const e = document.querySelectorAll({json.dumps(selector)})[{n}];"
            " if (!e) return null; e.scrollIntoView({block: 'center',"
            " behavior: 'instant'}); const r = e.getBoundingClientRect();"
            " return [r.left, r.top, r.width, r.height]; })()")
        if found is None: raise LookupError(f"no {selector} in the page")
        return found

    def place(self, selector, x=0.5, y=0.5, n=0):
        "A point within an element, in fractions of its box"
        left, top, width, height = self.box(selector, n)
        return left + x * width, top + y * height

    def _mouse(self, kind, x, y, down):
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                 buttons=int(down), clickCount=1)

    def click(self, selector, x=0.5, y=0.5, n=0):
        at = self.place(selector, x, y, n)
        self._mouse("mousePressed", *at, True)
        self._mouse("mouseReleased", *at, False)

    def drag(self, selector, start, end, steps=10):
        "Mouse down at one point of an element (fractions), up at another"
        first, last = self.place(selector, *start), self.place(selector, *end)
        self._mouse("mousePressed", *first, True)
        for i in range(1, steps + 1):
            at = [a + (b - a) * i / steps for a, b in zip(first, last)]
            self._mouse("mouseMoved", *at, True)
        self._mouse("mouseReleased", *last, False)

    def touch(self, selector, start, end, steps=10):
        "The same with a finger (needs `mobile`)"
        first, last = self.place(selector, *start), self.place(selector, *end)
        def send(kind, points):
            self.ask("Input.dispatchTouchEvent", type=kind,
                     touchPoints=[dict(x=x, y=y) for x, y in points])
        send("touchStart", [first])
        for i in range(1, steps + 1):
            send("touchMove", [[a + (b - a) * i / steps for a, b in zip(first, last)]])
        send("touchEnd", [])

    def key(self, name, selector=None):
        "Press a key, such as \"ArrowRight\" or \"Tab\", at a focused element"
        if selector: self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        code = CODES.get(name) or ord(name.upper())
        text = {"Enter": "\r", "Space": " "}.get(name, name if len(name) == 1 else "")
        label = {"Space": " "}.get(name, name)
        for kind in ("keyDown" if text else "rawKeyDown"), "keyUp":
            more = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=label, code=name,
                     windowsVirtualKeyCode=code, **more)

    def png(self, selector, n=0):
        "What the n-th such element looks like"
        left, top, *size = self.box(selector, n)
        x, y = self.js("[scrollX, scrollY]")
        clip = dict(zip(("x", "y", "width", "height"),
                        (left + x, top + y, *size)), scale=1)
        return base64.b64decode(self.ask(
            "Page.captureScreenshot", format="png", clip=clip)["data"])
