"""From re-detected faces to rates: who dodged, who was flagged, and the tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gan_mask.evaluation.intervals import Cell, interval
from gan_mask.evaluation.redetection import Redetected

Sets = Mapping[str, tuple[Sequence[str], Sequence[str]]]  # title -> embedders, detectors
NET = " net of "  # in the name of a difference of two rates
BASELINES = ("plain", "dm", "dm-seamless")  # benign: what a mask does without being made against anybody


@dataclass
class Seen:
    """What the networks make of one method's files, P rows each."""

    found: np.ndarray  # bool (P,): MTCNN finds a face in the file
    found_dlib: np.ndarray  # bool (P,): dlib's HOG detector does
    similarity: Mapping[str, np.ndarray]  # embedder -> cosine to the mate (P,), NaN where no face is found
    mask_logit: Mapping[str, np.ndarray]  # detector -> (P,)
    face_logit: Mapping[str, np.ndarray]

    def rows(self, chosen: np.ndarray) -> Seen:
        """The probes at which `chosen` (P,) is true."""
        parts = (
            {name: v[chosen] for name, v in m.items()} for m in (self.similarity, self.mask_logit, self.face_logit)
        )
        return Seen(self.found[chosen], self.found_dlib[chosen], *parts)


def seen_of(r: Redetected, mates: Mapping[str, np.ndarray]) -> Seen:
    return Seen(r.found, r.found_dlib, r.similarity(mates), r.mask_logit, r.face_logit)


def measures(embedders: Sequence[str], detectors: Sequence[str]) -> list[str]:
    """Names of what `outcomes` measures."""
    joint = ["joint success"] if embedders and detectors else []
    found = ["face found", "face found dlib"]
    return [*found, *(f"dodging {e}" for e in embedders), *(f"mask detection {d}" for d in detectors), *joint]


def outcomes(
    seen: Seen, clean: Seen, thresholds: Mapping[str, float], embedders: Sequence[str], detectors: Sequence[str]
) -> dict[str, np.ndarray]:
    """Per measure an array (P,) of 1, 0, or NaN where the probe does not count."""
    result = {"face found": seen.found.astype(float), "face found dlib": seen.found_dlib.astype(float)}
    dodged_all, accepted_all = seen.found.copy(), np.ones(len(seen.found), bool)
    for name in embedders:
        accepted = clean.found & (clean.similarity[name] >= thresholds[name])
        dodged = seen.found & (seen.similarity[name] < thresholds[name])
        result[f"dodging {name}"] = np.where(accepted, dodged, np.nan)
        accepted_all &= accepted
        dodged_all &= dodged
    unseen_all = seen.found.copy()
    for name in detectors:
        result[f"mask detection {name}"] = np.where(seen.found, seen.mask_logit[name] > 0, np.nan)
        unseen_all &= (seen.mask_logit[name] <= 0) & (seen.face_logit[name] > 0)
    if embedders and detectors:
        result["joint success"] = np.where(accepted_all, dodged_all & unseen_all, np.nan)
    return result


def table(
    seen: Mapping[str, Seen],
    thresholds: Mapping[str, float],
    networks: tuple[Sequence[str], Sequence[str]],
    identities: np.ndarray,
) -> dict[str, dict[str, Cell]]:
    """method -> measure -> cell, for one set of networks at one FAR. Dodging also net of each benign baseline."""
    values = {name: outcomes(s, seen["none"], thresholds, *networks) for name, s in seen.items()}
    for name, row in values.items():
        for baseline in BASELINES:
            if baseline in values and name not in ("none", *BASELINES):
                for embedder in networks[0]:
                    key = f"dodging {embedder}"
                    row[f"{key}{NET}{baseline}"] = row[key] - values[baseline][key]
    return {
        name: {m: interval(v, identities, rate=NET not in m) for m, v in row.items()} for name, row in values.items()
    }


def transfer(
    seen: Mapping[str, Seen], thresholds: Mapping[str, float], sets: Sets, identities: np.ndarray
) -> dict[str, dict[str, dict[str, Cell]]]:
    """method -> embedder -> detector -> joint success against these two alone."""
    embedders = [name for e, _ in sets.values() for name in e]
    detectors = [name for _, d in sets.values() for name in d]
    return {
        method: {
            e: {
                d: interval(outcomes(s, seen["none"], thresholds, [e], [d])["joint success"], identities)
                for d in detectors
            }
            for e in embedders
        }
        for method, s in seen.items()
    }


def joint_under(
    changed: Mapping[str, Mapping[str, Seen]],
    clean: Seen,
    thresholds: Mapping[str, float],
    networks: tuple[Sequence[str], Sequence[str]],
    identities: np.ndarray,
) -> dict[str, dict[str, Cell]]:
    """method -> change -> joint success among the probes accepted when clean and unchanged."""
    return {
        method: {
            change: interval(outcomes(s, clean, thresholds, *networks)["joint success"], identities)
            for change, s in row.items()
        }
        for method, row in changed.items()
    }
