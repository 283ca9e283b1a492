"""The benchmark runs; what it measures is no matter of tests, but for the price of seamless placement."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def quick(tmp_path: Path, section: str) -> dict[str, dict]:
    out = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/run.py", "--only", section, "--quick", "--out", str(out)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # waiting for other threads' turns is no cost of ours
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, env=one_thread)
    return json.loads(out.read_text())[f"{section}, cpu"]


def test_a_quick_geometry_benchmark_gives_ratios(tmp_path: Path) -> None:
    figures = quick(tmp_path, "geometry")
    assert figures["64 px, batch 4, forward"]["over grid_sample"]["wear"] > 0
    assert figures["64 px, speed-up over a loop of scikit-image"] > 0
    # Of each one's fastest of nine rounds: bursts of other jobs have moved the median of five past 1.5.
    for passes in ("forward", "forward and backward"):
        assert figures["placements, 160 px, batch 32"][passes]["the same, fastest rounds"] <= 1.5


@pytest.mark.slow
def test_the_stages_of_sampling_add_up(tmp_path: Path) -> None:
    figures = quick(tmp_path, "sampling")
    stages = figures["ms per photo"]
    assert {"decode", "detect", "landmarks", "generate", "wear", "find in what is written"} < stages.keys()
    assert figures["1 megapixels"]["ms per photo"].keys() == stages.keys()
    assert sum(stages.values()) == pytest.approx(1000 * figures["s per photo"], rel=0.02)
