"""index.html of a report: one file that needs nothing outside of itself, and no script."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gan_mask import files, html
from gan_mask.evaluation.intervals import Cell
from gan_mask.evaluation.published import side_by_side
from gan_mask.evaluation.rates import BASELINES
from gan_mask.evaluation.realism import TRAINED

Colours = Mapping[str, str]  # by method

FACES = 6  # columns of the picture
SIDE = 320  # px of a face in it, which a click shows larger
PHOTO_SIDE = 640  # px, likewise, of faces in large photos
BENIGN = ("none", *BASELINES)
INK = "#010203"  # in plots; becomes the page's own colour of text, be it light or dark
# Okabe & Ito's colours, which colour-blind readers tell apart; greys for what is benign.
COLOURS = {
    "none": "#9aa0a6", "plain": "#7a828a", "dm": "currentColor",
    "dm-seamless": "#56b4e9",
    "advnoise-dm": "#d55e00", "mf2m": "#0072b2", "advface": "#e69f00", "generator": "#009e73",
}  # fmt: skip
OTHERS = ("#cc79a7", "#999933", "#882255", "#44aa99")  # in turn, of folders of other tools


def write(report: Mapping[str, Any], cost: Mapping[str, Any], out: Path) -> None:
    """OUT/index.html. The same report gives the same bytes; any part of the report may be absent."""
    far = f"{report['far']:g}"
    rates = {title: by_far[far] for title, by_far in report["rates"].items()}
    verification = report.get("verification", {})
    methods = list(dict.fromkeys(method for table in rates.values() for method in table))
    colours = colours_of(methods)
    html.write(
        out / "index.html",
        "report.html",
        {"figure": figure, "short": short, "shade": shade, "side_by_side": side_by_side},
        report=report,
        cost=cost,
        far=far,
        methods=methods,
        baselines=BENIGN,
        colours=colours,
        measures=measures,
        faces=_faces(report.get("pictures", {}).get("faces", {}), out, SIDE),
        photos=_faces(report.get("looks_on_photos", {}).get("faces", {}), out, PHOTO_SIDE),
        curves={
            name: {
                "ROC": _roc(cells, report["fars"], f"roc{i}", colours),
                "DET": _det(cells, report["fars"], f"det{i}", colours),
            }
            for i, (name, cells) in enumerate(verification.items())
        },
        robustness={
            title: _robustness(rows, f"changes{i}", colours)
            for i, (title, rows) in enumerate(report.get("robustness", {}).items())
        },
        scatter=_scatters(report.get("looks", {}), rates, colours),
        command=_command(report["command"]),
    )


def colours_of(methods: Sequence[str]) -> dict[str, str]:
    """CSS colours by method."""
    others = [method for method in methods if method not in COLOURS]
    return COLOURS | {method: OTHERS[i % len(OTHERS)] for i, method in enumerate(others)}


# ------------------------------------------------------------------------------------------- text


def figure(value: float, form: str) -> str:
    """0.123 as "percent": 12.3; as "number": 0.123, three digits that count."""
    if form == "percent":
        return f"{100 * value:.1f}".replace("-", "−")
    digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:.{min(digits, 5)}f}".replace("-", "−")


def short(text: str) -> str:
    """Network names inside of `text` without folders and endings: onnx:configs/networks/x.json -> x."""
    parts = [files.split_scheme(word) for word in text.split(" ")]
    return " ".join(path.split("/")[-1].removesuffix(".json") if scheme else path for scheme, path in parts)


def shade(cell: Cell) -> str:
    """Background of a table's cell: the more, the more orange."""
    return "" if cell["rate"] is None else f"background: rgba(230, 120, 20, {0.55 * max(0.0, float(cell['rate'])):.2f})"


def measures(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Columns of a table, the headline first."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row if name != "roc"))
    return sorted(names, key=lambda name: name != "joint success")


def _command(options: Mapping[str, Any]) -> str:
    words = ["python -m gan_mask.evaluation"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            # Named without values it means none of them; left out it would mean the default.
            words += [flag, *map(shlex.quote, map(str, value))] if value or name != "require" else []
        elif value is not None and value is not False:
            words += [flag, shlex.quote(str(value))]
    return " ".join([*words, "--out OUT"])


# ------------------------------------------------------------------------------------------- pictures


def _faces(listed: Mapping[str, list[str]], out: Path, side: int) -> dict[str, list[str]]:
    """method -> data URIs of the same few faces, side px large, of the listed files in `out`."""
    count = min((len(paths) for paths in listed.values()), default=0)
    chosen = np.linspace(0, count - 1, min(FACES, count)).astype(int)
    return {method: [_uri(out / paths[i], side) for i in chosen] for method, paths in listed.items() if count}


def _uri(path: Path, side: int) -> str:
    with Image.open(path) as image:
        return html.data_uri(image, side, enlarge=True)


# ------------------------------------------------------------------------------------------- plots
# No text of a user's is drawn: names are in the page's legends.


def _roc(methods: Mapping[str, Mapping[str, Any]], fars: list[float], key: str, colours: Colours) -> str:
    drawing, axes = _drawing(4.6, 3.4)
    for method, cells in methods.items():
        axes.plot(cells["roc"]["far"], 100 * np.array(cells["roc"]["tar"]), **_line(method, colours))
    _mark(axes, fars)
    axes.set(xscale="log", xlabel="false-accept rate", ylabel="true-accept rate, %", title="ROC", ylim=(-2, 102))
    return _svg(drawing, key)


def _det(methods: Mapping[str, Mapping[str, Any]], fars: list[float], key: str, colours: Colours) -> str:
    """A curve ends where no mated pair is rejected any more: the axis has no zero. Empty when none ever is."""
    drawing, axes = _drawing(4.6, 3.4)
    drawn = False
    for method, cells in methods.items():
        missed = 100 * (1 - np.array(cells["roc"]["tar"]))
        axes.plot(cells["roc"]["far"], np.where(missed > 1e-9, missed, np.nan), **_line(method, colours))
        drawn = drawn or bool((missed > 1e-9).any())
    _mark(axes, fars)
    axes.set(xscale="log", yscale="log", xlabel="false-accept rate", ylabel="false-reject rate, %", title="DET")
    if not drawn:
        axes.set(xlim=(min(fars) / 10, 1), ylim=(0.1, 100))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _svg(drawing, key)


def _line(method: str, colours: Colours) -> dict[str, Any]:
    dashed = method in BENIGN
    style = (0, (4, 1.5)) if dashed else "-"
    return {
        "color": _ink(colours[method]),
        "drawstyle": "steps-post",
        "linestyle": style,
        "linewidth": 1.3 if dashed else 1.8,
    }


def _mark(axes: Any, fars: list[float]) -> None:
    for far in fars:
        axes.axvline(far, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)


def _robustness(rows: Mapping[str, Mapping[str, Cell]], key: str, colours: Colours) -> str:
    """Joint success per change, a line per method; side by side within a change, so that intervals can be seen."""
    drawing, axes = _drawing(5.2, 3.2)
    changes = list(next(iter(rows.values())))
    for i, (method, row) in enumerate(rows.items()):
        at = np.arange(len(changes)) + 0.09 * (i - (len(rows) - 1) / 2)
        rate, below, above = np.array([_bar(row[change]) for change in changes]).T * 100
        marker = {"marker": "s", "mfc": "none", "ls": "--"} if method in BENIGN else {"marker": "o", "ls": "-"}
        axes.errorbar(
            at, rate, (below, above), color=_ink(colours[method]), markersize=4, linewidth=1.1, elinewidth=2, **marker
        )
    axes.set_xticks(range(len(changes)), changes, rotation=35, ha="right", parse_math=False)
    axes.set(ylabel="joint success, %", ylim=(-4, 104))
    return _svg(drawing, key)


def _scatters(
    looks: Mapping[str, Any], rates: Mapping[str, Mapping[str, Mapping[str, Cell]]], colours: Colours
) -> dict[str, str]:
    """set -> joint success against the trained realism AUC, where there is one."""
    result = {}
    for i, (title, table) in enumerate(rates.items()):
        points = {
            method: (looks[method][TRAINED], row["joint success"])
            for method, row in table.items()
            if TRAINED in looks.get(method, {}) and "joint success" in row
        }
        if points:
            result[title] = _scatter(points, f"scatter{i}", colours)
    return result


def _scatter(points: Mapping[str, tuple[Cell, Cell]], key: str, colours: Colours) -> str:
    drawing, axes = _drawing(4.6, 3.2)
    for method, (realism, success) in points.items():
        (x, left, right), (y, below, above) = _bar(realism), 100 * np.array(_bar(success))
        marker = {"fmt": "s", "mfc": "none"} if method in BENIGN else {"fmt": "o"}
        axes.errorbar(
            [x], [y], [[below], [above]], [[left], [right]], color=_ink(colours[method]), markersize=6, **marker
        )
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
    axes.set(xlabel="realism AUC, trained (0.5: as a bare face)", ylabel="joint success, %", ylim=(-4, 104))
    axes.set_xlim(min(0.45, axes.get_xlim()[0]), 1.02)
    return _svg(drawing, key)


def _bar(cell: Cell) -> tuple[float, float, float]:
    """Value, and what the interval adds below and above; NaN where nothing was measured."""
    rate, low, high = (np.nan if cell[k] is None else float(cell[k]) for k in ("rate", "low", "high"))  # type: ignore[arg-type]
    return rate, max(rate - low, 0.0), max(high - rate, 0.0)


def _ink(colour: str) -> str:
    return INK if colour == "currentColor" else colour


def _drawing(width: float, height: float) -> tuple[Any, Any]:
    """Without pyplot: no display, no global state. Inches."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = {"font.size": 8.5, "axes.titlesize": 9.5} | dict.fromkeys(inks, INK)
    with rc_context(style):
        drawing = Figure((width, height), layout="constrained")
        FigureCanvasSVG(drawing)
        axes = drawing.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.15, linewidth=0.7)
    return drawing, axes


def _svg(drawing: Any, key: str) -> str:
    """The same bytes for the same drawing; text stays text. `key`: of the ids, which are unique in a page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": "gan_mask", "svg.fonttype": "none", "font.family": "sans-serif"}):
        drawing.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text[text.index("<svg") :])
    return re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text.replace(INK, "currentColor"))
