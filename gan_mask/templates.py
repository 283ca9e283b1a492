"""Templates: what is printed on a mask before the generator changes it, as textures in canonical mask space.

Faces (the lower halves of synthetic people), plain colours and patterned cloth are shipped; any face
photo can be a template, too.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gan_mask import likeness, masking
from gan_mask.augment import Draws
from gan_mask.errors import GanMaskError
from gan_mask.landmarks import flip

ASSETS = Path(__file__).parent / "assets"

# People of the embedded set whose first view is a template. The first 48, whom the basis of adversarial faces is made
# of, too, were chosen by eye: nearly frontal, a closed or gently smiling mouth. The others are of any pose and
# expression: all whose lower face is unobstructed, but for the 38 whom `make demo` evaluates on. An evaluation on the
# embedded set must keep them out of its test people. face-001 is the first.
TEMPLATE_PEOPLE = tuple(
    f"id_{number:04d}"
    for number in (
        3, 7, 9, 11, 16, 17, 22, 27, 29, 31, 45, 51, 65, 67, 75, 81, 84, 95, 96, 97, 103, 104, 105, 111,
        116, 122, 127, 129, 134, 135, 145, 147, 152, 153, 155, 156, 160, 162, 164, 167, 172, 174, 175, 176, 181, 189,
        200, 201,
        6, 8, 10, 12, 14, 15, 18, 19, 20, 21, 24, 26, 28, 30, 33, 34, 37, 38, 39, 40, 42, 43, 46, 47, 48, 49, 50,
        52, 53, 56, 58, 59, 68, 70, 71, 73, 76, 78, 82, 85, 86, 88, 91, 92, 98, 99, 101, 106, 107, 108, 109, 110,
        112, 113, 117, 118, 119, 121, 123, 124, 126, 128, 131, 132, 133, 138, 139, 140, 141, 142, 144, 146, 148,
        149, 150, 154, 157, 161, 163, 165, 168, 169, 170, 171, 173, 177, 178, 179, 180, 183, 184, 186, 187, 191,
        192, 193, 194, 195, 196, 197, 198, 199,
    )
)  # fmt: skip

FACES = tuple(f"face-{index + 1:03d}" for index in range(len(TEMPLATE_PEOPLE)))
MIRRORED = tuple(f"{name}-mirrored" for name in FACES)
PLAIN = {
    "plain-blue": (0.56, 0.74, 0.86),
    "plain-white": (0.90, 0.91, 0.91),
    "plain-black": (0.13, 0.13, 0.15),
    "plain-pink": (0.90, 0.68, 0.73),
}


def groups() -> dict[str, list[str]]:
    """Names of the shipped templates by group: 'faces', 'plain', 'cloth' and 'all'."""
    return {"faces": [*FACES], "plain": [*PLAIN], "cloth": [*CLOTHS], "all": [*FACES, *PLAIN, *CLOTHS]}


def names() -> list[str]:
    """Names of all shipped templates."""
    return groups()["all"]


def load(name: str | Path, texture_size: tuple[int, int] = masking.TEXTURE) -> Tensor:
    """Texture (3, h, w) in [0, 1] of a shipped template, or of the largest face in a photo.

    Raises GanMaskError when `name` is neither, or when the photo shows no face.
    """
    if name in FACES or name in MIRRORED:
        return _faces(texture_size)[0][(*FACES, *MIRRORED).index(str(name))]
    if name in PLAIN:
        return _drawn(lambda u, v: _solid(PLAIN[str(name)], u) * _pleats(v) * _relief(u, v), texture_size)
    if name in CLOTHS:
        return _drawn(lambda u, v: CLOTHS[str(name)](u, v) * _relief(u, v), texture_size)
    if not Path(name).is_file():
        raise GanMaskError(f"template {str(name)!r} is neither a photo nor a shipped template ({_known()})")
    return _from_photo(str(name), os.stat(name).st_mtime_ns, texture_size)


def expand(which: str | Sequence[str | Path]) -> list[str]:
    """Names, groups and photos (one or a list) -> names and photos: each group replaced by its templates."""
    known = groups()
    items: Sequence[str | Path] = [which] if isinstance(which, str) else which
    chosen = [name for item in items for name in known.get(str(item), [str(item)])]
    if not chosen:
        raise GanMaskError(f"no template given; {_known()}")
    return chosen


def load_all(which: str | Sequence[str | Path], texture_size: tuple[int, int] = masking.TEXTURE) -> Tensor:
    """Textures (N, 3, h, w) of what `expand` makes of `which`."""
    return torch.stack([load(name, texture_size) for name in expand(which)])


class Bank:
    """The templates that training draws from.

    which: as in `load_all`; or "match": for each wearer one of the few shipped faces that suit best (`likeness.costs`).
    """

    FEW = 6

    def __init__(
        self, which: str | Sequence[str], texture_size: tuple[int, int], device: str | torch.device = "cpu"
    ) -> None:
        self.match = list(which) == ["match"] or which == "match"
        names = [*FACES, *MIRRORED] if self.match else which
        self.textures = load_all(names, texture_size).to(device)  # (T, 3, h, w)

    def draw(self, faces: Tensor, landmarks: Tensor, draws: Draws) -> Tensor:
        """A random one for each of faces (B, 3, H, W) with landmarks (B, 68, 2) px: (B, 3, h, w)."""
        if not self.match:
            return self.textures[draws.integers(len(self.textures))]
        order = _costs(faces, landmarks).argsort(1)
        return self.textures[order.gather(1, draws.integers(self.FEW)[:, None].to(order.device))[:, 0]]

    def suited(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        """The same every time: the best one for each, or all in turn. (B, 3, h, w)"""
        if not self.match:
            return self.textures[torch.arange(len(faces)) % len(self.textures)]
        return self.textures[_costs(faces, landmarks).argmin(1)]


def best(faces: Tensor, landmarks: Tensor, among: Sequence[str] = FACES) -> list[str]:
    """The shipped face, or its mirror image, that suits each wearer best (`likeness.costs`): names (B,).

    faces (B, 3, H, W) in [0, 1] and landmarks (B, 68, 2) px of the unmasked wearers. Nobody wears their own face.
    among: FACES to choose from, two at least.
    """
    costs = _costs(faces, landmarks)
    left_out = torch.tensor([name not in among for name in FACES] * 2, device=costs.device)
    return [(*FACES, *MIRRORED)[i] for i in costs.masked_fill(left_out, torch.inf).argmin(1).tolist()]


def _costs(faces: Tensor, landmarks: Tensor) -> Tensor:
    """Of FACES and MIRRORED, (B, 2 N)."""
    wearers = likeness.profile(masking.unwrap(faces.float(), landmarks), landmarks)
    costs = likeness.costs(wearers, _profile(faces.device))
    wearer = torch.isinf(costs).view(len(costs), 2, -1).any(1)  # then the mirror image is the wearer, too
    return costs.masked_fill(wearer.repeat(1, 2), torch.inf)


def harmonise(textures: Tensor, faces: Tensor, landmarks: Tensor) -> Tensor:
    """Give templates (B, 3, h, w) the colours of the wearers' lower faces: mean and spread per channel.

    After Reinhard et al. (2001), in RGB and over the whole mask; the spread changes by a factor of 1.5 at most.
    """
    own = masking.unwrap(faces, landmarks, (textures.shape[2], textures.shape[3]))
    dims = (2, 3)
    spread = own.std(dims, keepdim=True) / textures.std(dims, keepdim=True).clamp_min(1e-3)
    centred = textures - textures.mean(dims, keepdim=True)
    return (centred * spread.clamp(2 / 3, 3 / 2) + own.mean(dims, keepdim=True)).clamp(0, 1)


def _known() -> str:
    return f"shipped: {FACES[0]} to {FACES[-1]}, {', '.join([*PLAIN, *CLOTHS])}; groups: {', '.join(groups())}"


@lru_cache(maxsize=1)
def _people() -> tuple[Tensor, Tensor]:
    """First views of TEMPLATE_PEOPLE (N, 3, 128, 128) in [0, 1] and their landmarks (N, 68, 2) px."""
    views = [f"synthfaces/{person}/view_1.webp" for person in TEMPLATE_PEOPLE]
    with np.load(ASSETS / "synthfaces_landmarks.npz", allow_pickle=False) as file:
        landmarks = dict(zip(file["names"].tolist(), file["landmarks68"], strict=True))
    with zipfile.ZipFile(ASSETS / "synthfaces.zip") as archive:
        photos = [np.asarray(Image.open(io.BytesIO(archive.read(view))).convert("RGB")) for view in views]
    faces = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
    return faces, torch.from_numpy(np.stack([landmarks[view] for view in views]))


@lru_cache(maxsize=8)
def _faces(texture_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Textures of FACES and MIRRORED (2 N, 3, h, w), and landmarks (2 N, 68, 2)."""
    faces, points = _people()
    faces, points = torch.cat([faces, faces.flip(3)]), torch.cat([points, flip(points, faces.shape[3])])
    return masking.unwrap(faces, points, texture_size), points


@lru_cache(maxsize=2)
def _profile(device: torch.device) -> likeness.Profile:
    return likeness.Profile(*(part.to(device) for part in likeness.profile(*_faces(masking.TEXTURE))))


@lru_cache(maxsize=64)
def _from_photo(path: str, modified: int, texture_size: tuple[int, int]) -> Tensor:
    """Read and searched once. modified: the file's time, so that a changed one is read again."""
    from gan_mask import faces

    photo = faces.read_image(path)
    found = faces.FaceFinder().find([photo])[0]
    if not found:
        raise GanMaskError(f"template {path}: no face found in this photo")
    # One texel per pixel of the crop, as for the standard texture and 160 px, so that unwrapping skips no pixels.
    size = math.ceil(160 * max(texture_size[0] / masking.TEXTURE[0], texture_size[1] / masking.TEXTURE[1]))
    crop, landmarks = faces.align(photo, found[0].landmarks, size)
    image = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255
    return masking.unwrap(image, torch.as_tensor(landmarks)[None], texture_size)[0]


# --- drawn templates; u to the right and v down, both in [0, 1] over canonical mask space ---


def _drawn(paint: Callable[[Tensor, Tensor], Tensor], texture_size: tuple[int, int]) -> Tensor:
    """Paint at four times the size and average: fine patterns do not alias."""
    height, width = 4 * texture_size[0], 4 * texture_size[1]
    v, u = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )  # fmt: skip
    return F.avg_pool2d(paint(u, v)[None], 4)[0].clamp(0, 1)


def _solid(colour: tuple[float, float, float], like: Tensor) -> Tensor:
    return like.new_tensor(colour)[:, None, None].expand(3, *like.shape)


def _relief(u: Tensor, v: Tensor) -> Tensor:
    """Light from above on cloth over a nose and a chin: brightness around 1."""
    round_face = 1.04 - 0.75 * (u - 0.5).abs() ** 2.2 - 0.16 * v
    nose = 0.12 * torch.exp(-(((u - 0.5) / 0.07) ** 2) - ((v - 0.25) / 0.22) ** 2)
    below_nose = -0.10 * torch.exp(-(((u - 0.5) / 0.16) ** 2) - ((v - 0.55) / 0.07) ** 2)
    chin = 0.06 * torch.exp(-(((u - 0.5) / 0.14) ** 2) - ((v - 0.86) / 0.08) ** 2)
    away = (u - 0.5).abs()
    wrinkles = 0.03 * torch.sin(26 * v + 9 * away + 3 * torch.sin(7 * u)) * torch.exp(-(((away - 0.3) / 0.16) ** 2))
    thread = 0.012 * torch.sin(2 * math.pi * 90 * u) * torch.sin(2 * math.pi * 68 * v)
    return round_face + nose + below_nose + chin + wrinkles + thread


def _pleats(v: Tensor) -> Tensor:
    """Three folds across the mask, each a light edge above a shadow."""
    shade = torch.ones_like(v)
    for fold in (0.40, 0.56, 0.72):
        depth = v - fold
        shade = (
            shade + 0.05 * torch.exp(-((depth + 0.02) ** 2) / 2e-4) - 0.16 * torch.exp(-((depth - 0.008) ** 2) / 2e-4)
        )
    return shade


def _mix(where: Tensor, inside: tuple[float, float, float], outside: tuple[float, float, float]) -> Tensor:
    return torch.where(where, _solid(inside, where.float()), _solid(outside, where.float()))


def _checks(u: Tensor, v: Tensor) -> Tensor:
    across, down = (u * 12) % 1 < 0.5, (v * 9) % 1 < 0.5
    red, cream = _solid((0.70, 0.16, 0.18), u), _solid((0.93, 0.89, 0.84), u)
    return torch.lerp(cream, red, (across.float() + down.float()) / 2)  # gingham: half tone where one thread is red


def _stripes(u: Tensor, v: Tensor) -> Tensor:
    return _mix((v * 11 + 0.5 * (u - 0.5) ** 2) % 1 < 0.42, (0.16, 0.24, 0.42), (0.90, 0.90, 0.88))


def _dots(u: Tensor, v: Tensor) -> Tensor:
    row = (v * 10).floor()
    x, y = (u * 13 + 0.5 * (row % 2)) % 1 - 0.5, (v * 10) % 1 - 0.5
    return _mix(x**2 + y**2 < 0.26**2, (0.95, 0.94, 0.90), (0.20, 0.42, 0.40))


def _weave(u: Tensor, v: Tensor) -> Tensor:
    x, y = u * 24, v * 18
    over = ((x.floor() + y.floor()) % 2) == 0  # which thread lies on top
    thread = torch.where(over, (math.pi * (y % 1)).sin(), (math.pi * (x % 1)).sin())
    colour = _mix(over, (0.60, 0.52, 0.42), (0.46, 0.40, 0.34))
    return colour * (0.72 + 0.34 * thread)


CLOTHS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cloth-checks": _checks,
    "cloth-stripes": _stripes,
    "cloth-dots": _dots,
    "cloth-weave": _weave,
}
