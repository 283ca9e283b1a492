"""Any face data set -> prepared set: find, landmark, align and pack every photo (data_prep/prepare.py).

Photos are worked on in fixed chunks of their sorted list. A finished chunk is one file in DST/.parts, whole or
absent, so a killed run resumes where it was, and neither that nor who works on them (`gan_mask.engines`) changes a byte
of the result.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict, get_args

import numpy as np
import torch
from PIL import Image

from gan_mask import cli, engines, run_record, values
from gan_mask.cli import Progress
from gan_mask.data.folder_or_zip import Photo, Source, doubts
from gan_mask.data.prepared import EMBEDDED, FORMAT, INDEX, SPLITS
from gan_mask.engines import WORKERS, Engine, EngineName
from gan_mask.errors import GanMaskError
from gan_mask.faces import Face, FaceFinder, UnreadableImage, align, forget_old_shapes
from gan_mask.files import read_json, remove_leftovers, replacing, write_json
from gan_mask.values import FRACTION, SEED, Range, limited

CHUNK = 64  # photos
PIXELS_AT_ONCE = 32_000_000  # decoded photos held in memory, so that a chunk of huge ones fits
UTF8 = ("utf-8", "surrogateescape")  # file names need not be valid UTF-8


@dataclass(frozen=True)
class Settings:
    """All that shapes the result; a set is continued only with the settings it was begun with."""

    size: int = limited(160, Range(32, 1024))  # pixels
    margin: float = limited(0.375, Range(0, 2))
    min_score: float = limited(0.9, FRACTION)
    min_size: int = limited(40, Range(FaceFinder.SMALLEST, 65536))  # pixels
    splits: tuple[float, ...] = limited((0.9, 0.05, 0.05), FRACTION)
    seed: int = limited(0, SEED)
    quality: int = limited(95, Range(1, 100))
    identity_regex: str | None = None  # by folder, see folder_or_zip.people

    def check(self) -> None:
        values.check(self)
        if not (len(self.splits) == 3 and math.isclose(sum(self.splits), 1, abs_tol=1e-6)):
            shown = ",".join(map(str, self.splits))
            raise GanMaskError(f"--splits: expected three fractions that sum to 1, such as 0.9,0.05,0.05, got {shown}")
        if self.identity_regex is None:
            return
        try:
            groups = re.compile(self.identity_regex).groups
        except re.error as error:
            raise GanMaskError(f"--identity-regex: not a regular expression ({error})") from None
        if not groups:
            raise GanMaskError(
                f"--identity-regex: expected a regular expression whose first group is the person, "
                f"got {self.identity_regex!r}"
            )


@dataclass(frozen=True)
class PrepareConfig(Settings):
    """A job: which photos become which set, and on what; with the settings."""

    src: str = ""  # see `Source`, or "synthetic" for the faces in the package
    dst: str = ""  # new folder for the prepared set
    workers: int = limited(1, WORKERS)  # processes
    engine: EngineName = "local"  # who works on the chunks: processes of this machine, or a Ray cluster
    ray_address: str = ""  # of a running cluster
    device: str = "cpu"  # where faces are searched: cpu, cuda, cuda:1, ...

    @property
    def settings(self) -> Settings:
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    def check(self) -> None:
        super().check()
        for name in ("src", "dst"):
            if not getattr(self, name):
                raise GanMaskError(f"{name} is missing")
        if self.engine == "ray":
            return  # the device is the workers'
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise GanMaskError(f"--device {self.device}: not usable here ({str(error).splitlines()[0]})") from None


Summary = TypedDict("Summary", {
    "photos": int, "faces": int, "people": int, "splits": dict[str, dict[str, int]],  # split -> people, faces
    "no face": int, "unreadable": int, "several faces": int, "doubtful landmarks": int,
})  # fmt: skip


# -------------------------------------------------------------------------------------------- one chunk

Searched = tuple[Photo, np.ndarray, list[Face]]


class Worker:
    """Turns chunks of photos into part files."""

    def __init__(self, source: str, parts: Path, settings: Settings, device: str) -> None:
        forget_old_shapes()  # on Ray, this process has not heard of it
        self.source, self.parts, self.settings = Source(source), parts, settings
        self.finder = FaceFinder(device, settings.min_score, settings.min_size)

    def __call__(self, number: int, photos: Sequence[Photo]) -> int:
        """Write chunk `number`; returns the number of photos."""
        crops, records, kept = bytearray(), [], []
        notes: list[tuple[str, str, str]] = []
        for photo, image, faces in self._search(photos, notes):
            if not faces:
                notes.append((photo.path, "no face", ""))
                continue
            face = most_prominent(faces, image.shape[:2])
            if len(faces) > 1:
                box = " ".join(f"{edge:.0f}" for edge in face.box)
                notes.append((photo.path, "several faces", f"kept the one at {box} of {len(faces)}"))
            if face.doubt:
                notes.append((photo.path, "doubtful landmarks", f"kept; {face.doubt}"))
            crop, landmarks = align(image, face.landmarks, self.settings.size, self.settings.margin)
            encoded = BytesIO()
            Image.fromarray(crop).save(encoded, "JPEG", quality=self.settings.quality, subsampling=0)
            record = np.zeros((), INDEX)
            record["crop"], record["crop_length"] = len(crops), len(encoded.getvalue())
            record["score"], record["landmarks"], record["faces_in_photo"] = face.score, landmarks, len(faces)
            crops += encoded.getvalue()
            records.append(record)
            kept.append({"path": photo.path, "person": photo.person})
        text = np.frombuffer(json.dumps({"kept": kept, "notes": sorted(notes)}).encode(), np.uint8)
        packed = np.frombuffer(crops, np.uint8)
        with replacing(part_path(self.parts, number)) as temporary, open(temporary, "wb") as f:
            np.savez(f, records=np.array(records, INDEX), crops=packed, text=text)
        return len(photos)

    def _search(self, photos: Sequence[Photo], notes: list[Any]) -> Iterator[Searched]:
        """The readable photos with their faces; the others go to `notes`."""
        batch: list[tuple[Photo, np.ndarray]] = []
        for photo in photos:
            try:
                batch.append((photo, self.source.read(photo)))
            except UnreadableImage as error:
                notes.append((photo.path, "unreadable", error.reason))
            if sum(image.size // 3 for _, image in batch) > PIXELS_AT_ONCE:
                yield from self._found(batch)
                batch = []
        yield from self._found(batch)

    def _found(self, batch: list[tuple[Photo, np.ndarray]]) -> Iterator[Searched]:
        for (photo, image), faces in zip(batch, self.finder.find([image for _, image in batch]), strict=True):
            yield photo, image, faces


def most_prominent(faces: Sequence[Face], shape: Sequence[int]) -> Face:
    """The largest and most central face: area x (1 - distance from the centre / half the diagonal)^2."""
    height, width = shape

    def prominence(face: Face) -> float:
        x, y = (face.box[:2] + face.box[2:]) / 2
        distance = math.hypot(x - (width - 1) / 2, y - (height - 1) / 2) / math.hypot(width / 2, height / 2)
        return face.area * max(0.0, 1 - distance) ** 2

    return max(faces, key=prominence)


def part_path(parts: Path, number: int) -> Path:
    return parts / f"{number:07d}.npz"


# -------------------------------------------------------------------------------------------- the set


def prepare(c: PrepareConfig) -> Summary:
    """Make the prepared set `dst`; how many photos, faces and people there are.

    Resumes where an earlier, interrupted call with the same settings stopped. GanMaskError for wrong settings, for a
    folder of others, and where no photo has a face; photos that cannot be read are listed in dst/skipped.csv.
    """
    c.check()
    settings, dst = c.settings, Path(c.dst)
    source = Source(EMBEDDED if c.src == "synthetic" else c.src)
    photos = source.photos(settings.identity_regex)
    if settings.identity_regex is None and (doubt := doubts(photos)):
        print(cli.printable(doubt), file=sys.stderr)
    begun = run_record.inputs(
        "prepared set", asdict(settings), format=FORMAT, source=source.name, photos=len(photos),
        photos_sha256=source.names(photos), contents_sha256=source.sizes(photos),
    )  # fmt: skip
    remedy = f"use the same ones or another DST, or delete {dst}"
    with _writing(dst):
        parts = dst / ".parts"
        if _is_finished(dst, begun, remedy):
            shutil.rmtree(parts, ignore_errors=True)
            return read_json(dst / "summary.json")
        with run_record.claimed(parts / "settings.json", begun, remedy):
            remove_leftovers(dst)
            numbered = {n: photos[n * CHUNK : (n + 1) * CHUNK] for n in range(math.ceil(len(photos) / CHUNK))}
            left = {n: chunk for n, chunk in numbered.items() if not part_path(parts, n).is_file()}
            done = len(photos) - sum(map(len, left.values()))
            with Progress(total=len(photos), initial=done, desc="prepare", unit=" photos", smoothing=0.05) as bar:
                engine = Engine(c.engine, c.workers, c.ray_address, c.device)
                engines.run(engine, Worker, (source.address, parts.absolute(), settings, c.device), left, bar.update)
            summary = _finish(dst, [part_path(parts, n) for n in numbered], settings, begun)
        shutil.rmtree(parts)
        return summary


@contextmanager
def _writing(dst: Path) -> Iterator[None]:
    """OSErrors inside are about `dst`: reading a photo never raises one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise GanMaskError(f"{dst}: cannot be written ({reason}); make room or choose another place") from error


def _is_finished(dst: Path, begun: dict[str, Any], remedy: str) -> bool:
    """Whether `dst` is the set of these inputs. Refuses those of others, and other people's folders."""
    if (meta := run_record.read(dst / "meta.json")) is not None:
        settings = meta.get("settings")
        run_record.check(dst, settings if isinstance(settings, dict) else {}, begun, remedy)
        return True
    begins = not (dst / ".parts" / "settings.json").is_file()
    if begins and dst.is_dir() and {entry.name for entry in dst.iterdir()} - {".parts"}:
        raise GanMaskError(f"{dst}: not empty and not a prepared set; choose a new folder")
    return False


@dataclass
class Part:
    records: np.ndarray  # INDEX, with offsets inside this part
    crops: np.ndarray
    kept: list[dict[str, str]]  # path and person of each record
    notes: list[list[str]]  # path, reason, detail


def _load(paths: Iterable[Path]) -> Iterator[Part]:
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as part:
                loaded = Part(part["records"], part["crops"], **json.loads(part["text"].tobytes()))
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise GanMaskError(f"{path}: damaged ({error}); delete it and run the same command again") from error
        yield loaded


def _finish(dst: Path, parts: Sequence[Path], settings: Settings, begun: dict[str, Any]) -> Summary:
    """Join the parts, one in memory at a time; meta.json comes last and makes the set valid."""
    faces_of, reasons = _counted(parts)
    if not faces_of:
        example = " ".join(next(note for part in _load(parts) for note in part.notes)).strip()
        shutil.rmtree(dst / ".parts")
        raise GanMaskError(
            f"no face in any of the {begun['photos']} photos ({_counts(reasons)}; the first: {example}). "
            "Lower --min-score or --min-size, or look at the photos"
        )
    split_of = {person: split(person, settings) for person in sorted(faces_of)}
    _join(dst, parts, faces_of.total(), split_of)
    summary: Summary = {
        "photos": begun["photos"], "faces": faces_of.total(), "people": len(split_of),
        "splits": {name: _in_split(name, split_of, faces_of) for name in SPLITS},
        "no face": reasons["no face"], "unreadable": reasons["unreadable"], "several faces": reasons["several faces"],
        "doubtful landmarks": reasons["doubtful landmarks"],
    }  # fmt: skip
    write_json(dst / "summary.json", summary)
    sizes = {name: os.path.getsize(dst / name) for name in ("index.npy", "crops.bin", "strings.bin")}
    meta = {"format": FORMAT, "size": settings.size, "margin": settings.margin}
    counts = {"faces": summary["faces"], "people": summary["people"], "splits": summary["splits"]}
    write_json(dst / "meta.json", {**meta, **counts, "bytes": sizes, "settings": begun})
    return summary


def _counted(parts: Sequence[Path]) -> tuple[Counter[str], Counter[str]]:
    """Faces of each person, and notes of each kind."""
    faces_of: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for part in _load(parts):
        faces_of.update(kept["person"] for kept in part.kept)
        reasons.update(reason for _, reason, _ in part.notes)
    return faces_of, reasons


def _in_split(name: str, split_of: dict[str, str], faces_of: Counter[str]) -> dict[str, int]:
    people = [person for person, s in split_of.items() if s == name]
    return {"people": len(people), "faces": sum(faces_of[person] for person in people)}


def _join(dst: Path, parts: Sequence[Path], faces: int, split_of: dict[str, str]) -> None:
    """Write the set's files but for meta.json and summary.json. split_of: of all people, by name."""
    with (
        replacing(dst / "index.npy") as index_path, open(index_path, "wb") as index,
        replacing(dst / "crops.bin") as crops_path, open(crops_path, "wb") as crops,
        replacing(dst / "strings.bin") as strings_path, open(strings_path, "wb") as strings,
        replacing(dst / "skipped.csv") as skipped_path, open(skipped_path, "w", -1, *UTF8, newline="") as skipped,
    ):  # fmt: skip
        header = {"descr": np.lib.format.dtype_to_descr(INDEX), "fortran_order": False, "shape": (faces,)}
        np.lib.format.write_array_header_1_0(index, header)
        table = csv.writer(skipped)
        table.writerow(["path", "reason", "detail"])
        place: dict[str, tuple[int, int, int]] = {}  # person -> identity, offset, length
        for identity, person in enumerate(split_of):
            place[person] = identity, strings.tell(), strings.write(person.encode(*UTF8))
        for part in _load(parts):
            records = part.records
            records["crop"] += np.uint64(crops.tell())
            for record, kept in zip(records, part.kept, strict=True):
                record["identity"], record["person"], record["person_length"] = place[kept["person"]]
                record["split"] = SPLITS.index(split_of[kept["person"]])
                record["source"], record["source_length"] = strings.tell(), strings.write(kept["path"].encode(*UTF8))
            crops.write(part.crops.tobytes())
            index.write(records.tobytes())
            table.writerows(part.notes)


def split(person: str, settings: Settings) -> str:
    """Depends on the person's name and the seed alone: more people in SRC never move anybody."""
    digest = hashlib.sha256(f"{settings.seed}/{person}".encode(*UTF8)).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    train, val, _ = settings.splits
    return SPLITS[0] if draw < train else SPLITS[1] if draw < train + val else SPLITS[2]


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))


# -------------------------------------------------------------------------------------------- command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="prepare.py",
        description="Prepare a face data set for training: find faces, 68 landmarks, aligned crops, split by person. "
        "Interrupted? Run the same command again; it resumes where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    d = Settings()
    add = parser.add_argument_group("source and destination").add_argument
    add(
        "src", metavar="SRC",
        help="folder, .zip or .tar, folder of .tar files, or fsspec address such as s3://BUCKET/FOLDER: "
        "PERSON/photo.*, also in folders below (LFW, VGGFace2, CASIA-WebFace), or photos in no folder, whose persons "
        "are their file names without a trailing _NNNN; or the word `synthetic` for the faces in the package",
    )  # fmt: skip
    add("dst", metavar="DST", help="new folder for the prepared set")

    add = parser.add_argument_group("people").add_argument
    add(
        "--splits", type=_fractions, default=",".join(map(str, d.splits)), metavar="TRAIN,VAL,TEST",
        help="fractions of the people, by name",
    )  # fmt: skip
    add("--seed", type=cli.type_of(Settings, "seed"), default=d.seed, help="of the split")
    add(
        "--identity-regex", default=d.identity_regex,
        help="its group 1 is the person; matched against the file name without suffix or, where there is a / in it, "
        "against the path in SRC",
    )  # fmt: skip

    add = parser.add_argument_group("faces").add_argument
    add("--size", type=cli.type_of(Settings, "size"), default=d.size, help="side of the crops, pixels")
    add(
        "--margin",
        type=cli.type_of(Settings, "margin"),
        default=d.margin,
        help="space left and right of the jaw, as a fraction of its width",
    )
    add(
        "--min-score",
        type=cli.type_of(Settings, "min_score"),
        default=d.min_score,
        help="least face probability, 0 to 1",
    )
    add(
        "--min-size",
        type=cli.type_of(Settings, "min_size"),
        default=d.min_size,
        help="smallest face to find, photo pixels",
    )
    add("--quality", type=cli.type_of(Settings, "quality"), default=d.quality, help="of the crops' JPEG, 1 to 100")

    add = parser.add_argument_group("machine").add_argument
    add("--workers", type=cli.number(int, WORKERS), default=engines.cores(), help="processes")
    add("--engine", choices=get_args(EngineName), default="local", help="processes here, or a Ray cluster")
    add("--ray-address", default="", metavar="ADDRESS", help="of a running cluster; without one it is started here")
    add("--device", default="cpu", help="where faces are searched: cpu, cuda, cuda:1, ...")
    cli.add_message_options(parser)
    return parser.parse_args(argv)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(cli.number(float, FRACTION), text.split(",")))
    except argparse.ArgumentTypeError:
        complaint = f"expected three fractions that sum to 1, such as 0.9,0.05,0.05, got {text!r}"
        raise argparse.ArgumentTypeError(complaint) from None


def main(argv: Sequence[str] | None = None) -> None:
    c = PrepareConfig(**vars(parse_args(argv)))
    started = time.monotonic()
    forget_old_shapes()
    with cli.ending(f"run the same command again to continue {c.dst}"):
        print_summary(prepare(c), Path(c.dst))
        print(f"{time.monotonic() - started:.0f} s")


def print_summary(summary: Summary, dst: Path) -> None:
    for name, part in summary["splits"].items():
        print(f"{name:5} {part['people']:7} people {part['faces']:8} faces" + ("" if part["faces"] else "  (empty)"))
    print(f"{summary['photos']} photos -> {summary['faces']} faces of {summary['people']} people")
    print(
        f"left out: {summary['no face']} without a face, {summary['unreadable']} unreadable; "
        f"{summary['several faces']} with several faces, one kept; "
        f"{summary.get('doubtful landmarks', 0)} with doubtful landmarks, kept; see {dst / 'skipped.csv'}"
    )
