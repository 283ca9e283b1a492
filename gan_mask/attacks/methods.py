"""A method by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from gan_mask import masking
from gan_mask.attacks.advface import AdvFace
from gan_mask.attacks.advnoise_dm import AdvNoiseDM
from gan_mask.attacks.benign import dm, dm_adapted, none, plain
from gan_mask.attacks.mf2m import MF2M
from gan_mask.attacks.optimised import Optimised, Record
from gan_mask.attacks.options import Options
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator

Paint = Callable[[Tensor, Tensor, Tensor], Tensor | None]


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
