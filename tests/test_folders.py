"""A folder belongs to one command at a time, and to the inputs that it was begun with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import embedded_photo, status
from fakes import FakeDetector, FakeEmbedder

from gan_mask import evaluation, files, harden, pretrained, run_record, sampling, training
from gan_mask.data import shards
from gan_mask.data.prepare import main as prepare
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import run
from gan_mask.harden import alarm
from gan_mask.harden.options import HardenConfig, claimed
from gan_mask.pretrained import thresholds
from gan_mask.pretrained.protocol import Embedder, fingerprints

TINY = (
    "--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size 4 --workers 0 --warmup 1 "
    "--templates plain-white --validation_faces 4 --steps 1"
).split()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.webp").write_bytes(embedded_photo("id_0001/view_1"))
    return folder


@pytest.mark.parametrize("command", ["prepare", "train", "sample", "evaluation", "harden"])
def test_a_folder_in_use_is_refused_by_name(command, fakes, prepared, photos, tmp_path, capsys):
    out = tmp_path / "out"
    main, argv, held = {
        "prepare": (prepare, [str(photos), str(out), "--workers", "1"], out / ".parts"),
        "train": (training.main, ["--data", str(prepared), "--out", str(out), *TINY], out),
        "sample": (sampling.main, ["--faces", str(photos), "--out", str(out), "--method", "dm", "--embedders", "fake",
                                   "--detectors", "fake"], out),
        "evaluation": (evaluation.main, ["--data", str(prepared), "--out", str(out), "--methods", "dm", "--embedders",
                                         "fake", "--detectors", "fake", "--stored-thresholds", "--probes", "2"], out),
        "harden": (harden.main, ["--data", str(prepared), "--out", str(out), "--against", "dm", "--pool", "1",
                                 "--embedders"], out),
    }[command]  # fmt: skip
    with files.locked(held):
        assert status(main, argv) == 2
    message = capsys.readouterr().err
    assert f"{held}: another command is writing there" in message or "not empty and not a prepared set" in message
    assert {p.name for p in out.rglob("*")} <= {".lock", ".parts", "settings.json", "cache", "clean"} | {
        p.name for p in out.rglob("*.npy")
    }


HOLDER = """
import os, sys, time
from gan_mask import files
with files.locked(sys.argv[1]):
    if os.fork() == 0:  # as a loader's process, which outlives a killed parent for a while
        print("held", flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_a_killed_command_lets_go_of_its_folder_whatever_it_has_started(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(GanMaskError, match="another command"), files.locked(tmp_path):
            pass
        holder.kill()
        holder.wait(30)
        with files.locked(tmp_path):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


class OtherEmbedder(FakeEmbedder):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(-self.weight.flip(0), False)


def test_clean_embeddings_are_those_of_these_weights_and_these_people(fakes, prepared, tmp_path, monkeypatch, capsys):
    argv = ["--data", str(prepared), "--out", str(tmp_path / "run"), *TINY]
    training.main(argv)
    (first,) = (tmp_path / "run").glob("clean-*.npy")
    other = tmp_path / "other"  # the same people in the same order, with other faces
    other.mkdir()
    for file in prepared.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    index = np.load(other / "index.npy")
    for column in ("crop", "crop_length", "landmarks"):
        index[column] = index[column][::-1]
    np.save(other / "index.npy", index)
    training.main(["--data", str(other), *argv[2:-1], "2"])
    (second,) = {*(tmp_path / "run").glob("clean-*.npy")} - {first}
    assert not np.array_equal(np.load(first), np.load(second))
    monkeypatch.setitem(pretrained.EMBEDDERS, "fake", lambda name: OtherEmbedder())
    assert status(training.main, [*argv[:-1], "3"]) == 2
    assert "other weights of recogniser fake" in capsys.readouterr().err


def test_the_faces_of_a_step_stay_the_same_whatever_makes_them(fakes, prepared, tmp_path, capsys):
    argv = ["--data", str(prepared), "--out", str(tmp_path / "run"), *TINY]
    training.main(argv)
    path = tmp_path / "run" / "train.json"
    options = json.loads(path.read_text())
    assert options["processes"] == 1
    path.write_text(json.dumps({**options, "processes": 2}))  # as if two processes had begun it
    assert status(training.main, [*argv[:-1], "2"]) == 2
    assert "faces_per_step 8 -> 4" in capsys.readouterr().err
    assert status(training.main, [*argv[:-1], "2", "--accumulate", "2"]) == 0  # 4 x 2 processes = 4 x 2 x 1
    new = ("processes", "networks", "faces_per_step", "photos")
    old = {k: v for k, v in options.items() if k not in new}
    path.write_text(json.dumps({**old, "accumulate": 2}))  # of a run from before it was kept
    assert status(training.main, [*argv[:-1], "3", "--accumulate", "2"]) == 0
    path.write_text(json.dumps({k: v for k, v in options.items() if k != "code"}))  # of before there were versions
    assert status(training.main, [*argv[:-1], "3"]) == 2
    assert f"another version of the code, 1 -> {run_record.CODE['training']}" in capsys.readouterr().err


def test_a_hardening_belongs_to_the_content_of_what_its_options_name(prepared, tmp_path):
    data = tmp_path / "set"
    data.mkdir()
    (data / "index.npy").write_bytes(b"one")
    (tmp_path / "face.jpg").write_bytes(b"one")
    c = HardenConfig(data=str(data), out=str(tmp_path / "out"), templates=(str(tmp_path / "face.jpg"),))
    networks = {"detector classifier": "a" * 64}
    for _ in range(2):
        with claimed(c, networks):
            pass
    for changed in (data / "index.npy", tmp_path / "face.jpg"):
        changed.write_bytes(b"two")
        name = changed.parent if changed.name == "index.npy" else changed
        with pytest.raises(GanMaskError, match=f"content of {name}"), claimed(c, networks):
            pass
        changed.write_bytes(b"one")
    others = {"detector classifier": "b" * 64}  # as of a sidecar that names no checksum
    with pytest.raises(GanMaskError, match="other weights of detector classifier"), claimed(c, others):
        pass


def test_a_calibration_of_a_shipped_network_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(thresholds, "CALIBRATED", tmp_path)
    assert set(thresholds.shipped("dlib")) == {"0.01", "0.001"}
    (tmp_path / "dlib.json").write_text(json.dumps({"cosine": {"0.001": 0.99}}))
    assert thresholds.shipped("dlib") == {"0.001": 0.99}


def test_thresholds_belong_to_the_weights_that_they_were_measured_on(tmp_path, monkeypatch):
    monkeypatch.setattr(thresholds, "CALIBRATED", tmp_path)
    calibration = {"cosine": {"0.001": 0.5}, "provenance": {"weights_sha256": "a" * 64}}
    (tmp_path / "mine.json").write_text(json.dumps(calibration))

    class Mine(Embedder):
        name = "mine"

        def __init__(self, weights: str) -> None:
            super().__init__()
            self.weights_sha256, self.thresholds = weights, thresholds.shipped(self.name)

    assert Mine("a" * 64).threshold(1e-3) == 0.5
    with pytest.raises(GanMaskError, match=r"mine\.json.*weights of the network.*calibrate --embedder mine"):
        Mine("b" * 64).threshold(1e-3)
    monkeypatch.setitem(run_record.CODE, "thresholds", 2)
    with pytest.raises(GanMaskError, match="another version of the code, 1 -> 2"):
        Mine("a" * 64).threshold(1e-3)


def test_an_alarm_belongs_to_the_weights_that_it_was_fitted_to(tmp_path, fakes, monkeypatch):
    loaded = fingerprints({"fake": FakeEmbedder()}, {"fake": FakeDetector()})
    weights = {f"{part} fake": 1.0 for part in ("logit", "upper-whole", "lower-whole", "upper-lower")}
    kept = {
        "detector": "fake", "embedders": ["fake"], "weights": weights, "usual": weights, "intercept": 0.0,
        "networks": loaded, "code": run_record.CODE["alarm"],
    }  # fmt: skip
    path = tmp_path / "alarm.json"
    path.write_text(json.dumps(kept))
    alarm.load(path)
    monkeypatch.setitem(pretrained.EMBEDDERS, "fake", lambda name: OtherEmbedder())
    with pytest.raises(GanMaskError, match=r"alarm\.json.*other weights of recogniser fake.*gan_mask\.alarm"):
        alarm.load(path)
    path.write_text(json.dumps({k: v for k, v in kept.items() if k != "networks"}))  # from before they were kept
    alarm.load(path)


def test_what_differs_is_named_and_what_was_not_kept_then_is_not_held_against_a_folder():
    networks = {"detector x": "a" * 64, "detector y": "b" * 64}
    now = run_record.inputs("shards", {"seed": 0, "names": ("a", "b")}, index="a" * 64, networks=networks)
    assert run_record.differences(now, now) == {}
    assert run_record.differences({"seed": 0, "names": ["a", "b"]}, now) == {}  # from before SHA-256 and code were kept
    assert run_record.differences({**now, "networks": ["a" * 64, "b" * 64]}, now) == {}  # from before they had names
    other = {"seed": 1, "names": ["a"], "index": "b" * 64, "networks": ["a" * 64, "c" * 64], "code": 0}
    assert run_record.differences(other, now, free={"names"}) == {
        "seed": "seed 1 -> 0",
        "index": "other faces of --data",
        "networks": "other weights of detector y",
        "code": "another version of the code, 0 -> 1",
    }
    assert run_record.differences({}, now).keys() == {"seed", "names"}  # an option that nobody knows is another


@pytest.mark.parametrize("values", [np.full((3, 4), np.nan, np.float32), np.ones((2, 4), np.float32)])
def test_kept_embeddings_that_are_not_finite_or_of_other_faces_are_not_used(tmp_path, capsys, values):
    path = tmp_path / "clean.npy"
    assert run_record.embeddings(path, 3) is None and not capsys.readouterr().err
    np.save(path, values)
    assert run_record.embeddings(path, 3) is None
    assert f"{path}: damaged" in capsys.readouterr().err
    np.save(path, np.ones((3, 4), np.float32))
    kept = run_record.embeddings(path, 3)
    assert kept is not None and kept.shape == (3, 4)


@pytest.mark.parametrize("command", [shards.main, alarm.main])
def test_shards_and_alarm_refuse_what_another_command_writes(command, prepared, fakes, tmp_path, capsys):
    out, is_file = tmp_path / "out", command is alarm.main
    options = ["--data", str(prepared), "--out", str(out), "--against", "dm"] if is_file else [str(prepared), str(out)]
    with files.locked(tmp_path, "out") if is_file else files.locked(out):
        assert status(command, options) == 2
    assert f"{out}: another command is writing there" in capsys.readouterr().err
    assert not out.is_file() and not (out / "shards.json").exists()


def test_a_prepared_set_belongs_to_the_photos_that_it_was_made_from(photos, tmp_path, capsys):
    argv = [str(photos), str(tmp_path / "out"), "--workers", "1"]
    assert status(prepare, argv) == 0 and status(prepare, argv) == 0
    path = tmp_path / "out" / "meta.json"
    meta = json.loads(path.read_text())
    (photos / "a.webp").write_bytes(embedded_photo("id_0002/view_1"))  # under the same name
    assert status(prepare, argv) == 2
    assert "other sizes of the photos" in capsys.readouterr().err
    del meta["settings"]["contents_sha256"], meta["settings"]["code"]
    path.write_text(json.dumps(meta))  # of a set from before they were kept
    assert status(prepare, argv) == 0


def test_what_other_code_made_is_made_again_and_said(photos, fakes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run_record.CODE, "masked photos", 1)
    argv = ["--faces", str(photos), "--out", str(tmp_path / "out"), "--method", "dm", "--embedders", "fake"]
    argv += ["--detectors", "fake"]
    for _ in range(2):
        assert status(sampling.main, argv) == 0
    assert "1 of 1 photos were done before" in capsys.readouterr().out
    monkeypatch.setitem(run_record.CODE, "masked photos", 2)
    assert status(sampling.main, argv) == 0
    said = capsys.readouterr().out
    assert "masked again, because of another version of the code, 1 -> 2" in said and "done before" not in said


def test_an_evaluation_from_before_resumes_wherever_its_set_lies_until_the_code_is_another(
    prepared, fakes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(run_record.CODE, "evaluation", 2)  # which folders of before the record had
    real, calls = run.do, []
    monkeypatch.setattr(run, "do", lambda e, method, rows: (calls.append(method), real(e, method, rows)))
    argv = ["--out", str(tmp_path / "out"), "--methods", "dm", "--surrogates", "fake", "--detectors", "fake"]
    argv += ["--stored-thresholds", "--probes", "2"]
    assert status(evaluation.main, ["--data", str(prepared), *argv]) == 0
    path = tmp_path / "out" / "cache" / "settings.json"
    old = json.loads(path.read_text())
    assert old.pop("code") == 2 and "data" not in old
    old |= {"choice": 2, "version": "0.1.0", "data": str(prepared), "photos": []}
    path.write_text(json.dumps(old | {"networks": list(old["networks"].values())}))
    moved = tmp_path / "moved"
    shutil.copytree(prepared, moved)
    assert status(evaluation.main, ["--data", str(moved), *argv]) == 0
    assert calls == ["none", "dm"] and "made again" not in capsys.readouterr().out
    monkeypatch.setitem(run_record.CODE, "evaluation", 3)
    assert status(evaluation.main, ["--data", str(moved), *argv]) == 0
    assert len(calls) == 4
    assert "everything is made again, because of another version of the code, 2 -> 3" in capsys.readouterr().out
