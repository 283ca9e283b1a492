"""No code from data, no unchecked download, no connection with photos, and marks that can be read again."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, embedded_photo
from test_package import sources
from test_training import TINY, run

from gan_mask import sampling, weights
from gan_mask.data import PreparedSet, prepare
from gan_mask.errors import GanMaskError
from gan_mask.generator import load_generator
from gan_mask.pretrained import classifier, dlib_resnet, facenet, perceptual
from gan_mask.sampling import photo_writer, provenance

# ------------------------------------------------------------------------------------------- no code from data

FORBIDDEN = {
    "pickle": "any", "dill": "any", "joblib": "any", "shelve": "any", "marshal": "any",
    "eval": "call", "exec": "call", "compile": "call", "__import__": "call",
    "yaml.load": "call", "yaml.unsafe_load": "call", "yaml.full_load": "call", "torch.hub.load": "call",
    "torch.hub.load_state_dict_from_url": "call", "os.system": "call", "zipfile.extractall": "call",
}  # fmt: skip
NEEDS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_no_source_can_run_code_from_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {n.split(".")[0] for n in names} & {k for k, v in FORBIDDEN.items() if v == "any"}
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            assert name not in FORBIDDEN and not name.endswith((".extractall", ".extract")), f"{name}, {node.lineno}"
            assert not any(k.arg == "shell" and getattr(k.value, "value", True) for k in node.keywords), node.lineno
            if name in NEEDS:
                keyword, value = NEEDS[name]
                given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert given.get(keyword) is value, f"{name} without {keyword}={value}, line {node.lineno}"


class Evil:
    """Unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_a_malicious_pickle_is_never_run(fakes, prepared, tmp_path, monkeypatch, capsys):
    """As a checkpoint, a training state, dlib's file, FaceNet's, AlexNet's, an index, a part, embeddings, a config."""
    made = tmp_path / "owned"
    evil = pickle.dumps(Evil(made))
    buffer = io.BytesIO()
    torch.save({"weight": Evil(made)}, buffer)
    evil_torch = buffer.getvalue()
    array = io.BytesIO()
    np.save(array, np.array([Evil(made)], dtype=object), allow_pickle=True)
    pickle.loads(evil).close()
    assert made.exists()  # the bait works
    made.unlink()

    monkeypatch.setattr(weights, "search_path", lambda: [tmp_path / "weights"])
    monkeypatch.setitem(weights.KNOWN, "20180408-102900-casia-webface.pt", (None, "nowhere"))
    monkeypatch.setitem(weights.KNOWN, "alexnet-owt-7be5be79.pth", (None, "nowhere"))
    (tmp_path / "weights").mkdir()
    for content in (evil, evil_torch):
        for name in ("20180408-102900-casia-webface.pt", "alexnet-owt-7be5be79.pth", "net.dat", "net.safetensors"):
            (tmp_path / "weights" / name).write_bytes(content)
        shutil.copytree(REPOSITORY / "checkpoints/synthfaces", tmp_path / "checkpoint", dirs_exist_ok=True)
        (tmp_path / "checkpoint/model.safetensors").write_bytes(content)
        for load in (
            lambda: facenet.load("casia-webface"),
            lambda: perceptual.load(),
            lambda: dlib_resnet.load(tmp_path / "weights/net.dat"),
            lambda: classifier.load(tmp_path / "weights/net.safetensors"),
            lambda: load_generator(tmp_path / "checkpoint"),
        ):
            with pytest.raises(GanMaskError):
                load()
    shutil.copytree(prepared, tmp_path / "set")
    (tmp_path / "set/index.npy").write_bytes(array.getvalue())
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    meta["bytes"]["index.npy"] = len(array.getvalue())
    (tmp_path / "set/meta.json").write_text(json.dumps(meta))
    with pytest.raises(GanMaskError, match="index.npy|damaged"):
        PreparedSet(tmp_path / "set")
    with pytest.raises(GanMaskError, match="damaged"):
        (tmp_path / "0.npz").write_bytes(array.getvalue())
        list(prepare._load([tmp_path / "0.npz"]))
    run(prepared, tmp_path / "run", "--steps", "2")
    next((tmp_path / "run").glob("clean-*.npy")).write_bytes(array.getvalue())
    run(prepared, tmp_path / "run", "--steps", "2")
    (tmp_path / "run/checkpoints/step-0000002/state.safetensors").write_bytes(evil_torch)
    with pytest.raises(SystemExit):
        run(prepared, tmp_path / "run", "--steps", "4")
    assert not made.exists()


# ------------------------------------------------------------------------------------------- downloads

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """/good serves ranges, /whole does not, /short breaks off, /evil serves something else, /away redirects."""

    ranges: list[str] = []

    def do_GET(self) -> None:
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        Server.ranges.append(self.headers["Range"])
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/file")
            return self.end_headers()
        start = 0 if self.path == "/whole" else start
        body = (CONTENT if self.path != "/evil" else CONTENT[::-1])[start:]
        self.send_response(416 if start and not body else 200 if self.path == "/whole" else 206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/short" else body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.ranges.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_download_resumes_where_it_broke_off(address: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with pytest.raises(OSError, match="ended after"):
        weights.download(f"{address}/short", path, SHA256)
    assert not path.exists()
    weights.download(f"{address}/good", path, SHA256)
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["file"]
    assert Server.ranges == ["bytes=0-", f"bytes={len(CONTENT) // 2}-"]
    for name, part in (("all", CONTENT), ("over", CONTENT[:1000])):
        (tmp_path / f"{name}.part").write_bytes(part)
        weights.download(f"{address}/{'good' if name == 'all' else 'whole'}", tmp_path / name, SHA256)
        assert (tmp_path / name).read_bytes() == CONTENT


def test_what_is_not_the_file_is_not_kept(address: str, tmp_path: Path) -> None:
    with pytest.raises(GanMaskError, match="SHA-256 of what was downloaded differs"):
        weights.download(f"{address}/evil", tmp_path / "file", SHA256)
    assert not list(tmp_path.iterdir())


def test_only_https_even_when_redirected(address: str, tmp_path: Path) -> None:
    for url in ("http://example.invalid/file", "ftp://example.invalid/file", "file:///etc/passwd", f"{address}/away"):
        with pytest.raises(OSError, match="refused, it is not https"):
            weights.download(url, tmp_path / "file", SHA256)


def test_a_known_file_is_downloaded_once_and_not_when_offline(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "https://example.invalid/file"
    monkeypatch.setitem(weights.KNOWN, "file", (SHA256, source))
    monkeypatch.setattr(weights, "cache", lambda: tmp_path / "cache")
    monkeypatch.setenv(weights.OFFLINE, "1")
    with pytest.raises(GanMaskError) as error:
        weights.find("file")
    for part in (f"curl -L --create-dirs -o {tmp_path / 'cache' / 'file'} {source}", SHA256, weights.OFFLINE):
        assert part in str(error.value)
    monkeypatch.delenv(weights.OFFLINE)
    monkeypatch.setitem(weights.KNOWN, "file", (SHA256, source))
    original = weights.download
    monkeypatch.setattr(weights, "download", lambda url, *rest: original(f"{address}/good", *rest))
    assert weights.find("file") == weights.find("file") == tmp_path / "cache" / "file"
    assert len(Server.ranges) == 1


# ------------------------------------------------------------------------------------------- privacy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a connection was opened: {args}")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)


def test_no_photo_leaves_the_machine(no_network, fakes, prepared, tmp_path, capfd):
    """prepare, sample and train open no connection; training logs no name of a person or a photo."""
    photos = tmp_path / "photos" / "Anna Secret"
    photos.mkdir(parents=True)
    (photos / "1.webp").write_bytes(embedded_photo("id_0004/view_1"))
    prepare.prepare(prepare.PrepareConfig(src=str(tmp_path / "photos"), dst=str(tmp_path / "set"), size=64))
    options = ["--method", "dm", "--embedders", "fake", "--detectors", "fake"]
    sampling.main(["--faces", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), *options])
    capfd.readouterr()
    run(prepared, tmp_path / "run", "--steps", "2")
    printed = "".join(capfd.readouterr()).encode()
    written = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert b"id_00" not in written + printed and b"view_" not in written + printed


# ------------------------------------------------------------------------------------------- provenance


def test_the_mark_of_a_masked_photo_is_read_again(fakes, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.webp").write_bytes(embedded_photo("id_0004/view_1"))
    options = ["--embedders", "fake", "--detectors", "fake", "--template", "face-002"]
    sampling.main(["--faces", str(photos), "--out", str(tmp_path / "out"), *options])
    capsys.readouterr()
    masked, original = str(tmp_path / "out/a.webp"), str(photos / "a.webp")
    assert provenance.main([masked]) == 0
    assert "synthetic adversarial mask" in capsys.readouterr().out
    assert provenance.main(["--json", masked, original]) == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["tagged"] and first["method"] == "generator" and first["template"] == "face-002"
    assert first["checkpoint"] == "faces160" and first["software"] == photo_writer.SOFTWARE
    assert second == {"file": original, "tagged": False, "tag": None}
    (tmp_path / "text.jpg").write_text("no photo")
    assert provenance.main([masked, str(tmp_path / "text.jpg"), str(tmp_path / "absent.png")]) == 2
    captured = capsys.readouterr()
    assert "text.jpg: not an image" in captured.err and "absent.png: no such file" in captured.err
    assert masked in captured.out


def test_a_mark_is_only_ours(tmp_path: Path) -> None:
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a holiday; method=none"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", exif=exif)
    assert provenance.main([str(tmp_path / "a.png")]) == 1


def test_names_that_are_no_unicode_can_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    photo, absent = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/caf\xe9.png", b"/th\xe9.png"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", photo)
    assert provenance.main([photo, absent]) == 2
    captured = capsys.readouterr()
    assert "caf\\udce9.png: no mark of gan_mask" in captured.out and "th\\udce9.png: no such file" in captured.err


def test_archives_are_only_read() -> None:
    """Nothing is unpacked to disk, so that no entry can be written anywhere."""
    assert not any(hasattr(module, "extract") for module in (prepare, zipfile.Path))
    assert os.sep not in prepare.part_path(Path(), 3).name
    assert TINY
