"""Files at any address that fsspec knows, and those in their tar files: what is there, and their bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from gan_mask.errors import GanMaskError
from gan_mask.faces import UnreadableImage


@dataclass(frozen=True)
class Place:
    """Where a file's bytes are: whoever has this can read it without listing anything."""

    file: str  # as its file system calls it
    start: int
    size: int
    inner: str  # the file's path, from its tar file on where it is in one


class Storage:
    """An address: a folder, searched with its folders, or one tar file. `s3://...` needs s3fs, `gs://...` gcsfs."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address
        try:
            self.files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise GanMaskError(f"{address}: {error}; pip install 'gan_mask[ray]' brings fsspec and s3fs") from None
        self.root = str(root)

    def places(self) -> Iterator[tuple[str, Place]]:
        """Path and place of all files, in any order; of a tar file those in it, whose paths begin with its name.

        The headers of all tar files are read.
        """
        try:
            found = self.files.find(self.root, detail=True)
        except Exception as error:  # each file system has its own errors
            raise GanMaskError(f"{self.address}: cannot be listed ({_told(error)})") from error
        if not found:
            raise GanMaskError(f"{self.address}: no such folder or tar file, or nothing in it")
        for file, facts in found.items():
            path = file[len(self.root) :].lstrip("/")
            if file.lower().endswith(".tar"):
                yield from self._members(file, f"{path}/" if path else "")
            else:
                yield path, Place(file, 0, int(facts["size"] or 0), path)

    def _members(self, file: str, folder: str) -> Iterator[tuple[str, Place]]:
        try:
            with self.files.open(file, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
                for member in tar:
                    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                        place = Place(file, member.offset_data, member.size, member.name.removeprefix("./"))
                        yield folder + place.inner, place
        except (tarfile.TarError, OSError) as error:
            raise GanMaskError(f"{file}: not an intact, uncompressed tar file ({_told(error)})") from error

    def read(self, name: str, place: Place) -> bytes:
        """Raises UnreadableImage, by this name, where a file is not there; what may pass raises OSError."""
        if not place.size:
            return b""
        try:
            return bytes(self.files.cat_file(place.file, start=place.start, end=place.start + place.size))
        except FileNotFoundError:
            raise UnreadableImage(name, "no such file") from None


def _told(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
