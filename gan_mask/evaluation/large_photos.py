"""How masks look on photos at full size: a mask that suits the small prepared crops may be a blur on a large photo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gan_mask import templates
from gan_mask.attacks import Method
from gan_mask.cli import Progress
from gan_mask.data.folder_or_zip import Source
from gan_mask.data.prepare import Settings
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import appearance
from gan_mask.evaluation.folders import Folder
from gan_mask.evaluation.pictures import write_pngs
from gan_mask.evaluation.run import Experiment
from gan_mask.faces import UnreadableImage, align, to_tensors
from gan_mask.networks import GeneratorConfig

AROUND = 0.25  # of the mask's width: how much of the photo around the landmarks is kept as a picture


def measure(e: Experiment, config: GeneratorConfig, folder: str) -> dict[str, Any]:
    """The measures of `appearance` of every method of ours on the largest face of each photo in `folder`.

    One sub-folder per person; a zip file does, too. Photo i wears template i mod N. The faces as worn are written to
    OUT/photos/METHOD. Photos without a face, or unreadable ones, are named in the result. Raises GanMaskError if none
    is left.
    """
    source = Source(folder)
    people: list[str] = []
    widths: list[float] = []
    left_out: dict[str, str] = {}
    values: dict[str, dict[str, list[float]]] = {m: {name: [] for name in appearance.MEASURES} for m in _ours(e)}
    faces: dict[str, list[str]] = {method: [] for method in _ours(e)}
    for photo in Progress(source.photos(Settings.identity_regex), desc="photos", unit="photo"):
        try:
            image = source.read(photo)
        except UnreadableImage as error:
            left_out[photo.path] = error.reason
            continue
        found = e.finder.find([image])[0]
        if not found:
            left_out[photo.path] = "no face found"
            continue
        landmarks = found[0].landmarks
        for method, worn in _worn(e, config, image, landmarks, len(people)).items():
            for name, value in appearance.measure(image, worn, landmarks).items():
                values[method][name].append(value)
            path = e.out / "photos" / method / f"{len(people):05d}.png"
            write_pngs([path], [_around(worn, landmarks)])
            faces[method].append(path.relative_to(e.out).as_posix())
        widths.append(float(np.linalg.norm(landmarks[15] - landmarks[1])))
        people.append(photo.person)
    if not people:
        raise GanMaskError(f"--photos {folder}: no face found in any of its {len(left_out)} photos")
    number = np.unique(people, return_inverse=True)[1]
    return {
        "photos": len(people),
        "people": len(set(people)),
        "mask_width_px": [round(float(np.percentile(widths, share))) for share in (0, 50, 100)],
        "left_out": left_out,
        "methods": {method: appearance.table(row, number) for method, row in values.items()},
        "faces": faces,
    }


def _ours(e: Experiment) -> dict[str, Method]:
    """Nobody knows what other tools would make of these photos."""
    return {name: method for name, method in e.methods.items() if not isinstance(method, Folder)}


@torch.no_grad()
def _worn(
    e: Experiment, config: GeneratorConfig, image: np.ndarray, landmarks: np.ndarray, number: int
) -> Mapping[str, np.ndarray]:
    """method -> a copy of the photo with its mask on this face."""
    crop, points = to_tensors([align(image, landmarks, config.size, config.margin)], e.device)
    template = e.template(crop, points, slice(number, number + 1)).to(e.device)
    if e.harmonise:
        template = templates.harmonise(template, crop, points)
    copies = {name: image.copy() for name in _ours(e)}
    for name, method in _ours(e).items():
        method.mask_photos([copies[name]], [landmarks], crop, points, template)
    return copies


def _around(photo: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face's part of the photo, at its own size."""
    margin = AROUND * float(np.linalg.norm(landmarks[15] - landmarks[1]))
    x0, y0 = (np.floor(landmarks.min(0) - margin)).astype(int).clip(0)
    x1, y1 = (np.ceil(landmarks.max(0) + margin)).astype(int) + 1
    return photo[y0:y1, x0:x1]
