"""index.html of a hardening table: one file with the figures, and faces that were missed or falsely reported."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gan_mask import files, html
from gan_mask.evaluation.intervals import Cell
from gan_mask.evaluation.page import figure, shade, short

EXAMPLES = 8  # faces of a row at most
SIDE = 256  # px of a face, which is shown smaller
WRONG = {"bare": "falsely reported"}  # what is wrong with a row's examples, by its kind; of all other kinds:
MISSED = "missed"


def write(
    result: Mapping[str, Any], scores: Mapping[str, Mapping[str, np.ndarray]], usual: Mapping[str, Any], out: Path
) -> None:
    """OUT/index.html. The same table gives the same bytes.

    result: what table.json holds. scores: row -> network -> (N,), above 0 for a mask, NaN where no face is found; of
    the pictures OUT/faces/ROW/00000.png and so on. usual: the options' defaults.
    """
    command = result["command"]
    networks = {name: short(name) for name in command["before"]} | {"after": "hardened", "alarm": "alarm"}
    html.write(
        out / "index.html",
        "hardening.html",
        {"figure": figure, "short": short},
        result=result,
        networks=networks,
        body={**result["rows"], **result["real pack"]},
        worse=worse,
        examples=[examples(name, cells["kind"], scores[name], out) for name, cells in result["rows"].items()],
        command=shlex.join(words_of(command, usual)),
    )


def worse(cell: Cell, kind: str) -> str:
    """Background of a rate's cell: the more is missed, or falsely reported, the more orange."""
    rate = cell["rate"]
    return shade(cell if rate is None or kind == "bare" else {"rate": 1 - rate})


def examples(name: str, kind: str, scores: Mapping[str, np.ndarray], out: Path) -> dict[str, Any]:
    """Of a row: how many of the faces found the hardened detector gets wrong, and those of which it is surest."""
    after = scores["after"]
    how_wrong = after if kind == "bare" else -after
    wrong = np.flatnonzero(how_wrong > 0 if kind == "bare" else how_wrong >= 0)  # NaN is neither
    surest = wrong[np.argsort(-how_wrong[wrong], kind="stable")][:EXAMPLES]
    faces = [
        {"file": str(file_of(name, i)), "picture": _uri(out / file_of(name, i)),
         "score": float(after[i]), "alarm": float(scores["alarm"][i])}
        for i in surest
    ]  # fmt: skip
    found = int((~np.isnan(after)).sum())
    return {
        "row": name, "kind": kind, "wrong": WRONG.get(kind, MISSED), "count": len(wrong), "of": found, "faces": faces,
    }  # fmt: skip


def file_of(row: str, number: int) -> Path:
    """Where a row's picture lies in OUT."""
    return Path("faces") / files.safe_name(row) / f"{number:05d}.png"


def words_of(command: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """The command line that gives these options."""
    words = ["python", "-m", "gan_mask.harden.table"]
    for name, value in command.items():
        if value != usual[name]:
            values = value if isinstance(value, list) else [str(value).lower() if value is True else value]
            words += [f"--{name}", *map(str, values)]
    return words


def _uri(path: Path) -> str:
    with Image.open(path) as image:
        return html.data_uri(image, SIDE)
