"""The folder of photos, and the journal of those that are done."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gan_mask import files, run_record
from gan_mask.data.folder_or_zip import walk
from gan_mask.errors import GanMaskError
from gan_mask.faces import UnreadableImage
from gan_mask.sampling import photo_writer
from gan_mask.sampling.clip import is_clip
from gan_mask.sampling.masker import Row

JOURNAL = ".sample.jsonl"  # in OUT: the settings, then one line per finished photo
TABLE, OVERVIEW, GALLERY = OURS = ("results.csv", "overview.png", "gallery.html")  # beside the photos in OUT


class Targets(NamedTuple):
    """Where in OUT the masked copy of a photo goes."""

    same: str  # if it keeps its format
    other: str  # if it becomes a PNG, or of a clip Matroska


def find_photos(source: Path) -> tuple[list[str], list[Row]]:
    """Relative paths of all photos below a folder, sorted, and rows for folders that cannot be listed.

    Of a single photo: its name.
    """
    if source.is_file():
        return [source.name], []
    problems: list[Row] = []

    def unlisted(error: OSError) -> None:
        name = Path(error.filename).relative_to(source).as_posix()
        problems.append({"photo": name, "status": "unreadable", "note": f"folder cannot be listed ({error.strerror})"})

    return sorted(path for path, _ in walk(source, unlisted)), problems


def find_targets(names: Sequence[str]) -> dict[str, Targets]:
    """Where each photo's masked copy goes: no two to one file, and none to a file or folder that is something else.

    Also where OUT tells neither case nor Unicode forms apart. A photo keeps its name if nothing is in its way.
    """
    stems = Counter(_alike(os.path.splitext(name)[0]) for name in names)
    taken = {_alike(str(folder)) for name in names for folder in PurePosixPath(name).parents}
    taken |= set(OURS)
    same = {name: _free(name, taken) for name in names}
    targets = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        ending = ".mkv" if is_clip(name) else ".png"
        other = f"{stem}{ending}" if stems[_alike(stem)] == 1 else f"{name}{ending}"
        targets[name] = Targets(same[name], same[name] if suffix.lower() == ending else _free(other, taken))
    return targets


def _alike(name: str) -> str:
    """The same for names that are one file on some file systems."""
    return unicodedata.normalize("NFC", name).casefold()


def _free(name: str, taken: set[str]) -> str:
    """`name`, with a number where it is taken, shortened where it is too long; takes it."""
    first, *rest = name.split("/")
    if rest and _alike(first) in OURS:  # a folder
        name = "/".join([f"{first}-photos", *rest])
    folder, slash, last = name.rpartition("/")
    stem, suffix = os.path.splitext(last)
    count, ending = 1, suffix
    while _alike(candidate := f"{folder}{slash}{_cut(stem, ending)}{ending}") in taken:
        count += 1
        ending = f"-{count}{suffix}"
    taken.add(_alike(candidate))
    return candidate


def _cut(stem: str, ending: str) -> str:
    """As much of `stem` as a file's name holds before `ending`."""
    while len(os.fsencode(stem + ending)) > files.NAME_BYTES:
        stem = stem[:-1]
    return stem


def check_folders(source: Path, out: Path) -> Path:
    """Makes `out`; the folder that photos' names are relative to. Refuses where originals could be written to."""
    if not source.exists():
        raise GanMaskError(f"--faces {source}: no such folder or photo")
    folder = source if source.is_dir() else source.parent
    inner, outer = folder.resolve(), out.resolve()
    nested = source.is_dir() and (inner in outer.parents or outer in inner.parents)
    if inner == outer or nested:
        raise GanMaskError(f"--out {out} and --faces {source} must be apart: the originals are never written to")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GanMaskError(f"--out {out}: cannot be made ({error.strerror})") from error
    return folder


def old_copies(out: Path, written: Container[str]) -> list[str]:
    """Masked copies in `out`, by their tag, that are not among `written`: their photo is gone, or they were made
    under other names. Sorted."""
    found = sorted(path for path, _ in walk(out, lambda _: None) if path not in written and path != OVERVIEW)
    return [path for path in found if _is_ours(out / path)]


def _is_ours(path: Path) -> bool:
    try:
        return photo_writer.read_provenance(path) is not None
    except UnreadableImage:
        return False


class Journal:
    """Finished photos in OUT, so that an interrupted run can resume. One JSON line each; the first is the settings.

    Lines stay in the file: of a finished photo, memory holds where its line begins.
    """

    def __init__(self, folder: Path, source: Path, settings: dict[str, Any]) -> None:
        self.path, self.folder, self.source = folder / JOURNAL, folder, source
        self._places: dict[str, int] = {}
        first, *lines = self._read() or [b"{}"]
        before = json.loads(first)
        if changed := run_record.differences(before if isinstance(before, dict) else {}, settings):
            if lines:
                print(f"{folder}: all photos are masked again, because of {'; '.join(changed.values())}")
            lines = []
        kept = {json.loads(line)["photo"]: line for line in lines}
        with files.replacing(self.path) as temporary, open(temporary, "wb") as f:
            f.write(_line(settings))
            for name, line in kept.items():
                self._places[name] = f.tell()
                f.write(line)

    def _read(self) -> list[bytes]:
        lines = []
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                try:
                    json.loads(line)
                except ValueError:  # the last line of a run that was killed
                    break
                lines.append(line + b"\n")
        return lines

    def finished(self, name: str, targets: Targets) -> bool:
        """Whether `name` is done, unchanged since, and its masked copy still there, at one of `targets`."""
        if name not in self._places:
            return False
        entry = self._entry(name)
        if entry["version"] != self._version(name):
            return False
        if any(row["status"] == "not written" for row in entry["rows"]):
            return False
        written = {row["written"] for row in entry["rows"] if "written" in row}
        return written <= set(targets) and all((self.folder / name).is_file() for name in written)

    def rows(self, name: str) -> list[Row]:
        """The rows of a finished photo."""
        found: list[Row] = self._entry(name)["rows"]
        return found

    def _entry(self, name: str) -> dict[str, Any]:
        with open(self.path, "rb") as f:
            f.seek(self._places[name])
            entry: dict[str, Any] = json.loads(f.readline())
        return entry

    def add(self, rows: dict[str, list[Row]]) -> None:
        lines = [_line({"photo": name, "version": self._version(name), "rows": found}) for name, found in rows.items()]
        # A batch in one write: a killed run then resumes with the batches, and so the bits, of an uninterrupted one.
        with open(self.path, "ab") as f:
            place = f.tell()
            f.write(b"".join(lines))
        for name, line in zip(rows, lines, strict=True):
            self._places[name] = place
            place += len(line)

    def _version(self, name: str) -> list[int] | None:
        try:
            status = os.stat(self.source / name)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]


def _line(entry: dict[str, Any]) -> bytes:
    return f"{json.dumps(entry)}\n".encode()


@dataclass
class Rows:
    """All rows of the table, from the journal, those of one photo in memory at a time; as often as wanted."""

    journal: Journal
    names: Sequence[str]  # of finished photos
    problems: Sequence[Row]

    def __iter__(self) -> Iterator[Row]:
        for name in self.names:
            yield from self.journal.rows(name)
        yield from self.problems
