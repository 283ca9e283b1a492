"""--require of the table: 'dm-seamless>=0.6' fails the run when the hardened detector does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gan_mask.errors import GanMaskError
from gan_mask.evaluation import gate
from gan_mask.evaluation.intervals import Cell

GRAMMAR = (
    "ROW[/MEASURE]<=VALUE, such as none<=0.01, dm-seamless>=0.6 or faced/AUC_after>=0.9; ROW is a row of the table, or "
    "bare, ordinary, faced or adaptive for each row of that kind"
)


class Limit(NamedTuple):
    text: str
    rows: Sequence[str]
    measure: str
    operator: str
    value: float


def parse(text: str, rows: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str], usual: str) -> Limit:
    """A limit on what will be measured; spaces in names may be written as underscores.

    rows: the table's -> the measures of each. kinds: of rows, by name. usual: the measure where none is named.
    Raises GanMaskError with the grammar or the known names.
    """
    left, sign, value = gate.split(text, GRAMMAR)
    head, slash, measure = (left, "", "") if _among(left, rows) else left.partition("/")
    named = _among(head, rows)
    chosen = [named] if named else [row for row, kind in kinds.items() if kind == head]
    if not chosen:
        raise GanMaskError(
            f"--require {text!r}: no row {head!r}; known: {', '.join(rows)}; of kinds: "
            f"{', '.join(dict.fromkeys(kinds.values()))}"
        )
    found = _among(measure if slash else usual, rows[chosen[0]])
    if not found:
        raise GanMaskError(
            f"--require {text!r}: {measure!r} is not measured for {chosen[0]!r}; known: {', '.join(rows[chosen[0]])}"
        )
    return Limit(text, chosen, found, sign, value)


def broken(limit: Limit, rows: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    """Reasons why `limit` does not hold, one per row; [] when it does. rows: row -> measure -> cell."""
    cells = {f"{row}/{limit.measure}": rows[row][limit.measure] for row in limit.rows}
    reasons = [gate.broken_by(cell, limit.operator, limit.value, name) for name, cell in cells.items()]
    return [f"{limit.text}: {reason}" for reason in reasons if reason]


def _among(name: str, known: Mapping[str, Any]) -> str | None:
    """Which of the known names it is."""
    return next((k for k in known if k.replace(" ", "_") == name.strip().replace(" ", "_")), None)
