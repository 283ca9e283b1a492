"""The shipped accelerate files start a training: on the CPU with gloo, one process in place of each machine's GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_distributed import LAUNCH, REPOSITORY, free_port

OPTIONS = (
    "--embedders fake --detectors fake --widths 8 16 --discriminator_width 8 --batch_size 4 --workers 0 --steps 2 "
    "--warmup 1 --templates plain-white --validation_faces 4 --log_every 1 --scale_lr sqrt"
).split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "machines", "processes"), [("one_gpu", 1, 1), ("many_gpus", 1, 2), ("two_nodes", 2, 4)]
)
def test_a_shipped_file_starts_a_training(
    case: str, machines: int, processes: int, prepared: Path, tmp_path: Path
) -> None:
    script, out = tmp_path / "launch.py", tmp_path / "run"
    script.write_text(LAUNCH.format(repository=str(REPOSITORY), tests=str(REPOSITORY / "tests")))
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(REPOSITORY / f"configs/accelerate/{case}.yaml")]
    launcher += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = []
    for rank in range(machines):  # the launchers of two nodes, side by side on this machine
        node = ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"] if machines > 1 else []
        command = [*launcher, *node, str(script), "--data", str(prepared), "--out", str(out), *OPTIONS]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    try:
        for process in started:
            _, complaint = process.communicate(timeout=300)
            assert process.returncode == 0, complaint[-3000:]
    finally:
        for process in started:
            process.kill()
    assert (out / "generator/model.safetensors").is_file()
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps[:2] == [1, 2]  # one log of one training, not one of each process


@pytest.mark.parametrize(
    ("case", "machines", "processes"), [("cpu", 1, 1), ("one_gpu", 1, 1), ("many_gpus", 1, 8), ("two_nodes", 2, 16)]
)
def test_accelerate_reads_the_shipped_files(case: str, machines: int, processes: int) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(REPOSITORY / f"configs/accelerate/{case}.yaml"))
    assert (config.num_machines, config.num_processes) == (machines, processes)
