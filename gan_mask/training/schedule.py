"""The order of photos."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gan_mask.training.options import TrainConfig


class Schedule:
    """Which photos each step sees, as a function of the seed alone; a batch sampler for this process.

    run: photos that stay together, because they are read in one go (1: each for itself).
    """

    def __init__(
        self, identities: np.ndarray, c: TrainConfig, process: int, processes: int, start: int, run: int = 1
    ) -> None:
        self.c, self.process, self.processes, self.start, self.run = c, process, processes, start, run
        self.total = c.batch_size * c.accumulate * processes
        self.order = np.argsort(identities, kind="stable")
        self.rank = np.empty_like(self.order)  # photo -> position among its person's neighbours
        self.rank[self.order] = np.arange(len(identities))
        _, self.first, self.size = np.unique(identities[self.order], return_index=True, return_counts=True)
        self.person = np.searchsorted(self.first, self.rank, side="right") - 1
        self._epoch, self._shuffled = -1, self.order

    def row(self, micro: int) -> int:
        """Where this process' micro-batch begins within the effective batch."""
        return (micro * self.processes + self.process) * self.c.batch_size

    def __len__(self) -> int:
        return (self.c.steps - self.start) * self.c.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, bool, int]]]:
        for step in range(self.start, self.c.steps):
            for micro in range(self.c.accumulate):
                first = step * self.total + self.row(micro)
                yield [self._photo(position) for position in range(first, first + self.c.batch_size)]

    def _photo(self, position: int) -> tuple[int, bool, int]:
        """Which photo, whether mirrored, and the row of the training that it is."""
        epoch, place = divmod(position, len(self.order))
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, self._shuffle(epoch)
        photo = int(self._shuffled[place])
        return photo, bool((photo + epoch) % 2), position  # each photo is mirrored in every other epoch

    def _shuffle(self, epoch: int) -> np.ndarray:
        """All photos, in runs of neighbours in random order; other neighbours in each epoch."""
        random, count = np.random.default_rng((self.c.seed, epoch)), len(self.order)
        runs = random.permutation(-(-count // self.run))
        photos = (runs[:, None] * self.run + np.arange(self.run)).ravel()
        return (photos[photos < count] + random.integers(self.run)) % count

    def mates(self, photos: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Another photo of the same person for each photo (the photo itself if it is the only one)."""
        first, size = self.first[self.person[photos]], self.size[self.person[photos]]
        offset = 1 + draw % np.maximum(size - 1, 1)
        return self.order[first + (self.rank[photos] - first + offset) % size]
