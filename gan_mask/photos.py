"""Masks on photos of any size: painted on the aligned crop, worn at the photo's own resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import likeness, masking
from gan_mask.faces import to_8_bit
from gan_mask.masking import PlacementName

PIXELS = 500_000  # of the photo that are worked on at once, which bounds the memory
CROP_SCALE = 1.25  # photo pixels per texel up to which a face counts as no larger than in its crop
LARGEST = 8  # a texel becomes at most so many by so many, smoothly; beyond that they are interpolated linearly

# Where the painted form differs from the wearer's by more than this (luminance, around a few texels), the photo's fine
# detail belongs to a form that is no longer there (teeth under closed lips): skin from beside takes its place.
DISAGREEMENT = 0.14
BESIDE = 0.27  # of the mask's width: how far away, on the cheek, that skin is
SKIN_DETAIL = 2.5  # times the mean detail: what is stronger is a fold or an edge, and cut


def wear_on_photo(
    photo: np.ndarray, landmarks: np.ndarray, texture: Tensor, own: Tensor, placement: PlacementName, softness: float
) -> None:
    """Put a mask on one face of a photo, in place, at the cost of that face only.

    photo uint8 (H, W, 3), landmarks (68, 2) px, texture (3, h, w), and own (3, h, w): the wearer's, unwrapped from the
    aligned crop. No pixel outside the mask changes. Seamless placement adds to the photo what would change in the
    crop, so that the photo keeps its finer detail; a face no larger than in its crop gets what `masking.put_on` gives.
    """
    points = landmarks[list(masking.MASK_LANDMARKS)]
    x0, y0 = np.floor(points.min(0)).astype(int).clip(0)
    x1, y1 = np.ceil(points.max(0)).astype(int) + 1
    patch = photo[y0:y1, x0:x1]
    if not patch.size:
        return
    original = torch.from_numpy(patch.copy()).permute(2, 0, 1)[None]
    marks = torch.from_numpy(landmarks - np.array([x0, y0], np.float32))[None].to(texture.device)
    step = max(1, PIXELS // patch.shape[1])
    strips = [slice(top, min(top + step, len(patch))) for top in range(0, len(patch), step)]
    if placement == "paper":
        for rows in strips:
            worn = masking.wear(_part(original, rows, texture), _moved(marks, rows), texture[None], softness)
            patch[rows] = to_8_bit(worn[0])
        return
    layers = _layers(texture[None], own[None], marks)

    @lru_cache(maxsize=1)  # a patch of one strip is looked at twice
    def sampled(number: int) -> tuple[Tensor, ...]:
        rows = strips[number]
        return _sampled(layers, _moved(marks, rows), rows.stop - rows.start, patch.shape[1])

    skin = _skin(original, strips, sampled, layers) if layers[:, 6].any() else None
    across = BESIDE * (marks[0, 15] - marks[0, 1])
    for number, rows in enumerate(strips):
        patch[rows] = to_8_bit(_cloned(_part(original, rows, layers), sampled(number), skin, rows, across)[0])


def _part(original: Tensor, rows: slice, like: Tensor) -> Tensor:
    """Of uint8 (1, 3, H, W), in [0, 1]."""
    return original[:, :, rows].to(like.device) / 255


def _moved(marks: Tensor, rows: slice) -> Tensor:
    return marks - marks.new_tensor([0, rows.start])


def _layers(texture: Tensor, own: Tensor, marks: Tensor) -> Tensor:
    """What the photo needs of canonical space, (1, 7, h', w'): the change, the wearer's own texture, the fade."""
    height, width = texture.shape[2:]
    scale = float((marks[0, 15] - marks[0, 1]).norm()) / (0.94 * width)
    change = masking.seamless(texture, own) - own
    layers = torch.cat([change, own, (1 - agreement(change)) * min(max(scale - CROP_SCALE, 0.0), 1.0)], 1)
    if scale <= CROP_SCALE:
        return layers
    factor = min(scale, LARGEST)
    size = (round(factor * height), round(factor * width))
    return F.interpolate(layers, size, mode="bicubic", align_corners=False)


def agreement(change: Tensor) -> Tensor:
    """How far the form under a change (B, 3, h, w) is still the wearer's: (B, 1, h, w), 1 where nothing changes."""
    scale = change.shape[2] / 72
    light = likeness.luminance(change)
    form = light - likeness.blurred(light, 5 * scale)
    strength = likeness.blurred(form.square(), 1.5 * scale).sqrt()
    return 1 / (1 + (strength / DISAGREEMENT) ** 4)


def _skin(
    original: Tensor, strips: Sequence[slice], sampled: Callable[[int], tuple[Tensor, ...]], layers: Tensor
) -> Tensor:
    """The photo's fine detail where it stays, without folds and edges: float16 (1, 3, H, W), half of a float's memory.

    Of the whole patch, as what fades in one strip is made good from others when the face leans.
    """
    skin = torch.empty(original.shape, dtype=torch.float16, device=layers.device)
    total, count = layers.new_zeros(()), layers.new_zeros(())
    for number, rows in enumerate(strips):
        photo = _part(original, rows, layers)
        _, own, fade, _, inside = sampled(number)
        detail = (photo - own) * inside * (1 - fade)
        total, count = total + detail.abs().sum(), count + 3 * inside.sum()
        skin[:, :, rows] = detail
    most = float(SKIN_DETAIL * total / count.clamp_min(1))
    return skin.clamp_(-most, most)


def _cloned(photo: Tensor, sampled: tuple[Tensor, ...], skin: Tensor | None, rows: slice, across: Tensor) -> Tensor:
    """These rows of the masked patch, (1, 3, h, W); skin: of the whole patch, if anything fades, `across` (2,) away."""
    change, own, fade, side, inside = sampled
    worn = photo + change
    if skin is not None and fade.any():
        dx, dy = (round(value) for value in across.tolist())
        row = torch.arange(rows.start, rows.stop, device=skin.device)
        left, right = (skin[:, :, (row + y) % skin.shape[2]].roll(x, 3).to(fade) for y, x in ((-dy, dx), (dy, -dx)))
        # In the middle both cheeks are mixed, so that their variance, not their mean, is kept.
        worn = worn + fade * (left * (1 - side).sqrt() + right * side.sqrt() - (photo - own) * inside)
    return worn.clamp(0, 1)


def _sampled(layers: Tensor, marks: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    """The layers at the photo's pixels, and two more: 0 on the face's left to 1 on its right; 1 where the mask is.

    All are 0 outside of the mask, but for the side.
    """
    placement = masking.place(marks, height, width)
    grid = placement.grid.to(layers.dtype)
    (top, left), (h, w) = placement.corner, grid.shape[1:3]
    around = (left, width - left - w, top, height - top - h)
    inside = masking.region(placement, height, width).to(layers.dtype)
    sampled = F.grid_sample(layers, grid, padding_mode="border", align_corners=False)
    change, own, fade = F.pad(sampled, around).mul_(inside).split([3, 3, 1], 1)
    side = F.pad((grid[None, ..., 0] / 0.4 + 0.5).clamp(0, 1), around)
    return change, own, fade, side, inside
