"""Whose face is whose from frame to frame of a clip, and where exactly: landmarks without the detector's tremble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gan_mask.faces import Face, overlaps

OVERLAP = 0.3  # IoU of boxes from which on a face is that of the frame before
SEEN = 3  # times within `ahead` frames that a face must be found, or it may be a flash of something else


@dataclass(eq=False)
class Track:
    """A face through the frames."""

    number: int  # in the order of appearance
    seen: dict[int, Face] = field(default_factory=dict)  # frame -> what was found there; old ones are forgotten

    @property
    def last(self) -> int:
        return max(self.seen)


class Tracker:
    """Frames are added in order; once `ahead` more of them are in, where the faces of a frame lie can be asked.

    ahead: frames on both sides of one in which a face may be found, so that a face that is missed for a while is not
    lost. reach: frames on both sides over which landmarks are smoothed. Memory does not grow with the clip.
    """

    def __init__(self, ahead: int, reach: int) -> None:
        self.ahead, self.reach = ahead, reach
        self.tracks: list[Track] = []
        self.count = 0  # of all tracks so far
        self.newest = -1

    def add(self, frame: int, faces: Sequence[Face]) -> None:
        """Each face to the track that it overlaps most, or to a new one."""
        self.newest = frame
        self.tracks = [track for track in self.tracks if track.last >= frame - 2 * self.ahead]
        for track in self.tracks:
            track.seen = {i: face for i, face in track.seen.items() if i >= frame - 2 * self.ahead}
        current = [track for track in self.tracks if track.last >= frame - self.ahead]
        before = np.array([track.seen[track.last].box for track in current], np.float32).reshape(-1, 4)
        shares = overlaps(before, np.array([face.box for face in faces], np.float32).reshape(-1, 4))
        pairs = [(share, a, b) for (a, b), share in np.ndenumerate(shares)]
        given: dict[int, Track] = {}
        for share, a, b in sorted(pairs, reverse=True):
            if share >= OVERLAP and b not in given and current[a] not in given.values():
                given[b] = current[a]
        for b, face in enumerate(faces):
            if b not in given:
                given[b] = Track(self.count)
                self.tracks.append(given[b])
                self.count += 1
            given[b].seen[frame] = face

    def at(self, frame: int) -> list[tuple[Track, Face]]:
        """The faces of a frame with smoothed landmarks and box, the largest first."""
        known = range(max(0, frame - self.ahead), min(self.newest, frame + self.ahead) + 1)
        found = []
        for track in self.tracks:
            near = {i: face for i, face in track.seen.items() if i in known}
            before, after = [i for i in near if i <= frame], [i for i in near if i >= frame]
            if before and after and len(near) >= min(SEEN, len(known)):
                reach = max(self.reach, frame - max(before), min(after) - frame)
                found.append((track, smoothed(near, frame, reach)))
        return sorted(found, key=lambda pair: -pair[1].area)


def smoothed(near: dict[int, Face], frame: int, reach: int) -> Face:
    """At `frame`, from the faces of the frames within `reach`: a local polynomial of time (Savitzky and Golay 1964).

    Of second degree where there are enough frames on both sides, so that a turn of the head is followed; missing
    frames leave gaps in the fit, not in the result.
    """
    frames = np.array([i for i in sorted(near) if abs(i - frame) <= reach])
    distance = (frames - frame) / (reach + 1)
    weight = (1 - np.abs(distance) ** 3) ** 3
    degree = min(2 if (frames < frame).sum() >= 2 and (frames > frame).sum() >= 2 else 1, len(frames) - 1)
    powers = distance[:, None] ** np.arange(degree + 1)
    share = np.linalg.pinv(powers * np.sqrt(weight)[:, None])[0] * np.sqrt(weight)  # of each frame in the value here

    def mean(values: list[np.ndarray]) -> np.ndarray:
        return np.tensordot(share, np.stack(values).astype(np.float64), 1).astype(np.float32)

    faces = [near[i] for i in frames]
    nearest = near[min(near, key=lambda i: abs(i - frame))]
    return Face(mean([f.box for f in faces]), nearest.score, mean([f.landmarks for f in faces]), nearest.disagreement)
