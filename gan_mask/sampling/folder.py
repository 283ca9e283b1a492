"""The folder of photos, and the journal of those that are done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gan_mask import files
from gan_mask.errors import GanMaskError
from gan_mask.faces import IMAGE_SUFFIXES
from gan_mask.sampling.sampler import Row

JOURNAL = ".sample.jsonl"  # in OUT: the settings, then one line per finished photo


def find_photos(folder: Path) -> tuple[list[str], list[Row]]:
    """Relative paths of all image files below `folder`, sorted, and rows for folders that cannot be listed.

    Links are followed, each folder is visited once (links may form a loop).
    """
    photos: list[str] = []
    problems: list[Row] = []
    visited = set()

    def unlisted(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        problems.append({"photo": name, "status": "unreadable", "note": f"folder cannot be listed ({error.strerror})"})

    for root, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        photos += [
            (Path(root) / name).relative_to(folder).as_posix()
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(photos), problems


def check_folders(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise GanMaskError(f"--faces {source}: no such folder")
    inner, outer = source.resolve(), out.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise GanMaskError(f"--out {out} and --faces {source} must be apart: the originals are never written to")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GanMaskError(f"--out {out}: cannot be made ({error.strerror})") from error


class Journal:
    """Finished photos in OUT, so that an interrupted run can go on. One JSON line each; the first is the settings."""

    def __init__(self, folder: Path, source: Path, settings: dict[str, Any]) -> None:
        self.path, self.folder, self.source = folder / JOURNAL, folder, source
        self.entries: dict[str, dict[str, Any]] = {}
        lines = self._read()
        if lines and lines[0] == settings:
            self.entries = {line["photo"]: line for line in lines[1:]}
        with files.replacing(self.path) as temporary, open(temporary, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(line) + "\n" for line in (settings, *self.entries.values()))

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:  # the last line of a run that was killed
                    break
        return lines

    def finished(self, name: str) -> bool:
        """Whether `name` is done, unchanged since, and its masked copy still there."""
        entry = self.entries.get(name)
        if entry is None or entry["version"] != self._version(name):
            return False
        return all((self.folder / row["written"]).is_file() for row in entry["rows"] if "written" in row)

    def add(self, rows: dict[str, list[Row]]) -> None:
        for name, found in rows.items():
            self.entries[name] = {"photo": name, "version": self._version(name), "rows": found}
        # A batch in one write: a killed run then goes on with the batches, and so the bits, of an uninterrupted one.
        with open(self.path, "ab") as f:
            f.write("".join(json.dumps(self.entries[name]) + "\n" for name in rows).encode())

    def _version(self, name: str) -> list[int] | None:
        try:
            status = os.stat(self.source / name)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]
