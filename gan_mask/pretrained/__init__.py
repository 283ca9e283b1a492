"""Third-party networks behind one small protocol; only these three functions turn names into objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gan_mask.errors import GanMaskError
from gan_mask.pretrained import contract

if TYPE_CHECKING:
    import torch

    from gan_mask.pretrained.perceptual import Perceptual
    from gan_mask.pretrained.protocol import Detector, Embedder

T = TypeVar("T", bound="torch.nn.Module")


def load_embedder(name: str, device: str | torch.device = "cpu") -> Embedder:
    """embedder(faces [B,3,H,W] in [0,1], landmarks [B,68,2] px) -> [B,D], unit length; .threshold(far), .name."""
    return _load("embedder", name, EMBEDDERS).to(device)


def load_detector(name: str, device: str | torch.device = "cpu") -> Detector:
    """detector(faces [B,3,H,W] in [0,1]) -> (mask_logit [B], face_logit [B]); flagged iff mask_logit > 0; .name."""
    return _load("detector", name, DETECTORS).to(device)


def load_perceptual(device: str | torch.device = "cpu") -> Perceptual:
    """LPIPS with AlexNet: perceptual(a [B,3,H,W] in [0,1], b) -> distance [B]."""
    from gan_mask.pretrained.perceptual import load

    network = load()
    contract.watch(network, network.name)
    return network.to(device)


def _load(kind: str, name: str, known: dict[str, Callable[[str], T]]) -> T:
    if name.lower().endswith(".onnx"):
        sidecar = f"onnx:{Path(name.removeprefix('onnx:')).with_suffix('.json')}"
        raise GanMaskError(
            f"{name}: an ONNX network is named by its sidecar, the JSON file that says how pictures are shown to it, "
            f"such as {sidecar}; its keys are described in gan_mask.pretrained.onnx and docs/extending.md"
        )
    prefix, colon, _ = name.partition(":")
    family = next((key for key in known if colon and key.startswith(f"{prefix}:")), name)
    if family not in known:
        raise GanMaskError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    network = known[family](name)
    contract.watch(network, name)
    contract.check(network, name, embeds=kind == "embedder")
    return network


# Imports wait until a network is asked for: each family needs packages of its own.


def _dlib(name: str) -> Embedder:
    from gan_mask.pretrained.dlib_resnet import load

    return load()


def _sface(name: str) -> Embedder:
    from gan_mask.pretrained.sface import load

    return load()


def _insightface(name: str) -> Embedder:
    from gan_mask.pretrained.insightface import load

    return load(name.removeprefix("insightface:"))


def _facenet(name: str) -> Embedder:
    from gan_mask.pretrained.facenet import load

    return load(name.removeprefix("facenet-"))


def _onnx_embedder(name: str) -> Embedder:
    from gan_mask.pretrained.onnx import load_embedder as load

    return load(name.removeprefix("onnx:"))


def _onnx_detector(name: str) -> Detector:
    from gan_mask.pretrained.onnx import load_detector as load

    return load(name.removeprefix("onnx:"))


def _classifier(name: str) -> Detector:
    from gan_mask.pretrained.classifier import load

    return load()


def _hardened(name: str) -> Detector:
    from gan_mask.pretrained.classifier import HARDENED, load

    return load(HARDENED, name)


EMBEDDERS: dict[str, Callable[[str], Embedder]] = {
    "dlib": _dlib,
    "sface": _sface,
    "facenet-vggface2": _facenet,
    "facenet-casia-webface": _facenet,
    "insightface:PACK": _insightface,
    "onnx:SIDECAR.json": _onnx_embedder,
}
DETECTORS: dict[str, Callable[[str], Detector]] = {
    "classifier": _classifier,
    "classifier-hardened": _hardened,
    "onnx:SIDECAR.json": _onnx_detector,
}
