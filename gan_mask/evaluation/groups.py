"""Rates by head pose, skin tone, expression and resolution: what is behind an average.

All are estimated from the unmasked probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import likeness
from gan_mask.data import PreparedSet
from gan_mask.evaluation import rates
from gan_mask.evaluation.protocol import Probes, batches

NOSE_DEPTH = 0.6  # of half the distance between the outer eye corners: how far the tip stands out before them
PATCH = 4  # px around the middle of a cheek

# Of each measure the groups' upper limits, degrees: a face belongs to the first one that it lies below.
TURN = {"head turned under 15°": 15.0, "15 to 30°": 30.0, "30° and more": np.inf}
# Chardon et al.'s (1991) six classes in pairs: few people are very light (> 55°) or dark (< -30°).
TONE = {
    "skin brown to dark, ITA under 10°": 10.0,
    "intermediate to tan, 10 to 41°": 41.0,
    "light, 41° and more": np.inf,
}
MOUTH = {"mouth closed": 0.05, "mouth open": 0.2, "mouth wide open": np.inf}  # of the distance between the eyes
DETAIL = {"detail of less than 100 px": 100.0, "100 to 119 px": 120.0, "120 px and more": np.inf}
COLUMNS = {"turn_degrees": TURN, "ita_degrees": TONE, "mouth_opening": MOUTH, "detail_px": DETAIL}
SIZES = tuple(range(24, 160, 4))  # px that are tried
LOSS = 0.006  # of [0, 1]: what the picture may lose, root of the mean square


def turn_of(landmarks: Tensor) -> Tensor:
    """Estimated yaw (B,), degrees, from landmarks (B, 68, 2); positive: the nose points to the picture's right.

    A weak-perspective head: turning it moves the nose's tip off the middle of the outer eye corners by
    NOSE_DEPTH * tan(yaw) of half their distance. Rotation in the picture and size do not matter.
    """
    left, right, tip = landmarks[:, 36], landmarks[:, 45], landmarks[:, 30]
    across = right - left
    offset = 2 * ((tip - (left + right) / 2) * across).sum(1) / across.square().sum(1).clamp_min(1e-9)
    return torch.rad2deg(torch.atan(offset / NOSE_DEPTH))


def tone_of(face: Tensor, landmarks: Tensor) -> float:
    """Individual typology angle (Chardon et al. 1991), degrees, of a face (3, S, S) in [0, 1] with landmarks (68, 2).

    arctan((L* - 50) / b*) of the median colour of both cheeks. It depends on the photo's light as on the skin.
    """
    from skimage.color import rgb2lab

    side = face.shape[-1]
    pixels = []
    for jaw, nostril in ((2, 31), (14, 35)):
        x, y = ((landmarks[jaw] + landmarks[nostril]) / 2).round().int().clamp(PATCH, side - 1 - PATCH).tolist()
        pixels.append(face[:, y - PATCH : y + PATCH + 1, x - PATCH : x + PATCH + 1].reshape(3, -1))
    colour = torch.cat(pixels, 1).median(1).values
    lightness, _, blue_to_yellow = rgb2lab(colour.double().numpy()[None, None])[0, 0]
    return float(np.degrees(np.arctan2(lightness - 50, max(blue_to_yellow, 1e-6))))


def mouth_opening(landmarks: Tensor) -> Tensor:
    """Gap between the lips (B,), of the distance between the eyes, from landmarks (B, 68, 2)."""
    return likeness.geometry(landmarks)[:, list(likeness.GEOMETRY).index("mouth opening")]


def detail_of(face: Tensor) -> float:
    """The size, px, that a face (3, S, S) in [0, 1] can be shrunk to and enlarged again without a visible loss.

    The smallest of SIZES at which its luminance changes by no more than LOSS, or S: about the size that a small photo
    had before it was enlarged to the crop's, less where it is blurred.
    """
    light = likeness.luminance(face[None])
    side = face.shape[-1]
    for size in SIZES:
        small = F.interpolate(light, (size, size), mode="bicubic", antialias=True, align_corners=False)
        again = F.interpolate(small, (side, side), mode="bicubic", align_corners=False)
        if (again - light).square().mean().sqrt() <= LOSS:
            return float(size)
    return float(side)


def estimates(photos: PreparedSet, probes: Probes) -> dict[str, np.ndarray]:
    """Columns of probes.csv, (P,): absolute yaw and ITA of every probe, degrees; mouth's opening; detail, px."""
    values: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for faces, landmarks in batches(photos, probes.index, 64):
        values["turn_degrees"] += turn_of(landmarks).abs().tolist()
        values["ita_degrees"] += [tone_of(face, points) for face, points in zip(faces, landmarks, strict=True)]
        values["mouth_opening"] += mouth_opening(landmarks).tolist()
        values["detail_px"] += [detail_of(face) for face in faces]
    return {column: np.array(value) for column, value in values.items()}


def table(
    seen: Mapping[str, rates.Seen],
    thresholds: Mapping[str, float],
    networks: tuple[Sequence[str], Sequence[str]],
    identities: np.ndarray,
    estimated: Mapping[str, np.ndarray],
) -> dict[str, dict[str, object]]:
    """group -> its probes, its identities, and the rates of `rates.table` among them. Empty groups are left out."""
    result: dict[str, dict[str, object]] = {}
    for column, limits in COLUMNS.items():
        group = np.digitize(estimated[column], list(limits.values())[:-1])
        for i, label in enumerate(limits):
            rows = group == i
            if rows.any():
                inside = {method: s.rows(rows) for method, s in seen.items()}
                result[label] = {
                    "probes": int(rows.sum()),
                    "identities": len(set(identities[rows])),
                    "rates": rates.table(inside, thresholds, networks, identities[rows]),
                }
    return result
