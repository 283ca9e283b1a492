"""Decoding every kind of photo, finding landmarks, and the geometry of the aligned crop."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from conftest import CASES, REPOSITORY, embedded_photo
from facenet_pytorch.models.utils.detect_face import detect_face
from PIL import Image, features

from gan_mask import faces
from gan_mask import landmarks as lm
from gan_mask.errors import GanMaskError
from gan_mask.faces import Face, FaceFinder, UnreadableImage, align, read_image
from gan_mask.mtcnn import MTCNN

GRADIENT = np.dstack([*np.meshgrid(np.arange(0, 240, 5), np.arange(0, 160, 5)), np.full((32, 48), 90)]).astype("u1")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(GRADIENT)
    T = Image.Transpose
    stored_as = {  # how a camera stores the upright scene under each value of the tag (EXIF 2.3, tag 0x0112)
        1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(stored_as) if stored_as is not None else upright
    lossy = {"quality": 100, "subsampling": 0}
    kinds = {"PNG": {}, "TIFF": {}, "JPEG": lossy, "WEBP": {"lossless": True}}
    if features.check("avif"):
        kinds["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
    for kind, options in kinds.items():
        decoded = read_image(encoded(stored, kind, exif=exif, **options))
        assert decoded.shape == GRADIENT.shape
        assert np.abs(decoded.astype(int) - GRADIENT).max() <= 4


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_is_turned_as_the_jpeg_of_the_same_photo(orientation: int) -> None:
    tiff, jpeg = (read_image(CASES / "01_tiff" / f"orientation{orientation}.{kind}") for kind in ("tif", "jpg"))
    assert tiff.shape == jpeg.shape and np.abs(tiff.astype(int) - jpeg).mean() < 3


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_a_compressed_tiff_of_several_pages_is_turned_once(compression: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(GRADIENT).transpose(Image.Transpose.ROTATE_90)
    content = encoded(stored, "TIFF", exif=exif, compression=compression, save_all=True, append_images=[stored])
    decoded = read_image(content)
    assert decoded.shape == GRADIENT.shape and np.abs(decoded.astype(int) - GRADIENT).mean() < 4


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    """As other programs write it; Pillow itself writes it before them."""
    exif = Image.Exif()
    exif[0x0112] = 3
    content = encoded(Image.fromarray(GRADIENT[::-1, ::-1].copy()), exif=exif)
    at = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[at : at + 4], "big")
    end = content.index(b"IEND") - 4
    moved = content[:at] + content[at + length : end] + content[at : at + length] + content[end:]
    assert np.array_equal(read_image(moved), GRADIENT)


def test_a_heic_photo_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under another name, as phones' apps save them."""
    path = CASES / "16_heic" / "IMG_0001.HEIC"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    for source, name in ((path, None), (path.read_bytes(), "a.jpg")):
        with pytest.raises(UnreadableImage, match="HEIC photo.*pip install pillow-heif"):
            read_image(source, name)


def test_a_heic_photo_is_read_where_pillow_heif_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif, which is no dependency")
    pillow_heif.register_heif_opener()
    decoded = read_image(encoded(Image.fromarray(GRADIENT), "HEIF", quality=95), "IMG_1.HEIC")
    assert decoded.shape == GRADIENT.shape and np.abs(decoded.astype(int) - GRADIENT).mean() < 4


def test_a_raw_file_is_not_taken_for_its_preview() -> None:
    with pytest.raises(UnreadableImage, match="raw file"):
        read_image(encoded(Image.fromarray(GRADIENT), "TIFF"), "IMG_1.NEF")


@pytest.mark.parametrize("value", [0, 9, 60000])
def test_senseless_orientation_leaves_the_photo_as_stored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(read_image(encoded(Image.fromarray(GRADIENT), exif=exif)), GRADIENT)


def test_garbage_exif_neither_crashes_nor_loses_the_photo() -> None:
    content = encoded(Image.fromarray(GRADIENT), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 50)
    assert read_image(content).shape == GRADIENT.shape


GREY = GRADIENT[..., 0]


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.fromarray(GREY), np.dstack([GREY] * 3)),
        (Image.fromarray(GREY > 100), np.dstack([(GREY > 100) * 255] * 3)),
        (Image.fromarray(GREY.astype(np.uint16) * 257), np.dstack([GREY] * 3)),  # 16 bit: 0xffff is white
        (Image.fromarray(np.dstack([GRADIENT, np.full_like(GREY, 255)])), GRADIENT),
        (Image.fromarray(np.dstack([GRADIENT, np.zeros_like(GREY)])), np.full_like(GRADIENT, 255)),  # clear is white
        (Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)])), np.dstack([GREY] * 3)),
        (Image.fromarray(np.dstack([GREY, np.zeros_like(GREY)])), np.full_like(GRADIENT, 255)),
        (Image.fromarray(GREY).convert("P"), np.dstack([GREY] * 3)),
    ],
    ids=["grey", "1 bit", "16 bit", "opaque RGBA", "clear RGBA", "opaque LA", "clear LA", "palette"],
)
def test_png_modes(image: Image.Image, expected: np.ndarray) -> None:
    decoded = read_image(encoded(image))
    assert decoded.dtype == np.uint8 and np.array_equal(decoded, expected)


def test_half_transparent_is_mixed_with_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 3] = 128
    assert np.abs(read_image(encoded(Image.fromarray(pixels))).astype(int) - 127).max() <= 1


def test_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 2), 1)
    decoded = read_image(encoded(image, transparency=0))
    assert decoded[2, 3].tolist() == [200, 100, 50] and decoded[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces(mode: str) -> None:
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) == 12:
        pytest.skip("Pillow 12 does not read the YCbCr TIFF files that it writes")
    content = encoded(Image.fromarray(GRADIENT).convert(mode), "JPEG" if mode == "CMYK" else "TIFF")
    assert np.abs(read_image(content).astype(int) - GRADIENT).mean() < 3


def test_float_tiff() -> None:
    content = encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF")
    assert np.array_equal(read_image(content), np.dstack([GREY] * 3))


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        decoded = read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert decoded.shape == (16, 16, 3)
        assert decoded[8, 8].argmax() == 0 and decoded[8, 8, 0] > 240


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"To whom it may concern\n" * 9, "not an image"),
        (encoded(Image.fromarray(GRADIENT), "JPEG")[:700], "truncated"),
        (encoded(Image.fromarray(GRADIENT))[:100], "damaged"),
        (encoded(Image.fromarray(GRADIENT), "WEBP")[:100], "damaged|not an image"),
        (png_header(11_000, 11_000), "100 megapixels"),
        (png_header(20_000, 20_000), "100 megapixels"),
    ],
    ids=["0 byte", "text", "truncated jpg", "truncated png", "truncated webp", "121 MP", "400 MP"],
)
def test_bad_file_is_named_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "żółć 1.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and isinstance(caught.value, GanMaskError)


def test_unreadable_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(UnreadableImage, match="not a file"):
        read_image(tmp_path)

    def denied(self: Path) -> bytes:  # root may read anything, so the refusal is played
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mine.jpg").write_bytes(b"x")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UnreadableImage, match="mine.jpg: cannot be read .Permission denied"):
        read_image(tmp_path / "mine.jpg")


# ------------------------------------------------------------------------------------------- finding


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    torch.set_num_threads(1)
    return FaceFinder(min_size=40)


def eye_distance(landmarks: np.ndarray) -> float:
    return float(np.linalg.norm(landmarks[36:42].mean(0) - landmarks[42:48].mean(0)))


def error(found: np.ndarray, reference: np.ndarray) -> float:
    """Mean distance in eye distances."""
    return float(np.linalg.norm(found - reference, axis=-1).mean() / eye_distance(reference))


def test_landmarks_of_synthetic_faces(finder: FaceFinder) -> None:
    """Against dlib's own detector and predictor (the embedded file)."""
    with np.load(REPOSITORY / "gan_mask/assets/synthfaces_landmarks.npz") as file:
        names, reference = file["names"][::60].tolist(), file["landmarks68"][::60]
    photos = [read_image(embedded_photo(name.removeprefix("synthfaces/").removesuffix(".webp"))) for name in names]
    found = finder.find(photos)
    assert [len(faces) for faces in found] == [1] * len(photos)
    errors = [error(faces[0].landmarks, r) for faces, r in zip(found, reference, strict=True)]
    assert np.median(errors) < 0.025 and max(errors) < 0.08


def test_landmarks_of_real_faces(finder: FaceFinder, shared: Path) -> None:
    with np.load(shared / "data/lfw160_landmarks68.npz") as file:
        names, reference = file["names"][::350].tolist(), file["points"][::350]
    with zipfile.ZipFile(shared / "data/lfw160.zip") as archive:
        photos = [read_image(archive.read(f"lfw160/{name}.webp")) for name in names]
    found = finder.find(photos)
    assert all(found)
    errors = [min(error(f.landmarks, r) for f in faces) for faces, r in zip(found, reference, strict=True)]
    assert np.median(errors) < 0.01 and np.percentile(errors, 90) < 0.03


def leaning(person: int, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """An embedded face at twice its size, turned clockwise, and its landmarks: dlib's on the upright one, turned."""
    name = f"id_{person:04d}/view_1"
    with np.load(REPOSITORY / "gan_mask/assets/synthfaces_landmarks.npz") as file:
        points = file["landmarks68"][file["names"].tolist().index(f"synthfaces/{name}.webp")]
    upright = Image.fromarray(read_image(embedded_photo(name))).resize((256, 256), Image.Resampling.BICUBIC)
    wide = Image.fromarray(np.pad(np.asarray(upright), ((100, 100), (100, 100), (0, 0)), "edge"))
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = ((points + 0.5) * 2 - 128) @ np.array([[c, s], [-s, c]]) + 228 - 0.5
    return np.asarray(wide.rotate(-degrees, Image.Resampling.BICUBIC)), turned


@pytest.mark.parametrize("degrees", [0, 20, -30, 45, -60, 75, -90])
def test_landmarks_of_leaning_faces(finder: FaceFinder, degrees: float) -> None:
    found = 0
    for person in (1, 4, 14, 30):
        photo, reference = leaning(person, degrees)
        for face in finder.find([photo])[0][:1]:
            found += 1
            assert error(face.landmarks, reference) < 0.06 and not face.doubt
    assert found >= (4 if abs(degrees) <= 45 else 1)  # MTCNN finds few that lie


def test_landmarks_far_from_the_detectors_points_are_doubtful() -> None:
    landmarks = lm.frame(100, 0.3).numpy()
    points = lm.points5(torch.from_numpy(landmarks)).numpy()
    eyes = np.linalg.norm(points[1] - points[0])
    assert Face(np.zeros(4), 1.0, landmarks, faces._disagreement(landmarks, points)).doubt == ""
    assert faces._disagreement(landmarks, points + (0.3 * eyes, 0)) == pytest.approx(0.3, abs=1e-3)
    assert "0.30 eye distances" in Face(np.zeros(4), 1.0, landmarks, 0.3).doubt


def as_the_package_finds(search: MTCNN, picture: np.ndarray, smallest: float) -> np.ndarray:
    with torch.no_grad():
        boxes, points = detect_face(
            picture[None], smallest, search.pnet, search.rnet, search.onet, search.thresholds, search.factor, "cpu"
        )
    rows = [np.asarray(part[0], np.float32).reshape(-1, size) for part, size in ((boxes, 5), (points, 10))]
    return np.concatenate(rows, 1)


def search_equals_the_package(pictures: list[np.ndarray], smallest: list[float]) -> None:
    search = MTCNN(torch.device("cpu"))
    for picture, least, found in zip(pictures, smallest, search(pictures, smallest), strict=True):
        reference = as_the_package_finds(search, picture, least)
        assert found.shape == reference.shape and len(found) and np.abs(found - reference).max() < 0.01


def test_pictures_of_any_sizes_are_searched_together_as_facenet_pytorch_searches_each() -> None:
    one, two = (Image.fromarray(read_image(embedded_photo(f"id_000{i}/view_1"))) for i in (1, 2))
    crowd = np.full((300, 500, 3), 120, np.uint8)
    crowd[20:148, 30:158], crowd[30:286, 220:476] = one, two.resize((256, 256))
    search_equals_the_package([np.asarray(one), crowd, np.asarray(two)[:, 15:]], [20, 30, 25])


def test_real_photos_are_searched_as_facenet_pytorch_does(shared: Path) -> None:
    photos = [read_image(path) for path in sorted((shared / "data/photos/several").iterdir())]
    search_equals_the_package([faces._shrink(photo, 400 / max(photo.shape)) for photo in photos], [20] * len(photos))


def test_mixed_sizes_crowds_and_empty_pictures(finder: FaceFinder) -> None:
    """Faces come largest first, in the pixels of their own photo, however large that is."""
    one, two = (read_image(embedded_photo(f"id_000{i}/view_1")) for i in (1, 2))
    crowd = np.full((400, 700, 3), 120, np.uint8)
    crowd[20:148, 30:158] = one
    crowd[100:356, 400:656] = np.asarray(Image.fromarray(two).resize((256, 256)))
    large = np.asarray(Image.fromarray(crowd).resize((2800, 1600)))
    empty, tiny, thin = (
        np.zeros((160, 160, 3), np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((20, 900, 3), np.uint8),
    )
    found = finder.find([one, crowd, empty, large, tiny, thin, two])
    assert [len(faces) for faces in found] == [1, 2, 0, 2, 0, 0, 1]
    assert found[1][0].box[0] > 380 and found[1][1].box[2] < 170
    for small, big in zip(found[1], found[3], strict=True):
        assert error(big.landmarks, (small.landmarks + 0.5) * 4 - 0.5) < 0.04
    alone = finder.find([one])[0][0]
    assert error(alone.landmarks, found[0][0].landmarks) < 1e-3


def test_known_faces_are_found_again_where_they_are(finder: FaceFinder) -> None:
    """As in a search of the whole photo; not where a face is gone, and not another one in its stead."""
    one, two, three = (Image.fromarray(read_image(embedded_photo(f"id_000{i}/view_1"))) for i in (1, 2, 4))
    photo = np.full((1300, 2600, 3), 120, np.uint8)
    for face, side, x, y in ((one, 900, 60, 100), (two, 160, 1200, 300), (three, 160, 1420, 330)):
        photo[y : y + side, x : x + side] = np.asarray(face.resize((side, side)))
    (known,) = finder.find([photo])
    assert len(known) == 3
    changed = (photo * 0.9).astype(np.uint8)
    (whole,), (again,) = finder.find([changed]), finder.find_again([changed], [known])
    for a, b in zip(again, whole, strict=True):
        assert a is not None and error(a.landmarks, b.landmarks) < 0.03
    changed[330:490, 1420:1580] = 120  # beside a face that stays
    gone, stays, empty = finder.find_again([changed, photo[:, :1000], photo], [known[1:], known[:1], []])
    assert sorted(face is None for face in gone) == [False, True] and stays[0] is not None and empty == []


def test_a_photo_is_searched_no_larger_than_the_smallest_face_needs() -> None:
    photo = np.full((900, 1500, 3), 120, np.uint8)
    for person, side, x in ((1, 500, 100), (2, 60, 1000)):
        face = Image.fromarray(read_image(embedded_photo(f"id_000{person}/view_1")))
        photo[200 : 200 + side, x : x + side] = np.asarray(face.resize((side, side)))
    shared, small, large = (FaceFinder(min_size=size, no_larger=True) for size in (None, 20, 200))
    widths: list[int] = []
    for searched in (shared, small, large):
        real = searched._mtcnn
        searched._mtcnn = lambda copies, least, real=real: (widths.append(copies[0].shape[1]), real(copies, least))[1]  # type: ignore[assignment,misc]
    counts = [len(searched.find([photo])[0]) for searched in (shared, small, large)]
    assert widths == [640, 1280, 150] and counts[1:] == [2, 1]
    reference = FaceFinder().find([photo])[0][0]
    for searched in (shared, small, large):
        assert error(searched.find([photo])[0][0].landmarks, reference.landmarks) < 0.03


# ------------------------------------------------------------------------------------------- aligning


def similarity(points: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) + shift


@pytest.mark.parametrize("angle, scale", [(0.0, 1.0), (0.4, 1.7), (-0.7, 0.6), (0.2, 6.0)])
def test_align_moves_pixels_where_the_landmarks_go(angle: float, scale: float) -> None:
    """A photo with a smooth colour at every place: the crop's colours tell where its pixels came from."""
    mean_face = lm.frame(96, 0.3).double().numpy()
    landmarks = similarity(mean_face, angle, scale, (60 + 60 * scale, 40 + 60 * scale))
    height, width = 200 + int(200 * scale), 220 + int(200 * scale)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    photo = np.dstack([x * 255 / width, y * 255 / height, 0 * x]).round().astype(np.uint8)
    crop, moved = align(photo, landmarks, 96, 0.3)
    assert crop.shape == (96, 96, 3) and np.abs(moved - mean_face).max() < 1e-3
    grid = np.stack(np.meshgrid(np.arange(96.0), np.arange(96.0)), -1).reshape(-1, 2)
    origin = similarity(grid, angle, scale, (60 + 60 * scale, 40 + 60 * scale)).reshape(96, 96, 2)
    inside = ((origin > 3) & (origin < (width - 4, height - 4))).all(-1)
    expected = origin * (255 / width, 255 / height)
    assert inside.mean() > 0.5
    difference = (crop[..., :2] - expected)[inside]
    assert np.abs(difference).max() < 1.4 and np.abs(difference.mean(0)).max() < 0.1  # rounding of photo and crop


@pytest.mark.parametrize("size", [(37, 50), (160, 90), (400, 333)])
def test_pictures_are_resampled_as_pillow_does(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 120, 3)).astype(np.uint8)
    picture = noise[5:, ::-1]  # a view, mirrored
    expected = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    found = faces._resampled(picture, *size)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 2 and difference.mean() < 0.1  # noise is the hardest picture


def test_align_shrinks_without_aliasing() -> None:
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    crop, _ = align(stripes, similarity(lm.frame(100, 0.3).double().numpy(), 0.1, 10.0, (300, 300)), 100, 0.3)
    assert np.abs(crop.astype(int) - 127).max() <= 6


def test_align_repeats_the_edge_beyond_the_photo() -> None:
    photo = np.zeros((64, 64, 3), np.uint8)
    photo[:, 0], photo[0], photo[-1] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    landmarks = lm.frame(64, 0.0).numpy()
    crop, moved = align(photo, landmarks, 128, 0.5)  # jaw as wide as the photo, crop twice as wide
    assert np.abs(moved - lm.frame(128, 0.5).numpy()).max() < 1e-3
    assert crop[64, 0].tolist() == [200, 0, 0] and crop[0, 64].tolist() == [0, 200, 0]
    assert crop[-1, 64].tolist() == [0, 0, 200]
