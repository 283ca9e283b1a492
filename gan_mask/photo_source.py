"""The photos of a data set, in a folder or a zip file, and whose they are. A stranger's archive is not trusted."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from gan_mask.errors import GanMaskError
from gan_mask.faces import IMAGE_SUFFIXES, MAX_BYTES, UnreadableImage, read_image

BOMB_BYTES, BOMB_RATIO = 50_000_000, 100  # no photo of this size shrinks this much


@dataclass(frozen=True)
class Photo:
    path: str  # inside SRC, with /
    person: str


class Source:
    """The photos of a folder or zip file. `photos` reads names only; `read` is safe for names from `photos`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        if not self.path.exists():
            raise GanMaskError(f"{path}: no such folder or zip file")
        if self.path.is_dir():
            return
        try:
            self._zip = zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise GanMaskError(f"{path}: neither a folder nor an intact .zip file ({error})") from None
        except OSError as error:
            raise GanMaskError(f"{path}: cannot be read ({error.strerror})") from None

    def photos(self, identity_regex: str) -> list[Photo]:
        """All image files, sorted by path, each with its person."""
        if self._zip:
            _refuse_malicious(self.path, self._zip.infolist())
        names = self._zip.namelist() if self._zip else _walk(self.path)
        paths = sorted({name for name in names if _is_photo(name)})
        if not paths:
            raise GanMaskError(f"{self.path}: no image files in it (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")
        folders = [PurePosixPath(path).parent.parts for path in paths]
        # lfw/NAME/x.jpg and NAME/x.jpg are the same set: folders around all photos say nothing.
        shared = len(os.path.commonprefix([min(folders), max(folders)]))
        return [
            Photo(path, "/".join(folder[shared:]) or _person(path, identity_regex))
            for path, folder in zip(paths, folders, strict=True)
        ]

    def read(self, path: str) -> np.ndarray:
        """Decode one photo. Raises UnreadableImage."""
        if not self._zip:
            return read_image(self.path / path, path)
        if self._zip.getinfo(path).file_size > MAX_BYTES:
            raise UnreadableImage(path, f"larger than {MAX_BYTES >> 20} MiB")
        try:
            content = self._zip.read(path)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise UnreadableImage(path, f"damaged, encrypted or unsupported in the zip file ({error})") from error
        return read_image(content, path)


def _refuse_malicious(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Archives made to escape, to mislead or to blow up. Nothing is ever extracted to disk; still, none is wanted."""

    def refuse(entry: zipfile.ZipInfo, why: str) -> None:
        raise GanMaskError(f"{path}: refused, {entry.filename!r} {why}; unpack it yourself if you trust it")

    seen: set[str] = set()
    for entry in entries:
        place = PurePosixPath(entry.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or re.match("[A-Za-z]:", entry.filename):
            refuse(entry, "points out of the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            refuse(entry, "is a symbolic link")
        if entry.filename in seen:
            refuse(entry, "is in it twice")
        if entry.file_size > BOMB_BYTES and entry.file_size > BOMB_RATIO * entry.compress_size:
            refuse(entry, f"unpacks to {entry.file_size} bytes from {entry.compress_size}, a decompression bomb")
        seen.add(entry.filename)
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise GanMaskError(f"{path}: refused, its entries overlap, a decompression bomb")


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files under `folder`; links to folders are followed, each folder once."""

    def fail(error: OSError) -> None:
        raise GanMaskError(f"{error.filename}: cannot be read ({error.strerror})")

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        seen.add(os.path.realpath(parent))
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(parent, f)) not in seen]
        yield from (PurePosixPath(os.path.relpath(os.path.join(parent, name), folder)).as_posix() for name in names)


def _is_photo(name: str) -> bool:
    """An image by its suffix, at a safe place, and no hidden file of some system."""
    path = PurePosixPath(name)
    if path.suffix.lower() not in IMAGE_SUFFIXES or name.endswith("/"):
        return False
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)  # `..` too
    return not (hidden or path.is_absolute())


def _person(path: str, identity_regex: str) -> str:
    match = re.fullmatch(identity_regex, PurePosixPath(path).stem)
    if not match or not match[1]:
        raise GanMaskError(f"{path}: --identity-regex {identity_regex!r} finds no person in this file name")
    return match[1]
