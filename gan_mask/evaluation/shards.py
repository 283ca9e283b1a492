"""The evaluation's work on an engine: units of probes and slices of clean faces, each of which becomes files of OUT.

A unit's files are those that this process alone would write; workers load what they need once, and get the surrogates'
thresholds as numbers, so that none of them looks at clean faces for those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from gan_mask import engines, pretrained, run_record
from gan_mask.cli import Progress
from gan_mask.data import PreparedSet
from gan_mask.engines import Engine
from gan_mask.evaluation import experiment, redetection, run
from gan_mask.evaluation.options import EvaluationConfig, absolute, cache_of
from gan_mask.evaluation.run import Experiment
from gan_mask.pretrained.protocol import Embedder

SLICE = 8 * redetection.CLEAN_BATCH  # clean faces: batches are those of the whole


# ------------------------------------------------------------------------------------------- units


def work(engine: Engine, c: EvaluationConfig, e: Experiment, thresholds: Sequence[float]) -> None:
    """Do all units that are not there yet. thresholds: of the surrogates, at the false-accept rate of the attacks."""
    units = dict(enumerate(e.units()))
    left = {number: unit for number, unit in units.items() if not e.kept(*unit).is_file()}
    there = absolute(c)
    names = dict(zip(_networks(there), _networks(c), strict=True))
    with Progress(total=len(units), initial=len(units) - len(left), unit="batch") as bar:
        engines.run(engine, Worker, (there, names, tuple(thresholds)), left, bar.update)


def _networks(c: EvaluationConfig) -> list[str]:
    return [*c.surrogates, *c.held_out, *c.detectors, *c.held_out_detectors]


class Worker:
    """Does units of an evaluation. names: what the networks of `c` are called in what is kept."""

    def __init__(self, c: EvaluationConfig, names: Mapping[str, str], thresholds: Sequence[float]) -> None:
        self.e, generator = experiment.load(c, c.device)
        self.e.methods = experiment.methods_of(c, self.e, generator, thresholds)
        self.e.embedders = {names[name]: network for name, network in self.e.embedders.items()}
        self.e.detectors = {names[name]: network for name, network in self.e.detectors.items()}

    def __call__(self, number: int, unit: tuple[str, slice]) -> int:
        run.do(self.e, *unit)
        return 1


# ------------------------------------------------------------------------------------------- clean faces


@dataclass(frozen=True)
class Slice:
    """Faces `index` of the set's `split`, whose embeddings become the file `path`."""

    network: str
    split: str | Sequence[str] | None
    index: np.ndarray
    path: Path


def embed(
    engine: Engine,
    c: EvaluationConfig,
    embedders: Mapping[str, Embedder],
    faces: Sequence[tuple[PreparedSet, np.ndarray]],
) -> None:
    """Fill the cache, in which `redetection.embed_clean` finds the embeddings of these faces of some sets."""
    there = absolute(c)
    path_of = dict(zip(_networks(c), _networks(there), strict=True))
    whole: dict[Path, list[Slice]] = {}
    for name, embedder in embedders.items():
        for photos, index in faces:
            path = redetection.clean_path(name, embedder, photos, index, cache_of(c))
            if run_record.embeddings(path, len(index)) is None:
                folder = Path(there.out, "cache", "clean")  # this run's own, wherever the cache is
                whole[path] = [
                    Slice(path_of[name], photos.split, index[i : i + SLICE], folder / f"{path.stem}.{i:09d}.npy")
                    for i in range(0, len(index), SLICE)
                ]
    slices = [part for parts in whole.values() for part in parts]
    kept = {part.path for part in slices if run_record.embeddings(part.path, len(part.index)) is not None}
    left = {number: part for number, part in enumerate(slices) if part.path not in kept}
    count, todo = (sum(len(part.index) for part in parts) for parts in (slices, left.values()))
    with Progress(total=count, initial=count - todo, desc="clean faces", unit="face", disable=not slices) as bar:
        engines.run(engine, Embedding, (there.data, c.device), left, bar.update)
    for path, parts in whole.items():
        redetection.keep(path, np.concatenate([np.load(part.path, allow_pickle=False) for part in parts]))
        for part in parts:
            part.path.unlink()


class Embedding:
    """Embeds slices of the clean faces of a set."""

    def __init__(self, data: str, device: str) -> None:
        self.device = device
        self.embedder = cache(lambda name: pretrained.load_embedder(name, device))
        self.photos = cache(lambda split: PreparedSet(data, split))

    def __call__(self, number: int, part: Slice) -> int:
        vectors = redetection.embed(self.embedder(part.network), self.photos(part.split), part.index, self.device)
        redetection.keep(part.path, vectors)
        return len(part.index)
