"""Memory and open files of a long training: python tests/faults/long_run.py DATA OUT [--steps 16000]

DATA is a prepared set. Trains tiny networks on the CPU, and prints at 20 points of the run its resident memory, its
open files and threads, and in the end the size of its logs. Exit status 1 when the second half needs more than the
second quarter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import commands

from gan_mask.training import loop as training

POINTS = 20
TRAIN = (
    "--widths 8 16 --discriminator_width 8 --batch_size 2 --workers 1 --templates face-001 plain-white --log_every 1 "
    "--validate_every 50 --save_every 200 --validation_faces 2 --r1_every 16"
).split()


def measure() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = len(os.listdir("/proc/self/fd"))
    return {"kB": int(status["VmRSS"].split()[0]), "files": files, "threads": int(status["Threads"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=16_000)
    args = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    points: list[dict[str, int]] = []
    scale, started = training.scale_learning_rates, time.monotonic()

    def watched(optimizers: Any, c: Any, step: int) -> None:
        if step % max(1, c.steps // POINTS) == 0:
            points.append({"step": step, "seconds": round(time.monotonic() - started), **measure()})
        scale(optimizers, c, step)

    training.scale_learning_rates = watched
    argv = ["--data", args.data, "--out", str(args.out), *commands.FAKES, *TRAIN, "--steps", str(args.steps)]
    training.main(argv)
    size = {name: sum(p.stat().st_size for p in args.out.rglob(f"{name}*") if p.is_file()) for name in
            ("events.out", "log.jsonl")}  # fmt: skip
    pictures = len(list((args.out / "previews").iterdir()))
    print(json.dumps({"points": points, "bytes": size, "previews": pictures}))
    # The first quarter warms up: caches of the allocator, lazily imported modules.
    early, late = points[POINTS // 4 : POINTS // 2], points[POINTS // 2 :]
    allowed = {"kB": 1.03, "files": 1.0, "threads": 1.0}
    worse = [k for k, factor in allowed.items() if max(p[k] for p in late) > factor * max(p[k] for p in early)]
    if worse:
        print(f"FAILED: growing: {', '.join(worse)}", file=sys.stderr)
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
