"""Mask one photo in code, as the command masks a folder of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gan_mask import attacks
from gan_mask.errors import GanMaskError
from gan_mask.faces import Face, FaceFinder, decode, read_image
from gan_mask.generator import Generator
from gan_mask.sampling import photo_writer
from gan_mask.sampling.masker import Masker, Photo, template_of


class FoundFace(NamedTuple):
    """A face of a photo."""

    box: np.ndarray  # (4,) x0, y0, x1, y1, pixels
    landmarks: np.ndarray  # (68, 2) x, y, pixels
    score: float  # that it is one, in [0, 1]
    template: str | None  # what its mask shows; None: it wears none


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo with masks on."""

    image: np.ndarray  # uint8 (H, W, 3)
    faces: tuple[FoundFace, ...]  # all that were found, the largest first
    original: photo_writer.Original  # of the photo as it was: format and harmless metadata
    source: Path | None  # where it was read from
    method: str = "generator"

    def save(self, path: str | Path) -> None:
        """Write the masked photo, marked as synthetic (`python -m gan_mask.provenance` reads the mark).

        The suffix of `path` (.jpg, .png, .tif, .webp) decides the format. Camera data and colour profile are
        kept; place, owner and device numbers are not. GanMaskError where no face is masked, for a format that holds no
        mark, and where it would overwrite the original. OSError for a full disk.
        """
        path = Path(path)
        names = dict.fromkeys(face.template for face in self.faces if face.template)
        if not names:
            raise GanMaskError(f"{path}: the photo shows no masked face; there is nothing to save")
        if self.source is not None and path.exists() and path.samefile(self.source):
            raise GanMaskError(f"{path}: this is the original, which is never written to; choose another name")
        kind = Image.registered_extensions().get(path.suffix.lower(), "")
        if kind not in photo_writer.FORMATS:
            known = ", ".join(s for s, k in Image.registered_extensions().items() if k in photo_writer.FORMATS)
            raise GanMaskError(f"{path}: expected a format that holds the mark of its origin: {known}")
        original = photo_writer.Original(kind, 1, self.original.exif, self.original.icc_profile)
        photo_writer.write(self.image, path, original, photo_writer.provenance(self.method, None, ",".join(names)))


def mask_photo(
    photo: str | Path | Image.Image | np.ndarray,
    generator: Generator,
    *,
    template: str | None = None,
    largest: bool = False,
    seed: int = 0,
    finder: FaceFinder | None = None,
) -> MaskedPhoto:
    """Put masks on the faces of a photo, at its own size; the photo itself stays as it is.

    photo: a file, a Pillow image, or uint8 RGB (H, W, 3). template: what the masks show: a shipped template, a
    photo, 'random', or 'match', for each face the shipped one that suits it best; by default the checkpoint's own, or
    'match'. largest: only the largest face. seed: of the generator's noise and of random templates. finder: pass one
    to load its networks once for many photos; by default it looks for faces of 1/32 of the longest side and more, as
    sample.py does. If no face is found, the result has none, and its image is the photo's.
    GanMaskError for a photo that cannot be read, and for other arrays.
    """
    device = next(generator.parameters()).device
    source, original, image = _opened(photo)
    found = (finder or FaceFinder(device, min_size=None, no_larger=True)).find([image])[0]
    own, config = template_of(generator, template), generator.config
    method = attacks.method("generator", generator, options=attacks.Options(seed=seed, softness=config.softness))
    masked = Photo(source.name if source else "photo", image, found[:1] if largest else found)
    Masker(method, config, *own, seed=seed, device=device).wear([masked])
    return MaskedPhoto(
        masked.image, tuple(_described(face, masked, i) for i, face in enumerate(found)), original, source
    )


def _described(face: Face, photo: Photo, index: int) -> FoundFace:
    return FoundFace(face.box, face.landmarks, face.score, photo.worn.get(index, {}).get("template"))


def _opened(photo: str | Path | Image.Image | np.ndarray) -> tuple[Path | None, photo_writer.Original, np.ndarray]:
    """Where it was read from, its metadata, and uint8 (H, W, 3), a copy."""
    if isinstance(photo, Image.Image):
        return None, photo_writer.original_of(photo), decode(photo)
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise GanMaskError(f"photo: expected uint8 RGB (H, W, 3), got {photo.dtype} {photo.shape}")
        return None, photo_writer.Original("", 1, Image.Exif(), None), photo.copy()
    return Path(photo), photo_writer.read_original(Path(photo)), read_image(photo)
