"""Masks that follow the faces of a clip: frames come in one by one, and go out masked a little later.

Where a face lies is smoothed over time (`tracks`), each face wears one template from its first frame to its last, and
its mask's texture, of which canonical space has no motion left, follows the method's with inertia. Only as many frames
as smoothing looks ahead are in memory.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gan_mask import cli
from gan_mask.faces import Face, UnreadableImage, align, to_tensors
from gan_mask.landmarks import FRAMING
from gan_mask.pretrained import contract
from gan_mask.sampling import clip as clips
from gan_mask.sampling import photo_writer
from gan_mask.sampling.batch import find_again
from gan_mask.sampling.clip import Clip, Frame
from gan_mask.sampling.folder import Targets
from gan_mask.sampling.masker import Masker, Photo, Row
from gan_mask.sampling.sampler import FAR, Sampler
from gan_mask.sampling.tracks import Track, Tracker

AHEAD = 0.5  # seconds for which a face may be missed on both sides of a frame
MOST_AHEAD = 15  # frames, which are in memory
REACH = 0.17  # seconds on both sides of a frame over which landmarks are smoothed
INERTIA = 0.4  # seconds in which a texture follows by 63 %
MEASURED = 2.0  # frames a second that the networks are shown
MOST_MEASURED = 600  # frames


class Look(NamedTuple):
    """A masked face in one frame, before it is written."""

    track: int
    face: Face
    time: float  # seconds
    embeddings: dict[str, Tensor]  # of the clean face, (D,)
    logits: dict[str, float]


@dataclass
class Worn:
    """What a track wears."""

    template: str
    bank: Tensor  # (1, 3, h, w)
    texture: Tensor | None = None  # (3, h, w)
    first: float = 0.0  # seconds
    last: float = 0.0
    frames: int = 0
    note: str = ""


@dataclass
class Wardrobe:
    """What all tracks wear."""

    masker: Masker
    name: str  # of the clip
    rate: float  # frames per second
    worn: dict[int, Worn] = field(default_factory=dict)

    @torch.no_grad()
    def wear(self, frame: Frame, found: Sequence[tuple[Track, Face]]) -> None:
        """Put masks on the faces of a frame, in place; the largest first in `found`, last on the picture."""
        if not found:
            return
        order = list(reversed(found))
        config, method = self.masker.config, self.masker.method
        crops, landmarks = to_tensors(
            [align(frame.image, face.landmarks, config.size, config.margin) for _, face in order], self.masker.device
        )
        for row, (track, face) in enumerate(order):
            if track.number not in self.worn:
                one = slice(row, row + 1)
                wearer = (Photo(self.name, frame.image, []), track.number)
                (template,) = self.masker.choose_templates([wearer], crops[one], landmarks[one])
                bank = self.masker.bank([template], crops[one], landmarks[one])
                self.worn[track.number] = Worn(template, bank, first=frame.time, note=face.doubt)
        worn = [self.worn[track.number] for track, _ in order]
        self._paint(worn, crops, landmarks)
        textures = [w.texture for w in worn if w.texture is not None]
        if textures:
            images, marks = [frame.image] * len(order), [face.landmarks for _, face in order]
            method.wear_on_photos(images, marks, crops, landmarks, torch.stack(textures))
        for w in worn:
            w.last, w.frames = frame.time, w.frames + 1

    def _paint(self, worn: Sequence[Worn], crops: Tensor, landmarks: Tensor) -> None:
        """Bring the textures up to date: optimised ones are made once, at a face's first frame."""
        todo = [i for i, w in enumerate(worn) if w.texture is None or not self.masker.method.optimises]
        if not todo:
            return
        bank = torch.cat([worn[i].bank for i in todo])
        with contract.naming([self.name] * len(todo)):
            made = self.masker.method.apply(crops[todo], landmarks[todo], bank).textures
        if made is None:  # a method that masks nobody
            return
        follow = 1 - math.exp(-1 / (INERTIA * self.rate))
        for i, new in zip(todo, made.detach(), strict=True):
            old = worn[i].texture
            worn[i].texture = new if old is None else torch.lerp(old, new, follow)


def mask_clip(sampler: Sampler, name: str, targets: Targets) -> list[Row]:
    """Write the masked clip and look at what was written; a row per face that is followed, or one that says why not."""
    start = time.perf_counter()
    try:
        with clips.reading(sampler.source / name, name) as clip:
            rows = _mask(sampler, clip, name, targets)
    except UnreadableImage as error:
        return [{"photo": name, "status": "unreadable", "note": error.reason}]
    for row in rows:
        row["seconds"] = round(time.perf_counter() - start, 3)
    return rows


class NoFace(Exception):
    """There is nothing to write."""


def _mask(sampler: Sampler, clip: Clip, name: str, targets: Targets) -> list[Row]:
    rate = float(clip.rate)
    wardrobe = Wardrobe(sampler.masker, name, rate)
    every = max(1, round(rate / MEASURED), math.ceil(clip.frames_told / MOST_MEASURED))
    looks: dict[int, list[Look]] = {}
    keeps = (sampler.source / name).suffix.lower() in clips.KEPT
    target = targets.same if keeps else targets.other
    # The template is chosen per face, and the mark is written first: it names the choice, not its outcome.
    tag = photo_writer.provenance(sampler.method_name, sampler.checkpoint, sampler.masker.template)
    try:
        with clips.writing(sampler.out / target, clip, tag) as writer:
            frames = cli.Progress(clip.read(writer), total=clip.frames_told or None, desc="frames", unit="frame")
            for index, (frame, found) in enumerate(followed(sampler, frames, rate)):
                fresh = [pair for pair in found if pair[0].number not in wardrobe.worn]
                if looked_at := found if index % every == 0 else fresh:
                    looks[index] = look(sampler, frame, name, looked_at)
                wardrobe.wear(frame, found)
                writer.add(frame)
            if not wardrobe.worn:
                raise NoFace
    except NoFace:
        return [{"photo": name, "status": "no face"}]
    rows = [
        {
            "photo": name, "status": "ok", "written": target, "face": number, "template": worn.template,
            "start": round(worn.first, 3), "end": round(worn.last, 3), "frames": worn.frames,
            "note": ", ".join(filter(None, ("" if keeps else "written as Matroska", worn.note))),
        }
        for number, worn in sorted(wardrobe.worn.items())
    ]  # fmt: skip
    score(sampler, rows, looks)
    return rows


def followed(
    sampler: Sampler, frames: Iterable[Frame], rate: float
) -> Iterator[tuple[Frame, list[tuple[Track, Face]]]]:
    """The frames with the faces in them, some frames late."""
    ahead = min(MOST_AHEAD, max(1, round(AHEAD * rate)))
    tracker = Tracker(ahead, min(ahead, max(1, round(REACH * rate))))
    waiting: deque[tuple[int, Frame]] = deque()
    for index, frame in enumerate(frames):
        faces = sampler.finder.find([frame.image])[0]
        tracker.add(index, faces)
        waiting.append((index, frame))
        if len(waiting) > ahead:
            number, ready = waiting.popleft()
            yield ready, chosen(sampler, tracker.at(number))
    for number, ready in waiting:
        yield ready, chosen(sampler, tracker.at(number))


def chosen(sampler: Sampler, found: list[tuple[Track, Face]]) -> list[tuple[Track, Face]]:
    return found[:1] if sampler.largest else found


def look(sampler: Sampler, frame: Frame, name: str, found: Sequence[tuple[Track, Face]]) -> list[Look]:
    """What the networks make of the clean faces."""
    crops = [align(frame.image, face.landmarks, *FRAMING) for _, face in found]
    embeddings, logits = sampler.measure(crops, [name] * len(found))
    return [
        Look(
            track.number, face, frame.time,
            {key: values[i] for key, values in embeddings.items()},
            {key: float(values[i]) for key, values in logits.items()},
        )
        for i, (track, face) in enumerate(found)
    ]  # fmt: skip


def score(sampler: Sampler, rows: Sequence[Row], looks: dict[int, list[Look]]) -> None:
    """Complete the rows with what the networks make of the file: medians over the frames that were looked at."""
    clean = {row["face"]: [one for many in looks.values() for one in many if one.track == row["face"]] for row in rows}
    for row in rows:
        largest = max(clean[row["face"]], key=lambda one: one.face.area)
        row["box"], row["at"] = " ".join(f"{edge:.1f}" for edge in largest.face.box), round(largest.time, 3)
    if not sampler.measures:
        return
    after: dict[int, list[Row | None]] = {row["face"]: [] for row in rows}
    with clips.reading(sampler.out / rows[0]["written"]) as written:
        for index, frame in enumerate(written.read()):
            if index in looks:
                for one, seen in zip(looks[index], _again(sampler, frame, looks[index]), strict=True):
                    after[one.track].append(seen)
    for row in rows:
        again = [seen for seen in after[row["face"]] if seen is not None]
        row["face_found_after"] = round(len(again) / max(1, len(after[row["face"]])), 3)
        for key in sampler.detectors:
            before = [one.logits[key] for one in clean[row["face"]]]
            row[f"mask_logit_before_{key}"] = round(float(np.median(before)), 4)
        for key in again[0] if again else ():
            row[key] = round(float(np.median([seen[key] for seen in again])), 5)


def _again(sampler: Sampler, frame: Frame, looks: Sequence[Look]) -> list[Row | None]:
    """Of each clean face: similarity, threshold and mask logit in the frame as written; None where it is lost."""
    (found,) = find_again(sampler, [frame.image], [[one.face for one in looks]])
    there = [align(frame.image, face.landmarks, *FRAMING) for face in found if face is not None]
    rows: list[Row | None] = [None] * len(looks)
    if not there:
        return rows
    embeddings, logits = sampler.measure(there, ["the written clip"] * len(there))
    for place, i in enumerate(i for i, face in enumerate(found) if face is not None):
        row: Row = {}
        for key, values in embeddings.items():
            row[f"similarity_{key}"] = float(values[place] @ looks[i].embeddings[key])
            row[f"threshold_{key}"] = sampler.embedders[key].threshold(FAR)
        rows[i] = row | {f"mask_logit_after_{key}": float(values[place]) for key, values in logits.items()}
    return rows
