"""Losses. Pure functions; each returns one value per face, shape (B,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def d_logistic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's logistic loss (Goodfellow et al. 2014)."""
    return F.softplus(-real_logits) + F.softplus(fake_logits)


def g_nonsaturating(fake_logits: Tensor) -> Tensor:
    """Generator's non-saturating logistic loss (Goodfellow et al. 2014)."""
    return F.softplus(-fake_logits)


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Squared gradient of the discriminator at real images (Mescheder et al. 2018), without the factor gamma/2."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def dodging_hinge(similarity: Tensor, threshold: float, margin: float) -> Tensor:
    """How far a similarity lies above the acceptance threshold, plus a margin.

    similarity: cosine (B,). Embedders spread their impostors differently (dlib's threshold at FAR
    1e-3 is 0.92, ArcFace-type ones' near 0.4), so it is counted in units of 1 - threshold: 1 is the
    clean face, 0 the threshold, and the loss vanishes below -margin.
    """
    return F.relu((similarity - threshold) / (1 - threshold) + margin)


def smooth_maximum(values: Tensor, sharpness: float = 4.0) -> Tensor:
    """Mean of (B, N) weighted by softmax(sharpness * values), the weights constant: (B,), between mean and maximum."""
    return (values * (sharpness * values.detach()).softmax(1)).sum(1)


def undetected_hinge(mask_logit: Tensor, margin: float) -> Tensor:
    """Mask detector's logit above -margin; a mask is reported where the logit is positive."""
    return F.relu(mask_logit + margin)


def found_hinge(face_logit: Tensor, margin: float) -> Tensor:
    """A lost face is not an evasion: positive where the detector's face logit is below the margin."""
    return F.relu(margin - face_logit)


def total_variation(texture: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring texels of (B, C, h, w); 0 for a constant texture."""
    return texture.diff(dim=2).abs().mean((1, 2, 3)) + texture.diff(dim=3).abs().mean((1, 2, 3))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of images (B, C, H, W).

    Squared, since an absolute difference favours all of the change in one glaring spot.
    """
    return (a - b).square().mean((1, 2, 3))
