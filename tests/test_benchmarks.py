"""The benchmark runs; what it measures is no matter of tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def quick(tmp_path: Path, section: str) -> dict[str, dict]:
    out = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/run.py", "--only", section, "--quick", "--out", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return json.loads(out.read_text())[f"{section}, cpu"]


def test_a_quick_geometry_benchmark_gives_ratios(tmp_path: Path) -> None:
    figures = quick(tmp_path, "geometry")
    assert figures["64 px, batch 4, forward"]["over grid_sample"]["wear"] > 0
    assert figures["64 px, speed-up over a loop of scikit-image"] > 0


@pytest.mark.slow
def test_the_stages_of_sampling_add_up(tmp_path: Path, shared: Path) -> None:
    figures = quick(tmp_path, "sampling")
    stages = figures["ms per photo"]
    assert {"decode", "detect", "landmarks", "generate", "wear", "encode"} < stages.keys()
    assert sum(stages.values()) == pytest.approx(1000 * figures["s per photo"], rel=0.02)
