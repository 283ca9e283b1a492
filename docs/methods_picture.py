"""Make docs/images/methods.jpg: six synthetic people, a row per method, with the defaults of `sample.py`.

python docs/methods_picture.py [CHECKPOINT] [FILE] - people that are neither templates nor in the demo's train split.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gan_mask import attacks, load_generator, masking, templates
from gan_mask.attacks.surrogates import load_surrogates
from gan_mask.faces import FaceFinder, align, read_image, to_tensors
from gan_mask.generator import SHIPPED

WEARERS = ("id_0002", "id_0023", "id_0035", "id_0064", "id_0079", "id_0102")
SIDE = 256  # pixels: the photos, enlarged, and a cell
LABEL = 170  # pixels: width of the titles
# Title, method, placement; a generator has its own.
ROWS: tuple[tuple[str, str, masking.PlacementName], ...] = (
    ("unmasked", "none", "paper"),
    ("plain mask", "plain", "paper"),
    ("DM, as in\nthe paper", "dm", "paper"),
    ("DM, seamless", "dm", "seamless"),
    ("AdvNoise-DM,\nseamless", "advnoise-dm", "seamless"),
    ("MF2M,\nseamless", "mf2m", "seamless"),
    ("generator", "generator", "seamless"),
)


def photos() -> list[np.ndarray]:
    with zipfile.ZipFile(templates.ASSETS / "synthfaces.zip") as archive:
        views = [read_image(archive.read(f"synthfaces/{person}/view_1.webp")) for person in WEARERS]
    return [np.array(Image.fromarray(view).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for view in views]


def main(checkpoint: str | Path = SHIPPED, out: str | Path = Path(__file__).parent / "images" / "methods.jpg") -> None:
    generator = load_generator(checkpoint)
    surrogates = load_surrogates(["dlib"], ["classifier"], far=1e-3)
    bare = photos()
    found = [faces[0].landmarks for faces in FaceFinder().find(bare)]
    size, margin = generator.config.size, generator.config.margin
    faces, landmarks = to_tensors([align(p, marks, size, margin) for p, marks in zip(bare, found, strict=True)])
    bank = templates.load_all(templates.best(faces, landmarks), generator.texture_size)
    rows = []
    for _, name, placement in ROWS:
        options = attacks.Options(placement=placement, softness=generator.config.softness)
        method = attacks.method(name, generator, surrogates, options)
        pictures = [photo.copy() for photo in bare]
        method.mask_photos(pictures, found, faces, landmarks, bank)
        rows.append(np.concatenate(pictures, 1))
    grid = np.concatenate(rows)
    canvas = Image.new("RGB", (grid.shape[1] + LABEL, grid.shape[0]), "white")
    canvas.paste(Image.fromarray(grid), (LABEL, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(24)
    for i, (title, *_) in enumerate(ROWS):
        draw.text((6, i * SIDE + SIDE // 2), title, fill="black", font=font, anchor="lm")
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=88, subsampling="4:4:4")
    Path(out).write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
