"""A recogniser with its decision as a plain classifier, which is what attack libraries take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_mask import masking
from gan_mask.errors import GanMaskError
from gan_mask.pretrained.protocol import Embedder

Landmarks = Tensor | Callable[[Tensor], Tensor]
UNIT = 1e-3  # by which the length of an enrolled embedding may differ from 1: it was stored in half precision


class Verifier(nn.Module):
    """verifier(images [B,3,H,W] in [0,1]) -> logits [B,1+P] float32; see `as_classifier`."""

    enrolled: Tensor  # (P, D)
    fixed: Tensor | None  # (N, 68, 2)

    def __init__(
        self, embedder: Embedder, enrolled: Tensor, threshold: float, landmarks: Landmarks, temperature: float
    ) -> None:
        super().__init__()
        _check_enrolled(enrolled)
        if not -1 < threshold < 1:
            raise GanMaskError(f"threshold: a cosine between -1 and 1 expected, got {threshold}")
        if not 1e-3 <= temperature <= 1e3:
            raise GanMaskError(f"temperature: 0.001 to 1000 expected, got {temperature}")
        self.embedder, self.unit = embedder, (1 - threshold) * temperature
        # A pair at the threshold itself is accepted, but `argmax` gives a draw to "other", which stands first.
        self.below = float(np.nextafter(np.float32(threshold), np.float32(-2)))
        self.finder = landmarks if callable(landmarks) else None
        if not callable(landmarks):
            _check_landmarks(landmarks, len(landmarks), "landmarks")
        self.register_buffer("enrolled", enrolled.detach().float().clone())
        self.register_buffer("fixed", None if callable(landmarks) else landmarks.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        logits = (self.cosines(images) - self.below) / self.unit
        return F.pad(logits, (1, 0))

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's own is untyped

    def cosines(self, images: Tensor) -> Tensor:
        """Of each image with each enrolled person: [B,3,H,W] in [0,1] -> [B,P]."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise GanMaskError(f"images: [B,3,H,W] expected, got {list(images.shape)}; channels come second")
        masking.check_pictures(images, "images", values=not images.is_cuda)  # which one would have to wait for
        embeddings = self.embedder(images, self._landmarks(images))
        if embeddings.shape[1] != self.enrolled.shape[1]:
            raise GanMaskError(
                f"enrolled: {self.enrolled.shape[1]} numbers per person, but {self.embedder.name} gives "
                f"{embeddings.shape[1]}; enrol with the same network"
            )
        return (embeddings[:, None] * self.enrolled).sum(2)  # no product of matrices: TF32 and autocast would round it

    def _landmarks(self, images: Tensor) -> Tensor:
        if self.finder is not None:
            with torch.no_grad():
                found = self.finder(images.detach())
            _check_landmarks(found, len(images), "landmarks(images)")
            return found.to(images.device)
        assert self.fixed is not None
        if len(self.fixed) not in (1, len(images)):
            raise GanMaskError(
                f"landmarks: these are of {len(self.fixed)} faces in their order, but {len(images)} images came; "
                f"which is whose? Have the tool take all of them in one batch (batch_size={len(self.fixed)}), or give "
                "landmarks of one face, or a callable images [B,3,H,W] -> landmarks [B,68,2]"
            )
        return self.fixed.expand(len(images), -1, -1)


def _check_enrolled(enrolled: Tensor) -> None:
    if enrolled.dim() != 2 or not len(enrolled):
        raise GanMaskError(f"enrolled: a row per person [P,D] expected, got {list(enrolled.shape)}")
    if not bool(((enrolled.float().norm(dim=1) - 1).abs() < UNIT).all()):  # nor NaN
        raise GanMaskError(
            "enrolled: embeddings of unit length expected, as an embedder gives them; "
            "a mean of several is to be normalised again (torch.nn.functional.normalize)"
        )


def _check_landmarks(landmarks: Tensor, count: int, what: str) -> None:
    if not isinstance(landmarks, Tensor):
        raise GanMaskError(f"{what}: a tensor expected, got {type(landmarks).__name__}; torch.from_numpy makes one")
    if landmarks.shape != (count, 68, 2) or not count:
        raise GanMaskError(f"{what}: [{count or 'B'},68,2] expected, got {list(landmarks.shape)}")
    if not bool(landmarks.isfinite().all()):
        raise GanMaskError(f"{what}: NaN or infinity among them; was a face not found?")
