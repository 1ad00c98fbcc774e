"""What is done when quarto has rendered the whole site (see _quarto.yml):

llms.txt lists the pages' markdown in the order of the sidebar; links to names that
have no heading of their own lead to what they belong to; pages with HTML in their
outputs do not fetch require.js and jQuery from elsewhere, which nothing here uses.
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


if __name__ == "__main__" and os.environ.get("QUARTO_PROJECT_RENDER_ALL"):
    config = yaml.safe_load(Path("_quarto.yml").read_text())
    out = Path(os.environ["QUARTO_PROJECT_OUTPUT_DIR"])
    (out / "llms.txt").write_text(llms(config))
    pages = {p.name: p.read_text() for p in out.glob("*.html")}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    syms = runpy.run_path(str(ROOT / "flowbook/_modidx.py"))["d"]["syms"]
    names = {where for module in syms.values() for where, _ in module.values()}
    for name, text in pages.items(): (out / name).write_text(mended(text, ids, names))
