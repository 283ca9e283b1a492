"""Which triangle lies under which pixel: scanline conversion, all triangles of all faces of a batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SLIVER = 1e-2  # twice the area, px^2, up to which a triangle covers nothing

Box = tuple[int, int, int, int]  # top, left, bottom, right: rows top .. bottom - 1, columns left .. right - 1


def twice_area(corners: Tensor) -> Tensor:
    """(2, 3, ...) x and y of three corners -> (...), signed, px^2."""
    (ax, bx, cx), (ay, by, cy) = corners
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)


def solid(area: Tensor) -> Tensor:
    """Whether triangles of these doubled areas cover anything."""
    return area.abs() > SLIVER


def first_triangle(points: Tensor, triangles: Tensor, box: Box, device: torch.device | None = None) -> Tensor:
    """(B, P, 2) px, (T, 3) into the points -> (B, h, w) int64: the first triangle that covers a pixel of `box`, or T.

    A pixel is covered if its centre lies inside or on an edge; T is 51 at most. Not differentiable, nor need it be.
    device: where the result is wanted, if not where the points are. How many rows the triangles have is asked of the
    device of the points: on the CPU nobody waits for a GPU.

    Each row of a triangle covers a span of pixels. A triangle is one bit: added where its span begins and subtracted
    behind its end, a running sum along the row says which triangles cover a pixel, and its highest bit which is first.
    """
    top, left, bottom, right = box
    count, height, width = len(triangles), bottom - top, right - left + 1  # one column more, where the last spans end
    triangles = triangles.to(points.device, non_blocking=True)
    corners = points.detach()[:, triangles].flatten(0, 1).permute(2, 1, 0)  # (2, 3, B*T)
    owner, row, begin, end = _spans(_rows(corners, box), box, device or points.device)
    face, triangle = owner // count, owner % count
    bit = torch.where(begin < end, 2 << (count - 1 - triangle), 0)
    origin = (face * height + row - top) * width - left
    sums = origin.new_zeros(len(points) * height * width)
    sums[:1] = 1  # no triangle: a bit below all others, everywhere
    sums.index_add_(0, origin + begin, bit).index_add_(0, origin + end, -bit)
    cover = sums.cumsum(0).view(len(points), height, width)[..., :-1]
    exponent = cover.double().view(torch.int64) >> 52  # the highest bit's number + 1023; below 2^53 that is exact
    return count + 1023 - exponent


class _Rows(NamedTuple):
    """Of triangles: their corners, and which rows of pixels they touch."""

    corners: Tensor  # (2, 3, N)
    reach: Tensor  # (N,) px
    first: Tensor  # (N,)
    counts: Tensor  # (N,)


def _rows(corners: Tensor, box: Box) -> _Rows:
    top, _, bottom, _ = box
    along = corners.roll(-1, 1) - corners  # the edges
    area = twice_area(corners)
    # Pixel centres on a shared edge belong to both triangles, so that rounding leaves no hole. Not much for slivers,
    # whose texture coordinates change quickly.
    reach = (0.01 * area.abs() / along.abs().amax((0, 1)).clamp_min(1e-6)).clamp(max=1e-3)

    low, high = corners[1].amin(0), corners[1].amax(0)
    first = (low - reach).ceil().clamp(top, bottom).long()
    last = (high + reach).floor().clamp(top - 1, bottom - 1).long()
    return _Rows(corners, reach, first, ((last - first + 1) * solid(area)).clamp_min(0))


def _spans(rows: _Rows, box: Box, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of N triangles: triangle, row, first column, column behind the last; (R,) each, on `device`.

    The span is empty where the first column is not before the second.
    """
    _, left, _, right = box
    total = int(rows.counts.sum())
    corners, reach, first, counts = (part.to(device, non_blocking=True) for part in rows)
    owner, row = _ragged(counts, first, total)  # one entry per triangle and row
    along = corners.roll(-1, 1) - corners

    # Where the row crosses the three edges; the span between is inside.
    level = along[1] == 0
    per_pixel = torch.where(level, 0.0, 1 / along[1])
    slack = torch.where(level, -1.0, reach * per_pixel.abs())
    table = torch.cat([corners[0], corners[1], along[0], per_pixel, slack, reach[None]])  # (16, N)
    *edges, reach = table.index_select(1, owner).split([3, 3, 3, 3, 3, 1])
    x, y, dx, per_pixel, slack = edges
    step = (row.to(y) - y) * per_pixel
    crossed = (step >= -slack) & (step <= 1 + slack)
    crossing = x + step.clamp(0, 1) * dx
    begin = (torch.where(crossed, crossing, torch.inf).amin(0) - reach[0]).ceil().clamp(left, right).long()
    end = (torch.where(crossed, crossing, -torch.inf).amax(0) + reach[0]).floor().clamp(left - 1, right - 1).long() + 1
    return owner, row, begin, end


def _ragged(counts: Tensor, first: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """counts [2, 0, 3], of which 5 is the total, first [7, 0, 4] -> owners [0, 0, 2, 2, 2], numbers [7, 8, 4, 5, 6]."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=total)
    shift = first - counts.cumsum(0) + counts
    return owner, torch.arange(len(owner), device=counts.device) + shift.take(owner)
