"""Random draws that depend only on (seed, step, row), and the differentiable augmentations that use them.

Because a draw belongs to a row of the whole effective batch, the same training comes out on one
process with batch 2B and on two with batch B, and resuming needs no saved random state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask.constants import constant


class Draws:
    """Random numbers for the given `rows` of `total`; the order of calls matters. No call waits for a GPU."""

    def __init__(self, seed: int, step: int, rows: Sequence[int], total: int, device: torch.device | str) -> None:
        self._generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        self._rows, self._total, self._device = list(rows), total, device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(batch, *shape) in [low, high)."""
        values = torch.rand(self._total, *shape, generator=self._generator)[self._rows]
        return self._placed(values * (high - low) + low)

    def normal(self, *shape: int) -> Tensor:
        return self._placed(torch.randn(self._total, *shape, generator=self._generator)[self._rows])

    def integers(self, high: int) -> Tensor:
        """(batch,) in 0 .. high - 1."""
        return self._placed(torch.randint(high, (self._total,), generator=self._generator)[self._rows])

    def on(self, device: torch.device | str) -> Draws:
        """The same numbers in the same order, but on another device: each is drawn once, from this or from that."""
        there = copy.copy(self)
        there._device = device
        return there

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(self._device, non_blocking=True)


def jitter_landmarks(landmarks: Tensor, draws: Draws, strength: float) -> Tensor:
    """Move all landmarks of a face by one small similarity, and each by a little.

    For an embedder that aligns by landmarks this is rotation, scaling and shift of its input
    (input diversity, Xie et al. 2019) at no cost, and it stands for the re-detection of landmarks.
    strength 1: about +-4 degrees, +-4 % size, +-2 % of the face's width; 0.5 % per landmark.
    """
    width = (landmarks[:, 16] - landmarks[:, 0]).norm(dim=-1)[:, None, None].clamp_min(1)
    centre = landmarks.mean(1, keepdim=True)
    angle = draws.uniform(1, low=-0.07, high=0.07) * strength
    scale = 1 + draws.uniform(1, low=-0.04, high=0.04) * strength
    shift = draws.uniform(1, 2, low=-0.02, high=0.02) * strength * width
    cos, sin = (scale * angle.cos())[..., None], (scale * angle.sin())[..., None]
    x, y = (landmarks - centre).split(1, -1)
    moved = torch.cat([cos * x - sin * y, sin * x + cos * y], -1) + centre + shift
    return moved + draws.normal(68, 2) * 0.005 * strength * width


def shift_image(images: Tensor, draws: Draws, strength: float) -> Tensor:
    """Random rotation, resize and shift of whole images (B, C, H, W), edges repeated; strength as above."""
    angle = draws.uniform(low=-0.07, high=0.07) * strength
    scale = 1 + draws.uniform(low=-0.08, high=0.08) * strength
    shift = draws.uniform(2, low=-0.06, high=0.06) * strength
    cos, sin = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    with torch.autocast(images.device.type, enabled=False):
        matrix = matrix.float().expand(len(images), -1, -1)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def enlarge(images: Tensor, centres: Tensor, factor: float) -> Tensor:
    """The part of images (B, C, H, W) around centres (B, 2) px that fills them when enlarged; edges repeated."""
    size = images.shape[2:]
    middle = (2 * centres + 1) / constant([size[1], size[0]], centres) - 1
    matrix = (torch.eye(2, dtype=middle.dtype, device=middle.device) / factor).expand(len(images), 2, 2)
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(torch.cat([matrix, middle[..., None]], 2).float(), list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def relight(images: Tensor, draws: Draws, strength: float) -> Tensor:
    """Random brightness, contrast and saturation; strength 1: +-0.1, +-15 %, +-20 %. Stays in [0, 1]."""
    brightness = draws.uniform(1, 1, 1, low=-0.1, high=0.1) * strength
    contrast = 1 + draws.uniform(1, 1, 1, low=-0.15, high=0.15) * strength
    saturation = 1 + draws.uniform(1, 1, 1, low=-0.2, high=0.2) * strength
    grey = images.mean(1, keepdim=True)
    # Saturation moves colours away from grey, contrast then everything from the mean, which saturation leaves as it is.
    offset = contrast * (1 - saturation) * grey + (1 - contrast) * grey.mean((2, 3), keepdim=True) + brightness
    return (contrast * saturation * images + offset).clamp(0, 1)


def compress(images: Tensor, draws: Draws, low: float = 0.02, high: float = 0.2) -> Tensor:
    """JPEG-like noise: 8x8 block DCT, coefficients rounded to a random step that grows with frequency.

    Rounding passes gradients straight through; the transform is orthonormal, so the whole does.
    A step of 0.02 is about JPEG quality 90, 0.2 about 40.
    """
    return images + (_compressed(images.detach(), draws, low, high) - images.detach())


def _compressed(images: Tensor, draws: Draws, low: float, high: float) -> Tensor:
    step = draws.uniform(1, 1, 1, 1, low=low, high=high)
    height, width = images.shape[2:]
    padded = F.pad(images, [0, -width % 8, 0, -height % 8], mode="replicate")
    dct = constant(_dct(8), images)
    basis = torch.kron(dct, dct)  # (64, 64): both directions in one product
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    blocks = padded.unflatten(3, (columns, 8)).unflatten(2, (rows, 8)).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    frequency = torch.arange(8, dtype=images.dtype, device=images.device)
    table = step * (0.25 + 0.25 * (frequency[:, None] + frequency)).flatten()
    coefficients = (blocks.flatten(4) @ basis.T).div_(table).round_().mul_(table)
    blocks = (coefficients @ basis).unflatten(4, (8, 8))
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


@lru_cache(maxsize=1)
def _dct(n: int) -> Tensor:
    """Orthonormal DCT-II matrix (n, n)."""
    k = torch.arange(n, dtype=torch.float64)
    basis = (math.pi * (k[None] + 0.5) * k[:, None] / n).cos() * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.float()


def round_to_8_bit(images: Tensor) -> Tensor:
    """What saving does to the picture; gradients pass straight through."""
    return images + ((images * 255).round() / 255 - images).detach()
