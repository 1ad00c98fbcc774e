"""The chapters as they run in Colab, where nothing is installed:

    python .ci/colab.py FOLDER [COMMIT]

The first code cell installs the package; slow cells wait until asked; the cell that
exports the module is left out. The workflow pushes the folder to the branch `colab`.
"""
import json
import sys
from pathlib import Path

NBS = Path(__file__).parent.parent / "nbs"
GIT = "https://github.com/flowbook/flowbook"
WAIT = "%%script echo This cell is slow. Remove this line to run it.\n"
BESIDE = {"diffusers": "diffusers", "flow_matching": "flow_matching",
          "torch_fidelity": "torch-fidelity", "scanpy": "scanpy",
          "onnx": "onnx onnxscript onnxruntime"}  # what single chapters need


def install(text, commit):
    "The cell that installs what a notebook with this text needs"
    more = [pip for name, pip in BESIDE.items() if name in text]
    source = " ".join([f'%pip install -q "flowbook @ git+{GIT}@{commit}"', *more])
    if "../benchmarks" in text: source += (      # tables that the chapter reads
        f"\n!curl -sL {GIT}/archive/{commit}.tar.gz | tar xz -C .."
        ' --strip-components=1 --wildcards "*/benchmarks/*"')
    return dict(cell_type="code", id="install", metadata={}, outputs=[],
                execution_count=None, source=source)


def for_colab(notebook, commit="main"):
    "A notebook's copy for Colab"
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if "nbdev.nbdev_export()" in source: continue
        slow = cell["cell_type"] == "code" and "#| slow" in source.splitlines()
        cells.append({**cell, "source": WAIT + source if slow else source})
    text = "".join(c["source"] for c in cells if c["cell_type"] == "code")
    return {**notebook, "cells": [cells[0], install(text, commit), *cells[1:]]}


if __name__ == "__main__":
    folder, commit = Path(sys.argv[1]), (sys.argv[2:] or ["main"])[0]
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(NBS.glob("[0-9][0-9]_*.ipynb")):
        copy = for_colab(json.loads(path.read_text()), commit)
        (folder / path.name).write_text(
            json.dumps(copy, indent=1, ensure_ascii=False) + "\n")
