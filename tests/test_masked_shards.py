"""sample.py --shards: tar files of masked photos, the same on all engines and as the folder of photos."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import embedded_photo, status
from PIL import Image

from gan_mask import sampling
from gan_mask.errors import GanMaskError
from gan_mask.faces import read_image
from gan_mask.sampling.command import sample
from gan_mask.sampling.options import SampleConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos, one without a face and one that is none."""
    folder = tmp_path_factory.mktemp("masked_shards") / "photos"
    folder.mkdir()
    for person in range(1, 4):
        (folder / f"{person}.webp").write_bytes(embedded_photo(f"id_{person:04d}/view_1"))
    Image.new("RGB", (100, 100), "grey").save(folder / "wall.png")
    (folder / "letter.jpg").write_text("Dear Sir or Madam")
    return folder


@pytest.fixture(scope="module")
def config(photos: Path) -> SampleConfig:
    return SampleConfig(faces=str(photos), method="dm", no_measure=True, shards=2, template="face-001")


@pytest.fixture(scope="module")
def masked(config: SampleConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masked_shards") / "shards"
    sample(replace(config, out=str(out)))
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                opened = tar.extractfile(member)
                assert opened
                yield member.name, opened.read()


def test_shards_hold_the_copies_that_the_folder_holds(config: SampleConfig, masked: Path, tmp_path: Path) -> None:
    sample(replace(config, out=str(tmp_path / "folder"), shards=0))
    found = [(name, data) for name, data in members(masked) if name != "__results__"]
    assert [name for name, _ in found] == [
        "000000000.webp", "000000000.json", "000000001.webp", "000000001.json", "000000002.webp", "000000002.json",
        "000000003.json", "000000004.json",
    ]  # fmt: skip
    for name, data in found:
        if name.endswith(".webp"):
            facts = json.loads(dict(found)[name.replace("webp", "json")])
            alone = read_image(tmp_path / "folder" / facts["photo"])
            assert facts["faces"][0]["written"] == name
            assert np.abs(alone.astype(int) - read_image(data)).mean() < 0.05  # the folder's batch is another
    tables = []
    for folder in (masked, tmp_path / "folder"):
        with open(folder / "results.csv", newline="", encoding="utf-8") as f:
            tables.append(
                [{k: row[k] for k in ("photo", "status", "face", "box", "note")} for row in csv.DictReader(f)]
            )
    assert tables[0] == tables[1] and [row["status"] for row in tables[0]] == ["ok"] * 3 + ["unreadable", "no face"]


def test_others_read_them_as_webdataset(masked: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset, of the extra [dev]")
    shards = sorted(map(str, masked.glob("*.tar")))
    found = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"))
    assert [sample["json"]["photo"] for sample in found] == ["1.webp", "2.webp", "3.webp", "letter.jpg", "wall.png"]
    assert [sample["webp"].size for sample in found[:3]] == [(128, 128)] * 3


def test_what_is_done_is_kept_and_what_is_lost_is_made_again(
    config: SampleConfig, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(masked)
    (masked / "masked-0000001.tar").unlink()
    kept = (masked / "masked-0000000.tar").stat().st_mtime_ns
    sample(replace(config, out=str(masked), workers=2))
    assert content(masked) == before and (masked / "masked-0000000.tar").stat().st_mtime_ns == kept
    assert "3 photos masked (3 faces), 1 without a face, 1 unreadable" in capsys.readouterr().out
    with pytest.raises(GanMaskError, match="shards 2 -> 3"):
        sample(replace(config, out=str(masked), shards=3))
    (masked / "masked-0000001.tar").write_bytes(b"not a tar file")
    with pytest.raises(GanMaskError, match=r"masked-0000001\.tar: damaged"):
        sample(replace(config, out=str(masked)))


def test_a_tar_file_of_the_photos_gives_the_same(
    config: SampleConfig, masked: Path, photos: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, ".")
    sample(replace(config, faces=str(tmp_path / "photos.tar"), out=str(tmp_path / "out")))
    first = "masked-0000000.tar"  # an earlier test has damaged the other
    assert (tmp_path / "out" / first).read_bytes() == (masked / first).read_bytes()


def test_options_that_do_not_go_together_are_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--faces", str(photos), "--out", str(tmp_path / "out")]
    expected = {
        ("--engine", "ray"): "add --shards",
        ("--shards", "2", "--show"): "--show",
    }
    for options, message in expected.items():
        assert status(sampling.main, [*out, *options]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "thesis.tex").touch()
    assert status(sampling.main, [*out, "--shards", "2"]) == 2
    assert "not empty and not a folder of shards" in capsys.readouterr().err
