"""Pictures that another tool made of the probes, measured like our own methods' (`--methods folder:NAME=DIR`)."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from gan_mask import attacks, files
from gan_mask.data import PreparedSet
from gan_mask.data.folder_or_zip import walk
from gan_mask.errors import GanMaskError
from gan_mask.evaluation.pictures import write_pngs
from gan_mask.faces import Face, align, read_image
from gan_mask.landmarks import points5

PREFIX = "folder:"
RESERVED = (*attacks.METHODS, "clean")  # the last is where OUT/cache keeps clean faces
SHOWN = 3  # names in a message
LANDMARKS = "landmarks.npz"  # beside the probes that are written out
SAME_FRAMING = 0.04  # of the distance between the eyes: masks move the eyes that are found by 0.02 (median on LFW)


@dataclass(frozen=True)
class Folder:
    """What lies in DIR for the probes."""

    name: str
    pictures: list[Path]  # (P,)
    surplus: list[str]  # pictures of nobody among the probes

    def digest(self) -> str:
        """Changes with the content of the pictures that are measured."""
        return files.digest(" ".join(files.sha256(path) for path in self.pictures))

    def read(self, rows: slice) -> list[np.ndarray]:
        """uint8 (H, W, 3) each, of any size."""
        return [read_image(path) for path in self.pictures[rows]]


def parse(method: str) -> tuple[str, str] | None:
    """NAME and DIR of "folder:NAME=DIR"; None for the name of a method. GanMaskError where NAME cannot be one."""
    if not method.startswith(PREFIX):
        return None
    name, equals, path = method.removeprefix(PREFIX).partition("=")
    if not (equals and path and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII)):
        raise GanMaskError(f"--methods {method}: expected folder:NAME=DIR, NAME of letters, digits and . _ -")
    if name in RESERVED:
        raise GanMaskError(f"--methods {method}: {name} has a meaning of its own here; choose another NAME")
    return name, path


def name_of(method: str) -> str:
    """What a method is called in the report: NAME of folder:NAME=DIR."""
    found = parse(method)
    return found[0] if found else method


def names_of(photos: PreparedSet, index: np.ndarray) -> list[str]:
    """What the files of these faces are called: their photos' paths in the set's source, without suffix."""
    names = [_without_suffix(photos.source(int(i))) for i in index]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise GanMaskError(f"{photos.path}: several photos are called {twice}, so no folder can tell them apart")
    return names


def open_folder(name: str, path: str, probes: Sequence[str]) -> Folder:
    """The pictures in `path` for the probes of these names, (P,).

    GanMaskError where one is missing, or there are two: rates over fewer probes could not be compared.
    """
    if not Path(path).is_dir():
        raise GanMaskError(f"--methods folder:{name}={path}: no such folder")

    def fail(error: OSError) -> None:
        raise GanMaskError(f"{error.filename}: cannot be read ({error.strerror})")

    found: dict[str, list[str]] = {}
    for file, _ in walk(Path(path), fail):
        found.setdefault(_without_suffix(file), []).append(file)
    if missing := [probe for probe in probes if probe not in found]:
        there = f"it has pictures such as {min(found)}" if found else "there are no pictures at all"
        raise GanMaskError(
            f"--methods folder:{name}={path}: {len(missing)} of {len(probes)} probes have no picture: "
            f"{some(missing, '.*')}; {there}. Where a tool made none, copy the probe as --save-probes writes it: "
            "untouched, it counts as not dodged"
        )
    if twice := [probe for probe in probes if len(found[probe]) > 1]:
        raise GanMaskError(f"--methods folder:{name}={path}: one probe, two pictures: {some(sorted(found[twice[0]]))}")
    wanted = set(probes)
    surplus = sorted(file for stem, some in found.items() if stem not in wanted for file in some)
    return Folder(name, [Path(path) / found[probe][0] for probe in probes], surplus)


def _without_suffix(path: str) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(path).with_suffix("")))


def some(names: Sequence[str], ending: str = "") -> str:
    """The first few."""
    return ", ".join(f"{name}{ending}" for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


# ------------------------------------------------------------------------------------------- probes, written out


def save_probes(photos: PreparedSet, index: np.ndarray, out: Path) -> None:
    """The faces `index` as OUT/NAME.png, NAME as in the photos' source, and their landmarks as one file.

    OUT/landmarks.npz: `names` (P,) and `landmarks` (P, 68, 2), pixels of the crops. GanMaskError where OUT has
    something else in it, which may be somebody's photos.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / LANDMARKS).is_file():
        raise GanMaskError(f"--save-probes {out}: there is something else in it; name a new folder")
    names = names_of(photos, index)
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(names), landmarks=np.stack([photos.landmarks(int(i)).numpy() for i in index]))
    with files.replacing(out / LANDMARKS) as temporary:  # first: it says whose folder this is
        temporary.write_bytes(buffer.getvalue())
    write_pngs([out / f"{name}.png" for name in names], (photos.faces(int(i)).permute(1, 2, 0).numpy() for i in index))


# ------------------------------------------------------------------------------------------- as probes are framed


def places(images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> np.ndarray:
    """Landmarks (B, 68, 2) of the first face of each picture, as shares of its width and height; NaN without one."""
    result = np.full((len(images), 68, 2), np.nan, np.float32)
    for i, (image, found) in enumerate(zip(images, faces, strict=True)):
        if found:
            result[i] = (found[0].landmarks + 0.5) / (image.shape[1], image.shape[0])
    return result


def write_as_probes(
    folder: Folder, paths: Sequence[Path], marks: np.ndarray, photos: PreparedSet, index: np.ndarray
) -> bool:
    """The pictures at the probes' size and framing, for looks and pages; whether their faces were cut out for it.

    paths (P,): where, as PNG; marks (P, 68, 2) as `places` gives them; index (P,): the probes in `photos`. A picture of
    a probe's size stays as it is, one of another size is resized. If the folder frames faces in another way (its eyes
    lie elsewhere), each face is cut out as `prepare` does it.
    """
    own = np.stack([(photos.landmarks(int(i)).numpy() + 0.5) / photos.size for i in index])
    cut = _distance(marks, own) > SAME_FRAMING
    for i, path in enumerate(paths):
        if not path.is_file():
            image = read_image(folder.pictures[i])
            write_pngs([path], [_as_probe(image, marks[i] if cut else None, photos.size, photos.margin)])
    return cut


def _distance(marks: np.ndarray, own: np.ndarray) -> float:
    """Between the eyes of faces (P, 68, 2) and where they should be, in eye distances: the median; 0 for no faces."""
    found, wanted = (points5(torch.from_numpy(points))[:, :2].numpy() for points in (marks, own))
    apart = np.linalg.norm(found - wanted, axis=2).mean(1) / np.linalg.norm(wanted[:, 1] - wanted[:, 0], axis=1)
    return float(np.median(apart[~np.isnan(apart)])) if not np.isnan(apart).all() else 0.0


def _as_probe(image: np.ndarray, marks: np.ndarray | None, size: int, margin: float) -> np.ndarray:
    """uint8 (size, size, 3): the face at landmarks `marks` (68, 2), shares of the picture, or all of it without any."""
    height, width = image.shape[:2]
    if marks is not None and not np.isnan(marks).any():
        return align(image, marks * (width, height) - 0.5, size, margin)[0]
    if (height, width) == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))
