"""MTCNN (Zhang et al. 2016): boxes and five points of the faces in pictures of any sizes, all searched together.

Networks, thresholds and steps are facenet-pytorch's. Its own loop shrinks candidates one by one, in pictures of one
size; here the same means over areas come from integral images, of all candidates at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import facenet_pytorch
import numpy as np
import torch
from facenet_pytorch.models.utils.detect_face import batched_nms_numpy, bbreg, generateBoundingBox, rerec
from torch import Tensor
from torchvision.ops import batched_nms, nms

AT_ONCE = 512  # candidates, which bounds the memory


class MTCNN:
    """device: where it runs."""

    def __init__(self, device: torch.device) -> None:
        package = facenet_pytorch.MTCNN(device=device)
        package.to(memory_format=torch.channels_last)  # its pooling is slow on channels apart
        self.pnet, self.rnet, self.onet = package.pnet, package.rnet, package.onet
        self.thresholds, self.factor, self.device = package.thresholds, package.factor, device

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray], smallest: Sequence[float]) -> list[np.ndarray]:
        """(n, 15) x0, y0, x1, y1, score, x and y of eyes, nose and mouth corners for each of the pictures.

        pictures uint8 [H,W,3]; smallest: side of the smallest face looked for in each, pixels.
        """
        areas = _Areas(pictures, self.device)
        found = [self._proposed(areas, number, side) for number, side in enumerate(smallest)]
        boxes, of = torch.cat(found), torch.repeat_interleave(torch.tensor([len(boxes) for boxes in found]))
        boxes, of, moves, *_ = self._judged(areas, boxes, of.to(self.device), 24, self.rnet, self.thresholds[1])
        keep = batched_nms(boxes[:, :4], boxes[:, 4], of, 0.7)
        boxes, of = rerec(bbreg(boxes[keep], moves[keep])), of[keep]
        boxes, of, moves, points = self._judged(areas, boxes, of, 48, self.onet, self.thresholds[2])
        sides = boxes[:, 2:4] - boxes[:, :2] + 1
        points = points.view(-1, 2, 5).transpose(1, 2) * sides[:, None] + boxes[:, None, :2] - 1
        rows = torch.cat([bbreg(boxes, moves), points.flatten(1)], 1)
        keep = batched_nms_numpy(rows[:, :4], rows[:, 4], of, 0.7, "Min")
        rows, of = rows[keep].cpu(), of[keep].cpu()
        return [rows[of == number].numpy() for number in range(len(pictures))]

    def _proposed(self, areas: _Areas, number: int, smallest: float) -> Tensor:
        """Squares of one picture and their scores, (K, 5), by the first network, which looks at it in many sizes."""
        height, width = areas.sizes[number]
        scale, levels = 12 / smallest, [torch.zeros(0, 9, device=self.device)]
        while min(height, width) * scale >= 12:
            moves, odds = self.pnet(areas.whole(number, int(height * scale + 1), int(width * scale + 1)))
            boxes, of = generateBoundingBox(moves, odds[:, 1], scale, self.thresholds[0])
            levels.append(boxes[batched_nms(boxes[:, :4], boxes[:, 4], of, 0.5)])
            scale *= self.factor
        boxes = torch.cat(levels)
        boxes = boxes[nms(boxes[:, :4], boxes[:, 4], 0.7)]
        sides = boxes[:, 2:4] - boxes[:, :2]
        return rerec(torch.cat([boxes[:, :4] + boxes[:, 5:] * sides.repeat(1, 2), boxes[:, 4:5]], 1))

    def _judged(
        self, areas: _Areas, boxes: Tensor, of: Tensor, side: int, network: Any, threshold: float
    ) -> list[Tensor]:
        """Candidates that a network takes for faces: boxes with its scores, their pictures, and what else it says."""
        edges = areas.edges(boxes, of)
        inside = (edges[:, 2:] > edges[:, :2]).all(1)
        boxes, of, edges = boxes[inside], of[inside], edges[inside]
        if not len(of):
            return [boxes, of, boxes[:, :4], boxes.new_zeros(0, 10)]
        parts = zip(of.split(AT_ONCE), edges.split(AT_ONCE), strict=True)
        said = [network(areas.cut(*part, side)) for part in parts]
        *rest, odds = map(torch.cat, zip(*said, strict=True))
        boxes, passed = torch.cat([boxes[:, :4], odds[:, 1:]], 1), odds[:, 1] > threshold
        return [values[passed] for values in (boxes, of, *rest)]


class _Areas:
    """Rectangles of pictures, shrunk by means over areas: from the sums of all above and left of a pixel, exactly."""

    def __init__(self, pictures: Sequence[np.ndarray], device: torch.device) -> None:
        self.sizes = [picture.shape[:2] for picture in pictures]
        self.sums = []  # (H + 1, W + 1, 3) each
        for picture in pictures:
            sums = torch.from_numpy(np.pad(picture, ((1, 0), (1, 0), (0, 0)))).to(device)
            self.sums.append(sums.cumsum(1, dtype=torch.int32).cumsum_(0))
        self.flat = torch.cat([sums.flatten(0, 1) for sums in self.sums])
        lengths = torch.tensor([0, *(len(sums) * sums.shape[1] for sums in self.sums)], device=device)
        self.start = lengths.cumsum(0)[:-1]
        self.size = torch.tensor(self.sizes, device=device)

    def whole(self, number: int, height: int, width: int) -> Tensor:
        """A picture as the networks take it, (1, 3, height, width)."""
        device, sums = self.flat.device, self.sums[number]
        top, bottom = _bins(torch.tensor([self.sizes[number][0]], device=device), height)
        left, right = _bins(torch.tensor([self.sizes[number][1]], device=device), width)
        rows = sums.index_select(0, bottom[0]) - sums.index_select(0, top[0])
        total = rows.index_select(1, right[0]) - rows.index_select(1, left[0])
        return _scaled(total[None], (bottom - top)[:, :, None] * (right - left)[:, None])

    def edges(self, boxes: Tensor, of: Tensor) -> Tensor:
        """What of boxes (K, 4 and more) is within their pictures: x0, y0, x1, y1, the last two excluded, (K, 4)."""
        boxes = boxes[:, :4].trunc().long()
        return torch.cat([boxes[:, :2].clamp_min(1) - 1, torch.minimum(boxes[:, 2:], self.size[of].flip(1))], 1)

    def cut(self, of: Tensor, edges: Tensor, side: int) -> Tensor:
        """Rectangles as the networks take them, (K, 3, side, side)."""
        left, right = (edges[:, :1] + bins for bins in _bins(edges[:, 2] - edges[:, 0], side))
        top, bottom = (edges[:, 1:2] + bins for bins in _bins(edges[:, 3] - edges[:, 1], side))
        start, stride = self.start[of][:, None, None], self.size[of, 1][:, None] + 1
        low, high = start + (top * stride)[:, :, None], start + (bottom * stride)[:, :, None]
        total = self._at(high + right[:, None]) - self._at(high + left[:, None])
        total += self._at(low + left[:, None]) - self._at(low + right[:, None])
        return _scaled(total, (bottom - top)[:, :, None] * (right - left)[:, None])

    def _at(self, places: Tensor) -> Tensor:
        return self.flat.index_select(0, places.flatten()).view(*places.shape, 3)


def _bins(length: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First and past-last place of `count` equal parts of lengths (K,), which share a place where they meet in it."""
    edge = length[:, None] * torch.arange(count + 1, device=length.device)
    return edge[:, :-1] // count, -(edge[:, 1:] // -count)


def _scaled(total: Tensor, count: Tensor) -> Tensor:
    """Sums (K, h, w, 3) of so many values (K, h, w) -> their means, from 0..255 to about -1..1: (K, 3, h, w)."""
    return total.float().div_(count.float()[..., None]).sub_(127.5).div_(128).permute(0, 3, 1, 2)
