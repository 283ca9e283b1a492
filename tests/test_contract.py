"""What every network must answer: rows, finite numbers, weights that its checksum covers."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import embedded_photo, status
from fakes import FakeDetector, FakeEmbedder
from torch import Tensor, nn

from gan_mask import attacks, evaluation, pretrained, sampling
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import embedder_thresholds
from gan_mask.harden import alarm
from gan_mask.pretrained import contract, load_detector, load_embedder

CASES = Path(__file__).parent / "cases"
FACES = torch.rand(5, 3, 96, 96, generator=torch.Generator().manual_seed(1))
POINTS = torch.from_numpy(np.random.default_rng(0).uniform(20, 76, (5, 68, 2))).float()


def onnxruntime_says(path: Path, pictures: Tensor) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(path))
    return np.concatenate([session.run(None, {"input.1": picture[None].numpy()})[0] for picture in pictures])


# ------------------------------------------------------------------------------------------- rows


def as_embedder(folder: Path) -> str:
    """The sidecar of the detector for one row, told to be an embedder."""
    shutil.copyfile(CASES / "10_detector_batch1.onnx", folder / "one.onnx")
    sidecar = json.loads((CASES / "14_embedder_external.json").read_text())
    (folder / "one.json").write_text(json.dumps(sidecar | {"file": "one.onnx", "size": [64, 64]}))
    return f"onnx:{folder}/one.json"


def test_a_network_for_one_row_is_run_row_by_row_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = load_detector(f"onnx:{CASES}/10_detector_batch1.json")
    assert (
        "10_detector_batch1.onnx: exported for one picture at a time, so it is run row by row"
        in capsys.readouterr().err
    )
    small = FACES[..., :64, :64]
    logits = torch.from_numpy(onnxruntime_says(CASES / "10_detector_batch1.onnx", (small * 255 - 127.5) / 127.5))
    mask_logit, _ = detector(small)
    assert torch.allclose(mask_logit, logits[:, 1] - logits[:, 0], atol=1e-5) and len(mask_logit.unique()) == 5
    embedder = load_embedder(as_embedder(tmp_path))
    assert embedder(FACES, POINTS).shape == (5, 2)


def tiny(folder: Path, shape: list[Any], kind: int, *nodes: Any, inputs: int = 1) -> str:
    """A classifier of this input, by global mean colours; `nodes` come before."""
    from onnx import TensorProto, helper, save

    names = ["image"] + [f"more{i}" for i in range(1, inputs)]
    last = nodes[-1].output[0] if nodes else "image"
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("GlobalAveragePool", [last], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["out"]),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "tiny.onnx")
    sidecar = json.loads((CASES / "10_detector_batch1.json").read_text())
    (folder / "tiny.json").write_text(json.dumps(sidecar | {"file": "tiny.onnx"}))
    return f"onnx:{folder}/tiny.json"


def test_files_of_another_kind_are_refused_by_its_name(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    cast = onnx.helper.make_node("Cast", ["image"], ["cast"], to=single)
    with pytest.raises(GanMaskError, match="tiny.onnx: its input is float16; .* export it in float32"):
        load_detector(tiny(tmp_path, ["n", 3, 64, 64], half, cast))
    turned = onnx.helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2])
    with pytest.raises(GanMaskError, match="tiny.onnx: its input is NHWC, 64 x 64 x 3; .*--inputs-as-nchw image"):
        load_detector(tiny(tmp_path, ["n", 64, 64, 3], single, turned))
    with pytest.raises(GanMaskError, match="one input expected, it has image, more1"):
        load_detector(tiny(tmp_path, ["n", 3, 64, 64], single, inputs=2))


class Odd(FakeDetector):
    """Broken in one way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        mask, face = super().forward(faces)
        broken: dict[str, tuple[Tensor, Tensor]] = {
            "constant": (torch.full_like(mask, 2.0), face),
            "column": (mask[:, None], face),
            "batch": (mask - mask.mean(), face),
            "integers": (mask.long(), face.long()),
            "short": (mask[:1], face[:1]),
        }
        return broken[self.way]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("constant", "answers the same"),
        ("column", r"two logits \(3,\) each expected"),
        ("batch", "otherwise for a picture alone"),
        ("integers", "torch.int64"),
        ("short", r"found \[\[1\], \[1\]\]"),
    ],
)
def test_what_a_detector_must_answer(monkeypatch: pytest.MonkeyPatch, way: str, message: str) -> None:
    monkeypatch.setitem(pretrained.DETECTORS, "odd", lambda name: Odd(way))  # type: ignore[arg-type,return-value]
    with pytest.raises(GanMaskError, match=f"^odd: .*{message}"):
        load_detector("odd")


# ------------------------------------------------------------------------------------------- finite answers


def test_a_network_of_nan_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(
        GanMaskError, match=r"12_detector_nan.json: answers NaN or infinity for the first synthetic face"
    ):
        load_detector(f"onnx:{CASES}/12_detector_nan.json")


class Moody:
    """Answers as it should when it is loaded, and later NaN or infinity for the last row of a batch."""

    def __init__(self, network: nn.Module, value: float = float("nan")) -> None:
        self.calls = 0

        def spoil(module: nn.Module, arguments: Any, output: Any) -> None:
            self.calls += 1
            if self.calls > 2:
                (output[0] if isinstance(output, tuple) else output)[-1] = value

        network.register_forward_hook(spoil)


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch, fakes: None) -> None:
    """The embedder and the detector 'moody'."""

    def spoilt(network: nn.Module, value: float) -> nn.Module:
        Moody(network, value)
        return network

    monkeypatch.setitem(pretrained.EMBEDDERS, "moody", lambda name: spoilt(FakeEmbedder(), float("nan")))  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(pretrained.DETECTORS, "moody", lambda name: spoilt(FakeDetector(), float("-inf")))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(("embedder", "detector"), [("moody", "fake"), ("fake", "moody")])
def test_every_command_names_network_and_photo(
    moody: None, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], embedder: str, detector: str
) -> None:
    networks = ["--embedders", embedder, "--detectors", detector]
    evaluate = ["--data", str(prepared), "--out", str(tmp_path / "evaluation"), *networks, "--methods", "dm"]
    limit = ["--stored-thresholds", "--probes", "2", "--require", "dm/face_found>=0"]
    assert status(evaluation.main, [*evaluate, *limit]) == 2, "a limit does not hold for a NaN"
    error = capsys.readouterr().err
    assert "error: moody: answers NaN or infinity for id_00" in error and "/view_" in error
    faces = tmp_path / "photos"
    faces.mkdir()
    (faces / "ann.webp").write_bytes(embedded_photo("id_0004/view_1"))
    assert status(sampling.main, ["--faces", str(faces), "--out", str(tmp_path / "masked"), *networks]) == 2
    assert "moody: answers NaN or infinity for ann.webp" in capsys.readouterr().err
    options = ["--data", str(prepared), "--out", str(tmp_path / "alarm.json"), "--against", "dm", "--faces", "4"]
    assert status(alarm.main, [*options, "--detector", detector, "--embedders", embedder]) == 2
    assert "moody: answers NaN or infinity for row" in capsys.readouterr().err


def test_an_attack_names_the_photo_of_a_face_that_is_left(moody: None) -> None:
    detector = load_detector("moody")
    attack = attacks.MF2M(Surrogates([], [], [detector]), attacks.Options(steps=3))
    work = attack._begin(FACES, POINTS, torch.full((5, 3, 24, 32), 0.5))
    attack._begin = lambda *inputs: work.keep(torch.tensor([True, False, True, False, False]))  # type: ignore[method-assign]
    with pytest.raises(contract.NotFinite, match="moody: .* infinity for c"), contract.naming("abcde"):
        attack.apply(FACES, POINTS, torch.full((1, 3, 24, 32), 0.5))


def test_calibration_and_training_name_network_and_photo(
    moody: None, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gan_mask import training

    assert status(embedder_thresholds.main, ["--data", str(prepared), "--embedder", "moody", "--device", "cpu"]) == 2
    assert "moody: answers NaN or infinity for id_0032/view_3" in capsys.readouterr().err
    run = ["--data", str(prepared), "--steps", "1", "--perceptual", "0", "--workers", "0", "--out"]
    assert status(training.main, [*run, str(tmp_path / "a"), "--embedders", "moody", "--detectors", "fake"]) == 2
    assert "moody: answers NaN or infinity for id_" in capsys.readouterr().err
    assert status(training.main, [*run, str(tmp_path / "b"), "--embedders", "fake", "--detectors", "moody"]) == 2
    assert "moody: answers NaN or infinity for row" in capsys.readouterr().err


def test_gradients_go_through_a_watched_network() -> None:
    network = nn.Linear(2, 1)
    contract.watch(network, "watched")
    picture = torch.ones(3, 2, requires_grad=True)
    network(picture).sum().backward()
    assert picture.grad is not None and torch.equal(picture.grad, network.weight.detach().expand(3, 2))
    with pytest.raises(contract.NotFinite, match="watched: .* row 1 of a batch, row 2 of a batch"):
        network(torch.tensor([[1.0, 1.0], [float("inf"), 1.0], [1.0, float("nan")]]))


# ------------------------------------------------------------------------------------------- checksums


def test_weights_beside_the_file_belong_to_its_checksum(tmp_path: Path) -> None:
    for end in ("json", "onnx", "data"):
        shutil.copyfile(CASES / f"14_embedder_external.{end}", tmp_path / f"14_embedder_external.{end}")
    path, data = tmp_path / "14_embedder_external.json", tmp_path / "14_embedder_external.data"
    together = hashlib.sha256((tmp_path / "14_embedder_external.onnx").read_bytes() + data.read_bytes()).hexdigest()
    assert load_embedder(f"onnx:{path}").weights_sha256 == together
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": together}))
    load_embedder(f"onnx:{path}")
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(GanMaskError, match=f"14_embedder_external.onnx: SHA-256 is .*expects {together}"):
        load_embedder(f"onnx:{path}")
