"""How tables of figures with intervals are written as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def shown(cell: Mapping[str, Any] | None, factor: float = 100, digits: int = 1) -> str:
    """12.3 [10.1, 14.5] of a cell (`evaluation.intervals`); a dash where nothing was measured."""
    if cell is None or cell["rate"] is None:
        return "-"
    rate, low, high = (f"{factor * (cell[key] or 0):.{digits}f}" for key in ("rate", "low", "high"))
    return f"{rate} [{low}, {high}]"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; cells as they are."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))
