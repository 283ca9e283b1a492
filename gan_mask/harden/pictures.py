"""Pictures that a mask detector learns from: bare faces, ordinary masks drawn at random, backgrounds, real masks."""

from __future__ import annotations

import csv
import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gan_mask import masking, templates
from gan_mask.errors import GanMaskError
from gan_mask.faces import to_8_bit

BACKGROUND, BARE, MASKED = range(3)  # as in pretrained.classifier.CLASSES


def ordinary_mask(face: Tensor, landmarks: Tensor, rng: np.random.Generator) -> Tensor:
    """A plain, patterned or noisy mask with soft folds, worn a little too high, low, wide or narrow.

    face (3, H, W) in [0, 1], landmarks (68, 2) px -> (3, H, W).
    """
    texture = shipped_texture(rng) if rng.random() < 0.15 else _random_texture(rng)
    jaw_width = float((landmarks[16] - landmarks[0]).norm())
    moved = landmarks + torch.tensor([0.0, rng.uniform(-0.08, 0.1)]).float() * jaw_width
    moved = moved + torch.from_numpy(rng.normal(0, 0.012 * jaw_width, (68, 2))).float()
    return masking.wear(face[None], moved[None], texture[None], float(rng.choice([0.01, 0.03])))[0]


def shipped_texture(rng: np.random.Generator) -> Tensor:
    """One of the shipped plain and cloth templates (3, h, w), its light and colour balance varied."""
    bank = _cloths()
    gain = torch.from_numpy(rng.uniform(0.8, 1.15, (3, 1, 1))).float()
    return (bank[int(rng.integers(len(bank)))] * gain).clamp(0, 1)


@lru_cache(maxsize=1)
def _cloths() -> Tensor:
    return templates.load_all(["plain", "cloth"])


def _random_texture(rng: np.random.Generator) -> Tensor:
    height, width = masking.TEXTURE
    colours = np.array([rng.uniform(0, 1, 3), (0.62, 0.76, 0.85), (0.95, 0.95, 0.95), (0.08, 0.08, 0.09)])
    colour = torch.from_numpy(rng.choice(colours))
    texture = colour.float()[:, None, None].expand(3, height, width).clone()
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    pattern = rng.choice(
        ["plain", "stripes", "checks", "dots", "blotches", "noise"], p=[0.45, 0.12, 0.1, 0.1, 0.13, 0.1]
    )
    if pattern != "plain":
        other = torch.tensor(rng.uniform(0, 1, 3)).float()[:, None, None]
        texture = torch.lerp(texture, other, _pattern(str(pattern), u, v, rng))
    folds = _smooth_noise(rng, 6, 3) * rng.uniform(0.02, 0.15) + 0.06 * rng.uniform() * torch.sin(
        v * rng.uniform(8, 40)
    )
    return (texture * (0.95 + folds) * (1 - 0.25 * rng.uniform() * (u - 0.5).abs())).clamp(0, 1)


def _pattern(name: str, u: Tensor, v: Tensor, rng: np.random.Generator) -> Tensor:
    frequency, angle = rng.uniform(10, 90), rng.uniform(0, np.pi)
    a, b = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    if name == "stripes":
        return (torch.sin(frequency * a) > 0).float()[None]
    if name == "checks":
        return ((torch.sin(frequency * a) > 0) ^ (torch.sin(frequency * b) > 0)).float()[None]
    if name == "dots":
        return (torch.sin(frequency * a) * torch.sin(frequency * b) > 0.5).float()[None]
    if name == "blotches":
        return _smooth_noise(rng, int(rng.integers(3, 12)), int(rng.integers(3, 12))).gt(0).float()[None]
    return torch.from_numpy(rng.uniform(0, rng.uniform(0.1, 1), (3, *u.shape))).float()


def _smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    coarse = torch.from_numpy(rng.normal(size=(1, 1, rows, columns))).float()
    return F.interpolate(coarse, masking.TEXTURE, mode="bicubic", align_corners=False)[0, 0]


def background(face: Tensor, rng: np.random.Generator) -> Tensor:
    """A corner blown up, a face cut in shuffled pieces, or a blank: (3, S, S) -> (3, S, S)."""
    size = face.shape[-1]
    kind = rng.integers(3)
    if kind == 0:
        side = size // 4
        y, x = rng.choice([0, size - side]), rng.choice([0, size - side])
        patch = face[None, :, y : y + side, x : x + side]
        return F.interpolate(patch, (size, size), mode="bilinear", align_corners=False)[0]
    if kind == 1:
        pieces = int(rng.choice([4, 5, 8]))
        cut = F.interpolate(face[None], (160, 160), mode="bilinear", align_corners=False)[0]
        cut = cut.unfold(1, 160 // pieces, 160 // pieces).unfold(2, 160 // pieces, 160 // pieces)
        cut = cut.flatten(1, 2)[:, rng.permutation(pieces**2)].unflatten(1, (pieces, pieces))
        cut = cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return F.interpolate(cut[None], (size, size), mode="bilinear", align_corners=False)[0]
    blank = torch.from_numpy(rng.uniform(0, 1, (3, 1, 1))).float().expand(3, size, size)
    return (blank + torch.from_numpy(rng.normal(0, 0.05, (3, size, size))).float()).clamp(0, 1)


class Camera:
    """What happens to a face on its way to a detector: light, blur, compression. (3, S, S) in [0, 1].

    Its framing hardly changes: faces are aligned before a detector sees them.
    """

    def __init__(self) -> None:
        self.pipeline: Any = None  # albumentations' own object; made in the process that uses it

    def __call__(self, face: Tensor, seed: int) -> Tensor:
        import albumentations as A

        if self.pipeline is None:
            self.pipeline = A.Compose([
                A.HorizontalFlip(p=0.5),
                A.Affine(scale=(0.92, 1.12), translate_percent=(-0.03, 0.03), rotate=(-6, 6), border_mode=1, p=0.9),
                A.RandomBrightnessContrast(0.25, 0.25, p=0.7),
                A.HueSaturationValue(8, 30, 0, p=0.5),
                A.OneOf([A.GaussianBlur((3, 5)), A.Downscale((0.4, 0.8)), A.ImageCompression("jpeg", (30, 90))], p=0.5),
                A.GaussNoise((0.01, 0.05), p=0.2),
                A.ToGray(p=0.05),
            ])  # fmt: skip
        self.pipeline.set_random_seed(seed)
        image = to_8_bit(face)
        return torch.from_numpy(np.ascontiguousarray(self.pipeline(image=image)["image"])).permute(2, 0, 1) / 255


def real_masks(path: str | Path) -> dict[str, dict[int, list[np.ndarray]]]:
    """split -> BARE or MASKED -> pictures uint8 (H, W, 3), of a zip with labels.csv (columns file, label, split)."""
    pack: dict[str, dict[int, list[np.ndarray]]] = {s: {BARE: [], MASKED: []} for s in ("train", "test")}
    try:
        with zipfile.ZipFile(path) as archive:
            for row in csv.DictReader(io.StringIO(archive.read("labels.csv").decode())):
                image = np.array(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB"))
                pack[row["split"]][MASKED if row["label"] == "1" else BARE].append(image)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise GanMaskError(f"{path}: not a pack of real masks ({error})") from error
    return pack
