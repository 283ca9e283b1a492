"""Photos of a data set in tar files and at an address: the same set as from the folder that they were in."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import embedded_photo, status

from gan_mask.data import folder_or_zip
from gan_mask.data import prepare as module
from gan_mask.data.folder_or_zip import Source
from gan_mask.data.prepare import PrepareConfig, main, prepare
from gan_mask.errors import GanMaskError

NAMES = [f"Zoë {person}/{view}.webp" for person in (1, 2, 3) for view in (1, 2)]


def photo(name: str) -> bytes:
    return embedded_photo(f"id_{int(name[4]):04d}/view_{name[6]}")


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people, two photos each, and something that is no photo."""
    folder = tmp_path_factory.mktemp("source") / "faces"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo(name))
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dst = tmp_path_factory.mktemp("finished") / "set"
    prepare(PrepareConfig(src=str(folder), dst=str(dst), size=64))
    return dst


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_tar_file_gives_the_set_of_its_folder(folder: Path, finished: Path, tmp_path: Path) -> None:
    path = tar(tmp_path / "faces.tar", {f"./{name}": photo(name) for name in NAMES} | {"notes.txt": b"not a photo"})
    prepare(PrepareConfig(src=str(path), dst=str(tmp_path / "set"), size=64, workers=2))
    for name in ("crops.bin", "index.npy", "strings.bin", "skipped.csv"):
        assert (tmp_path / "set" / name).read_bytes() == (finished / name).read_bytes(), name


def test_in_a_folder_of_tar_files_people_are_as_in_the_files(tmp_path: Path) -> None:
    """As WebDataset has them: a person's photos in several files, and data beside them."""
    for number in (0, 1):
        tar(tmp_path / f"{number}.tar", {n: photo(n) for n in NAMES[number::2]} | {"Zoë 1/1.json": b"{}"})
    source = Source(tmp_path)
    photos = source.photos()
    assert [(p.path, p.person) for p in photos[:2]] == [
        ("0.tar/Zoë 1/1.webp", "Zoë 1"),
        ("0.tar/Zoë 2/1.webp", "Zoë 2"),
    ]
    assert not folder_or_zip.doubts(photos)
    assert len(photos) == 6 and {p.person for p in photos} == {"Zoë 1", "Zoë 2", "Zoë 3"}
    assert all(source.content(p) == photo(p.path.partition("/")[2]) for p in photos)
    (tmp_path / "1.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(GanMaskError, match=r"1\.tar: not an intact, uncompressed tar file"):
        Source(tmp_path).photos()


def test_a_tar_file_leads_nowhere_else(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "evil.tar", {"../out.webp": b"x", "/etc/in.webp": b"x", "a/.hidden.webp": b"x", "a/1.webp": b"x"}
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("a/link.webp")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [p.path for p in Source(path).photos()] == ["a/1.webp"]


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """The folder in an S3 bucket of a server on this machine."""
    pytest.importorskip("s3fs", reason="needs the extra [ray]")
    server = pytest.importorskip("moto.server", reason="needs moto and flask, of the extra [dev]")
    import s3fs

    started = server.ThreadedMotoServer(port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        files.put(str(folder), "bucket/faces", recursive=True)
        yield "s3://bucket/faces"
        s3fs.S3FileSystem.clear_instance_cache()
    started.stop()


def test_an_address_gives_the_set_of_its_folder(bucket: str, finished: Path, tmp_path: Path) -> None:
    prepare(PrepareConfig(src=bucket, dst=str(tmp_path / "set"), size=64))
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()
    }


def test_a_wrong_address_is_told(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"s3://bucket/other": "no such folder", "s3://nowhere/faces": "", "abc://bucket": "abc"}
    for address, message in expected.items():
        assert status(main, [address, str(tmp_path / "set"), "--workers", "1"]) == 2
        error = capsys.readouterr().err
        assert f"error: {address}" in error and message in error and "Traceback" not in error
    photos = Source(bucket).photos()
    assert os.environ["AWS_ENDPOINT_URL"] and len(photos) == 6
    with pytest.raises(folder_or_zip.UnreadableImage, match="no such file"):
        gone = photos[0]
        assert gone.place
        Source(bucket).content(type(gone)("x.webp", "x", type(gone.place)("bucket/faces/x.webp", 0, 9, "x.webp")))
