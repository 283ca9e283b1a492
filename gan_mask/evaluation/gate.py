"""Limits for other people's CI: --require 'joint_success<=0.05' fails the run when a defence got weaker."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gan_mask.errors import GanMaskError
from gan_mask.evaluation import appearance, realism
from gan_mask.evaluation.intervals import Cell
from gan_mask.evaluation.rates import BASELINES, Sets, measures

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
GRAMMAR = (
    "[SET/][METHOD/]MEASURE<=VALUE, such as joint_success<=0.05, held-out/mf2m/joint_success<=0.1 or, of the looks, "
    "generator/edge_step_p90<=2, fine_detail_p10>=0.55, realism_auc<=0.9"
)
REALISM = {realism.TRAINED: "realism_auc", realism.SMALL: "realism_auc_small_cnn"}
LOOKS = "looks"  # in place of a set: how masks look depends on no network of a set


class Limit(NamedTuple):
    text: str
    set: str
    method: str | None  # None: every method that is no benign baseline
    measure: str
    operator: str
    value: float


def parse(text: str, sets: Sets, methods: Sequence[str], trained: str | None = None) -> Limit:
    """A limit on what will be measured; spaces in a measure's name may be written as underscores.

    Without a set, the held-out one is meant if there is one; measures of looks have no set. trained: name of the
    realism AUC that will be measured, if any. Raises GanMaskError with the grammar or the known names.
    """
    left, sign, value = split(text, GRAMMAR)
    chosen: dict[str, str | None] = {"set": None, "method": None}
    for key, known in (("set", sets), ("method", methods)):
        head, slash, rest = left.partition("/")
        if slash and head in known:
            chosen[key], left = head, rest
    title = chosen["set"] or ("held-out" if "held-out" in sets else "surrogates")
    known_measures = [_plain(measure) for measure in measures(*sets[title])]
    looks = [_plain(measure) for measure in [*appearance.STATISTICS, *([trained] if trained else [])]]
    if left in REALISM.values() and _plain(left) not in looks:
        reason = f"this run measures {_plain(trained)}" if trained else "only measured with --naturalness"
        raise GanMaskError(f"--require {text!r}: {reason}")
    if _plain(left) in looks:
        if chosen["set"]:
            raise GanMaskError(f"--require {text!r}: looks depend on no set; leave out {title}/")
        title = LOOKS
    elif _plain(left) not in known_measures:
        raise GanMaskError(
            f"--require {text!r}: not measured for the {title} set; it has {', '.join(known_measures)}; looks: "
            f"{', '.join(looks)}"
        )
    if not chosen["method"] and not attacks_among(methods):
        raise GanMaskError(f"--require {text!r}: no attack among --methods")
    return Limit(text, title, chosen["method"], _plain(left), sign, value)


def split(text: str, grammar: str) -> tuple[str, str, float]:
    """What is limited, the operator and the number. Raises GanMaskError with the grammar."""
    match = re.fullmatch(r"\s*(.+?)\s*(<=|>=|<|>)\s*(\S+)\s*", text)
    if not match:
        raise GanMaskError(f"--require {text!r}: expected {grammar}")
    left, sign, number = match.groups()
    try:
        return left, sign, float(number)
    except ValueError:
        raise GanMaskError(f"--require {text!r}: {number!r} is no number; expected {grammar}") from None


def broken(
    limit: Limit, rates: dict[str, dict[str, Any]], far: float, looks: Mapping[str, Mapping[str, Cell]]
) -> list[str]:
    """Reasons why `limit` does not hold, one per method; [] when it does.

    rates: set -> FAR -> method -> measure -> cell. looks: method -> measure -> cell.
    """
    table = looks if limit.set == LOOKS else rates[limit.set][f"{far:g}"]
    where = "" if limit.set == LOOKS else f"at FAR {far:g} "
    reasons = []
    for method in [limit.method] if limit.method else attacks_among(list(table)):
        (cell,) = (cell for name, cell in table[method].items() if _plain(name) == limit.measure)
        if reason := broken_by(cell, limit.operator, limit.value, f"{limit.set}/{method}", where):
            reasons.append(f"{limit.text}: {reason}")
    return reasons


def broken_by(cell: Cell, sign: str, value: float, name: str, where: str = "") -> str:
    """What is wrong with the cell called `name`; empty where the limit holds. where: ends with a blank."""
    if cell["rate"] is None:
        return f"{name} could not be measured (no probe counts)"
    if OPERATORS[sign](cell["rate"], value):
        return ""
    return f"{name} has {cell['rate']:.4f} [{cell['low']:.4f}, {cell['high']:.4f}] {where}({cell['probes']} probes)"


def attacks_among(methods: Sequence[str]) -> list[str]:
    return [method for method in methods if method not in ("none", *BASELINES)]


def _plain(measure: str) -> str:
    return REALISM.get(measure) or measure.strip().replace(" ", "_")
