"""The files of a report, and the table that the command prints."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gan_mask import files
from gan_mask.evaluation import redetection
from gan_mask.evaluation.clean import Clean
from gan_mask.evaluation.intervals import Cell
from gan_mask.evaluation.pictures import strip
from gan_mask.evaluation.redetection import Redetected
from gan_mask.evaluation.run import Experiment
from gan_mask.tables import shown


def write(
    e: Experiment,
    report: dict[str, Any],
    cost: dict[str, Any],
    redetected: Mapping[str, Redetected],
    clean: Clean,
    changed: Mapping[str, Mapping[str, Redetected]],
    estimated: Mapping[str, np.ndarray],
    appearances: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    files.write_json(e.out / "report.json", report)
    files.write_json(e.out / "cost.json", cost)
    _write_csv(e.out / "probes.csv", [], _rows(e, redetected, clean, estimated, np.arange(len(e.probes.index))))
    curves = [
        {"network": n, "method": m, "far": f, "tar": t}
        for n, methods in report["verification"].items()
        for m, cells in methods.items()
        for f, t in zip(cells["roc"]["far"], cells["roc"]["tar"], strict=True)
    ]
    _write_csv(e.out / "curves.csv", ["network", "method", "far", "tar"], curves)
    _write_csv(e.out / "looks.csv", [], _looks_rows(e, appearances))
    if changed:
        by_change = {c: {m: row[c] for m, row in changed.items()} for c in redetection.CHANGES}
        rows = [
            {"change": c, **row} for c, part in by_change.items() for row in _rows(e, part, clean, estimated, e.changed)
        ]
        _write_csv(e.out / "robustness.csv", [], rows)
    with files.replacing(e.out / "strip.png") as temporary:
        strip({name: e.paths(name) for name in e.methods}).save(temporary, format="PNG")


def _rows(
    e: Experiment,
    redetected: Mapping[str, Redetected],
    clean: Clean,
    estimated: Mapping[str, np.ndarray],
    chosen: np.ndarray,
) -> list[dict[str, Any]]:
    """Tidy: one row per probe, method and network. redetected: at the probes `chosen`."""
    rows = []
    mates = {name: vectors[chosen] for name, vectors in clean.mates.items()}
    for method, s in redetected.items():
        similarity = s.similarity(mates)
        for i, probe in enumerate(chosen):
            head: dict[str, Any] = {
                "probe": e.photos.source(int(e.probes.index[probe])),
                "mate": e.photos.source(int(e.probes.mate[probe])),
                "identity": e.photos.person(int(e.probes.index[probe])),
                **{column: f"{values[probe]:.3f}" for column, values in estimated.items()},
                "method": method,
                "face_found": int(s.found[i]),
                "face_found_dlib": int(s.found_dlib[i]),
            }
            nothing = {"similarity": "", "mask_logit": "", "face_logit": ""}
            for name, values in similarity.items():
                rows.append({**head, "network": name, **nothing, "similarity": f"{values[i]:.6f}"})
            for name, logits in s.mask_logit.items():
                seen = {"mask_logit": f"{logits[i]:.4f}", "face_logit": f"{s.face_logit[name][i]:.4f}"}
                rows.append({**head, "network": name, **nothing, **seen})
    return rows


def _looks_rows(e: Experiment, appearances: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """One row per probe and method; empty where nothing could be measured."""
    rows = []
    for method, values in appearances.items():
        for i, index in enumerate(e.probes.index):
            numbers = {name.replace(" ", "_"): column[i] for name, column in values.items()}
            rows.append({
                "probe": e.photos.source(int(index)), "identity": e.photos.person(int(index)), "method": method,
                **{name: "" if np.isnan(value) else f"{value:.4f}" for name, value in numbers.items()},
            })  # fmt: skip
    return rows


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    columns = columns or list(rows[0])
    with files.replacing(path) as temporary:
        # surrogateescape: file names need not be UTF-8
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(rows)


def table(results: Mapping[str, Mapping[str, Cell]], factor: float = 100, digits: int = 1) -> str:
    """A row per measure, a column per method; `factor` times the figure, with interval."""
    measures = list(dict.fromkeys(measure for row in results.values() for measure in row))
    width = max(len(measure) for measure in measures) + 2
    lines = [" " * width + "".join(f"{name:>22}" for name in results)]
    for measure in measures:
        cells = [shown(row.get(measure), factor, digits) for row in results.values()]
        lines.append(f"{measure:{width}}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)
