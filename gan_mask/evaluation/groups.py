"""Rates by head pose and skin tone: who is behind an average. Both are estimated from the unmasked probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

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


def estimates(photos: PreparedSet, probes: Probes) -> dict[str, np.ndarray]:
    """Columns of probes.csv: absolute yaw and ITA of every probe, degrees, (P,)."""
    turn, tone = [], []
    for faces, landmarks in batches(photos, probes.index, 64):
        turn += turn_of(landmarks).abs().tolist()
        tone += [tone_of(face, points) for face, points in zip(faces, landmarks, strict=True)]
    return {"turn_degrees": np.array(turn), "ita_degrees": np.array(tone)}


def table(
    seen: Mapping[str, rates.Seen],
    thresholds: Mapping[str, float],
    networks: tuple[Sequence[str], Sequence[str]],
    identities: np.ndarray,
    estimated: Mapping[str, np.ndarray],
) -> dict[str, dict[str, object]]:
    """group -> its probes, its identities, and the rates of `rates.table` among them. Empty groups are left out."""
    result: dict[str, dict[str, object]] = {}
    for column, limits in (("turn_degrees", TURN), ("ita_degrees", TONE)):
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
