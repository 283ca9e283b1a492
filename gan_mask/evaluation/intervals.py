"""Intervals over identities: photos of one person are not independent, so people are drawn, not photos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    def mean(total: np.ndarray, size: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis) / size.sum(axis)

    value = float(mean(total, size))
    if rate and value in (0, 1) and (values[counts] == value).all():
        from scipy.stats import binomtest

        low, high = binomtest(int(value) * len(people), len(people)).proportion_ci()
    else:
        low, high = _percentiles((total, size), mean, draws, seed)
    return {"rate": value, "low": float(low), "high": float(high), "probes": int(counts.sum())}


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

    def of_people(drawn: np.ndarray) -> float:
        return statistic(np.concatenate([groups[i] for i in drawn]))

    low, high = _percentiles((np.arange(len(groups)),), of_people, draws, seed)
    value = float(statistic(np.arange(len(identities))))
    return {"rate": value, "low": low, "high": high, "probes": len(identities)}


def of_auc(scores: np.ndarray, labels: np.ndarray, identities: np.ndarray, draws: int) -> Cell:
    """Area under the ROC curve of scores (P,) for labels (P,) of 0 and 1; a draw without one of them counts as 0.5."""
    from sklearn.metrics import roc_auc_score

    def auc(rows: np.ndarray) -> float:
        return float(roc_auc_score(labels[rows], scores[rows])) if len(set(labels[rows])) > 1 else 0.5

    return of_statistic(auc, identities, draws)


def _percentiles(
    people: tuple[np.ndarray, ...], statistic: Callable[..., Any], draws: int, seed: int
) -> tuple[float, float]:
    """95 % interval of a statistic of arrays with a row per person, whom one draws with replacement."""
    from scipy.stats import bootstrap

    if len(people[0]) == 1:  # everybody that can be drawn
        value = float(statistic(*people))
        return value, value
    found = bootstrap(
        people, statistic, paired=True, n_resamples=draws, method="percentile", random_state=np.random.default_rng(seed)
    ).confidence_interval
    return float(found.low), float(found.high)
