"""The discriminator, which tells real faces from masked ones, and its initial weights."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from gan_mask.networks import Discriminator
from gan_mask.pretrained import classifier
from gan_mask.pretrained.protocol import resize
from gan_mask.pretrained.streamline import streamline


def make(width: int) -> nn.Module:
    """`Discriminator` of that width, with random weights; 0: `FaceDiscriminator`, which knows faces already."""
    network = Discriminator(width) if width else FaceDiscriminator()
    # Compiled code has no second derivatives. No decorator: that loads the compiler, a second of every command's start.
    network.forward = torch.compiler.disable(network.forward)  # type: ignore[method-assign]
    return network


class FaceDiscriminator(nn.Module):
    """Realism of faces (B, 3, H, W) in [0, 1] -> logits (B,), high for real: the shipped mask classifier, retrained.

    One that starts with random weights is still at chance when a short training ends; this one tells seamless masks
    from faces after some hundred pictures. Mean and largest value of each feature: a smear is small, a tone is
    everywhere. Batch norms become part of their convolutions, so that no batch decides about a face.
    In float32 under autocast, too: R1 takes second derivatives.
    """

    def __init__(self) -> None:
        super().__init__()
        net = classifier.load().net
        assert isinstance(net, classifier.MaskClassifierNet)
        self.features = streamline(fx.symbolic_trace(net.features)).requires_grad_()
        self.features.delete_all_unused_submodules()  # the batch norms, which nothing passes through any more
        self.head = nn.Linear(2 * 160, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, faces: Tensor) -> Tensor:
        with torch.autocast(faces.device.type, enabled=False):
            features = self.features((resize(faces.float(), classifier.SIZE, classifier.SIZE) - 0.5) * 4)
            return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)).squeeze(1)
