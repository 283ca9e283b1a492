"""Shards on all engines: who does what when, a Ray cluster of two nodes that loses workers, a node and a driver, and
what the commands write on each of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, PEOPLE, REPOSITORY, embedded_photo

from gan_mask import EvaluationConfig, attacks, engines, evaluate, files, pretrained
from gan_mask.data import PreparedSet
from gan_mask.data.prepare import PrepareConfig, prepare
from gan_mask.engines import Engine
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import clean, redetection, run, shards
from gan_mask.evaluation.protocol import Pairs
from gan_mask.sampling.command import sample
from gan_mask.sampling.options import SampleConfig


class Writer:
    """Writes one small file for each shard; shard `victim` kills its process the first time, shard `wrong` is bad."""

    def __init__(self, folder: Path, victim: int = -1, wrong: int = -1, seconds: float = 0.0) -> None:
        self.folder, self.victim, self.wrong, self.seconds = folder, victim, wrong, seconds

    def __call__(self, number: int, shard: list[int]) -> int:
        killed = self.folder / "killed"
        if number == self.victim and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.wrong:
            raise GanMaskError("photo 7: not a photo; look at it")
        time.sleep(self.seconds)
        with files.replacing(self.folder / f"{number}.txt") as temporary:
            temporary.write_text(f"{number}: {sum(shard)}")
        return len(shard)


SHARDS = {number: list(range(number, number + 5)) for number in range(12)}


def written(engine: Engine, folder: Path, **options: Any) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    counts: list[int] = []
    engines.run(engine, Writer, (folder, *options.values()), SHARDS, counts.append)
    assert sum(counts) == 60
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


# ------------------------------------------------------------------------------------------- who does what when


class Simulated:
    """Workers and a clock of which every shard takes as long as `seconds` says, its second copy one second."""

    def __init__(self, workers: int, seconds: list[float]) -> None:
        self.workers, self.seconds, self.clock, self.most = workers, seconds, 0.0, 0
        self.ends: dict[tuple[int, int], float] = {}
        self.stopped: list[tuple[int, int]] = []
        self.copies: dict[int, int] = {}

    def slots(self) -> int:
        return self.workers

    def start(self, number: int) -> tuple[int, int]:
        self.copies[number] = self.copies.get(number, 0) + 1
        task = number, self.copies[number]
        self.ends[task] = self.clock + (self.seconds[number] if task[1] == 1 else 1.0)
        self.most = max(self.most, len(self.ends))
        return task

    def wait(self, tasks: list[tuple[int, int]], seconds: float) -> list[tuple[int, int]]:
        assert set(tasks) == set(self.ends)
        first = min(tasks, key=self.ends.__getitem__)
        until = self.clock + seconds
        self.clock = max(min(self.ends[first], until), self.clock)
        if self.ends[first] > until:
            return []
        del self.ends[first]
        return [first]

    def result(self, task: tuple[int, int]) -> int:
        return task[0]

    def stop(self, task: tuple[int, int]) -> None:
        self.stopped.append(task)
        del self.ends[task]

    def now(self) -> float:
        return self.clock


def test_every_shard_is_done_once_and_no_more_run_than_there_are_slots() -> None:
    simulated, done = Simulated(4, [1.0 + i % 3 for i in range(50)]), list[int]()
    engines.schedule(range(50), simulated, done.append)
    assert sorted(done) == list(range(50)) and simulated.most == 4


def test_a_straggler_is_overtaken_by_its_second_copy() -> None:
    seconds = [1.0] * 20
    seconds[3] = 1000.0
    simulated, done = Simulated(4, seconds), list[int]()
    engines.schedule(range(20), simulated, done.append)
    assert sorted(done) == list(range(20)) and simulated.copies[3] == 2 and simulated.stopped == [(3, 1)]
    assert simulated.clock < 12  # 19 shards on 3 workers, and one second for the copy
    assert all(simulated.copies[number] == 1 for number in range(20) if number != 3) and simulated.most == 4


# ------------------------------------------------------------------------------------------- this machine


def test_a_pool_writes_what_one_process_writes(tmp_path: Path) -> None:
    alone = written(Engine(workers=1), tmp_path / "alone")
    assert len(alone) == 12 and alone["7.txt"] == "7: 45"
    assert written(Engine(workers=2), tmp_path / "pool") == alone


def test_a_containers_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CGROUP", tmp_path)
    cores, memory = engines.cores(), engines.memory()
    assert cores >= 1 and memory > 1 << 30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (engines.cores(), engines.memory()) == (cores, memory)
    (tmp_path / "cpu.max").write_text("50000 100000\n")  # half a core
    (tmp_path / "memory.max").write_text("536870912\n")
    assert (engines.cores(), engines.memory()) == (1, 1 << 29)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries keep no such memory, or cannot be asked")
def test_freed_memory_goes_back_to_the_system_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [
        b"x" * (60_000 + number % 7) for number in range(4_000)
    ]  # 240 MB, in pieces that the C library keeps when they are freed
    kept = pieces[::100]  # some stay in between
    before = resident()
    del pieces
    monkeypatch.setattr(engines, "_given_back", time.monotonic())
    engines.give_back()
    assert before - resident() < 50_000_000  # too soon
    monkeypatch.setattr(engines, "_given_back", time.monotonic() - engines.TIDY)
    engines.give_back()
    assert before - resident() > 150_000_000
    assert len(kept) == 40


def test_another_machines_temporary_files_are_left_alone(tmp_path: Path) -> None:
    """On a shared file system they may be those of a worker that is at it."""
    theirs, old, ours = (tmp_path / f".part.npz.{owner}.tmp" for owner in ("0a1b2c3d-1", "0a1b2c3d-2", "999999999"))
    for path in (theirs, old, ours):
        path.touch()
    os.utime(old, (0, 0))
    files.remove_leftovers(tmp_path)
    assert theirs.exists() and not old.exists() and not ours.exists()


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GanMaskError, match=r"needs the extra \[ray\]"):
        written(Engine("ray"), tmp_path)


# ------------------------------------------------------------------------------------------- the evaluation

EVALUATION = EvaluationConfig(  # with paths that mean something in the folder `desk` alone
    data="prepared", out="alone", methods=("advnoise-dm", "folder:own=probes"), templates=("mask.webp",),
    surrogates=("onnx:cases/14_embedder_external.json",), far=0.05, fars=(0.02,), probes=4, changed_probes=1,
    pairs="pairs.txt", attack=attacks.Options(steps=2),
)  # fmt: skip


def pairs_of_the_set(*_: Any) -> Pairs:
    """Each person's first photo with the second one, and with one of somebody else."""
    a, b = np.arange(0, 60, 3), np.arange(1, 60, 3)
    return Pairs(np.concatenate([a, a]), np.concatenate([b, np.roll(b, 1)]), np.arange(40) < 20, np.arange(40) % 2, 0)


@pytest.fixture(scope="module")
def desk(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: inputs and, in `alone`, the evaluation by one process. It has units of two probes."""
    folder, threads = tmp_path_factory.mktemp("desk"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(run, "UNIT", 2)
        patch.setattr(shards, "SLICE", redetection.CLEAN_BATCH)
        patch.setattr(clean, "lfw_pairs", pairs_of_the_set)
        Path("prepared").symlink_to(prepared)
        Path("cases").symlink_to(CASES)
        Path("mask.webp").write_bytes(embedded_photo("id_0003/view_1"))
        for person in PEOPLE[-4:]:
            for view in (1, 2, 3):
                path = Path("probes", f"id_{person:04d}", f"view_{view}.webp")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(embedded_photo(f"id_{person:04d}/view_{view}"))
        torch.set_num_threads(1)  # as in a worker: other threads may add in another order
        evaluate(EVALUATION)
        yield folder
        torch.set_num_threads(threads)


def found(out: Path) -> dict[str, Any]:
    """All that an evaluation wrote and keeps, but for times; of arrays, their bytes by name."""
    content: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".npz":
            with np.load(path) as file:
                content[name] = {key: file[key].tobytes() for key in file if key != "extra seconds"}
        elif name not in ("cost.json", "index.html"):
            content[name] = path.read_bytes()
    return content


def test_a_pool_goes_on_with_what_one_process_left_and_finds_the_same(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = replace(EVALUATION, out="pool", cache="alone/cache/clean")
    real, done = run.do, list[Path]()

    def killed(e: run.Experiment, method: str, rows: slice) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        real(e, method, rows)
        done.append(e.kept(method, rows))

    with monkeypatch.context() as patch:
        patch.setattr(run, "do", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(c)
    before = {path: path.stat().st_mtime_ns for path in done}
    evaluate(replace(c, workers=2))
    assert {path: path.stat().st_mtime_ns for path in done} == before
    alone = {name: content for name, content in found(desk / "alone").items() if not name.startswith("cache/clean/")}
    assert {"cache/own/00000.npz", "cache/own/00002.npz", "robustness.csv"} <= alone.keys()
    assert found(desk / "pool") == alone


def test_slices_of_clean_faces_that_are_there_are_not_embedded_again(desk: Path, tmp_path: Path) -> None:
    c = replace(EVALUATION, out=str(tmp_path))
    (name,), photos, index = c.surrogates, PreparedSet("prepared", "train"), np.arange(36)
    embedders = {name: pretrained.load_embedder(name)}
    path = redetection.clean_path(name, embedders[name], photos, index, tmp_path / "cache" / "clean")
    whole = redetection.embed(embedders[name], photos, index, "cpu")
    redetection.keep(path.with_name(f"{path.stem}.{0:09d}.npy"), np.zeros((32, whole.shape[1]), np.float32))
    shards.embed(Engine(), c, embedders, [(photos, index)])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not np.load(path)[:32].any() and np.array_equal(np.load(path)[32:], whole[32:])


def test_options_that_do_not_go_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GanMaskError, match=r"workers: expected a whole number from 1 to 1024, got 0"):
        evaluate(replace(EVALUATION, workers=0))
    monkeypatch.setattr("accelerate.PartialState", lambda **_: SimpleNamespace(num_processes=2))
    for options in ({"workers": 2}, {"engine": "ray"}):
        with pytest.raises(GanMaskError, match=r"leave them out, or start the command without accelerate launch"):
            evaluate(replace(EVALUATION, **options))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- two nodes of Ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes on this machine, of one worker each, in a folder of their own; gone at the end."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with patch.context() as elsewhere:
            elsewhere.chdir(tmp_path_factory.mktemp("nodes"))
            started = Cluster(initialize_head=True, head_node_args=node)
            started.add_node(**node)
        yield started
        started.shutdown()


def test_a_killed_worker_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    here = written(Engine(), tmp_path / "here")
    there = written(Engine("ray", address=cluster.address), tmp_path / "there", victim=5)
    assert (tmp_path / "there" / "killed").exists() and there == here


def test_what_is_wrong_in_a_worker_is_told_as_anywhere(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(GanMaskError, match=r"^photo 7: not a photo; look at it$"):
        written(Engine("ray", address=cluster.address), tmp_path, victim=-1, wrong=3)


def test_a_lost_node_and_a_killed_driver_change_nothing(cluster: Any, tmp_path: Path) -> None:
    """SIGKILL to the driver in the middle; then a new one, which loses a machine on the way and does what is left."""
    here, out = written(Engine(), tmp_path / "here"), tmp_path / "out"
    out.mkdir()
    code = (
        "import pathlib, sys, test_engines as t; from gan_mask.engines import Engine, run\n"
        "run(Engine('ray', address=sys.argv[1]), t.Writer, (pathlib.Path(sys.argv[2]), -1, -1, 0.3), t.SHARDS, print)"
    )
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
    driver = subprocess.Popen(
        [sys.executable, "-c", code, cluster.address, str(out)], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while len(list(out.glob("*.txt"))) < 2:
            assert driver.poll() is None
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    left = {number: shard for number, shard in SHARDS.items() if not (out / f"{number}.txt").exists()}
    assert 0 < len(left) < 12
    extra = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    done: list[int] = []

    def after(count: int) -> None:
        done.append(count)
        if len(done) == 1:
            cluster.remove_node(extra)

    engines.run(Engine("ray", address=cluster.address), Writer, (out, -1, -1, 0.3), left, after)
    assert len(done) == len(left)
    assert {path.name: path.read_text() for path in sorted(out.glob("*.txt"))} == here


def test_the_commands_give_the_same_on_a_cluster(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for person in (1, 2, 3):
        (photos / f"{person}.webp").write_bytes(embedded_photo(f"id_{person:04d}/view_1"))
    monkeypatch.chdir(tmp_path)  # whose files workers know by their whole path alone
    (tmp_path / "me.webp").write_bytes(embedded_photo("id_0004/view_1"))
    sampling = SampleConfig(faces="photos", method="dm", no_measure=True, shards=2, template="me.webp")
    preparing = PrepareConfig(src=str(photos), size=64)
    ray: dict[str, Any] = {"engine": "ray", "ray_address": cluster.address}
    sets = []
    for options in ({}, ray):
        out = tmp_path / f"with {len(options)}"
        prepare(replace(preparing, dst=str(out / "set"), **options))
        sample(replace(sampling, out=str(out / "masked"), **options))
        sets.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert len([name for name in sets[0] if name.endswith(".tar")]) == 2 and sets[0] == sets[1]


def test_the_evaluation_is_the_same_on_a_cluster(cluster: Any, desk: Path) -> None:
    evaluate(replace(EVALUATION, out="ray", engine="ray", ray_address=cluster.address))
    alone = found(desk / "alone")
    assert found(desk / "ray") == alone
    assert len([name for name in alone if name.startswith("cache/clean/")]) == 3  # mates, impostors, pairs
