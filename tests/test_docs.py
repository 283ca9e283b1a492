"""The documentation site and the repository's papers. The notebook is run by `make test` itself (nbmake)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

import gan_mask


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """No fonts, scripts or pictures of others: it works offline, and nobody learns who reads it."""
    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]+src="?(?:https?:)?//|<link[^>]+stylesheet[^>]+href="?(?:https?:)?//'
    )
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_equations_are_mathml(site: Path) -> None:
    text = (site / "methods" / "index.html").read_text(encoding="utf-8")
    assert "<math" in text and "arithmatex" not in text


def test_the_api_reference_is_generated(site: Path) -> None:
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("load_generator", "wear", "unwrap", "PreparedSet", "Embedder", "Detector", "GanMaskError"):
        assert f"gan_mask.{name}" in text or f".{name}" in text, name


def test_the_picture_of_the_geometry_can_be_drawn_anew(tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "geometry.webp"
    subprocess.run([sys.executable, "docs/pictures.py", str(out)], cwd=REPOSITORY, check=True, timeout=120)
    with Image.open(out) as new, Image.open(REPOSITORY / "docs/images/geometry.webp") as kept:
        assert new.size == kept.size


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gan_mask.__version__
    assert citation["references"][0]["url"].endswith("2201.06427")
