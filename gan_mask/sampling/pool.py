"""Photos shared among processes of this machine: one process has work for one and a half cores at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from gan_mask import engines
from gan_mask.engines import Engine
from gan_mask.faces import forget_old_shapes
from gan_mask.sampling.batch import mask_all
from gan_mask.sampling.folder import Targets
from gan_mask.sampling.masker import Row
from gan_mask.sampling.options import SampleConfig
from gan_mask.sampling.sampler import load

WORTH = 32  # photos for each process: loading its networks takes as long as ten of them
ROOM = 2 << 30  # bytes for each process, which takes 1.2 to 1.6 GiB with photos of four megapixels


def processes(c: SampleConfig, photos: int) -> int:
    """How many share so many photos: as many as were asked for, or as cores and memory of this machine allow."""
    if c.workers:
        return c.workers
    if c.device != "cpu":
        return 1
    return max(1, min(engines.cores(), photos // WORTH, engines.memory() // ROOM))


def mask_slices(
    c: SampleConfig, workers: int, targets: Mapping[str, Targets], done: Callable[[dict[str, list[Row]]], None]
) -> None:
    """Mask photos by their targets, `c.batch_size` at a time; `done` gets the rows of each slice, in any order.

    Each process has one thread for the arithmetic. GanMaskError if one is killed: what is done stays done.
    """
    rest = iter(targets.items())
    slices = iter(lambda: dict(islice(rest, c.batch_size)), {})
    engines.run(Engine("local", workers), Worker, (c,), dict(enumerate(slices)), done)


class Worker:
    """Masks slices of the photos."""

    def __init__(self, c: SampleConfig) -> None:
        forget_old_shapes()
        self.sampler = load(c)

    def __call__(self, number: int, targets: Mapping[str, Targets]) -> dict[str, list[Row]]:
        return mask_all(self.sampler, list(targets), targets)
