"""LPIPS with AlexNet (Zhang et al. 2018): the linear heads of the package lpips on torchvision's trunk."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gan_mask import weights
from gan_mask.errors import GanMaskError
from gan_mask.files import read_safetensors
from gan_mask.pretrained.protocol import Frozen

TRUNK = "alexnet_features.safetensors"
WHOLE = "alexnet-owt-7be5be79.pth"  # torchvision's file


class Perceptual(Frozen):
    """perceptual(a [B,3,H,W] in [0,1], b) -> LPIPS distance [B], float32; H and W at least 32."""

    name = "lpips-alex"

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.freeze()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(a, b, normalize=True).flatten().float()

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's own is untyped


def load() -> Perceptual:
    """Raises MissingWeights when AlexNet's trunk is neither on disk nor downloadable."""
    trunk = _trunk()
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision in a deprecated way
        net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    # lpips keeps the trunk's layers under their old numbers, in five slices.
    renamed = {re.sub(r"slice\d\.", "features.", key): key for key in net.net.state_dict()}
    if not renamed.keys() <= trunk.keys():
        raise GanMaskError(f"{TRUNK}: keys {', '.join(renamed)} expected, found {', '.join(trunk)}")
    net.net.load_state_dict({renamed[key]: trunk[key] for key in renamed})
    return Perceptual(net)


def _trunk() -> dict[str, Tensor]:
    """AlexNet's convolutions under torchvision's keys: our small file, else torchvision's own."""
    try:
        path = weights.find(TRUNK)
    except weights.MissingWeights as missing:
        try:
            path = weights.find(WHOLE)
        except weights.MissingWeights as error:
            raise weights.MissingWeights(f"{missing} Instead of it: {error}") from None
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises many kinds on a damaged file
            raise GanMaskError(f"{path}: not AlexNet's weights, or damaged ({error})") from error
    return read_safetensors(path)
