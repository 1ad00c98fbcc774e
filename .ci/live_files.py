"""What nbs/live.js needs beside it: a model and a runtime, put into the site.

Quarto runs this after a render of the whole site (see _quarto.yml). By hand:
python .ci/live_files.py _docs
"""
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

KEEP = Path(__file__).resolve().parent.parent / "build"  # not tracked
PACKAGE, VERSION = "onnxruntime-web", "1.22.0"
PARTS = {  # file of the package: its name in the site, its checksum
    "ort.wasm.min.mjs": ("ort.mjs",
        "6ef726f355b791129f7ddf3f62e7877a16b9b777abe87004b8ab306e6b9cf265"),
    "ort-wasm-simd-threaded.mjs": ("ort-wasm-simd-threaded.mjs",
        "30dd851d9c00622940500f71ddd2ff8820c5cb65270816080175b958705385a8"),
    "ort-wasm-simd-threaded.wasm": ("ort.wasm.gz",
        "71aef04959c5c1b6de461b6538e2058e306610034a85aad2742d0c7fd4533fe4"),
}


def runtime(folder):
    "ONNX Runtime for browsers (MIT), by npm once, then from the build folder"
    package = KEEP / f"{PACKAGE}-{VERSION}.tgz"
    if not package.exists():
        KEEP.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEEP) as d:
            subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}",
                            "--pack-destination", d], check=True,
                           stdout=subprocess.DEVNULL, timeout=300)
            Path(d, package.name).replace(package)       # whole, or not there
    with tarfile.open(package) as tar:
        for part, (name, checksum) in PARTS.items():
            data = tar.extractfile(f"package/dist/{part}").read()
            if hashlib.sha256(data).hexdigest() != checksum: raise ValueError(
                f"{part} of {package.name} is not what it was")
            if name.endswith(".gz"): data = gzip.compress(data, 9, mtime=0)
            (folder / name).write_bytes(data)


def model(folder):
    "The shipped model, and the setting that it is sampled with"
    from flowbook import DiTLlama
    from flowbook.live import to_onnx
    from flowbook.runs import read_config
    to_onnx(DiTLlama.from_pretrained("mnist"), folder / "mnist.onnx")
    return read_config("mnist")["run"]["sampling"]


def build(site):
    "Fill site/live; what was missing, or None. The page reads about.json"
    folder, missing = Path(site, "live"), None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        runtime(folder)
        about = {"sampling": model(folder)}
        size = sum(p.stat().st_size for p in folder.iterdir())
        about["megabytes"] = round(size / 1e6, 1)
    except ImportError as e: missing = f"{e.name} was not installed"
    except (OSError, subprocess.SubprocessError) as e:
        print(e, file=sys.stderr)
        missing = f"{PACKAGE} could not be downloaded"
    if missing: about = {"missing": f"{missing} when the site was built"}
    (folder / "about.json").write_text(json.dumps(about))
    return missing


if __name__ == "__main__":
    site = sys.argv[1] if len(sys.argv) > 1 else (
        os.environ["QUARTO_PROJECT_OUTPUT_DIR"])
    if len(sys.argv) > 1 or os.environ.get("QUARTO_PROJECT_RENDER_ALL"):
        missing = build(site)
        print(f"live: NO MODEL IN THE PAGE, {missing}" if missing else
              "live: the page has its model")
