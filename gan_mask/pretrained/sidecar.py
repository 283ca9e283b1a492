"""The JSON file that describes a face embedder or a mask detector: onnx:SIDECAR.json or torch:SIDECAR.json.

Keys of every sidecar (lists as JSON lists; sizes are [height, width]):
    kind             "embedder", "ssd" or "classifier", an ONNX file; "torch-classifier", a torch module
    file             ONNX or safetensors file, looked up beside the sidecar, then as `weights.find` does
    size             of the network's input
    mean, std        three numbers each, on 0..255, in the network's channel order: input = (255 x - mean) / std
    channel_order    "RGB" or "BGR"
  and optionally
    sha256           of the file; of `cat FILE EXTERNAL...` where its weights lie in files beside it
    source, licence, training_data
An "embedder" adds
    template         the five points (eyes, nose tip, mouth corners; left and right as seen) in the chip, pixels
    thresholds       optional: {"cosine": {"0.01": ..., "0.001": ...}, "provenance": {...}}
    published        optional: {"amtgan": "IR152"}, which network of thresholds.PUBLISHED it is
An "ssd" (one network output of raw boxes, one of two logits per anchor) adds
    outputs          {"boxes": index of the output, "logits": index}
    classes          columns of the logits: {"mask": 0, "bare": 1}
    grids            cells per side of each level; anchors run level, row, column, shape
    anchor_sizes     two per level, relative to the input
    anchor_ratios    width / height; the first goes with both sizes, the others with the first size
    variances        four numbers that scale the raw boxes
    score            confidence from which on a box counts
    canvas_factor    side of the input / side of the crop pasted into its middle
    canvas_grey      0..255, around the crop
A "classifier" adds
    output           "logits" or "probabilities"; a single column is the sigmoid of class 1
    mask_class       index of the class "wears a mask"
    background_class optional: index of the class "no face"; without it a face is taken for granted
A "torch-classifier" adds the same and
    factory          what builds the module, which answers pictures [B,3,H,W] with [B,classes]; see `torch_module`
    arguments        optional: {"num_classes": 2}, its keyword arguments
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_mask import files, weights
from gan_mask.errors import GanMaskError
from gan_mask.pretrained import thresholds
from gan_mask.pretrained.protocol import Detector, resize


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _list(item: Callable[[Any], bool], length: int = 0) -> Callable[[Any], bool]:
    """A list of items; of `length` items where that is given."""
    return lambda value: isinstance(value, list) and len(value) == (length or len(value)) > 0 and all(map(item, value))


def _indices(*keys: str) -> Callable[[Any], bool]:
    """An object that gives each key an index of its own."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == set(keys)
        and all(map(_index, value.values()))
        and len(set(value.values())) == len(keys)
    )


def _one_of(*options: str) -> Callable[[Any], bool]:
    return lambda value: value in options


def _any(value: Any) -> bool:
    """What is checked elsewhere."""
    return True


COMMON: dict[str, Callable[[Any], bool]] = {
    "kind": _any,  # by read_sidecar
    "file": _text,
    "size": _list(lambda v: _index(v) and 8 <= v <= 4096, 2),
    "mean": _list(_number, 3),
    "std": _list(_positive, 3),
    "channel_order": _one_of("RGB", "BGR"),
}
CLASSIFIER = {"output": _one_of("logits", "probabilities"), "mask_class": _index}
KINDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "embedder": {"template": _list(_list(_number, 2), 5)},
    "ssd": {
        "outputs": _indices("boxes", "logits"),
        "classes": lambda v: _indices("mask", "bare")(v) and max(v.values()) == 1,
        "grids": _list(lambda v: _index(v) and 1 <= v <= 512),
        "anchor_sizes": _list(_list(_positive, 2)),
        "anchor_ratios": _list(_positive),
        "variances": _list(_positive, 4),
        "score": lambda v: _positive(v) and v < 1,
        "canvas_factor": lambda v: _number(v) and v >= 1,
        "canvas_grey": lambda v: _number(v) and 0 <= v <= 255,
    },
    "classifier": CLASSIFIER,
    "torch-classifier": CLASSIFIER | {"factory": _text},
}
OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "sha256": lambda v: _text(v) and len(v) == 64,
    "source": _text,
    "licence": _text,
    "training_data": _text,
    "thresholds": _any,  # by thresholds.checked
    "published": lambda v: isinstance(v, dict) and all(v[k] in thresholds.PUBLISHED.get(k, ()) for k in v),
    "background_class": _index,
    "arguments": lambda v: isinstance(v, dict),
}


def read_sidecar(path: str | Path, *kinds: str) -> dict[str, Any]:
    """The checked sidecar, of one of `kinds`. GanMaskError names the file, the key and what it holds."""
    sidecar = files.read_json(path)
    if not isinstance(sidecar, dict):
        raise GanMaskError(f"{path}: a JSON object expected, found {type(sidecar).__name__}")
    if sidecar.get("kind") not in kinds:
        raise GanMaskError(f"{path}: 'kind' is {sidecar.get('kind')!r}; {' or '.join(map(repr, kinds))} expected here")
    required = COMMON | KINDS[sidecar["kind"]]
    if missing := required.keys() - sidecar.keys():
        raise GanMaskError(f"{path}: missing {', '.join(sorted(missing))} (the keys are described in {__name__})")
    if unknown := sidecar.keys() - required.keys() - OPTIONAL.keys():
        raise GanMaskError(f"{path}: unknown {', '.join(sorted(unknown))}; known: {', '.join(required | OPTIONAL)}")
    for key, value in sidecar.items():
        if not (required | OPTIONAL)[key](value):
            raise GanMaskError(f"{path}: {key!r} is not as described in {__name__}: {value!r}")
    if "arguments" in sidecar and "factory" not in required:
        raise GanMaskError(f"{path}: 'arguments' are those of a torch-classifier's factory")
    if "grids" in required and len(sidecar["grids"]) != len(sidecar["anchor_sizes"]):
        raise GanMaskError(f"{path}: 'grids' and 'anchor_sizes' must describe the same number of levels")
    return sidecar


def file_of(path: Path, sidecar: dict[str, Any]) -> Path:
    """The file that the sidecar at `path` names: beside it, or where `weights.find` looks."""
    beside = path.parent / sidecar["file"]
    return beside if beside.is_file() else weights.find(sidecar["file"])


class Normalise(nn.Module):
    """RGB images [B,3,H,W] in [0,1] -> the network's channel order, mean and std."""

    mean: Tensor
    std: Tensor

    def __init__(self, sidecar: dict[str, Any]):
        super().__init__()
        self.bgr = sidecar["channel_order"] == "BGR"
        self.register_buffer("mean", torch.tensor(sidecar["mean"], dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(sidecar["std"], dtype=torch.float32).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return ((images.flip(1) if self.bgr else images) * 255 - self.mean) / self.std


def size_of(sidecar: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the network's input."""
    height, width = sidecar["size"]
    return height, width


class SidecarClassifier(Detector):
    """Reported as masked when the probability of the mask class exceeds one half.

    net: takes pictures as the sidecar at `path` says; outputs: the shapes of its outputs for two of them.
    """

    def __init__(self, name: str, path: Path, sidecar: dict[str, Any], net: nn.Module, outputs: list[list[int]]):
        super().__init__()
        self.name, self.size = name, size_of(sidecar)
        self.probabilities = sidecar["output"] == "probabilities"
        self.mask, self.background = sidecar["mask_class"], sidecar.get("background_class")
        self.normalise = Normalise(sidecar)
        self.net = net
        classes = max(2, math.prod(outputs[0][1:]))  # a single column is one of two classes
        if len(outputs) != 1 or not {self.mask, self.background} <= {None, *range(classes)}:
            raise GanMaskError(f"{path}: mask_class or background_class is beyond the network's outputs, {outputs}")
        if self.mask == self.background:
            raise GanMaskError(f"{path}: mask_class and background_class are both {self.mask}")
        self.freeze()

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(self.net(self.normalise(resize(faces, *self.size))).flatten(1).float())
        face = torch.ones_like(logits[:, 0]) if self.background is None else -_log_odds(logits, self.background)
        return _log_odds(logits, self.mask), face

    def _logits(self, output: Tensor) -> Tensor:
        if self.probabilities:
            output = torch.logit(output, 1e-6) if output.shape[1] == 1 else output.clamp_min(1e-6).log()
        return torch.cat([torch.zeros_like(output), output], 1) if output.shape[1] == 1 else output


def _log_odds(logits: Tensor, index: int) -> Tensor:
    """log(p / (1 - p)) of class `index`. [B,K] -> [B]."""
    others = [i for i in range(logits.shape[1]) if i != index]
    return logits[:, index] - logits[:, others].logsumexp(1)
