"""The geometry of a worn mask: canonical mask space, `unwrap` (image to mask), `wear` (mask to image), `seamless`.

The first two are piecewise affine over one Delaunay triangulation of 35 mask landmarks (jaw, nose, mouth),
as in DM, "Masked Faces with Faced Masks" (arXiv 2201.06427). Everything is batched and
differentiable in images, textures and landmarks; there is no loop over faces or triangles, and
memory grows with the box around the batch's masks, whatever the number of triangles.

There are two ways to put a texture on (PLACEMENTS): as it is, as in the paper, or seamlessly, cloned into the
wearer's own face.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import cloning, raster
from gan_mask.constants import constant
from gan_mask.errors import GanMaskError
from gan_mask.landmarks import MEAN_FACE

TEXTURE = (72, 96)  # height, width of canonical mask space: about one texel per pixel of a 160 px LFW crop

PLACEMENTS = ("paper", "seamless")
PlacementName = Literal["paper", "seamless"]

# Of seamless placement. Lengths are fractions of the mask's width: the jaw's landmarks lie on the face's outline and
# are off by a few per cent, so the seam keeps away from what is behind the face.
SEAM_INSET = 0.05
SEAM_FADE = 0.06  # from the seam inwards
SEAM_POINTS = 96
SEAM_BLUR = 1.75  # texels at 72 x 96: a single odd texel at the seam must not colour a whole cheek
SEAM_NEIGHBOURS = 3  # places along the seam that are averaged

# Jaw from ear to ear, nose from its bridge down, outer lips. The inner lips are left out: they
# coincide on a closed mouth.
MASK_PARTS = (range(1, 16), range(28, 36), range(48, 60))
MASK_LANDMARKS = tuple(index for part in MASK_PARTS for index in part)
BOUNDARY = tuple(range(16))  # into MASK_LANDMARKS: jaw, then the nose bridge; a convex polygon
LIPS = slice(23, 35)  # of MASK_LANDMARKS

# scipy.spatial.Delaunay of CANONICAL in ascending order, as the tests make it. A constant: training needs no SciPy, and
# what a checkpoint means must not change with a library.
TRIANGLES = torch.tensor([
    (0, 1, 18), (0, 15, 16), (0, 16, 18), (1, 2, 18), (2, 3, 23), (2, 18, 23), (3, 4, 23), (4, 5, 34),
    (4, 23, 34), (5, 6, 33), (5, 33, 34), (6, 7, 32), (6, 32, 33), (7, 8, 32), (8, 9, 31), (8, 31, 32),
    (9, 10, 30), (9, 30, 31), (10, 11, 29), (10, 29, 30), (11, 12, 29), (12, 13, 22), (12, 22, 29), (13, 14, 22),
    (14, 15, 16), (14, 16, 22), (16, 17, 18), (16, 17, 22), (17, 18, 19), (17, 19, 20), (17, 20, 21), (17, 21, 22),
    (18, 19, 24), (18, 23, 24), (19, 20, 25), (19, 24, 25), (20, 21, 27), (20, 25, 26), (20, 26, 27), (21, 22, 28),
    (21, 27, 28), (22, 28, 29), (23, 24, 34), (24, 25, 34), (25, 26, 34), (26, 27, 30), (26, 30, 31), (26, 31, 32),
    (26, 32, 33), (26, 33, 34), (27, 28, 30), (28, 29, 30),
])  # fmt: skip


def _canonical() -> Tensor:
    """The mean face's mask landmarks, filling [0, 1]^2 but for a border that keeps bilinear taps inside."""
    points = MEAN_FACE[list(MASK_LANDMARKS)]
    low, high = points.amin(0), points.amax(0)
    return 0.03 + 0.94 * (points - low) / (high - low)


CANONICAL = _canonical()  # (35, 2): u to the right, v down


class Placement(NamedTuple):
    """Where masks lie in images of one size: texture coordinates of the pixels in a box around the batch's masks."""

    grid: Tensor  # (B, h, w, 2) coordinates in grid_sample's [-1, 1]; NOWHERE where no mask is
    corner: tuple[int, int]  # y, x of the box' first pixel
    size: tuple[int, int]  # H, W of the images


ROUNDING = 0.01  # by which colours may be outside of [0, 1]: resampling and half precision are not exact

NOWHERE = -2.0  # left of canonical space; sampled there, its corner answers, where every mask has faded out


def region(landmarks: Tensor | Placement, height: int, width: int, softness: float = 0.0) -> Tensor:
    """Where the mask lies: (B, 68, 2) landmarks -> (B, 1, H, W) in [0, 1], 0 outside.

    softness: width of the inward fade at the edge, as a fraction of the mask's width; 0 is a hard edge.
    """
    placement = _placement(landmarks, height, width)
    canvas = placement.grid.new_zeros(len(placement.grid), 1, height, width)
    _box(canvas, placement).copy_(_opacity(placement.grid, softness))
    return canvas


def unwrap(image: Tensor, landmarks: Tensor, texture_size: tuple[int, int] = TEXTURE) -> Tensor:
    """Image to canonical mask space: (B, C, H, W), (B, 68, 2) px -> (B, C, h, w).

    Landmarks may lie outside the image; its border is repeated there. Texels outside the mask's
    polygon repeat the polygon's edge. Computed in float32, or in float64 for float64 images.
    GanMaskError unless the image is of floating-point colours in [0, 1].
    """
    _check(image, landmarks)
    with torch.autocast(image.device.type, enabled=False):
        image = _full_precision(image)
        # One product of matrices for the whole batch; in double precision, which no TF32 setting touches.
        points = _normalised(mask_points(landmarks).double(), *image.shape[2:]).transpose(1, 2)  # (B, 2, 35)
        grid = (points.flatten(0, 1) @ _texels(*texture_size, points.device).T).view(len(image), 2, *texture_size)
        return _sample(image, grid.permute(0, 2, 3, 1).to(image.dtype))


def place(landmarks: Tensor, height: int, width: int, device: torch.device | None = None) -> Placement:
    """Find the pixels under each mask, once; `wear` and `region` take the result in place of landmarks.

    landmarks (B, 68, 2) px. Degenerate triangles (profile faces, coinciding landmarks) cover nothing;
    where folded triangles overlap, the first in TRIANGLES wins.
    device: where the placement is wanted, if not where the landmarks are. Its size is asked of the landmarks' device:
    of landmarks on the CPU nobody waits for a GPU.
    """
    with torch.autocast(landmarks.device.type, enabled=False):
        points = mask_points(_full_precision(landmarks))
        top, left, bottom, right = box = _bounds(points, height, width)
        number = raster.first_triangle(points, TRIANGLES, box, device)
        points = points.to(number.device, non_blocking=True)
        maps = _texture_maps(points)  # (3, B, T + 1, 2)
        number += (maps.shape[2] * torch.arange(len(points), device=points.device))[:, None, None]
        pairs = torch.view_as_complex(maps).flatten(1)  # looked up as u + iv: twice as fast as pairs
        m_x, m_y, shift = (part.index_select(0, number.flatten()).view_as(number) for part in pairs)
        x = torch.arange(left, right, device=points.device)
        y = torch.arange(top, bottom, device=points.device)[:, None]
        return Placement(torch.view_as_real(m_x * x + m_y * y + shift), (top, left), (height, width))


def wear(
    face: Tensor,
    landmarks: Tensor | Placement,
    texture: Tensor,
    softness: float = 0.0,
    own: Tensor | None = None,
) -> Tensor:
    """Put the mask on: face (B, C, H, W), landmarks (B, 68, 2) px, texture (B, C, h, w) -> (B, C, H, W).

    Differentiable in all three. Outside the region the result equals `face` bit for bit and has its dtype.
    softness: as in `region`.
    own: the wearer's own texture (`unwrap`). With it the face changes by the difference between the two instead of
    being covered: it stays as it is where they agree, and detail too fine for a texture stays everywhere. In [0, 1].
    GanMaskError unless both pictures are of floating-point colours in [0, 1]; with `own` the texture may lie outside.
    """
    if isinstance(landmarks, Tensor):
        _check(face, landmarks)
    check_pictures(texture, "texture", values=own is None and isinstance(landmarks, Tensor) and _unhurried(texture))
    return lay(face, landmarks, texture, softness, own)


def lay(
    face: Tensor, landmarks: Tensor | Placement, texture: Tensor, softness: float = 0.0, own: Tensor | None = None
) -> Tensor:
    """`wear` for layers of any values, such as differences of colours."""
    if texture.shape[:2] != face.shape[:2]:
        raise GanMaskError(f"texture {tuple(texture.shape)} and face {tuple(face.shape)} differ in batch or channels")
    placement = _placement(landmarks, *face.shape[2:])
    with torch.autocast(face.device.type, enabled=False):
        bare = _full_precision(_box(face, placement))
        grid = placement.grid.to(bare.dtype)
        texture, opacity = _full_precision(texture).to(bare.dtype), _opacity(grid, softness)
        if own is None:
            worn = torch.lerp(bare, _sample(texture, grid), opacity)
        else:
            change = _sample(texture - _full_precision(own).to(bare.dtype), grid)
            worn = torch.addcmul(bare, opacity, change).clamp_(0, 1)
        result = face.clone()
        _box(result, placement).copy_(worn)
        return result


def seamless(texture: Tensor, own: Tensor) -> Tensor:
    """Clone a texture into the wearer's own: both (B, C, h, w) -> (B, C, h, w), not clamped, float32 or float64.

    t + M (o - t) at the seam, with M the mean value coordinates of each texel (Farbman et al. 2009), fading into `own`
    towards the seam and equal to it outside. Linear and differentiable in both. The wearer's own texture comes back
    as it is, and what is constant or affine in a texture (its overall colour, light from one side) has no effect.
    """
    if texture.shape != own.shape:
        raise GanMaskError(f"texture {tuple(texture.shape)} and own texture {tuple(own.shape)} differ")
    with torch.autocast(texture.device.type, enabled=False):
        texture = _full_precision(texture)
        own = _full_precision(own).to(texture.dtype)
        gather, spread, opacity = _seam(*texture.shape[2:], texture.dtype, texture.device)
        lacking = own - texture
        membrane = (lacking.flatten(2) @ gather @ spread).view_as(texture)
        return torch.addcmul(own, opacity, membrane - lacking)


def structure(texture: Tensor) -> Tensor:
    """What seamless placement keeps of a texture (B, C, h, w): 0 from the seam outwards, blind to affine changes.

    seamless(t, o) = o + structure(t) - structure(o).
    """
    return seamless(texture, torch.zeros_like(texture))


def seam_opacity(like: Tensor) -> Tensor:
    """Opacity of seamless placement at the size of texture `like` (B, C, h, w): (h, w), 0 from the seam outwards."""
    return _seam(like.shape[2], like.shape[3], like.dtype, like.device)[2]


def lips(like: Tensor) -> Tensor:
    """(h, w): 1 where textures (..., h, w) have the mouth or, as landmarks are not exact, a narrow strip beside it."""
    return _lips(*like.shape[-2:], like.dtype, like.device)


def put_on(
    face: Tensor,
    landmarks: Tensor,
    texture: Tensor,
    placement: PlacementName,
    softness: float = 0.0,
    pixels: Placement | None = None,
) -> Tensor:
    """The masked face, by either placement: arguments and result as in `wear`, in [0, 1].

    "paper": the texture covers the face, fading by `softness` at its edge, as in DM.
    "seamless": cloned into the wearer's own texture, whose fine detail stays; the texture's colours may leave [0, 1].
    pixels: where the masks lie, if the caller knows it already (`place`).
    """
    where = landmarks if pixels is None else pixels
    if placement == "paper":
        return wear(face, where, texture, softness)
    own = unwrap(face, landmarks, (texture.shape[2], texture.shape[3]))
    return wear(face, where, seamless(texture, own), own=own)


def _placement(landmarks: Tensor | Placement, height: int, width: int) -> Placement:
    if isinstance(landmarks, Tensor):
        return place(landmarks, height, width)
    if landmarks.size != (height, width):
        raise GanMaskError(f"placement is for images of {landmarks.size}, got {(height, width)}")
    return landmarks


def _check(image: Tensor, landmarks: Tensor) -> None:
    if image.ndim != 4 or landmarks.shape != (len(image), 68, 2):
        raise GanMaskError(
            "expected image (B, C, H, W) and landmarks (B, 68, 2), "
            f"got {tuple(image.shape)} and {tuple(landmarks.shape)}"
        )
    check_pictures(image, "image", values=_unhurried(image))


def _unhurried(images: Tensor) -> bool:
    """Whether reading the values costs nothing: a training step on a GPU must not wait for it."""
    return images.device.type == "cpu" or not torch.is_grad_enabled()


def check_pictures(images: Tensor, what: str, values: bool = False) -> None:
    """GanMaskError unless these are floating-point colours; with `values`, which waits for a GPU, in [0, 1]."""
    if not images.is_floating_point():
        raise GanMaskError(f"{what}: expected floating-point colours in [0, 1], got {images.dtype}; divide by 255")
    if values and images.numel():
        low, high = (float(edge) for edge in images.detach().aminmax())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN, too
            raise GanMaskError(f"{what}: expected colours in [0, 1], got {low:.4g} to {high:.4g}")


def _full_precision(x: Tensor) -> Tensor:
    """float32 at least: half-precision coordinates are off by whole pixels."""
    return x if x.dtype == torch.float64 else x.float()


def mask_points(landmarks: Tensor) -> Tensor:
    """The MASK_LANDMARKS (B, 35, 2) of landmarks (B, 68, 2)."""
    # Slices, since PyTorch waits for a GPU before it takes a list as an index.
    return torch.cat([landmarks[:, part.start : part.stop] for part in MASK_PARTS], 1)


def _normalised(position: Tensor, height: int, width: int) -> Tensor:
    """Pixel-centre coordinates to grid_sample's (align_corners=False)."""
    return (2 * position + 1) / constant([width, height], position) - 1


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    """Bilinear: (B, C, H, W) at (B, h, w, 2) -> (B, C, h, w)."""
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _box(image: Tensor, placement: Placement) -> Tensor:
    """The placement's box as a view of (B, C, H, W)."""
    (top, left), (height, width) = placement.corner, placement.grid.shape[1:3]
    return image[..., top : top + height, left : left + width]


def _opacity(grid: Tensor, softness: float) -> Tensor:
    """Of the mask at texture coordinates: (B, h, w, 2) -> (B, 1, h, w) in [0, 1]."""
    if softness:
        return _sample(_fade(softness, grid.dtype, grid.device).expand(len(grid), -1, -1, -1), grid)
    return (grid[None, ..., 0] > NOWHERE).to(grid).transpose(0, 1)


def _bounds(points: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """A box around all masks, within the image and of one pixel at least: top, left, bottom, right."""
    if not len(points):
        return 0, 0, 1, 1
    extremes = torch.cat([points.amin((0, 1)), points.amax((0, 1))]).tolist()
    if not all(map(math.isfinite, extremes)):
        raise GanMaskError("landmarks contain NaN or infinite values")
    left, top = (
        min(max(math.floor(low), 0), most - 1) for low, most in zip(extremes[:2], (width, height), strict=True)
    )
    right, bottom = (min(max(math.ceil(x), -1), m - 1) for x, m in zip(extremes[2:], (width, height), strict=True))
    return top, left, max(bottom, top) + 1, max(right, left) + 1


def _texture_maps(points: Tensor) -> Tensor:
    """Affine maps from image to texture, uv = m_x x + m_y y + shift: (B, 35, 2) -> the three, (3, B, T + 1, 2).

    In grid_sample's coordinates, differentiable in points; after those of the triangles the map to NOWHERE.
    """
    triangles = TRIANGLES.to(points.device, non_blocking=True)
    corners = points.double()[:, triangles].permute(3, 2, 0, 1)  # (2, 3, B, T)
    area = raster.twice_area(corners)
    area = torch.where(raster.solid(area), area, 1.0)[..., None]
    (ax, bx, cx), (ay, by, cy) = corners[..., None]
    a, b, c = (2 * constant(CANONICAL, corners) - 1)[triangles].unbind(1)  # (T, 2)
    m_x = ((b - a) * (cy - ay) - (c - a) * (by - ay)) / area
    m_y = ((c - a) * (bx - ax) - (b - a) * (cx - ax)) / area
    maps = torch.stack([m_x, m_y, a - m_x * ax - m_y * ay])
    nowhere = constant([0.0, 0.0, NOWHERE], maps).view(3, 1, 1, 1).expand(-1, len(points), -1, 2)
    return torch.cat([maps, nowhere], 2).to(points.dtype)


def _barycentric(texel: Tensor, corners: Tensor) -> Tensor:
    """Weights (T, P, 3) of points (P, 2) in triangles (T, 3, 2)."""
    a, b, c = corners[:, None].unbind(2)
    area = _cross(b - a, c - a)
    return torch.stack(
        [_cross(c - b, texel - b) / area, _cross(a - c, texel - c) / area, _cross(b - a, texel - a) / area], -1
    )


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


@lru_cache(maxsize=8)
def _lips(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (_texels(height, width, device)[:, LIPS].sum(1) > 0.85).view(height, width).to(dtype)


def _texel_centres(height: int, width: int) -> Tensor:
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([u, v], -1).flatten(0, 1)


def _nearest_on_boundary(texel: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest points of the polygon's edge to points (P, 2), and their distances."""
    start = CANONICAL[list(BOUNDARY)]
    along = start.roll(-1, 0) - start
    step = (((texel[:, None] - start) * along).sum(-1) / (along**2).sum(-1)).clamp(0, 1)
    nearest = start + step[..., None] * along
    distance = (nearest - texel[:, None]).norm(dim=-1)
    best = distance.argmin(1)
    rows = torch.arange(len(texel))
    return nearest[rows, best], distance[rows, best]


def _inside(texel: Tensor) -> Tensor:
    start = CANONICAL[list(BOUNDARY)]
    side = _cross(start.roll(-1, 0) - start, texel[:, None] - start)
    return (side >= 0).all(1) | (side <= 0).all(1)


@lru_cache(maxsize=8)
def _texels(height: int, width: int, device: torch.device) -> Tensor:
    """How each texel's place is a mean of the landmarks: weights (h*w, 35), three of them above 0 in each row.

    In double precision.
    """
    texel = _texel_centres(height, width)
    texel = torch.where(_inside(texel)[:, None], texel, _nearest_on_boundary(texel)[0])
    weights = _barycentric(texel, CANONICAL[TRIANGLES])  # (T, h*w, 3)
    triangle = weights.amin(-1).argmax(0)
    weights = weights[triangle, torch.arange(len(texel))].clamp_min(0)
    weights = torch.zeros(len(texel), len(CANONICAL)).scatter(1, TRIANGLES[triangle], F.normalize(weights, p=1, dim=1))
    return weights.to(device, torch.float64)


@lru_cache(maxsize=8)
def _fade(softness: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Opacity in canonical space, (1, 1, 2h, 2w): 0 at the polygon's edge, 1 from `softness` mask widths inwards."""
    if not 0 < softness < 0.5:
        raise GanMaskError(f"softness {softness} is outside (0, 0.5): it is a fraction of the mask's width")
    height, width = 2 * TEXTURE[0], 2 * TEXTURE[1]
    texel = _texel_centres(height, width)
    depth = _nearest_on_boundary(texel)[1] * _inside(texel)
    return (depth / softness).clamp(0, 1).view(1, 1, height, width).to(device, dtype)


@lru_cache(maxsize=8)
def _seam(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of seamless placement: texels to seam (h*w, N), seam to texels (N, h*w), opacity (h, w)."""
    size = torch.tensor([width, height], dtype=torch.float64)
    polygon = cloning.inset(CANONICAL[list(BOUNDARY)].double() * size, SEAM_INSET * width)
    edge = cloning.evenly(polygon, SEAM_POINTS)
    texels = _texel_centres(height, width).double() * size
    depth = cloning.depth_in(polygon, texels)
    inside = depth > 1e-6
    spread = torch.zeros(len(texels), SEAM_POINTS, dtype=torch.float64)  # 0 outside, where nothing is cloned
    spread[inside] = cloning.mean_values(texels[inside], edge)
    blur = SEAM_BLUR * max(height / TEXTURE[0], 0.5)
    gather = cloning.edge_averages(texels, edge, blur, SEAM_NEIGHBOURS)
    opacity = (depth / (SEAM_FADE * width)).clamp(0, 1).view(height, width)
    return gather.T.contiguous().to(device, dtype), spread.T.contiguous().to(device, dtype), opacity.to(device, dtype)
