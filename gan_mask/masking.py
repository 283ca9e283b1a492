"""The geometry of a worn mask: canonical mask space, `unwrap` (image to mask) and `wear` (mask to image).

Both are piecewise affine over one Delaunay triangulation of 35 mask landmarks (jaw, nose, mouth),
as in DM, "Masked Faces with Faced Masks" (arXiv 2201.06427). Everything is batched and
differentiable in images, textures and landmarks; there is no loop over faces or triangles, and
memory grows with the number of pixels inside the masks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask.errors import GanMaskError
from gan_mask.landmarks import MEAN_FACE

TEXTURE = (72, 96)  # height, width of canonical mask space: about one texel per pixel of a 160 px LFW crop

# Jaw from ear to ear, nose from its bridge down, outer lips. The inner lips are left out: they
# coincide on a closed mouth.
MASK_LANDMARKS = (*range(1, 16), *range(28, 36), *range(48, 60))
BOUNDARY = tuple(range(16))  # into MASK_LANDMARKS: jaw, then the nose bridge; a convex polygon

# scipy.spatial.Delaunay of CANONICAL (asserted by the tests; a constant, so that training needs no SciPy).
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
    """Where masks lie in images of one size: the pixels inside each mask, and their texture coordinates."""

    pixel: Tensor  # (B, N) flat pixel index y * W + x; H * W marks padding
    grid: Tensor  # (B, N, 2) texture coordinates in grid_sample's [-1, 1]
    size: tuple[int, int]  # H, W


def region(landmarks: Tensor | Placement, height: int, width: int, softness: float = 0.0) -> Tensor:
    """Where the mask lies: (B, 68, 2) landmarks -> (B, 1, H, W) in [0, 1], 0 outside.

    softness: width of the inward fade at the edge, as a fraction of the mask's width; 0 is a hard edge.
    """
    placement = _placement(landmarks, height, width)
    batch = placement.pixel.shape[0]
    canvas = placement.grid.new_zeros(batch, 1, height, width)
    values = torch.ones_like(placement.grid[:, None, :, 0])
    if softness:
        values = _sample(_fade(softness).to(values).expand(batch, -1, -1, -1), placement.grid)
    return _scatter(canvas, placement, values)


def unwrap(image: Tensor, landmarks: Tensor, texture_size: tuple[int, int] = TEXTURE) -> Tensor:
    """Image to canonical mask space: (B, C, H, W), (B, 68, 2) px -> (B, C, h, w).

    Landmarks may lie outside the image; its border is repeated there. Texels outside the mask's
    polygon repeat the polygon's edge.
    """
    _check(image, landmarks)
    with torch.autocast(image.device.type, enabled=False):
        image = _full_precision(image)
        corners, weights = _texels(*texture_size)
        points = _mask_points(landmarks).to(image)
        position = (points[:, corners.to(points.device)] * weights.to(points)[..., None]).sum(2)  # (B, h*w, 2)
        texels = _sample(image, _normalised(position, *image.shape[2:]))
        return texels.unflatten(2, texture_size)


def place(landmarks: Tensor, height: int, width: int) -> Placement:
    """Find the pixels under each mask, once; `wear` and `region` take the result in place of landmarks.

    landmarks (B, 68, 2) px. Degenerate triangles (profile faces, coinciding landmarks) cover nothing;
    where folded triangles overlap, the first in TRIANGLES wins.
    """
    with torch.autocast(landmarks.device.type, enabled=False):
        points = _mask_points(_full_precision(landmarks))
        if not torch.isfinite(points).all():
            raise GanMaskError("landmarks contain NaN or infinite values")
        face, triangle, pixel = _rasterise(points.detach(), height, width)
        pixels, triangles = _pad_rows(face, pixel, triangle, len(points), height * width)
        return Placement(pixels, _texture_grid(points, pixels, triangles, height, width), (height, width))


def wear(face: Tensor, landmarks: Tensor | Placement, texture: Tensor, softness: float = 0.0) -> Tensor:
    """Put the mask on: face (B, C, H, W), landmarks (B, 68, 2) px, texture (B, C, h, w) -> (B, C, H, W).

    Differentiable in all three; outside of the region the result equals `face` bit for bit.
    softness: as in `region`.
    """
    if isinstance(landmarks, Tensor):
        _check(face, landmarks)
    if texture.shape[:2] != face.shape[:2]:
        raise GanMaskError(f"texture {tuple(texture.shape)} and face {tuple(face.shape)} differ in batch or channels")
    placement = _placement(landmarks, *face.shape[2:])
    with torch.autocast(face.device.type, enabled=False):
        face, texture = _full_precision(face), _full_precision(texture).to(face.dtype)
        grid = placement.grid.to(face.dtype)
        values = _sample(texture, grid)  # (B, C, N)
        if softness:
            fade = _sample(_fade(softness).to(face).expand(len(face), -1, -1, -1), grid)
            below = face.flatten(2).gather(2, _repeat_channels(placement.pixel.clamp_max(face[0, 0].numel() - 1), face))
            values = below + fade * (values - below)
        return _scatter(face, placement, values)


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


def _full_precision(x: Tensor) -> Tensor:
    """float32 at least: half-precision coordinates are off by whole pixels."""
    return x if x.dtype == torch.float64 else x.float()


def _mask_points(landmarks: Tensor) -> Tensor:
    return landmarks[:, list(MASK_LANDMARKS)]


def _normalised(position: Tensor, height: int, width: int) -> Tensor:
    """Pixel-centre coordinates to grid_sample's (align_corners=False)."""
    return (2 * position + 1) / position.new_tensor([width, height]) - 1


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    """Bilinear: (B, C, H, W) at (B, N, 2) -> (B, C, N)."""
    return F.grid_sample(image, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def _repeat_channels(pixel: Tensor, image: Tensor) -> Tensor:
    return pixel[:, None].expand(-1, image.shape[1], -1)


def _scatter(image: Tensor, placement: Placement, values: Tensor) -> Tensor:
    flat = F.pad(image.flatten(2), (0, 1))  # the extra pixel takes the padding
    flat = flat.scatter(2, _repeat_channels(placement.pixel, image), values)
    return flat[..., :-1].unflatten(2, image.shape[2:])


def _ragged(counts: Tensor) -> tuple[Tensor, Tensor]:
    """counts [2, 0, 3] -> owners [0, 0, 2, 2, 2], positions [0, 1, 0, 1, 2]."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    start = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - start[owner]


def _rasterise(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scanline conversion of all triangles of all faces at once.

    points (B, 35, 2) -> face, triangle, pixel: one entry per covered pixel, sorted by face and pixel.
    """
    reach = 1e-3  # px: a pixel centre on a shared edge belongs to both triangles, so that rounding leaves no hole
    vertices = points[:, TRIANGLES.to(points.device)].flatten(0, 1)  # (B*T, 3, 2)
    (ax, ay), (bx, by), (cx, cy) = (corner.unbind(1) for corner in vertices.unbind(1))
    solid = ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)).abs() > 1e-2  # twice the area, px^2

    top = (vertices[..., 1].amin(1) - reach).ceil().clamp(0, height).long()
    bottom = (vertices[..., 1].amax(1) + reach).floor().clamp(-1, height - 1).long()
    owner, offset = _ragged(((bottom - top + 1) * solid).clamp_min(0))  # one entry per triangle and row
    row = top[owner] + offset

    # Where the row crosses the three edges; the span between is inside.
    start, end = vertices[owner], vertices[owner].roll(-1, 1)
    y = row[:, None].to(points)
    rise = end[..., 1] - start[..., 1]
    step = ((y - start[..., 1]) / torch.where(rise == 0, torch.ones_like(rise), rise)).clamp(0, 1)
    x = start[..., 0] + step * (end[..., 0] - start[..., 0])
    low, high = torch.minimum(start[..., 1], end[..., 1]), torch.maximum(start[..., 1], end[..., 1])
    crossed = (y >= low - reach) & (y <= high + reach) & (rise != 0)
    left = x.masked_fill(~crossed, torch.inf).amin(1)
    right = x.masked_fill(~crossed, -torch.inf).amax(1)
    left = (left - reach).ceil().clamp(0, width).long()
    right = (right + reach).floor().clamp(-1, width - 1).long()

    span, offset = _ragged((right - left + 1).clamp_min(0))  # one entry per triangle and pixel
    face = owner[span] // len(TRIANGLES)
    triangle = owner[span] % len(TRIANGLES)
    pixel = row[span] * width + left[span] + offset
    place_ = face * (height * width) + pixel
    key = (place_ * len(TRIANGLES) + triangle).sort().values
    place_ = key // len(TRIANGLES)
    first = torch.ones_like(place_, dtype=torch.bool)
    first[1:] = place_[1:] != place_[:-1]
    place_, triangle = place_[first], (key % len(TRIANGLES))[first]
    return place_ // (height * width), triangle, place_ % (height * width)


def _pad_rows(face: Tensor, pixel: Tensor, triangle: Tensor, batch: int, padding: int) -> tuple[Tensor, Tensor]:
    """Ragged lists to (B, N) tables; missing pixels are `padding`, missing triangles 0."""
    counts = torch.bincount(face, minlength=batch)
    column = torch.arange(len(face), device=face.device) - (counts.cumsum(0) - counts)[face]
    longest = int(counts.max()) if batch else 0
    pixels = face.new_full((batch, max(longest, 1)), padding)
    triangles = face.new_zeros((batch, max(longest, 1)))
    pixels[face, column] = pixel
    triangles[face, column] = triangle
    return pixels, triangles


def _texture_grid(points: Tensor, pixels: Tensor, triangles: Tensor, height: int, width: int) -> Tensor:
    """Texture coordinates of pixels (B, N) through the affine map of their triangles, differentiable in points."""
    real = pixels < height * width
    vertices = points[:, TRIANGLES.to(points.device)]  # (B, T, 3, 2)
    a, edges = vertices[:, :, 0], vertices[:, :, 1:] - vertices[:, :, :1]
    area = edges[..., 0, 0] * edges[..., 1, 1] - edges[..., 0, 1] * edges[..., 1, 0]
    area = torch.where(area.abs() > 1e-2, area, torch.ones_like(area))
    # Rows of the inverse: barycentric weights of the second and third vertex, linear in (x, y).
    inverse = (
        torch.stack([edges[..., 1, 1], -edges[..., 1, 0], -edges[..., 0, 1], edges[..., 0, 0]], -1) / area[..., None]
    )
    table = torch.cat([a, inverse], -1)  # (B, T, 6)
    a_x, a_y, m00, m01, m10, m11 = table.gather(1, triangles[..., None].expand(-1, -1, 6)).unbind(-1)
    x = (pixels % width).to(points) - a_x
    y = (pixels // width).to(points) - a_y
    second, third = m00 * x + m01 * y, m10 * x + m11 * y
    weights = torch.stack([1 - second - third, second, third], -1).clamp_min(0)
    weights = torch.where(real[..., None], weights, torch.ones_like(weights))
    weights = weights / weights.sum(-1, keepdim=True)
    corners = CANONICAL.to(points)[TRIANGLES.to(points.device)][triangles]  # (B, N, 3, 2)
    return 2 * (weights[..., None] * corners).sum(2) - 1


def _barycentric(texel: Tensor, corners: Tensor) -> Tensor:
    """Weights (T, P, 3) of points (P, 2) in triangles (T, 3, 2)."""
    a, b, c = corners[:, None].unbind(2)
    area = _cross(b - a, c - a)
    return torch.stack(
        [_cross(c - b, texel - b) / area, _cross(a - c, texel - c) / area, _cross(b - a, texel - a) / area], -1
    )


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


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
def _texels(height: int, width: int) -> tuple[Tensor, Tensor]:
    """For each texel of canonical space its triangle's corners (h*w, 3) and their weights (h*w, 3)."""
    texel = _texel_centres(height, width)
    texel = torch.where(_inside(texel)[:, None], texel, _nearest_on_boundary(texel)[0])
    weights = _barycentric(texel, CANONICAL[TRIANGLES])  # (T, h*w, 3)
    triangle = weights.amin(-1).argmax(0)
    weights = weights[triangle, torch.arange(len(texel))].clamp_min(0)
    return TRIANGLES[triangle], weights / weights.sum(-1, keepdim=True)


@lru_cache(maxsize=8)
def _fade(softness: float) -> Tensor:
    """Opacity in canonical space, (1, 1, 2h, 2w): 0 at the polygon's edge, 1 from `softness` mask widths inwards."""
    if not 0 < softness < 0.5:
        raise GanMaskError(f"softness {softness} is outside (0, 0.5): it is a fraction of the mask's width")
    height, width = 2 * TEXTURE[0], 2 * TEXTURE[1]
    texel = _texel_centres(height, width)
    depth = _nearest_on_boundary(texel)[1] * _inside(texel)
    return (depth / softness).clamp(0, 1).view(1, 1, height, width)
