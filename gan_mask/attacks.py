"""The methods, with one signature, so that every command and every evaluation takes any of them.

A method maps wearers to mask textures in canonical space:
`method(faces [B,3,H,W] in [0,1], landmarks [B,68,2] px, templates [B,3,h,w]) -> textures [B,3,h,w]`,
which `masking.wear` puts on the crop or on the full photo; None means that no mask is worn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_mask import augment, losses, masking
from gan_mask import templates as shipped
from gan_mask.augment import Draws
from gan_mask.errors import GanMaskError
from gan_mask.networks import Generator, filter_texture
from gan_mask.surrogates import Goal, Surrogates, evasion_terms

Method = Callable[[Tensor, Tensor, Tensor], Tensor | None]

PLAIN = "plain-blue"  # the surgical mask of the benign baseline


def none(faces: Tensor, landmarks: Tensor, templates: Tensor) -> None:
    """No mask: the clean probe."""


def plain(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """A plain light-blue mask, whatever the template: the benign baseline."""
    texture = shipped.load(PLAIN, (templates.shape[2], templates.shape[3])).to(faces)
    return texture.expand(len(faces), -1, -1, -1)


def dm(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """Delaunay-based masking: the template's lower face, worn as it is (arXiv 2201.06427)."""
    return templates.expand(len(faces), -1, -1, -1)


@dataclass(frozen=True)
class Options:
    """Of the two optimised methods; lengths in [0, 1] units of colour."""

    steps: int = 100  # at most
    bound: float = 12 / 255  # L-infinity bound of the noise
    step_size: float = 1.5 / 255  # AdvNoise-DM: of each sign step
    momentum: float = 0.9  # AdvNoise-DM
    kernel: int = 5  # MF2M: side of the filter kernels, texels, odd
    filter_rate: float = 0.005  # MF2M: Adam's learning rate of the kernels
    noise_rate: float = 1 / 255  # MF2M: Adam's learning rate of the noise
    smooth: float = 10.0  # MF2M: weight of the total variation of kernels and of the texture's change
    diversity: float = 0.5  # strength of the augmentations before the surrogates
    goal: Goal = Goal()
    patience: int = 3  # steps in a row at which a face meets its goal before it is left alone; 0: never
    softness: float = 0.03  # at the mask's edge, fraction of the mask's width
    seed: int = 0


class Record(NamedTuple):
    """What one batch took."""

    iterations: Tensor  # (B,) until each face met its goal
    seconds: float  # per face


class Optimised:
    """An attack that changes a worn texture step by step; each face for itself, whatever its batch."""

    def __init__(self, surrogates: Surrogates, options: Options = Options()) -> None:  # noqa: B008  (frozen)
        if not surrogates.embedders and not surrogates.detectors:
            raise GanMaskError("an optimised method needs surrogates: name --embedders or --detectors")
        self.surrogates, self.options = surrogates, options
        self.records: list[Record] = []

    def __call__(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
        with torch.enable_grad():
            return self._optimise(faces, landmarks, templates.expand(len(faces), -1, -1, -1))

    def _optimise(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
        o, started = self.options, time.perf_counter()
        with torch.no_grad():
            references = [embedder(faces, landmarks)[:, None] for embedder in self.surrogates.embedders]
            placement = masking.place(landmarks, faces.shape[2], faces.shape[3])
        variables = self.variables(templates)
        state: dict[str, Any] = {}
        calm = torch.zeros(len(faces), dtype=torch.long, device=faces.device)
        iterations = torch.zeros_like(calm)
        active = torch.ones_like(calm, dtype=torch.bool)
        for step in range(o.steps):
            texture = self.paint(templates, variables)
            masked = augment.round_to_8_bit(masking.wear(faces, placement, texture, o.softness))
            draws = Draws(o.seed, step, [0] * len(faces), 1, faces.device)  # the same for every face of a batch
            terms = evasion_terms(masked, landmarks, references, self.surrogates, draws, o.diversity, o.goal)
            evasion = torch.stack(list(terms.values())).sum(0)
            iterations += active
            calm = torch.where(evasion == 0, calm + 1, 0)
            active &= calm < (o.patience or o.steps + 1)  # from here on a face keeps the texture that met its goal
            if not active.any():
                break
            loss = evasion + self.penalty(templates, texture, variables)
            gradients = torch.autograd.grad(loss.sum(), variables)
            with torch.no_grad():
                moved = self.move(variables, gradients, state, step)
                for variable, new in zip(variables, moved, strict=True):
                    variable.copy_(torch.where(active[:, None, None, None], new, variable))
        self.records.append(Record(iterations.cpu(), (time.perf_counter() - started) / len(faces)))
        with torch.no_grad():
            return self.paint(templates, variables)

    def variables(self, templates: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def paint(self, templates: Tensor, variables: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def penalty(self, templates: Tensor, texture: Tensor, variables: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def move(
        self, variables: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, Any], step: int
    ) -> list[Tensor]:
        raise NotImplementedError


class AdvNoiseDM(Optimised):
    """DM plus L-infinity-bounded noise: iterated sign gradient with momentum (MI-FGSM, Dong et al. 2018).

    arXiv 2201.06427. One variable: the noise (B, 3, h, w) in canonical space.
    """

    def variables(self, templates: Tensor) -> list[Tensor]:
        return [torch.zeros_like(templates, requires_grad=True)]

    def paint(self, templates: Tensor, variables: Sequence[Tensor]) -> Tensor:
        return (templates + variables[0]).clamp(0, 1)

    def penalty(self, templates: Tensor, texture: Tensor, variables: Sequence[Tensor]) -> Tensor:
        return texture.new_zeros(len(texture))

    def move(
        self, variables: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, Any], step: int
    ) -> list[Tensor]:
        o, (gradient,) = self.options, gradients
        size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
        state["momentum"] = o.momentum * state.get("momentum", 0.0) + gradient / size
        return [(variables[0] - o.step_size * state["momentum"].sign()).clamp(-o.bound, o.bound)]


class MF2M(Optimised):
    """Adversarial filtering, then noise, optimised jointly (arXiv 2201.06427).

    Variables: deviations of the per-texel kernels from the identity (B, K*K, h, w), zero-mean so that every
    kernel sums to 1, and the noise (B, 3, h, w). Adam, with the noise projected into its bound.
    """

    def variables(self, templates: Tensor) -> list[Tensor]:
        batch, _, height, width = templates.shape
        kernels = templates.new_zeros(batch, self.options.kernel**2, height, width)
        return [kernels.requires_grad_(), torch.zeros_like(templates, requires_grad=True)]

    def paint(self, templates: Tensor, variables: Sequence[Tensor]) -> Tensor:
        kernels = variables[0] - variables[0].mean(1, keepdim=True)
        return (templates + filter_texture(templates, kernels) + variables[1]).clamp(0, 1)

    def penalty(self, templates: Tensor, texture: Tensor, variables: Sequence[Tensor]) -> Tensor:
        return self.options.smooth * (
            losses.total_variation(variables[0]) + losses.total_variation(texture - templates)
        )

    def move(
        self, variables: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, Any], step: int
    ) -> list[Tensor]:
        o = self.options
        moved = []
        for i, (variable, gradient, rate) in enumerate(
            zip(variables, gradients, (o.filter_rate, o.noise_rate), strict=True)
        ):
            # Adam (Kingma & Ba 2015) by hand: torch's moves the faces that are left alone, too.
            mean = state.get(f"mean{i}", 0.0) * 0.9 + 0.1 * gradient
            square = state.get(f"square{i}", 0.0) * 0.99 + 0.01 * gradient.square()
            state[f"mean{i}"], state[f"square{i}"] = mean, square
            step_ = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-10)
            moved.append(variable - rate * step_)
        moved[1] = moved[1].clamp(-o.bound, o.bound)
        return moved


def method(name: str, generator: Generator | None = None, surrogates: Surrogates | None = None) -> Method:
    """The method called `name`; 'generator' needs `generator`, the optimised ones `surrogates`."""
    if name == "generator":
        if generator is None:
            raise GanMaskError("method 'generator' needs a checkpoint (--checkpoint)")
        return generator.texture
    if name in OPTIMISED:
        if surrogates is None:
            raise GanMaskError(f"method '{name}' needs surrogates (--embedders, --detectors)")
        return OPTIMISED[name](surrogates)
    known: dict[str, Method] = {"none": none, "plain": plain, "dm": dm}
    if name not in known:
        raise GanMaskError(f"unknown method '{name}'; known: {', '.join(METHODS)}")
    return known[name]


OPTIMISED: dict[str, type[Optimised]] = {"advnoise-dm": AdvNoiseDM, "mf2m": MF2M}
METHODS = ("none", "plain", "dm", *OPTIMISED, "generator")
