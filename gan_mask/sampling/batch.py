"""A batch of photos: masked, written, and re-detected."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gan_mask.faces import Face, UnreadableImage, read_image
from gan_mask.sampling import photo_writer
from gan_mask.sampling.folder import Targets
from gan_mask.sampling.masker import Photo, Row
from gan_mask.sampling.photo_writer import UnwritableImage
from gan_mask.sampling.sampler import FAR, Sampler


def process(sampler: Sampler, photos: Sequence[Photo], targets: Mapping[str, Targets]) -> dict[str, list[Row]]:
    """Mask the photos, write them, re-detect what was written; rows per photo."""
    start = time.perf_counter()
    sampler.find_faces(photos)
    with_faces = [photo for photo in photos if photo.faces]
    clean = [(photo.image, face) for photo in with_faces for face in photo.faces]
    rows: dict[str, list[Row]] = {p.name: [{"photo": p.name, "status": "no face"}] for p in photos if not p.faces}
    if clean:
        before = sampler.measure(clean, [photo.name for photo in with_faces for _ in photo.faces])
        sampler.masker.wear(with_faces)
        for photo in with_faces:
            rows[photo.name] = write(sampler, photo, targets[photo.name])
        is_written = [rows[photo.name][0]["status"] == "ok" for photo in with_faces for _ in photo.faces]
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
    written = [read_image(sampler.out / rows[photo.name][0]["written"]) for photo in photos]
    found = sampler.finder.find(written)
    flat = [row for photo in photos for row in rows[photo.name]]
    again = [
        (image, match(face, faces))
        for photo, image, faces in zip(photos, written, found, strict=True)
        for face in photo.faces
    ]
    positions = [i for i, (_, face) in enumerate(again) if face is not None]
    names = [flat[i]["photo"] for i in positions]
    after = sampler.measure([again[i] for i in positions], names) if positions else ({}, {})  # type: ignore[misc]
    for i, row in enumerate(flat):
        row["face_found_after"] = int(again[i][1] is not None)
        for name, values in logits.items():
            row[f"mask_logit_before_{name}"] = round(float(values[i]), 4)
    for k, i in enumerate(positions):
        for name, embeddings in after[0].items():
            flat[i][f"similarity_{name}"] = round(float(embeddings[k] @ before[name][i]), 5)
            flat[i][f"threshold_{name}"] = sampler.embedders[name].threshold(FAR)
        for name, values in after[1].items():
            flat[i][f"mask_logit_after_{name}"] = round(float(values[k]), 4)


def match(face: Face, candidates: Sequence[Face]) -> Face | None:
    """The face found in the written file at the place of `face`: boxes overlap by a third (IoU) at least."""
    from torchvision.ops import box_iou

    if not candidates:
        return None
    boxes = torch.from_numpy(np.stack([other.box for other in candidates]))
    overlap, best = box_iou(torch.from_numpy(face.box)[None], boxes)[0].max(0)
    return candidates[int(best)] if overlap >= 1 / 3 else None
