"""Tar shards: written from a prepared set, read by webdataset (the oracle), tar and training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from fakes import FakeEmbedder
from test_distributed import LAUNCH, free_port
from test_training import TINY, run, weights
from torch.utils.data import DataLoader, default_collate

from gan_mask.data import PreparedSet, shards
from gan_mask.data.shards import ShardSet
from gan_mask.errors import GanMaskError
from gan_mask.training import loop
from gan_mask.training.options import TrainConfig
from gan_mask.training.schedule import Schedule


@pytest.fixture
def sharded(prepared: Path, tmp_path: Path) -> Path:
    """36 faces in train (four shards of 10, 10, 10 and 6), 12 in val (two)."""
    shards.main([str(prepared), str(tmp_path / "shards"), "--faces-per-shard", "10", "--quiet"])
    return tmp_path / "shards"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_source(photos: PreparedSet) -> dict[str, int]:
    return {photos.source(i): i for i in range(len(photos))}


def test_plain_webdataset_and_plain_tar_find_every_face_bit_for_bit(prepared: Path, sharded: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for split, count in (("train", 36), ("val", 12)):
        photos = PreparedSet(prepared, split)
        number = by_source(photos)
        names = sorted(str(path) for path in sharded.glob(f"{split}-*.tar"))
        samples = list(webdataset.WebDataset(names, shardshuffle=False))
        assert len(samples) == count
        for sample in samples:
            facts = json.loads(sample["json"])
            i = number.pop(facts["source"])
            assert sample["jpg"] == photos.encoded(i)
            assert torch.equal(torch.tensor(facts["landmarks"]), photos.landmarks(i))
            assert (facts["identity"], facts["person"]) == (photos.identities[i], photos.person(i))
        members = [member for name in names for member in tarfile.open(name).getnames()]
        assert members == [f"{i:09d}.{kind}" for i in range(count) for kind in ("jpg", "json")]


def test_items_are_those_of_the_prepared_set(prepared: Path, sharded: Path) -> None:
    photos, streamed = PreparedSet(prepared, "train"), ShardSet(sharded, "train")
    assert (streamed.size, streamed.margin, len(streamed)) == (photos.size, photos.margin, 36)
    for mirrored in (False, True):
        expected = {photos[i]["face"].numpy().tobytes(): photos[i, mirrored] for i in range(36)}
        for i in range(36):
            item = streamed[i, mirrored]
            twin = expected.pop(streamed[i]["face"].numpy().tobytes())
            assert torch.equal(item["face"], twin["face"]) and torch.equal(item["landmarks"], twin["landmarks"])
            assert item["identity"] == twin["identity"] == streamed.identities[i] and item["index"] == i
    batch = streamed.__getitems__([25, (9, True), 10, 11, 25])  # two shards, any order, twice the same
    for key, item in zip([25, (9, True), 10, 11, 25], batch, strict=True):
        assert torch.equal(item["face"], streamed[key]["face"])
    with pytest.raises(IndexError):
        streamed[36]
    assert len(list(streamed)) == 36  # type: ignore[call-overload]


def test_faces_are_shuffled_when_they_are_written(sharded: Path) -> None:
    identities = ShardSet(sharded, "train").identities
    assert (identities[1:] == identities[:-1]).mean() < 0.2  # 2 of 3 in the prepared set


def test_writing_is_deterministic_and_resumes_where_it_was(
    prepared: Path, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, describe = contents(sharded), shards._describe

    def killed(tar: Path, faces: int) -> None:
        if tar.name == "train-000002.tar":
            raise KeyboardInterrupt
        return describe(tar, faces)  # type: ignore[return-value]

    monkeypatch.setattr(shards, "_describe", killed)
    with pytest.raises(SystemExit) as end:
        shards.main([str(prepared), str(tmp_path / "other"), "--faces-per-shard", "10", "--quiet"])
    assert end.value.code == 130
    with pytest.raises(GanMaskError, match="not finished"):
        ShardSet(tmp_path / "other", "train")
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "other").glob("*.tar")}
    assert len(before) == 3
    shards.write(prepared, tmp_path / "other", 10)
    assert contents(tmp_path / "other") == whole
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


@pytest.mark.parametrize("harm", ["byte", "cut", "missing", "index"])
def test_a_damaged_shard_is_named_and_the_same_command_mends_it(prepared: Path, sharded: Path, harm: str) -> None:
    whole = contents(sharded)
    tar = sharded / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    if harm == "byte":
        data[5 * 512 + 700] ^= 1
        tar.write_bytes(data)
    elif harm == "cut":
        tar.write_bytes(data[:-5000])
    elif harm == "missing":
        tar.unlink()
    else:
        tar.with_suffix(".npy").write_bytes(whole["train-000001.npy"][:-4] + b"abcd")
    with pytest.raises(GanMaskError, match=r"train-000001\.(tar|npy): .*gan_mask\.shards PREPARED OUT"):
        for _ in DataLoader(ShardSet(sharded, "train"), batch_size=8):
            pass
    shards.write(prepared, sharded, 10)
    assert contents(sharded) == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_a_damaged_shard_ends_with_one_line(sharded: Path, tmp_path: Path, workers: int) -> None:
    """In a process of its own: a loader process that outlives the error would keep it from ending."""
    tar = sharded / "train-000002.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH.format(repository=str(REPOSITORY), tests=str(REPOSITORY / "tests")))
    command = [sys.executable, str(script), "--data", str(sharded), "--out", str(tmp_path / "run"), *TINY, "--quiet"]
    done = subprocess.run([*command, "--workers", str(workers)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"error: {tar}: damaged at byte 0; run the command" in done.stderr and "Traceback" not in done.stderr


def test_a_shard_that_vanishes_while_it_is_used_is_named(sharded: Path) -> None:
    streamed = ShardSet(sharded, "train")
    (sharded / "train-000003.tar").unlink()
    with pytest.raises(GanMaskError, match=r"train-000003\.tar: cannot be read"):
        list(DataLoader(streamed, batch_size=8))


def test_other_settings_and_other_folders_are_refused(
    prepared: Path, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, complaint in (
        ((prepared, sharded, "--faces-per-shard", "11"), "faces_per_shard 10 -> 11"),
        ((prepared, sharded, "--faces-per-shard", "0"), "expected a whole number from 1 to"),
        ((prepared, prepared), "not empty and not a folder of shards"),
        ((tmp_path / "nothing", tmp_path / "new"), "no such folder"),
    ):
        with pytest.raises(SystemExit) as end:
            shards.main([*map(str, arguments)])
        assert end.value.code == 2 and complaint in capsys.readouterr().err
    with pytest.raises(GanMaskError, match="train and val only"):
        ShardSet(sharded, "test")


def test_a_damaged_shards_json_is_named(sharded: Path) -> None:
    path = sharded / "shards.json"
    good = json.loads(path.read_text())
    first = good["shards"][0]
    for damaged in (
        [], {}, good | {"shards": 3}, good | {"size": "64"}, good | {"shards": [None]},
        good | {"shards": [{"name": "train-000000.tar"}]}, good | {"shards": [first | {"name": "../train-000000.tar"}]},
    ):  # fmt: skip
        path.write_text(json.dumps(damaged))
        with pytest.raises(GanMaskError, match=r"shards\.json: (damaged|not the index)"):
            ShardSet(sharded, "train")
    path.write_text(json.dumps(good)[:-9])
    with pytest.raises(GanMaskError, match=r"shards\.json: not readable"):
        ShardSet(sharded, "train")


@pytest.mark.parametrize("run_length", [1, 4, 16])
def test_each_epoch_has_every_face_once_in_runs_and_another_order(sharded: Path, run_length: int) -> None:
    identities = ShardSet(sharded, "train").identities
    c = TrainConfig(batch_size=6, steps=12)
    batches = list(Schedule(identities, c, 0, 1, 0, run_length))
    epochs = [[photo for batch in batches[k : k + 6] for photo, *_ in batch] for k in (0, 6)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(36)) and epochs[0] != epochs[1]
    jumps = sum(b != (a + 1) % 36 for a, b in zip(epochs[0], epochs[0][1:], strict=False))
    assert jumps <= 36 / run_length
    assert list(Schedule(identities, c, 0, 1, 5, run_length)) == batches[5:]


# Each process notes which faces its loader gave it, step by step.
WATCH = """
import json, sys
sys.path.insert(0, {repository!r})
from accelerate import Accelerator
from torch.utils.data import DataLoader, default_collate
from gan_mask.data.shards import ShardSet
from gan_mask.training import loop
from gan_mask.training.camera import Photographed
from gan_mask.training.options import TrainConfig
from gan_mask.training.schedule import Schedule

folder, out, start, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
accelerator, photos = Accelerator(), ShardSet(folder, "train")
seen_by_camera = Photographed(photos, 0.3, 0)
assert accelerator.num_processes == 2
order = Schedule(photos.identities, TrainConfig(batch_size=3, steps=12), accelerator.process_index, 2, start, run=4)
seen = [batch["index"].tolist() for batch in DataLoader(seen_by_camera, batch_sampler=order, num_workers=workers)]
assert accelerator.gather_for_metrics([len(seen)], use_gather_object=True) == [12 - start] * 2
with open(f"{{out}}/{{accelerator.process_index}}.json", "w") as f:
    json.dump(seen, f)
accelerator.end_training()
"""


def two_processes(script: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(free_port()), str(script), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_see_disjoint_parts_and_resume_exactly(sharded: Path, tmp_path: Path) -> None:
    script = tmp_path / "watch.py"
    script.write_text(WATCH.format(repository=str(REPOSITORY)))
    seen = {}
    for start, workers in ((0, 0), (5, 2)):  # resumed with another number of loader processes
        two_processes(script, sharded, tmp_path, start, workers)
        seen[start] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in (slice(0, 6), slice(6, 12)):  # 6 steps of 2 x 3 faces are the 36 of an epoch
        first, second = ([face for batch in part[epoch] for face in batch] for part in seen[0])
        assert sorted(first + second) == list(range(36))
    assert seen[5] == [part[5:] for part in seen[0]]


@pytest.mark.slow
def test_training_on_shards_on_two_processes(sharded: Path, tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH.format(repository=str(REPOSITORY), tests=str(REPOSITORY / "tests")))
    options = (
        "--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size 4 --workers 1 --steps 3 "
        "--warmup 1 --templates plain-white --validation_faces 4"
    )
    two_processes(script, "--data", sharded, "--out", tmp_path / "run", *options.split())
    assert (tmp_path / "run/generator/model.safetensors").is_file()
    (clean,) = (tmp_path / "run").glob("clean-*")  # each process made one half, and nothing is left of the halves
    photos = ShardSet(sharded, "train")
    batch = default_collate([photos[i] for i in range(36)])
    expected = FakeEmbedder()(batch["face"], batch["landmarks"])
    assert torch.allclose(torch.from_numpy(np.load(clean)), expected, atol=1e-5)


def test_training_on_shards_resumes_bit_for_bit(fakes: None, sharded: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die_at_the_sixth(optimizers: Any, c: TrainConfig, step: int) -> None:
        if step == 5:
            raise Killed
        scale(optimizers, c, step)

    scale = loop.scale_learning_rates
    run(sharded, tmp_path / "whole", "--steps", "6")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "scale_learning_rates", die_at_the_sixth)
        run(sharded, tmp_path / "cut", "--steps", "6")
    run(sharded, tmp_path / "cut", "--steps", "6", "--workers", "1")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[k], cut[k]) for k in whole)


def test_moving_a_run_from_the_set_to_its_shards_computes_clean_embeddings_again(
    fakes: None, prepared: Path, sharded: Path, tmp_path: Path
) -> None:
    """The shards have another order; the old embeddings would be other people's."""
    run(prepared, tmp_path / "run", "--steps", "2")
    run(sharded, tmp_path / "run", "--steps", "4")
    assert len(list((tmp_path / "run").glob("clean-*.npy"))) == 2
