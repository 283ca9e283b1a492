"""Signs that a training has gone wrong and will not recover: they end it, with the last good checkpoint in place."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gan_mask.errors import GanMaskError
from gan_mask.training.options import TrainConfig

WARN, STOP = 10, 50  # steps in a row with the same sign
SATURATED = 0.02  # discriminator's loss below which the generator hears nothing from it
VANISHED = 1e-6  # norm of the discriminator's gradient
FLAT = 0.1  # a texture's standard deviation, of its template's
SMALLEST_SCALE = 2.0**-10  # fp16 loss scale: 26 halvings from where it starts


class Figures(NamedTuple):
    """What shows whether a step is sound."""

    terms: dict[str, float]  # means of the weighted losses
    g_norm: float  # of the generator's gradient, and of the discriminator's
    d_norm: float
    texture_std: float
    change: float  # mean absolute difference of textures and templates
    flat: float  # share of the textures with a patterned template that are flat; NaN without one

    @property
    def finite_gradients(self) -> bool:
        return math.isfinite(self.g_norm) and math.isfinite(self.d_norm)


def read(terms: Sequence[dict[str, Tensor]], norms: Sequence[Tensor], texture: Tensor, template: Tensor) -> Figures:
    """All figures of a step, read from the device as one tensor.

    terms: mean losses of each micro-batch, the last of which are shown; textures and templates (B, 3, h, w). Raises
    GanMaskError that names a term which is not finite.
    """
    texture, template = texture.detach().float(), template.detach().float()
    spread, due = (x.std((2, 3)).mean(1) for x in (texture, template))
    patterned = due > 0.02  # a plain template is flat by itself
    flat = (patterned & (spread < FLAT * due)).sum() / patterned.sum()
    names = [name for part in terms for name in part]
    measured = [*(mean for part in terms for mean in part.values()), *norms]
    measured += [spread.mean(), (texture - template).abs().mean(), flat]
    values = torch.stack([value.float().to(texture.device) for value in measured]).tolist()
    for name, value in zip(names, values, strict=False):
        if not math.isfinite(value):
            raise not_finite(f"the loss term '{name}'")
    shown = dict(zip(terms[-1], values[len(names) - len(terms[-1]) :], strict=False))
    return Figures(shown, *values[len(names) :])


class Health:
    """Checks every step; raises GanMaskError when a sign has stayed for STOP steps."""

    def __init__(self, adversarial: bool) -> None:
        self.adversarial = adversarial  # whether the discriminator's logits count in the generator's loss
        self.streaks = {"generator": 0, "discriminator": 0, "texture": 0}

    @property
    def good(self) -> bool:
        return not any(self.streaks.values())

    def check(self, figures: Figures) -> None:
        self._count(
            "generator", figures.g_norm == 0,
            "no gradient reaches the generator ('g_norm' is 0), so that it learns nothing. "
            "Give a loss that has something to teach a weight above 0, such as --fidelity or --dodging",
        )  # fmt: skip
        loss = figures.terms["d_logistic"]
        if self.adversarial:
            self._count(
                "discriminator", loss < SATURATED or figures.d_norm < VANISHED,
                f"the discriminator is dead: 'd_logistic' is {loss:.2g}, its gradient's norm {figures.d_norm:.2g}, so "
                "that 'realism' teaches nothing. Raise --r1 or lower --discriminator_learning_rate",
            )  # fmt: skip
        if not math.isnan(figures.flat):
            weighted = {name: value for name, value in figures.terms.items() if not name.startswith("d_")}
            largest = max(weighted, key=lambda name: weighted[name])
            self._count(
                "texture", figures.flat > 0.5,
                f"the generated textures have collapsed (they are flat); the largest loss term is '{largest}' "
                f"({weighted[largest]:.2g}). Lower its weight, --smooth or --undetected",
            )  # fmt: skip

    def _count(self, sign: str, seen: bool, message: str) -> None:
        self.streaks[sign] = self.streaks[sign] + 1 if seen else 0
        if self.streaks[sign] == WARN:
            print(f"warning: {message}", file=sys.stderr)
        if self.streaks[sign] >= STOP:
            raise GanMaskError(
                f"{message}, and start again with another --out. This has lasted {STOP} steps; "
                "the last checkpoint is from before"
            )


def clip(
    accelerator: Any, networks: Iterable[nn.Module], optimizers: Iterable[Any], limits: Iterable[float]
) -> list[Tensor]:
    """Clip the networks' gradients to `limits`; returns their norms before clipping.

    Under fp16 the optimisers step at once, one after the other: accelerate's scaler forgets both after either's step.
    It leaves out a step on a gradient that is not finite, and halves its scale.
    """
    norms = []
    for network, optimizer, limit in zip(networks, optimizers, limits, strict=True):
        accelerator.unscale_gradients(optimizer)
        norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), limit))
        if accelerator.scaler is not None:
            optimizer.step()
    return norms


def update(accelerator: Any, optimizers: Iterable[Any]) -> None:
    """Step on clipped gradients that are finite, and forget them."""
    for optimizer in optimizers:
        if accelerator.scaler is None:
            optimizer.step()
        optimizer.zero_grad()
    if accelerator.scaler is not None and accelerator.scaler.get_scale() < SMALLEST_SCALE:
        raise GanMaskError(
            "fp16: every gradient overflows, however small the loss scale; the last checkpoint is untouched. "
            "Use --mixed_precision bf16 or no"
        )


def total(terms: dict[str, Tensor]) -> Tensor:
    """Mean over the batch of the sum of all terms."""
    return torch.stack(list(terms.values())).sum(0).mean()


def name_the_culprit(terms: dict[str, Tensor], parameters: list[nn.Parameter]) -> None:
    """Raises GanMaskError that names the term whose gradient is not finite."""
    for name, term in terms.items():
        if term.requires_grad:
            gradients = torch.autograd.grad(term.mean(), parameters, retain_graph=True, allow_unused=True)
            if any(g is not None and not torch.isfinite(g).all() for g in gradients):
                raise not_finite(f"the gradient of the loss term '{name}'")


def not_finite(what: str) -> GanMaskError:
    return GanMaskError(
        f"{what} is not finite; the last checkpoint is untouched. "
        "Lower the learning rate or that term's weight, or use --mixed_precision bf16 or no"
    )


def does_not_fit(c: TrainConfig, attempt: Callable[[int], Any]) -> GanMaskError:
    """What to do about too little GPU memory. attempt: the step with so many faces."""
    fits = largest_batch_that_fits(attempt, c.batch_size)
    remedy = "not even a single face fits; use smaller --widths or fewer surrogates"
    if fits:
        parts = c.accumulate * math.ceil(c.batch_size / fits)
        remedy = f"{fits} fits (tried). Resume with --batch_size {fits} --accumulate {parts}"
    return GanMaskError(f"the GPU's memory does not hold --batch_size {c.batch_size}; {remedy}")


def largest_batch_that_fits(attempt: Callable[[int], Any], too_large: int) -> int:
    """The largest halving of `too_large` faces for which `attempt` does not run out of GPU memory; 0 if none."""
    size = too_large // 2
    while size:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(size)
            return size
        except torch.cuda.OutOfMemoryError:
            size //= 2
    return 0
