"""Hardening a mask detector: on held-out people, resumed, exported; the faced-mask alarm and its false alarms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fakes import FakeDetector, FakeEmbedder
from onnx import TensorProto, helper, numpy_helper
from test_pretrained import tiny_classifier

from gan_mask import harden, masking, run_record, templates
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import redetection
from gan_mask.faces import align, to_tensors
from gan_mask.generator import load_generator
from gan_mask.harden import alarm, blends, fit, pictures, table
from gan_mask.harden.command import harden as run
from gan_mask.harden.export import options_of
from gan_mask.harden.options import HardenConfig
from gan_mask.harden.pools import Wardrobe, make_pool
from gan_mask.harden.score_attack import ScoreAttack
from gan_mask.landmarks import frame
from gan_mask.pretrained import load_detector
from gan_mask.pretrained.protocol import resize

TRAINED_ON = ("face-003", "face-010", "face-020", "face-030")
HELD_OUT = ("face-040", "face-044")


def options(prepared: Path, out: Path) -> HardenConfig:
    return HardenConfig(
        data=str(prepared), out=str(out), against=("dm",), templates=TRAINED_ON, rounds=1, steps=(30,), batch_size=16,
        pool=64, save_every=10, workers=0, learning_rate=1e-3, false_alarms=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hardened(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hardened")
    run(options(prepared, out))
    return out


def people(prepared: Path) -> tuple[PreparedSet, torch.Tensor, torch.Tensor]:
    photos = PreparedSet(prepared, "test")
    items = [photos[i] for i in range(len(photos))]
    return photos, torch.stack([i["face"] for i in items]), torch.stack([i["landmarks"] for i in items])


def reported(detector: torch.nn.Module, faces: torch.Tensor) -> float:
    with torch.no_grad():
        return float((detector(faces)[0] > 0).float().mean())


def test_a_short_run_tells_faced_masks_of_held_out_people_apart_better(prepared: Path, hardened: Path) -> None:
    before, after = load_detector("classifier"), load_detector(f"onnx:{hardened / 'hardened.json'}")
    _, faces, landmarks = people(prepared)
    bank = templates.load_all(HELD_OUT)
    worn = masking.wear(faces, landmarks, bank[torch.arange(len(faces)) % len(bank)], 0.03)
    rng = np.random.default_rng(0)
    ordinary = [pictures.ordinary_mask(f, p, rng) for f, p in zip(faces, landmarks, strict=True)]
    with torch.no_grad():
        gap = [(d(worn)[0] - d(faces)[0]).mean() for d in (before, after)]
        assert gap[1] > gap[0]
        assert (after(faces)[1] > 0).all()  # faces are still faces
    assert reported(after, torch.stack(ordinary)) >= 0.9


def test_the_operating_point_allows_so_many_false_alarms_on_the_val_split(prepared: Path, hardened: Path) -> None:
    photos = PreparedSet(prepared, "val")
    bare = torch.stack([photos[i]["face"] for i in range(len(photos))])
    assert reported(load_detector(f"onnx:{hardened / 'hardened.json'}"), bare) <= 0.1


def test_nothing_that_was_reported_before_goes_unreported(prepared: Path, hardened: Path) -> None:
    _, faces, landmarks = people(prepared)
    rng = np.random.default_rng(0)
    worn = torch.stack([pictures.ordinary_mask(f, p, rng) for f, p in zip(faces, landmarks, strict=True)])
    worn = resize(worn, 160, 160)  # the crops that detectors are shown
    for after in (load_detector(f"onnx:{hardened / 'hardened.json'}"), load_detector("classifier-hardened")):
        with torch.no_grad():
            assert (after(worn)[0] >= load_detector("classifier")(worn)[0] - 1e-3).all()


def test_the_closer_look_sees_the_crop_s_own_pixels_around_the_face() -> None:
    from gan_mask.pretrained.classifier import CloseNet

    net = CloseNet().eval()
    faces = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(faces[:, :, 44:156, 24:136], (160, 160), mode="bilinear")
    torch.testing.assert_close(net.view(faces), expected, atol=1e-5, rtol=0)
    points = frame(160, 0.375)  # the whole jaw is in it
    assert (points[:17] > torch.tensor([24, 44])).all() and (points[:17] < torch.tensor([135, 155])).all()


def test_what_is_shipped_is_small_and_holds_the_second_network_alone() -> None:
    from safetensors import safe_open

    from gan_mask.pretrained.classifier import HARDENED

    assert HARDENED.stat().st_size < 3e6
    with safe_open(HARDENED, "pt") as f:
        assert all(key.startswith("second.") for key in f.keys())


def test_onnx_is_the_same_network(hardened: Path) -> None:
    from gan_mask.pretrained.classifier import load

    faces = torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    detector = load(hardened / "hardened.safetensors")
    with torch.no_grad():
        expected = detector.net(faces)
        again = load_detector(f"onnx:{hardened / 'hardened.json'}")(faces)
    session = onnxruntime.InferenceSession(str(hardened / "hardened.onnx"))
    (found,) = session.run(None, {"image": faces.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    for ours, theirs in zip(detector(faces), again, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_an_interrupted_run_ends_with_the_same_weights(
    prepared: Path, hardened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = fit.save_state, []

    def interrupted(*args: object) -> None:
        save(*args)  # type: ignore[arg-type]
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(options(prepared, tmp_path))
    run(options(prepared, tmp_path))
    from safetensors.torch import load_file

    whole, resumed = (load_file(folder / "hardened.safetensors") for folder in (hardened, tmp_path))
    assert all(torch.allclose(whole[key], resumed[key], atol=1e-6) for key in whole)


def test_other_options_need_another_folder(prepared: Path, hardened: Path) -> None:
    with pytest.raises(GanMaskError, match="other inputs .steps.*another --out"):
        run(replace(options(prepared, hardened), steps=(31,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "X"], "--out"),
        (["--data", "X", "--out", "Y", "--against", "plain"], "--against plain"),
        (["--data", "X", "--out", "Y", "--against", "generator"], "--checkpoint"),
        (["--data", "X", "--out", "Y", "--against", "dm", "--steps", "0"], "--steps"),
        (["--data", "X", "--out", "Y", "--against", "blend", "--batch_size", "5"], "--batch_size"),
    ],
)
def test_wrong_options_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        harden.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_onnx_detector_is_fine_tuned_and_written_back(prepared: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "conv": rng.normal(0, 0.2, (8, 3, 3, 3)), "conv_bias": np.zeros(8), "fc": rng.normal(0, 0.2, (8, 2)),
        "fc_bias": np.zeros(2),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "conv", "conv_bias"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "fc", "fc_bias"], ["logits"], transB=1),
    ]
    weights["fc"] = weights["fc"].T.copy()
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "t.onnx")
    sidecar = {
        "kind": "classifier", "file": "t.onnx", "size": [32, 32], "mean": [127, 127, 127], "std": [64, 64, 64],
        "channel_order": "BGR", "output": "logits", "mask_class": 1,
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(sidecar))
    c = replace(
        options(prepared, tmp_path / "out"), detector=f"onnx:{tmp_path / 't.json'}", steps=(8,), learning_rate=0.1
    )
    after = load_detector(f"onnx:{run(c)}")  # the export is checked against the network that was trained
    _, faces, _ = people(prepared)
    with torch.no_grad():
        assert not torch.allclose(after(faces)[0], load_detector(c.detector)(faces)[0], atol=1e-2)


# ------------------------------------------------------------------------------------------- what is learned from


def test_a_detector_without_weights_is_told(prepared: Path, tmp_path: Path) -> None:
    sidecar = tiny_classifier(tmp_path, 3)
    with pytest.raises(GanMaskError, match="no weights"):
        run(replace(options(prepared, tmp_path / "out"), detector=f"onnx:{sidecar}"))


def test_blends_change_the_lower_face_alone_and_are_drawn_anew(prepared: Path) -> None:
    _, faces, landmarks = people(prepared)
    bank = templates.load_all(TRAINED_ON)[torch.arange(len(faces)) % len(TRAINED_ON)]
    blend, same = blends.Blend(3), blends.Blend(3)
    inside = masking.region(landmarks, *faces.shape[2:]) > 0
    drawn = [blend.mask(faces, landmarks, bank)[0] for _ in range(6)]
    for worn in drawn:
        outside = (worn - faces).abs() * ~inside
        assert outside.max() <= 1 / 255
        assert ((worn - faces).abs() * inside).amax((1, 2, 3)).median() > 0.05
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], same.mask(faces, landmarks, bank)[0])


def test_a_random_other_face_is_as_likely_as_an_attack_s(prepared: Path) -> None:
    from gan_mask import facespace
    from gan_mask.augment import Draws

    bank = templates.load_all(TRAINED_ON)
    other = blends.other_face(bank, Draws(0, 0, range(len(bank)), len(bank), "cpu"))
    moved = facespace.coordinates(other, facespace.basis_for(bank)) - facespace.coordinates(
        bank, facespace.basis_for(bank)
    )
    assert 0.1 < float(moved.abs().mean()) < 2.5
    assert (other - bank)[:, :, 0].abs().max() < 1e-5  # nothing changes at the seam


def test_masks_show_what_suits_or_any_template_or_another_person(prepared: Path) -> None:
    photos, faces, landmarks = people(prepared)

    def shown(others: float, suited: float, names: tuple[str, ...] = TRAINED_ON) -> torch.Tensor:
        rng = np.random.default_rng(0)
        return Wardrobe(photos, names, masking.TEXTURE, rng, others, suited).draw(faces, landmarks)

    def are_templates(textures: torch.Tensor) -> torch.Tensor:
        return (textures[:, None] == templates.load_all(TRAINED_ON)).flatten(2).all(2).any(1)

    assert torch.equal(shown(0, 1), templates.load_all(templates.best(faces, landmarks, TRAINED_ON)))
    assert are_templates(shown(0, 0)).all() and not are_templates(shown(1, 0)).any()
    mixed = are_templates(shown(0.5, 0)).float().mean()
    assert 0.1 < mixed < 0.9
    assert torch.equal(shown(0, 1, ("plain",)), shown(0, 0, ("plain",)))  # nothing there that could suit


def test_examples_are_pairs_of_a_masked_and_the_same_bare_face(prepared: Path, hardened: Path) -> None:
    c = options(prepared, hardened)
    photos = PreparedSet(prepared, "train")
    pools = [make_pool(c, photos, load_detector("classifier"), "dm", 1)]
    examples = fit.Examples(c, photos, pools, None, 1)
    alike = []
    for i in range(0, 40, 2):
        (masked, label), (bare, other) = examples[i], examples[i + 1]
        assert label in (pictures.MASKED, pictures.BACKGROUND) and other == pictures.BARE
        if label == pictures.MASKED:
            change = (masked - bare).abs().mean(0)
            alike.append(float(change[:16].mean() / change[36:].mean()))  # above and below the eyes
    assert np.median(alike) < 0.2


# ------------------------------------------------------------------------------------------- the alarm


def test_halves_part_at_the_upper_edge_of_a_mask() -> None:
    landmarks = frame(160, 0.375)[None]
    faces = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    masked = masking.wear(faces, landmarks, torch.zeros(1, 3, *masking.TEXTURE))
    upper, lower = alarm.halves(faces, landmarks)
    torch.testing.assert_close(alarm.halves(masked, landmarks)[0], upper, atol=0, rtol=0)
    eyes = landmarks[0, 36:48].long()
    assert (upper[0, :, eyes[:, 1], eyes[:, 0]] == faces[0, :, eyes[:, 1], eyes[:, 0]]).all()
    assert (lower[0, :, 159] == faces[0, :, 159]).all()


def test_threshold_keeps_its_false_alarm_rate() -> None:
    scores = np.random.default_rng(0).normal(size=1000)
    at = alarm.threshold(scores, 0.01)
    assert (scores > at).sum() == 10
    assert (np.zeros(50) > alarm.threshold(np.zeros(50), 0.01)).sum() == 0  # ties raise no alarm


def test_logistic_regression_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    y = np.repeat([0.0, 1.0], 200)
    x = rng.normal(size=(400, 3)) + y[:, None] * [1.0, 0.3, 0.0]
    weights, intercept = alarm.logistic(x, y, ridge=1e-9)
    reference = LogisticRegression(C=1e9).fit(x, y)
    np.testing.assert_allclose(weights, reference.coef_[0], atol=1e-3)
    assert intercept == pytest.approx(reference.intercept_[0], abs=1e-3)


def fake_alarm(folder: Path) -> Path:
    """The file of an alarm on the fake networks."""
    features = alarm.Features(FakeDetector(), [FakeEmbedder()])  # type: ignore[arg-type,list-item]
    path = folder / "alarm.json"
    path.write_text(json.dumps({
        "detector": "fake", "embedders": ["fake"], "intercept": -1.0, "code": run_record.CODE["alarm"],
        "weights": dict(zip(features.names, [1.0, 2.0, 3.0, 4.0], strict=True)),
        "usual": dict.fromkeys(features.names, 0.5),
    }))  # fmt: skip
    return path


def test_a_calibrated_alarm_comes_back_from_its_file(tmp_path: Path, fakes: None) -> None:
    features, path = alarm.Features(FakeDetector(), [FakeEmbedder()]), fake_alarm(tmp_path)  # type: ignore[arg-type,list-item]
    faces, landmarks = torch.rand(5, 3, 64, 64), frame(64, 0.375).expand(5, -1, -1)
    expected = features(faces, landmarks).numpy() @ np.array([1.0, 2, 3, 4]) - 1
    loaded = alarm.load(path)
    np.testing.assert_allclose(loaded(faces, landmarks), expected, rtol=1e-5)
    told = loaded.explain(faces, landmarks)
    np.testing.assert_allclose([sum(terms.values()) for terms in told], expected, rtol=1e-4)
    assert told[0]["usual"] == pytest.approx(0.5 * 10 - 1)  # of a face whose features are all usual
    path.write_text("{}")
    with pytest.raises(GanMaskError, match="not a faced-mask alarm"):
        alarm.load(path)


def test_an_attack_sees_the_alarm_as_a_detector(fakes: None) -> None:
    features = alarm.Features(FakeDetector(), [FakeEmbedder()])  # type: ignore[arg-type,list-item]
    raised = alarm.Alarm(features, np.array([1.0, 2.0, 3.0, 4.0]), -1.0, np.zeros(4))
    faces = torch.rand(2, 3, 64, 64, requires_grad=True)
    score, face = alarm.as_detector(raised)(faces)
    torch.testing.assert_close(score, raised(faces, frame(64, 0.375).expand(2, -1, -1)))
    assert (face > 0).all()
    score.sum().backward()
    assert faces.grad is not None and faces.grad.abs().sum() > 0


def test_whoever_may_ask_evades_without_a_gradient(prepared: Path) -> None:
    _, faces, landmarks = people(prepared)
    faces, landmarks, generator = faces[:6], landmarks[:6], load_generator()
    texture = templates.load_all(templates.FACES[:6])  # some of which suit badly, and are reported
    detector, asked = load_detector("classifier-hardened"), []

    def answers(shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(shown))
        assert not torch.is_grad_enabled()
        return detector(shown)

    masked, result = ScoreAttack(generator, answers, queries=80).mask(faces, landmarks, texture)
    assert result.iterations is not None
    assert sum(asked) == int(result.iterations.sum()) and int(result.iterations.max()) <= 80
    with torch.no_grad():
        before, after = detector(generator(faces, landmarks, texture))[0], detector(masked)[0]
    assert (after <= before + 0.1).all()  # its goal is met, or something better was found
    assert (after > 0).sum() < (before > 0).sum()


# ------------------------------------------------------------------------------------------- the table


def test_the_periocular_fallback_is_embedded_and_kept_like_any_recogniser(prepared: Path, tmp_path: Path) -> None:
    photos, index = PreparedSet(prepared, "test"), np.arange(3)
    whole, upper = FakeEmbedder(), alarm.UpperFace(FakeEmbedder())  # type: ignore[arg-type]
    one = redetection.embed_clean("upper fake", upper, photos, index, tmp_path, "cpu")  # type: ignore[arg-type]
    again = redetection.embed_clean("upper fake", upper, photos, index, tmp_path, "cpu")  # type: ignore[arg-type]
    other = redetection.embed_clean("fake", whole, photos, index, tmp_path, "cpu")  # type: ignore[arg-type]
    assert np.array_equal(one, again) and not np.allclose(one, other)
    items = [photos[int(i)] for i in index]
    expected = upper(torch.stack([i["face"] for i in items]), torch.stack([i["landmarks"] for i in items]))
    np.testing.assert_allclose(one, expected.numpy(), rtol=1e-6)


def test_auc_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 50).astype(float), rng.integers(0, 6, 70).astype(float)
    expected = roc_auc_score(np.repeat([1, 0], [50, 70]), np.concatenate([positive, negative]))
    cell = table.auc_cell(positive, np.arange(50), negative, np.arange(70))
    assert cell["rate"] == pytest.approx(expected)


# ------------------------------------------------------------------------------------------- what is shipped


def test_the_shipped_classifier_flags_what_the_original_misses() -> None:
    """DM masks with held-out templates on synthetic people: neither was in its training as a wearer."""
    before, after = load_detector("classifier"), load_detector("classifier-hardened")
    photos, points = (part[:36] for part in templates._people())
    images = [np.ascontiguousarray((p.permute(1, 2, 0) * 255).byte().numpy()) for p in photos]
    crops = [align(p, marks.numpy(), 160, 0.375) for p, marks in zip(images, points, strict=True)]
    faces, landmarks = to_tensors(crops, "cpu")
    bank = templates.load_all(HELD_OUT)
    worn = masking.wear(faces, landmarks, bank[torch.arange(len(faces)) % len(bank)], 0.03)
    assert reported(before, worn) < 0.1
    assert reported(after, worn) > reported(before, worn) + 0.3
    plain = masking.wear(faces, landmarks, templates.load("plain-blue").expand(len(faces), -1, -1, -1), 0.03)
    assert reported(after, plain) > 0.95


def test_what_is_exported_has_no_path_of_this_machine() -> None:
    told = options_of(
        HardenConfig(
            data="/home/me/set", out="/home/me/out", checkpoint="/home/me/run", embedders=("onnx:/home/me/n.json",),
            templates=("/home/me/face.jpg", "faces"),
        )
    )  # fmt: skip
    assert (told["checkpoint"], told["embedders"], told["templates"]) == ("run", ["onnx:n.json"], ["face.jpg", "faces"])
    assert "/home/me" not in str(told)
