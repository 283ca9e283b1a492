"""Faces blended with themselves or others: what blending leaves, without an attack (Shiohara and Yamasaki 2022).

A detector that learns from one attack learns that attack. These masks are random instead: the wearer's own lower face,
slightly out of place, or somebody else's; a random other face of it (`facespace`, without anybody to dodge); its
colours, contrast and sharpness adapted or not; cloned in seamlessly or laid over with a soft edge.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import facespace, likeness, masking
from gan_mask.attacks.base import Method, Result
from gan_mask.augment import Draws, jitter_landmarks

NAME = "blend"
OWN = 0.4  # share of masks that show the wearer's own lower face
SEAMLESS = 0.7  # share of batches that are cloned in; the others are laid over
ADAPTED = 0.7  # share of masks with the wearer's colours and contrast


class Blend(Method):
    """Random blended lower faces; seeded, another draw at every call. Its masks differ by their places in a batch."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.calls = seed, 0

    def apply(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Result:
        self.calls += 1
        draws = Draws(self.seed, self.calls, range(len(faces)), len(faces), faces.device)
        self.placement = "seamless" if bool(draws.uniform()[0] < SEAMLESS) else "paper"
        self.softness = 0.01 * 10 ** float(draws.uniform()[0])  # up to a tenth of the mask's width
        own = masking.unwrap(faces, landmarks, self.texture_size)
        shown = torch.where(_some(draws, OWN), self._out_of_place(faces, landmarks, draws), templates)
        shown = torch.where(_some(draws, 0.5), other_face(shown, draws), shown)
        shown = torch.where(_some(draws, 0.5), _refocused(shown, draws), shown)
        adapted = likeness.adapt(shown, own)
        shown = torch.where(_some(draws, ADAPTED), adapted, shown * draws.uniform(3, 1, 1, low=0.9, high=1.1))
        return Result(shown.clamp(0, 1))

    def _out_of_place(self, faces: Tensor, landmarks: Tensor, draws: Draws) -> Tensor:
        """The wearers' own lower faces, moved and warped by a few per cent of their width."""
        moved = jitter_landmarks(landmarks, draws, 1.5)
        return masking.unwrap(faces, moved, self.texture_size)


def other_face(textures: Tensor, draws: Draws) -> Tensor:
    """Textures (B, 3, h, w) changed at random within an attacker's bounds: (B, 3, h, w), not clamped."""
    appearance, *maps = facespace.SHAPES
    strength = draws.uniform(1, low=0.2, high=1.5)
    raw = [strength * draws.normal(*appearance), *(strength[..., None, None] * _coarse(draws, *size) for size in maps)]
    return facespace.paint(textures, facespace.Bounds().face(raw), facespace.basis_for(textures))


def _coarse(draws: Draws, channels: int, rows: int, columns: int) -> Tensor:
    """Smooth noise of about unit variance, (B, channels, rows, columns)."""
    small = 1.4 * draws.normal(channels * math.ceil(rows / 2) * math.ceil(columns / 2))
    small = small.unflatten(1, (channels, math.ceil(rows / 2), math.ceil(columns / 2)))
    return F.interpolate(small, (rows, columns), mode="bicubic", align_corners=False)


def _refocused(textures: Tensor, draws: Draws) -> Tensor:
    """Blurred or sharpened a little."""
    return textures + draws.uniform(1, 1, 1, low=-0.8, high=0.8) * (textures - likeness.blurred(textures, 1.2))


def _some(draws: Draws, share: float) -> Tensor:
    """True for so many: (B, 1, 1, 1)."""
    return draws.uniform(1, 1, 1) < share
