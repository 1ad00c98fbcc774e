"""The pictures of the front page, from the shipped model and the chapters' own outputs.

    python .ci/pictures.py            # thumbnails, the animation, the social card
    python .ci/pictures.py thumbs     # only the thumbnails: after a chapter was run again
"""
import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

NBS = Path(__file__).parent.parent / "nbs"
SIZE = 240, 160                      # twice what is shown
# the chapter's cell, and which part of its picture: left, top, right, bottom
THUMBS = {
    "01_patchify": ("look-patches", (0, 0.13, 0.485, 1)),
    "02_posembed": ("look-sincos2", (0.434, 0.095, 0.665, 0.807)),
    "03_attention": ("look-maps", (0.25, 0, 0.75, 0.49)),
    "04_adaln": ("look-time", (0.092, 0.1, 0.482, 0.82)),
    "05_dit": ("look-cost", (0, 0, 1, 1)),
    "06_dit_llama": ("look-shipped", (0, 0, 0.5, 1)),
    "07_unet": ("look-maps", (0, 0.2, 0.86, 1)),
    "08_flow": ("look-oracle", (0.1, 0.1, 0.49, 0.79)),
    "09_diffusion": ("look-field", (0.36, 0.08, 0.66, 0.93)),
    "10_samplers": ("look-mixture", (0.4, 0.16, 1, 1)),
    "11_guidance": ("look-mnist", (0.107, 0, 0.741, 1)),
    "12_train": ("look-grids", (0.147, 0, 0.849, 1)),
    "13_evaluate": ("look-neighbours", (0.127, 0, 0.647, 1)),
    "14_editing": ("look-slerp-mnist", (0.09, 0, 1, 1)),
    "15_reflow": ("look-mean-toy", (0.25, 0, 0.75, 1)),
    "16_latents": ("look-linear", (0, 0, 1, 1)),
    "17_tokens": ("look-polygon", (0, 0, 1, 1)),
    "18_genes": ("look-umap", (0, 0, 0.4, 1)),
    "19_text": ("look-paint", (0, 0, 1, 1)),
    "20_ablations": ("look-by-time", (0, 0, 1, 1)),
    "21_mnist": ("look-trajectory", (0.09, 0, 1, 1)),
    "22_cifar10": ("look-ten", (0.018, 0.13, 0.5, 0.87)),
    "23_live": ("look-still", (0.09, 0, 1, 1)),
}


def saved(name, cell):
    "The picture that a cell of a notebook has among its outputs"
    cells = json.loads((NBS / f"{name}.ipynb").read_text())["cells"]
    outputs = next((c["outputs"] for c in cells if c["id"] == cell), [])
    data = next((data for o in outputs for kind, data in o.get("data", {}).items()
                 if kind.startswith("image/")), None)
    if data is None: raise ValueError(f"no picture in cell {cell} of {name}.ipynb")
    return Image.open(io.BytesIO(base64.b64decode("".join(data)))).convert("RGBA")


def thumb(name):
    "A part of a chapter's picture, as large as fits, on nothing"
    cell, box = THUMBS[name]
    picture = saved(name, cell)
    picture = picture.crop([round(f * picture.size[i % 2]) for i, f in enumerate(box)])
    ratio = min(s / p for s, p in zip(SIZE, picture.size))
    picture = picture.resize([max(1, round(ratio * p)) for p in picture.size],
                             Image.LANCZOS if ratio < 1 else Image.NEAREST)
    canvas = Image.new("RGBA", SIZE)
    canvas.paste(picture, [(s - p) // 2 for s, p in zip(SIZE, picture.size)])
    return canvas.quantize(128, method=Image.Quantize.FASTOCTREE)


def thumb_path(name): return NBS / f"thumb-{name.split('_', 1)[1]}.png"


def way(n):
    "How the shipped model draws n digits of each class: (f, 10 n, 1, 28, 28)"
    import torch
    from flowbook import CFG
    from flowbook.data import DataSpec
    from flowbook.runs import load_run
    from flowbook.samplers import trajectory
    from flowbook.train import class_noise
    model, config = load_run("mnist")
    spec, how = DataSpec(**config["run"]["data"]), config["run"]["sampling"]
    noise, y = class_noise(model, spec, n=n)
    guided = CFG(model, how["guidance"], interval=tuple(how["interval"]))
    walk = trajectory(guided, noise, y, "heun", 24)
    return torch.stack([x for _, x in walk]).clamp(-1, 1)


def animation(frames):
    "The way of 20 digits, one of each class a row, and its end as a still"
    from flowbook.plot import image_grid, save_gif
    order = [*range(0, 20, 2), *range(1, 20, 2)]        # class by class -> rows
    frames = frames[:, order]
    save_gif((frames * 7.5).round() / 7.5, NBS / "way.gif", 10,   # 16 greys
             endless=False)
    image_grid(frames[-1], 10).save(NBS / "way.png", optimize=True)


def card(frames):
    "What is shown where the site is linked to: 1200 x 630, noise to digits"
    from matplotlib import font_manager
    from flowbook.data import to_uint8
    face = lambda weight, size: ImageFont.truetype(font_manager.findfont(
        font_manager.FontProperties(family="DejaVu Sans", weight=weight)), size)
    picture = Image.new("L", (1200, 630), 20)
    draw = ImageDraw.Draw(picture)
    draw.text((60, 30), "flowbook", 255, face("bold", 76))
    draw.text((62, 134), "Diffusion transformers and rectified flow:", 205,
              face("normal", 36))
    draw.text((62, 180), "a book that is a library", 205, face("normal", 36))
    times = [round(i * (len(frames) - 1) / 11) for i in range(12)]
    for row, digit in enumerate((3, 7, 8, 5)):
        for column, f in enumerate(times):
            tile = Image.fromarray(to_uint8(frames[f, 2 * digit])[0].numpy())
            picture.paste(tile.resize((84, 84), Image.NEAREST),
                          (63 + 90 * column, 244 + 88 * row))
    picture.quantize(32).save(NBS / "card.png", optimize=True)


if __name__ == "__main__":
    for name in THUMBS: thumb(name).save(thumb_path(name), optimize=True)
    if sys.argv[1:] != ["thumbs"]:
        frames = way(2)
        animation(frames)
        card(frames)
    for path in sorted([*NBS.glob("thumb-*.png"), *NBS.glob("way.*"), NBS / "card.png"]):
        print(f"{path.name:24}{path.stat().st_size / 1e3:7.1f} kB")
