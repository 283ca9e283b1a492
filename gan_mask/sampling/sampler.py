"""Photos, and what finds, masks and judges their faces."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_mask import attacks, pretrained, templates
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.cli.methods import method_options
from gan_mask.errors import GanMaskError
from gan_mask.faces import Face, FaceFinder, align, read_image, to_tensors
from gan_mask.generator import SHIPPED, load_generator
from gan_mask.landmarks import FRAMING
from gan_mask.networks import OWN, GeneratorConfig
from gan_mask.pretrained import contract
from gan_mask.pretrained.protocol import Detector, Embedder

FAR = 1e-3  # false-accept rate of the thresholds

Row = dict[str, Any]


@dataclass
class Photo:
    """A photo that is being worked on."""

    name: str  # path below --faces, with /
    image: np.ndarray  # uint8 (H, W, 3); the masks are put onto it
    faces: list[Face]
    worn: dict[int, Row] = field(default_factory=dict)  # per face: the template and, if optimised, what it took
    seconds: float = 0.0


@dataclass
class Sampler:
    """Everything that is loaded once."""

    source: Path
    out: Path
    config: GeneratorConfig
    method: attacks.Method
    method_name: str
    checkpoint: str | None
    template: str  # a name, a photo, 'random' or 'match'
    own: Tensor | None  # (3, h, w), the texture of the template if it is none of these but the checkpoint's own
    harmonise: bool
    seed: int
    largest: bool
    batch_size: int
    device: str
    finder: FaceFinder
    embedders: dict[str, Embedder]
    detectors: dict[str, Detector]

    def photo(self, name: str) -> Photo:
        return Photo(name, read_image(self.source / name, name), [])

    def find_faces(self, photos: Sequence[Photo]) -> None:
        for photo, faces in zip(photos, self.finder.find([photo.image for photo in photos]), strict=True):
            photo.faces = faces[:1] if self.largest else faces

    def choose_templates(self, wearers: Sequence[tuple[Photo, int]], crops: Tensor, landmarks: Tensor) -> list[str]:
        """The templates' names; a random one depends on seed, photo and face alone."""
        if self.method_name == "plain":
            return [attacks.PLAIN] * len(wearers)
        if self.template == "match":
            return templates.best(crops, landmarks)
        if self.template == "random":
            faces = templates.groups()["faces"]
            return [random.Random(f"{self.seed} {photo.name} {face}").choice(faces) for photo, face in wearers]
        return [self.template] * len(wearers)

    def _bank(self, names: Sequence[str]) -> Tensor:
        """Textures (N, 3, h, w) of the templates."""
        bank = (
            templates.load_all(names, self.method.texture_size)
            if self.own is None
            else self.own.expand(len(names), -1, -1, -1)
        )
        return bank.to(self.device)

    @torch.no_grad()
    def wear(self, photos: Sequence[Photo]) -> None:
        """Put masks on all faces of the photos, in place; larger faces last, since they are in front."""
        wearers = [(photo, index) for photo in photos for index in reversed(range(len(photo.faces)))]
        # All of them before the first mask is on, which may reach into a neighbour's crop.
        aligned = [align(p.image, p.faces[i].landmarks, self.config.size, self.config.margin) for p, i in wearers]
        for part, cut in zip(parts(wearers, self.batch_size), parts(aligned, self.batch_size), strict=True):
            crops, landmarks = to_tensors(cut, self.device)
            names = self.choose_templates(part, crops, landmarks)
            bank = self._bank(names)
            if self.harmonise:
                bank = templates.harmonise(bank, crops, landmarks)
            images, marks = [photo.image for photo, _ in part], [photo.faces[index].landmarks for photo, index in part]
            with contract.naming([photo.name for photo, _ in part]):
                result = self.method.mask_photos(images, marks, crops, landmarks, bank)
            for row, ((photo, index), name) in enumerate(zip(part, names, strict=True)):
                photo.worn[index] = {"template": name}
                if result.iterations is not None and result.seconds is not None:
                    photo.worn[index]["iterations"] = int(result.iterations[row])
                    photo.worn[index]["attack_seconds"] = round(float(result.seconds[row]), 3)

    @torch.no_grad()
    def look_at(
        self, faces: Sequence[tuple[np.ndarray, Face]], names: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings (N, D) per embedder and mask logits (N,) per detector of faces in photos of these names."""
        embeddings: dict[str, list[Tensor]] = {name: [] for name in self.embedders}
        logits: dict[str, list[Tensor]] = {name: [] for name in self.detectors}
        for part, photos in zip(parts(faces, self.batch_size), parts(names, self.batch_size), strict=True):
            crops, landmarks = self._crops(part, *FRAMING)
            with contract.naming(photos):
                for name, embedder in self.embedders.items():
                    embeddings[name].append(embedder(crops, landmarks).cpu())
                for name, detector in self.detectors.items():
                    logits[name].append(detector(crops)[0].cpu())
        return {k: torch.cat(v) for k, v in embeddings.items()}, {k: torch.cat(v) for k, v in logits.items()}

    def _crops(self, faces: Sequence[tuple[np.ndarray, Face]], size: int, margin: float) -> tuple[Tensor, Tensor]:
        return to_tensors([align(image, face.landmarks, size, margin) for image, face in faces], self.device)


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def load(args: argparse.Namespace) -> Sampler:
    if args.device != "cpu" and not torch.cuda.is_available():
        raise GanMaskError(f"--device {args.device}: this machine has no CUDA device; use --device cpu")
    generator = load_generator(checkpoint_of(args), args.device) if args.method == "generator" else None
    config = generator.config if generator else GeneratorConfig()
    template = args.template or (OWN if config.default_template == OWN else "match")
    own = generator.template if generator and template == config.default_template == OWN else None
    if own is None and template not in ("random", "match"):
        templates.load(template)  # fail now rather than after the first photos
    embedders = {name: pretrained.load_embedder(name, args.device) for name in args.embedders}
    detectors = {name: pretrained.load_detector(name, args.device) for name in args.detectors}
    surrogates = Surrogates(
        list(embedders.values()), [e.threshold(FAR) for e in embedders.values()], list(detectors.values())
    )
    faces = Path(args.faces)
    return Sampler(
        source=faces if faces.is_dir() else faces.parent, out=Path(args.out), config=config,
        method=attacks.method(args.method, generator, surrogates, method_options(args, config.softness)),
        method_name=args.method, checkpoint=checkpoint_of(args).name if generator else None, template=template, own=own,
        harmonise=args.harmonise, seed=args.seed, largest=args.largest, batch_size=args.batch_size, device=args.device,
        finder=FaceFinder(args.device, args.min_score),
        embedders=embedders, detectors=detectors,
    )  # fmt: skip


def checkpoint_of(args: argparse.Namespace) -> Path:
    return Path(args.checkpoint or SHIPPED)
