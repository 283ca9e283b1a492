"""Gradient-domain cloning of one fixed polygon, as constant matrices: no solver at run time.

"Coordinates for Instant Image Cloning" (Farbman et al. 2009): what a patch differs by from its surroundings along its
edge is spread over its inside by mean value coordinates (Floater 2003), which are smooth, and exact for affine
functions. Points are (x, y), float64; polygons are convex, (K, 2), in either direction.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inset(polygon: Tensor, depth: float) -> Tensor:
    """The polygon whose edges lie `depth` further inside: (K, 2) -> (K, 2). Too deep an inset turns it inside out."""
    along = polygon.roll(-1, 0) - polygon
    inwards = _left_of(along) * _turn(polygon)
    start = polygon + depth * inwards / along.norm(dim=1, keepdim=True)
    # Each corner is where its two shifted edges meet.
    before, previous = start.roll(1, 0), along.roll(1, 0)
    step = _cross(start - before, along) / _cross(previous, along)
    return before + step[:, None] * previous


def evenly(polygon: Tensor, count: int) -> Tensor:
    """So many points at equal distances along the polygon's edge, from its first corner on: (count, 2)."""
    along = polygon.roll(-1, 0) - polygon
    length = along.norm(dim=1)
    ends = length.cumsum(0)
    at = torch.arange(count).to(ends) / count * ends[-1]
    edge = torch.searchsorted(ends, at, right=True).clamp(max=len(polygon) - 1)
    share = (at - ends[edge] + length[edge]) / length[edge]
    return polygon[edge] + share[:, None] * along[edge]


def depth_in(polygon: Tensor, points: Tensor) -> Tensor:
    """How deep points (P, 2) lie inside: distance to the nearest edge, (P,); negative or 0 outside."""
    along = polygon.roll(-1, 0) - polygon
    inwards = _left_of(along) * _turn(polygon) / along.norm(dim=1, keepdim=True)
    return ((points[:, None] - polygon) * inwards).sum(2).amin(1)


def mean_values(points: Tensor, edge: Tensor) -> Tensor:
    """Mean value coordinates of points (P, 2) strictly inside the polygon of `edge` (N, 2): (P, N), rows sum to 1."""
    spoke = edge - points[:, None]
    length = spoke.norm(dim=2)
    next_spoke, next_length = spoke.roll(-1, 1), length.roll(-1, 1)
    # tan(a / 2) = sin a / (1 + cos a) of the angle between neighbouring spokes.
    half = _cross(spoke, next_spoke) / (length * next_length + (spoke * next_spoke).sum(2))
    weights = (half + half.roll(1, 1)) / length
    return weights / weights.sum(1, keepdim=True)


def edge_averages(points: Tensor, edge: Tensor, spread: float, neighbours: int) -> Tensor:
    """Weights (N, P) with which values at `points` (P, 2) are averaged around each place of `edge` (N, 2).

    A Gaussian of standard deviation `spread` around the place and so many of its neighbours on the edge, corrected
    so that affine functions keep their value at the place itself (moving least squares, Lancaster and Salkauskas 1981).
    """
    near = torch.exp(-torch.cdist(edge, points).square() / (2 * spread**2))
    near = near / near.sum(1, keepdim=True)
    near = torch.where(near < 1e-7, 0.0, near)  # denormal numbers in float32 make products a hundred times slower
    reach = neighbours // 2
    near = torch.stack([near.roll(k, 0) for k in range(-reach, reach + 1)]).mean(0)
    affine = torch.cat([torch.ones_like(points[:, :1]), points], 1)
    wanted = torch.cat([torch.ones_like(edge[:, :1]), edge], 1)
    moments = torch.einsum("np,pi,pj->nij", near, affine, affine)
    correction = torch.linalg.solve(moments, (wanted - near @ affine)[..., None])[..., 0]
    return near * (1 + correction @ affine.T)


def _turn(polygon: Tensor) -> Tensor:
    """1 where the inside lies to the left of the edges as `_left_of` counts, else -1."""
    return _cross(polygon, polygon.roll(-1, 0)).sum().sign()


def _left_of(along: Tensor) -> Tensor:
    return torch.stack([-along[:, 1], along[:, 0]], 1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
