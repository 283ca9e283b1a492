"""Photos, and what finds, masks and measures their faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_mask import attacks, files, pretrained, run_record
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.cli.methods import flat
from gan_mask.errors import GanMaskError
from gan_mask.faces import FaceFinder, read_image, to_tensors
from gan_mask.generator import SHIPPED, Generator, load_generator, local
from gan_mask.networks import GeneratorConfig
from gan_mask.pretrained import contract
from gan_mask.pretrained.protocol import Detector, Embedder, fingerprints
from gan_mask.sampling.masker import Masker, Photo, parts, template_of
from gan_mask.sampling.options import SampleConfig

FAR = 1e-3  # false-accept rate of the thresholds

# Options that change nothing in the outputs, or decide on their form alone.
ELSEWHERE = ("out", "device", "batch_size", "show", "shards", "workers", "engine", "ray_address")


@dataclass
class Sampler:
    """Everything that is loaded once."""

    source: Path
    out: Path
    masker: Masker
    method_name: str
    checkpoint: str | None
    largest: bool
    measures: bool  # whether the table says what the networks make of the faces
    search_whole: bool  # whether the written photo is searched as a whole
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

    @torch.no_grad()
    def measure(
        self, crops: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings (N, D) per embedder and mask logits (N,) per detector of faces in photos of these names.

        crops: each face as `align` gives it, framed as FRAMING.
        """
        embeddings: dict[str, list[Tensor]] = {name: [] for name in self.embedders}
        logits: dict[str, list[Tensor]] = {name: [] for name in self.detectors}
        for part, photos in zip(parts(crops, self.batch_size), parts(names, self.batch_size), strict=True):
            faces, landmarks = to_tensors(part, self.device)
            with contract.naming(photos):
                for name, embedder in self.embedders.items():
                    embeddings[name].append(embedder(faces, landmarks).cpu())
                for name, detector in self.detectors.items():
                    logits[name].append(detector(faces)[0].cpu())
        return {k: torch.cat(v) for k, v in embeddings.items()}, {k: torch.cat(v) for k, v in logits.items()}


def load(c: SampleConfig) -> Sampler:
    if c.device != "cpu" and not torch.cuda.is_available():
        raise GanMaskError(f"--device {c.device}: this machine has no CUDA device; use --device cpu")
    generator = load_generator(checkpoint_of(c), c.device) if c.method == "generator" else None
    idle = c.no_measure and not (c.method in attacks.OPTIMISED or c.attack.refine)
    embedders = {name: pretrained.load_embedder(name, c.device) for name in (() if idle else c.embedders)}
    detectors = {name: pretrained.load_detector(name, c.device) for name in (() if idle else c.detectors)}
    faces = Path(c.faces)
    return Sampler(
        source=faces if faces.is_dir() else faces.parent, out=Path(c.out),
        masker=make_masker(c, generator, embedders, detectors),
        method_name=c.method, checkpoint=checkpoint_name(c),
        largest=c.largest, measures=not c.no_measure, search_whole=c.search_whole,
        batch_size=c.batch_size, device=c.device,
        finder=FaceFinder(c.device, c.min_score, c.min_face or None, no_larger=True),
        embedders=embedders, detectors=detectors,
    )  # fmt: skip


def make_masker(
    c: SampleConfig,
    generator: Generator | None,
    embedders: Mapping[str, Embedder],
    detectors: Mapping[str, Detector],
) -> Masker:
    """Of networks that are loaded already; generator: for the method of this name."""
    config = generator.config if generator else GeneratorConfig()
    template, own = template_of(generator, attacks.PLAIN if c.method == "plain" else c.template)
    surrogates = Surrogates(
        list(embedders.values()), [e.threshold(FAR) for e in embedders.values()], list(detectors.values())
    )
    method = attacks.method(c.method, generator, surrogates, c.attack.within(c.seed, c.placement, config.softness))
    return Masker(method, config, template, own, c.harmonise, c.seed, c.batch_size, c.device)


def checkpoint_of(c: SampleConfig) -> Path:
    return local(c.checkpoint or SHIPPED)


def checkpoint_name(c: SampleConfig) -> str | None:
    """As the mark of a photo tells it; None for other methods than the generator."""
    return Path(c.checkpoint or SHIPPED).name if c.method == "generator" else None


def settings(c: SampleConfig, sampler: Sampler) -> dict[str, Any]:
    """What the outputs depend on; the same settings resume what is in OUT."""
    told = {k: v for k, v in flat(c).items() if k not in ELSEWHERE}
    told |= {"faces": str(Path(c.faces).resolve())}
    if c.method == "generator":
        told["weights"] = [files.sha256(p) for p in sorted(checkpoint_of(c).rglob("*.safetensors"))]
    told["networks"] = fingerprints(sampler.embedders, sampler.detectors)
    if Path(sampler.masker.template).is_file():
        told["template_file"] = files.sha256(sampler.masker.template)
    return run_record.inputs("masked photos", told)
