"""Kill prepare, train, sample and evaluate at random moments, run the same command again, compare the results.

    python tests/faults/campaign.py --out DIR --kills 30

Of every command's kills one half are SIGKILL after a random time of work, the other half hit inside an operation on
the disk (fsync, rename, removal), with the file that was being written torn in two. After one to three kills in a row
the command is run once more; then every file of its output must equal that of the uninterrupted run, except for
times of day and seconds. Each command is also ended once by SIGTERM and once by SIGINT. DIR/kills.json has every kill.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import random
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import commands
import numpy as np

Content = dict[str, Any]


def photos(folder: Path, people: int, views: int) -> Path:
    """Synthetic photos of the package."""
    with zipfile.ZipFile(commands.REPOSITORY / "gan_mask/assets/synthfaces.zip") as archive:
        for person in range(1, people + 1):
            for view in range(1, views + 1):
                path = folder / f"id_{person:04d}" / f"view_{view}.webp"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(f"synthfaces/id_{person:04d}/view_{view}.webp"))
    return folder


def content(command: str, out: Path) -> Content:
    """What a command left behind, without times. Hidden files count: nothing of a killed run may stay."""
    found: Content = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if name.startswith("tensorboard/"):  # event files carry times in their names
            continue
        data = path.read_bytes()
        if name == "log.jsonl":
            lines = [json.loads(line) for line in data.decode().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
        elif name == "results.csv":
            rows = csv.DictReader(io.StringIO(data.decode()))
            found[name] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]
        elif name == "train.json":
            found[name] = {k: v for k, v in json.loads(data).items() if k != "out"}
        elif name.startswith("cache/") and name.endswith(".npz"):  # looks at masked files, and the time it took
            with np.load(path, allow_pickle=False) as arrays:
                found[name] = {k: v.tobytes() for k, v in arrays.items() if not k.endswith("seconds")}
        elif name in (".sample.jsonl", "cost.json", "index.html"):  # they show seconds and memory
            found[name] = "is there"
        else:
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def differences(a: Content, b: Content) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


class Campaign:
    """Faults of one command."""

    def __init__(self, command: str, out: Path, dice: random.Random, events: list[dict[str, Any]]) -> None:
        self.command, self.out, self.random, self.events = command, out, dice, events
        self.log = out / f"{command}.log"
        start = time.monotonic()
        code = self.start(out / f"reference-{command}", count=out / "count").wait()
        if code:
            raise Failed(f"{command} without a fault: exit {code}: {self.log.read_text()}")
        self.seconds, self.operations = time.monotonic() - start, int((out / "count").read_text())
        self.expected = content(command, out / f"reference-{command}")

    def start(self, folder: Path, die_at: int | None = None, count: Path | None = None) -> commands.Fork:
        argv = commands.arguments(self.command, self.out / "photos", self.out / "data", folder)
        return commands.Fork(self.command, argv, self.log, die_at, count)

    def kill(self, kills: int) -> None:
        done = trial = 0
        while done < kills:
            folder = self.out / f"{self.command}-{trial}"
            wanted = min(self.random.randint(1, 3), kills - done)
            died = 0
            for _ in range(20):  # a command may have finished before its moment has come
                died += self._one_kill(folder, trial)
                if died == wanted:
                    break
            self.finish(folder, f"after {died} kills")
            done, trial = done + died, trial + 1

    def _one_kill(self, folder: Path, trial: int) -> bool:
        if self.random.random() < 0.5:
            where = {"operation": self.random.randint(1, self.operations)}
            code = self.start(folder, die_at=where["operation"]).wait()
        else:
            where = {"millisecond": int(self.random.uniform(0, self.seconds) * 1000)}
            code = self.start(folder).wait(where["millisecond"] / 1000, signal.SIGKILL)
        if code not in (0, -signal.SIGKILL):
            raise Failed(f"{self.command}: exit {code} instead of a kill: {self.log.read_text()[-2000:]}")
        if code:
            self.events.append({"command": self.command, "trial": trial, **where})
        return code != 0

    def end(self, number: signal.Signals) -> None:
        """SIGTERM or Ctrl-C in the middle of the work: the conventional code, and the next run completes."""
        folder = self.out / f"{self.command}-{number.name}"
        for share in (0.6, 0.4, 0.2, 0.1):  # on a busy machine the reference may have taken longer than this run
            code = self.start(folder).wait(self.seconds * share, number)
            if code:
                break
            shutil.rmtree(folder)
        text = self.log.read_text()
        if code not in (128 + number, -number) or "Traceback" in text:
            raise Failed(f"{self.command}: exit {code} after {number.name}: {text[-2000:]}")
        self.events.append({"command": self.command, "signal": number.name, "exit": code})
        self.finish(folder, f"after {number.name}")

    def finish(self, folder: Path, what: str) -> None:
        code = self.start(folder).wait()
        if code:
            raise Failed(f"{self.command} {what}: the same command again: exit {code}: {self.log.read_text()[-2000:]}")
        if different := differences(self.expected, content(self.command, folder)):
            raise Failed(f"{self.command} {what}: not as in the uninterrupted run: {', '.join(different)} in {folder}")
        shutil.rmtree(folder)


class Failed(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--kills", type=int, default=30, help="of each command (default: 30)")
    parser.add_argument("--commands", nargs="+", default=list(commands.MAINS), choices=list(commands.MAINS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    photos(args.out / "photos", 4, 2)
    commands.load_once()
    events: list[dict[str, Any]] = []
    status = 0
    try:
        write_prepared_set(args.out)
        for command in args.commands:
            campaign = Campaign(command, args.out, random.Random(f"{args.seed} {command}"), events)
            campaign.kill(args.kills)
            for number in (signal.SIGTERM, signal.SIGINT):
                campaign.end(number)
            inside = sum("operation" in event for event in events if event["command"] == command)
            size = f"{campaign.seconds:.1f} s, {campaign.operations} operations on the disk"
            print(f"{command} ({size}): survived {args.kills} kills, {inside} inside an operation, SIGTERM, SIGINT")
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        status = 1
    (args.out / "kills.json").write_text(json.dumps(events, indent=1))
    return status


def write_prepared_set(out: Path) -> None:
    """Something to train on."""
    argv = [str(photos(out / "people", 12, 2)), str(out / "data"), "--size", "64", "--splits", "0.6,0.4,0"]
    if code := commands.Fork("prepare", [*argv, "--workers", "1"], out / "data.log").wait():
        raise Failed(f"the data: exit {code}: {(out / 'data.log').read_text()}")


if __name__ == "__main__":
    sys.exit(main())
