"""The command sample.py."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gan_mask import cli, files, run_record, sampling, values
from gan_mask.cli.methods import flat, parse_with_attack
from gan_mask.errors import GanMaskError
from gan_mask.faces import IMAGE_SUFFIXES, UnreadableImage, forget_old_shapes
from gan_mask.pretrained.protocol import fingerprints
from gan_mask.sampling.batch import process
from gan_mask.sampling.clip import is_clip
from gan_mask.sampling.folder import (
    GALLERY,
    OVERVIEW,
    TABLE,
    Journal,
    Targets,
    check_folders,
    find_photos,
    find_targets,
    old_copies,
)
from gan_mask.sampling.masker import Photo, Row
from gan_mask.sampling.options import SampleConfig
from gan_mask.sampling.output import print_old_copies, print_summary, write_gallery, write_overview, write_table
from gan_mask.sampling.sampler import Sampler, checkpoint_of, load
from gan_mask.sampling.video import mask_clip

T = TypeVar("T")

BATCH_PIXELS = 30_000_000  # of photos in a batch, two of which are in memory (more only if one photo alone is larger)


def sample(c: SampleConfig) -> list[Row]:
    """Write OUT, or resume what is there; the rows of results.csv. It prints the summary.

    GanMaskError for wrong options; photos that cannot be read or written are rows that say so.
    """
    values.check(c)
    folder = check_folders(Path(c.faces), Path(c.out))
    with files.locked(c.out):
        return _sample(c, folder)


def _sample(c: SampleConfig, folder: Path) -> list[Row]:
    source, out = Path(c.faces), Path(c.out)
    names, problems = find_photos(source)
    if clips := [] if source.is_file() else sorted(path for path in source.iterdir() if is_clip(path)):
        told = f"clips are named one by one: --faces {clips[0]}"
        if not names:
            raise GanMaskError(f"--faces {source}: no photos in it, and {told}")
        print(f"{len(clips)} clip{'s' * (len(clips) > 1)} left out: {cli.printable(told)}")
    if not names:
        raise GanMaskError(f"--faces {source}: no image files in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    sampler = load(c)
    files.remove_leftovers(out)

    # Photos that are not done yet
    journal = Journal(out, folder, settings(c, sampler))
    targets = find_targets(names)
    todo = [name for name in names if not journal.finished(name, targets[name])]
    if len(todo) < len(names):
        print(f"{len(names) - len(todo)} of {len(names)} photos were done before")
    if is_clip(source) and source.is_file():
        for name in todo:
            journal.add({name: mask_clip(sampler, name, targets[name])})
    else:
        mask_photos(sampler, todo, targets, journal)

    # Table and pictures of all photos
    rows = [row for name in names for row in journal.entries[name]["rows"]] + problems
    write_table(out / TABLE, rows, sampler)
    write_overview(out / OVERVIEW, rows, sampler)
    if c.show:
        write_gallery(out / GALLERY, rows, sampler)
    print_summary(rows, sampler)
    print_old_copies(old_copies(out, {row["written"] for row in rows if "written" in row}), out)
    return rows


def mask_photos(sampler: Sampler, todo: Sequence[str], targets: Mapping[str, Targets], journal: Journal) -> None:
    with cli.Progress(total=len(todo), desc="photos", unit="photo") as bar:
        for batch, unreadable in ahead(batches(sampler, todo)):
            done = process(sampler, batch, targets) if batch else {}
            journal.add(done | unreadable)
            bar.update(len(done) + len(unreadable))


def batches(sampler: Sampler, names: Sequence[str]) -> Iterator[tuple[list[Photo], dict[str, list[Row]]]]:
    """Photos in batches that fit into memory, with rows for those that cannot be read."""
    batch: list[Photo] = []
    unreadable: dict[str, list[Row]] = {}
    for name in names:
        start = time.perf_counter()
        try:
            photo = sampler.photo(name)
            photo.seconds = time.perf_counter() - start
            batch.append(photo)
        except UnreadableImage as error:
            unreadable[name] = [{"photo": name, "status": "unreadable", "note": error.reason}]
        pixels = sum(p.image.shape[0] * p.image.shape[1] for p in batch)
        if len(batch) + len(unreadable) >= sampler.batch_size or pixels >= BATCH_PIXELS:
            yield batch, unreadable
            batch, unreadable = [], {}
    if batch or unreadable:
        yield batch, unreadable


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def settings(c: SampleConfig, sampler: Sampler) -> dict[str, Any]:
    """What the outputs depend on; the same settings resume what is in OUT."""
    told = {k: v for k, v in flat(c).items() if k not in ("out", "device", "batch_size", "show")}
    told |= {"faces": str(Path(c.faces).resolve())}
    if c.method == "generator":
        told["weights"] = [files.sha256(p) for p in sorted(checkpoint_of(c).rglob("*.safetensors"))]
    told["networks"] = fingerprints(sampler.embedders, sampler.detectors)
    if Path(sampler.masker.template).is_file():
        told["template_file"] = files.sha256(sampler.masker.template)
    return run_record.inputs("masked photos", told)


def main(argv: Sequence[str] | None = None) -> None:
    c = parse_with_attack(SampleConfig, argv, "sample.py", sampling.__doc__)
    forget_old_shapes()
    with cli.ending():
        sample(c)
