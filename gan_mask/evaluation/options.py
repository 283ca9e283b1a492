"""Options of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gan_mask import attacks, files, values
from gan_mask.data import SPLITS
from gan_mask.engines import WORKERS, Engine, EngineName
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import folders, gate
from gan_mask.masking import PlacementName
from gan_mask.pretrained.thresholds import PUBLISHED
from gan_mask.values import COUNT, RATE, SEED, Range, option

KNOWN = ", ".join(attacks.METHODS)
ENGINE = {"workers", "engine", "ray_address"}  # options that change nothing of what is found


@dataclass(frozen=True)
class EvaluationConfig:
    data: str = option(
        "", "prepared set (data_prep/prepare.py)", group="what is measured", required=True, metavar="DATA"
    )
    split: tuple[str, ...] = option(
        ("test",), "splits of identities to take probes from", required=True, metavar="SPLIT"
    )
    methods: tuple[str, ...] = option(
        ("none", "plain", "dm", "dm-seamless", "generator"), f"of {KNOWN}; or folder:NAME=DIR, what another "
        "tool made of the probes, under their names", required=True, shown="all but the optimised", metavar="METHODS",
    )  # fmt: skip
    checkpoint: str | None = option(
        None, "generator: a folder with config.json and model.safetensors, or a run folder of train.py",
        shown="the shipped one", metavar="CHECKPOINT",
    )  # fmt: skip
    templates: tuple[str, ...] = option(
        ("match",), "template names, photos or groups, worn in turn; or match: for each probe the shipped face that "
        "suits it best", required=True, metavar="TEMPLATES",
    )  # fmt: skip
    placement: PlacementName = option(
        "seamless", "how optimised masks are worn; dm is the paper's, dm-seamless seamless, and a generator has its own"
    )
    harmonise: bool = option(False, "give templates the colours of the wearer's lower face first")
    probes: int = option(500, "most probes", within=COUNT)
    save_probes: str | None = option(
        None, "write the probes to this folder, too, as PNG files for other tools", shown="nowhere", metavar="DIR"
    )
    seed: int = option(0, "of every random choice", within=SEED)

    surrogates: tuple[str, ...] = option(
        ("dlib",), "recognisers that the methods may attack", group="networks",
        aliases=("embedders",), metavar="EMBEDDER",
    )  # fmt: skip
    detectors: tuple[str, ...] = option(("classifier",), "mask detectors, as surrogates", metavar="DETECTOR")
    held_out: tuple[str, ...] = option(
        (), "recognisers that no method and no training ever saw; reported apart", aliases=("held-out-embedders",),
        shown="none", metavar="EMBEDDER",
    )  # fmt: skip
    held_out_detectors: tuple[str, ...] = option((), "mask detectors, held out", shown="none", metavar="DETECTOR")

    far: float = option(1e-3, "false-accept rate of the headline, and of the attacks", group="thresholds", within=RATE)
    fars: tuple[float, ...] = option((1e-2,), "further false-accept rates", within=RATE)
    threshold_split: str = option(
        "train", "split whose clean impostor pairs give the thresholds; other people than the probes'",
        metavar="THRESHOLD_SPLIT",
    )  # fmt: skip
    threshold_faces: int = option(2000, "most faces of that split, at random", within=Range(2, 2**31 - 1))
    stored_thresholds: bool = option(
        False, "take the thresholds stored with the networks, for sets with too few impostor pairs"
    )
    protocol: str | None = option(
        None, f"rates at the thresholds that these papers use, too: {', '.join(PUBLISHED)}", shown="none",
        metavar="PROTOCOL",
    )  # fmt: skip

    naturalness: bool = option(
        False, "realism AUC of a network trained for it (takes minutes) and, with AlexNet's weights, distances to DM "
        "and to real faces", group="further measures",
    )  # fmt: skip
    photos: str | None = option(
        None, "measure looks on these photos at full size, too; one sub-folder per person", shown="none", metavar="DIR"
    )
    changed_probes: int = option(
        0, "probes to re-detect under JPEG, resize, blur and re-crop, eight times each",
        within=Range(0, 2**31 - 1),
    )  # fmt: skip
    distractors: int = option(1000, "most people in the gallery besides the mate", within=COUNT)
    pairs: str | None = option(
        None, "file of the LFW protocol (pairs.txt): clean accuracy of each recogniser", shown="none", metavar="PAIRS"
    )

    out: str = option(
        "", "folder for index.html, report.json, tables as CSV and the masked faces", group="output", required=True,
        metavar="OUT",
    )  # fmt: skip
    cache: str | None = option(
        None, "folder for embeddings of clean faces, to share them among runs", shown="OUT/cache/clean", metavar="CACHE"
    )
    require: tuple[str, ...] = option(
        (), f"exit with status 1 unless these hold: {gate.GRAMMAR}", shown="none", metavar="LIMIT"
    )
    device: Literal["cpu", "cuda"] = option("cpu", "cpu or cuda")

    workers: int = option(1, "processes", group="many probes", within=WORKERS)
    engine: EngineName = option("local", "'local' processes, or a 'ray' cluster")
    ray_address: str = option(
        "", "of a running cluster", shown="what RAY_ADDRESS says, or one that is started here", metavar="ADDRESS"
    )

    attack: attacks.Options = attacks.Options()  # of the optimised methods; seed and placement are those above


def check(c: EvaluationConfig) -> None:
    """Raises GanMaskError that names an option which is missing, of another kind, out of range or inconsistent."""
    values.check(c)
    if c.device != "cpu" and c.engine != "ray" and not torch.cuda.is_available():  # on Ray it is the workers'
        raise GanMaskError(f"--device {c.device}: this machine has no CUDA device; use --device cpu")
    for method in c.methods:
        if not folders.parse(method) and method not in attacks.METHODS:
            raise GanMaskError(f"--methods: unknown method '{method}'; known: {KNOWN}, folder:NAME=DIR")
    named = [found[0] for found in map(folders.parse, dict.fromkeys(c.methods)) if found]
    if len(set(named)) < len(named):
        raise GanMaskError("--methods: two folders have one NAME; each needs its own")
    if c.protocol is not None and c.protocol not in PUBLISHED:
        raise GanMaskError(f"--protocol: unknown '{c.protocol}'; known: {', '.join(PUBLISHED)}")
    for name in (*c.split, c.threshold_split):
        if name not in SPLITS:
            raise GanMaskError(f"--split and --threshold-split: unknown split '{name}'; known: {', '.join(SPLITS)}")
    if not (c.surrogates or c.held_out or c.detectors or c.held_out_detectors):
        raise GanMaskError("no network to measure with: name some with --surrogates, --held-out or --detectors")
    both = {*c.surrogates} & {*c.held_out} | {*c.detectors} & {*c.held_out_detectors}
    if both:
        raise GanMaskError(f"{', '.join(sorted(both))}: named as surrogate and as held out; it can only be one of them")
    if c.naturalness and "dm" not in c.methods:
        raise GanMaskError("--naturalness compares with the DM result: add dm to --methods")
    if c.threshold_split in c.split:  # impostors, distractors and real faces are other people, too
        raise GanMaskError(f"--threshold-split {c.threshold_split} has the probes' own people; name another split")


def fars_of(c: EvaluationConfig) -> list[float]:
    """All false-accept rates that recognisers are calibrated at, falling."""
    published = [float(far) for far in next(iter(PUBLISHED[c.protocol].values()))] if c.protocol else []
    return sorted({c.far, *c.fars, *published}, reverse=True)


def cache_of(c: EvaluationConfig) -> Path:
    return Path(c.cache) if c.cache else Path(c.out) / "cache" / "clean"


def engine_of(c: EvaluationConfig) -> Engine | None:
    """The other processes that are to work; None: this one, with those that accelerate has started beside it."""
    here = c.engine == "local" and c.workers == 1
    return None if here else Engine(c.engine, c.workers, c.ray_address, c.device)


def absolute(c: EvaluationConfig) -> EvaluationConfig:
    """The same for a process that has another working directory: no file is named from this one on."""

    def networks(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(files.absolute_network, names))

    def method(name: str) -> str:
        found = folders.parse(name)
        return f"{folders.PREFIX}{found[0]}={Path(found[1]).absolute()}" if found else name

    return replace(
        c, data=str(Path(c.data).absolute()), out=str(Path(c.out).absolute()),
        methods=tuple(map(method, c.methods)), templates=tuple(map(files.absolute_where_there, c.templates)),
        checkpoint=files.absolute_where_there(c.checkpoint) if c.checkpoint else None,
        surrogates=networks(c.surrogates), detectors=networks(c.detectors),
        held_out=networks(c.held_out), held_out_detectors=networks(c.held_out_detectors),
    )  # fmt: skip
