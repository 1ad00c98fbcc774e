"What the README shows is what the front page says, and it runs."
import json
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(kind):
    "The README's code blocks of one language"
    return re.findall(rf"^``` ?{kind}\n(.*?)^```$", README, re.M | re.S)


def test_the_readme_is_made_from_the_front_page():
    cells = json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells)
    code = blocks("bash") + blocks("python")
    assert len(blocks("bash")) >= 3 and len(blocks("python")) == 2
    for block in code: assert block.strip() in text, block


def test_links_of_the_files_in_the_root_lead_to_files():
    for name in "README.md", "CONTRIBUTING.md":
        text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.M | re.S)
        found = re.findall(r"\]\(\s*([^)\s#]+)|\bsrc=\"([^\"]+)", text)
        for target in (link or picture for link, picture in found):
            if "://" not in target: assert (ROOT / target).exists(), (name, target)
    assert README.count("](nbs/thumb-") >= 10


def test_the_loop_draws_digits():
    from flowbook import load_data
    from flowbook.data import to_uint8
    from flowbook.evaluate import conditional_accuracy, fit_classifier
    imports, loop = blocks("python")
    assert len([s for s in (imports + loop).splitlines() if s.strip()]) <= 10
    torch.manual_seed(0)
    scope = {}
    exec(imports + loop, scope)
    judge = fit_classifier(load_data("digits").train)
    labels = torch.arange(20) % 10
    images = to_uint8(scope["images"])
    assert conditional_accuracy(images, labels, judge) >= 0.9
