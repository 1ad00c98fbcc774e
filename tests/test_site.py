"""The site as its readers find it.

Rendered pages (`nbdev_docs`) are read and opened in Chromium. Where Quarto is absent,
links and pictures are checked in the processed notebooks.
"""
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import yaml

from browser import STRICT, Browser, needs_browser, script, serve

ROOT = Path(__file__).parent.parent
NBS, SITE = ROOT / "nbs", ROOT / "_docs"
CONFIG = yaml.safe_load((ROOT / "_quarto.yml").read_text())
HOME = CONFIG["website"]["site-url"].rstrip("/") + "/"
REPO = CONFIG["website"]["repo-url"].rstrip("/") + "/"
LIMIT = 1.5e6                                    # bytes a page, as they are sent


def newest(paths): return max(p.stat().st_mtime for p in paths)


def rendered():
    "Is there a site, and is it younger than what it is made of?"
    made_of = [ROOT / "_quarto.yml", *(p for p in NBS.iterdir() if p.is_file()
                                      and p.name not in ("nbdev.yml", "_quarto.yml"))]
    index = SITE / "index.html"
    return index.exists() and index.stat().st_mtime > newest(made_of)


needs_site = pytest.mark.skipif(not (STRICT or rendered()),
                                reason="no fresh _docs: nbdev_docs makes it")


# pages -------------------------------------------------------------------------------

class Page(HTMLParser):
    "What a page names, refers to, shows and is divided into"
    def __init__(self, text):
        super().__init__()
        self.text = text
        self.ids, self.links, self.assets = set(), [], []
        self.images, self.headings, self._main = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a.get("id"), a.get("name")} - {None}
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag in ("img", "script", "source", "video", "iframe"):
            self.assets += [a[k] for k in ("src", "srcset") if a.get(k)]
        if tag == "link" and a.get("href") and a.get("rel") != "canonical":
            self.assets.append(a["href"])
        if tag == "img": self.images.append((a.get("src", "")[:80], a.get("alt")))
        if tag == "main": self._main = True
        if self._main and re.fullmatch("h[1-6]", tag): self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        if tag == "main": self._main = False


@pytest.fixture(scope="module")
def pages():
    assert rendered(), "no fresh _docs: nbdev_docs makes it"
    return {p.name: Page(p.read_text()) for p in sorted(SITE.glob("*.html"))}


def broken(target, page, ids):
    "What is wrong with a reference within the site or into the repository, if anything"
    target = unquote(target)
    if target.startswith(REPO): return broken_in_repository(target[len(REPO):])
    if target.startswith(HOME): target = target[len(HOME):] or "index.html"
    if re.match(r"[a-z][a-z0-9+.-]*:|//", target): return None
    if target.startswith("/"): return "begins with /: the site does not live at the root"
    path, fragment = urldefrag(urljoin(page, target))
    if path.split("?")[0] not in ids and not (SITE / path.split("?")[0]).is_file():
        return "no such page or file"
    if fragment and path in ids and fragment not in ids[path]: return "no such place in it"


def broken_in_repository(rest):
    "blob/main/flowbook/flow.py#L105 and the like"
    m = re.match(r"(?:blob|edit|tree)/main/([^#]*)(?:#L(\d+))?$", rest)
    if not m: return None
    path = ROOT / m[1]
    if not path.exists(): return "no such file in the repository"
    if m[2]:
        line = path.read_text().splitlines()[int(m[2]) - 1:int(m[2])]
        if not line or not re.match(r"\s*(?:async )?(?:def|class|@)", line[0]):
            return f"nothing is defined there: {line}"


@needs_site
def test_every_link_leads_somewhere(pages):
    ids = {name: page.ids for name, page in pages.items()}
    bad = {f"{name}: {t}: {why}" for name, page in pages.items()
           for t in page.links + page.assets
           if not t.startswith("data:") and (why := broken(t, name, ids))}
    assert not bad, "\n".join(sorted(bad))


@needs_site
def test_every_notebook_is_a_page_of_the_sidebar(pages):
    named = {Path(p).name for _, p in script("after_render").entries(
        CONFIG["website"]["sidebar"]["contents"])}
    assert named == {p.name for p in NBS.glob("*.ipynb")}
    assert len(pages) >= len(named)


@needs_site
def test_links_to_names_stay_in_the_site(pages):
    out = {name for name, page in pages.items() for t in page.links
           if t.startswith(HOME) and not t.endswith((".txt", ".md"))}
    assert not out


@needs_site
def test_every_picture_is_described(pages):
    bad = [f"{name}: {src}" for name, page in pages.items()
           for src, alt in page.images if not (alt or "").strip()]
    assert not bad, "\n".join(bad)


@needs_site
def test_headings_are_in_order(pages):
    bad = {}
    for name, page in pages.items():
        levels = page.headings
        steps = [b - a for a, b in zip(levels, levels[1:])]
        if levels[:1] != [1] or levels.count(1) > 1 or max(steps, default=0) > 1:
            bad[name] = levels
    assert not bad, bad


def sent(path):
    "Bytes on the way: text is compressed, pictures are as they are"
    data = path.read_bytes()
    packed = path.suffix in (".html", ".css", ".js", ".mjs", ".json", ".svg", ".md")
    return len(gzip.compress(data, 6)) if packed else len(data)


def weight(name, page):
    "A page and all that it loads by itself"
    files = {SITE / name}
    for target in page.assets:
        if re.match(r"[a-z]+:", target) or target.endswith(".html"): continue
        file = SITE / target.split("?")[0].split("#")[0]
        files.add(file)
        if file.suffix == ".css" and file.exists():
            for url in re.findall(r"url\([\"']?([^\"')]+)", file.read_text()):
                if not url.startswith(("data:", "http", "#")):
                    files.add((file.parent / url.split("?")[0]).resolve())
    return sum(sent(f) for f in files if f.is_file())


@needs_site
def test_no_markup_is_left(pages):
    "Pandoc leaves what it cannot convert as it is, and only warns"
    bad = [f"{name}: {text}" for name, page in pages.items() for text in
           re.findall(r"<p>[^<]*:::|::: \{#|\]\(http.{30}|#% |\\Bigl.{30}", page.text)]
    assert not bad, "\n".join(bad)


@needs_site
def test_pages_are_light(pages):
    heavy = {n: w for n, p in pages.items() if (w := weight(n, p)) > LIMIT}
    assert not heavy, heavy
    total = sum(f.stat().st_size for f in SITE.rglob("*") if f.is_file())
    assert total < 80e6, total


@needs_site
def test_nothing_comes_from_elsewhere(pages):
    bad = [f"{n}: {t}" for n, p in pages.items() for t in p.assets
           if re.match(r"(https?:)?//", t) and not t.startswith(HOME)]
    assert not bad, "\n".join(bad)
    styles = "".join(f.read_text() for f in SITE.rglob("*.css"))
    assert not re.findall(r"@import\s*(?:url)?[\"'(]+http[^;]{0,80}", styles)


@needs_site
def test_markdown_of_every_page_and_the_list_of_them(pages):
    text = (SITE / "llms.txt").read_text()
    listed = {t[len(HOME):] for t in re.findall(r"\]\(([^)]*)\)", text)}
    assert listed == {f"{name}.md" for name in pages}
    for name in listed:
        text = (SITE / name).read_text()
        assert len(text) > 500, name
        assert not re.search(r"\]\([^)]*\.ipynb", text), name   # nor to notebooks


@needs_site
def test_card_and_icon():
    from PIL import Image
    assert Image.open(SITE / "card.png").size == (1200, 630)
    head = (SITE / "index.html").read_text().split("</head>")[0]
    assert f'content="{HOME}card.png"' in head and 'favicon.svg' in head


# notebooks ---------------------------------------------------------------------------

def outputs(cell):
    "The text of a cell's outputs, with the kind of each"
    for o in cell.get("outputs", []):
        texts = [o.get("text", "")] + [v for k, v in o.get("data", {}).items()
                                       if k.startswith("text/")]
        yield o, "\n".join("".join(t) for t in texts)


NOISE = {
    "a traceback": r"Traceback \(most recent|^\w*Error: ",
    "a machine's path": r"(?<![\w.])/(home|Users|root|tmp|var|mnt|opt|content|work(spaces?)?)/|[A-Z]:\\\\",
    "a warning": r"\b\w*Warning: |warnings\.warn\(",
}


def test_outputs_hold_no_noise():
    bad = []
    for path in sorted(NBS.glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            for o, text in outputs(cell):
                at = f"{path.name} {cell['id']}"
                if o["output_type"] == "error" or o.get("name") == "stderr":
                    bad.append(f"{at}: {o.get('name', 'error')}")
                bad += [f"{at}: {what}: {m[0]}" for what, pattern in NOISE.items()
                        if (m := re.search(pattern, text, re.M))]
    assert not bad, "\n".join(bad)


def test_pictures_in_notebooks_are_described():
    bad = []
    for path in sorted(NBS.glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            shown = any(k.startswith("image/") for o, _ in outputs(cell)
                        for k in o.get("data", {}))
            if shown and "#| fig-alt:" not in source: bad.append(f"{path.name} {cell['id']}")
            html = source + "".join(t for _, t in outputs(cell))
            bad += [f"{path.name} {cell['id']}: {m[:60]}" for m in
                    re.findall(r"<img [^>]*>|!\[\]\([^)]*\)", html)
                    if not re.search(r"\balt=[\"'][^\"']", m)]
    assert not bad, "\n".join(bad)


def slug(heading):
    "The name that pandoc gives to a heading"
    text = re.sub(r"\{[^}]*\}\s*$|`|\*|\$|\[([^\]]*)\]\([^)]*\)",
                  lambda m: m[1] or "", heading.strip())
    text = re.sub(r"[^\w\s.-]", "", text.lower()).strip()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text)) or "section"


def anchors(text):
    "Places that a processed notebook's text has"
    given = re.findall(r"\{[^}]*#([\w.:-]+)[^}]*\}", text)
    labels = re.findall(r"^#\| label: (\S+)", text, re.M)
    return {*given, *labels, *map(slug, re.findall(r"^#{1,6} (.+)$", text, re.M))}


@pytest.mark.skipif(rendered(), reason="the rendered site is checked")
def test_links_of_processed_notebooks():
    from nbdev.serve import proc_nbs
    from flowbook._modidx import d
    named = {HOME + where for module in d["syms"].values() for where, _ in module.values()}
    folder, made = proc_nbs(n_workers=2), ["llms.txt", "llms-ctx.txt"]
    text, prose, name_of, cells_of = {}, {}, {}, {}
    for path in folder.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        about = next(yaml.safe_load_all("".join(cells[0]["source"])))
        page = name_of[path.name] = about["output-file"]
        cells_of[page] = {c["id"] for c in cells if c["cell_type"] == "code"}
        text[page] = "\n\n".join("".join(c["source"]) for c in cells)
        prose[page] = "\n\n".join(t for c in cells for t in (
            "".join(c["source"]) * (c["cell_type"] == "markdown"),
            *(t for _, t in outputs(c))))
    ids = {page: anchors(t) | cells_of[page] for page, t in text.items()}
    bad = []
    for page, t in prose.items():
        t = re.sub(r"^```.*?^```|`[^`\n]*`", "", t, flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)(?:\s\"[^\"]*\")?\)", t):
            if target in named or target.removeprefix(HOME) in made: continue
            path, _, fragment = target.partition("#")
            if path in name_of:
                path = name_of[path]
            target = (path or page) + (f"#{fragment}" if fragment else "")
            if (NBS / path).is_file() and path not in ids: continue
            if why := broken(target, page, ids): bad.append(f"{page}: {target}: {why}")
    assert not bad, "\n".join(bad)


# what scripts make -------------------------------------------------------------------

def test_thumbnails_show_the_chapters_of_today():
    from PIL import Image, ImageChops, ImageStat
    pictures = script("pictures")
    chapters = {p.stem for p in NBS.glob("[0-8][0-9]_*.ipynb")}
    assert set(pictures.THUMBS) == chapters
    for name in chapters:
        path, again = pictures.thumb_path(name), f"{name}: python .ci/pictures.py thumbs"
        assert path.exists(), again
        kept, new = (p.convert("RGBA") for p in (Image.open(path), pictures.thumb(name)))
        assert max(ImageStat.Stat(ImageChops.difference(kept, new)).mean) < 2, again


def test_colab_notebooks_install_and_wait():
    colab = script("colab")
    for path in NBS.glob("[0-9][0-9]_*.ipynb"):
        notebook = json.loads(path.read_text())
        slow = [c for c in notebook["cells"] if c["cell_type"] == "code"
                and re.search(r"^#\| *slow\b", "".join(c["source"]), re.M)]
        copy = colab.for_colab(notebook, "abc")
        code = [c["source"] for c in copy["cells"] if c["cell_type"] == "code"]
        assert code[0].startswith("%pip install") and "@abc" in code[0]
        assert sum(c.startswith("%%script echo") for c in code) == len(slow), path.name
        assert not any("nbdev_export()" in c for c in code)


# in a browser ------------------------------------------------------------------------

AUDIT = r"""(() => {
  const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const known = new Map();
  const rgba = c => {
    if (!known.has(c)) {
      pen.clearRect(0, 0, 1, 1); pen.fillStyle = c; pen.fillRect(0, 0, 1, 1);
      known.set(c, [...pen.getImageData(0, 0, 1, 1).data].map((v, i) => i < 3 ? v : v / 255));
    }
    return known.get(c);
  };
  const over = (top, below) => below.map((v, i) => v + (top[i] - v) * top[3]);
  const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
    const v = c[i] / 255;
    return sum + w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const bad = new Set(), seen = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || seen.has(e)) continue;
    seen.add(e);
    if (e.closest('script, style, noscript, math, svg, sup, sub, .visually-hidden')) continue;
    if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const s = getComputedStyle(e), size = parseFloat(s.fontSize);
    const path = []; let faint = 1;
    for (let p = e; p; p = p.parentElement) {
      path.unshift(p); faint *= parseFloat(getComputedStyle(p).opacity); }
    let back = [255, 255, 255];
    for (const p of path) back = over(rgba(getComputedStyle(p).backgroundColor), back);
    const ink = [...rgba(s.color)]; ink[3] *= faint;
    const [a, b] = [light(over(ink, back)), light(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = size >= 24 || size >= 18.66 && parseInt(s.fontWeight) >= 700;
    const where = `${e.tagName.toLowerCase()}.${[...e.classList].join('.')} "${text.slice(0, 30)}"`;
    if (size < 13.99) bad.add(`${size} px: ${where}`);
    if (ratio < (large ? 3 : 4.5)) bad.add(`contrast ${ratio.toFixed(2)}: ${where}`);
  }
  if (innerWidth >= 1280) for (const e of document.querySelectorAll('main div.sourceCode, main pre'))
    if (e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && !e.closest('.cell-output'))
      bad.add(`code of ${e.scrollWidth} in ${e.clientWidth}: ${e.innerText.slice(0, 40)}`);
  for (const s of document.querySelectorAll('section.level3'))
    if (s.querySelector(':scope > .cell > details.code-fold[open]')
        && s.querySelector(':scope > div.sourceCode:not(.cell-code)')?.checkVisibility())
      bad.add(`signature twice: ${s.id}`);
  for (const i of document.images)
    if (i.complete && !i.naturalWidth) bad.add(`no picture: ${i.src.slice(0, 80)}`);
  return [...bad].slice(0, 40);
})()"""


@pytest.fixture(scope="module")
def address():
    with serve(SITE) as url: yield url


@needs_site
@needs_browser
@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_pages_in_a_browser(pages, address, width, dark):
    "No complaint, nothing from elsewhere, AA, 14 px, no sideways scrolling"
    bad = []
    with Browser(width, dark=dark, mobile=width < 768) as tab:
        for name in pages:
            tab.open(f"{address}/{name}")
            assert tab.js("document.body.classList.contains('quarto-dark')") == dark
            bad += [f"{name}: {e}" for e in tab.errors + tab.js(AUDIT)]
            # (not innerWidth: on a phone the window grows with what is too wide)
            wide = tab.js("document.documentElement.scrollWidth")
            if wide > width: bad.append(f"{name} is {wide} wide at {width}")
            bad += [f"{name} asks for {r}" for r in tab.requests
                    if not r.startswith((address, "data:", "blob:"))]
    assert not bad, "\n".join(bad)


@needs_site
@needs_browser
def test_the_front_page_needs_no_scripts(address):
    with Browser() as tab:
        tab.scripts(False)
        tab.open(f"{address}/index.html")
        text = tab.js("document.querySelector('main').innerText")
        for words in "pip install -e .", "RectifiedFlow()", "Rectified flow": assert words in text
        assert tab.js("[...document.querySelectorAll('main img')].length") >= 10
        assert not tab.js("""[...document.querySelectorAll('main img')]
            .filter(i => i.loading != 'lazy' && !i.naturalWidth).map(i => i.src)""")


@needs_site
@needs_browser
def test_search_and_theme_switch(address):
    with Browser() as tab:
        tab.open(f"{address}/index.html")
        tab.click("#quarto-search button, #quarto-search .aa-DetachedSearchButton")
        tab.wait("document.activeElement.matches('input')")
        for letter in "patchify": tab.key(letter)
        tab.wait("document.querySelectorAll('.aa-Item').length > 0", 20)
        assert not tab.errors
        tab.open(f"{address}/flow.html")
        tab.click(".quarto-color-scheme-toggle")
        tab.wait("document.body.classList.contains('quarto-dark')")
        assert not tab.errors
