"""The evaluation: its definitions on numbers by hand, its intervals against theory, and one whole run."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from gan_mask import evaluation, masking, pretrained, templates
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import Seen, choose_probes, outcomes, rate
from gan_mask.networks import Generator

NAN = np.nan


# ---------------------------------------------------------------------------------------- rates


def test_rate_is_the_share_of_the_probes_that_count():
    result = rate(np.array([1, 0, NAN, 1, NAN, 1.0]), np.array([0, 0, 0, 1, 2, 3]))
    assert result["rate"] == 0.75 and result["probes"] == 4
    assert 0 <= result["low"] <= 0.75 <= result["high"] <= 1


def test_rate_of_nothing_is_none():
    assert rate(np.array([NAN, NAN]), np.array([0, 1])) == {"rate": None, "low": None, "high": None, "probes": 0}


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_unanimous_probes_leave_no_interval(value):
    assert rate(np.full(5, value), np.arange(5)) == {"rate": value, "low": value, "high": value, "probes": 5}


def test_one_identity_has_nothing_to_vary():
    assert rate(np.array([1, 0, 0, 0.0]), np.zeros(4, int)) == {"rate": 0.25, "low": 0.25, "high": 0.25, "probes": 4}


def test_interval_is_the_binomial_one_and_photos_of_one_person_do_not_narrow_it():
    values = (np.arange(400) % 10 < 3).astype(float)
    once = rate(values, np.arange(400))
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert once["low"] == pytest.approx(0.3 - half, abs=0.006) and once["high"] == pytest.approx(0.3 + half, abs=0.006)
    tenfold = rate(np.repeat(values, 10), np.repeat(np.arange(400), 10))
    assert [tenfold[k] for k in ("rate", "low", "high")] == pytest.approx([once[k] for k in ("rate", "low", "high")])
    as_if_strangers = rate(np.repeat(values, 10), np.arange(4000))
    assert as_if_strangers["high"] - as_if_strangers["low"] < 0.5 * (tenfold["high"] - tenfold["low"])


def test_rate_does_not_depend_on_a_random_state():
    values, people = np.random.default_rng(1).random(50), np.arange(50) // 2
    assert rate(values, people) == rate(values, people)


# ---------------------------------------------------------------------------------------- definitions


def seen(found: list[int], similarity: dict, mask: list[float], face: list[float]) -> Seen:
    cosines = {name: np.array(values) for name, values in similarity.items()}
    return Seen(np.array(found, bool), cosines, {"d": np.array(mask)}, {"d": np.array(face)})


# Of six probes: 0 evades everything; 1 is recognised; 2 is reported as masked; 3 is lost by MTCNN;
# 4 is lost by the detector; 5 was not accepted when clean.
CLEAN = seen([1] * 6, {"a": [0.9] * 5 + [0.2]}, [-3.0] * 6, [3.0] * 6)
WORN = seen([1, 1, 1, 0, 1, 1], {"a": [0.2, 0.8, 0.2, NAN, 0.2, 0.1]}, [-1, -1, 2, NAN, -1, -1], [1, 1, 1, NAN, -1, 1])


def test_definitions():
    result = outcomes(WORN, CLEAN, {"a": 0.5}, ["a"], ["d"])
    expected = {
        "face found": [1, 1, 1, 0, 1, 1],
        "dodging a": [1, 0, 1, 0, 1, NAN],  # a lost face is not a dodged one
        "mask detection d": [0, 0, 1, NAN, 0, 0],  # of the faces found
        "joint success": [1, 0, 0, 0, 0, NAN],
    }
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)


def test_a_similarity_at_the_threshold_is_accepted_and_a_logit_of_zero_is_no_mask():
    edge = seen([1], {"a": [0.5]}, [0.0], [1.0])
    result = outcomes(edge, edge, {"a": 0.5}, ["a"], ["d"])
    assert result["dodging a"].tolist() == [0] and result["mask detection d"].tolist() == [0]


def test_joint_success_needs_every_network_and_counts_whom_all_accept():
    similarity = {"a": [0.2, 0.2, 0.2], "b": [0.2, 0.8, 0.2]}
    worn = seen([1, 1, 1], similarity, [-1.0] * 3, [1.0] * 3)
    worn.mask_logit["e"], worn.face_logit["e"] = np.array([-1.0, -1, -1]), np.array([1.0, 1, 1])
    clean = seen([1, 1, 1], {"a": [0.9] * 3, "b": [0.9, 0.9, 0.4]}, [-1.0] * 3, [1.0] * 3)
    thresholds = {"a": 0.5, "b": 0.5}
    np.testing.assert_array_equal(
        outcomes(worn, clean, thresholds, ["a", "b"], ["d", "e"])["joint success"], [1, 0, NAN]
    )
    np.testing.assert_array_equal(outcomes(worn, clean, thresholds, ["a"], ["d"])["joint success"], [1, 1, 1])
    worn.mask_logit["e"][0] = 1.0
    np.testing.assert_array_equal(
        outcomes(worn, clean, thresholds, ["a", "b"], ["d", "e"])["joint success"], [0, 0, NAN]
    )


def test_a_clean_face_that_is_not_found_was_not_accepted():
    lost = seen([0], {"a": [NAN]}, [NAN], [NAN])
    found = seen([1], {"a": [0.1]}, [-1.0], [1.0])
    result = outcomes(found, lost, {"a": 0.5}, ["a"], ["d"])
    assert np.isnan(result["dodging a"]).all() and np.isnan(result["joint success"]).all()


def test_joint_success_wants_both_kinds_of_network():
    assert "joint success" not in outcomes(WORN, CLEAN, {"a": 0.5}, ["a"], [])
    assert "joint success" not in outcomes(WORN, CLEAN, {}, [], ["d"])


# ---------------------------------------------------------------------------------------- probes


class People:
    """A prepared set of one photo per letter."""

    def __init__(self, names: str) -> None:
        self.names, self.identities = names, np.array([ord(name) for name in names])

    def __len__(self) -> int:
        return len(self.names)

    def person(self, i: int) -> str:
        return self.names[i]


def test_mates_are_other_photos_of_the_same_person():
    probes = choose_probes(People("abacbbd"), 100, 0)
    assert sorted(probes.index) == [0, 1, 2, 4, 5]  # c and d have no second photo
    assert (probes.index != probes.mate).all()
    names = np.array(list("abacbbd"))
    assert (names[probes.index] == names[probes.mate]).all()
    assert (probes.identity == People("abacbbd").identities[probes.index]).all()
    assert sorted(probes.mate) == sorted(probes.index)  # each photo is the mate of one probe


def test_people_whose_faces_are_templates_are_no_probes(prepared):
    photos = PreparedSet(prepared)
    probes = choose_probes(photos, 1000, 0)
    people = {photos.person(int(i)) for i in probes.index}
    everybody = {photos.person(i) for i in range(len(photos))}
    assert people == everybody - set(templates.TEMPLATE_PEOPLE) and people < everybody
    assert all(photos.person(int(m)) == photos.person(int(i)) for i, m in zip(probes.index, probes.mate, strict=True))


def test_the_seed_thins_the_probes(prepared):
    photos = PreparedSet(prepared)
    first, again, other = (choose_probes(photos, 10, seed) for seed in (0, 0, 1))
    assert len(first.index) == 10 and np.array_equal(first.index, again.index)
    assert not np.array_equal(first.index, other.index)


@pytest.mark.parametrize("names", ["abc", ""])
def test_nobody_with_two_photos_is_an_error(names):
    with pytest.raises(GanMaskError, match="no mated pairs"):
        choose_probes(People(names), 10, 0)


# ---------------------------------------------------------------------------------------- a whole run


@pytest.fixture
def evaluated(fakes, prepared, tmp_path, capsys):
    out = tmp_path / "report"
    evaluation.main(
        ["--data", str(prepared), "--out", str(out), "--methods", "plain", "dm", "--embedders", "fake"]
        + ["--detectors", "fake", "--templates", "face-001", "cloth-dots"]
    )
    report = json.loads((out / "report.json").read_text())
    with open(out / "probes.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    return out, report, rows, capsys.readouterr().out


def test_a_whole_run(evaluated, prepared):
    out, report, rows, printed = evaluated
    photos = PreparedSet(prepared, "test")
    probes = choose_probes(photos, 500, 0)
    count = len(probes.index)
    assert (report["probes"], report["identities"], report["split"]) == (count, count // 3, "test")
    assert report["thresholds"] == {"fake": 0.9} and report["far"] == 0.001
    assert list(report["results"]) == ["surrogates"]
    results = report["results"]["surrogates"]
    assert list(results) == ["none", "plain", "dm"] == list(report["seconds_per_face"])  # none is the reference
    assert all(f"\n{name} " in printed for name in results) and "95 %" in printed
    assert len(rows) == 3 * count * 2  # methods x probes x (embedder and detector)

    # The files: the clean probe as it is, and masked ones that differ from it inside of the mask alone.
    for i in range(count):
        faces = {name: np.asarray(Image.open(out / "faces" / name / f"{i:05d}.png")) for name in results}
        item = photos[int(probes.index[i])]
        clean = photos.faces(int(probes.index[i])).permute(1, 2, 0).numpy()
        assert np.array_equal(faces["none"], clean)
        region = masking.region(item["landmarks"][None], photos.size, photos.size)[0, 0].numpy() > 0
        for name in ("plain", "dm"):
            assert np.array_equal(faces[name][~region], clean[~region])
            assert np.abs(faces[name][region].astype(int) - clean[region]).mean() > 4
    assert Image.open(out / "strip.png").size == (8 * 64, 3 * 64)
    assert not list(out.rglob("*.tmp"))


def test_report_follows_from_the_table_of_probes(evaluated):
    """The rates once more, in plain Python, from probes.csv."""
    _, report, rows, _ = evaluated
    by = {(r["method"], r["probe"], "similarity" if r["similarity"] else "logits"): r for r in rows}
    probes = sorted({r["probe"] for r in rows})
    for r in rows:
        assert r["probe"] != r["mate"] and r["probe"].split("/")[0] == r["identity"] == r["mate"].split("/")[0]
    for method, measured in report["results"]["surrogates"].items():
        found, dodged, masked, joint = [], [], [], []
        for probe in probes:
            face, logits = by[method, probe, "similarity"], by[method, probe, "logits"]
            clean = by["none", probe, "similarity"]
            is_found = face["face_found"] == "1"
            is_dodged = is_found and float(face["similarity"]) < 0.9
            found.append(is_found)
            if is_found:
                masked.append(float(logits["mask_logit"]) > 0)
            if clean["face_found"] == "1" and float(clean["similarity"]) >= 0.9:
                dodged.append(is_dodged)
                joint.append(is_dodged and float(logits["mask_logit"]) <= 0 and float(logits["face_logit"]) > 0)
        for name, values in (
            ("face found", found), ("dodging fake", dodged), ("mask detection fake", masked), ("joint success", joint),
        ):  # fmt: skip
            cell = measured[name]
            assert cell["probes"] == len(values)
            if values:
                assert cell["rate"] == pytest.approx(np.mean(values))
                assert cell["low"] <= cell["rate"] <= cell["high"]


def test_held_out_networks_are_reported_apart(fakes, prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(pretrained.EMBEDDERS, "other", pretrained.EMBEDDERS["fake"])
    evaluation.main(
        ["--data", str(prepared), "--out", str(tmp_path), "--methods", "none", "--embedders", "fake", "--detectors"]
        + ["--held-out-embedders", "other", "--probes", "2"]
    )
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert list(results) == ["surrogates", "held-out"]
    assert list(results["surrogates"]["none"]) == ["face found", "dodging fake"]
    assert list(results["held-out"]["none"]) == ["face found", "dodging other"]


def test_a_second_look_at_the_same_files_sees_the_same(fakes, prepared, tmp_path):
    options = [
        "--data",
        str(prepared),
        "--methods",
        "dm",
        "--embedders",
        "fake",
        "--detectors",
        "fake",
        "--probes",
        "3",
    ]
    reports = []
    for name in ("a", "b"):
        evaluation.main([*options, "--out", str(tmp_path / name)])
        reports.append(json.loads((tmp_path / name / "report.json").read_text())["results"])
    assert reports[0] == reports[1]


def test_write_masked_saves_what_the_method_painted(prepared, tmp_path):
    photos = PreparedSet(prepared, "val")
    probes = choose_probes(photos, 3, 0)
    bank = torch.stack([torch.full((3, 24, 32), grey) for grey in (0.2, 0.6)])
    paths, seconds = evaluation.write_masked(lambda f, p, t: t, photos, probes, bank, 0.0, tmp_path / "dm", "cpu")
    assert seconds > 0
    for i, path in enumerate(paths):  # probe i wears template i mod N
        region = masking.region(photos.landmarks(int(probes.index[i]))[None], photos.size, photos.size)[0, 0] > 0
        assert (np.asarray(Image.open(path))[region.numpy()] == round((0.2, 0.6)[i % 2] * 255)).all()


def error(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        evaluation.main(list(arguments))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_errors_name_option_and_remedy(fakes, prepared, tmp_path, capsys):
    usual = ["--data", str(prepared), "--out", str(tmp_path / "out"), "--embedders", "fake", "--detectors", "fake"]
    assert "prepare.py" in error(capsys, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert "unknown split 'tset'; known: train, val, test" in error(capsys, *usual, "--split", "tset")
    assert "arcfce" in error(capsys, *usual[:4], "--embedders", "arcfce")
    assert "unknown method 'mf3m'" in error(capsys, *usual, "--methods", "mf3m")
    assert "--checkpoint" in error(capsys, *usual)  # the generator is among the default methods
    assert "nowhere" in error(capsys, *usual, "--checkpoint", str(tmp_path / "nowhere"))
    assert "face-999" in error(capsys, *usual, "--methods", "dm", "--templates", "face-999")
    assert "--probes must be at least 1" in error(capsys, *usual, "--methods", "dm", "--probes", "0")
    assert "add dm" in error(capsys, *usual, "--methods", "plain", "--lpips")
    message = error(capsys, *usual, "--methods", "dm", "--held-out-embedders", "fake")
    assert "fake: named as surrogate and as held out" in message
    (tmp_path / "file").write_text("in the way")
    assert "file" in error(capsys, *usual[:2], "--out", str(tmp_path / "file"), *usual[4:], "--methods", "dm")


def test_a_machine_without_cuda_says_so(fakes, prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in error(capsys, "--data", str(prepared), "--out", str(tmp_path), "--device", "cuda")


def test_a_network_trained_against_is_not_held_out():
    generator = Generator(widths=(8, 16), trained_against=("dlib", "onnx:configs/networks/mobileface.json"))
    evaluation.check_held_out(generator, ["onnx:elsewhere/mobilefacenet_casia.json"])
    with pytest.raises(GanMaskError, match="mobileface.json: the generator was trained against it"):
        evaluation.check_held_out(generator, ["onnx:elsewhere/mobileface.json"])
