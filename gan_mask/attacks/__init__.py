"""The methods, with one signature, so that every command and every evaluation takes any of them.

A method maps wearers to mask textures in canonical space:
`method(faces [B,3,H,W] in [0,1], landmarks [B,68,2] px, templates [B,3,h,w]) -> textures [B,3,h,w]`,
and knows how they are worn: `method.wear` puts them on the crop, `photos.wear_on_photo` on a photo of any size.
None in place of textures means that no mask is worn.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gan_mask import augment, cli, facespace, likeness, losses, masking, values
from gan_mask import templates as shipped
from gan_mask.attacks.surrogates import Goal, Surrogates, evasion_terms
from gan_mask.augment import Draws
from gan_mask.errors import GanMaskError
from gan_mask.networks import KERNEL, Generator, filter_texture
from gan_mask.pretrained import contract
from gan_mask.values import FRACTION, WEIGHT, Range, option

Paint = Callable[[Tensor, Tensor, Tensor], Tensor | None]

PLAIN = "plain-blue"  # the surgical mask of the benign baseline


@dataclass(frozen=True)
class Method:
    """What makes a texture, and how it is worn."""

    paint: Paint
    placement: masking.PlacementName = "paper"
    softness: float = 0.03  # of placement "paper": at the mask's edge, fraction of the mask's width

    def __call__(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor | None:
        return self.paint(faces, landmarks, templates)

    def wear(self, faces: Tensor, landmarks: Tensor, textures: Tensor | None) -> Tensor:
        """Masked faces (B, 3, H, W) in [0, 1]."""
        if textures is None:
            return faces
        return masking.put_on(faces, landmarks, textures, self.placement, self.softness)

    def record(self) -> Record | None:
        """What the faces of the last call took, if each was optimised."""
        return self.paint.records.pop() if isinstance(self.paint, Optimised) else None


def none(faces: Tensor, landmarks: Tensor, templates: Tensor) -> None:
    """No mask: the clean probe."""


def plain(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """A plain light-blue mask, whatever the template: the benign baseline."""
    texture = shipped.load(PLAIN, (templates.shape[2], templates.shape[3])).to(faces)
    return texture.expand(len(faces), -1, -1, -1)


def dm(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """Delaunay-based masking: the template's lower face, worn as it is (arXiv 2201.06427)."""
    return templates.expand(len(faces), -1, -1, -1)


def dm_adapted(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """DM's template in the wearer's colours, contrast and sharpness, for seamless placement."""
    templates = dm(faces, landmarks, templates)
    return likeness.adapt(templates, masking.unwrap(faces, landmarks, (templates.shape[2], templates.shape[3])))


@dataclass(frozen=True)
class Options:
    """Of the optimised methods; colours are in [0, 1], so a step of 8-bit colour is 1/255 = 0.0039."""

    steps: int = option(100, "gradient steps at most", within=Range(0, 2**31 - 1))
    bound: float = option(12 / 255, "L-infinity bound of the noise, in [0, 1] of colour", within=FRACTION)
    step_size: float = option(1.5 / 255, "advnoise-dm: each sign step, in [0, 1] of colour", within=FRACTION)
    momentum: float = option(0.9, "advnoise-dm: decay of the gathered gradient, in [0, 1)", within=Range(0, below=1))
    kernel: int = option(5, "mf2m: side of the filter kernels, texels, odd", within=KERNEL)
    filter_rate: float = option(0.005, "mf2m: Adam's learning rate of the kernels", within=WEIGHT)
    noise_rate: float = option(1 / 255, "mf2m: Adam's learning rate of the noise, in [0, 1] of colour", within=WEIGHT)
    smooth: float = option(
        10.0, "mf2m: weight of the total variation of the kernels and of the texture's change", within=WEIGHT
    )
    face_rate: float = option(0.06, "advface: Adam's learning rate, in units of the bounds", within=WEIGHT)
    plausible: float = option(0.3, "advface: weight of how far the lower face is from those of people", within=WEIGHT)
    refine: int = option(
        0, "generator: so many of advface's steps from its output, until the goal is met", within=Range(0, 2**31 - 1)
    )
    diversity: float = option(
        0.5, "strength of the augmentations before the surrogates; 0: none, 1: as in training", within=Range(0, 10)
    )
    dodging_margin: float = option(
        0.25, "how far below the threshold to get, in units of 1 - threshold", within=Range(0, 2)
    )
    detection_margin: float = option(2.0, "how far beyond the detectors' decision to get, logits", within=Range(0, 100))
    patience: int = option(
        3, "steps in a row at which a face meets its goal before it is left alone; 0: never", within=Range(0, 2**31 - 1)
    )
    placement: masking.PlacementName = "paper"
    softness: float = 0.03  # at the mask's edge, fraction of the mask's width
    seed: int = 0

    def __post_init__(self) -> None:
        values.check(self, values.dashed)

    @property
    def goal(self) -> Goal:
        return Goal(self.dodging_margin, self.detection_margin)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `Options`, as a group of their own."""
    group = parser.add_argument_group("optimised methods (advnoise-dm, mf2m, advface, and generator with --refine)")
    cli.add_options(group, Options, separator="-")


def options_of(args: argparse.Namespace, softness: float) -> Options:
    """What the command line says, with its --seed and --placement. softness: of the masks' edges, of their width."""
    return values.from_values(Options, {**vars(args), "softness": softness}, values.dashed)


class Record(NamedTuple):
    """What the faces of one batch took."""

    iterations: Tensor  # (B,) gradient steps until each face met its goal
    seconds: Tensor  # (B,) each face's share of the steps that it was part of


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


class Optimised:
    """An attack that changes a worn texture step by step; each face for itself, whatever its batch."""

    name: str

    def __init__(self, surrogates: Surrogates, options: Options = Options()) -> None:  # noqa: B008  (frozen)
        if not surrogates.embedders and not surrogates.detectors:
            raise GanMaskError("an optimised method needs surrogates: name --embedders or --detectors")
        self.surrogates, self.options = surrogates, options
        self.records: list[Record] = []

    def __call__(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
        benign = dm_adapted if self.options.placement == "seamless" else dm
        work = self._begin(faces, landmarks, benign(faces, landmarks, templates))
        result = work.templates.clone()
        record = Record(torch.zeros(len(faces), dtype=torch.long), torch.zeros(len(faces)))
        for step in tqdm(range(self.options.steps), desc=self.name, unit="step", leave=False, disable=None):
            started = time.perf_counter()
            try:
                texture, met = self._step(work, step)
            except contract.NotFinite as error:  # its rows are those of the faces that are left
                raise contract.NotFinite(error.network, [int(work.rows[row]) for row in error.rows]) from None
            rows = work.rows.tolist()
            result[work.rows[met]] = texture[met]
            work = work.keep(~met)  # a face that met its goal keeps the texture that did it
            record.iterations[rows] += 1
            record.seconds[rows] += (time.perf_counter() - started) / len(rows)
            if not len(work.rows):
                break
        self.records.append(record)
        result[work.rows] = self.paint(work.templates, work.variables)
        return result

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
        """Look at the goal, then move the variables in place: textures (B, 3, h, w) looked at, met (B,) bool."""
        o = self.options
        draws = Draws(o.seed, step, [0] * len(w.rows), 1, w.faces.device)  # the same for every face of a batch
        with torch.enable_grad():
            variables = [variable.detach().requires_grad_() for variable in w.variables]
            texture = self.paint(w.templates, variables)
            worn = masking.put_on(w.faces, w.landmarks, texture, o.placement, o.softness, w.placement)
            masked = augment.round_to_8_bit(worn)
            terms = evasion_terms(masked, w.landmarks, w.references, self.surrogates, draws, o.diversity, o.goal)
            evasion = torch.stack(list(terms.values())).sum(0)
            loss = evasion + self.penalty(w.templates, texture, variables)
            gradients = torch.autograd.grad(loss.sum(), variables)
            if not evasion.isfinite().all():  # where contract.watch does not look
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
        super().__init__(surrogates, options)
        self.start = start
        if start is not None:
            self.bounds = start.net.bounds
            if not any(self.bounds):
                raise GanMaskError(f"--refine: this generator predicts {', '.join(start.config.heads)}, no other face")

    def begin_at(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> list[Tensor]:
        if self.start is not None:
            return self.bounds.raw(self.start.other_face(faces, landmarks, templates, self.options.seed))
        count, (rows, columns) = len(templates), facespace.SHAPE
        zeros = templates.new_zeros
        return [
            zeros(count, facespace.COMPONENTS),
            zeros(count, 2, rows, columns),
            zeros(count, 1, 2 * rows, 2 * columns),
        ]

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


def method(
    name: str,
    generator: Generator | None = None,
    surrogates: Surrogates | None = None,
    options: Options = Options(),  # noqa: B008  (frozen)
) -> Method:
    """The method called `name`; 'generator' needs `generator`, the optimised ones `surrogates` and take `options`.

    options.placement is that of 'dm' and of the optimised ones; a generator has its own, and a plain mask is no face.
    """
    if name == "generator":
        if generator is None:
            raise GanMaskError("method 'generator' needs a checkpoint (--checkpoint)")
        if options.refine:
            return refined(generator, surrogates, options)
        return Method(partial(generator.texture, seed=options.seed), generator.config.placement, options.softness)
    if name in OPTIMISED:
        if surrogates is None:
            raise GanMaskError(f"method '{name}' needs surrogates (--embedders, --detectors)")
        return Method(OPTIMISED[name](surrogates, options), options.placement, options.softness)
    seamless = name == "dm-seamless" or (name == "dm" and options.placement == "seamless")
    if seamless:
        return Method(dm_adapted, "seamless")
    known: dict[str, Paint] = {"none": none, "plain": plain, "dm": dm}
    if name not in known:
        raise GanMaskError(f"unknown method '{name}'; known: {', '.join(METHODS)}")
    return Method(known[name], "paper", options.softness)


def refined(generator: Generator, surrogates: Surrogates | None, options: Options) -> Method:
    """A few steps of AdvFace that begin at the generator's output, for the faces that still need them."""
    if surrogates is None:
        raise GanMaskError("--refine needs surrogates (--embedders, --detectors)")
    placement = generator.config.placement
    steps = replace(options, steps=options.refine, placement=placement)
    return Method(AdvFace(surrogates, steps, generator), placement, options.softness)


OPTIMISED: dict[str, type[Optimised]] = {kind.name: kind for kind in (AdvNoiseDM, MF2M, AdvFace)}
METHODS = ("none", "plain", "dm", "dm-seamless", *OPTIMISED, "generator")
