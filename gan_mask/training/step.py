"""One training step, as the paper has it: masked faces, the discriminator's loss, the generator's, the optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gan_mask import augment, facespace, likeness, losses, masking
from gan_mask.attacks.surrogates import Surrogates, evasion_terms
from gan_mask.augment import Draws
from gan_mask.errors import GanMaskError
from gan_mask.networks import face_bounds
from gan_mask.templates import Bank
from gan_mask.training.health import Figures, clip, does_not_fit, name_the_culprit, not_finite, read, total, update
from gan_mask.training.options import GENERATOR_NOISE, TrainConfig
from gan_mask.training.schedule import Schedule

LOWER_FACE = 1.5  # enlargement at which the mask fills most of a crop
Terms = dict[str, Tensor]  # weighted losses, (B,) each


class Batch(NamedTuple):
    """One micro-batch, and the randomness of its rows."""

    faces: Tensor  # (B, 3, S, S) in [0, 1], unmasked
    landmarks: Tensor  # (B, 68, 2) px
    known: Tensor  # the same on the CPU, where what a GPU is given next can be told without waiting for it
    templates: Tensor  # (B, 3, h, w)
    references: Sequence[Tensor]  # per embedder (B, 2, D): the wearer's own and another clean photo's embeddings
    draws: Draws


class Masked(NamedTuple):
    """The faces of a micro-batch with masks on."""

    template: Tensor  # (B, 3, h, w), in the wearer's colours where placement is seamless
    texture: Tensor  # (B, 3, h, w), the generator's
    rough: Tensor  # (B,) how uneven its displacement and light are
    dm: Tensor  # (B, 3, S, S), the benign faced mask; the bare face where no loss looks at it
    faces: Tensor  # (B, 3, S, S), the generated one


@dataclass
class TrainStep:
    """One optimiser step: `accumulate` micro-batches, then both networks are updated."""

    c: TrainConfig
    accelerator: Accelerator
    net: nn.Module
    discriminator: nn.Module
    bare_discriminator: nn.Module  # the discriminator itself, without what accelerate wraps around it
    optimizers: Sequence[Any]  # of generator and discriminator
    surrogates: Surrogates
    references: Sequence[Tensor]  # per embedder, clean embeddings (N, D) of the train split
    bank: Bank
    schedule: Schedule

    def __call__(self, loaded: Iterator[dict[str, Tensor]], step: int) -> Figures:
        """The step's figures, read from the device at once. GanMaskError when they are no numbers."""
        networks, limits = (self.net, self.discriminator), (self.c.clip, 10 * self.c.clip)
        terms: list[Terms] = []
        for micro in range(self.c.accumulate):
            items = next(loaded)
            with self.accelerator.accumulate(*networks):
                masked, weighted = self.within_memory(items, step, micro)
                terms.append({name: term.detach().mean() for name, term in weighted.items()})
                if self.accelerator.sync_gradients:
                    norms = clip(self.accelerator, networks, self.optimizers, limits)
                    figures = read(terms, norms, masked.texture, masked.template)
                    if self.accelerator.scaler is None and not figures.finite_gradients:
                        raise self.culprit(items, step, micro)
                    update(self.accelerator, self.optimizers)
        return figures

    def gradients(self, batch: Batch, step: int, backward: Callable[[Terms], Any]) -> tuple[Masked, Terms]:
        """Of one micro-batch. `backward` gets the discriminator's terms, then the generator's."""
        with self.accelerator.autocast():
            masked = mask(batch, self.net, self.c)

        # The discriminator learns to tell real faces from masked ones
        d_terms = discriminator_terms(batch, masked, self.discriminator, self.c, r1=(step + 1) % self.c.r1_every == 0)
        backward(d_terms)

        # The generator learns to evade it and the surrogates; the discriminator stays as it is
        with frozen(self.bare_discriminator), self.accelerator.autocast():
            g_terms = generator_terms(batch, masked, self.bare_discriminator, self.surrogates, self.c)
        backward(g_terms)
        return masked, {**g_terms, **d_terms}

    def batch(self, items: dict[str, Tensor], step: int, micro: int, size: int | None = None) -> Batch:
        """What the loader gave, with templates and references. size: only the first faces."""
        c, device = self.c, self.accelerator.device
        first = self.schedule.row(micro)
        draws = Draws(c.seed, step, range(first, first + (size or c.batch_size)), self.schedule.total, device)
        index = items["index"].numpy()[:size]
        mates = self.schedule.mates(index, draws.on("cpu").integers(2**31 - 1).numpy())
        references = [torch.stack([r[index], r[mates]], 1).to(device, non_blocking=True) for r in self.references]
        faces = items["face"][:size].to(device, non_blocking=True)
        known = items["landmarks"][:size]
        landmarks = known.to(device, non_blocking=True)
        return Batch(faces, landmarks, known, self.bank.draw(faces, landmarks, draws), references, draws)

    def within_memory(self, items: dict[str, Tensor], step: int, micro: int) -> tuple[Masked, Terms]:
        """`gradients`; where the GPU's memory is too small, an error that says what would fit."""
        try:
            batch = self.batch(items, step, micro)
            return self.gradients(batch, step, lambda terms: self.accelerator.backward(total(terms)))
        except torch.cuda.OutOfMemoryError:
            pass  # the memory that its traceback holds is free from here on
        alone = self.alone()

        def attempt(size: int) -> None:
            alone.gradients(alone.batch(items, step, micro, size), step, lambda terms: total(terms).backward())

        raise does_not_fit(self.c, attempt)

    def culprit(self, items: dict[str, Tensor], step: int, micro: int) -> GanMaskError:
        """About a gradient that is not finite; raised here where a term is to blame."""
        alone = self.alone()
        parameters = [*alone.net.parameters(), *alone.bare_discriminator.parameters()]
        alone.gradients(alone.batch(items, step, micro), step, partial(name_the_culprit, parameters=parameters))
        return not_finite("a gradient")

    def alone(self) -> TrainStep:
        """The same without the other processes, to find out what went wrong on this one."""
        return replace(self, net=self.accelerator.unwrap_model(self.net), discriminator=self.bare_discriminator)


def mask(batch: Batch, net: nn.Module, c: TrainConfig) -> Masked:
    """Generate the textures and wear them, a little displaced (expectation over transformations, Athalye 2018)."""
    faces, landmarks, known, template, _, draws = batch
    own = masking.unwrap(faces, landmarks, (template.shape[2], template.shape[3]))
    if c.placement == "seamless":
        template = likeness.adapt(template, own)
    texture, raw = net(own, template, draws.normal(GENERATOR_NOISE))
    worn_at = augment.jitter_landmarks(known, draws.on("cpu"), c.eot)
    pixels = masking.place(worn_at, faces.shape[2], faces.shape[3], faces.device)
    worn_at = worn_at.to(faces.device, non_blocking=True)
    wear = partial(masking.put_on, faces, worn_at, placement=c.placement, softness=c.softness, pixels=pixels)
    dm = wear(texture=template) if c.placement == "paper" or c.perceptual else faces
    bounds = face_bounds(c)
    rough = texture.new_zeros(len(texture)) if raw is None else facespace.roughness(bounds.face(raw), bounds)
    return Masked(template, texture, rough, dm, augment.round_to_8_bit(wear(texture=texture)))


def discriminator_terms(batch: Batch, masked: Masked, discriminator: nn.Module, c: TrainConfig, r1: bool) -> Terms:
    """Real against generated. Real are unmasked faces.

    With the paper's placement half of them wear a benign DM mask: no training can remove its seam.
    """
    wears_dm = (batch.draws.uniform(1, 1, 1) < 0.5) & (c.placement == "paper")
    real = torch.where(wears_dm, masked.dm, batch.faces).detach().requires_grad_(r1)
    views = [shown(images, batch, c) for images in (real, masked.faces.detach())]
    real_logits, fake_logits = discriminator(torch.cat(views)).float().chunk(2)
    terms = {"d_logistic": losses.d_logistic(real_logits, fake_logits)}
    if r1:
        terms["d_r1"] = losses.r1_penalty(real_logits, real) * (c.r1 / 2 * c.r1_every)
    return terms


def generator_terms(batch: Batch, masked: Masked, discriminator: nn.Module, s: Surrogates, c: TrainConfig) -> Terms:
    """Realism, evasion of the surrogates, and nearness to the template, each (B,) and weighted."""
    _, landmarks, _, _, references, draws = batch
    terms = {"realism": c.realism * losses.g_nonsaturating(discriminator(shown(masked.faces, batch, c)).float())}
    evasion = evasion_terms(masked.faces, landmarks, references, s, draws, c.diversity, c.goal)
    terms |= {name: getattr(c, name) * term for name, term in evasion.items()}
    if s.perceptual is not None:
        terms["perceptual"] = c.perceptual * s.perceptual(masked.faces, masked.dm)
    if c.plausible:
        terms["plausible"] = c.plausible * facespace.implausible(masked.texture, facespace.basis_for(masked.texture))
    terms["rough"] = c.rough * masked.rough
    terms["fidelity"] = c.fidelity * losses.squared_distance(masked.texture, masked.template)
    terms["smooth"] = c.smooth * losses.total_variation(masked.texture - masked.template)
    return terms


def shown(images: Tensor, batch: Batch, c: TrainConfig) -> Tensor:
    """What the discriminator sees of pictures (B, 3, S, S), differentiably augmented (Zhao et al. 2020).

    Of seamless masks the mask and what is around its edge, enlarged: elsewhere real and generated are the same.
    """
    if c.placement == "seamless":
        points = masking.mask_points(batch.landmarks)
        images = augment.enlarge(images, (points.amin(1) + points.amax(1)) / 2, LOWER_FACE)
    return augment.shift_image(augment.relight(images, batch.draws, c.diversity), batch.draws, c.diversity)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
