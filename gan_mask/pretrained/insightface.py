"""The recogniser of an InsightFace model pack (buffalo_l, antelopev2, ...) that the user has on disk.

Packs are read where InsightFace's own package keeps them, never downloaded: their models are licensed for
non-commercial research only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_mask.errors import GanMaskError
from gan_mask.pretrained import alignment, thresholds
from gan_mask.pretrained.onnx import checksum, inputs_of, read_model, to_torch
from gan_mask.pretrained.protocol import Embedder

HOME = "INSIGHTFACE_HOME"  # else ~/.insightface
SIZE = 112
SHORTEST = 64  # of an embedding: networks of fewer outputs answer something else (age, landmarks)


class InsightFace(Embedder):
    def __init__(self, net: nn.Module, name: str, weights_sha256: str, normalises: bool):
        super().__init__()
        self.net, self.name, self.weights_sha256 = net, name, weights_sha256
        self.mean, self.std = (0.0, 1.0) if normalises else (127.5, 127.5)
        self.thresholds = thresholds.shipped(name)
        self.freeze()

    def embed(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        chips = alignment.chips(faces, landmarks, alignment.ARCFACE, SIZE, SIZE)
        return self.net((chips * 255 - self.mean) / self.std)


def folder_of(pack: str) -> Path:
    """Where InsightFace looks for a pack: $INSIGHTFACE_HOME/models/PACK, by default ~/.insightface/models/PACK."""
    home = os.environ.get(HOME) or Path.home() / ".insightface"
    return Path(home) / "models" / pack


def load(pack: str) -> InsightFace:
    """The recogniser of `pack`. GanMaskError says what is missing and where it belongs."""
    if not pack or Path(pack).name != pack:
        raise GanMaskError(f"insightface:{pack}: name a pack, such as insightface:buffalo_l")
    folder = folder_of(pack)
    # antelopev2.zip holds a folder of its own name.
    paths = sorted(folder.glob("*.onnx")) or sorted((folder / pack).glob("*.onnx"))
    found = [(path, model) for path in paths if is_recogniser(model := read_model(path))]
    if len(found) != 1:
        seen = ", ".join(path.name for path, _ in found) or "none"
        raise GanMaskError(
            f"{folder}: exactly one face recogniser (3 x {SIZE} x {SIZE} in, one embedding out) expected among "
            f"{len(paths)} ONNX files, found {seen}. Unpack {pack}.zip of "
            "https://github.com/deepinsight/insightface/releases/tag/v0.7 there, or set "
            f"${HOME} to the folder with models/{pack}. gan_mask never downloads it: InsightFace licenses its models "
            "for non-commercial research only"
        )
    path, model = found[0]
    net, _ = to_torch(model, path, torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    return InsightFace(net, f"insightface:{pack}", checksum(path), normalises(model))


def is_recogniser(model: Any) -> bool:
    """Whether an onnx.ModelProto maps aligned chips to embeddings: not a detector, landmarks, or sex and age."""
    inputs = [_shape(i) for i in inputs_of(model)]
    outputs = [_shape(o) for o in model.graph.output]
    return (
        len(inputs) == len(outputs) == 1
        and inputs[0][1:] == [3, SIZE, SIZE]
        and len(outputs[0]) == 2
        and outputs[0][1] >= SHORTEST
    )


def _shape(value: Any) -> list[int]:
    """Sizes of an onnx.ValueInfoProto, 0 where one is left open."""
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def normalises(model: Any) -> bool:
    """Whether the graph begins by normalising its input itself, by InsightFace's own rule."""
    return {"Sub", "Mul"} <= {node.op_type for node in model.graph.node[:8]}
