"""Millions of photos: masked copies in tar files, each of a slice of the sorted photos, on any engine.

A shard is a WebDataset tar file: for each photo with a face the masked copy, and for each photo its rows of the table
as JSON, under the photo's number. Its first file, `__results__`, holds all the rows of the shard, so that the table is
made without reading the copies; readers of WebDataset pass it over. Rows have no times: a shard's bytes depend on the
photos and options alone.
"""

from __future__ import annotations

import errno
import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from gan_mask import engines, files, run_record
from gan_mask.cli import Progress
from gan_mask.data.folder_or_zip import Photo, Source
from gan_mask.data.shards import member
from gan_mask.engines import Engine
from gan_mask.errors import GanMaskError
from gan_mask.faces import UnreadableImage, forget_old_shapes
from gan_mask.sampling.batch import mask_all
from gan_mask.sampling.folder import TABLE, Targets, check_folders
from gan_mask.sampling.masker import Row
from gan_mask.sampling.options import SampleConfig
from gan_mask.sampling.output import print_summary, write_table
from gan_mask.sampling.pool import processes
from gan_mask.sampling.sampler import load, settings

INPUTS, RESULTS = "shards.json", "__results__"
TIMES = ("seconds", "attack_seconds")


def sample_shards(c: SampleConfig) -> None:
    """Write OUT, or go on with what is there, and print the summary. GanMaskError for wrong options."""
    if c.show:
        raise GanMaskError("--show: there is no gallery of shards; leave out --shards, or --show")
    out, source = Path(c.out), Source(c.faces)
    if "://" in c.faces:
        out.mkdir(parents=True, exist_ok=True)
    else:
        check_folders(Path(c.faces), out)
    if not (out / INPUTS).is_file() and {path.name for path in out.iterdir()} - {files.LOCK}:
        raise GanMaskError(f"--out {out}: not empty and not a folder of shards; choose a new one")
    photos = source.photos()
    sampler = load(replace(c, device="cpu") if c.engine == "ray" else c)  # the device is the workers'
    inputs = settings(c, sampler) | {
        "code": run_record.CODE["shards of masked photos"], "shards": c.shards, "batch_size": c.batch_size,
        "faces": source.name, "photos_sha256": source.names(photos), "contents_sha256": source.sizes(photos),
    }  # fmt: skip
    with run_record.claimed(out / INPUTS, inputs, "choose another --out, or delete it"):
        paths = [shard_path(out, number) for number in range(math.ceil(len(photos) / c.shards))]
        parts = {n: photos[n * c.shards : (n + 1) * c.shards] for n, path in enumerate(paths) if not path.is_file()}
        done = len(photos) - sum(map(len, parts.values()))
        with Progress(total=len(photos), initial=done, desc="photos", unit="photo") as bar:
            work = (absolute(replace(c, faces=source.address)),)
            engine = Engine(c.engine, processes(c, len(photos)), c.ray_address, c.device)
            engines.run(engine, Worker, work, parts, bar.update)
        write_table(out / TABLE, Rows(paths), sampler, timed=False)
        print_summary(Rows(paths), sampler, picture="")


def absolute(c: SampleConfig) -> SampleConfig:
    """The same for a process that has another working directory; `faces` is an address already."""
    there = files.absolute_where_there
    return replace(
        c, out=str(Path(c.out).absolute()), checkpoint=c.checkpoint and there(c.checkpoint),
        template=c.template and there(c.template), embedders=tuple(map(files.absolute_network, c.embedders)),
        detectors=tuple(map(files.absolute_network, c.detectors)),
    )  # fmt: skip


def shard_path(out: Path, number: int) -> Path:
    return out / f"masked-{number:07d}.tar"


class Worker:
    """Turns slices of the photos into shards."""

    def __init__(self, c: SampleConfig) -> None:
        forget_old_shapes()  # on Ray, this process has not heard of it
        self.c, self.source, self.sampler = c, Source(c.faces), load(c)

    def __call__(self, number: int, photos: Sequence[Photo]) -> int:
        """Write shard `number`; returns the number of photos."""
        targets = {photo.path: _targets(number * self.c.shards + i, photo) for i, photo in enumerate(photos)}
        with TemporaryDirectory(prefix="gan_mask-") as folder:
            originals, masked = Path(folder, "originals"), Path(folder, "masked")
            rows = self._fetch(photos, originals)
            sampler = replace(self.sampler, source=originals, out=masked)
            rows |= mask_all(sampler, [photo.path for photo in photos if photo.path not in rows], targets)
            _pack(shard_path(Path(self.c.out), number), targets, rows, masked)
        return len(photos)

    def _fetch(self, photos: Sequence[Photo], folder: Path) -> dict[str, list[Row]]:
        """The photos' files in a folder, under their names; rows for those that cannot be read."""
        rows: dict[str, list[Row]] = {}
        for photo in photos:
            try:
                content = self.source.content(photo)
                (folder / photo.path).parent.mkdir(parents=True, exist_ok=True)
                (folder / photo.path).write_bytes(content)
            except UnreadableImage as error:
                rows[photo.path] = [{"photo": photo.path, "status": "unreadable", "note": error.reason}]
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                rows[photo.path] = [{"photo": photo.path, "status": "unreadable", "note": "its name is too long here"}]
        return rows


def _targets(position: int, photo: Photo) -> Targets:
    return Targets(f"{position:09d}{Path(photo.path).suffix.lower()}", f"{position:09d}.png")


def _pack(path: Path, targets: dict[str, Targets], rows: dict[str, list[Row]], masked: Path) -> None:
    """Shard of these photos, in the order of `targets`."""
    kept = {name: [{k: v for k, v in row.items() if k not in TIMES} for row in rows[name]] for name in targets}
    lines = "".join(json.dumps(row) + "\n" for found in kept.values() for row in found)
    with files.replacing(path) as temporary, open(temporary, "wb") as f:
        f.write(member(RESULTS, lines.encode()))
        for name, found in kept.items():
            if "written" in found[0]:
                f.write(member(found[0]["written"], (masked / found[0]["written"]).read_bytes()))
            key = Path(targets[name].same).stem
            f.write(member(f"{key}.json", json.dumps({"photo": name, "faces": found}).encode()))
        f.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar file


@dataclass
class Rows:
    """All rows of the table, from the shards, one of which is in memory at a time; as often as wanted."""

    paths: Sequence[Path]

    def __iter__(self) -> Iterator[Row]:
        for path in self.paths:
            try:
                with tarfile.open(path, "r:") as tar:
                    first = tar.next()
                    results = tar.extractfile(first) if first and first.name == RESULTS else None
                    rows = [json.loads(line) for line in results] if results else None
            except (tarfile.TarError, ValueError, EOFError) as error:
                raise GanMaskError(f"{path}: damaged ({error}); delete it and run the same command again") from error
            if rows is None:
                raise GanMaskError(f"{path}: not a shard of ours; delete it and run the same command again")
            yield from rows
