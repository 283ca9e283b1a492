"""What docs/scale.md is made of: python benchmarks/scale.py --data PREPARED [--only SECTION ...] [--out FILE.json]

writing    shards of PREPARED: faces and MB per second
streaming  loader's faces per second, shards against the prepared set itself, taking turns; one thread, no workers
memory     of the reading process after each epoch over the shards
paper      a simulated set of --faces faces (sparse shard files): opening it, the order of an epoch, memory
networks   parameters per config, bytes that each process sends per step on 8 and 64 processes
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from gan_mask import cli, files
from gan_mask.data import PreparedSet, shards
from gan_mask.data.shards import ShardSet
from gan_mask.generator import Generator
from gan_mask.networks import Discriminator, GeneratorConfig
from gan_mask.training.options import GENERATOR_NOISE, TrainConfig
from gan_mask.training.schedule import Schedule

BATCH = 32
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


def resident() -> float:
    """MB of this process' own memory, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) / 1e3


SECTIONS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    "writing": writing, "streaming": streaming, "memory": memory, "paper": paper, "networks": networks,
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
