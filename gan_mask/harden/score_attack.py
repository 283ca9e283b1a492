"""An attacker who may ask the detector, but does not know its weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gan_mask import augment, facespace, masking
from gan_mask.attacks.base import Method, Result
from gan_mask.attacks.benign import dm_adapted
from gan_mask.augment import Draws
from gan_mask.cli import Progress
from gan_mask.generator import Generator

CHANGED = 0.1  # share of the numbers of a face that a trial changes
LARGEST, SMALLEST = 1.0, 0.05  # how much, before `facespace.Bounds`
MARGIN = 2.0  # logits below the detector's decision at which a face is done, as in attacks.Options


class ScoreAttack(Method):
    """Random search from a generator's faces by a detector's scores, as SimBA's (Guo et al. 2019) but among faces.

    detector: faces (B, 3, S, S) -> (mask logit (B,), face logit (B,)), asked at most `queries` times per face.
    """

    placement: masking.PlacementName = "seamless"
    optimises = True

    def __init__(
        self, generator: Generator, detector: Callable[[Tensor], tuple[Tensor, Tensor]], queries: int, seed: int = 0
    ) -> None:
        self.generator, self.detector, self.queries, self.seed = generator, detector, queries, seed
        self.texture_size = generator.texture_size

    @torch.no_grad()
    def apply(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Result:
        templates = dm_adapted(faces, landmarks, templates)
        best = torch.cat(
            [raw.flatten(1) for raw in self.generator.other_face(faces, landmarks, templates, self.seed)], 1
        )
        score = torch.full((len(faces),), torch.inf)
        asked = torch.zeros(len(faces), dtype=torch.long)
        for query in Progress(range(self.queries), desc="queries", mininterval=5):
            left = (score > -MARGIN).nonzero().flatten()
            if not len(left):
                break
            trial = best[left] + (self._step(query, best.shape[1]) if query else 0)
            worn = masking.put_on(faces[left], landmarks[left], self._paint(templates[left], trial), self.placement)
            answer, _ = self.detector(augment.round_to_8_bit(worn))
            better = answer < score[left]
            best[left[better]], score[left[better]] = trial[better], answer[better]
            asked[left] += 1
        return Result(self._paint(templates, best), asked)

    def _step(self, query: int, length: int) -> Tensor:
        """(1, length), the same for every face."""
        draws = Draws(self.seed, query, [0], 1, torch.device("cpu"))
        size = LARGEST * (SMALLEST / LARGEST) ** draws.uniform(1)
        return size * draws.normal(length) * (draws.uniform(length) < CHANGED)

    def _paint(self, templates: Tensor, numbers: Tensor) -> Tensor:
        parts = numbers.split([math.prod(shape) for shape in facespace.SHAPES], 1)
        raw = [part.unflatten(1, shape) for part, shape in zip(parts, facespace.SHAPES, strict=True)]
        bounds = self.generator.net.bounds
        return facespace.paint(templates, bounds.face(raw), facespace.basis_for(templates)).clamp(0, 1)
