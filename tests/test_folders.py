"""A folder belongs to one command at a time, and to the inputs that it was begun with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import status
from fakes import FakeEmbedder

from gan_mask import evaluation, files, harden, pretrained, sampling, training
from gan_mask.data.prepare import main as prepare
from gan_mask.errors import GanMaskError
from gan_mask.harden.options import HardenConfig, claimed
from gan_mask.pretrained import thresholds

TINY = (
    "--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size 4 --workers 0 --warmup 1 "
    "--templates plain-white --validation_faces 4 --steps 1"
).split()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from conftest import embedded_photo

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
    assert "changed weights of the networks" in capsys.readouterr().err


def test_the_faces_of_a_step_stay_the_same_whatever_makes_them(fakes, prepared, tmp_path, capsys):
    argv = ["--data", str(prepared), "--out", str(tmp_path / "run"), *TINY]
    training.main(argv)
    path = tmp_path / "run" / "train.json"
    options = json.loads(path.read_text())
    assert options["processes"] == 1
    path.write_text(json.dumps({**options, "processes": 2}))  # as if two processes had begun it
    assert status(training.main, [*argv[:-1], "2"]) == 2
    assert "processes 2 -> 1" in capsys.readouterr().err
    assert status(training.main, [*argv[:-1], "2", "--accumulate", "2"]) == 0  # 4 x 2 processes = 4 x 2 x 1
    old = {k: v for k, v in options.items() if k not in ("processes", "networks")}
    path.write_text(json.dumps({**old, "accumulate": 2}))  # of a run from before it was kept
    assert status(training.main, [*argv[:-1], "3", "--accumulate", "2"]) == 0


def test_a_hardening_belongs_to_the_content_of_what_its_options_name(prepared, tmp_path):
    data = tmp_path / "set"
    data.mkdir()
    (data / "index.npy").write_bytes(b"one")
    (tmp_path / "face.jpg").write_bytes(b"one")
    c = HardenConfig(data=str(data), out=str(tmp_path / "out"), templates=(str(tmp_path / "face.jpg"),))
    for _ in range(2):
        with claimed(c):
            pass
    for changed in (data / "index.npy", tmp_path / "face.jpg"):
        changed.write_bytes(b"two")
        name = changed.parent if changed.name == "index.npy" else changed
        with pytest.raises(GanMaskError, match=f"content of {name}"), claimed(c):
            pass
        changed.write_bytes(b"one")


def test_a_calibration_of_a_shipped_network_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(thresholds, "CALIBRATED", tmp_path)
    assert set(thresholds.shipped("dlib")) == {"0.01", "0.001"}
    (tmp_path / "dlib.json").write_text(json.dumps({"cosine": {"0.001": 0.99}}))
    assert thresholds.shipped("dlib") == {"0.001": 0.99}
