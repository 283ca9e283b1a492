"""A page of faces before and after, each with a slider: one HTML file that needs nothing outside of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gan_mask import html
from gan_mask.report import Pair

SIDE = 320  # pixels: longest side of a picture in the page; smaller ones stay as they are


def write(pairs: Sequence[Pair], title: str, path: Path) -> None:
    """`path`, HTML, about 50 kB per pair. Captions and title may hold anything, they are shown as text."""
    shown = [
        {
            "before": html.data_uri(pair.unmasked, SIDE),
            "after": html.data_uri(pair.masked, SIDE),
            "caption": list(pair.caption),
        }
        for pair in pairs
    ]
    html.write(path, "gallery.html", title=title, pairs=shown)
