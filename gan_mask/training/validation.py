"""Joint success while training, on a few fixed faces."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gan_mask import attacks
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.data.prepared import PreparedSet
from gan_mask.data.shards import ShardSet, open_faces
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator
from gan_mask.templates import Bank
from gan_mask.training.options import TrainConfig


class Validation:
    """Joint success on fixed faces of the val split, on 8-bit crops, without re-detecting the face.

    The recognisers compare with another photo of the person, or with the same where there is none that all of them
    accept without a mask. A quick guide while training; the figures to quote come from gan_mask.evaluation.
    """

    def __init__(self, c: TrainConfig, surrogates: Surrogates, bank: Bank, device: torch.device) -> None:
        self.c, self.surrogates, self.device = c, surrogates, device
        photos = open_faces(c.data, "val")
        count = min(c.validation_faces, len(photos))
        if count < 2:
            raise GanMaskError(f"{c.data}: {len(photos)} faces in the val split; prepare with a larger --splits share")
        chosen = np.linspace(0, len(photos) - 1, count).astype(int)
        self.face, self.landmarks = self._faces(photos, chosen)
        self.template = bank.suited(self.face, self.landmarks)
        own = self._embeddings(self.face, self.landmarks)
        others = self._embeddings(*self._faces(photos, other_photos(photos.identities, chosen)))
        accepted = torch.ones(count, dtype=torch.bool, device=device)
        for a, b, threshold in zip(own, others, surrogates.thresholds, strict=True):
            accepted &= (a * b).sum(1) >= threshold
        self.clean = [torch.where(accepted[:, None], b, a) for a, b in zip(own, others, strict=True)]

    def _faces(self, photos: PreparedSet | ShardSet, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        items = [photos[int(i)] for i in chosen]
        face, landmarks = (torch.stack([item[name] for item in items]) for name in ("face", "landmarks"))
        return face.to(self.device), landmarks.to(self.device)

    @torch.no_grad()
    def _embeddings(self, faces: Tensor, landmarks: Tensor) -> list[Tensor]:
        parts = list(zip(faces.split(16), landmarks.split(16), strict=True))
        return [torch.cat([embedder(*part) for part in parts]) for embedder in self.surrogates.embedders]

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
            seen = self._embeddings(masked, self.landmarks)
            for embedding, threshold, clean in zip(seen, self.surrogates.thresholds, self.clean, strict=True):
                dodged &= (embedding * clean).sum(1) < threshold
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


def other_photos(identities: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each chosen photo the next of the same person, by the identities (N,) of all photos; itself if alone."""
    result = []
    for photo in chosen:
        same = np.flatnonzero(identities == identities[photo])
        result.append(same[(np.searchsorted(same, photo) + 1) % len(same)])
    return np.array(result)
