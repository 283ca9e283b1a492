"""One photo in code: `mask_photo` is what sample.py makes of the same file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import embedded_photo
from PIL import ExifTags, Image

from gan_mask import FaceFinder, Generator, GeneratorConfig, MaskedPhoto, SampleConfig, mask_photo, sample, sampling
from gan_mask.errors import GanMaskError
from gan_mask.sampling import photo_writer


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(GeneratorConfig(widths=(4, 8), noise=4, kernel=3, size=96)).eval()


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


def two_people() -> Image.Image:
    photo = Image.new("RGB", (520, 300), "gray")
    for person, side, place in ((4, 256, (10, 20)), (14, 200, (300, 50))):
        face = Image.open(io.BytesIO(embedded_photo(f"id_{person:04d}/view_1"))).convert("RGB")
        photo.paste(face.resize((side, side), Image.Resampling.BICUBIC), place)
    return photo


def test_a_file_a_picture_and_an_array_give_what_the_command_writes(
    generator: Generator, finder: FaceFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    file = tmp_path / "photos" / "two.png"
    two_people().save(file)
    generator.save_pretrained(tmp_path / "checkpoint")
    options = ["--faces", str(file), "--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "checkpoint")]
    sampling.main([*options, "--embedders", "--detectors"])
    config = SampleConfig(
        faces=str(file), out=str(tmp_path / "out"), checkpoint=str(tmp_path / "checkpoint"), embedders=(), detectors=()
    )
    rows = sample(config)
    assert "1 of 1 photos were done before" in capsys.readouterr().out and len(rows) == 2
    written = np.asarray(Image.open(tmp_path / "out" / "two.png"))
    assert (written != np.asarray(two_people())).any()
    array = np.asarray(two_people())
    for photo in (file, str(file), two_people(), array):
        masked = mask_photo(photo, generator, finder=finder)
        assert (masked.image == written).all() and [face.template is None for face in masked.faces] == [False, False]
    assert (array == np.asarray(two_people())).all()  # the caller's stays as it is


def test_the_largest_alone_is_masked_and_all_are_told_of(generator: Generator, finder: FaceFinder) -> None:
    before = np.asarray(two_people())
    masked = mask_photo(before, generator, template="plain-blue", largest=True, finder=finder)
    assert [face.template for face in masked.faces] == ["plain-blue", None]
    assert (masked.image[:, 290:] == before[:, 290:]).all() and (masked.image != before).any()
    for face in masked.faces:
        inside = (face.landmarks > face.box[:2] - 30) & (face.landmarks < face.box[2:] + 30)
        assert face.landmarks.shape == (68, 2) and inside.all() and face.score > 0.9


def test_a_photo_is_searched_as_the_command_searches_it(generator: Generator, finder: FaceFinder) -> None:
    """No larger than faces of 1/32 of its longest side need; boxes tell, since those of a larger copy differ."""
    photo = np.asarray(two_people().resize((1560, 900), Image.Resampling.BICUBIC))
    found, whole = FaceFinder(min_size=None, no_larger=True).find([photo])[0], finder.find([photo])[0]
    masked = mask_photo(photo, generator)
    assert len(found) == len(masked.faces) == len(whole) == 2
    for face, expected, other in zip(masked.faces, found, whole, strict=True):
        assert (face.box == expected.box).all() and (face.box != other.box).any()


def test_a_saved_photo_is_marked_and_keeps_what_is_harmless(
    generator: Generator, finder: FaceFinder, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Artist] = "Maker", "somebody's name"
    two_people().save(tmp_path / "photo.jpg", quality=95, exif=exif)
    masked = mask_photo(tmp_path / "photo.jpg", generator, finder=finder)
    for name in ("masked.png", "masked.JPG", "folder/masked.webp"):
        masked.save(tmp_path / name)
        assert "not an original photograph" in (photo_writer.read_provenance(tmp_path / name) or "")
        with Image.open(tmp_path / name) as image:
            assert image.getexif()[ExifTags.Base.Make] == "Maker" and ExifTags.Base.Artist not in image.getexif()
    assert (np.asarray(Image.open(tmp_path / "masked.png")) == masked.image).all()
    before = (tmp_path / "photo.jpg").read_bytes()
    with pytest.raises(GanMaskError, match="the original, which is never written to"):
        masked.save(tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == before
    with pytest.raises(
        GanMaskError, match=r"masked\.gif: expected a format that holds the mark of its origin: .*\.png"
    ):
        masked.save(tmp_path / "masked.gif")


def test_a_photo_without_a_face_comes_back_and_is_not_saved(
    generator: Generator, finder: FaceFinder, tmp_path: Path
) -> None:
    bare = Image.new("RGB", (100, 80), "gray")
    masked: MaskedPhoto = mask_photo(bare, generator, finder=finder)
    assert masked.faces == () and (masked.image == np.asarray(bare)).all()
    with pytest.raises(GanMaskError, match="no masked face"):
        masked.save(tmp_path / "masked.png")


@pytest.mark.parametrize(
    "array", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)]
)
def test_other_arrays_are_refused(array: np.ndarray, generator: Generator, finder: FaceFinder) -> None:
    with pytest.raises(GanMaskError, match=r"photo: expected uint8 RGB \(H, W, 3\), got"):
        mask_photo(array, generator, finder=finder)
