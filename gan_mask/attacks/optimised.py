"""What the optimised methods share: the loop over steps, the goal, the optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from gan_mask import augment, masking
from gan_mask.attacks.base import Method, Result
from gan_mask.attacks.benign import dm, dm_adapted
from gan_mask.attacks.options import Options
from gan_mask.attacks.surrogates import Surrogates, evasion_terms
from gan_mask.augment import Draws
from gan_mask.errors import GanMaskError
from gan_mask.pretrained import contract


@dataclass
class Work:
    """The faces that are still short of their goal; the first dimension of every tensor."""

    rows: Tensor  # positions in the batch
    landmarks: Tensor
    placement: masking.Placement
    faces: Tensor
    templates: Tensor
    references: list[Tensor]  # per embedder (B, 1, D): the clean embeddings
    variables: list[Tensor]
    state: dict[str, Tensor]  # the optimiser's
    calm: Tensor  # steps in a row at which the goal was met

    def keep(self, kept: Tensor) -> Work:
        placement = self.placement._replace(grid=self.placement.grid[kept])
        return Work(
            self.rows[kept], self.landmarks[kept], placement, self.faces[kept],
            self.templates[kept], [r[kept] for r in self.references], [v[kept] for v in self.variables],
            {name: value[kept] for name, value in self.state.items()}, self.calm[kept],
        )  # fmt: skip


class Optimised(Method):
    """An attack that changes a worn texture step by step. Each face is optimised independently of its batch."""

    name: str
    optimises = True

    def __init__(self, surrogates: Surrogates, options: Options = Options()) -> None:  # noqa: B008  (frozen)
        if not surrogates.embedders and not surrogates.detectors:
            raise GanMaskError("an optimised method needs surrogates: name --embedders or --detectors")
        self.surrogates, self.options = surrogates, options
        self.placement, self.softness = options.placement, options.softness

    def apply(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Result:
        benign = dm_adapted if self.placement == "seamless" else dm
        work = self._begin(faces, landmarks, benign(faces, landmarks, templates))
        textures = work.templates.clone()
        iterations, seconds = torch.zeros(len(faces), dtype=torch.long), torch.zeros(len(faces))
        for step in tqdm(range(self.options.steps), desc=self.name, unit="step", leave=False, disable=None):
            started = time.perf_counter()
            try:
                texture, met = self._step(work, step)
            except contract.NotFinite as error:  # its rows are those of the faces that are left
                raise contract.NotFinite(error.network, [int(work.rows[row]) for row in error.rows]) from None
            rows = work.rows.tolist()
            textures[work.rows[met]] = texture[met]
            work = work.keep(~met)  # a face that met its goal keeps the texture that did it
            iterations[rows] += 1
            seconds[rows] += (time.perf_counter() - started) / len(rows)
            if not len(work.rows):
                break
        textures[work.rows] = self.paint(work.templates, work.variables)
        return Result(textures, iterations, seconds)

    def _begin(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Work:
        with torch.no_grad():
            references = [embedder(faces, landmarks)[:, None] for embedder in self.surrogates.embedders]
            placement = masking.place(landmarks, faces.shape[2], faces.shape[3])
            variables = self.begin_at(faces, landmarks, templates)
        rows = torch.arange(len(faces), device=faces.device)
        return Work(
            rows, landmarks, placement, faces, templates, references, variables, {}, torch.zeros_like(rows)
        )  # fmt: skip

    def _step(self, w: Work, step: int) -> tuple[Tensor, Tensor]:
        """Check the goal, then update the variables in place: the textures (B, 3, h, w) checked, met (B,) bool."""
        o = self.options
        draws = Draws(o.seed, step, [0] * len(w.rows), 1, w.faces.device)  # the same for every face of a batch
        with torch.enable_grad():
            variables = [variable.detach().requires_grad_() for variable in w.variables]
            texture = self.paint(w.templates, variables)
            worn = masking.put_on(w.faces, w.landmarks, texture, self.placement, self.softness, w.placement)
            masked = augment.round_to_8_bit(worn)
            terms = evasion_terms(masked, w.landmarks, w.references, self.surrogates, draws, o.diversity, o.goal)
            evasion = torch.stack(list(terms.values())).sum(0)
            loss = evasion + self.penalty(w.templates, texture, variables)
            gradients = torch.autograd.grad(loss.sum(), variables)
            if not evasion.isfinite().all():  # where contract.watch does not check
                raise GanMaskError(f"{self.name}: a surrogate answers NaN or infinity; leave out one after the other")
        with torch.no_grad():
            w.variables = self.move(variables, gradients, w.state, step)
        w.calm = torch.where(evasion == 0, w.calm + 1, 0)
        return texture.detach(), w.calm >= (o.patience or math.inf)

    def begin_at(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> list[Tensor]:
        """The variables before the first step; the first dimension is that of the faces."""
        return self.variables(templates)

    def variables(self, templates: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def paint(self, templates: Tensor, variables: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def penalty(self, templates: Tensor, texture: Tensor, variables: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def move(
        self, variables: Sequence[Tensor], gradients: Sequence[Tensor], state: dict[str, Tensor], step: int
    ) -> list[Tensor]:
        raise NotImplementedError


def adam(
    variables: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rates: Sequence[float],
    state: dict[str, Tensor],
    step: int,
) -> list[Tensor]:
    """One step (Kingma & Ba 2015), by hand: torch's cannot let go of the faces that met their goal."""
    moved = []
    for i, (variable, gradient, rate) in enumerate(zip(variables, gradients, rates, strict=True)):
        zero = torch.zeros_like(gradient)
        mean = state.get(f"mean{i}", zero) * 0.9 + 0.1 * gradient
        square = state.get(f"square{i}", zero) * 0.99 + 0.01 * gradient.square()
        state[f"mean{i}"], state[f"square{i}"] = mean, square
        step_ = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-10)
        moved.append(variable - rate * step_)
    return moved
