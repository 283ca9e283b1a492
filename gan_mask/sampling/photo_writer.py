"""Writing masked photos: the format of the original, its harmless metadata, and a mark that says what they are."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from gan_mask import files
from gan_mask._version import __version__
from gan_mask.errors import GanMaskError
from gan_mask.faces import opened
from gan_mask.sampling import clip

# How a photo is written, by the format it was read from. All of them hold the provenance tag. Lossy WebP
# halves the resolution of colours, hence lossless.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "MPO": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),  # JPEG with further pictures, as phones write them
    "PNG": ("PNG", {}),
    "TIFF": ("TIFF", {}),  # uncompressed: libtiff's compressors do not take all EXIF
    "WEBP": ("WEBP", {"lossless": True}),
}

# What is kept of the original's EXIF: nothing about place, owner or device numbers, no orientation (it is applied).
KEPT_EXIF = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.DateTime)
KEPT_EXIF_IFD = (
    ExifTags.Base.ExposureTime, ExifTags.Base.FNumber, ExifTags.Base.ISOSpeedRatings, ExifTags.Base.DateTimeOriginal,
    ExifTags.Base.FocalLength, ExifTags.Base.ColorSpace,
)  # fmt: skip

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the next photo would not be written either

SOFTWARE = f"gan_mask {__version__}"


@dataclass
class Original:
    """What is needed of an original file to write its masked copy alike."""

    format: str  # Pillow's name
    frames: int
    exif: Image.Exif  # only what is kept
    icc_profile: bytes | None  # of an RGB photo

    @property
    def keeps_format(self) -> bool:
        """False where the masked copy becomes a PNG: animations, and formats that cannot be written or tagged."""
        return self.format in FORMATS and self.frames == 1


def read_original(path: Path) -> Original:
    """Format and metadata of a readable image file."""
    with opened(path) as image:
        return original_of(image)


def original_of(image: Image.Image) -> Original:
    frames = 1 if image.format == "MPO" else _frames(image)  # MPO's others are views of the first
    profile = image.info.get("icc_profile")
    if profile is not None and (profile[16:20] != b"RGB " or image.mode not in ("RGB", "RGBA", "P")):
        profile = None  # it describes CMYK or grey, and the masked photo is RGB
    try:
        exif = _kept(image.getexif())
        exif.tobytes()
    except Exception:  # Pillow raises nearly any type on damaged metadata; the picture matters more
        exif = Image.Exif()
    return Original(image.format or "", frames, exif, profile)


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # nearly any type, where a frame behind the first is damaged
        return 1


def provenance(method: str, checkpoint: str | None, template: str) -> str:
    """The tag that every written photo carries."""
    source = f"checkpoint={checkpoint}; " if checkpoint else ""
    made = f"synthetic adversarial mask; method={method}; {source}template={template}"
    return f"{SOFTWARE} {made}; not an original photograph"


class UnwritableImage(GanMaskError):
    """A photo that cannot be written, whatever the reason, where others may be; `reason` does not name the file."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


def write(photo: np.ndarray, path: Path, original: Original, tag: str) -> None:
    """Write RGB uint8 (H, W, 3) to `path`, whole or not at all, in a new folder if need be.

    Raises UnwritableImage for what is wrong with this photo or its name, OSError for what is wrong with the disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(photo, path, original, tag)
    except Exception as error:  # Pillow's encoders raise nearly any type
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnwritableImage(str(path), f"cannot be written ({reason or type(error).__name__})") from error


def _write(photo: np.ndarray, path: Path, original: Original, tag: str) -> None:
    kind, options = FORMATS[original.format if original.keeps_format else "PNG"]
    options = dict(options)
    if original.icc_profile:
        options["icc_profile"] = original.icc_profile
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("Description", tag)
        options["pnginfo"].add_text("Software", SOFTWARE)
    exif = Image.Exif()
    exif.load(original.exif.tobytes())
    exif[ExifTags.Base.ImageDescription] = tag.encode("ascii", "replace").decode()  # EXIF 2.3 text is ASCII
    exif[ExifTags.Base.Software] = SOFTWARE
    options["exif"] = exif
    with files.replacing(path) as temporary:
        Image.fromarray(photo).save(temporary, format=kind, **options)


def read_provenance(path: Path) -> str | None:
    """The tag in a photo or a clip that we wrote, else None. Raises UnreadableImage."""
    if clip.is_clip(path):
        tag = clip.read_comment(path)
    else:
        with opened(path) as image:
            tag = image.getexif().get(ExifTags.Base.ImageDescription)
    return tag if isinstance(tag, str) and tag.startswith("gan_mask ") else None


def _kept(original: Image.Exif) -> Image.Exif:
    exif = Image.Exif()
    exif.update({key: original[key] for key in KEPT_EXIF if key in original})
    details = original.get_ifd(ExifTags.IFD.Exif)
    kept: dict[int, Any] = {int(key): details[key] for key in KEPT_EXIF_IFD if key in details}
    if kept:
        exif.get_ifd(ExifTags.IFD.Exif).update(kept)
    return exif
