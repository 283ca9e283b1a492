"""What every pretrained network looks like from outside: frozen, on [0,1] RGB crops, differentiable in the image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_mask import files
from gan_mask.errors import GanMaskError
from gan_mask.pretrained.thresholds import Thresholds


class Frozen(nn.Module):
    """Always in eval mode, without gradients of its parameters; `.train()` changes nothing."""

    name: str

    def freeze(self) -> None:
        """Subclasses call this last in their constructor."""
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # a fifth to a third faster on CPUs

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self


class Embedder(Frozen):
    """embedder(faces [B,3,H,W] in [0,1], landmarks [B,68,2] pixels) -> embeddings [B,D] of unit length, float32."""

    thresholds: Mapping[str, float]  # FAR as text, such as "0.001" -> cosine similarity
    weights_sha256: str
    published: Mapping[str, str] = MappingProxyType({})  # protocol -> which of its networks this is: PUBLISHED

    def forward(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        return F.normalize(self.embed(faces, landmarks).float(), dim=1)

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's own is untyped

    def embed(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        """Raw embeddings [B,D], of any length."""
        raise NotImplementedError

    def threshold(self, far: float) -> float:
        """The cosine at or above which two faces count as one person, at false-accept rate `far` (0.01 or 0.001)."""
        for key, value in self.thresholds.items():
            if float(key) == far:
                if isinstance(self.thresholds, Thresholds):
                    self.thresholds.check(self.name, self.weights_sha256)
                return value
        known = ", ".join(self.thresholds) or "none"
        raise GanMaskError(
            f"{self.name}: no threshold calibrated at FAR {far:g}; calibrated: {known}. "
            f"Calibrate on a prepared set: python -m gan_mask.calibrate --embedder {self.name} --data PREPARED"
        )


class Detector(Frozen):
    """detector(faces [B,3,H,W] in [0,1]) -> (mask_logit [B], face_logit [B]), float32.

    At the detector's own operating point a face is found iff face_logit > 0, and it is reported as
    masked iff mask_logit > 0. The crops are framed as `landmarks.frame(size, 0.375)`.
    """

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's own is untyped


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, pixel centres kept, anti-aliased when shrinking. [B,C,H,W] -> [B,C,height,width] float32."""
    with torch.autocast(image.device.type, enabled=False):
        image = image.float()
        if image.shape[-2:] == (height, width):
            return image
        return F.interpolate(image, (height, width), mode="bilinear", align_corners=False, antialias=True)


def fingerprints(embedders: Mapping[str, nn.Module], detectors: Mapping[str, nn.Module]) -> dict[str, str]:
    """Of loaded networks by their names, as the inputs of results (gan_mask.run_record) call them."""
    kinds = {"recogniser": embedders, "detector": detectors}
    return {f"{kind} {n}": fingerprint(n, network) for kind, some in kinds.items() for n, network in some.items()}


def fingerprint(name: str, network: nn.Module) -> str:
    """A digest that changes with a network's weights and with its sidecar, which says how it takes pictures."""
    digest = hashlib.sha256(name.encode())
    for key, tensor in network.state_dict().items():
        digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    scheme, sidecar = files.split_scheme(name)
    if scheme:
        digest.update(Path(sidecar).read_bytes())
    return digest.hexdigest()
