"""Make docs/images/methods.jpg: eight synthetic people, a row per method.

python docs/methods_picture.py [CHECKPOINT] - people that are neither templates nor in the demo's train split.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from gan_mask import attacks, load_generator, templates
from gan_mask.faces import FaceFinder, align, read_image
from gan_mask.networks import SHIPPED
from gan_mask.sampling.sampler import wear_on_photo
from gan_mask.surrogates import load_surrogates

WEARERS = {  # and the template of each
    "id_0002": "face-003", "id_0023": "face-010", "id_0035": "face-021", "id_0054": "face-014",
    "id_0064": "face-005", "id_0079": "face-030", "id_0102": "face-040", "id_0114": "face-012",
}  # fmt: skip
SIDE = 144  # pixels of a cell
TITLES = {"none": "unmasked", "plain": "plain mask", "dm": "DM", "advnoise-dm": "AdvNoise-DM", "mf2m": "MF2M",
    "generator": "generator"}  # fmt: skip


def main(checkpoint: str | Path = SHIPPED) -> None:
    generator = load_generator(checkpoint)
    surrogates = load_surrogates(["dlib"], ["classifier"], far=1e-3)
    archive = zipfile.ZipFile(templates.ASSETS / "synthfaces.zip")
    photos = [read_image(archive.read(f"synthfaces/{person}/view_1.webp")) for person in WEARERS]
    found = [faces[0] for faces in FaceFinder().find(photos)]
    aligned = [
        align(photo, face.landmarks, generator.config.size, generator.config.margin)
        for photo, face in zip(photos, found, strict=True)
    ]
    faces = torch.stack([torch.from_numpy(crop).permute(2, 0, 1) / 255 for crop, _ in aligned])
    landmarks = torch.stack([torch.from_numpy(points) for _, points in aligned])
    bank = templates.load_all(list(WEARERS.values()), generator.texture_size)
    rows = []
    for name in TITLES:
        textures = attacks.method(name, generator, surrogates)(faces, landmarks, bank)
        images = [photo.copy() for photo in photos]
        for i, image in enumerate(images):
            if textures is not None:
                wear_on_photo(image, found[i].landmarks, textures[i].detach(), generator.config.softness)
        cells = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in images]
        rows.append(np.concatenate([np.asarray(cell) for cell in cells], 1))
    grid = Image.fromarray(np.concatenate(rows))
    canvas = Image.new("RGB", (grid.width + 130, grid.height), "white")
    canvas.paste(grid, (130, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    for i, title in enumerate(TITLES.values()):
        draw.text((6, i * SIDE + SIDE // 2), title, fill="black", font=font, anchor="lm")
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=90)
    (Path(__file__).parent / "images" / "methods.jpg").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
