"""Who is compared with whom: probes and mates, impostor pairs, distractors, the pairs of the LFW protocol."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gan_mask import templates
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError


@dataclass
class Probes:
    """Positions in the prepared set."""

    index: np.ndarray  # (P,) probes
    mate: np.ndarray  # (P,) another photo of the same person
    identity: np.ndarray  # (P,)


class Pairs(NamedTuple):
    """The pairs of the LFW protocol, as positions in a prepared set."""

    a: np.ndarray  # (N,)
    b: np.ndarray  # (N,)
    same: np.ndarray  # (N,) bool
    fold: np.ndarray  # (N,)
    missing: int  # pairs with a photo that is not in the set


def choose_probes(photos: PreparedSet, limit: int, seed: int) -> Probes:
    """Every photo of everybody with two or more, thinned to `limit` at random; the mate is the person's next photo.

    The synthetic people whose faces are shipped as templates are left out: nobody wears their own face.
    """
    identities = np.asarray(photos.identities)
    order = np.argsort(identities, kind="stable")
    order = order[[photos.person(int(i)) not in templates.TEMPLATE_PEOPLE for i in order]]
    index: list[int] = []
    mate: list[int] = []
    for group in np.split(order, np.flatnonzero(np.diff(identities[order])) + 1):
        if len(group) > 1:
            index.extend(group)
            mate.extend(np.roll(group, -1))
    if not index:
        raise GanMaskError(f"the split of {len(photos)} faces has nobody with two photos: no mated pairs to measure")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(index))[:limit])
    return Probes(np.array(index)[chosen], np.array(mate)[chosen], identities[np.array(index)[chosen]])


def choose_others(photos: PreparedSet, limit: int, seed: int) -> np.ndarray:
    """At most `limit` faces at random, sorted: the impostors that thresholds come from."""
    return np.sort(np.random.default_rng(seed).permutation(len(photos))[:limit])


def spread(identities: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` positions, sorted, that cover the people (N,) evenly: everybody's first before anybody's second.

    Which photo of a person comes first, and whose when not all fit, is drawn.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(identities))
    _, person = np.unique(identities, return_inverse=True)
    turn, taken = np.empty(len(order), int), np.zeros(len(order), int)
    for position in order:
        turn[position] = taken[person[position]]
        taken[person[position]] += 1
    return np.sort(order[np.argsort(turn[order], kind="stable")][:limit])


def one_of_each(identities: np.ndarray, limit: int) -> np.ndarray:
    """Positions of the first face of each of the first `limit` identities: distractors."""
    return np.sort(np.unique(identities, return_index=True)[1])[:limit]


def batches(photos: PreparedSet, index: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Faces (B, 3, S, S) in [0, 1] and landmarks (B, 68, 2) of `index`, in order."""
    for start in range(0, len(index), size):
        items = [photos[int(i)] for i in index[start : start + size]]
        yield torch.stack([x["face"] for x in items]), torch.stack([x["landmarks"] for x in items])


def lfw_pairs(path: Path, photos: PreparedSet) -> Pairs:
    """The file of the LFW protocol: `folds pairs`, then per fold mated (name, m, n) and impostor (name, m, name, n)."""
    position = {unicodedata.normalize("NFC", Path(photos.source(i)).stem): i for i in range(len(photos))}
    rows: list[tuple[int, int, bool, int]] = []
    missing = 0
    for fold, same, names in _read_pairs(path):
        if all(name in position for name in names):
            rows.append((position[names[0]], position[names[1]], same, fold))
        else:
            missing += 1
    if not rows:
        raise GanMaskError(f"--pairs {path}: none of its photos is in the prepared set (names such as Ann_Lee_0001)")
    a, b, same_, folds = (np.array(column) for column in zip(*rows, strict=True))
    return Pairs(a, b, same_.astype(bool), folds, missing)


def _read_pairs(path: Path) -> Iterator[tuple[int, bool, Sequence[str]]]:
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8"))
        lines = [line.split() for line in text.splitlines() if line.strip()]
        per_fold = 2 * int(lines[0][-1])
    except (OSError, ValueError, IndexError) as error:
        raise GanMaskError(f"--pairs {path}: not a file of LFW pairs ({error})") from error
    for i, words in enumerate(lines[1:]):
        if len(words) not in (3, 4) or not all(word.isdecimal() for word in (words[1], words[-1])):
            raise GanMaskError(f"--pairs {path}, line {i + 2}: expected `name m n` or `name m name n`")
        other = words[0] if len(words) == 3 else words[2]
        yield i // per_fold, len(words) == 3, (f"{words[0]}_{int(words[1]):04d}", f"{other}_{int(words[-1]):04d}")
