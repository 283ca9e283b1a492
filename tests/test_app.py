"""The page to try masks on: what a visitor sees in a real browser, and what leaves the machine."""

from __future__ import annotations

import io
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import embedded_photo, status
from fakes import FakeDetector, FakeEmbedder
from PIL import Image

from gan_mask.app.options import AppConfig
from gan_mask.sampling.photo_writer import read_provenance

pytest.importorskip("gradio", reason="needs the extra [app]")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the page, with fake networks that see what they are shown; the finder and the generator are the real ones."""
    from gan_mask import pretrained
    from gan_mask.app.command import served

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(pretrained.EMBEDDERS, "fake", lambda name: FakeEmbedder())  # type: ignore[arg-type,return-value]
        patched.setitem(pretrained.DETECTORS, "fake", lambda name: FakeDetector())  # type: ignore[arg-type,return-value]
        c = AppConfig(port=port, megabytes=1, megapixels=1, embedders=("fake",), detectors=("fake",))
        with served(c) as found:
            yield found


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "somebody.jpg"
    with Image.open(io.BytesIO(embedded_photo("id_0002/view_1"))) as face:
        face.convert("RGB").resize((400, 400), Image.Resampling.LANCZOS).save(path, quality=95)
    return path


def until(browser: Any, selector: str, seconds: float = 60, of: Callable[[list[Any]], bool] = bool) -> list[Any]:
    """The elements, once there are some."""
    end = time.monotonic() + seconds
    while not of(found := browser.find_elements("css selector", selector)):
        assert time.monotonic() < end, f"{selector} did not come: {browser.find_element('tag name', 'body').text}"
        time.sleep(0.1)
    return found


def visit(browser: Any, address: str, width: int = 1280) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    until(browser, "#mask")


def give(browser: Any, photo: Path) -> None:
    until(browser, "#photo input[type=file]")[0].send_keys(str(photo))
    until(browser, "#photo img")


def click(browser: Any, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def requested(browser: Any) -> set[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url for url in sent if not url.startswith(("data:", "blob:", "chrome:"))}


@pytest.mark.parametrize("width", [400, 1280])
def test_a_photo_is_masked_judged_and_downloaded(
    browser: Any, address: str, photo: Path, width: int, tmp_path: Path
) -> None:
    visit(browser, address, width)
    give(browser, photo)
    click(browser, "#mask")
    (verdicts,) = until(browser, "#told .verdicts")
    assert "fake" in verdicts.text and "similarity" in verdicts.text and "threshold 50 %" in verdicts.text
    assert len(until(browser, "#slider img")) >= 2
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    click(browser, "#download")
    got = tmp_path / "somebody-masked.jpg"
    end = time.monotonic() + 30
    while not got.exists() and time.monotonic() < end:
        time.sleep(0.1)
    tag = read_provenance(got)
    assert tag and "method=generator; checkpoint=faces160" in tag
    with Image.open(got) as masked, Image.open(photo) as original:
        assert masked.size == original.size and masked.format == "JPEG"
        different = np.abs(np.asarray(masked, int) - np.asarray(original.convert("RGB"), int)).max(2) > 24
    assert 0.02 < different.mean() < 0.5  # a mask's worth, not the whole photo
    assert all(url.startswith(address) for url in requested(browser))
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_methods_are_compared_side_by_side(browser: Any, address: str, photo: Path) -> None:
    visit(browser, address)
    give(browser, photo)
    for tab in browser.find_elements("css selector", "button[role=tab]"):
        if tab.text == "Compare":
            tab.click()
    click(browser, "#compare")
    cards = until(browser, "#cards figure", 120, lambda found: len(found) == 5)
    assert [card.find_element("tag name", "h3").text for card in cards] == [
        "Unmasked", "Generator", "Generator, then refined", "DM: another face as it is", "Plain mask",
    ]  # fmt: skip
    pictures = [card.find_element("tag name", "img").get_attribute("src") for card in cards]
    assert len(set(pictures)) == 5


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("damaged.jpg", embedded_photo("id_0002/view_1")[:200], "damaged"),
        ("notes.png", b"not a picture at all", "not an image in a known format"),
        ("wall.png", None, "No face found"),
        ("large.png", (1200, 1000), "1 million pixels"),
    ],
)
def test_what_is_wrong_with_a_photo_is_said_in_its_place(
    browser: Any, address: str, tmp_path: Path, name: str, content: Any, words: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.new("RGB", content or (300, 300), (120, 130, 140)).save(path)
    visit(browser, address)
    give(browser, path)
    click(browser, "#mask")
    (alert,) = until(browser, "#told [role=alert]")
    assert words in alert.text and str(tmp_path) not in alert.text


def test_without_a_photo_it_asks_for_one(browser: Any, address: str) -> None:
    visit(browser, address)
    click(browser, "#mask")
    assert "Drop a photo" in until(browser, "#told [role=alert]")[0].text


def test_too_large_a_file_is_refused(browser: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2_000_000))
    visit(browser, address)
    until(browser, "#photo input[type=file]")[0].send_keys(str(tmp_path / "huge.png"))
    told = "return [...document.querySelectorAll('.toast-body')].map(toast => toast.textContent).join()"
    end = time.monotonic() + 30
    while "exceed the maximum allowed size" not in browser.execute_script(told):  # it slides in
        assert time.monotonic() < end, browser.execute_script(told)
        time.sleep(0.1)


def test_it_listens_to_this_machine_alone_and_allows_nothing_from_elsewhere(address: str) -> None:
    assert AppConfig().host == "127.0.0.1"
    with urllib.request.urlopen(address) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "http" not in policy and "default-src 'self'" in policy
    assert "fonts.googleapis" not in page and "cdn" not in page.lower()


def test_a_port_in_use_is_said(address: str, capsys: pytest.CaptureFixture[str], fakes: None) -> None:
    from gan_mask.app import main

    port = address.rstrip("/").rpartition(":")[2]
    assert status(main, ["--port", port, "--embedders", "fake", "--detectors", "fake"]) == 2
    assert f"--port {port}" in capsys.readouterr().err
