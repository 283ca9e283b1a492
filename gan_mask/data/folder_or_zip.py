"""The photos of a data set, and whose they are: in a folder, a zip file, tar files, or at an address of fsspec.

A stranger's archive is not trusted.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from gan_mask.data.storage import Place, Storage
from gan_mask.errors import GanMaskError
from gan_mask.faces import IMAGE_SUFFIXES, MAX_BYTES, UnreadableImage, read_file, read_image
from gan_mask.files import digest

FEW = 10  # people: as many folders as one person's photos may be sorted into
NUMBERED = r"(.+?)(_\d+)?"  # a file name, its number dropped
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN"}  # thumbnails and bins of some systems
BOMB_BYTES, BOMB_RATIO = 50_000_000, 100  # no photo of this size shrinks this much


@dataclass(frozen=True)
class Photo:
    path: str  # inside SRC, with /
    person: str
    place: Place | None = None  # in tar files and at addresses

    @property
    def folder(self) -> PurePosixPath:
        """Inside SRC, and inside its tar file if it is in one."""
        return PurePosixPath(self.place.inner if self.place else self.path).parent


class Source:
    """The photos of a folder, of a zip or tar file, of a folder of tar files that has no photos of its own, or of an
    fsspec address (`s3://BUCKET/FOLDER`). `photos` reads names only; `read` is safe for what `photos` gives.
    """

    def __init__(self, path: str | Path) -> None:
        is_address = "://" in str(path)
        self.path = Path(path)
        self.address = str(path) if is_address else str(self.path.absolute())
        self.name = str(path).rstrip("/").rpartition("/")[2] if is_address else self.path.resolve().name
        self._zip: zipfile.ZipFile | None = None
        self._entries: dict[str, zipfile.ZipInfo] = {}  # by path with /
        self._storage: Storage | None = None
        if is_address or self.path.suffix.lower() == ".tar" and self.path.is_file():
            self._storage = Storage(self.address)
            return
        if not self.path.exists():
            raise GanMaskError(f"{path}: no such folder, zip or tar file")
        if self.path.is_dir():
            return
        try:
            self._zip = zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise GanMaskError(f"{path}: neither a folder nor an intact .zip file ({error})") from None
        except OSError as error:
            raise GanMaskError(f"{path}: cannot be read ({error.strerror})") from None
        self._entries = {_entry_path(entry): entry for entry in self._zip.infolist()}

    def photos(self, identity_regex: str | None = None) -> list[Photo]:
        """All image files, sorted by path, each with its person; see `people` and, with a regex, `matched`.

        What tar file a photo is in says nothing of its person.
        """
        names: Iterable[str]
        places: dict[str, Place] = {}
        if self._zip:
            _refuse_malicious(self.path, self._zip.infolist())
            files = {path for path, entry in self._entries.items() if not entry.filename.endswith(("/", "\\"))}
            names = filter(is_photo, files)
        elif self._storage is None:
            names = list(_each_file_once(self.path))
            if not names and any(self.path.glob("*.tar")):
                self._storage = Storage(self.address)
        if self._storage:
            places = {name: place for name, place in self._storage.places() if is_photo(place.inner)}
            names = places
        paths = sorted(names)
        if not paths:
            raise GanMaskError(f"{self.address}: no image files in it (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")
        inner = [places[path].inner for path in paths] if places else paths
        persons = people(inner) if identity_regex is None else [matched(path, identity_regex) for path in inner]
        return [
            Photo(path, unicodedata.normalize("NFC", person), places.get(path))
            for path, person in zip(paths, persons, strict=True)
        ]

    @staticmethod
    def names(photos: Sequence[Photo]) -> str:
        """A SHA-256 of which photos these are."""
        return digest("\n".join(photo.path for photo in photos))

    def sizes(self, photos: Sequence[Photo]) -> str:
        """A SHA-256 that changes when a photo is replaced: by its size in bytes, in a zip file by its checksum, too."""
        if self._zip:
            entries = (self._entries[photo.path] for photo in photos)
            return digest(" ".join(f"{entry.file_size}/{entry.CRC}" for entry in entries))
        return digest(
            " ".join(str(photo.place.size if photo.place else _size(self.path / photo.path)) for photo in photos)
        )

    def read(self, photo: Photo) -> np.ndarray:
        """Decode one photo. Raises UnreadableImage."""
        return read_image(self.content(photo), photo.path)

    def content(self, photo: Photo) -> bytes:
        """The file, as it is. Raises UnreadableImage."""
        size = photo.place.size if photo.place else self._entries[photo.path].file_size if self._zip else 0
        if size > MAX_BYTES:
            raise UnreadableImage(photo.path, f"larger than {MAX_BYTES >> 20} MiB")
        if photo.place:
            self._storage = self._storage or Storage(self.address)
            return self._storage.read(photo.path, photo.place)
        if not self._zip:
            return read_file(self.path / photo.path, photo.path)
        try:
            return self._zip.read(self._entries[photo.path])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise UnreadableImage(photo.path, f"damaged, encrypted or unsupported in the zip file ({error})") from error


# -------------------------------------------------------------------------------------------- who is who


def people(paths: Sequence[str]) -> list[str]:
    """Whose the photos are. The one rule: a person is the outermost folder, and all that is below it.

    Folders around all photos do not count, unless photos lie in them directly. A photo in no folder is the person of
    its file name, without the number. Where this is wrong there are too few people, which is seen at once; nobody is
    divided, which would not be, except where one person's folders are all that there is: see `doubts`.
    """
    folders = [PurePosixPath(path).parent.parts for path in paths]
    around = len(os.path.commonprefix([min(folders), max(folders)]))
    if around and min(map(len, folders)) == around:
        around -= 1
    return [folder[around] if folder else matched(path, NUMBERED) for path, folder in zip(paths, folders, strict=True)]


def matched(path: str, identity_regex: str) -> str:
    """The regex's first group, matched against the file name without suffix; with a / in it, against the path."""
    stem = str(PurePosixPath(path).with_suffix(""))
    text = stem if "/" in identity_regex else stem.rpartition("/")[2]
    match = re.fullmatch(identity_regex, text, re.DOTALL)
    if not match or not match[1]:
        raise GanMaskError(f"{path}: --identity-regex {identity_regex!r} finds no person in {text!r}")
    return match[1]


def doubts(photos: Sequence[Photo]) -> str:
    """What the user should know about people who were told apart by folder; empty where there is no doubt."""
    folders: dict[str, set[str]] = {}
    for photo in photos:
        folders.setdefault(photo.person, set()).add(str(photo.folder))
    if len(folders) == 1 and folders != {photos[0].person: {"."}}:
        return (
            f"all photos are below one folder, {photos[0].person}: taken for one person. If their file names say who "
            f"they are: --identity-regex '{NUMBERED}'"
        )
    nested = [person for person, inner in folders.items() if len(inner) > 1]
    if nested:
        return (
            f"photos of {len(nested)} people are in several folders each, such as {nested[0]}: taken for one person "
            "each. If the innermost folders are the people: --identity-regex '.*?([^/]+)/[^/]+'"
        )
    around = os.path.commonprefix([photo.folder.parts for photo in photos])
    if around and 1 < len(folders) <= FEW:  # no name tells one person's views from a set of people
        return (
            f"all photos are below one folder, {around[-1]}: the {len(folders)} folders in it are taken for as many "
            f"people. If they are views of one person: --identity-regex '(?:.*/)?({re.escape(around[-1])})/.*'"
        )
    return ""


# -------------------------------------------------------------------------------------------- files and archives


def is_photo(name: str) -> bool:
    """An image by its suffix, at a safe place, and no hidden file of some system."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not (path.is_absolute() or any(map(is_hidden, path.parts)))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is some system's own: `._a.jpg`, `.DS_Store`, `@eaDir`; `..` too."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def walk(folder: Path, unlisted: Callable[[OSError], None]) -> Iterator[tuple[str, bool]]:
    """Paths of the photos below `folder`, with /, and whether each is a link; `unlisted` gets folders' errors.

    Each folder is visited once: a link to one comes after all others, and not at all where its folder was visited.
    """
    visited: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder / place)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder / place) as listing:
                entries = sorted((e for e in listing if not is_hidden(e.name)), key=lambda entry: entry.name)
        except OSError as error:
            unlisted(error)
            continue
        for entry in entries:
            path = f"{place}/{entry.name}" if place else entry.name
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif is_photo(path):
                yield path, entry.is_symlink()


def _each_file_once(folder: Path) -> Iterator[str]:
    """The photos of a data set: a link to one of its files adds nothing, as that photo counts where it lies."""

    def fail(error: OSError) -> None:
        raise GanMaskError(f"{error.filename}: cannot be read ({error.strerror})")

    found = sorted(walk(folder, fail), key=lambda item: (item[1], item[0]))  # files before links
    linked = {os.path.realpath(folder / path) for path, is_link in found if is_link}
    for path, is_link in found:
        real = os.path.realpath(folder / path) if linked else ""
        if is_link and real not in linked:
            continue
        linked.discard(real)
        yield path


def _size(path: Path) -> int:
    """In bytes; -1 where there is no file, as behind a broken link."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _entry_path(entry: zipfile.ZipInfo) -> str:
    """With /, as the format demands; archives made on Windows may have \\."""
    return str(PurePosixPath(entry.filename.replace("\\", "/")))


def _refuse_malicious(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Archives made to escape, to mislead or to blow up. Nothing is ever extracted to disk; still, none is wanted."""

    def refuse(entry: zipfile.ZipInfo, why: str) -> None:
        raise GanMaskError(f"{path}: refused, {entry.filename!r} {why}; unpack it yourself if you trust it")

    seen: set[str] = set()
    for entry in entries:
        name = _entry_path(entry)
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or re.match("[A-Za-z]:", entry.filename):
            refuse(entry, "points out of the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            refuse(entry, "is a symbolic link")
        if name in seen:
            refuse(entry, "is in it twice")
        if entry.file_size > BOMB_BYTES and entry.file_size > BOMB_RATIO * entry.compress_size:
            refuse(entry, f"unpacks to {entry.file_size} bytes from {entry.compress_size}, a decompression bomb")
        seen.add(name)
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise GanMaskError(f"{path}: refused, its entries overlap, a decompression bomb")
