"""A short run of the fault campaign; campaign.py --kills 30 is the long one, and tries the evaluation, too."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_commands_end_like_uninterrupted_ones(tmp_path: Path) -> None:
    script, out = Path(__file__).parent / "campaign.py", tmp_path / "out"
    command = [sys.executable, str(script), "--out", str(out), "--kills", "1"]
    command += ["--commands", "prepare", "train", "sample"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("survived 1 kills") == 3
