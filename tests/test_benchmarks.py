"""The benchmark runs; what it measures is no matter of tests."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_a_quick_geometry_benchmark_gives_ratios(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/run.py", "--only", "geometry", "--quick", "--out", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    figures = json.loads(out.read_text())["geometry, cpu"]
    assert figures["64 px, batch 4, forward"]["over grid_sample"]["wear"] > 0
    assert figures["64 px, speed-up over a loop of scikit-image"] > 0
