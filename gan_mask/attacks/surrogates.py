"""The frozen networks that a mask is made against, and how far it is from evading them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_mask import augment, losses, pretrained
from gan_mask.augment import Draws
from gan_mask.pretrained.protocol import fingerprints


class Surrogates(NamedTuple):
    """Networks as arguments; only `load_surrogates` knows their names."""

    embedders: Sequence[Callable[[Tensor, Tensor], Tensor]]
    thresholds: Sequence[float]  # cosine, at the chosen FAR
    detectors: Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None

    def fingerprints(self) -> dict[str, str]:
        """Of the loaded networks, by name."""
        embedders: Any = self.embedders
        detectors: Any = self.detectors
        return fingerprints({e.name: e for e in embedders}, {d.name: d for d in detectors})


class Goal(NamedTuple):
    """How far beyond the networks' decisions a mask should get."""

    dodging_margin: float = 0.25  # in units of 1 - threshold
    detection_margin: float = 2.0  # logits


def load_surrogates(
    embedders: Sequence[str],
    detectors: Sequence[str],
    far: float,
    device: str | torch.device = "cpu",
    perceptual: bool = False,
) -> Surrogates:
    loaded = [pretrained.load_embedder(name, device) for name in embedders]
    return Surrogates(
        loaded,
        [embedder.threshold(far) for embedder in loaded],
        [pretrained.load_detector(name, device) for name in detectors],
        pretrained.load_perceptual(device=device) if perceptual else None,
    )


def evasion_terms(
    masked: Tensor,
    landmarks: Tensor,
    references: Sequence[Tensor],
    surrogates: Surrogates,
    draws: Draws,
    diversity: float,
    goal: Goal,
) -> dict[str, Tensor]:
    """Hinges (B,) that vanish when a masked face evades: 'dodging', 'undetected', 'found'.

    masked (B, 3, H, W) in [0, 1]; references: per embedder (B, R, D), clean embeddings of the wearer.
    Of several recognisers the one that still knows the wearer counts most (`losses.smooth_maximum`).
    Each network looks through its own augmentation of strength `diversity` (input diversity, Xie et al. 2019).
    """
    zero = masked.new_zeros(len(masked), dtype=torch.float32)
    terms = {"dodging": zero, "undetected": zero, "found": zero}
    hinges: list[Tensor] = []
    for embedder, threshold, reference in zip(surrogates.embedders, surrogates.thresholds, references, strict=True):
        seen = degrade(masked, draws, diversity)
        embedding = embedder(seen, augment.jitter_landmarks(landmarks, draws, diversity))
        similarity = (reference * embedding[:, None]).sum(2)
        hinges.append(losses.dodging_hinge(similarity, threshold, goal.dodging_margin).mean(1))
    if hinges:
        terms["dodging"] = losses.smooth_maximum(torch.stack(hinges, 1))
    for detector in surrogates.detectors:
        seen = augment.shift_image(degrade(masked, draws, diversity), draws, 0.5 * diversity)
        mask_logit, face_logit = detector(seen)
        share = 1 / len(surrogates.detectors)
        hidden = losses.undetected_hinge(mask_logit, goal.detection_margin)
        found = losses.found_hinge(face_logit, goal.detection_margin)
        terms["undetected"] = terms["undetected"] + share * hidden
        terms["found"] = terms["found"] + share * found
    return terms


def degrade(images: Tensor, draws: Draws, strength: float) -> Tensor:
    """Light and JPEG-like noise on half of the pictures each."""
    if strength == 0:
        return images
    relit = torch.where(draws.uniform(1, 1, 1) < 0.5, augment.relight(images, draws, strength), images)
    return torch.where(draws.uniform(1, 1, 1) < 0.5, augment.compress(relit, draws), relit)
