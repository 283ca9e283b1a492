"""Draw docs/images/geometry.webp: how a mask goes from one face to another. python docs/pictures.py [FILE]"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from gan_mask import masking, templates

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

TEMPLATE, WEARER = "id_0016", "id_0054"
BLUE, ORANGE = "#0072b2", "#e69f00"  # of Okabe and Ito: told apart by colour-blind readers, too
TRIANGLES = masking.TRIANGLES.numpy()


def person(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """First view (1, 3, 128, 128) in [0, 1] and landmarks (1, 68, 2) of an embedded person."""
    view = f"synthfaces/{name}/view_1.webp"
    with zipfile.ZipFile(templates.ASSETS / "synthfaces.zip") as archive:
        photo = np.asarray(Image.open(io.BytesIO(archive.read(view))).convert("RGB"))
    with np.load(templates.ASSETS / "synthfaces_landmarks.npz", allow_pickle=False) as file:
        points = file["landmarks68"][file["names"].tolist().index(view)]
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255, torch.from_numpy(points)[None]


def show(axes: Axes, image: torch.Tensor, title: str, unit: bool = False) -> None:
    """image (1, 3, H, W); unit: coordinates run over [0, 1] instead of pixels."""
    axes.imshow(image[0].permute(1, 2, 0).clamp(0, 1).numpy(), extent=(0, 1, 1, 0) if unit else None, aspect="auto")
    axes.set_title(title, fontsize=11)
    axes.axis("off")


def mesh(axes: Axes, points: np.ndarray) -> None:
    axes.triplot(points[:, 0], points[:, 1], TRIANGLES, color=BLUE, linewidth=0.7)


def main(out: Path) -> None:
    (template, template_points), (wearer, points) = person(TEMPLATE), person(WEARER)
    texture = masking.unwrap(template, template_points)
    chosen = list(masking.MASK_LANDMARKS)
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.4), layout="constrained")
    show(axes[0], template, "template: 68 landmarks,\n35 make the mask")
    rest = [i for i in range(68) if i not in chosen]
    axes[0].scatter(*template_points[0, rest].T, s=6, color="white")
    axes[0].scatter(*template_points[0, chosen].T, s=12, color=ORANGE)
    show(axes[1], template, "their triangles")
    mesh(axes[1], template_points[0, chosen].numpy())
    show(axes[2], texture, "unwrap: the texture,\nin canonical mask space", unit=True)
    mesh(axes[2], masking.CANONICAL.numpy())
    show(axes[3], wearer, "the same triangles\non the wearer")
    mesh(axes[3], points[0, chosen].numpy())
    show(axes[4], masking.wear(wearer, points, texture, 0.03), "wear: the mask is on")
    for axis in (axes[0], axes[1], axes[3], axes[4]):
        axis.set(xlim=(0, 127), ylim=(133, 0))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    plt.close(figure)
    Image.open(buffer).convert("RGB").save(out, quality=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images" / "geometry.webp")
