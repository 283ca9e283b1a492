"""The model card of a generator on the Hugging Face hub, from an evaluation's report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from gan_mask import files
from gan_mask._version import __version__
from gan_mask.errors import GanMaskError
from gan_mask.networks import GeneratorConfig
from gan_mask.tables import markdown, shown

TEMPLATE = Path(__file__).parent / "assets" / "hub_card.md"
TASK = "Dodging face recognition and mask detection"
TAGS = ["face-recognition", "adversarial-examples", "robustness", "faced-mask"]
METHOD = "generator"  # in reports


def card(name: str, config: GeneratorConfig, network: nn.Module, report: str | Path | None = None) -> ModelCard:
    """The card of the generator `network`, called `name`; report: OUT folder of an evaluation of these very weights.

    Its rates at the headline FAR stand in the metadata's model-index and, beside those of the other methods, in the
    text. No picture, path or name of a photo is in it. GanMaskError where the report is of another generator, of none,
    or of one that was refined with the recognisers at hand.
    """
    figures = _figures(network, Path(report)) if report else None
    data = ModelCardData(
        library_name="gan_mask",
        pipeline_tag="image-to-image",
        tags=TAGS,
        model_name=name,
        eval_results=_results(figures) if figures else None,
    )
    text: Any = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        version=__version__,
        parameters=sum(p.numel() for p in network.parameters()),
        config=config,
        trained_against=[files.without_folder(other) for other in config.trained_against],
        report=figures,
        tables=_tables(figures) if figures else {},
    )
    return text


def _figures(network: nn.Module, report: Path) -> dict[str, Any]:
    path = report / "report.json"
    figures: dict[str, Any] = files.read_json(path)
    if METHOD not in figures.get("pictures", {}).get("faces", {}):
        raise GanMaskError(f"{path}: no generator was measured; evaluate this one with --methods {METHOD}")
    if figures.get("generator_sha256") != files.weights_digest(network):
        raise GanMaskError(f"{path}: it is not of this generator's weights; evaluate it with --checkpoint")
    for option in [name for name in ("refine", "strength") if name in figures["command"]]:
        raise GanMaskError(
            f"{path}: measured with --{option}, which is not what the generator does alone; leave it out"
        )
    return figures


def _results(figures: Mapping[str, Any]) -> list[EvalResult]:
    """One metric for each rate of the generator that could be measured."""
    data = Path(figures["data"]).name
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=TASK,
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "faces",
            dataset_name=f"{data}, {figures['probes']} probes of {figures['identities']} people",
            dataset_split=figures["split"],
            metric_type=_plain(measure).replace(" ", "_"),
            metric_name=f"{_plain(measure)}, {title}, FAR {figures['far']:g}",
            metric_value=round(cell["rate"], 4),
            metric_args={"interval_95": [round(cell["low"], 4), round(cell["high"], 4)], "probes": cell["probes"]},
        )
        for title, by_far in figures["rates"].items()
        for measure, cell in by_far[f"{figures['far']:g}"][METHOD].items()
        if " net of " not in measure and cell["rate"] is not None
    ]


def _tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Set -> a table in Markdown, per cent with intervals: every method, so that a benign mask stands beside."""
    tables = {}
    for title, by_far in figures["rates"].items():
        rows = by_far[f"{figures['far']:g}"]
        measures = [measure for measure in rows[METHOD] if " net of " not in measure]
        lines = [[name, *(shown(row.get(measure)) for measure in measures)] for name, row in rows.items()]
        tables[title] = markdown(["", *map(_plain, measures)], lines)
    return tables


def _plain(measure: str) -> str:
    """A measure with its network's name, but not the folders of the machine that it was measured on."""
    for scheme in files.SCHEMES:
        what, found, path = measure.partition(f" {scheme}")
        if found:
            return f"{what} {Path(path).stem}"
    return measure
