"""A prepared set as tar shards: a few large files in place of one huge one, readable by WebDataset.

OUT/shards.json       settings, and of each shard its faces, bytes and SHA-256; complete once all are written
OUT/train-000000.tar  for each face KEY.jpg, the prepared set's bytes, and KEY.json: landmarks, identity, person, source
OUT/train-000000.npy  one record (PLACE) per face: where it lies in the tar file, its checksum, whose face it is

Faces are shuffled once, when they are written, so that neighbours are a random sample of their split. Training then
reads short runs of neighbours, the runs in a new order each epoch: no state to resume, nothing to skip.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gan_mask import cli, files, run_record
from gan_mask.data.prepared import PreparedSet, decode_crop, training_item
from gan_mask.errors import GanMaskError
from gan_mask.values import COUNT

FORMAT = 1
SPLITS = ("train", "val")  # what training needs; the evaluation reads the test split of the prepared set itself
PLACE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc", "<u4"), ("identity", "<u4")])  # in bytes of the tar


# -------------------------------------------------------------------------------------------- reading


class ShardSet(Dataset[dict[str, Any]]):
    """The faces of one split (train or val) of a folder of shards, with the items of a PreparedSet.

    set[i] -> {"face": float32 (3, S, S) RGB in [0, 1], "landmarks": float32 (68, 2), "identity": int, "index": i};
    set[i, True] is the same face mirrored. A DataLoader gets whole batches (__getitems__): neighbours are read in
    one go. Every face's checksum is verified; GanMaskError names the shard that is damaged or missing.
    """

    run = 16  # faces read in one go, about 200 KB; batches are made of such runs (see training.schedule)

    def __init__(self, path: str | Path, split: str) -> None:
        self.path, self.split = Path(path), split
        if split not in SPLITS:
            raise GanMaskError(f"{path}: shards hold the splits {' and '.join(SPLITS)} only, not '{split}'")
        meta = _read_meta(self.path)
        self.size, self.margin = int(meta["size"]), float(meta["margin"])
        shards = [shard for shard in meta["shards"] if shard["name"].startswith(f"{split}-")]
        self.names = [str(shard["name"]) for shard in shards]
        self._sums = [str(shard["sha256"]) for shard in shards]
        self._first = np.cumsum([0, *(shard["faces"] for shard in shards)])  # number of each shard's first face
        self._places = np.concatenate([np.zeros(0, PLACE), *(self._load_places(shard) for shard in shards)])
        self.identities: np.ndarray = self._places["identity"].astype(np.int64)

    def _load_places(self, shard: dict[str, Any]) -> np.ndarray:
        """PLACE records of one shard, after a look at both of its files."""
        tar = self.path / shard["name"]
        size = tar.stat().st_size if tar.is_file() else 0
        if size != shard["bytes"]:
            raise GanMaskError(f"{tar}: {size} bytes, expected {shard['bytes']}; {_REMEDY}")
        index = tar.with_suffix(".npy")
        data = index.read_bytes() if index.is_file() else b""
        if hashlib.sha256(data).hexdigest() != shard["index_sha256"]:
            raise GanMaskError(f"{index}: missing or damaged; {_REMEDY}")
        return np.load(io.BytesIO(data), allow_pickle=False)

    def __len__(self) -> int:
        return len(self.identities)

    def fingerprint(self) -> str:
        """Changes with the faces of the shards and their order."""
        return files.digest(" ".join(self._sums))

    def __getitem__(self, key: int | tuple[int, bool]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, bool]]) -> list[dict[str, Any]]:
        """The items of several keys, each run of neighbours with one read."""
        wanted = [key if isinstance(key, tuple) else (key, False) for key in keys]
        if outside := [i for i, _ in wanted if not 0 <= i < len(self)]:  # IndexError also ends a plain `for`
            raise IndexError(f"face {outside[0]} of {len(self)}")
        encoded = {i: both for run in self._runs({i for i, _ in wanted}) for i, *both in self._read(run)}
        return [self._item(i, mirrored, *encoded[i]) for i, mirrored in wanted]

    def _runs(self, numbers: set[int]) -> list[np.ndarray]:
        """The numbers in ascending order, cut where one is left out and where a shard ends."""
        ascending = np.array(sorted(numbers))
        cut = (np.diff(ascending) != 1) | np.isin(ascending[1:], self._first)
        return np.split(ascending, np.flatnonzero(cut) + 1)

    def _read(self, run: np.ndarray) -> Iterator[tuple[int, bytes, bytes]]:
        """Numbers, JPEG and JSON files of a run of neighbours: a stretch of a tar file is a tar file."""
        path, places = self._path(int(run[0])), self._places[run]
        start = int(places[0]["offset"])
        try:
            with open(path, "rb") as f:
                f.seek(start)
                data = f.read(int(places["length"].sum()))
        except OSError as error:
            raise GanMaskError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error
        for place in places:
            at = int(place["offset"]) - start
            if zlib.crc32(data[at : at + int(place["length"])]) != place["crc"]:
                raise GanMaskError(f"{path}: damaged at byte {place['offset']}; {_REMEDY}")
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            contents = [file.read() for member in tar if (file := tar.extractfile(member))]
        return zip(run.tolist(), contents[::2], contents[1::2], strict=True)

    def _item(self, i: int, mirrored: bool, jpeg: bytes, facts: bytes) -> dict[str, Any]:
        try:
            face = decode_crop(jpeg, self.size)
        except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
            raise GanMaskError(
                f"{self._path(i)}: face {i:09d} was written from a damaged crop ({error}); prepare the set again"
            ) from error
        landmarks = torch.tensor(json.loads(facts)["landmarks"], dtype=torch.float32)
        return training_item(face, landmarks, int(self.identities[i]), i, mirrored)

    def _path(self, i: int) -> Path:
        return self.path / self.names[int(np.searchsorted(self._first, i, side="right")) - 1]


_REMEDY = "run the command that wrote the shards again (python -m gan_mask.shards PREPARED OUT): it mends them"


def open_faces(path: str | Path, split: str) -> PreparedSet | ShardSet:
    """A split of a prepared set or of its shards, whichever lies there."""
    return ShardSet(path, split) if (Path(path) / "shards.json").is_file() else PreparedSet(path, split)


def _read_meta(path: Path) -> dict[str, Any]:
    meta = files.read_json(path / "shards.json")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise GanMaskError(f"{path / 'shards.json'}: not the index of shards of format {FORMAT}; write them again")
    if meta.get("shards", 0) is None:
        raise GanMaskError(f"{path}: the shards are not finished; run the command that writes them again")
    if not _complete(meta):
        raise GanMaskError(f"{path / 'shards.json'}: damaged; copy it again, or delete the folder and write it again")
    return meta


def _complete(meta: dict[str, Any]) -> bool:
    """Whether all that is read of shards.json is there, of the right kind; names must not lead elsewhere."""
    kinds = {"name": str, "faces": int, "bytes": int, "sha256": str, "index_sha256": str}
    shards, margin = meta.get("shards"), meta.get("margin")
    return (
        isinstance(shards, list)
        and all(isinstance(shard, dict) and all(type(shard.get(k)) is t for k, t in kinds.items()) for shard in shards)
        and all(re.fullmatch(r"(train|val)-\d{6}\.tar", shard["name"]) for shard in shards)
        and type(meta.get("size")) is int
        and isinstance(margin, int | float)
    )


# -------------------------------------------------------------------------------------------- writing


def write(prepared: str | Path, out: str | Path, faces_per_shard: int = 10_000) -> dict[str, Any]:
    """Write the train and val splits of `prepared` as shards into `out`; returns what shards.json holds.

    The same arguments give the same bytes. Resumes where an interrupted call stopped; shards of a finished folder
    are compared with their SHA-256, and written again where they are missing or differ.
    """
    if faces_per_shard < 1:
        raise GanMaskError(f"--faces-per-shard: expected 1 or more, got {faces_per_shard}")
    sets, out = {split: PreparedSet(prepared, split) for split in SPLITS}, Path(out)
    meta = run_record.inputs(
        "shards", {"faces_per_shard": faces_per_shard}, format=FORMAT,
        size=sets["train"].size, margin=sets["train"].margin,
        prepared_sha256=files.sha256(Path(prepared) / "meta.json"), index=sets["train"].fingerprint(),
    )  # fmt: skip
    if out.is_dir() and not (out / "shards.json").is_file() and {p.name for p in out.iterdir()} - {files.LOCK}:
        raise GanMaskError(f"{out}: not empty and not a folder of shards; choose a new one")
    before = run_record.read(out / "shards.json") or {}
    known = {shard["name"]: shard for shard in before["shards"]} if _complete(before) else {}
    now, remedy = meta | {"shards": before.get("shards")}, "choose another OUT, or delete it"
    with run_record.claimed(out / "shards.json", now, remedy, {"shards"}):
        return _write(out, sets, meta, known)


def _write(
    out: Path, sets: dict[str, PreparedSet], meta: dict[str, Any], known: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """known: the shards that were whole before, by name."""
    shards, faces_per_shard = [], int(meta["faces_per_shard"])
    with cli.Progress(total=sum(map(len, sets.values())), desc="shards", unit=" faces") as bar:
        for split, photos in sets.items():
            order = np.random.default_rng(0).permutation(len(photos))
            for number, first in enumerate(range(0, len(photos), faces_per_shard)):
                rows = order[first : first + faces_per_shard]
                tar = out / f"{split}-{number:06d}.tar"
                if not _whole(tar, known.get(tar.name)):
                    _write_shard(tar, photos, rows, first)
                shards.append(_describe(tar, len(rows)))
                bar.update(len(rows))
    meta["shards"] = shards
    files.write_json(out / "shards.json", meta)
    return meta


def _whole(tar: Path, known: dict[str, Any] | None) -> bool:
    index = tar.with_suffix(".npy")
    if not (tar.is_file() and index.is_file()):
        return False
    return known is None or (files.sha256(tar), files.sha256(index)) == (known["sha256"], known["index_sha256"])


def _write_shard(tar: Path, photos: PreparedSet, rows: np.ndarray, first: int) -> None:
    """Faces `rows` of the split, the first of which is number `first` of all shards of the split."""
    places = np.zeros(len(rows), PLACE)
    # The index lands first: where there is a tar file, there is its index.
    with files.replacing(tar) as tar_path, files.replacing(tar.with_suffix(".npy")) as index_path:
        with open(tar_path, "wb") as f:
            for place, number, row in zip(places, range(first, first + len(rows)), rows.tolist(), strict=True):
                facts: dict[str, Any] = {
                    "landmarks": photos.landmarks(row).tolist(), "identity": int(photos.identities[row]),
                    "person": photos.person(row), "source": photos.source(row),
                }  # fmt: skip
                sample = member(f"{number:09d}.jpg", photos.encoded(row))
                sample += member(f"{number:09d}.json", json.dumps(facts).encode())
                place["offset"], place["length"], place["crc"] = f.tell(), len(sample), zlib.crc32(sample)
                place["identity"] = facts["identity"]
                f.write(sample)
            f.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar file
        with open(index_path, "wb") as f:
            np.save(f, places)


def member(name: str, data: bytes) -> bytes:
    """A file of a tar archive, without date and owner: the same bytes on every machine."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _describe(tar: Path, faces: int) -> dict[str, Any]:
    return {
        "name": tar.name, "faces": faces, "bytes": tar.stat().st_size,
        "sha256": files.sha256(tar), "index_sha256": files.sha256(tar.with_suffix(".npy")),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------- command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m gan_mask.shards",
        description="Write the train and val splits of a prepared set as WebDataset tar shards, for train.py "
        "--data OUT. Interrupted, or a shard damaged? Run the same command again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("input and output").add_argument
    add("prepared", metavar="PREPARED", help="folder that data_prep/prepare.py wrote")
    add("out", metavar="OUT", help="new folder for the shards")
    add(
        "--faces-per-shard",
        type=cli.number(int, COUNT),
        default=10_000,
        metavar="N",
        help="about 14 KB each at 160 pixels",
    )
    cli.add_message_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.ending(f"run the same command again to continue {args.out}"):
        meta = write(args.prepared, args.out, args.faces_per_shard)
        for split in SPLITS:
            shards = [shard for shard in meta["shards"] if shard["name"].startswith(split)]
            faces, size = (sum(shard[what] for shard in shards) for what in ("faces", "bytes"))
            print(f"{split:5} {len(shards):6} shards {faces:9} faces {size / 1e6:10.1f} MB")
