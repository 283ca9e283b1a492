"""What is fuzzed: bytes in, nothing or GanMaskError out. fuzz.py drives these; corpus/ keeps what was found."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402

from gan_mask import cli  # noqa: E402
from gan_mask.data import FORMAT, INDEX, PreparedSet  # noqa: E402
from gan_mask.errors import GanMaskError  # noqa: E402
from gan_mask.networks import generator_config  # noqa: E402
from gan_mask.pretrained import dlib_resnet  # noqa: E402
from gan_mask.training import options as training  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
INDEX_SEPARATOR = b"\n--index--\n"


def dat(data: bytes) -> None:
    """dlib's .dat file: the reader of its layers, and of the whole file."""
    reader = dlib_resnet._Reader(data)
    with contextlib.suppress(ValueError):
        for _, parameters, shape in dlib_resnet._layers(reader):
            assert len(parameters) * 4 <= len(data) and len(shape) in (0, 4)
    (FOLDER / "net.dat").write_bytes(data)
    with contextlib.suppress(GanMaskError):
        dlib_resnet.read_network(FOLDER / "net.dat")


def index(data: bytes) -> None:
    """A prepared set from somebody else: meta.json and index.npy are fuzzed."""
    meta, _, records = data.partition(INDEX_SEPARATOR)
    (FOLDER / "meta.json").write_bytes(meta)
    (FOLDER / "index.npy").write_bytes(records)
    (FOLDER / "crops.bin").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (FOLDER / "strings.bin").write_bytes(b"Anna Bob")
    with contextlib.suppress(GanMaskError, UnicodeDecodeError):
        photos = PreparedSet(FOLDER)
        for i in range(min(len(photos), 3)):
            photos.person(i), photos.source(i), photos.score(i)
            with contextlib.suppress(GanMaskError):
                photos.landmarks(i)
            photos.faces(i)


def options(data: bytes) -> None:
    """--config of train.py, and a checkpoint's config.json."""
    (FOLDER / "config.yaml").write_bytes(data)
    with contextlib.suppress(GanMaskError):
        values = cli.read_yaml(FOLDER / "config.yaml")
        with contextlib.suppress(GanMaskError):
            generator_config(values)
        c = cli.parse(training.TrainConfig, ["--data", "X", "--out", "Y", "--config", str(FOLDER / "config.yaml")], "")
        cli.to_yaml(c)
        training.check(c)


TARGETS = {"dat": dat, "index": index, "options": options}


def seeds() -> dict[str, list[bytes]]:
    """Small valid inputs to start from."""
    record = np.zeros(2, INDEX)
    record["crop_length"], record["person_length"], record["source_length"] = 14, 4, 8
    path = FOLDER / "seed.npy"
    np.save(path, record)
    sizes = {"index.npy": path.stat().st_size, "crops.bin": 15, "strings.bin": 8}
    meta = {"format": FORMAT, "size": 64, "margin": 0.2, "faces": 2, "bytes": sizes}
    c = training.TrainConfig(data="data", out="run")
    tensor = bytes([1, 2, 1, 1, 1, 1, 1, 1, 1, 1]) + b"\0\0\x80\x3f"
    empty = bytes([1, 2, 0, 0, 0, 0])
    relu = b"\1\5relu_" + b"\0\0\0" + empty * 3
    affine = b"\1\7affine_" + tensor + bytes([1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]) + b"\0\0\0" + empty * 3
    con = b"\1\5con_4" + tensor + b"\1\1" * 7 + bytes([1, 1]) + b"\1\1" * 4 + bytes([1, 1]) + b"\0" * 4
    con += bytes([1, 1, 0]) * 4 + b"\0\0\0" + empty * 3 + b"\0"
    head = b"\1\1" + b"\1\x0dloss_metric_2" + bytes([1, 1, 0]) * 2 + b"\0" * 130 + b"\1\x15input_rgb_image_sized"
    return {
        "dat": [relu, affine, relu + con + affine, head, relu * 3],
        "index": [json.dumps(meta).encode() + INDEX_SEPARATOR + path.read_bytes()],
        "options": [
            cli.to_yaml(c).encode(),
            b"widths: [8, 16]\nheads: both\n",
            b"steps: 1\nembedders: [dlib, fake]\n",
        ],
    }
