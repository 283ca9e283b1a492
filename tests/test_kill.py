"""A training in a process of its own, stopped from outside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import LAUNCH, REPOSITORY

STEPS = 40


def start(prepared: Path, folder: Path, out: str) -> subprocess.Popen[str]:
    script = folder / "launch.py"
    script.write_text(LAUNCH.format(repository=str(REPOSITORY), tests=str(REPOSITORY / "tests")))
    command = [sys.executable, str(script), "--data", str(prepared), "--out", str(folder / out), "--steps", str(STEPS)]
    command += "--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size 4".split()
    command += "--workers 1 --warmup 1 --validation_faces 4 --templates plain-white --save_every 2".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(600):
        if any(int(p.name.removeprefix("step-")) >= step for p in (run / "checkpoints").glob("step-*")):
            return
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint of step {step} within a minute")


@pytest.mark.slow
def test_terminated_and_killed_runs_end_like_an_uninterrupted_one(prepared, tmp_path):
    assert start(prepared, tmp_path, "whole").wait(300) == 0

    first = start(prepared, tmp_path, "cut")  # as a scheduler does: SIGTERM to the whole process group
    wait_for_step(tmp_path / "cut", 6)
    os.killpg(first.pid, signal.SIGTERM)
    _, complaint = first.communicate(timeout=120)
    assert first.returncode == 143 and "run the same command again" in complaint

    second = start(prepared, tmp_path, "cut")
    wait_for_step(tmp_path / "cut", 20)
    os.killpg(second.pid, signal.SIGKILL)
    assert second.wait(60) == -signal.SIGKILL

    assert start(prepared, tmp_path, "cut").wait(300) == 0
    whole, cut = (load_file(tmp_path / n / f"checkpoints/step-{STEPS:07d}/state.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[k], cut[k]) for k in whole)
