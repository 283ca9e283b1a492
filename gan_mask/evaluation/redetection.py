"""Pictures re-detected: detection, landmarks, alignment, recognisers and detectors start over from 8-bit images."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from gan_mask import files, run_record
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation.protocol import batches
from gan_mask.faces import Face, FaceFinder, align, to_tensors
from gan_mask.landmarks import FRAMING
from gan_mask.pretrained import contract
from gan_mask.pretrained.protocol import Detector, Embedder, fingerprint

CLEAN_BATCH = 32  # clean faces that are embedded together
HOG_LONGEST = 640  # px: larger pictures are shrunk to it before dlib's HOG detector searches them


@dataclass
class Redetected:
    """What the networks make of P pictures."""

    found: np.ndarray  # bool (P,): MTCNN finds a face
    found_dlib: np.ndarray  # bool (P,): dlib's HOG detector finds a face
    embedding: dict[str, np.ndarray] = field(default_factory=dict)  # embedder -> (P, D), NaN where no face is found
    mask_logit: dict[str, np.ndarray] = field(default_factory=dict)  # detector -> (P,), NaN likewise
    face_logit: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, chosen: np.ndarray) -> Redetected:
        """Those at some of the pictures, by their numbers."""
        parts = (self.embedding, self.mask_logit, self.face_logit)
        kept = ({name: values[chosen] for name, values in part.items()} for part in parts)
        return Redetected(self.found[chosen], self.found_dlib[chosen], *kept)

    def similarity(self, others: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """embedder -> cosine (P,) to the embeddings (P, D) of other pictures."""
        return {name: (embeddings * others[name]).sum(1) for name, embeddings in self.embedding.items()}


def redetect(
    images: Sequence[np.ndarray],
    embedders: Mapping[str, Embedder],
    detectors: Mapping[str, Detector],
    finder: FaceFinder,
    device: str,
    names: Sequence[str] = (),
    faces: Sequence[Sequence[Face]] | None = None,
) -> Redetected:
    """images: uint8 (H, W, 3); names: what an error calls them; faces: theirs, if `finder` was asked already.

    The largest face of each counts.
    """
    count = len(images)
    faces = finder.find(list(images)) if faces is None else faces
    rows = [i for i in range(count) if faces[i]]
    seen = Redetected(np.array([bool(f) for f in faces]), np.array([_hog_finds(image) for image in images]))
    crops, landmarks = to_tensors([align(images[i], faces[i][0].landmarks, *FRAMING) for i in rows], device)
    with torch.no_grad(), contract.naming([names[i] for i in rows] if names else []):
        for name, embedder in embedders.items():
            seen.embedding[name] = _spread(rows, count, embedder(crops, landmarks) if rows else None)
        for name, detector in detectors.items():
            mask_logit, face_logit = detector(crops) if rows else (None, None)
            seen.mask_logit[name] = _spread(rows, count, mask_logit)
            seen.face_logit[name] = _spread(rows, count, face_logit)
    return seen


def _spread(rows: Sequence[int], count: int, values: Tensor | None) -> np.ndarray:
    """Rows of the faces found among `count` pictures; NaN for the others."""
    if values is None:
        return np.full((count,), np.nan, np.float32)
    result = np.full((count, *values.shape[1:]), np.nan, np.float32)
    result[list(rows)] = values.cpu().numpy()
    return result


def _hog_finds(image: np.ndarray) -> bool:
    """Whether dlib's HOG detector finds a face, with one upsampling."""
    picture = Image.fromarray(image)
    picture.thumbnail((HOG_LONGEST, HOG_LONGEST))  # seconds and gigabytes on a large photo
    return bool(len(_hog()(np.asarray(picture), 1)))


@lru_cache(maxsize=1)
def _hog() -> Any:
    import dlib

    return dlib.get_frontal_face_detector()


# ------------------------------------------------------------------------------------------- keeping them


def save(path: Path, seen: Redetected, extra: Mapping[str, np.ndarray]) -> None:
    arrays = {f"extra {name}": value for name, value in extra.items()}
    arrays |= {"found": seen.found, "found_dlib": seen.found_dlib}
    for kind in ("embedding", "mask_logit", "face_logit"):
        arrays |= {f"{kind} {name}": value for name, value in getattr(seen, kind).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with files.replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load(path: Path) -> tuple[Redetected, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise GanMaskError(f"{path}: damaged ({error}); delete it and run the same command again") from error
    seen = Redetected(arrays.pop("found"), arrays.pop("found_dlib"))
    extra: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        kind, name = key.split(" ", 1)
        (extra if kind == "extra" else getattr(seen, kind))[name] = value
    return seen, extra


def join(parts: Sequence[Redetected]) -> Redetected:
    """Those of consecutive pictures as one."""
    joined = Redetected(np.concatenate([p.found for p in parts]), np.concatenate([p.found_dlib for p in parts]))
    for kind in ("embedding", "mask_logit", "face_logit"):
        for name in getattr(parts[0], kind):
            getattr(joined, kind)[name] = _stack([getattr(p, kind)[name] for p in parts])
    return joined


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Parts in which no face at all was found do not know how long an embedding is."""
    width = max(a.ndim for a in arrays)
    shape = next(a.shape[1:] for a in arrays if a.ndim == width)
    return np.concatenate([a if a.ndim == width else np.full((len(a), *shape), np.nan, a.dtype) for a in arrays])


# ------------------------------------------------------------------------------------------- clean faces


def embed_clean(
    name: str, embedder: Embedder, photos: PreparedSet, index: np.ndarray, cache: Path, device: str
) -> np.ndarray:
    """Embeddings (N, D) of the prepared crops themselves, computed once per network, set and choice of faces."""
    path = clean_path(name, embedder, photos, index, cache)
    if (kept := run_record.embeddings(path, len(index))) is not None:
        return kept
    embeddings = embed(embedder, photos, index, device)
    keep(path, embeddings)
    return embeddings


def clean_path(name: str, embedder: Embedder, photos: PreparedSet, index: np.ndarray, cache: Path) -> Path:
    """Where they are kept."""
    faces_chosen = f"{photos.fingerprint()} {photos.split} {index.tolist()}"
    key = run_record.key("clean embeddings", fingerprint(name, embedder), faces_chosen)
    return cache / f"{files.safe_name(name)}-{key}.npy"


@torch.no_grad()
def embed(embedder: Embedder, photos: PreparedSet, index: np.ndarray, device: str) -> np.ndarray:
    """Embeddings (N, D) of the prepared crops."""
    parts = []
    for i, (faces, landmarks) in enumerate(batches(photos, index, CLEAN_BATCH)):
        with contract.naming(contract.sources(photos, index[i * CLEAN_BATCH : (i + 1) * CLEAN_BATCH])):
            parts.append(embedder(faces.to(device), landmarks.to(device)).cpu().numpy())
    return np.concatenate(parts)


def keep(path: Path, embeddings: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, embeddings)


# ------------------------------------------------------------------------------------------- changes

Change = Callable[[np.ndarray], np.ndarray]


def _jpeg(quality: int, image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _resize(factor: float, image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    size = round(picture.width * factor), round(picture.height * factor)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def _blur(sigma: float, image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _crop(share: float, image: np.ndarray) -> np.ndarray:
    y, x = (round(side * share) for side in image.shape[:2])
    return np.ascontiguousarray(image[y : image.shape[0] - y, x : image.shape[1] - x])


# What may happen to a saved picture before a system sees it: uint8 (H, W, 3) -> uint8.
CHANGES: dict[str, Change] = {
    **{f"JPEG {quality}": partial(_jpeg, quality) for quality in (95, 75, 50, 30)},
    **{f"resize {factor:g}": partial(_resize, factor) for factor in (0.75, 0.5)},
    "blur 1 px": partial(_blur, 1.0),
    "re-crop 5 %": partial(_crop, 0.05),
}
