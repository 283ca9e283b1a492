"""Masks on photos of any size: painted on the aligned crop, worn at the photo's own resolution."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import likeness, masking
from gan_mask.faces import to_8_bit
from gan_mask.masking import PlacementName

PIXELS = 2_000_000  # of the photo that are worked on at once, which bounds the memory
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
    aligned crop. No pixel outside of the mask changes. Seamless placement adds to the photo what would change in the
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
    layers = _layers(texture[None], own[None], marks) if placement == "seamless" else None
    step = max(1, PIXELS // patch.shape[1])
    for top in range(0, len(patch), step):
        bottom = min(top + step, len(patch))
        if layers is None:
            strip = original[:, :, top:bottom].to(texture.device) / 255
            worn = masking.wear(strip, _moved(marks, top), texture[None], softness)
        else:
            worn = _cloned(original, marks, layers, top, bottom)
        patch[top:bottom] = to_8_bit(worn[0])


def _moved(marks: Tensor, top: int) -> Tensor:
    return marks - marks.new_tensor([0, top])


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


def _cloned(original: Tensor, marks: Tensor, layers: Tensor, top: int, bottom: int) -> Tensor:
    """Rows `top` to `bottom` of the masked patch; original uint8 (1, 3, H, W)."""
    across = BESIDE * (marks[0, 15] - marks[0, 1])
    dx, dy = (round(value) for value in across.tolist())
    first, last = max(top - abs(dy), 0), min(bottom + abs(dy), original.shape[2])  # skin comes from other rows, too
    photo = original[:, :, first:last].to(layers.device) / 255
    change, own, fade, side, inside = _sampled(layers, _moved(marks, first), *photo.shape[2:])
    detail = (photo - own) * inside
    worn = photo + change
    if fade.any():
        source = detail * (1 - fade)
        most = SKIN_DETAIL * source.abs().sum() / (3 * inside.sum()).clamp_min(1)
        source = source.clamp(-most, most)
        left, right = source.roll((dy, dx), (2, 3)), source.roll((-dy, -dx), (2, 3))
        # In the middle both cheeks are mixed, so that their variance, not their mean, is kept.
        worn = worn + fade * (left * (1 - side).sqrt() + right * side.sqrt() - detail)
    return worn[:, :, top - first : bottom - first].clamp(0, 1)


def _sampled(layers: Tensor, marks: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    """The layers at the photo's pixels, and two more: 0 on the face's left to 1 on its right; 1 where the mask is.

    All are 0 outside of the mask.
    """
    empty = layers.new_zeros(1, layers.shape[1] + 2, height, width)
    ramp = ((torch.linspace(0, 1, layers.shape[3]).to(layers) - 0.5) / 0.2 + 0.5).clamp(0, 1)
    side = ramp.expand(1, 1, layers.shape[2], -1)
    sampled = masking.lay(empty, marks, torch.cat([layers, side, torch.ones_like(side)], 1))
    return sampled.split([3, 3, 1, 1, 1], 1)
