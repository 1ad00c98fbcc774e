"The figures to drag move in a real browser: by key, by mouse, by finger."
import pytest

from browser import Browser, needs_browser
from flowbook.plot import figure, image_grid, show_slider
from test_site import SITE, needs_site

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser: yield browser


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


def find(css, n=0):
    "JavaScript for the n-th element that a selector finds"
    return f"document.querySelectorAll('{css}')[{n}]"


def said(browser, n=0):
    return browser.js(find(".flowbook-slider > output", n) + ".textContent")


def picture(browser, n=0): return browser.png(selector=WINDOW, n=n)


def test_still_without_script(browser, page):
    browser.open(page)
    live = picture(browser)
    browser.scripts(False)
    try:
        browser.open(page)
        assert picture(browser) == live          # the same picture, at start
        assert said(browser) == "kind: both, share: 0.5. both, 0.5 of white"
        assert browser.js(f"{find(RANGE)}.offsetParent === null")  # not shown
    finally: browser.scripts(True)


@pytest.mark.parametrize("width", [390, 1280])
def test_key_mouse_finger(browser, page, width):
    browser.size(width)
    browser.open(page)
    shots = [picture(browser)]
    browser.key("ArrowRight", RANGE)
    assert said(browser) == "both, 0.75 of white"
    assert browser.js(f"{find(RANGE)}.getAttribute('aria-valuetext')") == "0.75"
    shots.append(picture(browser))
    browser.drag(RANGE, (0.75, 0.5), (0.99, 0.5))
    assert said(browser) == "both, 1 of white"
    shots.append(picture(browser))
    browser.click(RADIO, n=1)
    assert said(browser) == "split, 1 of white"
    shots.append(picture(browser))
    browser.size(width, mobile=True)
    browser.touch(RANGE, (0.97, 0.5), (0.02, 0.5))
    assert said(browser) == "split, 0 of white"
    shots.append(picture(browser))
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
    return [p for p in sorted(SITE.glob("*.html"))
            if 'class="flowbook-slider"' in p.read_text()]


@needs_site
def test_the_site_has_figures_to_drag():
    "Else the next test would have nothing to look at"
    names = {p.stem for p in pages_with_sliders()}
    assert names >= {"flow", "guidance", "samplers"}, names


@needs_site
@pytest.mark.parametrize("path", pages_with_sliders(), ids=lambda p: p.stem)
@pytest.mark.parametrize("width", [390, 1280])
def test_site(browser, path, width):
    "Every figure of every page: each of its controls changes the picture"
    browser.size(width)
    browser.open(path.as_uri())
    for n in range(browser.js(f"document.querySelectorAll('{WINDOW}').length")):
        box = find(".flowbook-slider", n)
        count = browser.js(f"{box}.querySelectorAll('.setting').length")
        assert count > 0
        for k in reversed(range(count)):   # scale 1 is alike for all kinds
            before = picture(browser, n)
            row = f"{box}.querySelectorAll('.setting')[{k}]"
            browser.js(f"{row}.querySelector('[type=range], :checked').focus()")
            for _ in range(2): browser.key("ArrowRight")
            assert picture(browser, n) != before, (path.name, n, k)
        size = browser.js(f"{box}.outerHTML.length")
        assert size < 200_000, (path.name, n, size)
        assert browser.js(f"{box}.querySelector('img').alt.length") > 10
        assert browser.js(f"{box}.getBoundingClientRect().right") <= width
