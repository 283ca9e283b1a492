"""The hardened detector with its sidecar, like any other detector: as ONNX, or as the torch module that it was."""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan_mask import files, pretrained
from gan_mask.errors import GanMaskError
from gan_mask.harden.options import HardenConfig
from gan_mask.pretrained.classifier import CLASSES, MaskClassifier
from gan_mask.pretrained.protocol import Detector
from gan_mask.pretrained.sidecar import SidecarClassifier, file_of, read_sidecar
from gan_mask.values import to_dict


def export(c: HardenConfig, detector: Detector, original: dict[str, Tensor], out: Path) -> Path:
    """hardened.json, the sidecar of the hardened detector, and what it names; checked against the detector itself.

    Of a torch module that is a torch module again, with hardened-onnx.json beside it where ONNX can hold it.
    """
    from gan_mask.pretrained import classifier, torch_module

    path, source = out / "hardened.json", Path(files.split_scheme(c.detector)[1])
    if isinstance(detector, MaskClassifier):
        # Without the card's test figures: they are those of the detector as it was.
        kept = {k: v for k, v in detector.card.items() if k != "test"}
        card = {**kept, "hardened": options_of(c)}
        classifier.save(detector.net, out / "hardened.safetensors", card)
        to_onnx(detector.net, (detector.net.size,) * 2, out / "hardened.onnx")
        described(path, ABOUT_OURS | {"size": [detector.net.size] * 2}, "hardened.onnx")
    elif isinstance(detector, SidecarClassifier) and c.detector.startswith("torch:"):
        about = read_sidecar(source, torch_module.KIND)
        torch_module.save(detector.net, out / "hardened.safetensors")
        described(path, about, "hardened.safetensors")
        onnx_beside(detector, about, out)
    else:
        about = read_sidecar(source, "ssd", "classifier")
        net = vars(detector)["_modules"]["net"]
        rewrite_onnx(file_of(source, about), original, dict(net.named_parameters()), out / "hardened.onnx")
        described(path, about, "hardened.onnx")
    check_same(detector, hardened_name(c))
    return path


def hardened_name(c: HardenConfig) -> str:
    """What commands call the hardened detector: a torch module stays one, all else is ONNX."""
    return f"{'torch' if c.detector.startswith('torch:') else 'onnx'}:{Path(c.out) / 'hardened.json'}"


def described(path: Path, about: dict[str, Any], file: str) -> None:
    """Write the sidecar `path` of the file of that name beside it."""
    files.write_json(path, {**about, "file": file, "sha256": files.sha256(path.with_name(file))})


def check_same(detector: Detector, name: str) -> None:
    """Raises GanMaskError unless what was written answers as the detector does."""
    again = pretrained.load_detector(name)
    picture = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(detector(picture), again(picture), strict=True):
            if not torch.allclose(ours, theirs, atol=1e-3):
                raise GanMaskError(f"{name}: differs from the detector that it was made from")


def onnx_beside(detector: SidecarClassifier, about: dict[str, Any], out: Path) -> None:
    """hardened.onnx and hardened-onnx.json of a torch module; a note where its operations are none of ONNX's."""
    path = out / "hardened-onnx.json"
    try:
        to_onnx(detector.net, detector.size, out / "hardened.onnx")
        kept = {key: value for key, value in about.items() if key not in ("factory", "arguments")}
        described(path, {**kept, "kind": "classifier"}, "hardened.onnx")
        check_same(detector, f"onnx:{path}")
    except Exception as error:  # the exporter and onnx2torch raise their own kinds
        for file in (path, out / "hardened.onnx"):
            file.unlink(missing_ok=True)
        print(f"note: {out / 'hardened.onnx'}: not written, ONNX cannot hold this module ({error})", file=sys.stderr)


def options_of(c: HardenConfig) -> dict[str, Any]:
    """The options as the exported file tells them, which is passed on."""

    def told(value: Any) -> Any:
        if isinstance(value, list):
            return [told(item) for item in value]
        return files.without_folder(value) if isinstance(value, str) else value

    return {name: told(value) for name, value in to_dict(c).items() if name not in ("data", "out")}


ABOUT_OURS = {  # what the sidecar of our classifier as ONNX says; its size is the network's
    "kind": "classifier", "mean": [0, 0, 0], "std": [255, 255, 255], "channel_order": "RGB", "output": "logits",
    "mask_class": CLASSES.index("masked"), "background_class": CLASSES.index("background"),
    "source": "gan_mask.harden", "licence": "Apache-2.0",
}  # fmt: skip


def to_onnx(net: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write a network that takes pictures [B,3,*size] as ONNX."""
    batch = {"image": {0: "batch"}, "logits": {0: "batch"}}
    # The exporter without `dynamo` needs no further package; torch 2.4 knows no other.
    old: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    picture: Any = torch.zeros(2, 3, *size)
    with warnings.catch_warnings(), files.replacing(path) as temporary:
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (picture,), str(temporary), input_names=["image"], output_names=["logits"],
                          dynamic_axes=batch, opset_version=17, **old)  # fmt: skip


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
