"""MF²M: filters and noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_mask import losses
from gan_mask.attacks.optimised import Optimised, adam
from gan_mask.networks import filter_texture


class MF2M(Optimised):
    """Adversarial filtering, then noise, optimised jointly (arXiv 2201.06427).

    Variables: deviations of the per-texel kernels from the identity (B, K*K, h, w), zero-mean so that every
    kernel sums to 1, and the noise (B, 3, h, w). Adam, with the noise projected into its bound.
    """

    name = "mf2m"

    def variables(self, templates: Tensor) -> list[Tensor]:
        batch, _, height, width = templates.shape
        return [templates.new_zeros(batch, self.options.kernel**2, height, width), torch.zeros_like(templates)]

    def paint(self, templates: Tensor, variables: Sequence[Tensor]) -> Tensor:
        kernels = variables[0] - variables[0].mean(1, keepdim=True)
        return (templates + filter_texture(templates, kernels) + variables[1]).clamp(0, 1)

    def penalty(self, templates: Tensor, texture: Tensor, variables: Sequence[Tensor]) -> Tensor:
        return self.options.smooth * (
            losses.total_variation(variables[0]) + losses.total_variation(texture - templates)
        )

    def move(
        self, variables: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, Tensor], step: int
    ) -> list[Tensor]:
        o = self.options
        moved = adam(variables, gradients, (o.filter_rate, o.noise_rate), state, step)
        moved[1] = moved[1].clamp(-o.bound, o.bound)
        return moved
