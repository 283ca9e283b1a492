"""One evaluation: masked files are written and re-detected, in units that processes share and a killed run keeps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_mask import attacks, files, run_record, templates
from gan_mask.cli import Progress
from gan_mask.data import PreparedSet
from gan_mask.evaluation import redetection
from gan_mask.evaluation.folders import Folder, places
from gan_mask.evaluation.pictures import write_pngs
from gan_mask.evaluation.protocol import Probes, batches
from gan_mask.evaluation.redetection import CHANGES, Redetected
from gan_mask.faces import FaceFinder, read_image, to_8_bit
from gan_mask.pretrained import contract
from gan_mask.pretrained.protocol import Detector, Embedder

UNIT = 16  # probes that are masked and re-detected together


@dataclass
class Experiment:
    """Everything that is loaded once."""

    out: Path
    photos: PreparedSet
    probes: Probes
    methods: dict[str, attacks.Method | Folder]
    bank: Tensor | None  # (N, 3, h, w): probe i wears template i mod N; None: the one that suits it best
    texture_size: tuple[int, int]
    harmonise: bool
    embedders: dict[str, Embedder]
    detectors: dict[str, Detector]
    changed: np.ndarray  # (C,), rising: the probes that are re-detected under every change, too
    finder: FaceFinder
    device: str

    def units(self) -> list[tuple[str, slice]]:
        count = len(self.probes.index)
        starts = range(0, count, UNIT)
        return [(name, slice(s, min(s + UNIT, count))) for name in self.methods for s in starts]

    def changed_in(self, rows: slice) -> np.ndarray:
        return self.changed[(self.changed >= rows.start) & (self.changed < rows.stop)]

    def paths(self, method: str, rows: slice | None = None) -> list[Path]:
        rows = rows or slice(0, len(self.probes.index))
        return [self.out / "faces" / method / f"{i:05d}.png" for i in range(rows.start, rows.stop)]

    def template(self, faces: Tensor, landmarks: Tensor, rows: slice) -> Tensor:
        """Of the probes `rows`, which are `faces`: (B, 3, h, w)."""
        if self.bank is None:
            return templates.load_all(templates.best(faces, landmarks), self.texture_size)
        return self.bank[torch.arange(rows.start, rows.stop) % len(self.bank)]

    def kept(self, method: str, rows: slice) -> Path:
        return self.out / "cache" / method / f"{rows.start:05d}.npz"


GENERATOR = {"checkpoint", "weights", "generator_placement"}  # settings that its faces alone depend on


def open_folder(out: Path, settings: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Keep what an earlier run of the same settings left in OUT, to resume it; remove what other settings left.

    With another checkpoint only the generator's faces are made again, with other pictures in a `folder:` only those
    are measured again. methods: all of ours that there are.
    """
    path = out / "cache" / "settings.json"
    before = run_record.read(path)
    known = dict((before or {}).get("folders", {}))  # of runs without them, too: their faces are still there
    if changed := run_record.differences(before or {}, settings):
        stale = ["generator"] if changed.keys() & GENERATOR else []
        stale += [n for n, digest in settings["folders"].items() if known.get(n, digest) != digest]
        everything = not changed.keys() <= GENERATOR | {"folders"}
        if before is not None:
            what = "everything is" if everything else f"the faces of {' and '.join(stale)} are"
            print(f"{out}: {what} made again, because of {'; '.join(changed.values())}")
        for method in [*methods, *known] if everything else stale:
            for folder in (out / "cache" / method, out / "faces" / method):
                shutil.rmtree(folder, ignore_errors=True)
        known = {} if everything else known
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {**settings, "folders": known | settings["folders"]})
    files.remove_leftovers(out)


def work(e: Experiment, process: int, processes: int) -> None:
    """Do the units of this process; those that are there already are left as they are."""
    units = e.units()[process::processes]
    todo = [unit for unit in units if not e.kept(*unit).is_file()]
    with Progress(total=len(units), initial=len(units) - len(todo), unit="batch", disable=process > 0) as bar:
        for method, rows in todo:
            bar.set_description(method)
            do(e, method, rows)
            bar.update()


def do(e: Experiment, method: str, rows: slice) -> None:
    """One unit: its files, what the networks make of them and, last, the file that says so."""
    maker = e.methods[method]
    if isinstance(maker, Folder):
        images = maker.read(rows)
        faces = e.finder.find(images)
        extra = {"places": places(images, faces)}
    else:
        extra = write_masked(e, method, rows)
        images = [read_image(path) for path in e.paths(method, rows)]
        faces = e.finder.find(images)
    names = contract.sources(e.photos, e.probes.index[rows])
    seen = redetection.redetect(images, e.embedders, e.detectors, e.finder, e.device, names, faces)
    chosen = [int(i) - rows.start for i in e.changed_in(rows)]
    changed, changed_names = [images[i] for i in chosen], [names[i] for i in chosen]
    path = e.kept(method, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    for i, change in enumerate(CHANGES.values() if changed else ()):
        pictures = [change(image) for image in changed]
        under = redetection.redetect(pictures, e.embedders, e.detectors, e.finder, e.device, changed_names)
        redetection.save(path.with_suffix(f".{i}.npz"), under, {})
    redetection.save(path, seen, extra)  # last: that it is there says that the unit is done


@torch.no_grad()
def write_masked(e: Experiment, method: str, rows: slice) -> dict[str, np.ndarray]:
    """One 8-bit PNG per probe; the seconds per face and, of optimised methods, the iterations (B,)."""
    maker = e.methods[method]
    assert not isinstance(maker, Folder), "a folder's pictures are there already"
    index = e.probes.index[rows]
    ((face, landmarks),) = batches(e.photos, index, len(index))
    face, landmarks = face.to(e.device), landmarks.to(e.device)
    template = e.template(face, landmarks, rows).to(e.device)
    if e.harmonise:
        template = templates.harmonise(template, face, landmarks)
    started = time.perf_counter()
    with contract.naming(contract.sources(e.photos, index)):
        masked, result = maker.mask(face, landmarks, template)
    pictures = to_8_bit(masked)  # waits for the GPU, too
    cost = {"seconds": np.full(len(index), (time.perf_counter() - started) / len(index))}
    if result.iterations is not None:
        cost["iterations"] = result.iterations.numpy()
    write_pngs(e.paths(method, rows), pictures)
    return cost


def collect(
    e: Experiment,
) -> tuple[dict[str, Redetected], dict[str, dict[str, Redetected]], dict[str, dict[str, np.ndarray]]]:
    """All units together: method -> its P files; method -> change -> some of them; costs or places (P, ...)."""
    seen: dict[str, Redetected] = {}
    changed: dict[str, dict[str, Redetected]] = {}
    costs: dict[str, dict[str, np.ndarray]] = {}
    for method in e.methods:
        units = [(e.kept(name, rows), rows) for name, rows in e.units() if name == method]
        parts = [redetection.load(path) for path, _ in units]
        seen[method] = redetection.join([part for part, _ in parts])
        costs[method] = {key: np.concatenate([extra[key] for _, extra in parts]) for key in parts[0][1]}
        some = [path for path, rows in units if len(e.changed_in(rows))]
        if some:
            changed[method] = {
                change: redetection.join([redetection.load(path.with_suffix(f".{i}.npz"))[0] for path in some])
                for i, change in enumerate(CHANGES)
            }
    return seen, changed, costs
