"""What is not optimised: no mask, a plain one, and DM, another face's lower half as it is."""

from __future__ import annotations

from torch import Tensor

from gan_mask import likeness, masking
from gan_mask import templates as shipped

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


def dm_adapted(faces: Tensor, landmarks: Tensor, templates: Tensor) -> Tensor:
    """DM's template in the wearer's colours, contrast and sharpness, for seamless placement."""
    templates = dm(faces, landmarks, templates)
    return likeness.adapt(templates, masking.unwrap(faces, landmarks, (templates.shape[2], templates.shape[3])))
