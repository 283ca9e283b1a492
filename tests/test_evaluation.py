"""The evaluation: its definitions on numbers by hand, its intervals against theory, and whole runs."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeDetector, FakeEmbedder
from PIL import Image

from gan_mask import EvaluationConfig, attacks, evaluate, evaluation, masking, pretrained, templates, weights
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import appearance, command, gate, groups, realism, redetection, run
from gan_mask.evaluation.intervals import interval
from gan_mask.evaluation.protocol import choose_probes, lfw_pairs
from gan_mask.evaluation.rates import Seen, outcomes, table
from gan_mask.files import weights_digest
from gan_mask.generator import SHIPPED, Generator
from gan_mask.networks import GeneratorConfig
from gan_mask.training.state import save_generator

NAN = np.nan
CASES = Path(__file__).parent / "cases"


# ---------------------------------------------------------------------------------------- rates


def test_rate_is_the_share_of_the_probes_that_count():
    result = interval(np.array([1, 0, NAN, 1, NAN, 1.0]), np.array([0, 0, 0, 1, 2, 3]))
    assert result["rate"] == 0.75 and result["probes"] == 4
    assert 0 <= result["low"] <= 0.75 <= result["high"] <= 1


def test_rate_of_nothing_is_none():
    assert interval(np.array([NAN, NAN]), np.array([0, 1])) == {"rate": None, "low": None, "high": None, "probes": 0}


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_unanimous_probes_have_the_exact_interval_of_as_many_people(value):
    """Clopper and Pearson: the rate at which so clear a result of 12 has a chance of 2.5 %."""
    cell = interval(np.full(24, value), np.repeat(np.arange(12), 2))
    assert (cell["rate"], cell["probes"]) == (value, 24)
    near, far = (cell["low"], 1 - cell["high"]) if value == 0 else (1 - cell["high"], cell["low"])
    assert near == 0 and far**12 == pytest.approx(0.025)


def test_one_identity_has_nothing_to_vary():
    assert interval(np.array([1, 0, 0, 0.0]), np.zeros(4, int)) == {
        "rate": 0.25,
        "low": 0.25,
        "high": 0.25,
        "probes": 4,
    }


def test_interval_is_the_binomial_one_and_photos_of_one_person_do_not_narrow_it():
    values = (np.arange(400) % 10 < 3).astype(float)
    once = interval(values, np.arange(400))
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert once["low"] == pytest.approx(0.3 - half, abs=0.006) and once["high"] == pytest.approx(0.3 + half, abs=0.006)
    tenfold = interval(np.repeat(values, 10), np.repeat(np.arange(400), 10))
    assert [tenfold[k] for k in ("rate", "low", "high")] == pytest.approx([once[k] for k in ("rate", "low", "high")])
    as_if_strangers = interval(np.repeat(values, 10), np.arange(4000))
    assert as_if_strangers["high"] - as_if_strangers["low"] < 0.5 * (tenfold["high"] - tenfold["low"])


def test_rate_does_not_depend_on_a_random_state():
    values, people = np.random.default_rng(1).random(50), np.arange(50) // 2
    assert interval(values, people) == interval(values, people)


# ---------------------------------------------------------------------------------------- definitions


def seen(found: list[int], similarity: dict, mask: list[float], face: list[float]) -> Seen:
    cosines = {name: np.array(values) for name, values in similarity.items()}
    return Seen(np.array(found, bool), np.ones(len(found), bool), cosines, {"d": np.array(mask)}, {"d": np.array(face)})


# Of six probes: 0 evades everything; 1 is recognised; 2 is reported as masked; 3 is lost by MTCNN;
# 4 is lost by the detector; 5 was not accepted when clean.
CLEAN = seen([1] * 6, {"a": [0.9] * 5 + [0.2]}, [-3.0] * 6, [3.0] * 6)
WORN = seen([1, 1, 1, 0, 1, 1], {"a": [0.2, 0.8, 0.2, NAN, 0.2, 0.1]}, [-1, -1, 2, NAN, -1, -1], [1, 1, 1, NAN, -1, 1])


def test_definitions():
    result = outcomes(WORN, CLEAN, {"a": 0.5}, ["a"], ["d"])
    expected = {
        "face found": [1, 1, 1, 0, 1, 1],
        "face found dlib": [1] * 6,
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


# ---------------------------------------------------------------------------------------- net, gate, LFW


def test_net_dodging_is_what_a_benign_mask_did_not_do_already():
    plain = seen([1] * 6, {"a": [0.2, 0.8, 0.8, 0.8, 0.8, 0.8]}, [-1] * 6, [1] * 6)
    attack = seen([1] * 6, {"a": [0.2, 0.2, 0.2, 0.8, 0.8, 0.1]}, [-1] * 6, [1] * 6)
    cells = table({"none": CLEAN, "plain": plain, "mf2m": attack}, {"a": 0.5}, (["a"], ["d"]), np.arange(6))
    assert cells["mf2m"]["dodging a"]["rate"] == pytest.approx(3 / 5)
    assert cells["mf2m"]["dodging a net of plain"]["rate"] == pytest.approx(2 / 5)
    same = table({"none": CLEAN, "plain": plain, "mf2m": plain}, {"a": 0.5}, (["a"], ["d"]), np.arange(6))
    difference = same["mf2m"]["dodging a net of plain"]
    assert (difference["low"], difference["high"]) == (0, 0)  # of a difference, no trials of people
    assert "dodging a net of plain" not in cells["plain"] and "dodging a net of dm" not in cells["mf2m"]


SETS = {"surrogates": (["a"], ["d"]), "held-out": (["b"], ["e"])}


def cell(rate: float) -> dict:
    return {"rate": rate, "low": rate - 0.1, "high": rate + 0.1, "probes": 10}


MEASURED = {
    title: {"0.001": {m: {"joint success": cell(rate), f"dodging {e}": cell(rate)} for m, rate in row.items()}}
    for title, e, row in (
        ("surrogates", "a", {"none": 0.0, "dm": 0.5, "mf2m": 0.9, "generator": 0.8}),
        ("held-out", "b", {"none": 0.0, "dm": 0.4, "mf2m": 0.3, "generator": 0.03}),
    )
}


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("joint_success<=0.05", ["held-out/mf2m"]),  # held-out by default; dm is no attack
        ("joint_success<=0.3", []),
        ("surrogates/joint success <= 0.85", ["surrogates/mf2m"]),
        ("surrogates/generator/joint_success<0.8", ["surrogates/generator"]),
        ("dm/joint_success<=0.1", ["held-out/dm"]),
        ("held-out/dodging_b>=0.2", ["held-out/generator"]),
    ],
)
def test_limits(text, broken):
    reasons = gate.broken(gate.parse(text, SETS, ["dm", "mf2m", "generator"]), MEASURED, 0.001, {})
    assert [reason.split(": ")[1].split(" has ")[0] for reason in reasons] == broken
    assert all(reason.startswith(text) and "[" in reason for reason in reasons)


@pytest.mark.parametrize("sign", ["<=", ">="])
def test_no_limit_holds_for_nan(sign):
    rates = {"held-out": {"0.001": {"mf2m": {"joint success": cell(NAN)}}}}
    assert gate.broken(gate.parse(f"joint_success{sign}0.5", SETS, ["mf2m"]), rates, 0.001, {})


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("joint_success", "MEASURE<=VALUE"),
        ("joint_success<=low", "no number"),
        ("joint<=1", "joint_success"),
        ("a<=", "no number"),
    ],
)
def test_a_limit_that_means_nothing_is_refused_before_the_work(text, remedy):
    with pytest.raises(GanMaskError, match=remedy):
        gate.parse(text, SETS, ["mf2m"])
    with pytest.raises(GanMaskError, match="no attack"):
        gate.parse("joint_success<=1", SETS, ["dm"])


class Named(People):
    def source(self, i: int) -> str:
        return f"lfw/x/{self.names[i].upper()}_Lee_000{1 + self.names[:i].count(self.names[i])}.jpg"


def test_lfw_pairs_are_read_by_fold(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("2 1\nA_Lee\t1\t2\nA_Lee\t1\tB_Lee\t1\nB_Lee\t1\t2\nC_Lee\t1\tB_Lee\t2\n")
    pairs = lfw_pairs(path, Named("abab"))
    assert pairs.same.tolist() == [True, False, True] and pairs.fold.tolist() == [0, 0, 1] and pairs.missing == 1
    assert pairs.a.tolist() == [0, 0, 1] and pairs.b.tolist() == [2, 1, 3]
    for text, what in [("2 1\nA_Lee 1\n", "line 2"), ("", "not a file of LFW pairs"), ("x\n", "not a file")]:
        path.write_text(text)
        with pytest.raises(GanMaskError, match=what):
            lfw_pairs(path, Named("ab"))


# ---------------------------------------------------------------------------------------- whole runs

USUAL = ["--embedders", "fake", "--detectors", "fake", "--stored-thresholds", "--templates", "face-001", "cloth-dots"]


@pytest.fixture(scope="module")
def evaluated(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "report"
    with pytest.MonkeyPatch.context() as patch:
        for known, fake in ((pretrained.EMBEDDERS, FakeEmbedder), (pretrained.DETECTORS, FakeDetector)):
            patch.setitem(known, "fake", lambda name, fake=fake: fake())
        options = ["--methods", "plain", "dm", "advnoise-dm", "--steps", "2", "--changed-probes", "3"]
        evaluation.main(["--data", str(prepared), "--out", str(out), *USUAL, *options])
    report = json.loads((out / "report.json").read_text())
    with open(out / "probes.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    return out, report, rows


def test_a_whole_run(evaluated, prepared):
    out, report, rows = evaluated
    photos = PreparedSet(prepared, "test")
    probes = choose_probes(photos, 500, 0)
    count = len(probes.index)
    assert (report["probes"], report["identities"], report["split"]) == (count, count // 3, "test")
    assert report["embedders"]["fake"]["thresholds"] == {"0.01": 0.9, "0.001": 0.9}
    assert list(report["rates"]) == ["surrogates"] and set(report["rates"]["surrogates"]) == {"0.01", "0.001"}
    results = report["rates"]["surrogates"]["0.001"]
    assert list(results) == ["none", "plain", "dm", "advnoise-dm"]  # none is the reference
    assert len(rows) == 4 * count * 2  # methods x probes x (embedder and detector)
    cost = json.loads((out / "cost.json").read_text())
    assert cost["methods"]["advnoise-dm"]["iterations"]["rate"] <= 2 and cost["methods"]["dm"]["iterations"] is None
    assert set(report["robustness"]["surrogates"]["dm"]) == {"unchanged", *redetection.CHANGES}

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
    assert Image.open(out / "strip.png").size == (8 * 64, 4 * 64)
    assert not list(out.rglob("*.tmp"))


def test_the_same_options_in_code_resume_with_the_commands_folder(evaluated, fakes, prepared, monkeypatch):
    out, report, _ = evaluated
    monkeypatch.setattr(run, "write_masked", None)  # nothing is left to do
    found = evaluate(
        EvaluationConfig(
            data=str(prepared), out=str(out), methods=("plain", "dm", "advnoise-dm"), surrogates=("fake",),
            detectors=("fake",), stored_thresholds=True, templates=("face-001", "cloth-dots"), changed_probes=3,
            attack=attacks.Options(steps=2), require=("face_found<0",),
        )
    )  # fmt: skip
    assert found.rates == report["rates"] and found.looks == report["looks"] and found.probes == report["probes"]
    assert found.broken and "face_found<0: surrogates/advnoise-dm has" in found.broken[0]


def test_report_follows_from_the_table_of_probes(evaluated):
    """The rates once more, in plain Python, from probes.csv."""
    _, report, rows = evaluated
    by = {(r["method"], r["probe"], "similarity" if r["similarity"] else "logits"): r for r in rows}
    probes = sorted({r["probe"] for r in rows})
    for r in rows:
        assert r["probe"] != r["mate"] and r["probe"].split("/")[0] == r["identity"] == r["mate"].split("/")[0]
    for method, measured in report["rates"]["surrogates"]["0.001"].items():
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


def test_groups_are_parts_of_all_probes(evaluated):
    """By head pose and by skin tone: each probe is in one group of either, the one that its own row says."""
    _, report, rows = evaluated
    everybody = report["groups"]["surrogates"]
    for column, limits in groups.COLUMNS.items():
        assert sum(everybody[label]["probes"] for label in limits if label in everybody) == report["probes"]
        below = -np.inf
        for label, limit in limits.items():
            inside = [r for r in rows if below <= float(r[column]) < limit and r["method"] == "dm" and r["mask_logit"]]
            below = limit
            if not inside:
                assert label not in everybody
                continue
            group = everybody[label]
            assert (group["probes"], group["identities"]) == (len(inside), len({r["identity"] for r in inside}))
            masked = [float(r["mask_logit"]) > 0 for r in inside if r["face_found"] == "1"]
            assert group["rates"]["dm"]["mask detection fake"]["probes"] == len(masked)
            if masked:
                assert group["rates"]["dm"]["mask detection fake"]["rate"] == pytest.approx(np.mean(masked))


def test_looks_follow_from_the_written_files_and_their_table(evaluated, prepared):
    """Medians and percentiles once more from looks.csv; one row's edge step and tone once more from its files."""
    out, report, _ = evaluated
    with open(out / "looks.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert report["looks"]["none"]["edge step p90"]["rate"] == 0
    assert report["looks"]["none"]["fine detail p10"]["rate"] == 1
    for method, cells in report["looks"].items():
        for name, share in (("edge step", 90), ("fine detail", 10), ("skin tone difference", 50)):
            values = [float(r[name.replace(" ", "_")]) for r in rows if r["method"] == method]
            cell = cells[f"{name} {'median' if share == 50 else f'p{share}'}"]
            assert cell["rate"] == pytest.approx(np.percentile(values, share), abs=1e-4)
            assert cell["low"] <= cell["rate"] <= cell["high"] and cell["probes"] == report["probes"]
    photos = PreparedSet(prepared, "test")
    probes = choose_probes(photos, 500, 0)
    assert [r["probe"] for r in rows if r["method"] == "dm"] == [photos.source(int(i)) for i in probes.index]
    pictures = [np.asarray(Image.open(out / "faces" / name / "00000.png")) for name in ("none", "dm")]
    found = appearance.measure(*pictures, photos.landmarks(int(probes.index[0])).numpy())
    row = next(r for r in rows if r["method"] == "dm")
    assert float(row["edge_step"]) == pytest.approx(found["edge step"], abs=1e-4)


def test_without_alexnet_a_small_cnn_is_trained_under_its_own_name_and_only_once(
    fakes, prepared, tmp_path, capsys, monkeypatch
):
    def missing(**_):
        raise weights.MissingWeights("weights 'alexnet_features.safetensors' not found")

    monkeypatch.setattr(pretrained, "load_perceptual", missing)
    options = ["--data", str(prepared), "--out", str(tmp_path), *USUAL, "--methods", "dm", "--naturalness"]
    evaluation.main([*options, "--require", "dm/realism_auc_small_cnn>=0"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert "naturalness" not in report and "alexnet_features.safetensors" in report["notes"][-1]
    cells = {method: row["realism AUC (small CNN)"] for method, row in report["looks"].items()}
    assert 0 <= cells["none"]["rate"] <= 1 and cells["dm"]["probes"] == report["probes"]
    assert "small CNN" in (tmp_path / "index.html").read_text()
    assert "measures realism_auc_small_cnn" in error(capsys, *options, "--require", "dm/realism_auc<=1")
    monkeypatch.setattr(realism, "cell_of", None)
    evaluation.main(options)
    assert json.loads((tmp_path / "report.json").read_text())["looks"] == report["looks"]


def settle(report: dict) -> dict:
    return {k: v for k, v in report.items() if k != "command"}


def test_the_same_command_again_resumes_and_ends_with_the_same_report(
    evaluated, fakes, prepared, tmp_path, monkeypatch
):
    out = tmp_path / "report"
    options = ["--data", str(prepared), "--out", str(out), *USUAL]
    options += ["--methods", "plain", "dm", "advnoise-dm", "--steps", "2", "--changed-probes", "3"]
    real, calls = run.do, []

    def interrupted(e, method, rows):
        calls.append(method)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(e, method, rows)

    monkeypatch.setattr(run, "do", interrupted)
    with pytest.raises(SystemExit) as caught:
        evaluation.main(options)
    assert caught.value.code == 130
    assert not (out / "report.json").exists()
    (out / "faces" / "dm" / "stale.png").parent.mkdir(parents=True, exist_ok=True)
    evaluation.main(options)
    assert calls == ["none", "plain", "dm", "dm", "advnoise-dm"]  # what was done is not done again
    assert json.loads((out / "report.json").read_text()) == evaluated[1]
    assert (out / "probes.csv").read_bytes() == (evaluated[0] / "probes.csv").read_bytes()
    evaluation.main([*options, "--probes", "4"])  # other settings: nothing is mixed up with what lies there
    assert len(calls) == 9 and len(list((out / "faces" / "dm").iterdir())) == 4


def test_another_checkpoint_or_method_leaves_the_other_methods_faces_alone(fakes, prepared, tmp_path, monkeypatch):
    options = ["--data", str(prepared), "--out", str(tmp_path / "report"), *USUAL, "--probes", "4", "--methods", "dm"]
    checkpoints = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(checkpoints):
        torch.manual_seed(seed)
        save_generator(Generator(), folder)
    real, calls = run.do, []
    monkeypatch.setattr(run, "do", lambda e, method, rows: (calls.append(method), real(e, method, rows)))
    evaluation.main([*options, "generator", "--checkpoint", str(checkpoints[0])])
    evaluation.main([*options, "generator", "plain", "--checkpoint", str(checkpoints[1])])
    assert calls == ["none", "dm", "generator", "generator", "plain"]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    fresh = tmp_path / "fresh"
    evaluation.main([*options[:3], str(fresh), *options[4:], "generator", "plain", "--checkpoint", str(checkpoints[1])])
    assert settle(json.loads((fresh / "report.json").read_text())) == settle(report)


LAUNCH = """
import sys
sys.path[:0] = [{repository!r}, {tests!r}]
from fakes import FakeDetector, FakeEmbedder
from gan_mask import pretrained
from gan_mask.evaluation import main, run
pretrained.EMBEDDERS["fake"] = lambda name: FakeEmbedder()
pretrained.DETECTORS["fake"] = lambda name: FakeDetector()
run.UNIT = 4
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_share_the_work_and_report_the_same(prepared, tmp_path):
    script = tmp_path / "evaluate.py"
    repository = Path(__file__).parent.parent
    script.write_text(LAUNCH.format(repository=str(repository), tests=str(repository / "tests")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--data", str(prepared), *USUAL, "--methods", "dm"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    for launcher, out in (([sys.executable], "one"), (two, "two")):
        done = subprocess.run(
            [*launcher, str(script), *options, "--out", str(tmp_path / out)],
            env=environment, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two_ = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "two"))
    assert one == two_
    assert len(list((tmp_path / "two" / "cache" / "dm").iterdir())) > 1  # there was something to share


@pytest.mark.parametrize("without", ["recognisers", "detectors"])
def test_networks_of_one_kind_are_enough(fakes, prepared, tmp_path, without):
    options = ["--data", str(prepared), "--out", str(tmp_path), *USUAL, "--methods", "dm", "--probes", "4"]
    evaluation.main([*options, "--surrogates" if without == "recognisers" else "--detectors"])
    row = json.loads((tmp_path / "report.json").read_text())["rates"]["surrogates"]["0.001"]["dm"]
    assert list(row)[2:] == ["mask detection fake" if without == "recognisers" else "dodging fake"]
    assert (tmp_path / "index.html").is_file()


def test_a_network_that_changed_under_its_name_is_asked_again(fakes, prepared, tmp_path, monkeypatch):
    """As in a gate that compares today's detector with yesterday's in one folder."""
    options = ["--data", str(prepared), "--out", str(tmp_path), *USUAL, "--methods", "dm", "--probes", "4"]
    evaluation.main(options)

    class Alarmist(FakeDetector):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.tensor(100.0))

        def forward(self, faces):
            mask_logit, face_logit = super().forward(faces)
            return mask_logit + self.shift, face_logit

    monkeypatch.setitem(pretrained.DETECTORS, "fake", lambda name: Alarmist())
    evaluation.main(options)
    rates = json.loads((tmp_path / "report.json").read_text())["rates"]["surrogates"]["0.001"]
    assert rates["dm"]["mask detection fake"]["rate"] == 1


def test_thresholds_come_from_impostor_pairs_of_other_people(fakes, prepared, tmp_path, capsys):
    options = ["--data", str(prepared), "--out", str(tmp_path), "--methods", "dm", *USUAL]
    options.remove("--stored-thresholds")
    # 36 faces of 12 people: 36 * 35 / 2 - 12 * 3 = 594 pairs, too few for FAR 0.001.
    message = error(capsys, *options)
    assert "594" in message and "10000" in message and "--stored-thresholds" in message
    evaluation.main([*options, "--far", "0.05", "--fars", "0.02", "0.001"])
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["embedders"]["fake"]
    assert set(found["thresholds"]) == {"0.05", "0.02"} and found["impostor_pairs"] == 594
    assert "594" in found["refused"]["0.001"] and "FAR 0.001" in report["notes"][0]
    photos = PreparedSet(prepared, "train")
    items = [photos[i] for i in range(len(photos))]
    vectors = pretrained.load_embedder("fake")(torch.stack([i["face"] for i in items]), torch.zeros(36, 68, 2)).numpy()
    scores = [vectors[i] @ vectors[j] for i in range(36) for j in range(i) if i // 3 != j // 3]
    accepted = (np.array(scores) >= found["thresholds"]["0.05"]).mean()
    assert 0.04 <= accepted <= 0.05
    for further in ([], ["--stored-thresholds"]):  # distractors are other people, too
        assert "--threshold-split test" in error(capsys, *options, "--threshold-split", "test", *further)


def test_held_out_networks_are_reported_apart(fakes, prepared, tmp_path, monkeypatch):
    other = pretrained.EMBEDDERS["fake"]("other")
    other.weight += 0.1
    monkeypatch.setitem(pretrained.EMBEDDERS, "other", lambda name: other)
    evaluation.main(
        ["--data", str(prepared), "--out", str(tmp_path), "--methods", "none", "--surrogates", "fake", "--detectors"]
        + ["--held-out", "other", "--probes", "2", "--stored-thresholds"]
    )
    results = json.loads((tmp_path / "report.json").read_text())["rates"]
    assert list(results) == ["surrogates", "held-out"]
    assert list(results["surrogates"]["0.001"]["none"]) == ["face found", "face found dlib", "dodging fake"]
    assert list(results["held-out"]["0.001"]["none"]) == ["face found", "face found dlib", "dodging other"]


def test_write_masked_saves_what_the_method_painted(prepared, tmp_path):
    photos = PreparedSet(prepared, "val")
    probes = choose_probes(photos, 3, 0)
    bank = torch.stack([torch.full((3, 24, 32), grey) for grey in (0.2, 0.6)])
    e = run.Experiment(
        tmp_path, photos, probes, {"dm": attacks.Painted(lambda f, p, t: t, "paper", 0.0)}, bank, (24, 32), False,
        {}, {}, np.array([], int), None, "cpu",
    )  # fmt: skip
    cost = run.write_masked(e, "dm", slice(0, 3))
    assert (cost["seconds"] > 0).all()
    for i, path in enumerate(e.paths("dm")):  # probe i wears template i mod N
        region = masking.region(photos.landmarks(int(probes.index[i]))[None], photos.size, photos.size)[0, 0] > 0
        assert (np.asarray(Image.open(path))[region.numpy()] == round((0.2, 0.6)[i % 2] * 255)).all()


def test_limits_decide_the_exit_status(fakes, prepared, tmp_path, capsys):
    options = ["--data", str(prepared), "--out", str(tmp_path), *USUAL, "--methods", "advnoise-dm", "--steps", "1"]
    evaluation.main([*options, "--probes", "3", "--require", "face_found>=0"])
    with pytest.raises(SystemExit) as caught:
        evaluation.main([*options, "--probes", "3", "--require", "face_found<0"])
    assert caught.value.code == 1
    assert "limit broken: face_found<0: surrogates/advnoise-dm has" in capsys.readouterr().err
    assert (
        "<strong>broken</strong>: face_found&lt;0: surrogates/advnoise-dm has" in (tmp_path / "index.html").read_text()
    )


def error(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        evaluation.main(list(arguments))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_errors_name_option_and_remedy(fakes, prepared, tmp_path, capsys):
    usual = ["--data", str(prepared), "--out", str(tmp_path / "out"), *USUAL]
    assert "prepare.py" in error(capsys, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert "unknown split 'tset'; known: train, val, test" in error(capsys, *usual, "--split", "tset")
    assert "arcfce" in error(capsys, *usual[:4], "--embedders", "arcfce")
    assert "unknown method 'mf3m'" in error(capsys, *usual, "--methods", "mf3m")
    assert "unknown method 'mf3m'" in error(capsys, "--data", "nowhere", "--out", "out", "--methods", "mf3m")  # at once
    assert "unknown split 'tran'" in error(capsys, "--data", "nowhere", "--out", "out", "--threshold-split", "tran")
    assert "no network" in error(capsys, *usual, "--methods", "dm", "--embedders", "--detectors")
    assert "nowhere" in error(capsys, *usual, "--checkpoint", str(tmp_path / "nowhere"))
    assert "face-999" in error(capsys, *usual, "--methods", "dm", "--templates", "face-999")
    assert "--probes: expected a whole number from 1 to" in error(capsys, *usual, "--methods", "dm", "--probes", "0")
    assert "add dm" in error(capsys, *usual, "--methods", "plain", "--naturalness")
    message = error(capsys, *usual, "--methods", "dm", "--held-out", "fake")
    assert "fake: named as surrogate and as held out" in message
    (tmp_path / "file").write_text("in the way")
    assert "file" in error(capsys, *usual[:2], "--out", str(tmp_path / "file"), *usual[4:], "--methods", "dm")


def test_without_a_checkpoint_the_shipped_generator_is_taken(fakes, prepared, tmp_path):
    options = ["--data", str(prepared), *USUAL, "--methods", "generator", "--probes", "2"]
    evaluation.main([*options, "--out", str(tmp_path / "one")])
    evaluation.main([*options, "--out", str(tmp_path / "two"), "--checkpoint", str(SHIPPED)])
    one, two = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "two"))
    assert one["rates"] == two["rates"] and one["checkpoint"] == "shipped"
    pictures = [sorted((tmp_path / out / "faces/generator").iterdir()) for out in ("one", "two")]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]


def test_a_machine_without_cuda_says_so(fakes, prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in error(capsys, "--data", str(prepared), "--out", str(tmp_path), "--device", "cuda")


def test_a_network_trained_against_is_not_held_out():
    used, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    held = [("onnx:./elsewhere/copy.json", used), ("onnx:configs/networks/mobileface.json", other)]
    # By its weights, whatever its name...
    generator = Generator(
        GeneratorConfig(
            widths=(8, 16),
            trained_against=("dlib", "onnx:mobileface.json"),
            trained_against_weights=[weights_digest(used)],
        )
    )
    command.check_held_out(generator, [], held[1:])
    with pytest.raises(GanMaskError, match="copy.json: the generator was trained against it"):
        command.check_held_out(generator, [], held)
    # ... except for checkpoints of before, which knew names alone.
    generator = Generator(GeneratorConfig(widths=(8, 16), trained_against=("dlib", "onnx:mobileface.json")))
    command.check_held_out(generator, [], held[:1])
    with pytest.raises(GanMaskError, match="mobileface.json: the generator was trained against it"):
        command.check_held_out(generator, [], held)


def test_one_network_under_two_names_is_not_surrogate_and_held_out(prepared, tmp_path, capsys):
    for name in ("a", "b"):
        for end in ("json", "onnx", "data"):
            shutil.copyfile(CASES / f"14_embedder_external.{end}", tmp_path / f"{name}.{end}")
        sidecar = json.loads((tmp_path / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(sidecar | {"file": f"{name}.onnx"}))
        shutil.copyfile(CASES / "14_embedder_external.data", tmp_path / "14_embedder_external.data")
    out = [
        "--data",
        str(prepared),
        "--out",
        str(tmp_path / "out"),
        "--methods",
        "dm",
        "--detectors",
        "--stored-thresholds",
    ]
    for same in (f"onnx:{tmp_path}/b.json", f"onnx:{tmp_path}/./a.json"):
        message = error(capsys, *out, "--surrogates", f"onnx:{tmp_path}/a.json", "--held-out", same)
        assert f"{same}: it has the weights of the surrogate onnx:{tmp_path}/a.json" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dodging_is_what_dlibs_own_program_says_by_its_rule_of_0_6(tmp_path):
    """Written files once through our look and once through dlib's Python API alone: detector, landmarks, descriptor."""
    import dlib
    from conftest import embedded_photo

    from gan_mask.faces import FaceFinder, read_image
    from gan_mask.photos import wear_on_photo

    finder, embedder = FaceFinder(), pretrained.load_embedder("dlib")
    people = [f"id_{i:04d}" for i in (2, 4, 5, 6, 8, 10, 12, 13, 14, 15)]
    probes = [read_image(embedded_photo(f"{person}/view_1")).copy() for person in people]
    mates = [read_image(embedded_photo(f"{person}/view_2")) for person in people]
    for probe, (face, *_) in zip(probes[:6], finder.find(probes[:6]), strict=True):
        texture = templates.load("face-020")
        wear_on_photo(probe, face.landmarks, texture, texture, "paper", 0.03)  # six masked, four clean
    raw = {"dlib": embedder.embed}  # distances are of raw descriptors
    ours = [redetection.redetect(images, raw, {}, finder, "cpu").embedding["dlib"] for images in (probes, mates)]

    detect = dlib.get_frontal_face_detector()
    shape = dlib.shape_predictor(str(weights.find("shape_predictor_68_face_landmarks.dat")))
    network = dlib.face_recognition_model_v1(str(weights.find("dlib_face_recognition_resnet_model_v1.dat")))

    def describe(image: np.ndarray) -> np.ndarray:
        boxes = detect(image, 1)
        return np.array(network.compute_face_descriptor(image, shape(image, boxes[0]))) if boxes else np.full(128, NAN)

    theirs = [np.stack([describe(image) for image in images]) for images in (probes, mates)]
    distance = np.linalg.norm(ours[0] - ours[1], axis=1)
    expected = np.linalg.norm(theirs[0] - theirs[1], axis=1)
    both = ~np.isnan(expected)
    assert both.sum() >= 8
    assert np.abs(distance - expected)[both].mean() < 0.06
    sure = both & (np.abs(expected - 0.6) > 0.06)
    assert sure.sum() >= 4 and ((distance > 0.6) == (expected > 0.6))[sure].all()
    assert distance[6:].mean() < distance[:6].mean()
