"""Photos in batches; a batch masked, written, and re-detected."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from torch import Tensor

from gan_mask.faces import Face, UnreadableImage, align, at_place, read_image
from gan_mask.landmarks import FRAMING
from gan_mask.sampling import photo_writer
from gan_mask.sampling.folder import Targets
from gan_mask.sampling.masker import Photo, Row
from gan_mask.sampling.photo_writer import UnwritableImage
from gan_mask.sampling.sampler import FAR, Sampler

T = TypeVar("T")
R = TypeVar("R")
PhotoRows = dict[str, list[Row]]  # per photo
Batch = tuple[list[Photo], PhotoRows]  # photos that could be read, rows of those that could not

BATCH_PIXELS = 30_000_000  # of photos in a batch, two of which are in memory (more only if one photo alone is larger)


def batches(sampler: Sampler, names: Sequence[str]) -> Iterator[Batch]:
    """Photos in batches that fit into memory, with rows for those that cannot be read."""
    batch: list[Photo] = []
    unreadable: dict[str, list[Row]] = {}
    for name in names:
        start = time.perf_counter()
        try:
            photo = sampler.photo(name)
            photo.seconds = time.perf_counter() - start
            batch.append(photo)
        except UnreadableImage as error:
            unreadable[name] = [{"photo": name, "status": "unreadable", "note": error.reason}]
        pixels = sum(p.image.shape[0] * p.image.shape[1] for p in batch)
        if len(batch) + len(unreadable) >= sampler.batch_size or pixels >= BATCH_PIXELS:
            yield batch, unreadable
            batch, unreadable = [], {}
    if batch or unreadable:
        yield batch, unreadable


def mask_batches(sampler: Sampler, read: Iterable[Batch], targets: Mapping[str, Targets]) -> Iterator[PhotoRows]:
    """The rows of each batch."""
    for photos, unreadable in read:
        yield unreadable | (process(sampler, photos, targets) if photos else {})


def mask_all(sampler: Sampler, names: Sequence[str], targets: Mapping[str, Targets]) -> PhotoRows:
    """Rows of all these photos, batch after batch."""
    rows: PhotoRows = {}
    for found in mask_batches(sampler, batches(sampler, names), targets):
        rows |= found
    return rows


def process(sampler: Sampler, photos: Sequence[Photo], targets: Mapping[str, Targets]) -> dict[str, list[Row]]:
    """Mask the photos, write them, re-detect what was written; rows per photo."""
    start = time.perf_counter()
    sampler.find_faces(photos)
    with_faces = [photo for photo in photos if photo.faces]
    rows: dict[str, list[Row]] = {p.name: [{"photo": p.name, "status": "no face"}] for p in photos if not p.faces}
    if with_faces:
        names = [photo.name for photo in with_faces for _ in photo.faces]
        crops = [photo.crop(i, *FRAMING) for photo in with_faces for i in range(len(photo.faces))]
        before = sampler.measure(crops, names) if sampler.measures else ({}, {})
        sampler.masker.wear(with_faces)
        written = at_once(lambda photo: write(sampler, photo, targets[photo.name]), with_faces)
        rows |= {photo.name: found for photo, found in zip(with_faces, written, strict=True)}
        if sampler.measures:
            is_written = [rows[name][0]["status"] == "ok" for name in names]
            of_written = [{name: values[is_written] for name, values in looks.items()} for looks in before]
            score(sampler, [p for p in with_faces if rows[p.name][0]["status"] == "ok"], rows, *of_written)
    seconds = (time.perf_counter() - start) / len(photos)
    for photo in photos:
        for row in rows[photo.name]:
            row["seconds"] = round(seconds + photo.seconds, 3)
    return rows


def write(sampler: Sampler, photo: Photo, targets: Targets) -> list[Row]:
    """Write the masked photo; one row per face, or one that says why the photo was not written."""
    try:
        return _write(sampler, photo, targets)
    except UnreadableImage as error:  # it was there a moment ago
        return [{"photo": photo.name, "status": "unreadable", "note": error.reason}]
    except UnwritableImage as error:
        return [{"photo": photo.name, "status": "not written", "note": error.reason}]


def _write(sampler: Sampler, photo: Photo, targets: Targets) -> list[Row]:
    original = photo_writer.read_original(sampler.source / photo.name)
    target, note = targets.same, ""
    if not original.keeps_format:
        target = targets.other
        reason = "only the first picture of an animation" if original.frames > 1 else f"{original.format} holds no tag"
        note = f"written as PNG ({reason})"
    notes = [", ".join(filter(None, (note, face.doubt))) for face in photo.faces]
    named = dict.fromkeys(photo.worn[index]["template"] for index in range(len(photo.faces)))
    tag = photo_writer.provenance(sampler.method_name, sampler.checkpoint, ",".join(named))
    photo_writer.write(photo.image, sampler.out / target, original, tag)
    return [
        {
            "photo": photo.name, "status": "ok", "written": target, "face": index,
            "box": " ".join(f"{edge:.1f}" for edge in face.box), "note": notes[index], **photo.worn[index],
        }
        for index, face in enumerate(photo.faces)
    ]  # fmt: skip


def score(
    sampler: Sampler,
    photos: Sequence[Photo],
    rows: dict[str, list[Row]],
    before: dict[str, Tensor],
    logits: dict[str, Tensor],
) -> None:
    """Complete the rows of written photos with what the networks make of the files."""
    written = at_once(lambda photo: read_image(sampler.out / rows[photo.name][0]["written"]), photos)
    found = find_again(sampler, written, [photo.faces for photo in photos])
    flat = [row for photo in photos for row in rows[photo.name]]
    again = [(image, face) for image, faces in zip(written, found, strict=True) for face in faces]
    crops = {i: align(image, face.landmarks, *FRAMING) for i, (image, face) in enumerate(again) if face is not None}
    positions = list(crops)
    after = sampler.measure(list(crops.values()), [flat[i]["photo"] for i in positions]) if crops else ({}, {})
    for i, row in enumerate(flat):
        row["face_found_after"] = int(i in crops)
        for name, values in logits.items():
            row[f"mask_logit_before_{name}"] = round(float(values[i]), 4)
    for k, i in enumerate(positions):
        for name, embeddings in after[0].items():
            flat[i][f"similarity_{name}"] = round(float(embeddings[k] @ before[name][i]), 5)
            flat[i][f"threshold_{name}"] = sampler.embedders[name].threshold(FAR)
        for name, values in after[1].items():
            flat[i][f"mask_logit_after_{name}"] = round(float(values[k]), 4)


def find_again(
    sampler: Sampler, written: Sequence[np.ndarray], known: Sequence[Sequence[Face]]
) -> list[list[Face | None]]:
    """The faces found in the written photos at the places of the known ones."""
    if not sampler.search_whole:
        return sampler.finder.find_again(written, known)
    result: list[list[Face | None]] = []
    for faces, found in zip(known, sampler.finder.find(written), strict=True):
        boxes = np.array([other.box for other in found]).reshape(-1, 4)
        places = [at_place(face.box, boxes) for face in faces]
        result.append([None if place is None else found[place] for place in places])
    return result


def at_once(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """In threads: encoding and decoding a photo leave the interpreter to others."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))
