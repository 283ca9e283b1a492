"""Adversarial faces: what may change of a printed lower face, in place of noise.

Three freedoms, each in canonical space and 0 at the seam: *appearance*, coordinates among principal components of lower
faces, so that the result is another face; *shape*, a smooth displacement; *light*, coarse and of luminance only. What
people differ by transfers from one recogniser to the next where noise does not (AT3D, Yang et al. 2023, search a face
model likewise).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import likeness, masking
from gan_mask.constants import constant
from gan_mask.files import read_safetensors

BASIS = Path(__file__).parent / "assets" / "lower_faces.safetensors"  # data_prep/make_basis.py
COMPONENTS = 80
SHAPE = (9, 12)  # control points of the displacement, and twice as many of the light, at 72 x 96 texels
SHAPES = ((COMPONENTS,), (2, *SHAPE), (1, 2 * SHAPE[0], 2 * SHAPE[1]))  # of one face's numbers, in the order of Face


class Face(NamedTuple):
    """What is changed about B templates; all zeros change nothing."""

    appearance: Tensor  # (B, K) standard deviations of the people in the basis
    shape: Tensor  # (B, 2, ...) displacement x, y at control points, as a fraction of the texture's width
    light: Tensor  # (B, 1, ...) added luminance at control points, in [0, 1] units


class Bounds(NamedTuple):
    """The largest change of each; 0 switches it off."""

    appearance: float = 2.0  # standard deviations
    shape: float = 0.08  # of the texture's width
    light: float = 0.03  # luminance in [0, 1]

    def scaled(self, by: float) -> Bounds:
        return Bounds(*(by * bound for bound in self))

    def face(self, raw: Sequence[Tensor]) -> Face:
        """Unbounded numbers of a network or an optimiser to changes within the bounds.

        Control points are averaged with their neighbours: without that, recognisers are dodged by scribbles.
        """
        appearance, *points = (bound * value.tanh() for bound, value in zip(self, raw, strict=True))
        return Face(appearance, *map(_averaged, points))


class Basis(NamedTuple):
    """Principal components of lower faces' luminance, as seamless placement keeps it (`masking.structure`)."""

    components: Tensor  # (K, h, w), each scaled to one standard deviation
    mean: Tensor  # (h, w)


@lru_cache(maxsize=4)
def basis(texture_size: tuple[int, int], device: torch.device = torch.device("cpu")) -> Basis:  # noqa: B008
    """The shipped basis at a texture size."""
    stored = read_safetensors(BASIS)
    both = torch.cat([stored["components"].float(), stored["mean"].float()[None]])[None].to(device)
    if both.shape[2:] != texture_size:
        both = F.interpolate(both, texture_size, mode="bicubic", align_corners=False)
    return Basis(both[0, :-1], both[0, -1])


def basis_for(textures: Tensor) -> Basis:
    """At the size and on the device of textures (B, C, h, w)."""
    return basis((textures.shape[2], textures.shape[3]), textures.device)


def coordinates(templates: Tensor, of: Basis) -> Tensor:
    """Where templates (B, 3, h, w) lie in the basis: (B, K), in standard deviations."""
    form = masking.structure(likeness.luminance(templates))[:, 0] - of.mean
    directions = of.components.flatten(1)
    return (form.flatten(1) @ directions.T) / directions.square().sum(1)


def paint(templates: Tensor, face: Face, of: Basis) -> Tensor:
    """The changed templates: (B, 3, h, w) -> (B, 3, h, w)."""
    size, opacity = (templates.shape[2], templates.shape[3]), masking.seam_opacity(templates)
    other = templates + torch.einsum("bk,khw->bhw", face.appearance, of.components)[:, None]
    return displaced(other, _smooth(face.shape, size) * opacity) + _smooth(face.light, size) * opacity


def implausible(templates: Tensor, of: Basis) -> Tensor:
    """How far painted lower faces (B, 3, h, w) lie outside of what people look like, (B,): 0 for a likely face.

    Each coordinate within two deviations, and their mean square within 1.5: it is 1 among the people of the basis, and
    1.5 in the median of LFW's.
    """
    squares = coordinates(templates, of).square()
    return F.relu(squares.sqrt() - 2).square().mean(1) + F.relu(squares.mean(1) - 1.5)


def roughness(face: Face, bounds: Bounds) -> Tensor:
    """Mean squared difference of neighbouring control points, in units of the bounds: (B,)."""
    total = face.appearance.new_zeros(len(face.appearance))
    for points, bound in ((face.shape, bounds.shape), (face.light, bounds.light)):
        if bound:
            relative = points / bound
            total = (
                total + relative.diff(dim=2).square().mean((1, 2, 3)) + relative.diff(dim=3).square().mean((1, 2, 3))
            )
    return total


def displaced(texture: Tensor, by: Tensor) -> Tensor:
    """texture (B, C, h, w) seen at each texel's place plus `by` (B, 2, h, w), x and y as fractions of its width."""
    height, width = texture.shape[2:]
    y, x = (
        (torch.arange(length, dtype=texture.dtype, device=texture.device) * 2 + 1) / length - 1
        for length in (height, width)
    )
    place = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    moved = place + 2 * by.permute(0, 2, 3, 1) * constant([1, width / height], by)
    return F.grid_sample(texture, moved, padding_mode="border", align_corners=False)


def _averaged(points: Tensor) -> Tensor:
    """Control points (B, C, ...), each the mean of its 3 x 3 neighbourhood."""
    return F.avg_pool2d(F.pad(points, [1] * 4, mode="replicate"), 3, 1)


def _smooth(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Control points (B, C, ...) -> (B, C, h, w)."""
    return F.interpolate(points, size, mode="bicubic", align_corners=False)
