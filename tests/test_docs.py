"""The documentation site and the repository's papers. The notebook is run by `make test` itself (nbmake)."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from packaging.version import Version

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


@pytest.mark.parametrize("name", ["geometry", "placement", "detail"])
def test_the_pictures_of_concepts_can_be_drawn_again(tmp_path: Path, name: str) -> None:
    from PIL import Image

    out = tmp_path / f"{name}.webp"
    subprocess.run([sys.executable, "docs/pictures.py", name, str(out)], cwd=REPOSITORY, check=True, timeout=120)
    with Image.open(out) as new, Image.open(REPOSITORY / f"docs/images/{name}.webp") as kept:
        assert new.size == kept.size


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == gan_mask.__version__
    assert f"version = {{{gan_mask.__version__}}}" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.search(
        rf"^## {re.escape(gan_mask.__version__)}\b", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert citation["references"][0]["url"].endswith("2201.06427")


def test_the_space_installs_what_the_package_needs() -> None:
    """Gradio itself is the Space's own, of the version in the header."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    needed = (setup["options"]["install_requires"] + setup["options.extras_require"]["app"]).split()
    space = REPOSITORY / "docs" / "space"
    lines = (space / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [n for n in needed if not n.startswith("gradio")]
    header = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["sdk"] == "gradio" and (space / header["app_file"]).is_file()
    (gradio,) = (n for n in needed if n.startswith("gradio"))
    assert Version(header["sdk_version"]) >= Version(gradio.removeprefix("gradio>="))


def test_workflows_run_targets_that_exist() -> None:
    for path in (REPOSITORY / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", True, "jobs"} <= workflow.keys()  # YAML 1.1 takes the word `on` for True
        for job in workflow["jobs"].values():
            assert job["runs-on"] and job["timeout-minutes"]
            for step in job["steps"]:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1")), step
                if command := step.get("run"):
                    subprocess.run([*command.split(), "-n"], cwd=REPOSITORY, check=True, capture_output=True)


def test_issue_templates_have_what_github_asks_for() -> None:
    for path in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
        assert yaml.safe_load(head).keys() >= {"name", "about"} and body.strip(), path


def test_no_photos_or_weights_get_into_an_image_or_a_commit() -> None:
    for name in (".dockerignore", ".gitignore"):
        kept_out = {line.strip("/") for line in (REPOSITORY / name).read_text().splitlines()}
        assert {"data", "runs", "weights", "demo"} <= kept_out, name
