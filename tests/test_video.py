"""A clip in, a masked clip out: masks that follow, sound as it was, the mark of its origin, and a row per face."""

from __future__ import annotations

import csv
import io
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import embedded_photo, status
from fakes import FakeDetector, FakeEmbedder
from PIL import Image

from gan_mask import FaceFinder, SampleConfig, load_generator, mask_photo, masking, provenance, sample
from gan_mask.errors import GanMaskError
from gan_mask.faces import Face
from gan_mask.sampling.tracks import Tracker

av = pytest.importorskip("av", reason="needs the extra [video]")

SIZE, FRAMES, RATE = 192, 16, 15


def still() -> Image.Image:
    with Image.open(io.BytesIO(embedded_photo("id_0002/view_1"))) as face:
        return face.convert("RGB").resize((160, 160), Image.Resampling.LANCZOS)


def shift(i: int) -> np.ndarray:
    """Of the face in frame i, pixels: a slow sway."""
    return 12 + np.array([8 * np.sin(i / 5), 5 * np.cos(i / 4)])


def frames() -> list[np.ndarray]:
    """A face that sways before a grey wall, with a camera's noise: uint8 (SIZE, SIZE, 3)."""
    random, face, made = np.random.default_rng(0), still(), []
    for i in range(FRAMES):
        (x, y), wall = shift(i), Image.new("RGB", (SIZE, SIZE), (118, 122, 128))
        whole = Image.new("RGB", (SIZE, SIZE), (118, 122, 128))
        whole.paste(face, (0, 0))
        wall = whole.transform((SIZE, SIZE), Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y), Image.Resampling.BICUBIC)
        made.append((np.asarray(wall) + random.normal(0, 3, (SIZE, SIZE, 3))).clip(0, 255).round().astype(np.uint8))
    return made


def write_clip(path: Path, pictures: list[np.ndarray], sound: bool = True) -> None:
    with av.open(str(path), "w") as out:
        out.metadata.update({"location": "+48.2082+016.3738/", "creation_time": "2024-05-06T07:08:09Z"})
        video = out.add_stream("libx264", rate=RATE, options={"crf": "10", "preset": "ultrafast"})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p"
        tone = out.add_stream("aac", rate=44100) if sound else None
        for picture in pictures:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if tone is not None:
            wave = np.sin(np.arange(44100 * len(pictures) // RATE) / 16).astype(np.float32)[None]
            samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 44100, 0
            fifo = av.AudioFifo()
            fifo.write(samples)
            for part in [*fifo.read_many(1024), fifo.read()]:
                out.mux(tone.encode(part))
            out.mux(tone.encode(None))
        out.mux(video.encode(None))


def packets(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as clip:
        return [(float(p.pts * p.time_base), bytes(p)) for p in clip.demux(clip.streams.audio[0]) if p.size]


def pictures_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as clip:
        return [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with clip.mp4 and what sample.py made of it, in masked/: fake networks, real finder and generator."""
    from gan_mask import pretrained

    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder / "clip.mp4", frames())
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(pretrained.EMBEDDERS, "fake", lambda name: FakeEmbedder())  # type: ignore[arg-type,return-value]
        patched.setitem(pretrained.DETECTORS, "fake", lambda name: FakeDetector())  # type: ignore[arg-type,return-value]
        sample(
            SampleConfig(
                faces=str(folder / "clip.mp4"), out=str(folder / "masked"), embedders=("fake",), detectors=("fake",),
                show=True,
            )
        )  # fmt: skip
        yield folder


def test_the_clip_keeps_its_frames_times_and_sound(masked: Path) -> None:
    before, after = masked / "clip.mp4", masked / "masked" / "clip.mp4"
    assert packets(after) == packets(before) and len(packets(before)) > 20
    with av.open(str(before)) as a, av.open(str(after)) as b:
        times = [[round(frame.time, 4) for frame in clip.decode(video=0)] for clip in (a, b)]
        assert times[0] == times[1] and len(times[0]) == FRAMES
        assert (a.streams.video[0].width, a.streams.video[0].height) == (b.streams.video[0].width, SIZE)
    wall = np.abs(np.stack(pictures_of(after)).astype(int) - np.stack(pictures_of(before)))[:, :8, :8]
    assert wall.mean() < 4  # what has no mask is only encoded once more


def test_its_metadata_tells_its_origin_and_not_the_place(masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = masked / "masked" / "clip.mp4"
    with av.open(str(path)) as clip:
        told = dict(clip.metadata)
    assert told["comment"].startswith("gan_mask ") and "not an original photograph" in told["comment"]
    assert "method=generator; checkpoint=faces160" in told["comment"]
    assert "48.2082" not in str(told) and told["creation_time"].startswith("2024-05-06")
    assert provenance.main([str(path)]) == 0 and "synthetic adversarial mask" in capsys.readouterr().out
    assert provenance.main([str(masked / "clip.mp4")]) == 1


def test_there_is_a_row_for_the_face_that_is_followed(masked: Path) -> None:
    (row,) = rows_of(masked / "masked")
    assert (row["photo"], row["status"], row["written"], row["face"]) == ("clip.mp4", "ok", "clip.mp4", "0")
    assert int(row["frames"]) == FRAMES and float(row["end"]) == pytest.approx((FRAMES - 1) / RATE, abs=0.01)
    assert row["template"].startswith("face-") and float(row["face_found_after"]) == 1
    assert -1 <= float(row["similarity_fake"]) <= 1 and row["mask_logit_after_fake"] and row["mask_logit_before_fake"]
    assert (masked / "masked" / "overview.png").is_file() and (masked / "masked" / "gallery.html").is_file()


def flicker(pictures: list[np.ndarray], points: torch.Tensor) -> float:
    """How much the mask's texture changes from frame to frame where the face is known to be, 0 to 255."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    moved = torch.stack([points + torch.from_numpy(shift(i)).float() for i in range(len(pictures))])
    textures = masking.unwrap(batch, moved)
    return float((textures[1:] - textures[:-1]).abs().mean()) * 255


def test_the_mask_trembles_less_than_one_that_is_made_for_each_frame(masked: Path) -> None:
    generator, finder = load_generator(), FaceFinder()
    clean = pictures_of(masked / "clip.mp4")
    alone = [mask_photo(picture, generator, finder=finder).image for picture in clean]
    points = torch.from_numpy(finder.find([np.asarray(still())])[0][0].landmarks)
    together = pictures_of(masked / "masked" / "clip.mp4")
    bare, single, followed = (flicker(pictures, points) for pictures in (clean, alone, together))
    assert np.abs(together[5].astype(int) - clean[5]).max() > 40  # it wears one
    assert followed - bare < 0.7 * (single - bare)


def test_the_same_command_has_nothing_left_to_do(masked: Path, capsys: pytest.CaptureFixture[str], fakes: None) -> None:
    path = masked / "masked" / "clip.mp4"
    written = path.stat().st_mtime_ns
    sample(
        SampleConfig(
            faces=str(masked / "clip.mp4"), out=str(masked / "masked"), embedders=("fake",), detectors=("fake",)
        )
    )
    assert path.stat().st_mtime_ns == written


def turned(path: Path) -> None:
    """Write a quarter turn clockwise into the track's header, as phones that are held upright do."""
    one, content = 0x10000, path.read_bytes()
    plain = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    quarter = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)
    place = content.index(b"tkhd")
    path.write_bytes(content[:place] + content[place:].replace(plain, quarter, 1))


def test_a_phones_clip_is_turned_upright(tmp_path: Path) -> None:
    from gan_mask.sampling import clip as clips

    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:20, :20] = 255  # top left
    write_clip(tmp_path / "phone.mp4", [np.ascontiguousarray(np.rot90(upright))] * 3, sound=False)
    turned(tmp_path / "phone.mp4")
    with clips.reading(tmp_path / "phone.mp4") as clip:
        frame = next(iter(clip.read()))
    assert frame.image.shape == (64, 96, 3)
    assert frame.image[4:16, 4:16].mean() > 200 and frame.image[40:].mean() < 30


@pytest.mark.parametrize(("space", "limits"), [(1, 1), (5, 1), (1, 2), (2, 0)], ids=["709", "601", "full", "unsaid"])
def test_colours_stay_whatever_the_clips_colour_space(tmp_path: Path, space: int, limits: int) -> None:
    from gan_mask.sampling import clip as clips

    colour = (110, 90, 170)  # Y, U, V
    with av.open(str(tmp_path / "in.mp4"), "w") as out:
        video = out.add_stream("libx264", rate=RATE, options={"qp": "1"})
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        video.codec_context.colorspace, video.codec_context.color_range = space, limits
        for i in range(3):
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.colorspace, frame.color_range, frame.pts = space, limits, i
            for plane, value in zip(frame.planes, colour, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    with clips.reading(tmp_path / "in.mp4") as clip, clips.writing(tmp_path / "out.mp4", clip, "gan_mask x") as writer:
        for read in clip.read(writer):
            writer.add(read)
    with av.open(str(tmp_path / "out.mp4")) as written:
        frame = next(written.decode(video=0))
    assert (int(frame.colorspace), int(frame.color_range)) == (space, limits)
    seen = [bytes(plane)[10 * plane.line_size + 10] for plane in frame.planes]
    assert np.abs(np.subtract(seen, colour)).max() <= 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("broken.mp4", b"not a clip" * 50, "not a clip in a known format"), ("empty.mov", b"", "not a clip")],
)
def test_a_broken_clip_is_a_row_that_says_so(
    tmp_path: Path, fakes: None, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    c = SampleConfig(
        faces=str(tmp_path / name), out=str(tmp_path / "out"), method="dm", embedders=("fake",), detectors=("fake",)
    )
    (row,) = sample(c)
    assert row["status"] == "unreadable" and words in row["note"]
    assert not (tmp_path / "out" / name).exists()


def test_a_clip_without_a_face_is_not_written(tmp_path: Path, fakes: None) -> None:
    write_clip(tmp_path / "wall.mkv", [np.full((64, 64, 3), 120, np.uint8)] * 5, sound=False)
    c = SampleConfig(
        faces=str(tmp_path / "wall.mkv"), out=str(tmp_path / "out"), method="dm", embedders=("fake",),
        detectors=("fake",),
    )  # fmt: skip
    assert [row["status"] for row in sample(c)] == ["no face"]
    assert [p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")] == ["results.csv"]


def test_a_folder_of_clips_says_how_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mov").write_bytes(b"x")
    with pytest.raises(GanMaskError, match="--faces .*a.mov"):
        sample(SampleConfig(faces=str(tmp_path / "clips"), out=str(tmp_path / "out")))


def test_clips_beside_photos_are_told_of(tmp_path: Path, fakes: None, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.mov").write_bytes(b"x")
    Image.new("RGB", (64, 64)).save(photos / "b.png")
    sample(
        SampleConfig(
            faces=str(photos), out=str(tmp_path / "out"), method="dm", embedders=("fake",), detectors=("fake",)
        )
    )
    assert f"1 clip left out: clips are named one by one: --faces {photos / 'a.mov'}" in capsys.readouterr().out


def test_without_pyav_it_says_what_to_install(
    tmp_path: Path, fakes: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gan_mask.sampling import main

    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    argv = ["--faces", str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "out"), "--method", "dm"]
    assert status(main, [*argv, "--embedders", "fake", "--detectors", "fake"]) == 2
    assert "gan_mask[video]" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- tracks


def face(x: float, y: float, side: float = 40) -> Face:
    box = np.array([x, y, x + side, y + side], np.float32)
    grid = np.stack(np.meshgrid(np.linspace(0, side, 17), np.linspace(0, side, 4)), -1).reshape(68, 2)
    return Face(box, 0.99, (grid + (x, y)).astype(np.float32))


def run(tracker: Tracker, found: list[list[Face]]) -> list[list[tuple[int, np.ndarray]]]:
    """Number and landmarks of the tracks in each frame."""
    results = []
    for i in range(len(found) + tracker.ahead):
        if i < len(found):
            tracker.add(i, found[i])
        if i >= tracker.ahead:
            results.append([(track.number, at.landmarks) for track, at in tracker.at(i - tracker.ahead)])
    return results


def test_tracks_follow_faces_that_pass_and_forget_none_that_is_missed_for_a_moment() -> None:
    found = [[face(3 * i, 0), face(200 - 3 * i, 60)] for i in range(30)]
    found[12] = found[12][1:]  # the first is missed
    result = run(Tracker(8, 3), found)
    assert all(sorted(number for number, _ in frame) == [0, 1] for frame in result)
    missed = next(points for number, points in result[12] if number == 0)
    assert np.abs(missed - face(36, 0).landmarks).max() < 0.1  # a straight path goes through the gap


def test_smoothing_takes_the_tremble_and_leaves_the_motion() -> None:
    random = np.random.default_rng(0)
    path = [(20 * np.sin(i / 6), 0.05 * i**2) for i in range(60)]
    noisy = [[face(x, y)] for x, y in path]
    for (one,) in noisy:
        one.landmarks = one.landmarks + random.normal(0, 1, (68, 2)).astype(np.float32)
    errors = [
        np.abs(frame[0][1] - face(*at).landmarks) for frame, at in zip(run(Tracker(8, 3), noisy), path, strict=True)
    ]
    inner = np.concatenate(errors[5:-5])
    assert inner.mean() < 0.7 * np.sqrt(2 / np.pi)  # of one pixel of noise
    still = np.concatenate(
        [np.abs(frame[0][1] - face(*at).landmarks) for frame, at in
         zip(run(Tracker(8, 3), [[face(x, y)] for x, y in path]), path, strict=True)][5:-5]
    )  # fmt: skip
    assert still.mean() < 0.1  # no lag


def test_a_flash_of_a_face_wears_no_mask() -> None:
    found: list[list[Face]] = [[] for _ in range(20)]
    found[9] = [face(0, 0)]
    assert not any(run(Tracker(8, 3), found))


def test_memory_does_not_grow_with_the_clip() -> None:
    from gan_mask.sampling.clip import Frame
    from gan_mask.sampling.video import MOST_AHEAD, followed

    alive: list[weakref.ref[Any]] = []

    def endless() -> Iterator[Frame]:
        for i in range(400):
            image = np.zeros((8, 8, 3), np.uint8)
            alive.append(weakref.ref(image))
            yield Frame(image, i, i / 30)

    class Sampler:
        largest = False

        class finder:
            @staticmethod
            def find(images: list[np.ndarray]) -> list[list[Face]]:
                return [[face(0, 0)]]

    most = 0
    for _, found in followed(Sampler(), endless(), 30.0):  # type: ignore[arg-type]
        most = max(most, sum(one() is not None for one in alive))
        assert len(found[0][0].seen) <= 3 * MOST_AHEAD
    assert most <= MOST_AHEAD + 3
