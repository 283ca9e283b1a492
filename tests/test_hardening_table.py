"""The table of a hardening: its page with what was missed, and the limits that end the command with status 1."""

from __future__ import annotations

import json
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import status
from PIL import Image
from test_harden import fake_alarm
from test_page import HOSTILE, Page, cell, show

from gan_mask.cli import parse
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import intervals
from gan_mask.harden import limits, page, table
from gan_mask.values import to_dict

ROWS = {"none": "bare", "plain": "ordinary", "dm": "faced", "dm, faces of other people of the set": "faced",
        "mf2m against the hardened detector": "adaptive"}  # fmt: skip
NETWORKS = ("classifier", "after", "alarm")


def result_of(c: table.TableConfig) -> dict[str, Any]:
    """What table.json holds, made up."""
    rows: dict[str, dict[str, Any]] = {}
    for name, kind in ROWS.items():
        rows[name] = {"kind": kind, "face found": cell(1.0), **{n: cell(0.25) for n in NETWORKS}}
        if kind != "bare":
            rows[name] |= {f"AUC {n}": cell(0.9) for n in NETWORKS}
    rows["dm"]["after"], rows["none"]["after"] = cell(0.613), cell(0.02)
    shares = [f"{share:g}" for share in table.FALSE_ALARMS]
    return {
        "command": to_dict(c), "identities": 7, "rows": rows, "limits": {"dm>=0.9": ["dm>=0.9: dm/after has 0.6130"]},
        "roc": {name: {share: cell(0.5) for share in shares} for name in list(ROWS)[1:]},
        "alarm ablation": {"both": cell(0.98)}, "real pack": {"real bare faces": {n: cell(0.03) for n in NETWORKS[:2]}},
        "periocular": {n: {"threshold": 0.3, **{name: cell(0.5) for name in ROWS}}
                       for n in ("dlib", "upper dlib", table.fallback_name("dlib"))},
    }  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> table.TableConfig:
    return table.TableConfig(data="/data/my set", out=str(tmp_path / "TABLE"), attacks=(), require=("dm >= 0.9",))


@pytest.fixture
def scores() -> dict[str, dict[str, np.ndarray]]:
    """Twelve faces of each row; ten of dm are missed, the last one the most surely, one is not found."""
    wrong = np.array([3.0, np.nan, *-np.arange(1.0, 11.0)])
    right = {"none": -np.ones(12), "plain": np.ones(12)}
    of = {name: right.get(name, wrong) for name in ROWS}
    of["none"][4] = 2.5
    return {name: {n: values for n in NETWORKS} for name, values in of.items()}


def written(c: table.TableConfig, scores: dict[str, dict[str, np.ndarray]], **changed: Any) -> Path:
    out = Path(c.out)
    for name in scores:
        for i in range(12):
            path = out / page.file_of(name, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (160, 160), (20 * i, 90, 120)).save(path)
    page.write(result_of(c) | changed, scores, to_dict(table.TableConfig()), out)
    return out / "index.html"


def test_the_page_shows_the_faces_that_were_missed_most_confidently(
    config: table.TableConfig, scores: dict[str, dict[str, np.ndarray]]
) -> None:
    text = written(config, scores).read_text()
    found = Page(text)
    shown = [figure["title"] for figure in found.all("figure")]
    assert shown[:9] == ["faces/none/00004.png", *(f"faces/dm/{i:05d}.png" for i in range(11, 3, -1))]
    for words in ("10 of 11 faces missed", "1 of 12 faces falsely reported", "−10.0", "No face wrong: plain."):
        assert words in found.text
    for words in ("61.3", "[56.3, 66.3]", "0.900", "10 % false alarms", "broken: dm>=0.9", "50.0"):
        assert words in found.text
    assert not found.all("script") and not found.all("link") and len(found.all("h1")) == 1
    assert all((image["src"] or "").startswith("data:image/jpeg") and image["alt"] for image in found.all("img"))
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {a["href"] for a in found.all("a")} <= {f"#{i}" for i in ids}


def test_its_command_means_the_same_options(
    config: table.TableConfig, scores: dict[str, dict[str, np.ndarray]]
) -> None:
    config.crops = True
    printed = written(config, scores).read_text().partition("<pre>")[2].partition("</pre>")[0]
    words = shlex.split(unescape(printed))
    assert words[:3] == ["python", "-m", "gan_mask.harden.table"]
    assert parse(table.TableConfig, words[3:], "") == config


def test_names_are_text(config: table.TableConfig, scores: dict[str, dict[str, np.ndarray]]) -> None:
    config.data, config.before = HOSTILE, ("classifier",)
    found = Page(written(config, scores, limits={HOSTILE: []}).read_text())
    assert not found.all("script") and HOSTILE in found.text


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_the_screen(
    browser: Any, config: table.TableConfig, scores: dict[str, dict[str, np.ndarray]], width: int
) -> None:
    config.data = "/a-long-name-without-a-break" * 8
    show(browser, written(config, scores), width)
    assert browser.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")


# ------------------------------------------------------------------------------------------- limits


def broken(c: table.TableConfig, text: str) -> list[str]:
    cells = table.cells_of(result_of(c))
    return limits.broken(limits.parse(text, cells, ROWS, "after"), cells)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dm >= 0.6", []),
        ("none<=0.01", ["none/after has 0.0200"]),
        ("dm/alarm>=0.5", ["dm/alarm has 0.2500"]),
        ("dm/at_0.01>=0.5", []),
        ("dm,_faces_of_other_people_of_the_set/AUC after > 0.95", ["dm, faces of other people of the set/AUC after"]),
        ("faced>=0.3", ["dm, faces of other people of the set/after has 0.2500"]),
        ("faced/TAR_dlib,_upper_face_if_alarmed>=0.6", ["dm/TAR dlib", "dm, faces of other people of the set/TAR"]),
        ("adaptive/classifier<0.3", []),
        ("real bare faces<=0.02", ["real bare faces/after has 0.0300"]),
    ],
)
def test_a_limit_names_what_breaks_it(config: table.TableConfig, text: str, named: list[str]) -> None:
    reasons = broken(config, text)
    assert len(reasons) == len(named)
    for reason, name in zip(reasons, named, strict=True):
        assert reason.startswith(f"{text}: {name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dm=0.6", "expected ROW"),
        ("dm>=many", "'many' is no number"),
        ("dmm>=0.5", "no row 'dmm'; known: none, plain, dm"),
        ("dm/AUC>=0.5", "'AUC' is not measured for 'dm'; known: face found, classifier, after"),
        ("none/AUC_after>=0.5", "not measured for 'none'"),
    ],
)
def test_a_limit_on_nothing_is_refused(config: table.TableConfig, text: str, message: str) -> None:
    with pytest.raises(GanMaskError, match=message):
        broken(config, text)


def test_the_command_ends_with_status_1_where_a_limit_is_broken(
    prepared: Path, tmp_path: Path, fakes: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "of_auc", lambda *rows, draws: intervals.of_auc(*rows, draws=2))  # 300 take long
    monkeypatch.setattr(table, "far_thresholds", lambda *_: ({table.FAR: 0.5}, 594))  # the set has too few pairs
    out = tmp_path / "TABLE"
    options = ["--data", str(prepared), "--out", str(out), "--before", "fake", "--after", "fake", "--attacks",
               "--crops", "true", "--probes", "4", "--bare", "4", "--threshold_faces", "36",
               "--templates", "face-040", "--embedders", "fake", "--alarm", str(fake_alarm(tmp_path))]  # fmt: skip
    assert status(table.main, [*options, "--require", "none<=1", "dm>1", "dm-seamless/AUC_alarm>=0"]) == 1
    told = capsys.readouterr()
    assert "limit broken: dm>1: dm/after has" in told.err and told.err.count("limit broken") == 1
    assert str(out / "index.html") in told.out and Page((out / "index.html").read_text()).all("table")
    result = json.loads((out / "table.json").read_text())
    assert list(result["limits"].values())[0] == []
    c = table.TableConfig(data=str(prepared), out=str(out), before=("fake",), embedders=("fake",))
    assert {k: list(v) for k, v in table.cells_of(result).items()} == {
        k: list(v) for k, v in table.measures_of(c, {n: cells["kind"] for n, cells in result["rows"].items()}).items()
    }
    assert status(table.main, [*options, "--require", "none<=1"]) == 0  # another limit, the same folder
