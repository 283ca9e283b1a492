"""What the networks make of a masked face, from its row of the table: in words, and as a place on a bar."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Row = dict[str, Any]


class Verdict(NamedTuple):
    """Of one network on one masked face."""

    network: str
    words: str  # what it says
    failed: bool  # the mask did not do what it is for: the wearer is recognised, or a mask reported
    share: float  # in [0, 1] along a bar whose middle is the threshold
    measure: str  # of what the numbers are
    value: str
    threshold: str


def verdicts(row: Row) -> list[Verdict]:
    """Recognisers, then detectors; none where no face is found any more."""
    found = []
    for name in names(row, "similarity_"):
        similarity, threshold = float(row[f"similarity_{name}"]), float(row[f"threshold_{name}"])
        same = similarity >= threshold
        found.append(
            Verdict(
                name, "same person" if same else "another person", same,
                _within(0.5 + 0.5 * (similarity - threshold) / (1 - threshold)),
                "similarity", f"{similarity:.2f}", f"{threshold:.2f}",
            )
        )  # fmt: skip
    for name in names(row, "mask_logit_after_"):
        logit = float(row[f"mask_logit_after_{name}"])
        found.append(
            Verdict(
                name, "mask reported" if logit > 0 else "no mask reported", logit > 0, probability(logit),
                "mask", f"{100 * probability(logit):.0f} %", "50 %",
            )
        )  # fmt: skip
    return found


def names(row: Row, prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in row if key.startswith(prefix)]


def probability(logit: float) -> float:
    """The logistic function, for any logit."""
    return 0.5 * (1 + math.tanh(logit / 2))


def _within(share: float) -> float:
    return min(max(share, 0.0), 1.0)


RECOGNISED, REPORTED, LOST, WORKED = "recognised", "mask reported", "face lost", "nothing went wrong"
NOT_MEASURED = "not measured"
OUTCOMES = (RECOGNISED, REPORTED, LOST, WORKED, NOT_MEASURED)  # as pictures are sorted: what went wrong first


def outcome(row: Row) -> str:
    """The worst that happened to a masked face, one of OUTCOMES."""
    if "face_found_after" not in row:
        return NOT_MEASURED
    if not row["face_found_after"]:
        return LOST
    failed = {verdict.words for verdict in verdicts(row) if verdict.failed}
    return RECOGNISED if "same person" in failed else REPORTED if failed else WORKED


def severity(row: Row) -> tuple[int, float]:
    """A key to sort masked faces by, the worst first: their outcome, then how far beyond its threshold a network is."""
    return OUTCOMES.index(outcome(row)), -max((verdict.share for verdict in verdicts(row)), default=0.0)
