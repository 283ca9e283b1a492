"""Verification (1:1): TAR, EER, ROC, and the accuracy of the LFW protocol.

Scores are cosines; a pair is accepted when its score is at or above the threshold.
"""

from __future__ import annotations

import numpy as np


def accepted(scores: np.ndarray, at: float) -> np.ndarray:
    """Which of the scores (N,) are accepted at the threshold `at`; NaN scores (no face found) are not."""
    return scores >= at


def eer(mated: np.ndarray, impostor: np.ndarray) -> float:
    """Equal error rate: where false rejects and false accepts are equally frequent, between two scores linearly."""
    far, hit = _curve(mated, impostor)
    miss = 1 - hit
    i = int(np.argmax(far >= miss))  # the first point at or beyond the crossing; the curve ends at far 1, miss 0
    if i == 0:
        return float(far[0])
    rise, drop = far[i] - far[i - 1], miss[i - 1] - miss[i]
    share = (miss[i - 1] - far[i - 1]) / (rise + drop)
    return float(far[i - 1] + share * rise)


def roc(mated: np.ndarray, impostor: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """False-accept and true-accept rates, at `points` false-accept rates evenly spaced in their logarithm.

    From one accepted impostor pair to all of them; both arrays rise.
    """
    scores = np.sort(impostor)[::-1]
    accepted = np.unique(np.geomspace(1, len(scores), points).round().astype(int))
    ordered = np.sort(np.nan_to_num(mated, nan=-np.inf))
    at = scores[accepted - 1]
    far = np.searchsorted(-scores, -at, side="right") / len(scores)  # ties are accepted together
    hit = 1 - np.searchsorted(ordered, at, side="left") / len(ordered)
    return far, hit


def accuracy(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """The LFW protocol: mean and standard deviation over folds of the share of pairs decided rightly.

    scores (N,), same (N,) bool, folds (N,): each fold is decided with the threshold that is best on the others.
    """
    rates = []
    for fold in np.unique(folds):
        test = folds == fold
        at = _best_threshold(scores[~test], same[~test])
        rates.append(((scores[test] >= at) == same[test]).mean())
    return float(np.mean(rates)), float(np.std(rates))


def _best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    # right[k]: accepting the k highest scores
    right = np.concatenate([[0], np.cumsum(same[order])]) + np.concatenate(
        [[(~same).sum()], (~same).sum() - np.cumsum(~same[order])]
    )
    ordered = scores[order]
    cut = np.concatenate([[True], ordered[1:] < ordered[:-1], [True]])  # equal scores are accepted together
    k = int(np.argmax(np.where(cut, right, -1)))
    if k == 0:
        return np.inf
    return float(ordered[k - 1] if k == len(ordered) else (ordered[k - 1] + ordered[k]) / 2)


def _curve(mated: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FAR and TAR at every distinct score, from accepting nothing to accepting everything."""
    mated, impostor = (np.nan_to_num(x, nan=-np.inf) for x in (mated, impostor))
    at = np.unique(np.concatenate([mated, impostor]))[::-1]
    rates = [1 - np.searchsorted(np.sort(x), at, side="left") / len(x) for x in (impostor, mated)]
    far, hit = (np.concatenate([[0.0], rate]) for rate in rates)
    return far, hit
