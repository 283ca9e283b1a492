"""Rates at the thresholds that a line of papers uses, beside those at our own calibration (`--protocol`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gan_mask.errors import GanMaskError
from gan_mask.evaluation import rates
from gan_mask.evaluation.clean import Clean
from gan_mask.evaluation.intervals import Cell
from gan_mask.pretrained.thresholds import PUBLISHED

APART = 2.0  # times the FAR that a threshold was published for: beyond it a note warns
Table = dict[str, dict[str, Cell]]  # method -> measure -> cell


def thresholds_of(protocol: str, embedders: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of those recognisers that say which of its networks they are: FAR -> cosine. GanMaskError if none does."""
    known = PUBLISHED[protocol]
    found = {name: known[e.published[protocol]] for name, e in embedders.items() if protocol in e.published}
    if not found:
        raise GanMaskError(
            f"--protocol {protocol}: it has thresholds for {', '.join(known)}, and none of {', '.join(embedders)} says "
            f'that it is one of these; a sidecar does with "published": {{"{protocol}": "{min(known)}"}}'
        )
    return found


def figures_of(
    protocol: str,
    thresholds: Mapping[str, Mapping[str, float]],
    calibration: Mapping[str, dict[str, Any]],
    embedders: Mapping[str, Any],
    clean: Clean,
    seen: Mapping[str, rates.Seen],
    sets: rates.Sets,
    identities: np.ndarray,
) -> tuple[dict[str, Any], list[str]]:
    """Thresholds with the FAR that they have here, rates at them and at ours, and notes on where the two differ.

    Only of the networks that have published thresholds; joint success is against these and all detectors of their set.
    """
    notes = [
        f"{name}: none of {', '.join(PUBLISHED[protocol])}, so --protocol {protocol} has no threshold for it"
        for name in embedders
        if name not in thresholds
    ]
    cosines: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, published in thresholds.items():
        scores, ours = clean.impostor_scores(name), calibration[name]["thresholds"]
        cosines[name] = {}
        for far, cosine in published.items():
            here = float((scores >= cosine).mean())
            cosines[name][far] = {"published": cosine, "ours": ours.get(far), "far_here": here}
            if not float(far) / APART <= here <= float(far) * APART:
                own = f"ours is {ours[far]:.4f}" if far in ours else "we have none"
                notes.append(
                    f"{name}: the threshold published for FAR {far}, {cosine:.4f}, accepts {100 * here:.3g} % of the "
                    f"clean pairs of strangers here; {own}. Rates at the two do not compare"
                )
    return {
        "protocol": protocol,
        "networks": {name: embedders[name].published[protocol] for name in thresholds},
        "thresholds": cosines,
        "rates": {
            title: {
                far: _at_both(thresholds, calibration, far, seen, (names, detectors), identities)
                for far in next(iter(thresholds.values()))
            }
            for title, (some, detectors) in sets.items()
            if (names := [name for name in some if name in thresholds])
        },
    }, notes


def _at_both(
    thresholds: Mapping[str, Mapping[str, float]],
    calibration: Mapping[str, dict[str, Any]],
    far: str,
    seen: Mapping[str, rates.Seen],
    networks: tuple[list[str], Any],
    identities: np.ndarray,
) -> dict[str, Table]:
    """Whose thresholds -> table: "published", and "ours" where all of these networks are calibrated at this FAR."""
    at = {"published": {name: thresholds[name][far] for name in networks[0]}}
    if all(far in calibration[name]["thresholds"] for name in networks[0]):
        at["ours"] = {name: calibration[name]["thresholds"][far] for name in networks[0]}
    return {whose: rates.table(seen, cosines, networks, identities) for whose, cosines in at.items()}


def side_by_side(both: Mapping[str, Table]) -> Table:
    """method -> measure, whose threshold -> cell; what depends on no threshold is left out."""
    result: Table = {}
    for whose, table in both.items():
        for method, row in table.items():
            for measure, cell in row.items():
                if measure == "joint success" or (measure.startswith("dodging ") and rates.NET not in measure):
                    result.setdefault(method, {})[f"{measure} ({whose})"] = cell
    return {method: dict(sorted(row.items())) for method, row in result.items()}
