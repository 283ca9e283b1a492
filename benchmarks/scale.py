"""What docs/scale.md is made of: python benchmarks/scale.py --data PREPARED [--only SECTION ...] [--out FILE.json]

writing    shards of PREPARED: faces and MB per second
streaming  loader's faces per second, shards against the prepared set itself, taking turns; one thread, no workers
memory     of the reading process after each epoch over the shards
paper      a simulated set of --faces faces (sparse shard files): opening it, the order of an epoch, memory
networks   parameters per config, bytes that each process sends per step on 8 and 64 processes
workers    preparation of --faces photos by the engine's own rule on 1,000 simulated workers, some slow, some lost
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from gan_mask import cli, engines, files
from gan_mask.data import PreparedSet, shards
from gan_mask.data.shards import ShardSet
from gan_mask.generator import Generator
from gan_mask.networks import Discriminator, GeneratorConfig
from gan_mask.training.options import GENERATOR_NOISE, TrainConfig
from gan_mask.training.schedule import Schedule

BATCH = 32
SECONDS_PER_PHOTO = 0.143  # of one core, by prepare.py
REPOSITORY = Path(__file__).parent.parent


def writing(data: Path, folder: Path, _: int) -> dict[str, Any]:
    started = time.perf_counter()
    meta = shards.write(data, folder / "written", 1000)
    seconds = time.perf_counter() - started
    faces, size = (sum(shard[what] for shard in meta["shards"]) for what in ("faces", "bytes"))
    return {
        "faces": faces, "faces/s": round(faces / seconds), "MB/s": round(size / seconds / 1e6),
        "bytes per face": round(size / faces), "prepared bytes per face": round(prepared_bytes(data)),
    }  # fmt: skip


def prepared_bytes(data: Path) -> float:
    meta = files.read_json(data / "meta.json")
    return float(sum(meta["bytes"].values()) / meta["faces"])


def streaming(data: Path, folder: Path, _: int) -> dict[str, Any]:
    shards.write(data, folder, 1000)
    rates: dict[str, list[float]] = {"prepared": [], "shards": []}
    for round_ in range(9):
        for name, photos in (("prepared", PreparedSet(data, "train")), ("shards", ShardSet(folder, "train"))):
            rates[name].append(rate(photos, 30 * round_, 30))
    ratios = np.array(rates["shards"]) / np.array(rates["prepared"])
    return {f"{name}, faces/s": round(float(np.median(r))) for name, r in rates.items()} | {
        "ratio": round(float(np.median(ratios)), 2),
        "ratios of the rounds": [round(float(r), 2) for r in sorted(ratios)],
    }


def rate(photos: PreparedSet | ShardSet, first: int, steps: int) -> float:
    order = Schedule(photos.identities, TrainConfig(batch_size=BATCH, steps=first + steps + 1), 0, 1, first, photos.run)
    batches = iter(DataLoader(photos, batch_sampler=order))
    next(batches)
    started = time.perf_counter()
    faces = sum(len(batch["index"]) for batch in batches)
    return faces / (time.perf_counter() - started)


def memory(data: Path, folder: Path, _: int) -> dict[str, Any]:
    shards.write(data, folder, 1000)
    photos, megabytes = ShardSet(folder, "train"), []
    for epoch in range(6):
        per_epoch = len(photos) // BATCH
        rate(photos, epoch * per_epoch, per_epoch)
        megabytes.append(resident())
    return {"faces per epoch": len(photos), "MB after each epoch": megabytes}


def paper(_: Path, folder: Path, faces: int) -> dict[str, Any]:
    """Index files are real, tar files are holes of the right size."""
    write_holes(folder, faces)
    before = resident()
    started = time.perf_counter()
    photos = ShardSet(folder, "train")
    opened, opening = resident(), time.perf_counter() - started
    started = time.perf_counter()
    order = Schedule(photos.identities, TrainConfig(batch_size=64, steps=1000), 0, 8, 0, photos.run)
    schedule = time.perf_counter() - started
    started = time.perf_counter()
    batches = iter(order)
    next(batches)
    first_batch = time.perf_counter() - started
    started = time.perf_counter()
    for _batch in range(100):
        next(batches)
    return {
        "faces": len(photos), "shards": len(photos.names), "index, MB": round(faces * shards.PLACE.itemsize / 1e6),
        "opening, s": round(opening, 2), "opened, MB": round(opened - before),
        "schedule, s": round(schedule, 2), "order of an epoch, s": round(first_batch, 2),
        "with schedule and order, MB": round(resident() - before),
        "a batch of 64 out of the order, ms": round(1000 * (time.perf_counter() - started) / 100, 2),
    }  # fmt: skip


def write_holes(folder: Path, faces: int, per_shard: int = 10_000, length: int = 15_360) -> None:
    random, described = np.random.default_rng(0), []
    for number, first in enumerate(range(0, faces, per_shard)):
        tar, places = folder / f"train-{number:06d}.tar", np.zeros(min(per_shard, faces - first), shards.PLACE)
        places["length"], places["offset"] = length, np.arange(len(places)) * length
        places["identity"] = random.integers(faces // 20, size=len(places))  # 20 photos per person
        np.save(tar.with_suffix(".npy"), places)
        with open(tar, "wb") as f:
            f.truncate(len(places) * length)
        described.append({
            "name": tar.name, "faces": len(places), "bytes": len(places) * length,
            "sha256": "", "index_sha256": files.sha256(tar.with_suffix(".npy")),
        })  # fmt: skip
    files.write_json(
        folder / "shards.json", {"format": shards.FORMAT, "size": 160, "margin": 0.375, "shards": described}
    )


def networks(_: Path, __: Path, ___: int) -> dict[str, Any]:
    result = {}
    for name in ("quickstart", "lfw"):
        c = cli.parse(
            TrainConfig, ["--data", "X", "--out", "Y", "--config", str(REPOSITORY / f"configs/{name}.yaml")], ""
        )
        net = Generator(GeneratorConfig(widths=c.widths, noise=GENERATOR_NOISE, heads=c.heads, kernel=c.kernel)).net
        counts = [sum(p.numel() for p in m.parameters()) for m in (net, Discriminator(c.discriminator_width))]
        size = 4 * sum(counts)  # float32 gradients, also under bf16
        sent = {f"MB sent by each of {n}": round(2 * (n - 1) / n * size / 1e6, 2) for n in (8, 64)}
        result[name] = {"generator": counts[0], "discriminator": counts[1], "gradients, MB": size / 1e6, **sent}
    return result


class Workers:
    """Simulated workers and their clock, for `engines.schedule`: as Ray has them, with what goes wrong.

    SLOW of the workers are SLOWNESS times slower all along. Each second of work loses its worker with the probability
    1 / LIFETIME; the shard then begins anew on another one, which loads its networks first, as a replacement does.
    """

    COUNT, SLOW, SLOWNESS, LIFETIME, LOADING = 1000, 0.01, 10.0, 20 * 3600.0, 20.0

    def __init__(self, shard_seconds: float) -> None:
        self.random, self.shard_seconds = random.Random(0), shard_seconds
        self.clock, self.busy, self.lost = 0.0, 0.0, 0
        self.pace = [self.SLOWNESS if self.random.random() < self.SLOW else 1.0 for _ in range(self.COUNT)]
        self.loading = [self.LOADING] * self.COUNT  # seconds until the networks are there
        self.free, self.ends = list(range(self.COUNT)), list[tuple[float, int]]()
        self.working: dict[int, tuple[int, float]] = {}  # task -> worker, since when
        self.begun = 0

    def slots(self) -> int:
        return self.COUNT

    def start(self, number: int) -> int:
        worker = self.free.pop(self.random.randrange(len(self.free)))
        self.begun += 1
        end = self.clock
        while True:
            seconds = self.pace[worker] * self.shard_seconds * self.random.lognormvariate(0, 0.2) + self.loading[worker]
            self.loading[worker] = 0.0
            until_lost = self.random.expovariate(1 / self.LIFETIME)
            if until_lost >= seconds:
                break
            self.lost += 1
            end += until_lost
            self.loading[worker], self.pace[worker] = self.LOADING, 1.0  # its replacement
        self.working[self.begun] = worker, self.clock
        heapq.heappush(self.ends, (end + seconds, self.begun))
        return self.begun

    def wait(self, tasks: list[int], seconds: float) -> list[int]:
        while self.ends and self.ends[0][1] not in self.working:  # stopped
            heapq.heappop(self.ends)
        if self.ends[0][0] > self.clock + seconds:
            self.clock += seconds
            return []
        self.clock, task = heapq.heappop(self.ends)
        self.stop(task)
        return [task]

    def result(self, task: int) -> int:
        return 1

    def stop(self, task: int) -> None:
        worker, since = self.working.pop(task)
        self.busy += self.clock - since
        self.free.append(worker)

    def now(self) -> float:
        return self.clock


def workers(_: Path, __: Path, faces: int) -> dict[str, Any]:
    result: dict[str, Any] = {"workers": Workers.COUNT, "seconds per photo": SECONDS_PER_PHOTO}
    for photos in (64, 640):
        shards_ = math.ceil(faces / photos)
        for name, copies in (("with second copies", 2), ("without", 1)):
            simulated, done = Workers(photos * SECONDS_PER_PHOTO), list[int]()
            started = time.process_time()
            engines.schedule(range(shards_), simulated, done.append, copies)
            assert len(done) == shards_
            result[f"shards of {photos}, {name}"] = {
                "shards": shards_, "begun": simulated.begun, "workers lost": simulated.lost,
                "minutes": round(simulated.clock / 60, 1),
                "least possible": round(faces * SECONDS_PER_PHOTO / sum(1 / p for p in simulated.pace) / 60, 1),
                "busy, share": round(simulated.busy / simulated.clock / Workers.COUNT, 3),
                "rule's own ms per shard": round(1000 * (time.process_time() - started) / shards_, 2),
            }  # fmt: skip
    return result


def resident() -> float:
    """MB of this process' own memory, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) / 1e3


SECTIONS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    "writing": writing, "streaming": streaming, "memory": memory, "paper": paper, "networks": networks,
    "workers": workers,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared set")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="default: all")
    parser.add_argument("--faces", type=int, default=10_000_000, help="of the simulated set (section paper)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = SECTIONS[name](arguments.data, Path(folder), arguments.faces)
        print(name, json.dumps(result[name], indent=2), flush=True)
    if arguments.out:
        files.write_json(arguments.out, result)


if __name__ == "__main__":
    sys.exit(main())
