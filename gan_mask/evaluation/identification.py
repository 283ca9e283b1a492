"""Identification (1:N): rank of the mate among distractors (MegaFace, Kemelmacher-Shlizerman et al. 2016), open set."""

from __future__ import annotations

import numpy as np

from gan_mask.errors import GanMaskError


def ranks(similarity: np.ndarray, mate: np.ndarray) -> np.ndarray:
    """Rank (P,) of each probe's mate in its gallery, 1 is best; ties count against the mate.

    similarity (P, G): probes against gallery; mate (P,): the mate's column. A probe without a score (NaN, no
    face found) ranks last.
    """
    own = similarity[np.arange(len(similarity)), mate][:, None]
    rank = (similarity >= own).sum(1)
    return np.where(np.isnan(own[:, 0]), similarity.shape[1], rank)


def fnir(top: np.ndarray, right: np.ndarray, nonmated_top: np.ndarray, fpir: float) -> tuple[float, float]:
    """False-negative identification rate at a false-positive identification rate, and its threshold (NIST FRVT 1:N).

    top (P,): each mated probe's best gallery score; right (P,): whether that is its mate's; nonmated_top (Q,): best
    scores of probes whose person is not in the gallery. A mated probe is missed when its best score is below
    the threshold, or another person's. Raises GanMaskError with fewer than 10 / fpir non-mated probes.
    """
    if len(nonmated_top) * fpir < 10:
        raise GanMaskError(f"FPIR {fpir:g} needs {10 / fpir:.0f} probes of people who are not in the gallery at least")
    allowed = int(np.floor(len(nonmated_top) * fpir + 1e-9))
    at = float(np.nextafter(np.sort(nonmated_top)[-allowed - 1], np.inf))
    return float(1 - (right & (top >= at)).mean()), at
