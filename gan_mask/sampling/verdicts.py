"""What the networks make of a masked face, from its row of the table: in words, and as a place on a bar."""

from __future__ import annotations

import math
from typing import NamedTuple

from gan_mask.sampling.masker import Row


class Verdict(NamedTuple):
    """Of one network on one masked face."""

    network: str
    words: str  # what it says
    figures: str  # the number that it says so by, and its threshold
    failed: bool  # the mask did not do what it is for: the wearer is recognised, or a mask reported
    share: float  # in [0, 1] along a bar whose middle is the threshold


def verdicts(row: Row) -> list[Verdict]:
    """Recognisers, then detectors; none where no face is found any more."""
    found = []
    for name in names(row, "similarity_"):
        similarity, threshold = float(row[f"similarity_{name}"]), float(row[f"threshold_{name}"])
        same = similarity >= threshold
        found.append(
            Verdict(
                name, "same person" if same else "another person",
                f"similarity {similarity:.2f}, threshold {threshold:.2f}", same,
                _within(0.5 + 0.5 * (similarity - threshold) / (1 - threshold)),
            )
        )  # fmt: skip
    for name in names(row, "mask_logit_after_"):
        logit = float(row[f"mask_logit_after_{name}"])
        percent = f"{100 * probability(logit):.0f} %"
        before = f"{100 * probability(float(row[f'mask_logit_before_{name}'])):.0f} %"
        found.append(
            Verdict(
                name, "mask reported" if logit > 0 else "no mask reported",
                f"mask {percent} (unmasked {before}), threshold 50 %", logit > 0, probability(logit),
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


LOST, RECOGNISED, REPORTED, WORKED = "face lost", "recognised", "mask reported", "nothing went wrong"
OUTCOMES = (RECOGNISED, REPORTED, LOST, WORKED)  # as pictures are sorted: what went wrong first


def outcome(row: Row) -> str:
    """The worst that happened to a masked face, one of OUTCOMES."""
    if not row["face_found_after"]:
        return LOST
    failed = {verdict.words for verdict in verdicts(row) if verdict.failed}
    return RECOGNISED if "same person" in failed else REPORTED if failed else WORKED
