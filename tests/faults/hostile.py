"""Malformed, misleading and merely odd images: python tests/faults/hostile.py OUT [--count 320] [--seed 0]

The files depend on the seed alone. Their names begin with the kind of damage.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SYNTHETIC = Path(__file__).parents[2] / "gan_mask/assets/synthfaces.zip"
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp", "PPM": "ppm"}
File = tuple[str, bytes]  # suffix, content


def encoded(image: Image.Image, kind: str, **options: Any) -> File:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return SUFFIX[kind], buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, *extra: bytes) -> File:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return "png", b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(
        b"IEND", b""
    )


class Kinds:
    """One method per kind of file; each makes another one every time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        with zipfile.ZipFile(SYNTHETIC) as archive:
            names = sorted(n for n in archive.namelist() if n.endswith("view_1.webp"))[:12]
            self.faces = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]

    def face(self) -> Image.Image:
        return self.random.choice(self.faces).copy()  # Pillow leaves traces of an encoder on an image

    def good(self) -> File:
        kind = self.random.choice(list(SUFFIX))
        return encoded(self.face(), kind)

    def truncated(self) -> File:
        suffix, data = self.good()
        return suffix, data[: self.random.randrange(1, len(data))]

    def bits_flipped(self) -> File:
        suffix, data = self.good()
        damaged = bytearray(data)
        for _ in range(self.random.randint(1, 40)):
            damaged[self.random.randrange(len(damaged))] ^= 1 << self.random.randrange(8)
        return suffix, bytes(damaged)

    def header_damaged(self) -> File:
        suffix, data = self.good()
        damaged = bytearray(data)
        for _ in range(8):
            damaged[self.random.randrange(min(64, len(damaged)))] = self.random.randrange(256)
        return suffix, bytes(damaged)

    def wrong_magic(self) -> File:
        suffix, data = self.good()
        return suffix, self.random.choice(
            [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF", b"GIF89a", b"PK\3\4"]
        ) + data[8:]

    def wrong_suffix(self) -> File:
        return self.random.choice(list(SUFFIX.values())), self.good()[1]

    def noise(self) -> File:
        return self.random.choice(list(SUFFIX.values())), self.random.randbytes(
            self.random.choice([0, 1, 7, 100, 5000])
        )

    def appended(self) -> File:
        suffix, data = self.good()
        return suffix, data + self.random.randbytes(5000)

    def bomb(self) -> File:
        """Much more in it, or claimed, than the file's size tells."""
        side = self.random.choice([12_000, 30_000, 65_000, 2**31 - 1])
        gif = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        make: Callable[[], File] = self.random.choice([
            lambda: png(side, side, b"\0" * 10_000),
            lambda: encoded(Image.new("1", (20_000, 20_000)), "PNG"),
            lambda: png(4, 4, b"\0" * 52, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 80_000_000))),
            lambda: ("gif", b"GIF89a" + gif + encoded(self.face(), "GIF")[1][13:]),
            lambda: encoded(Image.new("L", (9_999, 9_999)), "TIFF", compression="tiff_deflate"),
        ])  # fmt: skip
        return make()

    def absurd_exif(self) -> File:
        tiff = b"II*\0\x08\0\0\0\x01\0"  # one entry follows
        body = self.random.choice([
            b"II*\0\xff\xff\xff\x7f" + b"\xff" * 50,
            b"MM\0*\0\0\0\x08\xff\xff" + self.random.randbytes(400),
            tiff + struct.pack("<HHII", 0x8769, 4, 1, 8) + b"\x08\0\0\0",  # points to itself
            tiff + struct.pack("<HHII", 0x0112, 3, 1, self.random.choice([0, 9, 60000])) + b"\0" * 4,
            tiff + struct.pack("<HHII", 0x010E, 2, 2**32 - 1, 8) + b"\0" * 4,
            self.random.randbytes(3000),
        ])  # fmt: skip
        return encoded(self.face(), self.random.choice(["JPEG", "PNG", "WEBP"]), exif=b"Exif\0\0" + body)

    def animated(self) -> File:
        kind = self.random.choice(["GIF", "WEBP", "PNG", "TIFF"])
        suffix, data = encoded(self.face(), kind, save_all=True, append_images=[self.face(), self.face()])
        return suffix, data[: len(data) - self.random.choice([0, 0, 1000])]

    def sizes(self) -> File:
        size = self.random.choice([(1, 1), (1, 10_000), (10_000, 1), (2, 2), (65_000, 1), (1, 65_000), (3000, 20)])
        kinds = ["JPEG", "PNG", "BMP", "TIFF", "PPM"] if max(size) > 16_383 else list(SUFFIX)
        return encoded(Image.new("RGB", size, (200, 150, 120)), self.random.choice(kinds))

    def deep(self) -> File:
        """16 bits, 32 bits, floating point, 1 bit."""
        grey = np.asarray(self.face().convert("L"))
        image, kind = self.random.choice([
            (Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
            (Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
            (Image.fromarray(grey.astype(np.int32) * 65_793), "TIFF"),
            (Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
            (Image.fromarray(np.where(grey > 128, np.nan, np.inf).astype(np.float32)), "TIFF"),
            (Image.fromarray(grey > 128), "PNG"),
        ])  # fmt: skip
        return encoded(image, kind)

    def colours(self) -> File:
        mode, kind = self.random.choice([
            ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF"), ("L", "JPEG"), ("P", "PNG"),
        ])  # fmt: skip
        return encoded(self.face().convert(mode), kind)

    def alpha(self) -> File:
        image = self.face().convert(self.random.choice(["RGBA", "LA"]))
        image.putalpha(self.random.choice([0, 128, 255]))
        return encoded(image, self.random.choice(["PNG", "WEBP", "TIFF"]))

    def huge_icc(self) -> File:
        profile = self.random.choice([
            self.random.randbytes(3_000_000),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"\0" * 2_000_000,
            b"\0" * 16 + b"RGB " + self.random.randbytes(500_000),
            b"x",
        ])  # fmt: skip
        return encoded(self.face(), self.random.choice(["JPEG", "PNG", "WEBP", "TIFF"]), icc_profile=profile)


KINDS: tuple[Callable[[Kinds], File], ...] = (
    Kinds.good, Kinds.truncated, Kinds.bits_flipped, Kinds.header_damaged, Kinds.wrong_magic, Kinds.wrong_suffix,
    Kinds.noise, Kinds.appended, Kinds.bomb, Kinds.absurd_exif, Kinds.animated, Kinds.sizes, Kinds.deep, Kinds.colours,
    Kinds.alpha, Kinds.huge_icc,
)  # fmt: skip


def images(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(file name, content), the kinds in turn."""
    kinds = Kinds(seed)
    for number, kind in enumerate(islice(cycle(KINDS), count)):
        suffix, data = kind(kinds)
        yield f"{kind.__name__}-{number:04d}.{suffix}", data


def write(folder: Path, count: int, seed: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, data in images(count, seed):
        (folder / name).write_bytes(data)
        names.append(name)
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{len(write(options.out, options.count, options.seed))} files in {options.out}")
