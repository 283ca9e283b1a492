"""data_prep/prepare.py: from photos to a prepared set, through kills, bad input and full disks."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CASES, REPOSITORY, embedded_photo, status
from PIL import Image

from gan_mask import engines
from gan_mask import landmarks as lm
from gan_mask.data import INDEX, SPLITS, PreparedSet, folder_or_zip
from gan_mask.data import prepare as module
from gan_mask.data.prepare import PrepareConfig, Settings, Source, main, prepare, split
from gan_mask.errors import GanMaskError
from gan_mask.faces import read_image

COMMAND = [sys.executable, str(REPOSITORY / "data_prep/prepare.py")]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 people x 2 photos, and one bad photo of each kind."""
    folder = tmp_path_factory.mktemp("photos") / "my faces"
    for person in range(1, 5):
        for view in (1, 2):
            path = folder / f"Zoë {person}" / f"photo {view}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(embedded_photo(f"id_{person:04d}/view_{view}"))
    pair = [Image.open(folder / f"Zoë {i}/photo 1.webp").convert("RGB") for i in (1, 2)]
    crowd = Image.new("RGB", (400, 200), "grey")
    crowd.paste(pair[0].resize((180, 180)), (150, 10))
    crowd.paste(pair[1].resize((90, 90)), (10, 50))
    crowd.save(folder / "Zoë 1" / "crowd.png")
    Image.new("RGB", (160, 160), "grey").save(folder / "Zoë 2" / "wall.png")
    (folder / "Zoë 3" / "empty.jpg").touch()
    (folder / "Zoë 3" / "letter.jpg").write_text("Dear Sir or Madam")
    (folder / "Zoë 3" / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """In this process; the command in its own process keeps its chunks."""
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "CHUNK", 3)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dst = tmp_path_factory.mktemp("finished") / "set"
    prepare(PrepareConfig(src=str(people), dst=str(dst), size=96))
    return dst


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_photo_is_a_face_or_listed(finished: Path) -> None:
    faces = PreparedSet(finished)
    assert len(faces) == 9 and faces.size == 96 and faces.margin == 0.375
    assert {faces.person(i) for i in range(9)} == {f"Zoë {i}" for i in range(1, 5)}
    assert faces.source(0) == "Zoë 1/crowd.png" and faces.identities.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert all(faces.score(i) >= 0.9 for i in range(9))
    with open(finished / "skipped.csv", encoding="utf-8") as f:
        rows = {row["path"]: (row["reason"], row["detail"]) for row in csv.DictReader(f)}
    assert rows["Zoë 1/crowd.png"][0] == "several faces" and "of 2" in rows["Zoë 1/crowd.png"][1]
    assert rows["Zoë 2/wall.png"] == ("no face", "")
    assert rows["Zoë 3/empty.jpg"] == ("unreadable", "the file is empty")
    assert rows["Zoë 3/letter.jpg"][0] == "unreadable" and len(rows) == 4
    assert not (finished / ".parts").exists()


def test_crops_are_aligned_and_landmarks_belong_to_them(finished: Path) -> None:
    faces = PreparedSet(finished)
    frame = lm.points5(lm.frame(96, 0.375))
    for i in range(len(faces)):
        item = faces[i]
        assert item["face"].shape == (3, 96, 96) and 0 <= item["face"].min() and item["face"].max() <= 1
        assert (lm.points5(item["landmarks"]) - frame).norm(dim=-1).mean() < 4
    first, from_crowd = faces[1], faces[0]  # the same face, alone and as the largest of the crowd
    assert (first["landmarks"] - from_crowd["landmarks"]).norm(dim=-1).mean() < 1.5
    assert (first["face"] - from_crowd["face"])[:, 30:80, 30:66].abs().mean() < 0.05


def test_items_flip_pickle_and_end(finished: Path) -> None:
    faces = PreparedSet(finished)
    item, mirrored = faces[2], faces[2, True]
    assert torch.equal(item["face"].flip(-1), mirrored["face"])
    assert torch.equal(lm.flip(item["landmarks"], 96), mirrored["landmarks"])
    copy = pickle.loads(pickle.dumps(faces))
    assert torch.equal(copy[2]["face"], item["face"]) and copy.source(2) == faces.source(2)
    assert len(list(faces)) == len(faces)  # type: ignore[call-overload]
    loader = torch.utils.data.DataLoader(faces, batch_size=9, num_workers=1)
    assert next(iter(loader))["index"].tolist() == list(range(9))


def test_splits_are_by_person_and_stable() -> None:
    settings = Settings(splits=(0.6, 0.2, 0.2))
    names = [f"person {i}" for i in range(3000)]
    shares = np.bincount([SPLITS.index(split(name, settings)) for name in names]) / 3000
    assert np.abs(shares - settings.splits).max() < 0.03
    assert split("Aaron", settings) == split("Aaron", settings)
    moved = [split(name, settings) != split(name, Settings(splits=(0.6, 0.2, 0.2), seed=1)) for name in names]
    assert 0.3 < np.mean(moved) < 0.8


def test_splits_of_a_set_share_nobody(people: Path, tmp_path: Path) -> None:
    prepare(PrepareConfig(src=str(people), dst=str(tmp_path / "set"), size=32, splits=(0.4, 0.3, 0.3), seed=3))
    parts = {name: PreparedSet(tmp_path / "set", name) for name in SPLITS}
    assert sum(map(len, parts.values())) == 9
    members = [set(part.identities.tolist()) for part in parts.values()]
    assert sum(map(len, members)) == 4 == len(set().union(*members))
    for name, part in parts.items():
        assert all(split(part.person(i), Settings(splits=(0.4, 0.3, 0.3), seed=3)) == name for i in range(len(part)))


def test_zip_and_workers_give_the_same_set(people: Path, finished: Path, tmp_path: Path) -> None:
    """From a zip with an extra top folder and Apple's leftovers; two processes."""
    with zipfile.ZipFile(tmp_path / "my faces", "w") as archive:
        for path in sorted(people.rglob("*.*")):
            archive.write(path, Path("top/data") / path.relative_to(people))
        photo = embedded_photo("id_0009/view_1")
        for name in ("__MACOSX/top/a.jpg", "top/.hidden.jpg", "top/folder.jpg/"):
            archive.writestr(name, photo if not name.endswith("/") else b"")
    prepare(PrepareConfig(src=str(tmp_path / "my faces"), dst=str(tmp_path / "set"), size=96, workers=2))
    ours, theirs = content(tmp_path / "set"), content(finished)
    assert ours["crops.bin"] == theirs["crops.bin"] and ours["summary.json"] == theirs["summary.json"]
    faces = PreparedSet(tmp_path / "set")
    assert faces.source(0) == "top/data/Zoë 1/crowd.png" and faces.person(0) == "Zoë 1"


def test_flat_folder(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("Ann_Lee_0001", "Ann_Lee_0002", "Bo_1", "solo"):
        (flat / f"{name}.webp").touch()
    people = [photo.person for photo in Source(flat).photos(Settings().identity_regex)]
    assert people == ["Ann_Lee", "Ann_Lee", "Bo", "solo"]
    assert [photo.person for photo in Source(flat).photos("(.).*")] == ["A", "A", "B", "s"]
    with pytest.raises(GanMaskError, match="--identity-regex .* finds no person"):
        Source(flat).photos(r"(\w+)_\d+")


def who(source: Path, identity_regex: str | None = None) -> dict[str, str]:
    """Path -> person."""
    return {photo.path: photo.person for photo in Source(source).photos(identity_regex)}


def tree(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


NESTED = ("A/front/1.jpg", "A/side/2.jpg", "B/front/1.jpg", "B/side/far/2.jpg", "B/3.jpg")


@pytest.mark.parametrize(
    "paths, persons",
    [
        (NESTED, "AABBB"),
        ([f"around/all/{path}" for path in NESTED], "AABBB"),
        (["Ann/1.jpg", "Ann/2.jpg"], ["Ann", "Ann"]),  # one person's folder alone
        (["set/Ann/1.jpg", "set/Ann/2.jpg"], ["Ann", "Ann"]),
        (["Ann/1.jpg", "Ann/2.jpg", "Ann/more/3.jpg"], ["Ann"] * 3),
        (["Ann/1.jpg", "Ann_0002.jpg", "Bo_0001.jpg"], ["Ann", "Ann", "Bo"]),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "zip made on Windows"])
def test_a_person_is_the_outermost_folder(kind: str, paths: list[str], persons: list[str], tmp_path: Path) -> None:
    if kind == "folder":
        source = tree(tmp_path / "set", *paths)
    else:
        source = zipped(tmp_path / "set.zip", *(p.replace("/", "\\") if "Windows" in kind else p for p in paths))
    assert who(source) == dict(zip(paths, persons, strict=True))


def test_doubtful_people_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = embedded_photo("id_0001/view_1")
    for name, paths, remedy, mended in [
        ("flat in a folder", ["flat/Ann_1.jpg", "flat/Bo_1.jpg"], "(.+?)(_", 2),
        ("two parts", ["train/A/1.jpg", "train/B/1.jpg", "test/C/1.jpg"], ".*?([^/]+)/[^/]+", 3),
    ]:
        for path in tree(tmp_path / name, *paths).rglob("*.jpg"):
            path.write_bytes(photo)
        prepare(PrepareConfig(src=str(tmp_path / name), dst=str(tmp_path / f"{name} out"), size=32))
        said = capsys.readouterr().err
        assert "taken for one person" in said and remedy in said
        regex = said.split("--identity-regex '")[1].split("'")[0]
        assert len(set(who(tmp_path / name, regex).values())) == mended


def test_one_persons_views_alone_look_like_people_and_this_is_said(tmp_path: Path) -> None:
    """Jane/frontal is built like lfw/Ann, so no rule can tell; the remedy that is named makes one person of them."""
    source = tree(tmp_path / "set", "J. Doe/frontal/1.jpg", "J. Doe/profile/2.jpg")
    photos = folder_or_zip.Source(source).photos()
    assert {photo.person for photo in photos} == {"frontal", "profile"}
    said = folder_or_zip.doubts(photos)
    assert "below one folder, J. Doe: the 2 folders in it are taken for as many people" in said
    regex = said.split("--identity-regex '")[1].split("'")[0]
    assert set(who(source, regex).values()) == {"J. Doe"}
    many = tree(tmp_path / "many", *(f"lfw/person{i}/1.jpg" for i in range(folder_or_zip.FEW + 1)))
    assert not folder_or_zip.doubts(folder_or_zip.Source(many).photos())


def test_the_regex_counts_in_folders_too(tmp_path: Path) -> None:
    """Without a / it looks at the file's name, with one at the path."""
    source = tree(tmp_path / "set", "2019/Ann_1.jpg", "2020/Ann_2.jpg", "2020/Bo_1.jpg")
    assert set(who(source).values()) == {"2019", "2020"}
    assert list(who(source, r"(.+)_\d+").values()) == ["Ann", "Ann", "Bo"]
    assert list(who(source, r".*/(.).*").values()) == ["A", "A", "B"]
    assert list(who(source, r"(.+?)/.*").values()) == ["2019", "2020", "2020"]
    with pytest.raises(GanMaskError, match="2019/Ann_1.jpg: --identity-regex .* finds no person in 'Ann_1'"):
        who(source, r"(.+)-\d+")


def test_a_name_is_one_person_in_both_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    paths = (f"{composed}/1.jpg", f"{decomposed}/2.jpg", "Al/1.jpg")
    for source in (tree(tmp_path / "set", *paths), zipped(tmp_path / "set.zip", *paths)):
        assert set(who(source).values()) == {composed, "Al"}
        assert set(who(source, "(.+)/.*").values()) == {composed, "Al"}


def test_links_inside_a_set_add_nobody(tmp_path: Path) -> None:
    """Whatever their names: links sort before and after what they point to."""
    source = tree(tmp_path / "set", "M/1.jpg", "M/2.jpg", "P/1.jpg")
    for link, target in [("A", "M"), ("Z", "M"), ("P/more", "../M"), ("M/up", ".."), ("A.jpg", "M/1.jpg")]:
        (source / link).symlink_to(target)
    (source / "P/0.jpg").symlink_to("../M/2.jpg")
    assert who(source) == {"M/1.jpg": "M", "M/2.jpg": "M", "P/1.jpg": "P"}


def test_links_out_of_a_set_count_where_they_stand(tmp_path: Path) -> None:
    pool = tree(tmp_path / "pool", "x/1.jpg", "2.jpg")
    source = tree(tmp_path / "set", "A/1.jpg", "B/1.jpg")
    (source / "A/more").symlink_to(pool / "x")
    (source / "B/2.jpg").symlink_to(pool / "2.jpg")
    (source / "C").symlink_to(pool / "x")  # a second link to it
    (source / "A/gone.jpg").symlink_to(pool / "gone.jpg")
    people = who(source)
    assert {p: people[p] for p in people if "gone" not in p} == {
        "A/1.jpg": "A", "B/1.jpg": "B", "B/2.jpg": "B", "C/1.jpg": "C",
    }  # fmt: skip
    assert people["A/gone.jpg"] == "A"  # it will be listed as unreadable


def test_no_person_of_the_odd_cases_is_divided(tmp_path: Path) -> None:
    shutil.copytree(CASES / "05_nested", tmp_path / "nested")
    shutil.copy(CASES / "06_backslash.zip", tmp_path / "windows.zip")
    for source, number in ((tmp_path / "nested", 3), (tmp_path / "windows.zip", 2)):
        summary = prepare(
            PrepareConfig(src=str(source), dst=str(tmp_path / f"{source.stem} out"), size=32, splits=(0.4, 0.3, 0.3))
        )
        assert summary["people"] == number and summary["faces"] == 3 * number
        faces = PreparedSet(tmp_path / f"{source.stem} out")
        assert {faces.person(i) for i in range(len(faces))} == {f"id_{i + 1:04d}" for i in range(number)}


@pytest.mark.parametrize("hidden", ["._a.jpg", ".DS_Store", ".cache/a.jpg", "@eaDir/a.jpg/thumb.jpg", "__MACOSX/a.jpg"])
def test_files_of_systems_are_no_photos(hidden: str, tmp_path: Path) -> None:
    for source in (
        tree(tmp_path / "set", "A/1.jpg", f"A/{hidden}", hidden), zipped(tmp_path / "a.zip", "A/1.jpg", f"A/{hidden}")
    ):  # fmt: skip
        assert who(source) == {"A/1.jpg": "A"}


def test_heic_photos_are_listed_where_they_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    assert (
        prepare(PrepareConfig(src=str(CASES / "16_heic"), dst=str(tmp_path / "set"), size=32))["photos"] == 2
    )  # a hidden file lies there, too
    with open(tmp_path / "set" / "skipped.csv", newline="") as f:
        (row,) = (row for row in csv.DictReader(f) if row["reason"] == "unreadable")
    assert row["path"] == "IMG_0001.HEIC" and "pip install pillow-heif" in row["detail"]


def test_a_name_of_two_lines_is_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a\nb.jpg").write_text("no photo")
    (tmp_path / "photos" / f"{'x' * 246}.webp").write_bytes(embedded_photo("id_0001/view_1"))
    assert status(main, [str(tmp_path / "photos"), str(tmp_path / "set"), "--workers", "1"]) == 0
    with open(tmp_path / "set" / "skipped.csv", newline="") as f:
        assert [row["path"] for row in csv.DictReader(f)] == ["a\nb.jpg"]
    assert PreparedSet(tmp_path / "set").person(0) == "x" * 246
    (tmp_path / "photos" / f"{'x' * 246}.webp").unlink()
    assert status(main, [str(tmp_path / "photos"), str(tmp_path / "none"), "--workers", "1"]) == 2
    assert "a\\nb.jpg" in capsys.readouterr().err


def test_a_file_twice_in_a_zip_is_refused_in_either_spelling(tmp_path: Path) -> None:
    with pytest.raises(GanMaskError, match="is in it twice"):
        who(zipped(tmp_path / "a.zip", "A/1.jpg", "A\\1.jpg"))


def test_links_are_followed_once(people: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "Z").mkdir(parents=True)
    (tmp_path / "data" / "Z" / "a.jpg").touch()
    (tmp_path / "data" / "linked").symlink_to(people / "Zoë 1")
    (tmp_path / "data" / "Z" / "loop").symlink_to(tmp_path / "data")
    paths = [photo.path for photo in Source(tmp_path / "data").photos(Settings().identity_regex)]
    assert len(paths) == 4 and "linked/photo 1.webp" in paths


# ------------------------------------------------------------------------------------------- interruptions


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


SMALL_CHUNKS = """
import sys
from gan_mask.data import prepare
prepare.CHUNK = 3
if __name__ == "__main__":
    prepare.main()
"""


def test_killed_and_resumed_is_the_same(
    people: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after the first finished chunk; the rerun reads only what is left and ends byte for byte alike."""
    script, dst = tmp_path / "small_chunks.py", tmp_path / "killed"
    script.write_text(SMALL_CHUNKS)
    command = [sys.executable, str(script), str(people), str(dst), "--size", "96", "--workers", "2"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    while not list((dst / ".parts").glob("*.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (dst / "meta.json").exists()
    with pytest.raises(GanMaskError, match="run the same prepare command again"):
        PreparedSet(dst)
    photos_read = []
    monkeypatch.setattr(folder_or_zip, "read_image", lambda *given: photos_read.append(given) or read_image(*given))
    prepare(PrepareConfig(src=str(people), dst=str(dst), size=96))
    assert len(photos_read) < 12
    assert content(dst) == content(finished)


def test_ctrl_c_says_how_to_resume(people: Path, tmp_path: Path) -> None:
    command = [*COMMAND, str(people), str(tmp_path / "set"), "--workers", "2"]
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )  # fmt: skip
    while not (tmp_path / "set" / ".parts" / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in stderr and "Traceback" not in stderr


def test_dead_worker_is_noticed(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_work", _die)
    with pytest.raises(GanMaskError, match="worker process died"):
        prepare(PrepareConfig(src=str(people), dst=str(tmp_path / "set"), workers=2))


def _die(*arguments: object) -> int:
    os._exit(9)


def test_finished_set_is_left_alone(people: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(finished)
    assert status(main, [str(people), str(finished), "--size", "96"]) == 0
    assert "9 faces of 4 people" in capsys.readouterr().out
    assert status(main, [str(people), str(finished), "--size", "128"]) == 2
    assert "size 96 -> 128" in capsys.readouterr().err
    assert content(finished) == before


# ------------------------------------------------------------------------------------------- bad input


def test_bad_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "walls").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "walls" / "a.png")
    expected = {
        "absent": "no such folder", "empty": "no image files", "texts": "no image files", "cut.zip": "intact .zip",
        "walls": "no face in any of the 1 photos",
    }  # fmt: skip
    for name, message in expected.items():
        assert status(main, [str(tmp_path / name), str(tmp_path / "dst"), "--workers", "1"]) == 2
        error = capsys.readouterr().err.split("error: ")[1]
        assert name in error or name == "walls"
        assert message in error
    monkeypatch.setattr(os, "scandir", _refuse)  # root may list anything, so the refusal is played
    assert status(main, [str(tmp_path / "walls"), str(tmp_path / "dst")]) == 2
    assert "walls: cannot be read (Permission denied)" in capsys.readouterr().err


def _refuse(path: str) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_bad_destinations(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    for name, message in {"file": "cannot be written", "used": "not empty", "file/below": "cannot be written"}.items():
        assert status(main, [str(people), str(tmp_path / name), "--workers", "1"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value",
    [
        ("--size", "8"), ("--margin", "-1"), ("--min-score", "2"), ("--min-size", "1"), ("--splits", "0.5,0.2,0.2"),
        ("--splits", "1"), ("--quality", "0"), ("--identity-regex", "("), ("--identity-regex", "x"),
        ("--workers", "0"), ("--device", "abacus"),
    ],
)  # fmt: skip
def test_bad_options_are_named(
    option: str, value: str, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(main, [str(people), str(tmp_path / "set"), option, value]) == 2
    assert f"error: {option}" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_full_disk_is_told_and_can_be_continued(
    people: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(*arguments: object, **arrays: object) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(savez(*arguments, **arrays))  # type: ignore[arg-type,func-returns-value]

    savez = np.savez
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(GanMaskError, match="set: cannot be written .No space left on device"):
            prepare(PrepareConfig(src=str(people), dst=str(tmp_path / "set"), size=96))
    prepare(PrepareConfig(src=str(people), dst=str(tmp_path / "set"), size=96))
    assert content(tmp_path / "set") == content(finished)


def test_bad_prepared_sets(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(GanMaskError, match="no such folder"):
        PreparedSet(tmp_path / "absent")
    with pytest.raises(GanMaskError, match="not a prepared set"):
        PreparedSet(tmp_path)
    with pytest.raises(GanMaskError, match="unknown split 'tset'; known: train, val, test"):
        PreparedSet(finished, "tset")
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    os.truncate(copy / "crops.bin", 1000)
    with pytest.raises(GanMaskError, match="crops.bin: 1000 bytes, expected"):
        PreparedSet(copy)
    meta = copy / "meta.json"
    meta.write_text(meta.read_text().replace('"format": 1', '"format": 7', 1))
    with pytest.raises(GanMaskError, match="format 7, expected 1"):
        PreparedSet(copy)


def test_half_a_million_faces_open_in_little_memory(finished: Path, tmp_path: Path) -> None:
    """The index is a sparse file here; what counts is that opening keeps neither it nor its pages."""
    faces = 500_000
    shutil.copytree(finished, tmp_path / "large")
    index = np.lib.format.open_memmap(tmp_path / "large/index.npy", "w+", INDEX, (faces,))
    index["split"][::10] = 1
    del index
    meta = (tmp_path / "large/meta.json").read_text().replace('"faces": 9,', f'"faces": {faces},', 1)
    old, new = ((folder / "index.npy").stat().st_size for folder in (finished, tmp_path / "large"))
    (tmp_path / "large/meta.json").write_text(meta.replace(f'"index.npy": {old}', f'"index.npy": {new}'))
    before = resident()
    assert len(PreparedSet(tmp_path / "large", "val")) == faces // 10
    train = PreparedSet(tmp_path / "large", "train")
    assert resident() - before < 60e6
    assert len(train) == faces * 9 // 10 and len(train.identities) == len(train)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_synthetic_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for person in (1, 2):
            archive.writestr(f"synthfaces/id_{person:04d}/view_1.webp", embedded_photo(f"id_{person:04d}/view_1"))
    monkeypatch.setattr(module, "EMBEDDED", tmp_path / "two.zip")
    assert prepare(PrepareConfig(src="synthetic", dst=str(tmp_path / "set"), size=64))["people"] == 2
