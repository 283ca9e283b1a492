"""Faced masks for a detector to learn from, made by every method, some against the detector itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gan_mask import attacks, files, masking, pretrained, templates
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.cli import Progress
from gan_mask.data import PreparedSet
from gan_mask.generator import load_generator
from gan_mask.harden import blends
from gan_mask.harden.export import hardened_name
from gan_mask.harden.options import KNOWN, HardenConfig
from gan_mask.pretrained.protocol import Detector

SUITED = 0.8  # share of the masks that do not show people of the set whose template is chosen as sample.py does


class Pool(NamedTuple):
    """Faces that wear faced masks."""

    rows: np.ndarray  # (N,) their positions in the set
    faces: np.ndarray  # uint8 (N, 3, S, S), as they would be saved


def make_pool(c: HardenConfig, photos: PreparedSet, detector: Detector, name: str, number: int) -> Pool:
    """Kept in the round's folder, and read from there when it is asked for again."""
    rng = np.random.default_rng((c.seed, number, KNOWN.index(name)))
    index = rng.integers(len(photos), size=c.pool)
    path = Path(c.out) / f"round-{number}" / f"pool-{name}.npy"
    if not path.is_file():
        methods = methods_of(c, detector, name, number)
        parts = []
        for method, part in zip(methods, np.array_split(index, len(methods)), strict=True):
            wardrobe = Wardrobe(photos, c.templates, method.texture_size, rng, c.own_templates, SUITED)
            parts.append(faced_masks(photos, part, method, wardrobe, f"round {number}: {name}, {method.placement}"))
        with files.replacing(path) as temporary, open(temporary, "wb") as f:
            np.save(f, np.concatenate(parts))
    return Pool(index, np.load(path, mmap_mode="r", allow_pickle=False))


def methods_of(c: HardenConfig, detector: Detector, name: str, number: int) -> list[attacks.Method]:
    """The method called `name`; an optimised one in either placement."""
    if name == blends.NAME:
        return [blends.Blend(c.seed + number)]
    if name not in attacks.OPTIMISED:
        generator = load_generator(current_checkpoint(c, number)) if name == "generator" else None
        return [attacks.method(name, generator)]
    surrogates = surrogates_of(c, detector)
    paper = attacks.Options(steps=c.attack_steps, seed=c.seed + number)
    return [attacks.method(name, None, surrogates, o) for o in (paper, replace(paper, placement="seamless"))]


def choice(names: Sequence[str]) -> list[str]:
    """The shipped faces among templates called `names`; none if there is but one, as nobody wears their own."""
    faces = [name for name in templates.expand(names) if name in templates.FACES]
    return faces if len(faces) > 1 else []


class Wardrobe:
    """What is printed on masks, drawn for every wearer anew.

    Another person of the set with probability `others`, or else one of the templates called `names`: with probability
    `suited` the shipped face among them that suits the wearer best.
    """

    def __init__(
        self, photos: PreparedSet, names: Sequence[str], size: tuple[int, int], rng: np.random.Generator,
        others: float = 0.0, suited: float = 0.0,
    ) -> None:  # fmt: skip
        self.photos, self.size, self.rng, self.others = photos, size, rng, others
        self.bank = templates.load_all(names, size)
        self.faces = choice(names)
        self.suited = suited if self.faces else 0.0

    def draw(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        """Textures (B, 3, h, w) for faces (B, 3, H, W) with landmarks (B, 68, 2) px."""
        drawn = [self._one() for _ in faces]
        lacking = [row for row, texture in enumerate(drawn) if texture is None]
        names = templates.best(faces[lacking], landmarks[lacking], self.faces) if lacking else []
        for row, name in zip(lacking, names, strict=True):
            drawn[row] = templates.load(name, self.size)
        return torch.stack([texture for texture in drawn if texture is not None])

    def _one(self) -> Tensor | None:
        """None: what suits."""
        if self.rng.random() >= self.others:
            suits = self.suited and self.rng.random() < self.suited
            return None if suits else self.bank[int(self.rng.integers(len(self.bank)))]
        item = self.photos[int(self.rng.integers(len(self.photos)))]
        return masking.unwrap(item["face"][None], item["landmarks"][None], self.size)[0]


def faced_masks(
    photos: PreparedSet, index: np.ndarray, method: attacks.Method, wardrobe: Wardrobe, title: str
) -> np.ndarray:
    """The faces `index` (N,) of the set with the method's masks on, as they would be saved: uint8 (N, 3, S, S)."""
    result = []
    for start in Progress(range(0, len(index), 16), desc=title, mininterval=5):
        items = [photos[int(i)] for i in index[start : start + 16]]
        face, landmarks = (torch.stack([item[key] for item in items]) for key in ("face", "landmarks"))
        with torch.no_grad():
            masked, _ = method.mask(face, landmarks, wardrobe.draw(face, landmarks))
        result.append((masked * 255).round().clamp(0, 255).byte().numpy())
    return np.concatenate(result)


def surrogates_of(c: HardenConfig, detector: Detector) -> Surrogates:
    embedders = [pretrained.load_embedder(name) for name in c.embedders]
    return Surrogates(embedders, [e.threshold(c.far) for e in embedders], [detector])


def current_checkpoint(c: HardenConfig, number: int) -> Path:
    """--checkpoint; from round 2 on, with --generator_steps, a generator trained against the last round's detector."""
    if number == 1 or not c.generator_steps:
        return Path(c.checkpoint)
    from gan_mask.training.loop import train
    from gan_mask.training.options import TrainConfig

    run = Path(c.out) / f"round-{number}" / "generator"
    train(
        TrainConfig(
            data=c.data, out=str(run), steps=c.generator_steps, batch_size=12, seed=c.seed, workers=c.workers,
            embedders=c.embedders, detectors=(hardened_name(c),), far=c.far,
            templates=c.templates, kernel=3,
            validate_every=c.generator_steps, save_every=100,
        )
    )  # fmt: skip
    return run
