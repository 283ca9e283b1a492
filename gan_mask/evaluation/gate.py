"""Limits for other people's CI: --require 'joint_success<=0.05' fails the run when a defence got weaker."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from gan_mask.errors import GanMaskError
from gan_mask.evaluation.rates import BASELINES, Sets, measures

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
GRAMMAR = "[SET/][METHOD/]MEASURE<=VALUE, such as joint_success<=0.05 or held-out/mf2m/joint_success<=0.1"


class Limit(NamedTuple):
    text: str
    set: str
    method: str | None  # None: every method that is no benign baseline
    measure: str
    operator: str
    value: float


def parse(text: str, sets: Sets, methods: Sequence[str]) -> Limit:
    """A limit on what is going to be measured; spaces in a measure's name may be written as underscores.

    Without a set the held-out one is meant if there is one. Raises GanMaskError with the grammar or the known names.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(<=|>=|<|>)\s*(\S+)\s*", text)
    if not match:
        raise GanMaskError(f"--require {text!r}: expected {GRAMMAR}")
    left, sign, number = match.groups()
    chosen: dict[str, str | None] = {"set": None, "method": None}
    for key, known in (("set", sets), ("method", methods)):
        head, slash, rest = left.partition("/")
        if slash and head in known:
            chosen[key], left = head, rest
    title = chosen["set"] or ("held-out" if "held-out" in sets else "surrogates")
    known_measures = [_plain(measure) for measure in measures(*sets[title])]
    if _plain(left) not in known_measures:
        raise GanMaskError(f"--require {text!r}: not measured for the {title} set; it has {', '.join(known_measures)}")
    if not chosen["method"] and not attacks_among(methods):
        raise GanMaskError(f"--require {text!r}: no attack among --methods")
    try:
        return Limit(text, title, chosen["method"], _plain(left), sign, float(number))
    except ValueError:
        raise GanMaskError(f"--require {text!r}: {number!r} is no number; expected {GRAMMAR}") from None


def broken(limit: Limit, rates: dict[str, dict[str, Any]], far: float) -> list[str]:
    """Reasons why `limit` does not hold, one per method; [] when it does.

    rates: set -> FAR -> method -> measure -> cell.
    """
    table = rates[limit.set][f"{far:g}"]
    reasons = []
    for method in [limit.method] if limit.method else attacks_among(list(table)):
        (cell,) = (cell for name, cell in table[method].items() if _plain(name) == limit.measure)
        if cell["rate"] is None:
            reasons.append(f"{limit.text}: {limit.set}/{method} could not be measured (no probe counts)")
        elif not OPERATORS[limit.operator](cell["rate"], limit.value):
            reasons.append(
                f"{limit.text}: {limit.set}/{method} has {cell['rate']:.4f} [{cell['low']:.4f}, {cell['high']:.4f}] "
                f"at FAR {far:g} ({cell['probes']} probes)"
            )
    return reasons


def attacks_among(methods: Sequence[str]) -> list[str]:
    return [method for method in methods if method not in ("none", *BASELINES)]


def _plain(measure: str) -> str:
    return measure.strip().replace(" ", "_")
