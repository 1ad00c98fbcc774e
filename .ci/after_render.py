"""What is done when quarto has rendered the whole site (see _quarto.yml):

llms.txt lists the pages' markdown in the order of the sidebar; links to names that
have no heading of their own lead to what they belong to; pages with HTML in their
outputs do not fetch require.js and jQuery from elsewhere, which nothing here uses;
pictures keep their place while they load; the bar marks the page that is open; and
names of functions in formulas stand as close as elsewhere.
"""
import json
import os
import re
import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent

HELP = """Each chapter is a notebook that exports a module of the Python package flowbook and
tests it. Conventions: images (b, c, h, w) in [-1, 1]; t=0 is data, t=1 is noise;
x_t = (1 - t) x + t noise; v = noise - x; a model is model(x, t, y=None) -> v;
guidance is off at scale 1.
"""


def entries(contents, section=""):
    "Every page that the sidebar names, with its section"
    for item in contents:
        if isinstance(item, str): yield section, item
        elif "section" in item: yield from entries(item["contents"], item["section"])
        else: yield section, item["href"]


def front(notebook):
    "Title, description and address of a processed notebook"
    cell = json.loads(Path(notebook).read_text())["cells"][0]
    return next(yaml.safe_load_all("".join(cell["source"])))


def llms(config):
    "The text of llms.txt"
    site = config["website"]
    lines, last = [f"# {site['title']}", "", f"> {site['description']}", "", HELP], ""
    for section, page in entries(site["sidebar"]["contents"]):
        if section != last: lines += ["", f"## {section}", ""]
        last, about = section, front(page)
        link = f"{site['site-url']}/{about['output-file']}.md"
        lines.append(f"- [{about['title']}]({link}): {about.get('description', '')}"
                     .removesuffix(": "))
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


UNUSED = (r'<script src="https://cdnjs[^"]*/(?:require|jquery)\.js/[^>]*></script>\s*'
          r'|<script src="https://cdnjs[^"]*/jquery/[^>]*></script>\s*'
          r"|<script[^>]*>define\('jquery'.*?</script>\s*")


def mended(text, ids, names):
    "A page without what it does not use; nbdev's links to names lead somewhere"
    def link(m):
        page, name = m[1], m[2]
        if f"{page}#{name}" not in names: return m[0]    # a writer's: as it is
        while name and name not in ids.get(page, {name}):
            name = name.rpartition(".")[0]
        return f'href="{page}{"#" + name if name else ""}"'
    return re.sub(r'href="([\w-]+\.html)#([\w.]+)"', link, re.sub(UNUSED, "", text))


def sized(text, folder):
    "A page whose PNGs have their sizes, and a class if a phone is too narrow for them"
    def size(m):
        path = folder / m[1]
        if not path.is_file() or "width=" in m[0]: return m[0]
        width, height = (int.from_bytes(path.read_bytes()[i:i + 4], "big") for i in (16, 20))
        tag = m[0].replace(' class="', ' class="wide ', 1) if width > 640 else m[0]
        return tag.replace("<img ", f'<img width="{width}" height="{height}" ', 1)
    return re.sub(r'<img [^>]*?src="([^":]+\.png)"[^>]*>', size, text)


def marked(text, name):
    "A page in whose bar nothing is marked but the page itself, or Read for a chapter"
    bar = re.search(r'<nav class="navbar.*?</nav>', text, re.S)
    if not bar: return text
    here = f'href="./{name}"'
    new = bar[0].replace(' aria-current="page"', "")
    if here in new:
        new = new.replace('class="nav-link active"', 'class="nav-link"').replace(
            f'class="nav-link" {here}', f'class="nav-link active" {here} aria-current="page"')
    return text.replace(bar[0], new, 1)


def close(text):
    "A page whose formulas have exp( and log x in the spacing of TeX"
    return re.sub(
        r"<mo>([A-Za-z]{2,})</mo>(?=(?:<mrow>)?(<mo[^>]*>[(\[])?)",
        lambda m: f'<mo lspace="0.1em" rspace="{0 if m[2] else 0.15}em">{m[1]}</mo>', text)


if __name__ == "__main__" and os.environ.get("QUARTO_PROJECT_RENDER_ALL"):
    config = yaml.safe_load(Path("_quarto.yml").read_text())
    out = Path(os.environ["QUARTO_PROJECT_OUTPUT_DIR"])
    (out / "llms.txt").write_text(llms(config))
    pages = {p.name: p.read_text() for p in out.glob("*.html")}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    syms = runpy.run_path(str(ROOT / "flowbook/_modidx.py"))["d"]["syms"]
    names = {where for module in syms.values() for where, _ in module.values()}
    for name, text in pages.items(): (out / name).write_text(
        close(marked(sized(mended(text, ids, names), out), name)))
