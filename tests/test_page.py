"""The page of a report and the gallery: what a browser and a reader get."""

from __future__ import annotations

import base64
import copy
import io
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from gan_mask.cli.methods import flat, parse_with_attack
from gan_mask.evaluation import page
from gan_mask.evaluation.options import EvaluationConfig
from gan_mask.evaluation.realism import FROZEN, TRAINED
from gan_mask.sampling import contact_sheet, gallery
from gan_mask.sampling.contact_sheet import Pair
from gan_mask.sampling.verdicts import outcome, severity, verdicts

METHODS = ["none", "plain", "dm", "mf2m", "generator"]
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
VOID = {"meta", "img", "br", "input", "link"}
NETWORK = "onnx:configs/networks/mobileface.json"


def cell(rate: float | None, spread: float = 0.05) -> dict[str, Any]:
    if rate is None:
        return {"rate": None, "low": None, "high": None, "probes": 0}
    return {"rate": rate, "low": max(0, rate - spread), "high": min(1, rate + spread), "probes": 600}


def table(embedder: str, detector: str) -> dict[str, dict[str, Any]]:
    rows = {}
    for i, method in enumerate(METHODS):
        rows[method] = {
            "face found": cell(0.98),
            f"dodging {embedder}": cell(0.2 * i),
            f"mask detection {detector}": cell(0.1),
            "joint success": cell(0.137 + 0.2 * i),
        }
        if method in ("mf2m", "generator"):
            rows[method][f"dodging {embedder} net of plain"] = cell(-0.031)
    rows["none"]["joint success"] = cell(None)
    return rows


def curves() -> dict[str, dict[str, Any]]:
    far = np.geomspace(1e-6, 1, 40)
    return {
        m: {
            "TAR at FAR 0.001": cell(0.9),
            "EER": cell(0.02),
            "roc": {"far": list(far), "tar": list(far ** (0.1 + i / 9))},
        }
        for i, m in enumerate(METHODS)
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for method in METHODS:
        (tmp_path / "faces" / method).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 32), (40 * i, 90, 120)).save(tmp_path / "faces" / method / f"{i}.png")
    return tmp_path


@pytest.fixture
def report() -> dict[str, Any]:
    sets = {"surrogates": ("dlib", "classifier"), "held-out": (NETWORK, "onnx:other.json")}
    threshold = {"thresholds": {"0.01": 0.31, "0.001": 0.42}, "impostor_pairs": 1995352, "source": "train split"}
    return {
        "version": "9.9", "data": "/data/set", "split": "test", "seed": 0, "probes": 600, "identities": 200,
        "far": 0.001, "fars": [0.01, 0.001, 0.0001], "templates": ["faces"], "checkpoint": "checkpoints/x",
        "command": {"data": "/data/my set", "methods": METHODS, "harmonise": False, "naturalness": True, "pairs": None},
        "embedders": {
            e: {"set": title, "refused": {"0.0001": "too few pairs"}, **threshold} for title, (e, _) in sets.items()
        },
        "detectors": {d: {"set": title} for title, (_, d) in sets.items()},
        "rates": {title: {far: table(*pair) for far in ("0.001", "0.01")} for title, pair in sets.items()},
        "transfer": {m: {e: {d: cell(0.4) for _, d in sets.values()} for e, _ in sets.values()} for m in METHODS},
        "groups": {
            title: {"30° and more": {"probes": 41, "identities": 17, "rates": table(*networks)}}
            for title, networks in sets.items()
        },
        "verification": {e: curves() for e, _ in sets.values()},
        "identification": {
            e: {"distractors": 1000, "gallery": 200, "methods": {m: {"rank-1": cell(0.7)} for m in METHODS}}
            for e, _ in sets.values()
        },
        "naturalness": {
            m: {"LPIPS to DM": cell(0.05, 0.01), FROZEN: {"rate": 0.8, "low": None, "high": None, "probes": 600}}
            for m in METHODS
        },
        "looks": {
            m: {
                "edge step p90": {"rate": 12.34, "low": 11.34, "high": 13.34, "probes": 600},
                "fine detail p10": cell(0.2),
                TRAINED: cell(0.9, 0.01),
            }
            for m in METHODS
        },
        "robustness": {
            title: {m: {"unchanged": cell(0.5), "JPEG 30": cell(None), "blur 1 px": cell(0.4)} for m in METHODS}
            for title in sets
        },
        "robustness_probes": 100,
        "looks_on_photos": {
            "photos": 15, "people": 7, "mask_width_px": [90, 400, 1312],
            "left_out": {"p1/blurred.jpg": "no face found"},
            "methods": {m: {"fine detail p10": cell(0.0771, 0.001)} for m in METHODS},
            "faces": {m: [f"faces/{m}/{i}.png" for i in range(2)] for m in METHODS},
        },
        "lfw": {"dlib": {"accuracy": 0.9938, "sd": 0.003, "pairs": 5990, "missing": 10}},
        "notes": ["dlib, FAR 0.0001: too few pairs"],
        "pictures": {"strip": "strip.png", "faces": {m: [f"faces/{m}/{i}.png" for i in range(3)] for m in METHODS}},
    }  # fmt: skip


COST = {
    "machine": "x86_64, 1 threads, device cpu",
    "peak_memory_mb": 1200,
    "methods": {m: {"seconds_per_face": 0.0123, "iterations": cell(None) if m == "mf2m" else None} for m in METHODS},
}


class Page(HTMLParser):
    """Tags in order, all text, and that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(report: dict[str, Any], out: Path, cost: dict[str, Any] = COST) -> Page:
    page.write(report, cost, out)
    return Page((out / "index.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else_and_can_be_read_aloud(report: dict[str, Any], out: Path) -> None:
    result = written(report, out)
    assert not result.all("script") and not result.all("link")
    for _, attributes in result.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg"))
    text = (out / "index.html").read_text()
    assert "url(http" not in text and "@import" not in text
    assert len(text) < 3e6
    ids = [attributes["id"] for _, attributes in result.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(f"#{attributes['id']}" for attributes in result.all("section") if "id" in attributes)
    assert {a["href"] for a in result.all("a")} <= {f"#{i}" for i in ids}
    assert len(result.all("img")) == 15 + 10 and all(image["alt"] for image in result.all("img"))
    assert len(result.all("h1")) == 1


def test_figures_with_intervals_thresholds_and_command(report: dict[str, Any], out: Path) -> None:
    text = written(report, out).text
    for shown in (
        "93.7",
        "[88.7, 98.7]",
        "−3.1",
        "0.3100",
        "1,995,352",
        "refused",
        "99.38",
        "12.3",
        "0.0771",
        "p1/blurred.jpg: no face found",
        "[11.3, 13.3]",
        "too few pairs",
        "41 probes of 17 people",
    ):
        assert shown in text
    assert "--data '/data/my set' --methods none plain dm mf2m generator --naturalness --out OUT" in text
    assert "--harmonise" not in text


def test_success_is_set_against_the_trained_realism_auc_where_there_is_one(report: dict[str, Any], out: Path) -> None:
    label = "Joint success against the trained realism AUC"
    assert label in str(written(report, out).tags)
    for row in report["looks"].values():
        del row[TRAINED]
    assert label not in str(written(report, out).tags)  # LPIPS to DM is no measure of looks


def test_the_same_report_gives_the_same_bytes(report: dict[str, Any], out: Path) -> None:
    written(report, out)
    first = (out / "index.html").read_bytes()
    written(copy.deepcopy(report), out)
    assert (out / "index.html").read_bytes() == first


@pytest.mark.parametrize(
    "given", [[], ["--fars"], ["--surrogates", "--detectors"], ["--require", "generator joint success >= 0.1"]]
)
def test_the_command_means_the_same_options(report: dict[str, Any], out: Path, given: list[str]) -> None:
    def options_of(words: list[str]) -> dict[str, Any]:
        return flat(parse_with_attack(EvaluationConfig, words, "evaluation", None))

    options = options_of(["--data", "my set", "--out", "OUT", "--steps", "7", *given])
    report["command"] = {k: v for k, v in options.items() if k != "out"}
    written(report, out)
    printed = next(text for text in (out / "index.html").read_text().split("<pre>")[1:]).split("</pre>")[0]
    words = shlex.split(unescape(printed))
    assert words[:3] == ["python", "-m", "gan_mask.evaluation"]
    assert options["steps"] == 7 and options_of(words[3:]) == options


def test_a_recogniser_that_misses_nobody_has_an_empty_det_plot(report: dict[str, Any], out: Path) -> None:
    for cells in report["verification"]["dlib"].values():
        cells["roc"]["tar"] = [1.0] * len(cells["roc"]["far"])
    assert "DET curves of dlib" in str(written(report, out).tags)


PARTS = [
    "groups",
    "transfer",
    "verification",
    "identification",
    "naturalness",
    "looks",
    "looks_on_photos",
    "robustness",
    "lfw",
    "notes",
    "pictures",
]


@pytest.mark.parametrize("part", [*PARTS, "held-out", "all"])
def test_parts_may_be_absent(report: dict[str, Any], out: Path, part: str) -> None:
    for name in PARTS if part == "all" else [part]:
        report.pop(name, None)
    if part in ("held-out", "all"):
        for rates in (report["rates"], report.get("robustness", {})):
            rates.pop("held-out", None)
    result = written(report, out, {} if part == "all" else COST)
    assert "93.7" in result.text


def test_a_set_without_a_detector_says_so(report: dict[str, Any], out: Path) -> None:
    for rows in report["rates"]["held-out"].values():
        for row in rows.values():
            del row["joint success"]
    assert "No joint success" in written(report, out).text


def test_names_are_text_whatever_they_contain(report: dict[str, Any], out: Path) -> None:
    text = repr(report).replace("'/data/set'", repr(HOSTILE)).replace(NETWORK, "onnx:$x$ <b>&amp;")
    hostile = eval(text)  # our own literal
    hostile["rates"]["surrogates"]["0.001"][HOSTILE] = {"joint success": cell(0.5)}
    hostile["robustness"]["surrogates"]["mf2m"][HOSTILE] = cell(0.5)
    hostile["robustness"]["surrogates"] = {
        m: {**row, HOSTILE: cell(0.5)} for m, row in hostile["robustness"]["surrogates"].items()
    }
    hostile["verification"]["dlib"][HOSTILE] = hostile["verification"]["dlib"]["mf2m"]
    hostile["notes"] = [HOSTILE, "not UTF-8: \udcff"]
    result = written(hostile, out)
    assert not result.all("script") and all(image["src"] != "x" for image in result.all("img"))
    assert HOSTILE in result.text and "$x$ <b>&amp;" in result.text


# ------------------------------------------------------------------------------------------- in a browser


def show(browser: Any, path: Path, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_the_screen(browser: Any, report: dict[str, Any], out: Path, width: int) -> None:
    report["data"] = "/a-long-name-without-a-break" * 8
    written(report, out)
    show(browser, out / "index.html", width)
    loaded = "return [...document.images].every(image => image.naturalWidth > 0)"
    assert browser.execute_script(loaded)


def test_a_click_shows_a_face_large_and_another_one_closes_it(browser: Any, report: dict[str, Any], out: Path) -> None:
    written(report, out)
    for width in (400, 1280):
        show(browser, out / "index.html", width)
        face = browser.find_elements("css selector", ".faces img")[4]
        assert browser.execute_script("return arguments[0].naturalWidth", face) >= 256
        sizes = []
        for _ in range(3):
            sizes.append(browser.execute_script("return arguments[0].getBoundingClientRect().width", face))
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", face)
            face.click()
        assert sizes[0] == sizes[2] and sizes[1] == pytest.approx(min(0.94 * width, 0.88 * 800), abs=1)
        browser.execute_script("document.querySelectorAll('.faces input')[0].focus()")
        browser.switch_to.active_element.send_keys(" ")  # and without a mouse
        first = browser.find_elements("css selector", ".faces img")[0]
        assert browser.execute_script("return arguments[0].getBoundingClientRect().width", first) > 300


def test_sliders_of_the_gallery_move(browser: Any, tmp_path: Path) -> None:
    pairs = [
        Pair(Image.new("RGB", (200, 200), "red"), Image.new("RGB", (400, 400), "blue"), [name, "dlib: other person"])
        for name in ("a.jpg", HOSTILE, "\udcff.jpg")
    ]
    path = tmp_path / "gallery.html"
    gallery.write(pairs, f"3 faces {HOSTILE}", path)
    for width in (400, 1280):
        show(browser, path, width)
    assert HOSTILE in browser.find_element("tag name", "h1").text
    sliders = browser.find_elements("css selector", ".pair input")
    shares = "return [...document.querySelectorAll('.pair')].map(p => getComputedStyle(p).getPropertyValue('--at'))"
    assert browser.execute_script(shares) == ["50%"] * 3
    sliders[0].send_keys("\ue014" * 5)  # arrow to the right
    assert browser.execute_script(shares) == ["55%", "50%", "50%"]
    browser.find_element("css selector", "[data-all]").send_keys("\ue010")  # end
    assert browser.execute_script(shares) == ["100%"] * 3


def grainy(seed: int, side: int) -> Image.Image:
    """As hard to compress as a photo of skin at its own size may be."""
    random = np.random.default_rng(seed)
    smooth = np.asarray(Image.fromarray(random.integers(0, 255, (12, 12, 3), np.uint8)).resize((side, side), 3))
    return Image.fromarray((smooth + 4.0 * random.standard_normal((side, side, 1))).clip(0, 255).astype(np.uint8))


def test_a_gallery_of_200_faces_stays_below_15_megabytes(tmp_path: Path) -> None:
    pair, sides = Pair(grainy(0, 900), grainy(1, 900), ["a.jpg"]), {}
    for count in (3, 200):
        gallery.write([pair] * count, "faces", tmp_path / f"{count}.html")
        pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", (tmp_path / f"{count}.html").read_text())
        assert len(pictures) == 2 * count
        sides[count] = [Image.open(io.BytesIO(base64.b64decode(p))).size for p in pictures[:6]]
    assert set(sides[3]) == {(512, 512)} and min(sides[200])[0] >= 256
    assert (tmp_path / "200.html").stat().st_size < 15e6


def test_a_click_or_enter_shows_a_face_of_the_gallery_large(browser: Any, tmp_path: Path) -> None:
    pairs = [Pair(grainy(i, 600), grainy(i + 5, 600), [f"{i}.jpg"]) for i in range(3)]
    gallery.write(pairs, "3 faces", tmp_path / "gallery.html")
    chains = pytest.importorskip("selenium.webdriver").ActionChains
    for width in (400, 1280):
        show(browser, tmp_path / "gallery.html", width)
        slider = browser.find_elements("css selector", ".pair input")[1]

        def shown(slider: Any = slider) -> float:
            return float(browser.execute_script("return arguments[0].getBoundingClientRect().width", slider))

        large = pytest.approx(min(0.94 * width, 0.88 * 800), abs=1)
        small = shown()
        assert 256 <= small < large.expected
        for key, size in (("\ue007", large), ("\ue00c", small)):  # Enter, Escape
            slider.send_keys(key)
            assert shown() == size
        for size in (large, small):
            chains(browser).move_to_element_with_offset(slider, 60, 0).click().perform()
            assert shown() == size
        assert slider.get_attribute("value") == "50"  # where it was before the click
        chains(browser).click_and_hold(slider).move_by_offset(60, 0).release().perform()
        assert shown() == small and float(slider.get_attribute("value")) > 55


# ------------------------------------------------------------------------------------------- verdicts


def row(photo: str, similarity: float = 0.2, logit: float = -3.0, found: int = 1) -> dict[str, Any]:
    """As the table has it; the threshold is 0.5."""
    told = {"photo": photo, "face_found_after": found, "mask_logit_before_classifier": -4.0}
    seen = {"similarity_dlib": similarity, "threshold_dlib": 0.5, "mask_logit_after_classifier": logit}
    return told | (seen if found else {})


ROWS = [
    row("fine.jpg"), row("lost.jpg", found=0), row("reported.jpg", logit=2.0), row("recognised.jpg", 0.75),
    row("both.jpg", 0.9, 1.0),
]  # fmt: skip


def judged(told: dict[str, Any], picture: Image.Image) -> Pair:
    return Pair(picture, picture, [told["photo"]], verdicts(told), outcome(told))


def test_faces_where_something_went_wrong_come_first(tmp_path: Path) -> None:
    ordered = sorted(ROWS, key=severity)
    names = ["both.jpg", "recognised.jpg", "reported.jpg", "lost.jpg", "fine.jpg"]
    assert [told["photo"] for told in ordered] == names
    gallery.write([judged(told, grainy(0, 256)) for told in ordered], "5 faces", tmp_path / "gallery.html")
    read = Page((tmp_path / "gallery.html").read_text(encoding="utf-8"))
    places = [read.text.index(word) for word in ("Recognised", *names[:2], "Mask reported", names[2], "Face lost")]
    assert places == sorted(places)
    assert "similarity 0.75, threshold 0.50" in read.text and "mask 88 %, threshold 50 %" in read.text


def test_a_bar_ends_where_the_network_stands_to_its_threshold() -> None:
    (recogniser, detector) = verdicts(row("a", 0.75, 0.0))
    assert recogniser.share == 0.75 and recogniser.failed  # half way from the threshold, the middle, to 1
    assert detector.share == 0.5 and not detector.failed
    assert [v.share for v in verdicts(row("a", -0.9, -800.0))] == [0.0, 0.0]
    assert verdicts(row("a", 0.5))[0].failed  # at the threshold it is accepted


def test_the_overview_draws_each_verdict_in_its_colour(tmp_path: Path) -> None:
    contact_sheet.contact_sheet([judged(row("a.jpg", 0.75), grainy(0, 256))], "1 face", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)[40 + contact_sheet.TILE :, -12 - 12 - contact_sheet.BAR :]
    bad, good = (
        (pixels == np.array(ImageColor.getrgb(colour))).all(2) for colour in (contact_sheet.BAD, contact_sheet.GOOD)
    )
    assert bad.any(0).sum() == pytest.approx(0.75 * contact_sheet.BAR, abs=3)  # less the tick
    assert good.any(0).sum() == pytest.approx(0.047 * contact_sheet.BAR, abs=3)


def test_a_gallery_of_200_faces_loads_in_two_seconds_and_is_read_aloud(browser: Any, tmp_path: Path) -> None:
    pictures = [grainy(i, 400) for i in range(4)]
    chosen = sorted((ROWS[i % 5] for i in range(200)), key=severity)
    gallery.write([judged(told, pictures[i % 4]) for i, told in enumerate(chosen)], "200", tmp_path / "gallery.html")
    for width in (400, 1280):
        show(browser, tmp_path / "gallery.html", width)
        timing = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
        assert 0 < browser.execute_script(timing) < 2000
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = [(n.get("role", {}).get("value"), n.get("name", {}).get("value")) for n in nodes if not n.get("ignored")]
    assert ("heading", "Recognised 80") in told and ("link", "mask reported 40") in told
    assert sum(role == "slider" for role, _ in told) == 201
    assert ("slider", "unmasked part of both.jpg, per cent") in told
    spoken = " ".join(name for role, name in told if role == "StaticText" and name)
    assert "same person" in spoken and "similarity 0.90, threshold 0.50" in spoken
    browser.find_element("css selector", "nav a").send_keys("\ue004\ue004")
    for _ in range(6):  # the other links, all faces, the first face
        browser.switch_to.active_element.send_keys("\ue004")
        if browser.switch_to.active_element.get_attribute("aria-label"):
            break
    assert browser.switch_to.active_element.get_attribute("aria-label") == "unmasked part of both.jpg, per cent"
