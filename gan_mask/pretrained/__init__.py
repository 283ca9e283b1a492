"""Third-party networks behind one small protocol; only its load_ functions turn names into objects."""

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
    from gan_mask.pretrained.verifier import Landmarks, Verifier

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


def as_classifier(
    embedder: Embedder,
    enrolled: torch.Tensor,
    threshold: float,
    landmarks: Landmarks,
    temperature: float = 1.0,
) -> Verifier:
    """The recogniser's decision as a classifier: images [B,3,H,W] in [0,1] -> logits [B,1+P], "other" and P people.

    A plain, differentiable `nn.Module`, as ART, foolbox and torchattacks take one. With one person: [other, same].

    enrolled: [P,D], an embedding of unit length per person, made with `embedder`.
    threshold: cosine from which on two faces count as one person, such as embedder.threshold(0.001).
    landmarks: [N,68,2] pixels of N faces, for batches of these N in their order; of one face, [1,68,2], for batches
        of any size of its pictures; or a callable, images [B,3,H,W] -> [B,68,2], asked at each call, without gradients.
    temperature: the logit of a person is (cosine - threshold) / (1 - threshold) / temperature, that of "other" is 0:
        at temperature 1 the enrolled picture itself has 1. At any temperature the argmax is the most similar person if
        that cosine is at or above the threshold (as float32), else 0.

    GanMaskError for enrolled embeddings that are not [P,D] or not of unit length, a threshold or temperature out of
    range, landmarks of another shape or not finite; and at a call for images that are not [B,3,H,W] in [0,1], and for a
    batch of another size than that of fixed landmarks: whose are they? Tools that split, filter or repeat a batch need
    it whole (their batch_size) or a callable. A batch of N in another order cannot be told from the right one.
    """
    from gan_mask.pretrained.verifier import Verifier

    return Verifier(embedder, enrolled, threshold, landmarks, temperature)


def _load(kind: str, name: str, known: dict[str, Callable[[str], T]]) -> T:
    if name.lower().endswith(".onnx"):
        sidecar = f"onnx:{Path(name.removeprefix('onnx:')).with_suffix('.json')}"
        raise GanMaskError(
            f"{name}: an ONNX network is named by its sidecar, the JSON file that says how pictures are shown to it, "
            f"such as {sidecar}; its keys are described in gan_mask.pretrained.sidecar and docs/extending.md"
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


def _torch_detector(name: str) -> Detector:
    from gan_mask.pretrained.torch_module import load_detector as load

    return load(name.removeprefix("torch:"))


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
    "torch:SIDECAR.json": _torch_detector,
}
