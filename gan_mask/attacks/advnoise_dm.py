"""DM with bounded noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_mask.attacks.optimised import Optimised


class AdvNoiseDM(Optimised):
    """DM plus L-infinity-bounded noise: iterated sign gradient with momentum (MI-FGSM, Dong et al. 2018).

    arXiv 2201.06427. One variable: the noise (B, 3, h, w) in canonical space.
    """

    name = "advnoise-dm"

    def variables(self, templates: Tensor) -> list[Tensor]:
        return [torch.zeros_like(templates)]

    def paint(self, templates: Tensor, variables: Sequence[Tensor]) -> Tensor:
        return (templates + variables[0]).clamp(0, 1)

    def penalty(self, templates: Tensor, texture: Tensor, variables: Sequence[Tensor]) -> Tensor:
        return texture.new_zeros(len(texture))

    def move(
        self, variables: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, Tensor], step: int
    ) -> list[Tensor]:
        o, (gradient,) = self.options, gradients
        size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
        state["momentum"] = o.momentum * state.get("momentum", torch.zeros_like(gradient)) + gradient / size
        return [(variables[0] - o.step_size * state["momentum"].sign()).clamp(-o.bound, o.bound)]
