"""Two CPU processes (gloo) train the same generator as one process with the doubled batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
    moved = weights[1]["net.heads.weight"] - weights[1]["ema.heads.weight"]
    assert moved.abs().max() > 1e-6
