"""Mask detectors that are torch modules: torch:SIDECAR.json, and what such a file may not do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import REPOSITORY
from test_harden import options, people

from gan_mask.errors import GanMaskError
from gan_mask.files import sha256
from gan_mask.harden.command import harden
from gan_mask.pretrained import load_detector, torch_module
from gan_mask.pretrained.protocol import fingerprint

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's and timm's models take them


def mobilenet(folder: Path, **keys: Any) -> Path:
    """The sidecar of torchvision's small MobileNet with two classes and random weights: mechanics, no detector."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.mobilenet_v3_small(num_classes=2)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        net(torch.rand(16, 3, 96, 96))  # else all of its answers are nearly 0
    torch_module.save(net, folder / "mobilenet.safetensors")
    sidecar = {
        "kind": "torch-classifier", "factory": "torchvision.models.mobilenet_v3_small", "arguments": {"num_classes": 2},
        "file": "mobilenet.safetensors", "sha256": sha256(folder / "mobilenet.safetensors"), "size": [96, 96],
        "mean": [255 * v for v in MEAN], "std": [255 * v for v in STD], "channel_order": "RGB", "output": "logits",
        "mask_class": 1,
    }  # fmt: skip
    path = folder / "mobilenet.json"
    path.write_text(json.dumps({k: v for k, v in {**sidecar, **keys}.items() if v is not None}))
    return path


def test_a_torchvision_model_is_a_detector(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from torchvision.transforms.v2.functional import normalize

    before = torch.random.get_rng_state()
    detector = load_detector(f"torch:{mobilenet(tmp_path)}")
    assert torch.equal(torch.random.get_rng_state(), before)  # building it draws nothing from its caller
    net = torchvision.models.mobilenet_v3_small(num_classes=2).eval()
    net.load_state_dict(load_file(tmp_path / "mobilenet.safetensors"))
    faces = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = net(normalize(faces.detach(), list(MEAN), list(STD))).softmax(1)[:, 1]
    mask_logit, face_logit = detector(faces)
    torch.testing.assert_close(mask_logit.sigmoid(), expected, atol=1e-5, rtol=0)
    assert (face_logit > 0).all()
    mask_logit.sum().backward()
    assert faces.grad is not None and faces.grad.abs().sum() > 0


def test_the_documented_sidecar_is_one(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    keys = json.loads(page.partition("```json\n")[2].partition("```")[0])
    path = mobilenet(tmp_path, **{**keys, "file": "mobilenet.safetensors", "sha256": None})
    assert load_detector(f"torch:{path}")(torch.rand(2, 3, 160, 160))[0].shape == (2,)


def test_a_timm_model_is_a_detector(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch_module.save(timm.create_model("resnet10t", num_classes=1), tmp_path / "mobilenet.safetensors")
    keys = {"factory": "timm.create_model", "arguments": {"model_name": "resnet10t", "num_classes": 1}, "sha256": None}
    path = mobilenet(tmp_path, **keys)
    torch_module.save(timm.create_model("resnet10t", num_classes=1), tmp_path / "mobilenet.safetensors")
    mask_logit, _ = load_detector(f"torch:{path}")(torch.rand(2, 3, 160, 160))
    assert mask_logit.shape == (2,)
    for name in ("hf-hub:timm/resnet10t", "local-dir:/tmp", "no such model"):
        path = mobilenet(tmp_path, **{**keys, "arguments": {"model_name": name}})
        with pytest.raises(GanMaskError, match="no model_name"):
            load_detector(f"torch:{path}")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"factory": "os.system", "arguments": {"command": "touch ran"}}, "GAN_MASK_FACTORIES=os.system"),
        ({"factory": "torch.load", "arguments": {"f": "weights.pt"}}, "GAN_MASK_FACTORIES=torch.load"),
        ({"factory": "torchvision.models.get_model", "arguments": {}}, "no classification model 'get_model'"),
        ({"factory": "torchvision.models.resnet.load_state_dict_from_url"}, "no classification model"),
        ({"factory": "torchvision.models.fasterrcnn_resnet50_fpn"}, "no classification model"),
        ({"arguments": {"weights": "DEFAULT"}}, "argument 'weights'"),
        ({"arguments": {"weights": True}}, "argument 'weights' is not allowed"),
        ({"arguments": {"num_classes": 3}}, "not the weights of"),
        ({"arguments": {"num_classes": -1}}, "mobilenet_v3_small fails"),
        ({"arguments": [2]}, "'arguments' is not as described"),
        ({"factory": None}, "missing factory"),
        ({"kind": "classifier", "factory": None}, "'kind' is 'classifier'; 'torch-classifier' expected"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"file": "absent.safetensors"}, "absent.safetensors"),
        ({"mask_class": 2}, "beyond the network's outputs"),
    ],
)  # fmt: skip
def test_what_a_sidecar_may_not_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GanMaskError, match=message):
        load_detector(f"torch:{mobilenet(tmp_path, **keys)}")
    assert not (tmp_path / "ran").exists()


def test_a_function_of_one_s_own_code_must_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_nets.py").write_text(
        "from torch import nn\n"
        "def small(widths, activation):\n"
        "    hidden = nn.Linear(192, widths[0])\n"
        "    return nn.Sequential(nn.Flatten(), hidden, getattr(nn, activation)(), nn.Linear(4, 1))\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = {"factory": "our_nets.small", "arguments": {"widths": [4], "activation": "ReLU"}, "sha256": None}
    path = mobilenet(tmp_path, **keys, size=[8, 8], mask_class=1)
    with pytest.raises(GanMaskError, match="GAN_MASK_FACTORIES=our_nets.small"):
        load_detector(f"torch:{path}")
    monkeypatch.setenv("GAN_MASK_FACTORIES", "other.net:our_nets.small:our_nets.wrong:our_nets.none")
    import our_nets  # type: ignore[import-not-found]

    torch_module.save(our_nets.small([4], "ReLU"), tmp_path / "mobilenet.safetensors")
    assert load_detector(f"torch:{path}")(torch.rand(2, 3, 32, 32))[0].shape == (2,)
    for name, message in (("our_nets.wrong", "gives a int"), ("our_nets.none", "no function or class 'none'")):
        with pytest.raises(GanMaskError, match=message):
            load_detector(f"torch:{mobilenet(tmp_path, factory=name, arguments={}, sha256=None)}")


def test_its_digest_changes_with_weights_and_sidecar(tmp_path: Path) -> None:
    name = f"torch:{mobilenet(tmp_path)}"
    first = fingerprint(name, load_detector(name))
    mobilenet(tmp_path, size=[64, 64])
    assert fingerprint(name, load_detector(name)) != first


def test_it_is_fine_tuned_and_written_as_a_torch_module_and_as_onnx(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, out = f"torch:{mobilenet(tmp_path)}", tmp_path / "hardened"
    before = (tmp_path / "mobilenet.safetensors").read_bytes()
    harden(replace(options(prepared, out), detector=name, steps=(3,), pool=16))
    assert (tmp_path / "mobilenet.safetensors").read_bytes() == before
    told = capsys.readouterr().out
    assert f"--before {name} --after torch:{out / 'hardened.json'}" in told and "gan_mask.harden.table" in told
    _, faces, _ = people(prepared)
    after, onnx = load_detector(f"torch:{out / 'hardened.json'}"), load_detector(f"onnx:{out / 'hardened-onnx.json'}")
    with torch.no_grad():
        assert not torch.allclose(after(faces)[0], load_detector(name)(faces)[0], atol=1e-3)
        torch.testing.assert_close(onnx(faces)[0], after(faces)[0], rtol=1e-4, atol=1e-3)
