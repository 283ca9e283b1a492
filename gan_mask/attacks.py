"""The methods, with one signature, so that every command and every evaluation takes any of them.

A method maps wearers to mask textures in canonical space:
`method(faces [B,3,H,W] in [0,1], landmarks [B,68,2] px, templates [B,3,h,w]) -> textures [B,3,h,w]`,
which `masking.wear` puts on the crop or on the full photo; None means that no mask is worn.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gan_mask import templates as shipped
from gan_mask.errors import GanMaskError
from gan_mask.networks import Generator

Method = Callable[[Tensor, Tensor, Tensor], Tensor | None]

METHODS = ("none", "plain", "dm", "generator")
PLAIN = "plain-blue"  # the surgical mask of the benign baseline


def none(faces: Tensor, landmarks: Tensor, templates: Tensor) -> None:
    """No mask: the clean probe."""


def plain(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """A plain light-blue mask, whatever the template: the benign baseline."""
    texture = shipped.load(PLAIN, (templates.shape[2], templates.shape[3])).to(faces)
    return texture.expand(len(faces), -1, -1, -1)


def dm(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """Delaunay-based masking: the template's lower face, worn as it is (arXiv 2201.06427, section 3.1)."""
    return templates.expand(len(faces), -1, -1, -1)


def method(name: str, generator: Generator | None = None) -> Method:
    """The method called `name`; `generator` is needed for 'generator' alone."""
    if name == "generator":
        if generator is None:
            raise GanMaskError("method 'generator' needs a checkpoint (--checkpoint)")
        return generator.texture
    known: dict[str, Method] = {"none": none, "plain": plain, "dm": dm}
    if name not in known:
        raise GanMaskError(f"unknown method '{name}'; known: {', '.join(METHODS)}")
    return known[name]
