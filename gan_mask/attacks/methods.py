"""A method by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from gan_mask.attacks.advface import AdvFace
from gan_mask.attacks.advnoise_dm import AdvNoiseDM
from gan_mask.attacks.base import Method, Painted
from gan_mask.attacks.benign import dm, dm_adapted, none, plain
from gan_mask.attacks.mf2m import MF2M
from gan_mask.attacks.optimised import Optimised
from gan_mask.attacks.options import Options
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator


def method(
    name: str,
    generator: Generator | None = None,
    surrogates: Surrogates | None = None,
    options: Options = Options(),  # noqa: B008  (frozen)
) -> Method:
    """The method called `name`; 'generator' needs `generator`, the optimised ones `surrogates`.

    options.placement is that of 'dm' and of the optimised ones; a generator has its own, and a plain mask is laid over.
    """
    if name == "generator":
        if generator is None:
            raise GanMaskError("method 'generator' needs a checkpoint (--checkpoint)")
        if options.refine:
            return refined(generator, surrogates, options)
        paint = partial(generator.texture, seed=options.seed, strength=options.strength)
        return Painted(paint, generator.config.placement, options.softness, generator.texture_size)
    if name in OPTIMISED:
        if surrogates is None:
            raise GanMaskError(f"method '{name}' needs surrogates (--embedders, --detectors)")
        return OPTIMISED[name](surrogates, options)
    if name not in METHODS:
        raise GanMaskError(f"unknown method '{name}'; known: {', '.join(METHODS)}")
    if name == "dm-seamless" or (name == "dm" and options.placement == "seamless"):
        return Painted(dm_adapted, "seamless")
    return Painted(BENIGN[name], "paper", options.softness)


def refined(generator: Generator, surrogates: Surrogates | None, options: Options) -> AdvFace:
    """A few steps of AdvFace that begin at the generator's output, for the faces that still need them."""
    if surrogates is None:
        raise GanMaskError("--refine needs surrogates (--embedders, --detectors)")
    return AdvFace(surrogates, replace(options, steps=options.refine, placement=generator.config.placement), generator)


OPTIMISED: dict[str, type[Optimised]] = {kind.name: kind for kind in (AdvNoiseDM, MF2M, AdvFace)}
BENIGN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor | None]] = {"none": none, "plain": plain, "dm": dm}
METHODS = (*BENIGN, "dm-seamless", *OPTIMISED, "generator")
