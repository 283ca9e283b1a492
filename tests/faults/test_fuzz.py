"""What fuzzing found, and nothing else than GanMaskError for it (fuzz.py searches further)."""

from __future__ import annotations

from pathlib import Path

import pytest
import targets

from gan_mask import cli
from gan_mask.errors import GanMaskError

CORPUS = Path(__file__).parent / "corpus"
CASES = [(name, path) for name in targets.TARGETS for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("target, path", CASES, ids=[f"{name}/{path.name}" for name, path in CASES])
def test_corpus(target: str, path: Path) -> None:
    targets.TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", targets.TARGETS)
def test_cut_and_changed_seeds(target: str) -> None:
    """A small part of what the fuzzer does, without it."""
    for seed in targets.seeds()[target]:
        for i in range(0, len(seed), max(1, len(seed) // 40)):
            targets.TARGETS[target](seed[:i])
            targets.TARGETS[target](seed[:i] + b"\xff" + seed[i + 1 :])


@pytest.mark.parametrize("text", ["widths: " + "[" * 2000, "{a: " * 2000, "- " * 2000, "a: &a [*a, *a]\nwidths: *a\n"])
def test_nested_options(text: str) -> None:
    targets.options(text.encode())
    (targets.FOLDER / "large.yaml").write_bytes(b"#" * 200_000)
    with pytest.raises(GanMaskError, match="larger than 100000 bytes"):
        cli.read_yaml(targets.FOLDER / "large.yaml")
