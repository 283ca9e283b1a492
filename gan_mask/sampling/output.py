"""results.csv, the overview, the gallery and the summary."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from gan_mask import cli, files
from gan_mask.faces import read_image
from gan_mask.sampling import clip, contact_sheet
from gan_mask.sampling.masker import Row
from gan_mask.sampling.sampler import FAR, Sampler
from gan_mask.sampling.verdicts import LOST, outcome, severity, verdicts

PAIRS = 12  # faces on the overview, some 300 kB each
IN_GALLERY = 200  # faces in the gallery
FAILED = ("unreadable", "not written")  # statuses of photos whose row has a note


def write_table(path: Path, rows: Iterable[Row], sampler: Sampler, of_a_clip: bool = False, timed: bool = True) -> None:
    columns = ["photo", "status", "face", "written", "template", "box"]
    if sampler.measures:
        columns += ["face_found_after"]
        for name in sampler.embedders:
            columns += [f"similarity_{name}", f"threshold_{name}"]
        for name in sampler.detectors:
            columns += [f"mask_logit_before_{name}", f"mask_logit_after_{name}"]
    if sampler.masker.method.optimises:
        columns += ["iterations"] + (["attack_seconds"] if timed else [])
    if of_a_clip:
        columns += ["start", "end", "frames", "at"]
    columns += (["seconds"] if timed else []) + ["note"]
    with files.replacing(path) as temporary:
        # surrogateescape: file names need not be UTF-8
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(rows)


def write_overview(path: Path, rows: Iterable[Row], sampler: Sampler) -> None:
    """A picture of unmasked and masked faces, those first where something went wrong."""
    pairs, title = _pairs(rows, sampler, PAIRS)
    if pairs:
        contact_sheet.contact_sheet(pairs, f"unmasked | masked: {title}", path)
    else:
        path.unlink(missing_ok=True)  # of an earlier run


def write_gallery(path: Path, rows: Iterable[Row], sampler: Sampler) -> None:
    """A page with a slider between each unmasked and masked face, those first where something went wrong."""
    from gan_mask.sampling import gallery  # needs jinja2

    pairs, title = _pairs(rows, sampler, IN_GALLERY)
    gallery.write(pairs, title, path)
    print(f"gallery: {path}")


def _pairs(rows: Iterable[Row], sampler: Sampler, most: int) -> tuple[list[contact_sheet.Pair], str]:
    """At most so many faces, evenly chosen from the table and then sorted, and what they are."""
    count = sum(row["status"] == "ok" for row in rows)
    evenly = set(np.linspace(0, count - 1, min(most, count)).astype(int).tolist())
    masked = (row for row in rows if row["status"] == "ok")
    chosen = [row for number, row in enumerate(masked) if number in evenly]
    title = f"{len(chosen)} of {count} faces, method {sampler.method_name}"
    look = lru_cache(maxsize=2)(picture_of)  # a photo before and after, for all of its faces
    pairs = [(severity(row), _pair(row, sampler, look)) for row in chosen]
    return [pair for _, pair in sorted(pairs, key=lambda item: item[0])], title


def _pair(row: Row, sampler: Sampler, look: Callable[[Path, float | None], np.ndarray]) -> contact_sheet.Pair:
    paths = sampler.source / row["photo"], sampler.out / row["written"]
    pictures = [look(path, row.get("at")) for path in paths]
    height, width = pictures[0].shape[:2]
    left, top, right, bottom = window_of((width, height), tuple(map(float, row["box"].split())))
    faces = [Image.fromarray(picture[top:bottom, left:right]) for picture in pictures]
    caption = [row["photo"] + (f" at {row['at']:.1f} s" if "at" in row else "")]
    if outcome(row) == LOST:
        caption.append("no face found any more")
    return contact_sheet.Pair(faces[0], faces[1], caption, verdicts(row), outcome(row))


def picture_of(path: Path, at: float | None) -> np.ndarray:
    """The photo, or of a clip the frame at so many seconds."""
    if at is None:
        return read_image(path)
    with clip.reading(path) as opened:
        return opened.at(at)


def window_of(size: tuple[int, int], box: Sequence[float]) -> tuple[int, int, int, int]:
    """A square around a face's box, within the photo."""
    side = round(min(1.5 * max(box[2] - box[0], box[3] - box[1]), *size))
    left, top = (
        round(min(max((low + high - side) / 2, 0), length - side))
        for low, high, length in zip(box[:2], box[2:], size, strict=True)
    )
    return left, top, left + side, top + side


def print_old_copies(names: Sequence[str], out: Path) -> None:
    """They are never removed, since they may still be needed."""
    if names:
        shown = ", ".join(map(cli.printable, names[:10])) + (", ..." if len(names) > 10 else "")
        print(
            f"{len(names)} older masked copies in {out} are of no photo of this run (gone, renamed, or without a face "
            f"now), and in no table: {shown}. Delete them if nobody needs them"
        )


def print_summary(rows: Iterable[Row], sampler: Sampler, picture: str = "overview.png") -> None:
    """In one pass over the rows, of which those of a photo stand together. picture: that shows the faces, if any."""
    count: Counter[str] = Counter()
    failed: list[str] = []
    clips, last = False, None
    for row in rows:
        status, name = row["status"], row["photo"]
        clips = clips or clip.is_clip(name)
        count[status] += 1
        if status in FAILED:
            failed.append(f"  {status}: {cli.printable(name + ': ' + row['note'])}")
        if status != "ok":
            continue
        count["masked"] += name != last
        last = name
        if not (sampler.measures and row["face_found_after"]):
            continue
        count["found"] += 1
        for network in sampler.embedders:
            count[f"another person {network}"] += row[f"similarity_{network}"] < row[f"threshold_{network}"]
        for network in sampler.detectors:
            for when in ("before", "after"):
                count[f"{when} {network}"] += row[f"mask_logit_{when}_{network}"] > 0
    print(
        f"\n{count['masked']} {'clips' if clips else 'photos'} masked ({count['ok']} faces), "
        f"{count['no face']} without a face, {count['unreadable']} unreadable"
        + (f", {count['not written']} not written" if count["not written"] else "")
    )
    for line in failed:
        print(line)
    if count["ok"] and sampler.measures:
        print(f"face found in the written file: {count['found']} of {count['ok']}")
    for network in sampler.embedders if count["found"] else ():
        other = count[f"another person {network}"]
        print(f"{network} takes for another person (FAR {FAR:g}): {other} of {count['found']}")
    for network in sampler.detectors if count["found"] else ():
        before, after = count[f"before {network}"], count[f"after {network}"]
        print(f"{network} reports a mask: {after} of {count['found']} (before: {before})")
    shown = f"   picture: {sampler.out / picture}" if count["ok"] and picture else ""
    print(f"table: {sampler.out / 'results.csv'}{shown}")
