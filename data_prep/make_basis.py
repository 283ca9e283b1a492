"""Make gan_mask/assets/lower_faces.safetensors, the basis of adversarial faces (gan_mask.facespace).

python data_prep/make_basis.py [FILE]

Principal components of the luminance of lower faces, as seamless placement keeps it, over the three views of the first
48 people whose faces are templates, and their mirror images. Nobody else: an evaluation never has these as probes.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from gan_mask import cli, files, likeness, masking
from gan_mask.facespace import BASIS
from gan_mask.landmarks import flip
from gan_mask.templates import ASSETS, TEMPLATE_PEOPLE

COMPONENTS = 80
PEOPLE = TEMPLATE_PEOPLE[:48]  # nearly frontal ones


def forms() -> torch.Tensor:
    """(N, h, w) of all views and their mirror images."""
    views = [f"synthfaces/{person}/view_{view}.webp" for person in PEOPLE for view in (1, 2, 3)]
    with np.load(ASSETS / "synthfaces_landmarks.npz", allow_pickle=False) as file:
        points = dict(zip(file["names"].tolist(), file["landmarks68"], strict=True))
    with zipfile.ZipFile(ASSETS / "synthfaces.zip") as archive:
        photos = [np.asarray(Image.open(io.BytesIO(archive.read(view))).convert("RGB")) for view in views]
    faces = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
    landmarks = torch.from_numpy(np.stack([points[view] for view in views]))
    faces, landmarks = torch.cat([faces, faces.flip(3)]), torch.cat([landmarks, flip(landmarks, faces.shape[3])])
    return masking.structure(likeness.luminance(masking.unwrap(faces, landmarks)))[:, 0]


def write_basis(out: Path) -> str:
    """Write the file; what it holds, in words."""
    rows = forms().double()
    mean = rows.mean(0)
    _, sizes, directions = torch.linalg.svd((rows - mean).flatten(1), full_matrices=False)
    deviations = sizes[:COMPONENTS] / len(rows) ** 0.5
    components = (deviations[:, None] * directions[:COMPONENTS]).view(COMPONENTS, *rows.shape[1:])
    held = sizes[:COMPONENTS].square().sum() / sizes.square().sum()
    with files.replacing(out) as temporary:
        temporary.write_bytes(save({"components": components.half().contiguous(), "mean": mean.half()}))
    return f"{len(rows)} views, {COMPONENTS} components hold {held:.1%} of the variance"


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("output").add_argument
    add("out", type=Path, metavar="FILE", nargs="?", default=BASIS, help="the file (default: the package's own)")
    cli.add_message_options(parser)
    args = parser.parse_args()
    with cli.ending("the same command starts over"):
        print(write_basis(args.out))


if __name__ == "__main__":
    main()
