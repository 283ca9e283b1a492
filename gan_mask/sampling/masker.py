"""A method's masks on all faces of photos, each face with a template of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_mask import attacks, templates
from gan_mask.faces import Face, align, to_tensors
from gan_mask.generator import Generator
from gan_mask.networks import OWN, GeneratorConfig
from gan_mask.pretrained import contract

Row = dict[str, Any]


@dataclass
class Photo:
    """A photo that is being worked on."""

    name: str  # path below --faces, with /
    image: np.ndarray  # uint8 (H, W, 3); the masks are put onto it
    faces: list[Face]
    worn: dict[int, Row] = field(default_factory=dict)  # per face: the template and, if optimised, what it took
    seconds: float = 0.0
    _crops: dict[tuple[int, int, float], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def crop(self, face: int, size: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """The face aligned, see `faces.align`; as it was when it was first asked for, without a mask."""
        key = (face, size, margin)
        if key not in self._crops:
            self._crops[key] = align(self.image, self.faces[face].landmarks, size, margin)
        return self._crops[key]


@dataclass
class Masker:
    """What is needed to put masks on."""

    method: attacks.Method
    config: GeneratorConfig  # whose crops the method works on
    template: str  # a name, a photo, 'random' or 'match'
    own: Tensor | None  # (3, h, w), the texture of the template if it is none of these but the checkpoint's own
    harmonise: bool = False
    seed: int = 0  # of random templates
    batch_size: int = 16  # faces
    device: str | torch.device = "cpu"

    @torch.no_grad()
    def wear(self, photos: Sequence[Photo]) -> None:
        """Put masks on all faces of the photos, in place; larger faces last, since they are in front."""
        wearers = [(photo, index) for photo in photos for index in reversed(range(len(photo.faces)))]
        # All of them before the first mask is on, which may reach into a neighbour's crop.
        aligned = [photo.crop(index, self.config.size, self.config.margin) for photo, index in wearers]
        for part, cut in zip(parts(wearers, self.batch_size), parts(aligned, self.batch_size), strict=True):
            crops, landmarks = to_tensors(cut, self.device)
            names = self.choose_templates(part, crops, landmarks)
            bank = self.bank(names, crops, landmarks)
            images, marks = [photo.image for photo, _ in part], [photo.faces[index].landmarks for photo, index in part]
            with contract.naming([photo.name for photo, _ in part]):
                result = self.method.mask_photos(images, marks, crops, landmarks, bank)
            for row, ((photo, index), name) in enumerate(zip(part, names, strict=True)):
                photo.worn[index] = {"template": name}
                if result.iterations is not None and result.seconds is not None:
                    photo.worn[index]["iterations"] = int(result.iterations[row])
                    photo.worn[index]["attack_seconds"] = round(float(result.seconds[row]), 3)

    def choose_templates(self, wearers: Sequence[tuple[Photo, int]], crops: Tensor, landmarks: Tensor) -> list[str]:
        """The templates' names; a random one depends on seed, photo and face alone."""
        if self.template == "match":
            return templates.best(crops, landmarks)
        if self.template == "random":
            faces = templates.groups()["faces"]
            return [random.Random(f"{self.seed} {photo.name} {face}").choice(faces) for photo, face in wearers]
        return [self.template] * len(wearers)

    def bank(self, names: Sequence[str], crops: Tensor, landmarks: Tensor) -> Tensor:
        """(N, 3, h, w), of the templates of these names for these wearers."""
        size = self.method.texture_size
        bank = templates.load_all(names, size) if self.own is None else self.own.expand(len(names), -1, -1, -1)
        bank = bank.to(self.device)
        return templates.harmonise(bank, crops, landmarks) if self.harmonise else bank


def template_of(generator: Generator | None, template: str | None) -> tuple[str, Tensor | None]:
    """`Masker`'s template and own: the template asked for; without one the checkpoint's own, or else a match.

    GanMaskError where there is no such template.
    """
    default = generator.config.default_template if generator else "match"
    template = template or (OWN if default == OWN else "match")
    if generator and template == default == OWN:
        return template, generator.template
    if template not in ("random", "match"):
        templates.load(template)  # fail now rather than after the first photos
    return template, None


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
