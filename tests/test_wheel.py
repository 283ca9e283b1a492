"""What users install: an sdist and, built from it, a wheel with data and weights, without tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, embedded_photo

NEEDED = ("py.typed", "assets/synthfaces.zip", "assets/mask_classifier.safetensors", "assets/page/gallery.html",
    "assets/faces160/model.safetensors", "assets/faces160/config.json")  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel; built in a copy, so that the checkout stays clean."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("source") / "gan_mask"
    skipped = shutil.ignore_patterns(
        ".git", ".venv*", "runs", "demo", "site", "build", "dist", "*.egg-info", ".*_cache"
    )
    shutil.copytree(REPOSITORY, copy, ignore=skipped)
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy / "dist"


def test_the_wheel_holds_all_that_is_needed(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = next(archive.read(n).decode() for n in names if n.endswith("entry_points.txt"))
    assert {f"gan_mask/{name}" for name in NEEDED} <= set(names)
    assert not [n for n in names if n.split("/")[0] not in ("gan_mask", names[-1].split("/")[0]) or "test" in n]
    assert any(n.endswith("licenses/NOTICE") for n in names)
    for command in ("prepare", "train", "sample", "app", "evaluate", "harden"):
        assert f"gan-mask-{command} = " in entry_points
    assert wheel.stat().st_size < 15e6


def test_the_sdist_holds_real_files(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        weights = [m for m in archive.getmembers() if m.name.endswith("assets/faces160/model.safetensors")]
    assert weights[0].isfile() and weights[0].size > 1e6


def test_sampling_works_from_the_wheel_alone(built: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, beside the packages that are installed here; the default generator comes along."""
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.webp").write_bytes(embedded_photo("id_0002/view_1"))
    code = "import gan_mask.sampling as s; print(s.__file__); s.main()"
    options = ["--faces", "photos", "--out", "out", "--embedders", "--detectors", "classifier"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert (tmp_path / "out" / "one.webp").is_file()
