"""Fixtures: the development data (skipped when absent) and a small prepared set of embedded synthetic faces."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeDetector, FakeEmbedder
from PIL import Image

REPOSITORY = Path(__file__).parent.parent
CASES = Path(__file__).parent / "cases"  # odd files, made from the embedded synthetic faces


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development folder beside the checkout: real photos and third-party weights, which are not ours to ship."""
    folder = Path(os.environ.get("GAN_MASK_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip(f"needs the development data in {folder} (set GAN_MASK_SHARED)")
    return folder


def embedded_photo(name: str) -> bytes:
    """One of the embedded photos, such as 'id_0001/view_1'."""
    with zipfile.ZipFile(REPOSITORY / "gan_mask/assets/synthfaces.zip") as archive:
        return archive.read(f"synthfaces/{name}.webp")


# Of the prepared set: 12 people in train, 4 in val, 4 in test; three of these four are nobody's template.
PEOPLE = (*range(1, 13), 13, 35, 41, 16, 17, 23, 25, 32)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of 20 synthetic people (PEOPLE) at 64 px, from the embedded landmarks.

    Written without detection, in a second; the real way, data_prep/prepare.py, has tests of its own.
    """
    from gan_mask.data import FORMAT, INDEX

    folder = tmp_path_factory.mktemp("prepared")
    size, views = 64, 3
    with np.load(REPOSITORY / "gan_mask/assets/synthfaces_landmarks.npz") as file:
        landmarks = dict(zip(file["names"].tolist(), file["landmarks68"], strict=True))
    index, strings = np.zeros(len(PEOPLE) * views, INDEX), bytearray()
    with open(folder / "crops.bin", "wb") as crops:
        for i, record in enumerate(index):
            person = f"id_{PEOPLE[i // views]:04d}"
            source = f"{person}/view_{i % views + 1}"
            buffer = io.BytesIO()
            photo = (
                Image.open(io.BytesIO(embedded_photo(source))).convert("RGB").resize((size, size), Image.Resampling.BOX)
            )
            photo.save(buffer, "JPEG", quality=95, subsampling=0)
            record["crop"], record["crop_length"] = crops.tell(), len(buffer.getvalue())
            crops.write(buffer.getvalue())
            for field, text in (("person", person), ("source", source)):
                record[field], record[f"{field}_length"] = len(strings), len(text)
                strings += text.encode()
            record["identity"], record["score"] = i // views, 1.0
            record["split"] = 0 if i // views < 12 else 1 if i // views < 16 else 2
            record["landmarks"] = (landmarks[f"synthfaces/{source}.webp"] + 0.5) * size / 128 - 0.5
    (folder / "strings.bin").write_bytes(strings)
    np.save(folder / "index.npy", index)
    sizes = {name: (folder / name).stat().st_size for name in ("crops.bin", "index.npy", "strings.bin")}
    meta = {"format": FORMAT, "size": size, "margin": 0.2, "faces": len(index), "bytes": sizes}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """load_embedder('fake') and load_detector('fake')."""
    from gan_mask import pretrained

    monkeypatch.setitem(pretrained.EMBEDDERS, "fake", lambda name: FakeEmbedder())  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(pretrained.DETECTORS, "fake", lambda name: FakeDetector())  # type: ignore[arg-type,return-value]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        yield opened


def status(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """The exit status of a command."""
    try:
        main(argv)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def parser_of(main: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a command makes, which then ends."""
    parsers: list[argparse.ArgumentParser] = []

    def caught(parser: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", caught)
    with pytest.raises(SystemExit):
        main()
    (parser,) = parsers
    return parser
