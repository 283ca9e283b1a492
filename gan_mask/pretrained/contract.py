"""What every network must answer. Checked once when it is loaded; that answers are finite, at every call.

One row of answers per picture, independent of its batch, different for different pictures, never NaN or infinity.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gan_mask.errors import GanMaskError

ASSETS = Path(__file__).parent.parent / "assets"
FACES = ("id_0001/view_1", "id_0002/view_1")


class NotFinite(GanMaskError):
    """A network answered NaN or infinity for `rows` of a batch."""

    def __init__(self, network: str, rows: Sequence[int], photos: Sequence[str] = ()) -> None:
        self.network, self.rows = network, rows
        named = [photos[row] for row in rows] if photos else [f"row {row} of a batch" for row in rows]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        super().__init__(
            f"{network}: answers NaN or infinity for {', '.join(named[:3])}{more}; "
            "its weights are damaged, or it is shown pictures in another way than it expects (see its sidecar)"
        )


@contextmanager
def naming(photos: Sequence[str]) -> Iterator[None]:
    """Inside of it, NotFinite names the photos of a batch in place of its rows."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(error.network, error.rows, photos) from None


def sources(faces: Any, index: Iterable[Any]) -> list[str]:
    """What to call faces of a data set: their photos where it knows them (PreparedSet), else their numbers."""
    name_of = getattr(faces, "source", "face {}".format)
    return [name_of(int(i)) for i in index]


def watch(network: nn.Module, name: str) -> None:
    """From now on every answer that is not finite raises NotFinite.

    Not where a gradient is wanted on a GPU, which one would have to wait for: training and the optimised attacks check
    at their losses.
    """

    def refuse(module: nn.Module, arguments: Any, output: Any) -> None:
        answers = output if isinstance(output, tuple) else (output,)
        if any(answer.is_cuda and answer.requires_grad for answer in answers):
            return
        rows = [i for i, good in enumerate(_finite(answers)) if not good]
        if rows:
            raise NotFinite(name, rows)

    network.register_forward_hook(refuse)


def _finite(answers: Sequence[Tensor]) -> list[bool]:
    """Per row, whether all of its answers are finite."""
    good = [a.detach().isfinite().reshape(len(a), a[:1].numel()).all(1) for a in answers]
    return torch.stack(good).all(0).tolist()


@torch.no_grad()
def check(network: nn.Module, name: str, embeds: bool) -> None:
    """Raises GanMaskError unless `network` answers three pictures as an embedder (or as a detector) should."""
    pictures, landmarks = _pictures()
    answers = _ask(network, name, pictures, landmarks, embeds)
    shapes = [list(a.shape) for a in answers]
    due = [[3, max(2, shapes[0][-1])]] if embeds else [[3], [3]]
    if shapes != due or not all(a.is_floating_point() for a in answers):
        kind = "one embedding (3, D)" if embeds else "two logits (3,) each"
        raise GanMaskError(f"{name}: {kind} expected for three pictures, found {shapes} of {answers[0].dtype}")
    if all(torch.equal(a, a[:1].expand_as(a)) for a in answers):
        raise GanMaskError(f"{name}: answers the same for two faces and for noise; its weights are damaged")
    alone = _ask(network, name, pictures[:1], landmarks[:1], embeds)
    for one, row in zip(alone, answers, strict=True):
        if not torch.allclose(one, row[:1], rtol=1e-2, atol=1e-2 * float(row.abs().max())):
            raise GanMaskError(f"{name}: answers otherwise for a picture alone than in a batch of three")


def _ask(network: nn.Module, name: str, pictures: Tensor, landmarks: Tensor, embeds: bool) -> tuple[Tensor, ...]:
    try:
        with naming(["the first synthetic face of gan_mask", "the second", "noise"]):
            output = network(pictures, landmarks) if embeds else network(pictures)
    except GanMaskError:
        raise
    except Exception as error:  # whatever an operation says about a shape that it was not made for
        raise GanMaskError(f"{name}: does not take {len(pictures)} pictures at once ({error})") from error
    return output if isinstance(output, tuple) else (output,)


def _pictures() -> tuple[Tensor, Tensor]:
    """Two embedded faces and noise (3, 3, 128, 128) in [0, 1], and landmarks (3, 68, 2)."""
    with (
        zipfile.ZipFile(ASSETS / "synthfaces.zip") as archive,
        np.load(ASSETS / "synthfaces_landmarks.npz", allow_pickle=False) as file,
    ):
        names = [f"synthfaces/{face}.webp" for face in FACES]
        points = dict(zip(file["names"].tolist(), file["landmarks68"], strict=True))
        faces = []
        for name in names:
            with archive.open(name) as data, Image.open(data) as image:
                faces.append(np.asarray(image.convert("RGB"), np.float32) / 255)
    noise = np.random.default_rng(0).random(faces[0].shape, np.float32)
    landmarks = np.stack([points[names[0]], points[names[1]], points[names[0]]])
    return torch.from_numpy(np.stack([*faces, noise])).permute(0, 3, 1, 2), torch.from_numpy(landmarks)
