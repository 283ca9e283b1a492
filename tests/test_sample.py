"""sample.py as its user sees it: folders of photos in, masked copies, a table and an overview out."""

from __future__ import annotations

import csv
import errno
import io
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, REPOSITORY, embedded_photo
from fakes import FakeDetector, FakeEmbedder
from PIL import ExifTags, Image, ImageCms

from gan_mask import attacks, engines, files, masking, pretrained, sampling, templates
from gan_mask.faces import FaceFinder
from gan_mask.generator import Generator
from gan_mask.networks import GeneratorConfig
from gan_mask.photos import wear_on_photo
from gan_mask.sampling import batch, command, output, photo_writer, pool, sampler
from gan_mask.sampling.folder import JOURNAL, Journal, Rows, find_targets
from gan_mask.sampling.masker import Masker, Photo
from gan_mask.sampling.options import SampleConfig

PEOPLE = (4, 14, 56, 34, 20)
CAFE = os.fsdecode(b"caf\xe9.png")  # a name that is not UTF-8
FORMATS = ["upright.jpg", "plain.png", "lossless.webp", "scan.tif"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def face(person: int, side: int = 256) -> Image.Image:
    photo = Image.open(io.BytesIO(embedded_photo(f"id_{person:04d}/view_1"))).convert("RGB")
    return photo.resize((side, side), Image.Resampling.BICUBIC)


def private_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Artist] = "somebody's name"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.BodySerialNumber] = "serial-4711"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    return exif


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a folder of photos may hold."""
    folder = tmp_path_factory.mktemp("photos of people")
    deep = folder / "holidays 2021" / "été"
    deep.mkdir(parents=True)
    face(4).save(folder / "plain.png", exif=private_exif())
    upright = Image.new("RGB", (400, 300), "gray")
    upright.paste(face(14), (70, 20))
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # upright again by orientation 6
    turned.save(folder / "upright.jpg", quality=95, exif=private_exif(6), icc_profile=SRGB)
    face(56).save(folder / "lossless.webp", lossless=True, exif=private_exif())
    face(34).convert("L").save(folder / "scan.tif")
    face(20).save(folder / "scan.bmp")
    face(20).save(folder / CAFE)
    animation = [face(4).convert("P"), face(14).convert("P")]
    animation[0].save(deep / "zwei Bilder.gif", save_all=True, append_images=animation[1:])
    group = Image.new("RGB", (900, 320), "darkgreen")
    for column, (person, side) in enumerate([(4, 300), (14, 256), (20, 200)]):
        group.paste(face(person, side), (column * 300, 10))
    group.save(deep / "drei.png")
    Image.new("RGB", (300, 200), "gray").save(folder / "wall.png")
    Image.new("1", (20000, 20000)).save(folder / "huge.png")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no photo at all")
    content = (folder / "plain.png").read_bytes()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("ignored")
    (deep / "loop").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    torch.manual_seed(0)
    Generator(GeneratorConfig(widths=(4, 8), noise=4, kernel=3, size=96, default_template="face-010")).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


def masker_of(method: Any, batch_size: int) -> Masker:
    return Masker(attacks.Painted(method), GeneratorConfig(), "face-001", None, batch_size=batch_size)


Run = Callable[..., int]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """The command; exit status. Small stand-ins for the networks, and one FaceFinder for all runs."""
    finders: dict[tuple[Any, ...], FaceFinder] = {}
    real = FaceFinder

    def finder(*options: Any, **more: Any) -> FaceFinder:
        key = (*options, *more.items())
        if key not in finders:
            finders[key] = real(*options, **more)
        return finders[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "FaceFinder", finder)
        patch.setitem(pretrained.EMBEDDERS, "fake", lambda name: FakeEmbedder())  # type: ignore[arg-type,return-value]
        patch.setitem(pretrained.DETECTORS, "fake", lambda name: FakeDetector())  # type: ignore[arg-type,return-value]

        def command(faces: Path, out: Path, *options: str) -> int:
            given = ["--faces", str(faces), "--out", str(out), "--embedders", "fake", "--detectors", "fake", *options]
            try:
                sampling.main(given)
            except SystemExit as end:
                return int(end.code or 0)
            return 0

        yield command


@pytest.fixture(scope="module")
def masked(run: Run, photos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masked")
    before = snapshot(photos)
    assert run(photos, out, "--checkpoint", str(checkpoint)) == 0
    assert snapshot(photos) == before  # the originals are untouched
    return out


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = [p for p in folder.rglob("*") if p.is_file() and "loop" not in p.parts]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="", encoding="utf-8", errors="surrogateescape") as f:
        return list(csv.DictReader(f))


def small_folder(tmp_path: Path, *people: int) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    for person in people:
        face(person).save(folder / f"{person}.png")
    return folder


# ------------------------------------------------------------------------------------------- what comes out


def test_the_next_batch_is_read_while_one_is_worked_on():
    read = []

    def items() -> Iterator[int]:
        for number in range(1, 4):
            read.append(number)
            yield number
        raise OSError("gone")

    batches = command.ahead(items())
    assert next(batches) == 1
    deadline = time.monotonic() + 20
    while read != [1, 2] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read == [1, 2]
    assert [next(batches), next(batches)] == [2, 3]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_every_photo_is_in_the_table_once_and_every_face_of_it(masked: Path) -> None:
    rows = table(masked)
    status = {row["photo"]: row["status"] for row in rows}
    assert status == {
        **dict.fromkeys([*FORMATS, "scan.bmp", CAFE, "holidays 2021/été/zwei Bilder.gif"], "ok"),
        "holidays 2021/été/drei.png": "ok", "wall.png": "no face",
        **dict.fromkeys(["huge.png", "empty.jpg", "text.jpg", "truncated.png"], "unreadable"),
    }  # fmt: skip
    assert [row["face"] for row in rows if row["photo"].endswith("drei.png")] == ["0", "1", "2"]
    reasons = {row["photo"]: row["note"] for row in rows if row["status"] == "unreadable"}
    assert "empty" in reasons["empty.jpg"] and "megapixels" in reasons["huge.png"]


def test_photos_keep_name_format_and_size(masked: Path) -> None:
    for name, kind, size in [
        ("plain.png", "PNG", (256, 256)), ("upright.jpg", "JPEG", (400, 300)), ("lossless.webp", "WEBP", (256, 256)),
        ("scan.tif", "TIFF", (256, 256)), (CAFE, "PNG", (256, 256)), ("holidays 2021/été/drei.png", "PNG", (900, 320)),
    ]:  # fmt: skip
        with Image.open(masked / name) as image:
            assert (image.format, image.size) == (kind, size), name


def test_formats_that_hold_no_tag_become_png_and_the_table_says_so(masked: Path) -> None:
    rows = {row["photo"]: row for row in table(masked)}
    # scan.tif has the same stem, hence the longer name
    for photo, written in [
        ("scan.bmp", "scan.bmp.png"),
        ("holidays 2021/été/zwei Bilder.gif", "holidays 2021/été/zwei Bilder.png"),
    ]:
        assert rows[photo]["written"] == written and "PNG" in rows[photo]["note"]
        with Image.open(masked / written) as image:
            assert image.format == "PNG"


@pytest.mark.parametrize("name", ["plain.png", "lossless.webp"])
def test_only_the_lower_face_changes(photos: Path, masked: Path, name: str) -> None:
    """Against the landmarks that came with the photo, which our detection never saw."""
    with Image.open(photos / name) as a, Image.open(masked / name) as b:
        changed = (np.asarray(a.convert("RGB")) != np.asarray(b.convert("RGB"))).any(2)
    person = {"plain.png": 4, "lossless.webp": 56}[name]
    with np.load(REPOSITORY / "gan_mask/assets/synthfaces_landmarks.npz") as file:
        row = file["names"].tolist().index(f"synthfaces/id_{person:04d}/view_1.webp")
        points = (file["landmarks68"][row] + 0.5) * 2 - 0.5
    rows, columns = np.nonzero(changed)
    assert rows.min() > points[27:29, 1].min() - 8  # not above the bridge of the nose
    assert columns.min() > points[:, 0].min() - 10 and columns.max() < points[:, 0].max() + 10
    mouth = points[48:60].mean(0).round().astype(int)
    assert changed[mouth[1] - 20 : mouth[1] + 20, mouth[0] - 20 : mouth[0] + 20].mean() > 0.8


@pytest.mark.parametrize("name", [*FORMATS, "scan.bmp.png", "holidays 2021/été/drei.png"])
def test_every_written_photo_says_what_it_is(masked: Path, name: str) -> None:
    tag = photo_writer.read_provenance(masked / name)
    assert tag is not None
    assert "synthetic" in tag and "method=generator" in tag and "checkpoint=tiny" in tag
    assert re.search(r"template=face-\d{3}(-mirrored)?[,;]", tag) and "not an original photograph" in tag


@pytest.mark.parametrize("name", ["upright.jpg", "plain.png", "lossless.webp"])
def test_private_metadata_is_left_out(photos: Path, masked: Path, name: str) -> None:
    assert b"serial-4711" in (photos / name).read_bytes()
    content = (masked / name).read_bytes()
    assert b"serial-4711" not in content and b"somebody's name" not in content
    with Image.open(masked / name) as image:
        exif = image.getexif()
    assert not exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert ExifTags.Base.Orientation not in exif
    assert exif[ExifTags.Base.Make] == "Maker"


def test_the_colour_profile_is_kept(masked: Path) -> None:
    with Image.open(masked / "upright.jpg") as image:
        assert image.info["icc_profile"] == SRGB


def test_the_overview_shows_the_faces(masked: Path) -> None:
    with Image.open(masked / "overview.png") as image:
        assert image.format == "PNG" and image.width > 1000
        assert len(image.getcolors(1 << 24) or []) > 1000


def test_pictures_of_a_crowd_take_one_look_at_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = np.random.default_rng(0).integers(0, 256, (300, 600, 3)).astype(np.uint8)
    for folder in ("photos", "masked"):
        (tmp_path / folder).mkdir()
        Image.fromarray(crowd).save(tmp_path / folder / "crowd.png")
    rows = [
        {"photo": "crowd.png", "status": "ok", "written": "crowd.png", "box": f"{x} 40 {x + 60} 120"}
        for x in range(20, 500, 80)
    ]
    looked: list[str] = []
    read = output.read_image
    monkeypatch.setattr(output, "read_image", lambda path: looked.append(path.parent.name) or read(path))
    folders = SimpleNamespace(source=tmp_path / "photos", out=tmp_path / "masked", method_name="dm")
    pairs, title = output._pairs(rows, folders, 12)  # type: ignore[arg-type]
    assert looked == ["photos", "masked"] and title == "6 of 6 faces, method dm"
    for pair, row in zip(pairs, rows, strict=True):
        left, top, right, bottom = output.window_of((600, 300), [float(edge) for edge in row["box"].split()])
        assert (np.asarray(pair.unmasked) == crowd[top:bottom, left:right]).all()


def test_measures_agree_with_an_independent_measurement_of_the_files(run: Run, photos: Path, tmp_path: Path) -> None:
    """Similarity and mask logits, recomputed from the two files with the finder's own faces."""
    from gan_mask.faces import FaceFinder, align, read_image

    masked = tmp_path / "masked"
    assert run(photos / "plain.png", masked, "--method", "dm", "--search-whole") == 0
    (row,) = table(masked)
    seen = []
    for path in (photos / "plain.png", masked / "plain.png"):
        photo = read_image(path)
        crop, landmarks = align(photo, FaceFinder().find([photo])[0][0].landmarks)
        seen.append((torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255, torch.from_numpy(landmarks)[None]))
    (a, points_a), (b, points_b) = seen
    similarity = (FakeEmbedder()(a, points_a) * FakeEmbedder()(b, points_b)).sum()
    assert float(row["similarity_fake"]) == pytest.approx(float(similarity), abs=1e-4)
    assert float(row["mask_logit_before_fake"]) == pytest.approx(float(FakeDetector()(a)[0]), abs=1e-3)
    assert float(row["mask_logit_after_fake"]) == pytest.approx(float(FakeDetector()(b)[0]), abs=1e-3)
    assert row["threshold_fake"] == "0.9" and row["face_found_after"] == "1"


def test_wearing_on_a_part_of_the_photo_equals_wearing_on_all_of_it() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    from gan_mask.landmarks import frame

    landmarks = (frame(200, 0.3) + torch.tensor([120.3, 150.8])).numpy()  # leaves the photo below
    texture = torch.rand(3, 72, 96)
    whole = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    expected = masking.wear(whole, torch.from_numpy(landmarks)[None], texture[None], 0.03)[0].permute(1, 2, 0)
    worn = photo.copy()
    wear_on_photo(worn, landmarks, texture, texture, "paper", 0.03)
    assert (worn != photo).any()
    assert np.abs(worn - (expected * 255).numpy()).max() < 1
    outside = masking.region(torch.from_numpy(landmarks)[None], 300, 400)[0, 0].numpy() == 0
    assert (worn[outside] == photo[outside]).all()


def test_masks_of_neighbours_do_not_depend_on_the_batch(finder: FaceFinder) -> None:
    """Each texture is made from the photo as it was, also where the masks of other faces reach into it."""
    image = np.asarray(Image.new("RGB", (400, 300), "gray")).copy()
    image[20:276, 20:276] = np.asarray(face(4))
    image[60:260, 190:390] = np.asarray(face(14, 200))
    (faces,) = finder.find([image])
    assert len(faces) == 2
    seen: dict[int, torch.Tensor] = {}
    worn = {}
    for size in (1, 2):
        crops: list[torch.Tensor] = []

        def method(faces: torch.Tensor, landmarks: torch.Tensor, bank: torch.Tensor, into: Any = crops) -> torch.Tensor:
            into.append(faces)
            shade = torch.stack([crop.mean() for crop in faces.double()]).float()  # the same in batches of any size
            return (bank + shade[:, None, None, None] - 0.5).clamp(0, 1)  # something of the crop

        photo = Photo("a.png", image.copy(), faces)
        masker_of(method, size).wear([photo])
        seen[size], worn[size] = torch.cat(crops), photo.image
    assert torch.equal(seen[1], seen[2])
    assert (worn[1] == worn[2]).all() and (worn[1] != image).any()


# ------------------------------------------------------------------------------------------- options


def three_sizes(folder: Path) -> Path:
    """A photo of 2.2 megapixels with a large, a middling and a tiny face (54 px, 1/31 of its side) on grey."""
    photo = Image.new("RGB", (1700, 1300), "gray")
    for person, side, place in ((4, 700, (80, 200)), (14, 300, (900, 400)), (21, 54, (1400, 900))):
        photo.paste(face(person, side), place)
    folder.mkdir()
    photo.save(folder / "crowd.jpg", quality=95)
    return folder


def test_around_known_faces_the_written_file_is_searched_as_the_whole_is(run: Run, tmp_path: Path) -> None:
    photos = three_sizes(tmp_path / "photos")
    for out, options in (("around", []), ("whole", ["--search-whole"])):
        assert run(photos, tmp_path / out, "--method", "dm", *options) == 0
    around, whole = (table(tmp_path / out) for out in ("around", "whole"))
    assert len(around) == len(whole) >= 2
    for a, b in zip(around, whole, strict=True):
        assert {k: a[k] for k in ("box", "template", "face_found_after")} == {k: b[k] for k in a if k in
            ("box", "template", "face_found_after")}  # fmt: skip
        assert float(a["similarity_fake"]) == pytest.approx(float(b["similarity_fake"]), abs=0.02)
        assert float(a["mask_logit_after_fake"]) == pytest.approx(float(b["mask_logit_after_fake"]), abs=0.3)


def test_the_smallest_face_is_an_option(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = three_sizes(tmp_path / "photos")
    found = {}
    for least in ("20", "100"):
        assert run(photos, tmp_path / least, "--method", "dm", "--no-measure", "--min-face", least) == 0
        found[least] = len(table(tmp_path / least))
    assert found == {"20": 3, "100": 2}
    capsys.readouterr()
    assert run(photos, tmp_path / "out", "--min-face", "10") == 2
    assert "--min-face: expected a whole number from 0 to 65536, 0, or 20 and more, got '10'" in capsys.readouterr().err


def test_without_measuring_the_photos_are_the_same_and_no_network_is_loaded(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = three_sizes(tmp_path / "photos")
    assert run(photos, tmp_path / "all", "--method", "dm") == 0
    capsys.readouterr()
    options = ["--no-measure", "--show", "--embedders", "not-there", "--detectors", "not-there"]
    assert run(photos, tmp_path / "few", "--method", "dm", *options) == 0
    assert (tmp_path / "all/crowd.jpg").read_bytes() == (tmp_path / "few/crowd.jpg").read_bytes()
    rows = table(tmp_path / "few")
    assert list(rows[0]) == ["photo", "status", "face", "written", "template", "box", "seconds", "note"]
    assert "face found in the written file" not in capsys.readouterr().out
    assert (tmp_path / "few/overview.png").is_file() and (tmp_path / "few/gallery.html").is_file()


def test_largest_treats_one_face(run: Run, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    shutil.copy(photos / "holidays 2021/été/drei.png", folder)
    assert run(folder, tmp_path / "out", "--method", "dm", "--template", "face-001", "--largest") == 0
    (row,) = table(tmp_path / "out")
    left, _, right, _ = map(float, row["box"].split())
    assert right < 300  # the largest is the left one
    assert row["template"] == "face-001"


def test_random_templates_depend_on_the_seed_but_not_on_the_batches(run: Run, tmp_path: Path) -> None:
    folder = small_folder(tmp_path, *PEOPLE[:3])
    for out, options in [("a", ["--seed", "1"]), ("b", ["--seed", "1", "--batch-size", "1"]), ("c", ["--seed", "2"])]:
        assert run(folder, tmp_path / out, "--method", "dm", "--template", "random", *options) == 0
    worn = {out: [row["template"] for row in table(tmp_path / out)] for out in "abc"}
    assert worn["a"] == worn["b"] != worn["c"]
    assert len(set(worn["a"])) > 1
    for person in PEOPLE[:3]:
        a, b = (np.asarray(Image.open(tmp_path / out / f"{person}.png")).astype(int) for out in "ab")
        assert np.abs(a - b).mean() < 1  # MTCNN's own rounding differs a little with the batch


def test_a_matched_template_differs_with_the_wearer_and_can_take_his_colours(run: Run, tmp_path: Path) -> None:
    folder = small_folder(tmp_path, *PEOPLE[:3])
    for out, options in [("a", []), ("b", ["--harmonise"])]:
        assert run(folder, tmp_path / out, "--method", "dm", "--template", "match", *options) == 0
    worn = {out: [row["template"] for row in table(tmp_path / out)] for out in "ab"}
    assert (
        worn["a"] == worn["b"] and set(worn["a"]) <= {*templates.FACES, *templates.MIRRORED} and len(set(worn["a"])) > 1
    )
    assert (tmp_path / "a" / f"{PEOPLE[0]}.png").read_bytes() != (tmp_path / "b" / f"{PEOPLE[0]}.png").read_bytes()


def test_optimised_methods_take_their_options_and_say_what_they_took(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_folder(tmp_path, *PEOPLE[:2])
    paper = ["--placement", "paper"]  # which shows a texture as it is, so that the bound is one of pixels, too
    options = ["--method", "advnoise-dm", "--steps", "3", "--patience", "0", "--bound", "0.02", *paper]
    assert run(folder, tmp_path / "a", *options) == 0
    assert run(folder, tmp_path / "dm", "--method", "dm", *paper) == 0
    rows = table(tmp_path / "a")
    assert [row["iterations"] for row in rows] == ["3", "3"] and float(rows[0]["attack_seconds"]) > 0
    noisy, clean = (np.asarray(Image.open(tmp_path / out / f"{PEOPLE[0]}.png")).astype(int) for out in ("a", "dm"))
    assert 1 <= np.abs(noisy - clean).max() <= 0.02 * 255 + 1
    for wrong, remedy in [("--kernel=4", "odd"), ("--bound=-1", "from 0 to 1"), ("--steps=many", "a whole number")]:
        assert run(folder, tmp_path / "b", "--method", "mf2m", wrong) == 2
        error = capsys.readouterr().err
        assert wrong.split("=")[0] in error and remedy in error


def test_show_writes_a_gallery_of_every_face(run: Run, tmp_path: Path) -> None:
    folder = small_folder(tmp_path, *PEOPLE[:2])
    assert run(folder, tmp_path / "out", "--method", "dm") == 0
    assert not (tmp_path / "out" / "gallery.html").exists()
    written = (tmp_path / "out" / f"{PEOPLE[0]}.png").stat().st_mtime_ns
    assert run(folder, tmp_path / "out", "--method", "dm", "--show") == 0  # nothing is masked again for it
    assert (tmp_path / "out" / f"{PEOPLE[0]}.png").stat().st_mtime_ns == written
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 and f"{PEOPLE[0]}.png" in page


def test_a_photo_as_template_and_no_networks_to_measure_with(run: Run, tmp_path: Path) -> None:
    folder = small_folder(tmp_path, 4)
    face(14).save(tmp_path / "template.jpg")
    options = ["--method", "dm", "--template", str(tmp_path / "template.jpg"), "--embedders", "--detectors"]
    assert run(folder, tmp_path / "out", *options) == 0
    (row,) = table(tmp_path / "out")
    assert row["status"] == "ok" and not [column for column in row if column.startswith("similarity")]


def test_a_checkpoint_brings_a_template_of_its_own(run: Run, tmp_path: Path) -> None:
    folder = small_folder(tmp_path, 4)
    for name, colour in (("red", (1.0, 0.0, 0.0)), ("blue", (0.0, 0.0, 1.0))):
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(widths=(4, 8), noise=4, kernel=3, size=96, default_template="own"))
        generator.template.copy_(torch.tensor(colour)[:, None, None])
        generator.save_pretrained(tmp_path / name)
        assert run(folder, tmp_path / f"with {name}", "--checkpoint", str(tmp_path / name)) == 0
        assert table(tmp_path / f"with {name}")[0]["template"] == "own"
    red, blue = (np.asarray(Image.open(tmp_path / f"with {name}" / "4.png"), float) for name in ("red", "blue"))
    changed = np.abs(red - blue).sum(2) > 100
    assert changed.any() and (red - blue)[changed].mean(0)[0] > 100 > 0 > (red - blue)[changed].mean(0)[2]


def test_a_folder_without_faces_is_no_error(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "walls"
    folder.mkdir()
    Image.new("RGB", (200, 200), "gray").save(folder / "wall.jpg")
    assert run(folder, tmp_path / "out", "--method", "dm") == 0
    assert "0 photos masked (0 faces), 1 without a face" in capsys.readouterr().out
    assert [row["status"] for row in table(tmp_path / "out")] == ["no face"]
    assert not (tmp_path / "out" / "overview.png").exists()


# ------------------------------------------------------------------------------------------- resuming


def test_the_same_command_again_does_only_what_is_missing(run: Run, tmp_path: Path) -> None:
    folder, out = small_folder(tmp_path, 4, 14), tmp_path / "out"
    assert run(folder, out, "--method", "dm") == 0
    first, written = (out / "results.csv").read_bytes(), (out / "14.png").stat().st_mtime_ns
    (out / "4.png").unlink()
    assert run(folder, out, "--method", "dm") == 0
    assert (out / "4.png").is_file() and (out / "14.png").stat().st_mtime_ns == written
    face(56).save(folder / "14.png")  # another photo under the same name
    assert run(folder, out, "--method", "dm") == 0
    assert (out / "14.png").stat().st_mtime_ns != written
    assert (out / "results.csv").read_bytes() != first
    assert run(folder, out, "--method", "plain") == 0  # other options: everything again
    assert {row["template"] for row in table(out)} == {"plain-blue"}


def test_memory_keeps_the_place_of_a_finished_photo_and_not_its_rows(tmp_path: Path) -> None:
    """10,000 photos must need no more than 100."""
    names = [f"album/photo_{number:06d}.jpg" for number in range(2000)]
    journal = Journal(tmp_path, tmp_path, {})
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number, name in enumerate(names):
        measured = {f"similarity_{k}": number / 7 + k for k in range(8)}
        journal.add({name: [{"photo": name, "status": "ok", "box": f"{number} 2 3 4", **measured}]})
    per_photo = (tracemalloc.get_traced_memory()[0] - before) / len(names)
    tracemalloc.stop()
    assert per_photo < 200, f"{per_photo:.0f} bytes"
    assert [row["similarity_1"] for row in Rows(journal, names, [])] == [number / 7 + 1 for number in range(2000)]


def test_another_network_under_the_same_name_is_noticed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = small_folder(tmp_path, *PEOPLE[:2]), tmp_path / "out"
    assert run(folder, out, "--method", "dm") == 0
    before = [row["similarity_fake"] for row in table(out)]
    other = FakeEmbedder()
    other.weight.data += 1
    monkeypatch.setitem(pretrained.EMBEDDERS, "fake", lambda name: other)  # type: ignore[arg-type,return-value]
    capsys.readouterr()
    assert run(folder, out, "--method", "dm") == 0
    assert "were done before" not in capsys.readouterr().out
    assert [row["similarity_fake"] for row in table(out)] != before


def test_an_interrupted_run_resumes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = small_folder(tmp_path, *PEOPLE[:3]), tmp_path / "out"
    process, calls = batch.process, []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return process(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(batch, "process", interrupted)
        assert run(folder, out, "--method", "dm", "--batch-size", "1") == 130
    assert "interrupted" in capsys.readouterr().err
    with open(out / JOURNAL, "a") as f:
        f.write('{"photo": "half a li')  # as a kill would leave it
    assert run(folder, out, "--method", "dm", "--batch-size", "2") == 0
    assert "1 of 3 photos were done before" in capsys.readouterr().out
    assert [row["status"] for row in table(out)] == ["ok"] * 3


# ------------------------------------------------------------------------------------------- what goes wrong


def test_wrong_folders_are_explained(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_folder(tmp_path, 4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for faces, out, message in [
        (tmp_path / "missing", tmp_path / "out", "no such folder"),
        (tmp_path / "empty", tmp_path / "out", "no image files"),
        (folder, folder, "must be apart"),
        (folder, folder / "masked", "must be apart"),
        (folder, tmp_path, "must be apart"),
        (folder, tmp_path / "file" / "out", "cannot be made"),
    ]:
        assert run(faces, out, "--method", "dm") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert sorted(path.name for path in folder.iterdir()) == ["4.png"]


def test_wrong_checkpoints_are_explained(
    run: Run, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_folder(tmp_path, 4)
    truncated, other = tmp_path / "truncated", tmp_path / "other"
    for copy in (truncated, other):
        shutil.copytree(checkpoint, copy)
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (other / "config.json").write_text('{"widths": [8, 16]}')
    for path in (tmp_path / "missing", truncated, other):
        assert run(folder, tmp_path / "out", "--checkpoint", str(path)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and path.name in error


def test_unknown_names_are_answered_with_the_known_ones(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_folder(tmp_path, 4)
    for options, known in [
        (["--embedders", "arcfce"], "dlib"),
        (["--detectors", "yolo"], "classifier"),
        (["--template", "face-999"], "plain-blue"),
    ]:
        assert run(folder, tmp_path / "out", "--method", "dm", *options) == 2
        error = capsys.readouterr().err
        assert options[1] in error and known in error


def test_no_photo_overwrites_another(run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "faces", tmp_path / "out"
    names = ["a.bmp", "a.png", "a.bmp.png", "A.png", "overview.png", "results.csv/c.png", "d.bmp", "d.png/e.png"]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        face(PEOPLE[0], 128 + i).save(folder / name)  # each of its own size
    assert run(folder, out, "--method", "dm", "--show") == 0
    rows = table(out)
    assert {row["photo"] for row in rows} == set(names) and {row["status"] for row in rows} == {"ok"}
    assert len({row["written"].lower() for row in rows}) == len(names)
    for row in rows:
        with Image.open(out / row["written"]) as image:
            assert image.width == 128 + names.index(row["photo"])
    assert {row["photo"]: row["written"] for row in rows}["A.png"] == "A.png"
    with Image.open(out / "overview.png") as image:
        assert image.width > 600
    assert "<html" in (out / "gallery.html").read_text()
    masked = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.name != "overview.png"}
    assert run(folder, out, "--method", "dm") == 0  # nothing is made again
    assert {path: path.stat().st_mtime_ns for path in masked} == masked


def test_names_of_copies_differ_on_every_disk() -> None:
    """Those alike but for case or Unicode form too, beside our own files, and cut where they are too long."""
    names = sorted([
        "a.bmp", "A.gif", "a.png", "a.bmp.png", "B.PNG", "b.png", "\u00e9.png", "e\u0301.png", "Stra\u00dfe.png",
        "strasse.bmp", "overview.png", "Overview.bmp", "OVERVIEW-2.png", "results.csv/c.png", "gallery.html/c.png",
        "Results.CSV/c.png", "d.bmp", "d.png/e.png", "D.png/e.png", "x" * 251 + ".bmp", "X" * 251 + ".gif",
        "x" * 251 + ".png",
    ])  # fmt: skip
    targets = find_targets(names)
    every = [name for pair in targets.values() for name in dict.fromkeys(pair)]
    alike = [unicodedata.normalize("NFC", name).casefold() for name in every]
    assert len(set(alike)) == len(alike)
    folders = {str(parent) for name in alike for parent in Path(name).parents}
    assert not {*folders, "results.csv", "overview.png", "gallery.html"} & set(alike)
    assert not {"results.csv", "overview.png", "gallery.html"} & folders
    assert all(len(part.encode()) <= 255 for name in every for part in name.split("/"))
    assert all(targets[name].same == name for name in ("a.png", "a.bmp", "a.bmp.png", "d.bmp"))


def test_a_later_photo_takes_back_its_name(run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "faces", tmp_path / "out"
    folder.mkdir()
    face(4, 128).save(folder / "a.bmp")
    assert run(folder, out, "--method", "dm") == 0
    assert [row["written"] for row in table(out)] == ["a.png"]
    face(14, 130).save(folder / "a.png")
    assert run(folder, out, "--method", "dm") == 0
    written = {row["photo"]: row["written"] for row in table(out)}
    assert written == {"a.bmp": "a.bmp.png", "a.png": "a.png"}
    assert [Image.open(out / written[name]).width for name in ("a.bmp", "a.png")] == [128, 130]


def test_a_photo_that_cannot_be_written_is_a_row(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = small_folder(tmp_path, *PEOPLE[:3]), tmp_path / "out"
    (out / f"{PEOPLE[0]}.png").mkdir(parents=True)  # a folder is in its way
    save = Image.Image.save

    def fails(image: Image.Image, path: Path, *args: Any, **options: Any) -> None:
        if f".{PEOPLE[1]}.png" in str(path):
            raise SystemError("encoder error")
        save(image, path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fails)
        assert run(folder, out, "--method", "dm") == 0
    rows = {row["photo"]: row for row in table(out)}
    states = {person: (rows[f"{person}.png"]["status"], rows[f"{person}.png"]["note"]) for person in PEOPLE[:3]}
    assert states[PEOPLE[0]] == ("not written", "cannot be written (Is a directory)")
    assert states[PEOPLE[1]] == ("not written", "cannot be written (encoder error)")
    assert states[PEOPLE[2]] == ("ok", "")
    assert float(rows[f"{PEOPLE[2]}.png"]["similarity_fake"]) < 1
    assert "2 not written" in capsys.readouterr().out
    (out / f"{PEOPLE[0]}.png").rmdir()
    assert run(folder, out, "--method", "dm") == 0  # tries again, those only
    assert "1 of 3 photos were done before" in capsys.readouterr().out
    assert {row["status"] for row in table(out)} == {"ok"}
    again = {row["photo"]: row for row in table(out)}[f"{PEOPLE[2]}.png"]
    assert again == rows[f"{PEOPLE[2]}.png"]


def test_odd_file_names_are_masked_and_listed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "faces", tmp_path / "out"
    folder.mkdir()
    long = ["x" * 246 + ".png", "y" * 251 + ".bmp", "z" * 251 + ".bmp"]
    names = ['two\nlines, "and" more.png', "\r\x1b[31m.png", *long]
    for name in names[:-1]:
        face(4, 128).save(folder / name)
    (folder / names[-1]).write_text("no photo")
    (folder / "broken\n.png").write_text("no photo")
    assert run(folder, out, "--method", "dm") == 0
    rows = {row["photo"]: row for row in table(out)}
    assert set(rows) == {*names, "broken\n.png"}
    assert [rows[name]["status"] for name in names] == ["ok"] * 4 + ["unreadable"]
    assert all((out / rows[name]["written"]).is_file() for name in names[:-1])
    assert "  unreadable: broken\\n.png: not an image" in capsys.readouterr().out
    assert not list(out.glob(".*.tmp"))


def test_files_of_systems_are_passed_over_and_photos_that_cannot_be_read_are_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    folder = small_folder(tmp_path, 4)
    for name in ("._4.png", ".cache/a.png", "@eaDir/4.png/THUMB.jpg", "__MACOSX/a.png", "trip/@eaDir/a.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "4.png", folder / name)
    shutil.copy(CASES / "16_heic" / "IMG_0001.HEIC", folder)
    (folder / "a.dng").write_bytes(b"II*\0")
    assert run(folder, tmp_path / "out", "--method", "dm") == 0
    rows = {row["photo"]: (row["status"], row["note"]) for row in table(tmp_path / "out")}
    assert set(rows) == {"4.png", "IMG_0001.HEIC", "a.dng"}
    assert rows["IMG_0001.HEIC"][0] == "unreadable" and "pip install pillow-heif" in rows["IMG_0001.HEIC"][1]
    assert rows["a.dng"][0] == "unreadable"


def test_old_copies_are_told_of_and_kept(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = small_folder(tmp_path, *PEOPLE[:3]), tmp_path / "out"
    assert run(folder, out, "--method", "dm") == 0
    face(4).save(out / "mine.png")  # no masked copy
    assert "older masked copies" not in capsys.readouterr().out
    (folder / f"{PEOPLE[0]}.png").unlink()
    (folder / f"{PEOPLE[1]}.png").rename(folder / "renamed.png")
    for method in ("dm", "plain"):  # also after the journal of other options is gone
        assert run(folder, out, "--method", method) == 0
        told = next(line for line in capsys.readouterr().out.splitlines() if "older masked copies" in line)
        assert told.startswith("2 ") and f": {PEOPLE[1]}.png, {PEOPLE[0]}.png." in told
        assert (out / f"{PEOPLE[0]}.png").is_file() and (out / f"{PEOPLE[1]}.png").is_file()
        assert len(table(out)) == 2


def test_a_single_photo_instead_of_a_folder(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_folder(tmp_path, *PEOPLE[:2])
    before = (folder / "4.png").read_bytes()
    assert run(folder / "4.png", tmp_path / "out", "--method", "dm") == 0
    assert [(row["photo"], row["status"]) for row in table(tmp_path / "out")] == [("4.png", "ok")]
    assert photo_writer.read_provenance(tmp_path / "out" / "4.png")
    assert run(folder / "4.png", tmp_path / "out", "--method", "dm") == 0
    assert "1 of 1 photos were done before" in capsys.readouterr().out
    assert run(folder / "4.png", folder / "masked", "--method", "dm") == 0  # beside it is apart enough
    assert run(folder / "4.png", folder, "--method", "dm") == 2
    assert "must be apart" in capsys.readouterr().err
    assert run(folder / "5.png", tmp_path / "out", "--method", "dm") == 2
    assert "no such folder or photo" in capsys.readouterr().err
    assert (folder / "4.png").read_bytes() == before


def test_a_full_disk_is_explained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = small_folder(tmp_path, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert run(folder, tmp_path / "out", "--method", "dm") == 2
    error = capsys.readouterr().err
    assert "No space left" in error and "free some space" in error
    assert not list((tmp_path / "out").rglob("*.png")) and not list((tmp_path / "out").rglob("*.tmp"))
    assert run(folder, tmp_path / "out", "--method", "dm") == 0


def test_a_tiny_disk_leaves_no_half_files(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = small_folder(tmp_path, *PEOPLE), tmp_path / "out"
    out.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", out], capture_output=True).returncode
    ):
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        assert run(folder, out, "--method", "dm", "--batch-size", "1") == 2
        assert "free some space" in capsys.readouterr().err
        for path in out.glob("*.png"):
            with Image.open(path) as image:
                image.load()  # whole
        assert not list(out.glob(".*.tmp"))
    finally:
        subprocess.run(["umount", out], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_listed(run: Run, tmp_path: Path) -> None:
    folder = small_folder(tmp_path, 4, 14)
    (folder / "4.png").chmod(0)
    assert run(folder, tmp_path / "out", "--method", "dm") == 0
    assert [row["status"] for row in table(tmp_path / "out")] == ["ok", "unreadable"]


def test_the_script_runs_as_the_readme_says(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "sample.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "--checkpoint" in done.stdout


# ------------------------------------------------------------------------------------------- crowds


TILE, COLUMNS = 200, 4
CROWD = (4, 14, 56, 34, 20, 1, 2, 30, 60, 90, 120, 150)  # people, each smaller than the one before


def tile(number: int) -> tuple[slice, slice]:
    row, column = divmod(number, COLUMNS)
    return slice(TILE * row, TILE * (row + 1)), slice(TILE * column, TILE * (column + 1))


def crowd(*numbers: int) -> Image.Image:
    """The tiles of these people of CROWD on one photo, the others' left empty."""
    photo = Image.new("RGB", (TILE * COLUMNS, TILE * len(CROWD) // COLUMNS), "gray")
    for number in numbers:
        rows, columns = tile(number)
        photo.paste(face(CROWD[number], round(190 / (1 + 0.08 * number))), (columns.start + 4, rows.start + 4))
    return photo


def test_everybody_of_a_crowd_wears_one_mask(run: Run, finder: FaceFinder, tmp_path: Path) -> None:
    """As each would alone in the same place; nothing changes between the masks. In batches of faces and of photos."""
    folder, everybody = tmp_path / "faces", range(len(CROWD))
    folder.mkdir()
    crowd(*everybody).save(folder / "crowd.png")
    for number in (0, 5, 11):
        crowd(number).save(folder / f"alone-{number}.png")
    out, options = tmp_path / "out", ("--method", "dm", "--template", "face-001", "--batch-size", "5")
    assert run(folder, out, *options) == 0

    rows = [row for row in table(out) if row["photo"] == "crowd.png"]
    corners = [[float(edge) for edge in row["box"].split()] for row in rows]
    centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in corners]
    assert sorted(int(y // TILE) * COLUMNS + int(x // TILE) for x, y in centres) == list(everybody)
    assert all(row["status"] == "ok" and row["face_found_after"] == "1" for row in rows)

    bare, masked = (np.asarray(Image.open(place / "crowd.png")).astype(int) for place in (folder, out))
    landmarks = torch.stack([torch.from_numpy(found.landmarks) for found in finder.find([bare.astype(np.uint8)])[0]])
    regions = masking.region(landmarks, *bare.shape[:2])[:, 0].numpy() > 0
    assert np.array_equal(masked[~regions.any(0)], bare[~regions.any(0)])
    assert all(np.abs(masked - bare)[region].mean() > 3 for region in regions)
    for number in (0, 5, 11):
        alone = np.asarray(Image.open(out / f"alone-{number}.png")).astype(int)
        mask, difference = np.abs(alone - bare)[tile(number)], np.abs(masked - alone)[tile(number)]
        assert difference[mask > 0].mean() < 0.2 * mask[mask > 0].mean()  # a second mask on top: 1


def test_the_largest_of_a_crowd_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    crowd(*range(len(CROWD))).save(tmp_path / "faces" / "crowd.png")
    assert run(tmp_path / "faces", tmp_path / "out", "--method", "dm", "--template", "face-001", "--largest") == 0
    bare, masked = (np.asarray(Image.open(tmp_path / place / "crowd.png")) for place in ("faces", "out"))
    assert [number for number in range(len(CROWD)) if (masked != bare)[tile(number)].any()] == [0]
    assert len(table(tmp_path / "out")) == 1


# ------------------------------------------------------------------------------------------- processes

UNMEASURED = ("--method", "dm", "--no-measure", "--min-face", "60", "--batch-size", "2")


def test_processes_share_the_photos_and_one_that_is_lost_loses_nothing_else(
    run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each process of several has
    try:
        assert run(photos, tmp_path / "alone", *UNMEASURED, "--workers", "1") == 0
    finally:
        torch.set_num_threads(before)

    out = tmp_path / "shared"
    journal, others = out / JOURNAL, set(multiprocessing.active_children())

    def kill_one() -> None:
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 3:  # the settings, and a slice
            time.sleep(0.01)
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
            return

    thread = threading.Thread(target=kill_one)
    thread.start()
    assert run(photos, out, *UNMEASURED, "--workers", "2") == 2
    thread.join()
    assert "a worker process died" in capsys.readouterr().err

    done = journal.read_bytes().count(b"\n") - 1
    assert run(photos, out, *UNMEASURED, "--workers", "2") == 0
    assert f"{done} of 13 photos were done before" in capsys.readouterr().out
    assert pictures(out) == pictures(tmp_path / "alone")
    assert [{**row, "seconds": ""} for row in table(out)] == [
        {**row, "seconds": ""} for row in table(tmp_path / "alone")
    ]


def pictures(out: Path) -> dict[str, bytes]:
    """The masked copies, and the overview."""
    found = [
        path for path in out.rglob("*") if path.is_file() and path.name not in ("results.csv", JOURNAL, files.LOCK)
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize(
    ("workers", "device", "count", "gigabytes", "expected"),
    [
        (0, "cpu", 10_000, 64, 8), (0, "cpu", 100, 64, 3), (0, "cpu", 63, 64, 1), (0, "cpu", 10_000, 7, 3),
        (0, "cuda", 10_000, 64, 1), (5, "cpu", 1, 1, 5),
    ],
)  # fmt: skip
def test_how_many_processes(
    workers: int, device: Any, count: int, gigabytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.setattr(engines, "memory", lambda: gigabytes << 30)
    config = SampleConfig("photos", "masked", workers=workers, device=device)
    assert pool.processes(config, count) == expected


def test_in_code_nothing_is_started_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process runs the caller's script again, unless it is guarded."""
    seen: list[int] = []
    monkeypatch.setattr(command, "run", lambda c: seen.append(c.workers) or [])  # type: ignore[func-returns-value]
    command.sample(SampleConfig("photos", "masked"))
    command.sample(SampleConfig("photos", "masked", workers=3))
    assert seen == [1, 3]
