"""Intervals over identities: photos of one person are not independent, so people are drawn, not photos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Cell = dict[str, float | int | None]  # rate, low, high, probes

NOTHING: Cell = {"rate": None, "low": None, "high": None, "probes": 0}


def interval(values: np.ndarray, identities: np.ndarray, draws: int = 2000, seed: int = 0, rate: bool = True) -> Cell:
    """Mean of `values` (P,), NaN where a probe does not count, with its percentile 95 % interval.

    identities (P,): whose probe it is. The interval is that of the ratio of sums, so that people with more
    probes weigh more, as they do in the mean. Where every value is 0, or every one 1, all draws are alike; the interval
    is then the exact binomial one (Clopper and Pearson 1934) of as many trials as there are people. rate: whether the
    values are outcomes, 0 or 1; of a distance or a difference that happens to be 0 everywhere no trial tells anything.
    """
    counts = ~np.isnan(values)
    if not counts.any():
        return dict(NOTHING)
    people, person = np.unique(identities[counts], return_inverse=True)
    total, size = np.bincount(person, values[counts]), np.bincount(person)
    chosen = np.random.default_rng(seed).integers(len(people), size=(draws, len(people)))
    means = total[chosen].sum(1) / size[chosen].sum(1)
    cell = _cell(float(total.sum() / size.sum()), means, int(counts.sum()))
    unsure = 1 - 0.025 ** (1 / len(people))
    if rate and (values[counts] == 0).all():
        cell["high"] = unsure
    if rate and (values[counts] == 1).all():
        cell["low"] = 1 - unsure
    return cell


def of_statistic(
    statistic: Callable[[np.ndarray], float], identities: np.ndarray, draws: int = 500, seed: int = 0
) -> Cell:
    """A statistic of rows that is no mean, such as an equal error rate: `statistic(rows)` of resampled row numbers.

    identities (P,) of the rows. Percentile 95 % interval; every draw calls `statistic` once.
    """
    if not len(identities):
        return dict(NOTHING)
    order = np.argsort(identities, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(identities[order])) + 1)
    random = np.random.default_rng(seed)
    values = np.array(
        [
            statistic(np.concatenate([groups[i] for i in random.integers(len(groups), size=len(groups))]))
            for _ in range(draws)
        ]
    )
    return _cell(float(statistic(np.arange(len(identities)))), values, len(identities))


def of_auc(scores: np.ndarray, labels: np.ndarray, identities: np.ndarray, draws: int) -> Cell:
    """Area under the ROC curve of scores (P,) for labels (P,) of 0 and 1; a draw without one of them counts as 0.5."""
    from sklearn.metrics import roc_auc_score

    def auc(rows: np.ndarray) -> float:
        return float(roc_auc_score(labels[rows], scores[rows])) if len(set(labels[rows])) > 1 else 0.5

    return of_statistic(auc, identities, draws)


def shown(cell: Cell, factor: float = 100, digits: int = 1) -> str:
    """12.3 [10.1, 14.5], or a dash where nothing was measured."""
    if cell["rate"] is None:
        return "-"
    rate, low, high = (f"{factor * float(cell[key] or 0):.{digits}f}" for key in ("rate", "low", "high"))
    return f"{rate} [{low}, {high}]"


def _cell(value: float, draws: np.ndarray, probes: int) -> Cell:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"rate": value, "low": float(low), "high": float(high), "probes": probes}
