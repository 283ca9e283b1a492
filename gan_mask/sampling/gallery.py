"""A page of faces before and after, each with a slider: one HTML file that needs nothing outside of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gan_mask import html
from gan_mask.sampling.contact_sheet import Pair

SIDES = (512, 384, 256)  # pixels: longest side of a picture in the page; smaller ones stay as they are
BYTES = 14_000_000  # of all pictures together, as far as these sides allow


def write(pairs: Sequence[Pair], title: str, path: Path) -> None:
    """`path`, HTML, below 15 MB for 200 pairs, which are grouped by outcome in the order of the first of each.

    Captions and title may hold anything, they are shown as text.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        before, after = _pictures(pair, BYTES // len(pairs))
        shown = {"before": before, "after": after, "caption": list(pair.caption), "verdicts": pair.verdicts}
        groups.setdefault(pair.outcome, []).append(shown)
    html.write(path, "gallery.html", title=title, groups=groups)


def _pictures(pair: Pair, most: int) -> tuple[str, str]:
    """Before and after, both at the largest side at which they take so many bytes in the page, else the smallest."""
    for side in SIDES:
        before, after = html.data_uri(pair.unmasked, side), html.data_uri(pair.masked, side)
        if len(before) + len(after) <= most:
            break
    return before, after
