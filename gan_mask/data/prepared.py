"""Prepared sets: aligned face crops with landmarks, on disk in four files that open at once.

DST/meta.json    format version, size, margin, counts, settings, and the sizes of the other files
DST/index.npy    one record (INDEX) per face, memory-mapped
DST/crops.bin    the crops as JPEG files, one after the other
DST/strings.bin  UTF-8: names of the people, then source paths; the index says where each one lies
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gan_mask import landmarks as lm
from gan_mask.errors import GanMaskError
from gan_mask.files import read_json, sha256

EMBEDDED = Path(__file__).parent.parent / "assets" / "synthfaces.zip"  # photos of synthetic people, made by us
FORMAT = 1
SPLITS = ("train", "val", "test")

# Offsets and lengths in bytes; `crop` points into crops.bin, `person` and `source` into strings.bin.
INDEX = np.dtype([
    ("crop", "<u8"), ("crop_length", "<u4"), ("person", "<u8"), ("person_length", "<u2"), ("source", "<u8"),
    ("source_length", "<u2"), ("identity", "<u4"), ("split", "u1"), ("faces_in_photo", "<u2"), ("score", "<f4"),
    ("landmarks", "<f4", (68, 2)),
])  # fmt: skip


class PreparedSet(Dataset[dict[str, Any]]):
    """The faces of one split or several (None: all) of a set that data_prep/prepare.py wrote.

    set[i] -> {"face": float32 (3, S, S) RGB in [0, 1], "landmarks": float32 (68, 2) pixels of the crop,
    "identity": int, "index": i}. set[i, True] is the same face mirrored. Landmarks may lie slightly
    outside of the crop.
    """

    run = 1  # faces read in one go: any face anywhere is as near as its neighbour (see shards.ShardSet)

    def __init__(self, path: str | Path, split: str | Sequence[str] | None = None) -> None:
        self.path, self.split = Path(path), split
        chosen_splits = SPLITS if split is None else (split,) if isinstance(split, str) else tuple(split)
        if unknown := [name for name in chosen_splits if name not in SPLITS]:
            raise GanMaskError(f"unknown split '{unknown[0]}'; known: {', '.join(SPLITS)}")
        self.meta = _read_meta(self.path)
        self.size, self.margin = int(self.meta["size"]), float(self.meta["margin"])
        self._open()
        splits, identities = np.array(self._index["split"]), np.array(self._index["identity"])
        self._open()  # again: reading two columns has mapped every page, 290 MB for 500,000 faces
        chosen = np.flatnonzero(np.isin(splits, [SPLITS.index(name) for name in chosen_splits]))
        self._rows = chosen.astype(np.int64)
        self.identities: np.ndarray = identities[self._rows].astype(np.int64)

    def _open(self) -> None:
        try:
            self._index = np.load(self.path / "index.npy", mmap_mode="r", allow_pickle=False)
            self._crops, self._strings = (
                np.memmap(self.path / name, dtype=np.uint8, mode="r") for name in ("crops.bin", "strings.bin")
            )
        except Exception as error:  # nearly any type on a damaged header
            raise GanMaskError(f"{self.path}: damaged ({error}); prepare the set again") from error
        if self._index.dtype != INDEX or self._index.shape != (self.meta["faces"],):
            raise GanMaskError(f"{self.path / 'index.npy'}: does not fit meta.json; prepare the set again")

    def __getstate__(self) -> dict[str, Any]:
        """For DataLoader workers: they map the files themselves."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_index", "_crops", "_strings")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, bool]) -> dict[str, Any]:
        i, mirrored = key if isinstance(key, tuple) else (key, False)
        return training_item(self.faces(i), self.landmarks(i), int(self._record(i)["identity"]), int(i), mirrored)

    def faces(self, i: int) -> Tensor:
        """The crop as uint8 (3, S, S)."""
        try:
            return decode_crop(self.encoded(i), self.size)
        except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
            start = int(self._record(i)["crop"])
            raise GanMaskError(
                f"{self.path / 'crops.bin'}: face {i} at byte {start} is damaged ({error}); prepare the set again"
            ) from error

    def encoded(self, i: int) -> bytes:
        """The crop as it lies on disk, a JPEG file."""
        record = self._record(i)
        start, length = int(record["crop"]), int(record["crop_length"])
        return self._crops[start : start + length].tobytes()

    def landmarks(self, i: int) -> Tensor:
        """(68, 2) pixels of the crop."""
        points = torch.from_numpy(self._record(i)["landmarks"].copy())
        if not torch.isfinite(points).all():
            raise GanMaskError(f"{self.path / 'index.npy'}: landmarks of face {i} are damaged; prepare the set again")
        return points

    def fingerprint(self) -> str:
        """Changes with the faces of the set and their order."""
        return sha256(self.path / "index.npy")

    def person(self, i: int) -> str:
        """Name of the person."""
        return self._string(i, "person")

    def source(self, i: int) -> str:
        """Path of the photo inside the folder or zip that the set was prepared from."""
        return self._string(i, "source")

    def score(self, i: int) -> float:
        """The face detector's score in [0, 1]."""
        return float(self._record(i)["score"])

    def _record(self, i: int) -> Any:
        if not 0 <= i < len(self._rows):  # IndexError also ends a plain `for item in set`
            raise IndexError(f"face {i} of {len(self._rows)}")
        return self._index[self._rows[i]]

    def _string(self, i: int, field: str) -> str:
        record = self._record(i)
        start, length = int(record[field]), int(record[f"{field}_length"])
        return self._strings[start : start + length].tobytes().decode("utf-8", "surrogateescape")


def decode_crop(data: bytes, size: int) -> Tensor:
    """A crop's JPEG file as uint8 (3, size, size). Raises nearly any type on damaged data."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if image.size != (size, size) or image.mode != "RGB":
            raise ValueError(f"{image.mode} of {image.width} x {image.height} pixels")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def training_item(crop: Tensor, landmarks: Tensor, identity: int, index: int, mirrored: bool) -> dict[str, Any]:
    """What training gets of a face (see PreparedSet) from its uint8 crop and landmarks."""
    face = crop.float() / 255
    if mirrored:
        face, landmarks = face.flip(-1), lm.flip(landmarks, face.shape[-1])
    return {"face": face, "landmarks": landmarks, "identity": identity, "index": index}


def _read_meta(path: Path) -> dict[str, Any]:
    """meta.json, after a look at the sizes of the other files."""
    remedy = "make one with data_prep/prepare.py SRC DST"
    if not path.is_dir():
        raise GanMaskError(f"{path}: no such folder; a prepared set is expected: {remedy}")
    if not (path / "meta.json").is_file():
        if (path / ".parts").is_dir():
            remedy = "its preparation has not finished: run the same prepare command again"
        raise GanMaskError(f"{path}: not a prepared set ({remedy})")
    meta = read_json(path / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise GanMaskError(f"{path}: prepared set of format {found!r}, expected {FORMAT}; prepare it again")
    if not _complete(meta):
        raise GanMaskError(f"{path / 'meta.json'}: damaged; copy or prepare the set again")
    for name, size in meta["bytes"].items():
        actual = os.path.getsize(path / name) if (path / name).is_file() else 0
        if actual != size:
            raise GanMaskError(f"{path / name}: {actual} bytes, expected {size}; copy or prepare the set again")
    return meta


def _complete(meta: dict[str, Any]) -> bool:
    """Whether all that is read of meta.json is there, of the right kind."""
    sizes, margin = meta.get("bytes"), meta.get("margin")
    return (
        isinstance(sizes, dict)
        and sizes.keys() == {"index.npy", "crops.bin", "strings.bin"}
        and all(type(meta.get(key)) is int and meta[key] > 0 for key in ("size", "faces"))
        and isinstance(margin, int | float)
        and 0 <= margin <= 2
    )
