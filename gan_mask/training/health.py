"""Signs that a training has gone wrong and will not recover: they end it, with the last good checkpoint in place."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gan_mask.errors import GanMaskError

WARN, STOP = 10, 50  # steps in a row with the same sign
SATURATED = 0.02  # discriminator's loss below which the generator hears nothing from it
VANISHED = 1e-6  # norm of the discriminator's gradient
FLAT = 0.1  # a texture's standard deviation, of its template's
SMALLEST_SCALE = 2.0**-10  # fp16 loss scale: 26 halvings from where it starts


class Health:
    """Looks at every step; raises GanMaskError when a sign has stayed for STOP steps."""

    def __init__(self, judged: bool) -> None:
        self.judged = judged  # whether the discriminator's opinion counts in the generator's loss
        self.streaks = {"generator": 0, "discriminator": 0, "texture": 0}

    @property
    def good(self) -> bool:
        return not any(self.streaks.values())

    def look(self, terms: dict[str, Tensor], norms: tuple[float, ...], texture: Tensor, template: Tensor) -> None:
        """terms: losses (B,); norms: of the generator's and the discriminator's gradients; textures (B, 3, h, w)."""
        self._count(
            "generator", norms[0] == 0,
            "no gradient reaches the generator ('g_norm' is 0), so that it learns nothing. "
            "Give a loss that has something to teach a weight above 0, such as --fidelity or --dodging",
        )  # fmt: skip
        loss = float(terms["d_logistic"].detach().mean())
        if self.judged:
            self._count(
                "discriminator", loss < SATURATED or norms[1] < VANISHED,
                f"the discriminator is dead: 'd_logistic' is {loss:.2g}, its gradient's norm {norms[1]:.2g}, so that "
                "'realism' teaches nothing. Raise --r1 or lower --discriminator_learning_rate",
            )  # fmt: skip
        spread, due = (x.detach().float().std((2, 3)).mean(1) for x in (texture, template))
        patterned = due > 0.02  # a plain template is flat by itself
        if patterned.any():
            weighted = {k: float(v.detach().mean()) for k, v in terms.items() if not k.startswith("d_")}
            largest = max(weighted, key=lambda name: weighted[name])
            self._count(
                "texture", bool((spread < FLAT * due)[patterned].float().mean() > 0.5),
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


def step_optimizers(
    accelerator: Any, modules: Iterable[nn.Module], optimizers: Iterable[Any], limits: Iterable[float]
) -> tuple[float, ...]:
    """Clip to `limits` and step; the gradients' norms. Nothing is stepped on a gradient that is not finite.

    Raises FloatingPointError for such a gradient, except under fp16: there the scaler leaves the step out and
    halves its scale. One optimiser after the other: accelerate's scaler forgets both after either's step.
    """
    norms = []
    for module, optimizer, limit in zip(modules, optimizers, limits, strict=True):
        accelerator.unscale_gradients(optimizer)
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), limit)))
        if accelerator.scaler is None and not math.isfinite(norms[-1]):
            raise FloatingPointError
        optimizer.step()
        optimizer.zero_grad()
    if accelerator.scaler is not None and accelerator.scaler.get_scale() < SMALLEST_SCALE:
        raise GanMaskError(
            "fp16: every gradient overflows, however small the loss scale; the last checkpoint is untouched. "
            "Use --mixed_precision bf16 or no"
        )
    return tuple(norms)


def total(terms: dict[str, Tensor]) -> Tensor:
    """Mean over the batch of the sum of all terms; names the term that is not finite."""
    for name, term in terms.items():
        if not torch.isfinite(term).all():
            raise not_finite(f"the loss term '{name}'")
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
