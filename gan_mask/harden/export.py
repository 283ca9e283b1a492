"""The hardened detector as ONNX with its sidecar, like any other detector."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan_mask import files
from gan_mask.errors import GanMaskError
from gan_mask.harden.options import HardenConfig
from gan_mask.pretrained.classifier import CLASSES, EitherNet, MaskClassifier, MaskClassifierNet
from gan_mask.pretrained.protocol import Detector
from gan_mask.values import to_dict


def export(c: HardenConfig, detector: Detector, original: dict[str, Tensor], out: Path) -> Path:
    """hardened.onnx and its sidecar hardened.json, checked against the detector itself; the sidecar's path."""
    from gan_mask.pretrained import classifier, onnx

    if isinstance(detector, MaskClassifier):
        # Without the card's test figures: they are those of the detector as it was.
        kept = {k: v for k, v in detector.card.items() if k != "test"}
        card = {**kept, "hardened": options_of(c)}
        classifier.save(detector.net, out / "hardened.safetensors", card)
        sidecar = classifier_to_onnx(detector.net, out / "hardened.onnx")
    else:
        source = Path(c.detector.removeprefix("onnx:"))
        sidecar = onnx.read_sidecar(source, "ssd", "classifier")
        net = vars(detector)["_modules"]["net"]
        rewrite_onnx(onnx.file_of(source, sidecar), original, dict(net.named_parameters()), out / "hardened.onnx")
    sidecar |= {"file": "hardened.onnx", "sha256": files.sha256(out / "hardened.onnx")}
    files.write_json(out / "hardened.json", sidecar)
    again = onnx.load_detector(out / "hardened.json")
    picture = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(detector(picture), again(picture), strict=True):
            if not torch.allclose(ours, theirs, atol=1e-3):
                raise GanMaskError(f"{out / 'hardened.onnx'}: differs from the detector that it was made from")
    return out / "hardened.json"


def options_of(c: HardenConfig) -> dict[str, Any]:
    """The options as the exported file tells them, which is passed on."""

    def told(value: Any) -> Any:
        if isinstance(value, list):
            return [told(item) for item in value]
        return files.without_folder(value) if isinstance(value, str) else value

    return {name: told(value) for name, value in to_dict(c).items() if name not in ("data", "out")}


def classifier_to_onnx(net: MaskClassifierNet | EitherNet, path: Path) -> dict[str, Any]:
    """Write our classifier as ONNX; what a sidecar says about it."""
    batch = {"image": {0: "batch"}, "logits": {0: "batch"}}
    # The exporter without `dynamo` needs no further package; torch 2.4 knows no other.
    old: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    picture: Any = torch.zeros(2, 3, net.size, net.size)
    with warnings.catch_warnings(), files.replacing(path) as temporary:
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (picture,), str(temporary), input_names=["image"], output_names=["logits"],
                          dynamic_axes=batch, opset_version=17, **old)  # fmt: skip
    return {
        "kind": "classifier", "size": [net.size, net.size], "mean": [0, 0, 0], "std": [255, 255, 255],
        "channel_order": "RGB", "output": "logits",
        "mask_class": CLASSES.index("masked"), "background_class": CLASSES.index("background"),
        "source": "gan_mask.harden", "licence": "Apache-2.0",
    }  # fmt: skip


def rewrite_onnx(source: Path, before: dict[str, Tensor], after: dict[str, nn.Parameter], path: Path) -> None:
    """The ONNX file `source` with its weights replaced: found in it by their values before the fine-tuning."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    left = list(model.graph.initializer)
    for name, old in before.items():
        values = old.numpy()
        match = next((t for t in left if np.array_equal(numpy_helper.to_array(t), values)), None)
        if match is None:
            raise GanMaskError(
                f"{source}: weight {name} is not kept in it as it is used; this network cannot be exported"
            )
        left = [t for t in left if t is not match]
        match.CopyFrom(numpy_helper.from_array(after[name].detach().contiguous().numpy(), match.name))
    with files.replacing(path) as temporary:
        onnx.save(model, str(temporary))
