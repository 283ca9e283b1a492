"""The interface of every method: it makes textures for wearers, and knows how they are worn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from gan_mask import augment, masking
from gan_mask.photos import wear_on_photo


class Result(NamedTuple):
    """What a method made for one batch."""

    textures: Tensor | None  # (B, 3, h, w) in [0, 1]; None: no mask is worn
    iterations: Tensor | None = None  # of optimised faces: (B,) gradient steps until each met its goal
    seconds: Tensor | None = None  # likewise: (B,) each face's share of the steps that it was part of


class Method:
    """An attack, or the baseline of one: `apply` makes textures; `mask` and `mask_photos` put them on, too."""

    placement: masking.PlacementName = "paper"  # how its textures are worn, see masking.put_on
    softness: float = 0.03  # of placement "paper": fade at the mask's edge, fraction of the mask's width
    texture_size: tuple[int, int] = masking.TEXTURE  # height and width of the templates that it takes
    optimises: bool = False  # whether it takes steps for each face, which its results count

    def apply(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Result:
        """Textures for faces (B, 3, H, W) in [0, 1], landmarks (B, 68, 2) px, templates (B or 1, 3, h, w)."""
        raise NotImplementedError

    def wear(self, faces: Tensor, landmarks: Tensor, textures: Tensor | None) -> Tensor:
        """Masked faces (B, 3, H, W) in [0, 1]."""
        if textures is None:
            return faces
        return masking.put_on(faces, landmarks, textures, self.placement, self.softness)

    def mask(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> tuple[Tensor, Result]:
        """Masked faces (B, 3, H, W) as an 8-bit file has them, in [0, 1], and what they wear; arguments of `apply`."""
        result = self.apply(faces, landmarks, templates)
        return augment.round_to_8_bit(self.wear(faces, landmarks, result.textures)), result

    def mask_photos(
        self,
        photos: Sequence[np.ndarray],
        marks: Sequence[np.ndarray],
        faces: Tensor,
        landmarks: Tensor,
        templates: Tensor,
    ) -> Result:
        """Put masks on photos of any size, in place, one face of each.

        photos uint8 (H, W, 3) with landmarks `marks` (68, 2) px; faces, landmarks, templates: arguments of `apply`, of
        the crops aligned to them. A photo with several faces is named once for each, the one in front last.
        """
        result = self.apply(faces, landmarks, templates)
        if result.textures is not None:
            self.wear_on_photos(photos, marks, faces, landmarks, result.textures)
        return result

    def wear_on_photos(
        self,
        photos: Sequence[np.ndarray],
        marks: Sequence[np.ndarray],
        faces: Tensor,
        landmarks: Tensor,
        textures: Tensor,
    ) -> None:
        """Put textures (B, 3, h, w) that are made already on photos, in place; other arguments as `mask_photos` has."""
        own = masking.unwrap(faces, landmarks, (textures.shape[2], textures.shape[3]))
        for photo, points, texture, beneath in zip(photos, marks, textures, own, strict=True):
            wear_on_photo(photo, points, texture.detach(), beneath, self.placement, self.softness)


class Painted(Method):
    """A method that makes its textures at once.

    paint: faces, landmarks and templates as `apply` has them -> textures, or None for no mask.
    """

    def __init__(
        self,
        paint: Callable[[Tensor, Tensor, Tensor], Tensor | None],
        placement: masking.PlacementName = "paper",
        softness: float = 0.03,
        texture_size: tuple[int, int] = masking.TEXTURE,
    ) -> None:
        self.paint, self.placement, self.softness, self.texture_size = paint, placement, softness, texture_size

    def apply(self, faces: Tensor, landmarks: Tensor, templates: Tensor) -> Result:
        return Result(self.paint(faces, landmarks, templates))
