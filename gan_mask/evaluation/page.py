"""index.html of a report: one file that needs nothing outside of itself."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gan_mask import files
from gan_mask.evaluation.intervals import Cell
from gan_mask.evaluation.rates import BASELINES

TEMPLATES = Path(__file__).parent.parent / "assets" / "page"
FACES = 8  # columns of the picture
SIDE = 112  # pixels of a face in it
# Okabe & Ito's colours, which colour-blind readers tell apart; greys for what is benign.
COLOURS = {
    "none": "#999999", "plain": "#666666", "dm": "#000000",
    "advnoise-dm": "#d55e00", "mf2m": "#0072b2", "generator": "#009e73",
}  # fmt: skip


def write(report: Mapping[str, Any], cost: Mapping[str, Any], out: Path) -> None:
    """OUT/index.html. The same report gives the same bytes; any part of the report may be absent."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "short": short, "shade": shade}
    far = f"{report['far']:g}"
    html = environment.get_template("report.html").render(
        report=report,
        cost=cost,
        far=far,
        methods=list(next(iter(report["rates"].values()))[far]),
        baselines=("none", *BASELINES),
        colours=COLOURS,
        faces=_faces(report, out),
        joint={title: _joint(by_far[far]) for title, by_far in report["rates"].items() if _has_joint(by_far[far])},
        curves={name: _curves(methods) for name, methods in report.get("verification", {}).items()},
        scatter=_scatters(report, far),
        command=_command(report["command"]),
    )
    files.write_text(out / "index.html", html)


# ------------------------------------------------------------------------------------------- text


def percent(cell: Cell) -> str:
    """12.3 [10.1, 14.5], or a dash where no probe counts."""
    return _shown(cell, 100, 1)


def number(cell: Cell) -> str:
    """As measured, with interval if there is one."""
    return _shown(cell, 1, 3)


def _shown(cell: Cell, factor: float, digits: int) -> str:
    if cell["rate"] is None:
        return "–"
    value = f"{factor * cell['rate']:.{digits}f}"
    if cell["low"] is None or cell["high"] is None:
        return value
    return f"{value} [{factor * cell['low']:.{digits}f}, {factor * cell['high']:.{digits}f}]"


def short(text: str) -> str:
    """Network names inside of `text` without folders and endings: onnx:configs/networks/x.json -> x."""
    words = text.split(" ")
    return " ".join(word.split("/")[-1].removesuffix(".json") if word.startswith("onnx:") else word for word in words)


def shade(cell: Cell) -> str:
    """Background of a table's cell: the more, the more orange."""
    return "" if cell["rate"] is None else f"background: rgba(213, 94, 0, {0.6 * max(0.0, float(cell['rate'])):.2f})"


def _command(options: Mapping[str, Any]) -> str:
    words = ["python -m gan_mask.evaluation"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [flag, *map(shlex.quote, map(str, value))] if value else []
        elif value not in (None, False):
            words += [flag, shlex.quote(str(value))]
    return " ".join([*words, "--out OUT"])


# ------------------------------------------------------------------------------------------- pictures


def _faces(report: Mapping[str, Any], out: Path) -> dict[str, list[str]]:
    """method -> data URIs of the same few faces."""
    listed: dict[str, list[str]] = report.get("pictures", {}).get("faces", {})
    count = min((len(paths) for paths in listed.values()), default=0)
    chosen = np.linspace(0, count - 1, min(FACES, count)).astype(int)
    return {method: [_uri(out / paths[i]) for i in chosen] for method, paths in listed.items() if count}


def _uri(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _has_joint(table: Mapping[str, Mapping[str, Cell]]) -> bool:
    return any("joint success" in row for row in table.values())


def _joint(table: Mapping[str, Mapping[str, Cell]]) -> str:
    """Dots with intervals, a line per method."""
    figure, axes = _figure(5.6, 0.36 * len(table) + 0.9)
    for y, (method, row) in enumerate(table.items()):
        cell = row["joint success"]
        if cell["rate"] is None or cell["low"] is None or cell["high"] is None:
            continue
        colour, benign = COLOURS.get(method, "#cc79a7"), method in ("none", *BASELINES)
        axes.plot([100 * cell["low"], 100 * cell["high"]], [y, y], color=colour, linewidth=3, alpha=0.35)
        axes.plot([100 * cell["rate"]], [y], "s" if benign else "o", color=colour, markersize=7)
        axes.annotate(
            f"{100 * cell['rate']:.1f}", (100 * cell["rate"], y), (0, 7), textcoords="offset points", ha="center"
        )
    axes.set_yticks(range(len(table)), list(table))
    axes.invert_yaxis()
    axes.set_ylim(len(table) - 0.5, -0.7)
    axes.set_xlim(-3, 105)
    axes.set_xlabel("joint success, % (squares: benign)")
    axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


def _curves(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """ROC and DET of one recogniser, before (none) and after."""
    figure, (roc, det) = _figure(9, 3.6, 2)
    for method, cells in methods.items():
        far, tar = np.array(cells["roc"]["far"]), np.array(cells["roc"]["tar"])
        style = {"color": COLOURS.get(method, "#cc79a7"), "label": method, "drawstyle": "steps-post"}
        style["linestyle"] = "--" if method in ("none", *BASELINES) else "-"
        roc.plot(far, tar, **style)
        det.plot(far, np.maximum(1 - tar, 1e-3), **style)
    roc.set(xscale="log", xlabel="false-accept rate", ylabel="true-accept rate", title="ROC", ylim=(-0.02, 1.02))
    det.set(xscale="log", yscale="log", xlabel="false-accept rate", ylabel="false-reject rate", title="DET")
    for axes in (roc, det):
        axes.grid(alpha=0.3)
    roc.legend(fontsize=8, frameon=False)
    return _svg(figure)


def _scatters(report: Mapping[str, Any], far: str) -> dict[str, str]:
    """set -> joint success against LPIPS to DM."""
    naturalness = report.get("naturalness", {})
    result = {}
    for title, by_far in report["rates"].items():
        points = {
            method: (naturalness[method]["LPIPS to DM"], row["joint success"])
            for method, row in by_far[far].items()
            if "LPIPS to DM" in naturalness.get(method, {}) and row.get("joint success", {}).get("rate") is not None
        }
        if points:
            result[title] = _scatter(points)
    return result


def _scatter(points: Mapping[str, tuple[Any, Any]]) -> str:
    figure, axes = _figure(5.6, 3.2)
    for method, (natural, success) in points.items():
        colour = COLOURS.get(method, "#cc79a7")
        across, up = ([[c["rate"] - c["low"]], [c["high"] - c["rate"]]] for c in (natural, success))
        axes.errorbar(
            [natural["rate"]], [100 * success["rate"]], 100 * np.array(up), across, fmt="o", color=colour, label=method
        )
    axes.set(xlabel="LPIPS to DM (0: looks like DM)", ylabel="joint success, %", ylim=(-5, 105))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """Without pyplot: no display, no global state."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    """The same bytes for the same figure; text stays text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "gan_mask", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
