"""Adversarial faces, optimised one by one; from a generator's output, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from gan_mask import facespace
from gan_mask.attacks.optimised import Optimised, adam
from gan_mask.attacks.options import Options
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator


class AdvFace(Optimised):
    """Another face in place of noise: appearance, shape and light are optimised (`facespace`), by Adam.

    Variables: the three, unbounded. start: a generator whose prediction is where they begin (`--refine`).
    """

    name = "advface"
    bounds = facespace.Bounds()

    def __init__(
        self,
        surrogates: Surrogates,
        options: Options = Options(),  # noqa: B008  (frozen)
        start: Generator | None = None,
    ) -> None:
        # Augmentations keep noise from leaning on single pixels; a smooth face has none, and they cost success.
        super().__init__(surrogates, replace(options, diversity=0.0))
        self.start = start
        if start is not None:
            self.bounds, self.texture_size = start.net.bounds.scaled(options.strength), start.texture_size
            if not any(start.net.bounds):
                raise GanMaskError(f"--refine: this generator predicts {', '.join(start.config.heads)}, no other face")

    def begin_at(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> list[Tensor]:
        if self.start is not None:
            return list(self.start.other_face(faces, landmarks, templates, self.options.seed))
        return [templates.new_zeros(len(templates), *shape) for shape in facespace.SHAPES]

    def paint(self, templates: Tensor, variables: Sequence[Tensor]) -> Tensor:
        return facespace.paint(templates, self.bounds.face(variables), facespace.basis_for(templates)).clamp(0, 1)

    def penalty(self, templates: Tensor, texture: Tensor, variables: Sequence[Tensor]) -> Tensor:
        unlikely = facespace.implausible(texture, facespace.basis_for(templates))
        rough = facespace.roughness(self.bounds.face(variables), self.bounds)
        return self.options.plausible * unlikely + 0.05 * rough

    def move(
        self, variables: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, Tensor], step: int
    ) -> list[Tensor]:
        return adam(variables, gradients, [self.options.face_rate] * 3, state, step)
