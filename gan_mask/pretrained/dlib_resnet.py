"""dlib's face-recognition ResNet (29 convolutions, 128-D), read from its own .dat file into torch.

The network behind `face_recognition`; weights by Davis King, public domain (CC0), from the PyPI package
face-recognition-models. No dlib is needed. Descriptors equal dlib's own to 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_mask import files, weights
from gan_mask.errors import GanMaskError
from gan_mask.pretrained import alignment, thresholds
from gan_mask.pretrained.protocol import Embedder

FILE = "dlib_face_recognition_resnet_model_v1.dat"
SIZE = 150
TEMPLATE = torch.tensor(  # eyes, nose tip, mouth corners in the chip
    [(46.185, 44.378), (101.040, 44.421), (73.479, 76.664), (49.052, 104.981), (98.050, 105.072)]
)
MEAN = (122.782, 117.001, 104.298)  # RGB, on 0..255
GROUPS = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))  # channels, blocks, halving


class Block(nn.Module):
    """Two 3x3 convolutions beside the input, which is average-pooled where the block halves the picture.

    Sizes and channels may differ by then; dlib's addition pads the smaller operand with zeros.
    """

    def __init__(self, inputs: int, outputs: int, halving: bool):
        super().__init__()
        self.halving = halving
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 0) if halving else nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(F.relu(self.conv1(x)))
        if self.halving:
            x = F.avg_pool2d(x, 2)
            shape = [max(a, b) for a, b in zip(branch.shape[1:], x.shape[1:], strict=True)]
            branch, x = _zero_pad(branch, shape), _zero_pad(x, shape)
        return F.relu(branch + x)


def _zero_pad(x: Tensor, shape: list[int]) -> Tensor:
    """Zeros at the bottom, at the right and in trailing channels."""
    channels, height, width = (wanted - have for wanted, have in zip(shape, x.shape[1:], strict=True))
    return F.pad(x, (0, width, 0, height, 0, channels))


class DlibResNet(nn.Module):
    """chips [B,3,150,150] RGB on 0..255 -> descriptors [B,128], as dlib gives them (not of unit length)."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.stem = nn.Conv2d(3, 32, 7, 2)
        self.blocks, inputs = nn.Sequential(), 32
        for outputs, count, halving in GROUPS:
            for i in range(count):
                self.blocks.append(Block(inputs, outputs, halving and i == 0))
                inputs = outputs
        self.fc = nn.Linear(256, 128, bias=False)

    def forward(self, chips: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem((chips - self.mean) / 256)), 3, 2)
        return self.fc(self.blocks(x).mean((2, 3)))


class DlibEmbedder(Embedder):
    """dlib's network with its alignment; its published rule accepts at a descriptor distance below 0.6."""

    name = "dlib"

    def __init__(self, net: DlibResNet, weights_sha256: str):
        super().__init__()
        self.net, self.weights_sha256 = net, weights_sha256
        self.thresholds = thresholds.shipped(self.name)
        self.freeze()

    def embed(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        return self.net(alignment.chips(faces, landmarks, TEMPLATE, SIZE, SIZE) * 255)


def load(path: str | Path | None = None) -> DlibEmbedder:
    """The embedder from dlib's .dat file; by default the one that `weights.find` finds."""
    path = Path(path) if path else weights.find(FILE)
    return DlibEmbedder(read_network(path), files.sha256(path))


# Reading the file. dlib writes integers with their byte count, floats as mantissa and exponent.

LARGEST_FILE = 64 << 20  # dlib's file has 22 MB


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.position:
            raise ValueError(f"{count} bytes expected at byte {self.position} of {len(self.data)}")
        self.position += count
        return self.data[self.position - count : self.position]

    def integer(self) -> int:
        header = self.take(1)[0]
        value = int.from_bytes(self.take(header & 15), "little")
        return -value if header & 128 else value

    def integers(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def number(self) -> float:
        mantissa, exponent = self.integers(2)
        if abs(exponent) > 512:
            raise ValueError(f"exponent {exponent} before byte {self.position}")
        return mantissa * 2.0**exponent

    def string(self) -> str:
        return self.take(self.integer()).decode("ascii")

    def expect(self, *values: int) -> None:
        found = self.integers(len(values))
        if found != list(values):
            raise ValueError(f"{list(values)} expected before byte {self.position}, found {found}")

    def tensor(self) -> np.ndarray:
        """Flat float32."""
        self.expect(2)
        shape = self.integers(4)
        if min(shape) < 0:
            raise ValueError(f"a tensor of shape {shape} before byte {self.position}")
        raw = self.take(4 * math.prod(shape))
        values = np.frombuffer(raw, "<f4")
        if not np.isfinite(values).all():
            raise ValueError(f"a parameter before byte {self.position} is not finite")
        return values

    def alias(self) -> list[int]:
        self.expect(1)
        return self.integers(4)


def _layers(reader: _Reader) -> Iterator[tuple[str, np.ndarray, list[int]]]:
    """(name, parameters, shape of the filters or []) of each layer, in forward order, to the end of the file."""
    first_convolution = True
    while reader.position < len(reader.data):
        name, parameters, shape = reader.string(), np.empty(0, np.float32), []
        if name == "con_4":
            parameters = reader.tensor()
            reader.integers(7)  # filters, rows, columns, strides, paddings: known from the architecture
            shape = reader.alias()
            reader.alias()
            _ = [reader.number() for _ in range(4)]  # learning-rate and decay multipliers
        elif name == "affine_":
            parameters = reader.tensor()
            reader.alias(), reader.alias(), reader.integer()
        elif name == "fc_2":
            reader.integers(2)
            parameters = reader.tensor()
            reader.alias(), reader.alias(), reader.integer()
            _ = [reader.number() for _ in range(4)]
        elif name in ("max_pool_2", "avg_pool_2"):
            reader.integers(6)
        elif name not in ("relu_", "add_prev_"):
            raise ValueError(f"layer {name!r} before byte {reader.position}")
        reader.take(3)  # flags of dlib's trainer
        for _ in range(3):
            if reader.tensor().size:
                raise ValueError(f"a stored activation before byte {reader.position}")
        if name == "con_4" and first_convolution:
            first_convolution = False
            reader.integer()
        yield name, parameters, shape


def _header(reader: _Reader) -> None:
    reader.expect(1)
    if reader.string() != "loss_metric_2":
        raise ValueError("it does not start as a metric network")
    reader.number(), reader.number()  # margin, distance threshold
    reader.integers(130)  # versions
    if reader.string() != "input_rgb_image_sized":
        raise ValueError("its input is not an RGB image")
    if any(abs(reader.number() - mean) > 1e-3 for mean in MEAN):
        raise ValueError("its input mean is another one")
    reader.expect(SIZE, SIZE)


def read_network(path: str | Path) -> DlibResNet:
    """Raises GanMaskError when the file is damaged, truncated or holds another network."""
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE} bytes")
        reader = _Reader(Path(path).read_bytes())
        _header(reader)
        return _fill(DlibResNet(), list(_layers(reader)))
    except (OSError, ValueError) as error:
        raise GanMaskError(
            f"{path}: not dlib's face-recognition network, or damaged ({error}). "
            "Install it again: pip install --force-reinstall face-recognition-models"
        ) from error


@torch.no_grad()
def _fill(net: DlibResNet, layers: list[tuple[str, np.ndarray, list[int]]]) -> DlibResNet:
    """Copy the parameters; each affine layer is folded into the convolution before it."""
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    stored = [(values, shape) for name, values, shape in layers if name == "con_4"]
    affine = [values for name, values, _ in layers if name == "affine_"]
    fc = [values for name, values, _ in layers if name == "fc_2"]
    for convolution, (values, shape), scale_shift in zip(convolutions, stored, affine, strict=True):
        count = convolution.weight.numel()
        outputs = convolution.out_channels
        if list(convolution.weight.shape) != shape or values.size != count + outputs or scale_shift.size != 2 * outputs:
            raise ValueError(f"a convolution of shape {shape} where {list(convolution.weight.shape)} is due")
        weight, bias = torch.tensor(values[:count]).view(shape), torch.tensor(values[count:])
        scale, shift = torch.tensor(scale_shift).chunk(2)
        convolution.weight.copy_(weight * scale.view(-1, 1, 1, 1))
        convolution.bias.copy_(bias * scale + shift)  # type: ignore[union-attr]
    if len(fc) != 1 or fc[0].size != net.fc.weight.numel():
        raise ValueError("no fully connected layer of 256 x 128 at its end")
    net.fc.weight.copy_(torch.tensor(fc[0]).view(256, 128).T)
    return net
