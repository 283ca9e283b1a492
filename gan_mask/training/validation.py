"""Joint success while training, on a few fixed faces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gan_mask import attacks
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.data.shards import open_faces
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator
from gan_mask.templates import Bank
from gan_mask.training.options import TrainConfig


class Validation:
    """Joint success on fixed faces of the val split, on 8-bit crops, without re-detecting the face.

    A quick guide while training; the figures to quote come from gan_mask.evaluation.
    """

    def __init__(self, c: TrainConfig, surrogates: Surrogates, bank: Bank, device: torch.device) -> None:
        self.c, self.surrogates, self.device = c, surrogates, device
        photos = open_faces(c.data, "val")
        count = min(c.validation_faces, len(photos))
        if count < 2:
            raise GanMaskError(f"{c.data}: {len(photos)} faces in the val split; prepare with a larger --splits share")
        items = [photos[int(i)] for i in np.linspace(0, len(photos) - 1, count)]
        self.face = torch.stack([item["face"] for item in items]).to(device)
        self.landmarks = torch.stack([item["landmarks"] for item in items]).to(device)
        self.template = bank.suited(self.face, self.landmarks)
        self.clean = [torch.cat([e(f, m) for f, m in self._batches()]) for e in surrogates.embedders]

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.face.split(16), self.landmarks.split(16), strict=True)

    @torch.no_grad()
    def masked(self, generator: Generator | None) -> Tensor:
        options = attacks.Options(placement=self.c.placement, softness=self.c.softness)
        method = attacks.method("generator" if generator else "dm", generator, options=options)
        parts = zip(self.face.split(16), self.landmarks.split(16), self.template.split(16), strict=True)
        return torch.cat([method.mask(*part)[0] for part in parts])

    @torch.no_grad()
    def figures(self, generator: Generator) -> dict[str, float]:
        result = {}
        for name, masked in {"dm": self.masked(None), "generator": self.masked(generator)}.items():
            dodged = torch.ones(len(masked), dtype=torch.bool, device=self.device)
            for embedder, threshold, clean in zip(
                self.surrogates.embedders, self.surrogates.thresholds, self.clean, strict=True
            ):
                rows = [embedder(f, m) for f, m in zip(masked.split(16), self.landmarks.split(16), strict=True)]
                dodged &= (torch.cat(rows) * clean).sum(1) < threshold
            hidden = torch.ones_like(dodged)
            for detector in self.surrogates.detectors:
                logits = [torch.stack(detector(f)) for f in masked.split(16)]
                mask_logit, face_logit = torch.cat(logits, 1)
                hidden &= (mask_logit <= 0) & (face_logit > 0)
            result[f"{name}/dodging"] = dodged.float().mean().item()
            result[f"{name}/undetected"] = hidden.float().mean().item()
            result[f"{name}/joint"] = (dodged & hidden).float().mean().item()
        return result

    @torch.no_grad()
    def picture(self, generator: Generator, columns: int = 8) -> Tensor:
        """Unmasked, DM, generated: (3, 3 S, columns * S) in [0, 1]."""
        rows = (self.face, self.masked(None), self.masked(generator))
        return torch.cat([torch.cat(list(row[:columns]), 2) for row in rows], 1).cpu()
