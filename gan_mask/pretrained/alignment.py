"""Aligned chips, cut differentiably: what every face-recognition network wants before its own normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import landmarks as lm
from gan_mask.constants import constant

# ArcFace's template: eyes, nose tip and mouth corners in a chip of 112 x 112.
ARCFACE = torch.tensor(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
FINEST = 4  # at most 4 x 4 samples per chip pixel


def chips(faces: Tensor, landmarks: Tensor, template: Tensor, height: int, width: int) -> Tensor:
    """Chips in which the five points of each face lie on `template`, by a least-squares similarity.

    faces [B,3,H,W], landmarks [B,68,2] pixels of `faces`, template [5,2] pixels of the chip (pixel-centre
    convention) -> [B,3,height,width] float32. Bilinear, border replicated, differentiable in the image;
    float32 also under autocast, because bfloat16 resolves coordinates to half a pixel only.

    Large crops are sampled k x k times per chip pixel and averaged, which keeps shrinking from aliasing.
    k follows from the sizes alone: a face's chip never depends on the other faces of its batch.
    """
    with torch.autocast(faces.device.type, enabled=False):
        to_chip = lm.fit_similarity(lm.points5(landmarks.float()), constant(template, landmarks.float()))
        shrink = min(faces.shape[-2] / height, faces.shape[-1] / width)
        k = min(max(1, round(0.75 * shrink)), FINEST)
        samples = sample(faces.float(), lm.invert(to_chip), height, width, k)
        return F.avg_pool2d(samples, k) if k > 1 else samples


def sample(image: Tensor, to_image: Tensor, height: int, width: int, k: int = 1) -> Tensor:
    """Bilinear samples of image [B,3,H,W] where to_image [B,2,3] sends the pixels of a height x width chip.

    Returns [B,3,height*k,width*k]: k x k evenly spread samples in each chip pixel.
    """
    x = (torch.arange(width * k, device=image.device, dtype=torch.float32) + 0.5) / k - 0.5
    y = (torch.arange(height * k, device=image.device, dtype=torch.float32) + 0.5) / k - 0.5
    chip = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (h, w, 2)
    points = lm.transform(chip.reshape(1, -1, 2), to_image).reshape(-1, *chip.shape)  # (B, h, w, 2) pixels of image
    extent = constant([image.shape[-1], image.shape[-2]], points)
    grid = (points + 0.5) * 2 / extent - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
