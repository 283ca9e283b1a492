"""One training step: dress the faces, the discriminator's turn, the generator's turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gan_mask import augment, facespace, likeness, losses, masking
from gan_mask.attacks.surrogates import Surrogates, evasion_terms
from gan_mask.augment import Draws
from gan_mask.networks import face_bounds
from gan_mask.templates import Bank
from gan_mask.training.options import GENERATOR_NOISE, TrainConfig
from gan_mask.training.schedule import Schedule

LOWER_FACE = 1.5  # enlargement at which the mask fills most of a crop


class Scene(NamedTuple):
    """What one micro-batch looks like."""

    face: Tensor  # (B, 3, S, S) in [0, 1], unmasked
    landmarks: Tensor  # (B, 68, 2) px
    template: Tensor  # (B, 3, h, w)
    texture: Tensor  # (B, 3, h, w), the generator's
    rough: Tensor  # (B,) how uneven its displacement and light are
    dm: Tensor  # (B, 3, S, S), the benign faced mask
    masked: Tensor  # (B, 3, S, S), the generated one


def dress(face: Tensor, landmarks: Tensor, template: Tensor, net: nn.Module, draws: Draws, c: TrainConfig) -> Scene:
    """Generate the textures and wear them, a little displaced (expectation over transformations, Athalye 2018)."""
    own = masking.unwrap(face, landmarks, (template.shape[2], template.shape[3]))
    if c.placement == "seamless":
        template = likeness.adapt(template, own)
    texture, raw = net(own, template, draws.normal(GENERATOR_NOISE))
    worn_at = augment.jitter_landmarks(landmarks, draws, c.eot)
    pixels = masking.place(worn_at, *face.shape[2:])
    dm, masked = (
        masking.put_on(face, worn_at, paint, c.placement, c.softness, pixels) for paint in (template, texture)
    )
    bounds = face_bounds(c)
    rough = texture.new_zeros(len(texture)) if raw is None else facespace.roughness(bounds.face(raw), bounds)
    return Scene(face, landmarks, template, texture, rough, dm, augment.round_to_8_bit(masked))


def discriminator_terms(
    scene: Scene, discriminator: nn.Module, draws: Draws, c: TrainConfig, r1: bool
) -> dict[str, Tensor]:
    """Real against generated. Real are unmasked faces.

    With the paper's placement half of them wear a benign DM mask: its seam cannot be learned away.
    """
    wears_dm = (draws.uniform(1, 1, 1) < 0.5) & (c.placement == "paper")
    real = torch.where(wears_dm, scene.dm, scene.face).detach().requires_grad_(r1)
    views = [shown(images, scene.landmarks, draws, c) for images in (real, scene.masked.detach())]
    real_logits, fake_logits = discriminator(torch.cat(views)).float().chunk(2)
    terms = {"d_logistic": losses.d_logistic(real_logits, fake_logits)}
    if r1:
        terms["d_r1"] = losses.r1_penalty(real_logits, real) * (c.r1 / 2 * c.r1_every)
    return terms


def generator_terms(
    scene: Scene, references: Sequence[Tensor], discriminator: nn.Module, s: Surrogates, draws: Draws, c: TrainConfig
) -> dict[str, Tensor]:
    """The weighted losses, each (B,). references: per embedder (B, 2, D), the wearer's own and another clean photo."""
    logits = discriminator(shown(scene.masked, scene.landmarks, draws, c)).float()
    terms = {"realism": c.realism * losses.g_nonsaturating(logits)}
    evasion = evasion_terms(scene.masked, scene.landmarks, references, s, draws, c.diversity, c.goal)
    terms |= {name: getattr(c, name) * term for name, term in evasion.items()}
    if s.perceptual is not None:
        terms["perceptual"] = c.perceptual * s.perceptual(scene.masked, scene.dm)
    if c.plausible:
        terms["plausible"] = c.plausible * facespace.implausible(scene.texture, facespace.basis_for(scene.texture))
    terms["rough"] = c.rough * scene.rough
    terms["fidelity"] = c.fidelity * losses.squared_distance(scene.texture, scene.template)
    terms["smooth"] = c.smooth * losses.total_variation(scene.texture - scene.template)
    return terms


def shown(images: Tensor, landmarks: Tensor, draws: Draws, c: TrainConfig) -> Tensor:
    """What the discriminator sees of pictures (B, 3, S, S), differentiably augmented (Zhao et al. 2020).

    Of seamless masks the mask and what is around its edge, enlarged: elsewhere real and generated are the same.
    """
    if c.placement == "seamless":
        points = landmarks[:, list(masking.MASK_LANDMARKS)]
        images = augment.enlarge(images, (points.amin(1) + points.amax(1)) / 2, LOWER_FACE)
    return augment.shift_image(augment.relight(images, draws, c.diversity), draws, c.diversity)


@dataclass
class Game:
    """One micro-batch: dress, the discriminator's turn, the generator's turn."""

    c: TrainConfig
    net: nn.Module
    discriminator: nn.Module
    judge: nn.Module  # the discriminator itself, without what accelerate wraps around it
    surrogates: Surrogates
    references: Sequence[Tensor]  # per embedder, clean embeddings (N, D) of the train split
    bank: Bank
    schedule: Schedule
    autocast: Callable[[], Any]
    device: torch.device

    def play(
        self,
        batch: dict[str, Tensor],
        step: int,
        micro: int,
        backward: Callable[[dict[str, Tensor]], Any],
        size: int | None = None,
    ) -> tuple[Scene, dict[str, Tensor]]:
        """The scene and all loss terms, after `backward` had each side's. size: only the first faces of the batch."""
        c = self.c
        first = self.schedule.row(micro)
        draws = Draws(c.seed, step, range(first, first + (size or c.batch_size)), self.schedule.total, self.device)
        index = batch["index"].numpy()[:size]
        mates = self.schedule.mates(index, draws.integers(2**31 - 1).cpu().numpy())
        near = [torch.stack([r[index], r[mates]], 1).to(self.device) for r in self.references]
        face = batch["face"][:size].to(self.device, non_blocking=True)
        landmarks = batch["landmarks"][:size].to(self.device, non_blocking=True)
        template = self.bank.draw(face, landmarks, draws)
        with self.autocast():
            scene = dress(face, landmarks, template, self.net, draws, c)

        # Discriminator's turn
        d_terms = discriminator_terms(scene, self.discriminator, draws, c, r1=(step + 1) % c.r1_every == 0)
        backward(d_terms)

        # Generator's turn, against the frozen discriminator
        self.judge.requires_grad_(False)
        try:
            with self.autocast():
                g_terms = generator_terms(scene, near, self.judge, self.surrogates, draws, c)
        finally:
            self.judge.requires_grad_(True)
        backward(g_terms)
        return scene, {**g_terms, **d_terms}

    def alone(self, accelerator: Accelerator) -> Game:
        """The same without the other processes, to find out what went wrong on this one."""
        return replace(self, net=accelerator.unwrap_model(self.net), discriminator=self.judge)
