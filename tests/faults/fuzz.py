"""Coverage-guided fuzzing: python tests/faults/fuzz.py dat|index|options [--seconds 180] (needs `pip install atheris`).

An input that raises anything but GanMaskError, hangs or takes more than 2 GB ends the run; libFuzzer writes it to
crash-*, oom-* or timeout-* in the current folder. Put it into tests/faults/corpus/TARGET and fix what it found:
test_fuzz.py tries all of these.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gan_mask", "yaml", "numpy.lib"]):
    import targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(targets.TARGETS))
    parser.add_argument("--seconds", type=int, default=180)
    args = parser.parse_args()
    found = tempfile.mkdtemp(prefix="found")
    for number, data in enumerate(targets.seeds()[args.target]):
        (Path(found) / f"seed-{number}").write_bytes(data)
    kept = Path(__file__).parent / "corpus" / args.target
    limits = [f"-max_total_time={args.seconds}", "-rss_limit_mb=4000", "-timeout=60", "-max_len=6000"]
    atheris.Setup([sys.argv[0], *limits, found, *([str(kept)] if kept.is_dir() else [])], targets.TARGETS[args.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
