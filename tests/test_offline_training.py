"""A GPU machine without a package registry must be able to train: only the listed packages may be needed."""

import os
import subprocess
import sys

from test_distributed import LAUNCH, REPOSITORY
from test_package import BLOCK


def test_training_runs_without_any_optional_package(prepared, tmp_path):
    script = tmp_path / "launch.py"
    script.write_text(BLOCK + LAUNCH.format(repository=str(REPOSITORY), tests=str(REPOSITORY / "tests")))
    command = [sys.executable, str(script), "--data", str(prepared), "--out", str(tmp_path / "run"), "--steps", "2"]
    command += "--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size 4".split()
    command += "--workers 0 --warmup 1 --validation_faces 4 --templates faces plain --camera 0".split()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tensorboard is not installed" in done.stderr
    assert (tmp_path / "run" / "generator" / "model.safetensors").is_file()
