"""Our own mask classifiers: background, bare face or masked face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_mask import files
from gan_mask.errors import GanMaskError
from gan_mask.pretrained.protocol import Detector, resize

SIZE = 128
NATIVE = 160  # of the crops that detectors are shown (landmarks.FRAMING): nothing is resampled away
CLASSES = ("background", "bare", "masked")
ASSETS = Path(__file__).parent.parent / "assets"
WEIGHTS = ASSETS / "mask_classifier.safetensors"
HARDENED = ASSETS / "mask_classifier_hardened.safetensors"  # run beside the one above, by gan_mask.harden


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that averages when the block halves the picture (ResNet-D, He 2019)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride))
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class MaskClassifierNet(nn.Module):
    """faces [B,3,128,128] in [0,1] -> logits [B,3] of CLASSES. 1.1 M parameters, 40 M multiply-adds."""

    size = SIZE  # of the faces

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),  # 64 x 64
            Block(16, 32, 2),  # 32 x 32
            Block(32, 64, 2), Block(64, 64, 1),  # 16 x 16
            Block(64, 128, 2), Block(128, 128, 1),  # 8 x 8
            Block(128, 160, 2),  # 4 x 4
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(160, len(CLASSES)))

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(self.features((faces - 0.5) * 4))


class View(nn.Module):
    """A part of square pictures resampled, [B,3,H,H] -> [B,3,SIDE,SIDE], as a product of matrices.

    ONNX has that, but no anti-aliasing. rows (SIDE, H) and columns (SIDE, H): weights of the picture's.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.contiguous(), persistent=False)
        self.register_buffer("columns", columns.contiguous(), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        with torch.autocast(faces.device.type, enabled=False):
            return self.rows @ faces.float() @ self.columns.T


def _resized(kept: Tensor, side: int) -> Tensor:
    """Weights (side, H) that resample rows `kept` (N, H) of the identity to `side` of them."""
    return resize(kept[None, None], side, kept.shape[1])[0, 0]


class CloseNet(MaskClassifierNet):
    """The same network with a closer look: [B,3,160,160] in [0,1] -> logits [B,3].

    It sees the 112 px around the face, enlarged to 160: what is left of a seamless mask's blending lies in detail that
    shrinking to SIZE destroys.
    """

    size = NATIVE
    TOP, LEFT, SIDE = 44, 24, 112

    def __init__(self) -> None:
        super().__init__()
        every = torch.eye(NATIVE)
        rows, columns = every[self.TOP : self.TOP + self.SIDE], every[self.LEFT : self.LEFT + self.SIDE]
        self.view = View(_resized(rows, NATIVE), _resized(columns, NATIVE))

    def forward(self, faces: Tensor) -> Tensor:
        return super().forward(self.view(faces))


class EitherNet(nn.Module):
    """Of two classifiers, per face, the logits of the one that is surer of a mask: what either reports is reported.

    A detector fine-tuned on new masks forgets some of the old ones; run beside the original, it cannot.
    faces [B,3,160,160] in [0,1] -> logits [B,3].
    """

    size = NATIVE

    def __init__(self, first: MaskClassifierNet, second: CloseNet) -> None:
        super().__init__()
        self.first, self.second = first, second
        shrink = _resized(torch.eye(NATIVE), SIZE)
        self.view = View(shrink, shrink)

    def forward(self, faces: Tensor) -> Tensor:
        first, second = self.first(self.view(faces)), self.second(faces)
        return torch.where((mask_logit(second) > mask_logit(first))[:, None], second, first)


def mask_logit(logits: Tensor) -> Tensor:
    """log(p / (1 - p)) of the last of CLASSES: logits [B,3] -> [B]."""
    return logits[:, 2] - torch.stack([logits[:, 0], logits[:, 1]], 1).logsumexp(1)


class MaskClassifier(Detector):
    """The classifier as a detector; `card` is what its training wrote about it."""

    def __init__(
        self, net: MaskClassifierNet | EitherNet, card: dict[str, Any] | None = None, name: str = "classifier"
    ):
        super().__init__()
        self.net, self.card, self.name = net, card or {}, name
        self.freeze()

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(resize(faces, self.net.size, self.net.size)).float()
        return mask_logit(logits), logits[:, 1:].logsumexp(1) - logits[:, 0]


def save(net: MaskClassifierNet | EitherNet, path: str | Path, card: dict[str, Any]) -> None:
    """Weights and card (data, test figures; JSON in the header) in one safetensors file.

    Of an EitherNet the second network alone, in half precision (`halve`): the first is the shipped one.
    """
    from safetensors.torch import save_file

    pair = isinstance(net, EitherNet)
    kept = net.second if isinstance(net, EitherNet) else net
    with files.replacing(path) as temporary:
        tensors = {k: v.detach().cpu().contiguous() for k, v in kept.state_dict().items()}
        if pair:
            tensors = {f"second.{k}": v.half() if v.ndim > 1 else v for k, v in tensors.items()}
        save_file(tensors, temporary, {"card": json.dumps(card)})


@torch.no_grad()
def halve(net: MaskClassifierNet) -> None:
    """Round the kernels to what half precision holds, in which `save` keeps a second network."""
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half())


def load(path: str | Path = WEIGHTS, name: str = "classifier") -> MaskClassifier:
    """Raises GanMaskError when the file is absent, damaged or of another network."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise GanMaskError(f"{path}: the mask classifier's weights are missing; reinstall gan_mask or train them again")
    try:
        with safe_open(path, "pt") as f:
            card = json.loads((f.metadata() or {}).get("card", "{}"))
            tensors = {key: f.get_tensor(key) for key in f.keys()}
        if not any(key.startswith("second.") for key in tensors):
            net = MaskClassifierNet()
            net.load_state_dict(tensors)
            return MaskClassifier(net, card, name)
        second = CloseNet()
        second.load_state_dict({key.removeprefix("second."): value for key, value in tensors.items()})
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise GanMaskError(f"{path}: not the weights of this mask classifier ({error})") from error
    return MaskClassifier(EitherNet(shipped(), second), card, name)


def shipped() -> MaskClassifierNet:
    """The network of `classifier`."""
    net = load().net
    assert isinstance(net, MaskClassifierNet)
    return net
