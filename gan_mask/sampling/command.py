"""The command sample.py."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gan_mask import attacks, belongs, cli, files, masking, sampling
from gan_mask.cli.methods import add_method_options
from gan_mask.errors import GanMaskError
from gan_mask.faces import IMAGE_SUFFIXES, UnreadableImage, forget_old_shapes
from gan_mask.pretrained.protocol import fingerprints
from gan_mask.sampling.batch import process
from gan_mask.sampling.folder import (
    GALLERY,
    OVERVIEW,
    TABLE,
    Journal,
    check_folders,
    find_photos,
    find_targets,
    old_copies,
)
from gan_mask.sampling.masker import Photo, Row
from gan_mask.sampling.output import print_old_copies, print_summary, write_gallery, write_overview, write_table
from gan_mask.sampling.sampler import Sampler, checkpoint_of, load
from gan_mask.values import FRACTION, SEED, Range

T = TypeVar("T")

BATCH_PIXELS = 30_000_000  # of photos in a batch, two of which are in memory (more only if one photo alone is larger)


def sample(args: argparse.Namespace) -> list[Row]:
    """Do what the command says; the rows of results.csv."""
    folder = check_folders(Path(args.faces), Path(args.out))
    with files.locked(args.out):
        return _sample(args, folder)


def _sample(args: argparse.Namespace, folder: Path) -> list[Row]:
    source, out = Path(args.faces), Path(args.out)
    names, problems = find_photos(source)
    if not names:
        raise GanMaskError(f"--faces {source}: no image files in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    sampler = load(args)
    files.remove_leftovers(out)
    journal = Journal(out, folder, settings(args, sampler))
    targets = find_targets(names)
    todo = [name for name in names if not journal.finished(name, targets[name])]
    if len(todo) < len(names):
        print(f"{len(names) - len(todo)} of {len(names)} photos were done before")
    with cli.Progress(total=len(todo), desc="photos", unit="photo") as bar:
        for batch, unreadable in ahead(batches(sampler, todo)):
            rows = process(sampler, batch, targets) if batch else {}
            journal.add(rows | unreadable)
            bar.update(len(rows) + len(unreadable))
    rows_of_all = [row for name in names for row in journal.entries[name]["rows"]] + problems
    write_table(out / TABLE, rows_of_all, sampler)
    write_overview(out / OVERVIEW, rows_of_all, sampler)
    if args.show:
        write_gallery(out / GALLERY, rows_of_all, sampler)
    print_summary(rows_of_all, sampler)
    print_old_copies(old_copies(out, {row["written"] for row in rows_of_all if "written" in row}), out)
    return rows_of_all


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


def settings(args: argparse.Namespace, sampler: Sampler) -> dict[str, Any]:
    """What the outputs depend on; the same settings go on with what is in OUT."""
    values = {k: v for k, v in vars(args).items() if k not in ("out", "device", "batch_size", "show")}
    values |= {"faces": str(Path(args.faces).resolve())}
    if args.method == "generator":
        folder = checkpoint_of(args)
        values["weights"] = [files.sha256(p) for p in sorted(folder.rglob("*.safetensors"))]
    values["networks"] = fingerprints(sampler.embedders, sampler.detectors)
    if Path(sampler.masker.template).is_file():
        values["template_file"] = files.sha256(sampler.masker.template)
    return belongs.inputs("masked photos", values)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="sample.py", description=sampling.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("photos").add_argument
    add(
        "--faces",
        required=True,
        help="folder of photos, searched with its subfolders, or one photo; never written to; required",
    )
    add("--out", required=True, help="folder for the masked photos, results.csv and overview.png; required")
    add("--show", action="store_true", help="write OUT/gallery.html, too: a slider between before and after per face")
    add("--largest", action="store_true", help="only the largest face of each photo")
    add(
        "--min-score",
        type=cli.number(float, FRACTION),
        default=0.9,
        help="lowest score of a face, in [0, 1] (default: 0.9)",
    )

    add = parser.add_argument_group("masks").add_argument
    add(
        "--method",
        default="generator",
        choices=[m for m in attacks.METHODS if m not in ("none", "dm-seamless")],  # dm is seamless by --placement
        help="what makes the masks (default: generator)",
    )
    add("--checkpoint", help="generator: its folder, or a run folder of train.py (default: the shipped one)")
    add("--template", help="what the mask shows: a shipped template, a photo, 'random', or 'match': "
        "for each face the shipped one nearest in pose, expression and skin (default: match; of a checkpoint that was "
        "trained with a photo, that one)")  # fmt: skip
    add("--placement", default="seamless", choices=masking.PLACEMENTS, help="'seamless' clones the mask into the "
        "face, 'paper' lays it over; a generator has the one that it was trained with (default: seamless)")  # fmt: skip
    add("--harmonise", action="store_true", help="give the template the colours of the wearer's lower face first")
    add(
        "--seed",
        type=cli.number(int, SEED),
        default=0,
        help="of the methods' randomness and of random templates (default: 0)",
    )

    add = parser.add_argument_group("networks and device").add_argument
    add("--embedders", nargs="*", default=["dlib"], metavar="NAME",
        help="measure similarity with these, optimise against them (default: dlib)")  # fmt: skip
    add("--detectors", nargs="*", default=["classifier"], metavar="NAME", help="mask detectors (default: classifier)")
    add(
        "--batch-size",
        type=cli.number(int, Range(1, 65536)),
        default=16,
        help="photos and faces at a time (default: 16)",
    )
    add("--device", default="cpu", choices=["cpu", "cuda"], help="cpu or cuda (default: cpu)")
    add_method_options(parser)
    cli.add_message_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    forget_old_shapes()
    with cli.ending():
        sample(args)
