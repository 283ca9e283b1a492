"""The command sample.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gan_mask import cli, engines, files, sampling, values
from gan_mask.cli.methods import parse_with_attack
from gan_mask.errors import GanMaskError
from gan_mask.faces import IMAGE_SUFFIXES, forget_old_shapes
from gan_mask.sampling.batch import batches, mask_batches
from gan_mask.sampling.clip import is_clip
from gan_mask.sampling.folder import (
    GALLERY,
    OVERVIEW,
    TABLE,
    Journal,
    Rows,
    Targets,
    check_folders,
    find_photos,
    find_targets,
    old_copies,
)
from gan_mask.sampling.masker import Row
from gan_mask.sampling.options import SampleConfig
from gan_mask.sampling.output import print_old_copies, print_summary, write_gallery, write_overview, write_table
from gan_mask.sampling.pool import mask_slices, processes
from gan_mask.sampling.sampler import Sampler, load, settings
from gan_mask.sampling.shards import sample_shards
from gan_mask.sampling.video import mask_clip

T = TypeVar("T")


def sample(c: SampleConfig) -> list[Row]:
    """Write OUT, or resume what is there; the rows of results.csv, none with `shards`. It prints the summary.

    GanMaskError for wrong options; photos that cannot be read or written are rows that say so. Without `workers` in one
    process: others would run the calling script anew, and only those who know of it guard it.
    """
    return list(run(replace(c, workers=c.workers or 1)))


def run(c: SampleConfig) -> Iterable[Row]:
    """`sample`, but the rows stay in OUT's journal and are read when they are asked for."""
    values.check(c)
    if c.shards:
        sample_shards(c)
        return []
    if c.engine != "local":
        raise GanMaskError("--engine divides photos into shards: add --shards 64, for 64 photos in each")
    folder = check_folders(Path(c.faces), Path(c.out))
    with files.locked(c.out):
        return _sample(c, folder)


def _sample(c: SampleConfig, folder: Path) -> Rows:
    source, out = Path(c.faces), Path(c.out)
    of_a_clip = is_clip(source) and source.is_file()
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
    if of_a_clip:
        for name in todo:
            journal.add({name: mask_clip(sampler, name, targets[name])})
    else:
        mask_photos(c, sampler, {name: targets[name] for name in todo}, journal, processes(c, len(names)))

    # Table and pictures of all photos
    rows = Rows(journal, names, problems)
    write_table(out / TABLE, rows, sampler, of_a_clip)
    write_overview(out / OVERVIEW, rows, sampler)
    if c.show:
        write_gallery(out / GALLERY, rows, sampler)
    print_summary(rows, sampler)
    print_old_copies(old_copies(out, {row["written"] for row in rows if "written" in row}), out)
    return rows


def mask_photos(
    c: SampleConfig, sampler: Sampler, targets: Mapping[str, Targets], journal: Journal, workers: int
) -> None:
    with cli.Progress(total=len(targets), desc="photos", unit="photo") as bar:

        def done(rows: dict[str, list[Row]]) -> None:
            journal.add(rows)
            bar.update(len(rows))

        if workers > 1:
            mask_slices(c, workers, targets, done)
            return
        for rows in mask_batches(sampler, ahead(batches(sampler, list(targets))), targets):
            done(rows)
            engines.give_back()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def main(argv: Sequence[str] | None = None) -> None:
    c = parse_with_attack(SampleConfig, argv, "sample.py", sampling.__doc__)
    forget_old_shapes()
    with cli.ending():
        run(c)
