"""The 68 landmarks: names, the mean face, and similarity alignment.

Landmarks are (x, y) in pixels, pixel-centre convention: (0, 0) is the centre of the top-left pixel.
Order: the iBUG 300-W scheme that dlib's predictor uses (left and right as seen in the image).
"""

from __future__ import annotations

import torch
from torch import Tensor

FRAMING = (160, 0.375)  # size in pixels and margin of the crops that embedders and detectors are shown

JAW, BROWS, NOSE = range(0, 17), range(17, 27), range(27, 36)
LEFT_EYE, RIGHT_EYE, MOUTH = range(36, 42), range(42, 48), range(48, 68)

# Landmark order after a horizontal flip.
FLIP = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
)  # fmt: skip

# Generalised Procrustes mean of dlib's landmarks on LFW, made symmetric. Unit: the jaw's width;
# origin: the chin's lowest point; x to the right, y down.
MEAN_FACE = torch.tensor([
    (-0.5000, -0.8015), (-0.4953, -0.6698), (-0.4834, -0.5384), (-0.4596, -0.4089),
    (-0.4126, -0.2871), (-0.3368, -0.1799), (-0.2392, -0.0912), (-0.1278, -0.0207),
    (0.0000, 0.0000), (0.1278, -0.0207), (0.2392, -0.0912), (0.3368, -0.1799),
    (0.4126, -0.2871), (0.4596, -0.4089), (0.4834, -0.5384), (0.4953, -0.6698),
    (0.5000, -0.8015), (-0.3914, -0.8976), (-0.3333, -0.9540), (-0.2490, -0.9733),
    (-0.1604, -0.9628), (-0.0780, -0.9297), (0.0780, -0.9297), (0.1604, -0.9628),
    (0.2490, -0.9733), (0.3333, -0.9540), (0.3914, -0.8976), (0.0000, -0.8350),
    (0.0000, -0.7534), (0.0000, -0.6718), (0.0000, -0.5873), (-0.0982, -0.5257),
    (-0.0515, -0.5076), (0.0000, -0.4925), (0.0515, -0.5076), (0.0982, -0.5257),
    (-0.2919, -0.8151), (-0.2407, -0.8440), (-0.1805, -0.8443), (-0.1264, -0.8088),
    (-0.1834, -0.7981), (-0.2427, -0.7977), (0.1264, -0.8088), (0.1805, -0.8443),
    (0.2407, -0.8440), (0.2919, -0.8151), (0.2427, -0.7977), (0.1834, -0.7981),
    (-0.1925, -0.3548), (-0.1238, -0.3905), (-0.0524, -0.4059), (0.0000, -0.3941),
    (0.0524, -0.4059), (0.1238, -0.3905), (0.1925, -0.3548), (0.1262, -0.2872),
    (0.0562, -0.2583), (0.0000, -0.2529), (-0.0562, -0.2583), (-0.1262, -0.2872),
    (-0.1628, -0.3529), (-0.0528, -0.3665), (0.0000, -0.3614), (0.0528, -0.3665),
    (0.1628, -0.3529), (0.0538, -0.3201), (0.0000, -0.3140), (-0.0538, -0.3201),
])  # fmt: skip


def frame(size: int, margin: float) -> Tensor:
    """The mean face in a square crop. Returns (68, 2) pixels.

    size: side of the crop in pixels.
    margin: free space left and right of the jaw, each as a fraction of the jaw's width; the space
        below the chin is 0.46 of it, so that margin 0.375 is the framing of LFW's centre 160 px.
    """
    scale = size / (1 + 2 * margin)
    corner = MEAN_FACE.new_tensor([0.5 + margin, 1 + 1.54 * margin])
    return (MEAN_FACE + corner) * scale - 0.5


def points5(landmarks: Tensor) -> Tensor:
    """Eye centres, nose tip, mouth corners. (..., 68, 2) -> (..., 5, 2)."""
    left, right = landmarks[..., 36:42, :].mean(-2), landmarks[..., 42:48, :].mean(-2)
    return torch.stack([left, right, landmarks[..., 30, :], landmarks[..., 48, :], landmarks[..., 54, :]], -2)


def fit_similarity(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares rotation, one scale and shift (no reflection) with M @ (x, y, 1) ~ target.

    source (..., N, 2), target (..., N, 2) -> M (..., 2, 3). Umeyama 1991, in closed form for 2-D.
    """
    source_mean, target_mean = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    s, t = source - source_mean, target - target_mean
    variance = (s * s).sum((-2, -1)).clamp_min(1e-12)
    a = (s * t).sum((-2, -1)) / variance
    b = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / variance
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], -2)
    shift = target_mean.squeeze(-2) - (linear @ source_mean.squeeze(-2).unsqueeze(-1)).squeeze(-1)
    return torch.cat([linear, shift.unsqueeze(-1)], -1)


def transform(points: Tensor, matrix: Tensor) -> Tensor:
    """Apply M (..., 2, 3) to points (..., N, 2)."""
    return points @ matrix[..., :2].transpose(-1, -2) + matrix[..., 2].unsqueeze(-2)


def invert(matrix: Tensor) -> Tensor:
    """Inverse of affine matrices (..., 2, 3). Where there is none: an error on the CPU, elsewhere no finite numbers.

    An error would have to be waited for.
    """
    linear = torch.linalg.inv_ex(matrix[..., :2], check_errors=matrix.device.type == "cpu").inverse
    return torch.cat([linear, -(linear @ matrix[..., 2:])], -1)


def flip(landmarks: Tensor, width: int) -> Tensor:
    """Landmarks (..., 68, 2) of the horizontally flipped image of `width` pixels."""
    mirrored = landmarks[..., list(FLIP), :]
    return torch.stack([width - 1 - mirrored[..., 0], mirrored[..., 1]], -1)
