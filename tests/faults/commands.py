"""The commands that the campaign interrupts: their real mains, with tiny networks, on a few synthetic faces.

Every fsync, rename and removal of a folder counts as an operation on the disk: with `die_at` N the process kills itself
inside the N-th, after cutting the file in two that was about to be made durable, as a power cut may.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a pool of threads does not survive a fork

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from fakes import FakeDetector, FakeEmbedder  # noqa: E402

from gan_mask import pretrained, sampling, training  # noqa: E402
from gan_mask.data import prepare  # noqa: E402
from gan_mask.evaluation import command as evaluation  # noqa: E402
from gan_mask.evaluation import experiment  # noqa: E402
from gan_mask.evaluation import run as evaluation_run  # noqa: E402
from gan_mask.faces import FaceFinder  # noqa: E402
from gan_mask.sampling import sampler  # noqa: E402

pretrained.EMBEDDERS["fake"] = lambda name: FakeEmbedder()  # type: ignore[assignment,return-value]
pretrained.DETECTORS["fake"] = lambda name: FakeDetector()  # type: ignore[assignment,return-value]
prepare.CHUNK = 2
evaluation_run.UNIT = 2

FAKES = "--embedders fake --detectors fake".split()
TRAIN = (
    "--widths 8 16 --discriminator_width 8 --batch_size 4 --workers 0 --warmup 1 --templates face-001 plain-white "
    "--steps 16 --log_every 1 --validate_every 8 --save_every 2 --validation_faces 4 --r1_every 4"
).split()

EVALUATE = (
    "--split val --methods plain dm --templates face-001 --stored-thresholds --probes 6 --changed-probes 2".split()
)


def arguments(command: str, photos: Path, data: Path, out: Path) -> list[str]:
    return {
        "prepare": [str(photos), str(out), "--size", "96", "--workers", "1"],
        "train": ["--data", str(data), "--out", str(out), *FAKES, *TRAIN],
        "sample": ["--faces", str(photos), "--out", str(out), *FAKES, "--method", "dm", "--batch-size", "2"],
        "evaluate": ["--data", str(data), "--out", str(out), *FAKES, *EVALUATE],
    }[command]


MAINS = {"prepare": prepare.main, "train": training.main, "sample": sampling.main, "evaluate": evaluation.main}


def load_once() -> None:
    """Load the face finders' files once for all forks: what is interrupted is the work, not the loading."""
    shared: Any = functools.cache(FaceFinder)
    shared.SMALLEST = FaceFinder.SMALLEST
    prepare.FaceFinder = sampler.FaceFinder = experiment.FaceFinder = shared  # type: ignore[misc]
    shared("cpu", 0.9, 40), shared("cpu", 0.9), shared("cpu")


class Fork:
    """A command in a process group of its own."""

    def __init__(
        self, command: str, argv: Sequence[str], log: Path, die_at: int | None = None, count: Path | None = None
    ) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(command, argv, log, die_at, count))
        with contextlib.suppress(OSError):  # here, too: the child may not have come so far when it is killed
            os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float | None = None, number: int = signal.SIGKILL) -> int:
        """Exit code, or minus the signal that ended it; after `seconds` the signal is sent."""
        if seconds is not None:
            time.sleep(seconds)
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                os.killpg(self.pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run(command: str, argv: Sequence[str], log: Path, die_at: int | None, count: Path | None) -> int:
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the campaign runs in the background
        os.environ["ACCELERATE_USE_CPU"] = "true"
        with open(log, "w") as f:
            os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
        operations = _Operations(die_at)
        try:
            status = MAINS[command](argv) or 0
        except SystemExit as end:
            status = int(end.code or 0)
        if count:
            count.write_text(str(operations.done))
        return status
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush(), sys.stderr.flush()


class _Operations:
    """Counts fsyncs and renames, and dies in the N-th."""

    def __init__(self, die_at: int | None) -> None:
        self.done, self.die_at = 0, die_at
        self._wrap(os, "fsync", self._tear)
        self._wrap(os, "replace", None)
        self._wrap(os, "rename", None)
        self._wrap(shutil, "rmtree", None)

    def _wrap(self, module: Any, name: str, before_death: Any) -> None:
        original = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.done += 1
            if self.done == self.die_at:
                if before_death:
                    before_death(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, name, wrapped)

    @staticmethod
    def _tear(descriptor: int) -> None:
        """What was not synced yet may be lost: leave half of it."""
        path = f"/proc/self/fd/{descriptor}"
        if os.path.isfile(path):
            os.truncate(path, os.stat(path).st_size // 2)
