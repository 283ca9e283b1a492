"""Malformed images and archives through the real commands, under a memory limit. GAN_MASK_FAULTS=320 tries more."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import hostile
import pytest
from conftest import REPOSITORY, embedded_photo

from gan_mask.data.prepare import Source
from gan_mask.errors import GanMaskError
from gan_mask.faces import UnreadableImage, read_image
from gan_mask.sampling import photo_writer

COUNT = int(os.environ.get("GAN_MASK_FAULTS", "32"))
LIMIT = 3_000_000_000  # bytes: the commands' data segment, and what they may ever have resident
SECONDS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write(folder, COUNT)
    return folder


def limited(*command: str) -> tuple[int, str, int]:
    """Exit code, standard error and peak memory in bytes of a Python command."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: (resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
                            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))),
    )  # fmt: skip
    assert process.stderr
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), complaint, usage.ru_maxrss * 1024


KEPT = ("several faces", "doubtful landmarks")  # reasons that are told of faces which stay in the set


def report(name: str, seconds: object) -> None:
    """For docs/reliability.md."""
    if out := os.environ.get("GAN_MASK_FAULTS_REPORT"):
        with open(out, "a") as f:
            f.write(json.dumps({name: seconds}) + "\n")


def test_prepare_reports_every_hostile_image(folder: Path, tmp_path: Path) -> None:
    options = ["--size", "96", "--workers", "1", "--identity-regex", "(.+)"]
    code, complaint, memory = limited("data_prep/prepare.py", str(folder), str(tmp_path / "set"), *options)
    assert code == 0 and "Traceback" not in complaint, complaint[-3000:]
    assert memory < LIMIT
    summary = json.loads((tmp_path / "set" / "summary.json").read_text())
    with open(tmp_path / "set" / "skipped.csv", encoding="utf-8") as f:
        skipped = {row["path"]: row["reason"] for row in csv.DictReader(f) if row["reason"] not in KEPT}
    assert summary["photos"] == COUNT == summary["faces"] + len(skipped)
    assert not [name for name in skipped if name.startswith(("good", "wrong_suffix", "appended"))]
    report("prepare", {**summary, "peak MB": memory / 1e6})


def test_sample_reports_every_hostile_image(folder: Path, tmp_path: Path) -> None:
    options = ["--method", "dm", "--embedders", "--detectors"]
    code, complaint, memory = limited("sample.py", "--faces", str(folder), "--out", str(tmp_path / "out"), *options)
    assert code == 0 and "Traceback" not in complaint, complaint[-3000:]
    assert memory < LIMIT
    with open(tmp_path / "out" / "results.csv", encoding="utf-8") as f:
        rows = {row["photo"]: row for row in csv.DictReader(f)}
    assert len(rows) == COUNT
    for row in rows.values():
        assert row["status"] in ("ok", "no face", "unreadable")
        assert (row["status"] == "unreadable") <= bool(row["note"])
        if row["status"] == "ok":
            assert photo_writer.read_provenance(tmp_path / "out" / row["written"])
    assert all(row["status"] == "ok" for name, row in rows.items() if name.startswith(("good", "wrong_suffix")))
    counts = {status: sum(r["status"] == status for r in rows.values()) for status in ("ok", "no face", "unreadable")}
    report("sample", {**counts, "peak MB": memory / 1e6})


def test_the_corpus_is_the_same_everywhere() -> None:
    first, again = (list(hostile.images(24, 5)) for _ in range(2))
    assert first == again and len({name for name, _ in first}) == 24


def test_metadata_of_hostile_images_never_raises_anything_else(folder: Path) -> None:
    for path in folder.iterdir():
        for read in (read_image, photo_writer.read_original, photo_writer.read_provenance):
            try:
                read(path)
            except UnreadableImage as error:
                assert str(path) in str(error)


# ------------------------------------------------------------------------------------------- archives


def archive(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (("a/1.webp", embedded_photo("id_0001/view_1")), *entries):
            file.writestr(name, data)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name, why",
    [
        ("../../evil.jpg", "points out"), ("a/../../evil.jpg", "points out"), ("/etc/evil.jpg", "points out"),
        ("..\\evil.jpg", "points out"), ("C:\\evil.jpg", "points out"), ("a/../notes.txt", "points out"),
        (link("a/2.jpg"), "symbolic link"), (link("a"), "symbolic link"),
    ],
)  # fmt: skip
def test_zip_entries_that_escape_are_refused(name: str | zipfile.ZipInfo, why: str, tmp_path: Path) -> None:
    with pytest.raises(GanMaskError, match=f"x.zip: refused, .*{why}"):
        Source(archive(tmp_path / "x.zip", (name, b"/etc/passwd"))).photos(r"(.+)")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_and_bombs_in_a_zip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GanMaskError, match="a/1.webp' is in it twice"):
        Source(archive(tmp_path / "twice.zip", ("a/1.webp", b"another"))).photos("(.+)")
    with pytest.raises(GanMaskError, match="'a/2.bmp' unpacks to 90000000 bytes .* bomb"):
        Source(archive(tmp_path / "bomb.zip", ("a/2.bmp", b"\0" * 90_000_000))).photos("(.+)")
    nested = archive(tmp_path / "nested.zip", ("b/inner.zip", archive(tmp_path / "inner.zip").read_bytes()))
    assert [photo.path for photo in Source(nested).photos("(.+)")] == ["a/1.webp"]  # is no photo


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """Many names for the same bytes (Fifield 2019): the directory points each at the first entry."""
    path = archive(tmp_path / "o.zip", *((f"a/{i}.webp", embedded_photo("id_0001/view_1")) for i in range(2, 9)))
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        first, start = file.infolist()[0], file.start_dir
    size = first.compress_size + len(first.filename) + 30
    moved = bytearray(data[:size])
    directory, place = bytearray(data[start:]), 0
    for _ in range(8):
        directory[place + 42 : place + 46] = b"\0" * 4  # every entry's offset
        place += 46 + len(first.filename)
    directory[-6:-2] = size.to_bytes(4, "little")
    path.write_bytes(bytes(moved + directory))
    with pytest.raises(GanMaskError, match="overlap|intact"):
        Source(path).photos("(.+)")


def test_a_lying_entry_is_unreadable(tmp_path: Path) -> None:
    """The directory says 10 bytes, the data are more; reading stops there and the checksum tells."""
    path = archive(tmp_path / "lie.zip", ("a/2.webp", embedded_photo("id_0002/view_1")))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as file:
        second, start = file.infolist()[1], file.start_dir
    place = data.index(b"PK\1\2", start + 4)
    data[place + 24 : place + 28] = (10).to_bytes(4, "little")
    assert second.file_size > 10
    path.write_bytes(bytes(data))
    source = Source(path)
    _, second_photo = source.photos("(.+)")
    with pytest.raises(UnreadableImage):
        source.read(second_photo)
