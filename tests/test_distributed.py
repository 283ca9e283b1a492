"""Two CPU processes (gloo) train the same generator as one process with the doubled batch."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gan_mask.training.options import TrainConfig, resumable, scaled
from gan_mask.training.schedule import Schedule

REPOSITORY = Path(__file__).parent.parent

# Runs train.py's main with the tests' fake networks in place.
LAUNCH = """
import sys
sys.path[:0] = [{repository!r}, {tests!r}]
from fakes import FakeDetector, FakeEmbedder
from gan_mask import pretrained, training
pretrained.EMBEDDERS["fake"], pretrained.DETECTORS["fake"] = lambda name: FakeEmbedder(), lambda name: FakeDetector()
training.main(sys.argv[1:])
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(prepared, tmp_path):
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH.format(repository=str(REPOSITORY), tests=str(REPOSITORY / "tests")))
    weights = {}
    for processes, batch in ((1, 8), (2, 4)):
        out = tmp_path / f"run{processes}"
        # torchrun, which `accelerate launch --multi_gpu` uses too; its --cpu starts one process only.
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_port", str(free_port()), str(script), "--data", str(prepared), "--out", str(out)]
        command += (
            f"--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size {batch}".split()
        )
        command += "--workers 0 --steps 3 --warmup 1 --templates face-001 plain-white --validation_faces 4".split()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        weights[processes] = load_file(out / "checkpoints/step-0000003/state.safetensors")
    assert weights[1].keys() == weights[2].keys()
    for key, one in weights[1].items():
        if key.startswith(("net.", "discriminator.", "ema.")):
            assert torch.allclose(one, weights[2][key], atol=3e-4), key
    moved = weights[1]["net.face.points.weight"] - weights[1]["ema.face.points.weight"]
    assert moved.abs().max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_stops_and_says_so(victim, prepared, tmp_path):
    """Started one by one, as a cluster's scheduler does; torchrun would end the others by itself."""
    script, out = tmp_path / "launch.py", tmp_path / "run"
    script.write_text(LAUNCH.format(repository=str(REPOSITORY), tests=str(REPOSITORY / "tests")))
    command = [sys.executable, str(script), "--data", str(prepared), "--out", str(out)]
    command += "--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size 2".split()
    command += (
        "--workers 0 --steps 100000 --warmup 1 --templates plain-white --validation_faces 4 --save_every 2".split()
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**environment, "RANK": str(i), "LOCAL_RANK": str(i)}
        )
        for i in (0, 1)
    ]
    try:
        while not list(out.glob("checkpoints/step-*")):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        processes[victim].kill()
        _, complaint = processes[1 - victim].communicate(timeout=60)
        assert processes[1 - victim].returncode == 2, complaint[-3000:]
        assert "another process of this training is gone; run the same command again" in complaint
        for folder in out.glob("checkpoints/step-*"):
            load_file(folder / "state.safetensors")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_see_disjoint_photos_and_together_those_of_one(accumulate):
    c = TrainConfig(batch_size=4, accumulate=accumulate, steps=20)
    identities = np.repeat(np.arange(60), 3)
    ranks = [list(Schedule(identities, c, process, 3, 0)) for process in range(3)]
    alone = list(Schedule(identities, replace(c, batch_size=12), 0, 1, 0))
    for micro, (a, b, d) in enumerate(zip(*ranks, strict=True)):
        assert sorted(a + b + d) == sorted(alone[micro])
        assert len({photo for photo, *_ in a + b + d}) == 12 or micro * 12 % len(identities) + 12 > len(identities)
    resumed = list(Schedule(identities, c, 1, 3, 7))
    assert resumed == ranks[1][7 * accumulate :]


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_learning_rates_grow_with_the_processes_where_asked(rule, factor):
    c = TrainConfig(scale_lr=rule)
    rates = scaled(c, 4).learning_rate, scaled(c, 4).discriminator_learning_rate
    assert rates == (factor * c.learning_rate, factor * c.discriminator_learning_rate)
    # A run whose rates hang on the number of processes is not gone on with by another number.
    assert ("processes" in resumable(c)) == (rule == "none") and "batch_size" in resumable(c)
