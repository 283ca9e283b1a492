"""Draw the pictures of docs/concepts.md, of synthetic people: python docs/pictures.py [NAME FILE]

NAME is geometry (how a mask goes from one face to another), placement (the paper's and seamless) or detail (the same on
a larger photo); without it all are drawn, into docs/images.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from gan_mask import attacks, likeness, masking, templates
from gan_mask.faces import to_8_bit
from gan_mask.photos import wear_on_photo

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

IMAGES = Path(__file__).parent / "images"
TEMPLATE, WEARER = "id_0016", "id_0054"
PLACED = "id_0035"  # the wearer of the pictures of placement
ENLARGED = 6
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


def geometry() -> Figure:
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
    return figure


def placement() -> Figure:
    wearer, points = person(PLACED)
    bank = templates.load_all(templates.best(wearer, points))
    own = masking.unwrap(wearer, points)
    adapted = likeness.adapt(bank, own)
    change = masking.seamless(adapted, own) - own
    worn = [
        attacks.method(name).wear(wearer, points, texture) for name, texture in (("dm", bank), ("dm-seamless", adapted))
    ]
    added = masking.wear(torch.full_like(wearer, 0.5), points, change, own=torch.zeros_like(change))
    figure, grid = plt.subplots(2, 3, figsize=(11, 8.2), layout="constrained")
    axes = grid.ravel()
    show(axes[0], wearer, "the wearer")
    show(axes[1], bank, "the template that suits best,\nin canonical mask space", unit=True)
    show(axes[2], worn[0], "paper: laid over the face")
    show(axes[3], adapted, "in the wearer's colours,\ncontrast and sharpness", unit=True)
    show(axes[4], added, "what seamless placement adds\n(grey: nothing)")
    show(axes[5], worn[1], "seamless: cloned into the face")
    return figure


def detail() -> Figure:
    """A photo six times as large, with grain that no texture of 72 x 96 texels holds."""
    wearer, points = person(PLACED)
    own = masking.unwrap(wearer, points)
    bank = templates.load_all(templates.best(wearer, points))
    adapted = likeness.adapt(bank, own)
    large = torch.nn.functional.interpolate(wearer, scale_factor=ENLARGED, mode="bicubic", align_corners=False)
    grain = torch.randn(1, 1, *large.shape[2:], generator=torch.Generator().manual_seed(0))
    photo = to_8_bit((large + 0.035 * grain).clamp(0, 1))[0]
    marks = (ENLARGED * (points[0] + 0.5) - 0.5).numpy()
    pictures = [photo]
    for texture, placed in ((bank, "paper"), (adapted, "seamless")):
        pictures.append(photo.copy())
        wear_on_photo(pictures[-1], marks, texture[0], own[0], placed, 0.03)
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.9), layout="constrained")
    titles = ("a photo, 6 times as large as the network's picture", "paper: as coarse as the texture",
              "seamless: the photo's own grain stays")  # fmt: skip
    x, y = marks[[48, 54, 33]].mean(0)
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture)
        axis.set(title=title, xlim=(x - 150, x + 150), ylim=(y + 150, y - 150))
        axis.axis("off")
    return figure


PICTURES = {"geometry": geometry, "placement": placement, "detail": detail}


def draw(name: str, out: Path) -> None:
    figure = PICTURES[name]()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    plt.close(figure)
    Image.open(buffer).convert("RGB").save(out, quality=90)


def main() -> None:
    chosen = {sys.argv[1]: Path(sys.argv[2])} if sys.argv[1:] else {n: IMAGES / f"{n}.webp" for n in PICTURES}
    for name, out in chosen.items():
        draw(name, out)


if __name__ == "__main__":
    main()
