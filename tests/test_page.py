"""The report's page: whole, alone, the same for the same report, and readable on a narrow screen."""

from __future__ import annotations

import copy
import html.parser
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gan_mask.evaluation import page

HOSTILE = "onnx:nets/<script>alert(1)</script>.json"


def cell(rate: float | None, spread: float = 0.1) -> dict[str, Any]:
    if rate is None:
        return {"rate": None, "low": None, "high": None, "probes": 0}
    return {"rate": rate, "low": rate - spread, "high": rate + spread, "probes": 40}


METHODS = {"none": 0.0, "plain": 0.1, "dm": 0.5, "mf2m": 0.9, "generator": None}


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    for method in METHODS:
        for i in range(10):
            path = tmp_path / "faces" / method / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 64, 3), 20 * i, np.uint8)).save(path)
    rates = {m: {"face found": cell(1.0), "joint success": cell(r)} for m, r in METHODS.items()}
    roc = {"far": [1e-4, 1e-3, 1e-2, 1.0], "tar": [0.2, 0.5, 0.7, 1.0]}
    return {
        "version": "0", "data": "faces & <b>friends</b>", "split": "test", "seed": 0, "probes": 40, "identities": 9,
        "far": 0.001, "fars": [0.01, 0.001], "templates": ["faces"], "checkpoint": None,
        "command": {"data": "my faces", "methods": list(METHODS), "far": 0.001, "harmonise": False, "cache": None},
        "embedders": {
            name: {
                "set": title, "thresholds": {"0.001": 0.4}, "refused": {"0.01": "few"},
                "impostor_pairs": 5, "source": "x",
            }
            for name, title in (("dlib", "surrogates"), (HOSTILE, "held-out"))
        },
        "detectors": {"classifier": {"set": "surrogates"}},
        "rates": {title: {"0.001": rates} for title in ("surrogates", "held-out")},
        "transfer": {m: {n: {"classifier": cell(r)} for n in ("dlib", HOSTILE)} for m, r in METHODS.items()},
        "verification": {n: {m: {"EER": cell(0.1), "roc": roc} for m in METHODS} for n in ("dlib", HOSTILE)},
        "identification": {
            "dlib": {"distractors": 7, "gallery": 9, "methods": {m: {"rank-1": cell(0.5)} for m in METHODS}},
        },
        "robustness": {"surrogates": {m: {"JPEG 75": cell(r)} for m, r in METHODS.items()}},
        "robustness_probes": 8,
        "naturalness": {m: {"LPIPS to DM": cell(0.1)} if m != "dm" else {"realism AUC": cell(0.6)} for m in METHODS},
        "lfw": {"dlib": {"accuracy": 0.98, "sd": 0.01, "pairs": 100, "missing": 0}},
        "notes": ["dlib, FAR 0.01: few"],
        "pictures": {"faces": {m: [f"faces/{m}/{i:05d}.png" for i in range(10)] for m in METHODS}},
    }  # fmt: skip


COST = {
    "machine": "a <machine>", "peak_memory_mb": 10,
    "methods": {m: {"seconds_per_face": 0.1, "iterations": cell(5.0) if m == "mf2m" else None} for m in METHODS},
}  # fmt: skip


class Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "index.html").read_text(encoding="utf-8"))
    return reader


def test_the_page_shows_the_figures_and_needs_nothing_else(report: dict[str, Any], tmp_path: Path) -> None:
    page.write(report, COST, tmp_path)
    reader = read(tmp_path)
    assert "90.0 [80.0, 100.0]" in reader.text and "dlib, FAR 0.01: few" in reader.text and "refused" in reader.text
    assert "--data 'my faces'" in reader.text and "--harmonise" not in reader.text
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == page.FACES * len(METHODS)
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,") and a["alt"] for a in images)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert all("scope" in attributes for tag, attributes in reader.tags if tag == "th")
    assert (tmp_path / "index.html").stat().st_size < 3e6


def test_names_are_text_whatever_they_are(report: dict[str, Any], tmp_path: Path) -> None:
    page.write(report, COST, tmp_path)
    reader = read(tmp_path)
    assert not [tag for tag, _ in reader.tags if tag == "script"]
    assert "faces & <b>friends</b>" in reader.text and "a <machine>" in reader.text


def test_the_same_report_gives_the_same_bytes(report: dict[str, Any], tmp_path: Path) -> None:
    page.write(report, COST, tmp_path)
    first = (tmp_path / "index.html").read_bytes()
    page.write(copy.deepcopy(report), COST, tmp_path)
    assert (tmp_path / "index.html").read_bytes() == first


@pytest.mark.parametrize(
    "missing", [("lfw", "naturalness"), ("robustness", "transfer", "identification"), ("verification", "pictures")]
)
def test_parts_may_be_absent(report: dict[str, Any], tmp_path: Path, missing: tuple[str, ...]) -> None:
    for part in missing:
        del report[part]
    del report["rates"]["held-out"]
    for row in report["rates"]["surrogates"]["0.001"].values():
        del row["joint success"]  # as without detectors
    page.write(report, COST, tmp_path)
    assert "Rates" in read(tmp_path).text


@pytest.mark.slow
def test_a_browser_shows_it_without_sideways_scrolling(report: dict[str, Any], tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs chromium (Debian's package of that name)")
    page.write(report, COST, tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    # The page reports its own width from inside an iframe as wide as a phone.
    (tmp_path / "framed.html").write_text(text.replace("</main>", "</main><script>"
        "parent.postMessage(document.documentElement.scrollWidth, '*')</script>"), encoding="utf-8")  # fmt: skip
    (tmp_path / "outer.html").write_text("<p id=w></p><iframe src=framed.html width=400 height=800></iframe><script>"
        "onmessage = e => { document.getElementById('w').textContent = 'width ' + e.data }</script>")  # fmt: skip
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom",
         "--allow-file-access-from-files", "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}",
         (tmp_path / "outer.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    width = int(done.stdout.split("width ")[1].split("<")[0])
    assert 380 <= width <= 400
