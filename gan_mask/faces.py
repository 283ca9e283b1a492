"""From a photo file to aligned face crops: decode, find faces, 68 landmarks, align.

Photos are uint8 RGB arrays [H,W,3]. Pixel-centre convention as in gan_mask.landmarks.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gan_mask import landmarks as lm
from gan_mask import weights
from gan_mask.errors import GanMaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Files of these names are photos. Some cannot be read here; they are reported rather than skipped.
RAW_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split())
IMAGE_SUFFIXES = RAW_SUFFIXES | frozenset(
    ".apng .avif .bmp .gif .heic .heif .hif .jfif .jp2 .jpe .jpeg .jpg .jxl .mpo .pgm .png .pnm .ppm .tif .tiff "
    ".webp".split()
)
HEIC_BRANDS = {b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevx"}
MAX_PIXELS = 100_000_000  # larger photos are refused before they are decoded
_BICUBIC = Image.Resampling.BICUBIC
MAX_BYTES = 1 << 30  # larger files are refused before they are read

_ORIENTATIONS = {  # the EXIF tag's value -> what makes the photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def forget_old_shapes() -> None:
    """Keep memory constant while pictures of many sizes go through the networks. Call it before the first one.

    On CPUs torch keeps the kernels that oneDNN made for each shape of a layer's input, half a megabyte each and
    1,024 of them by default. Face detection has new shapes with every photo.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class UnreadableImage(GanMaskError):
    """A photo that cannot be decoded; `reason` is the message without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(self.args)


# ------------------------------------------------------------------------------------------- decoding


def read_image(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Decode a photo to uint8 RGB [H,W,3], upright by its EXIF orientation.

    source: a path, or the file's bytes; then `name` stands for it in errors.
    Transparency is laid over white, 16-bit values are scaled to 8, and only an animation's first frame is read.
    Raises UnreadableImage, whatever is wrong with the file.
    """
    with opened(source, name) as image:
        return decode(image)


@contextmanager
def opened(source: str | Path | bytes, name: str | None = None) -> Iterator[Image.Image]:
    """An image file, not decoded yet. Every error inside the `with` block becomes UnreadableImage."""
    name = name or ("image" if isinstance(source, bytes) else str(source))
    content = source if isinstance(source, bytes) else read_file(Path(source), name)
    if not content:
        raise UnreadableImage(name, "the file is empty")
    if Path(name).suffix.lower() in RAW_SUFFIXES:  # Pillow would take the small preview in it for the photo
        raise UnreadableImage(name, "a camera's raw file; develop it to JPEG or TIFF first")
    if content[4:8] == b"ftyp" and HEIC_BRANDS & {content[i : i + 4] for i in range(8, 64, 4)}:
        _learn_heic(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; its size warning is our error below
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImage(name, _too_large(f"{image.width} x {image.height} pixels"))
                yield image
        except UnreadableImage:
            raise
        except UnidentifiedImageError:
            raise UnreadableImage(name, "not an image in a known format") from None
        except Image.DecompressionBombError:
            raise UnreadableImage(name, _too_large("far too many pixels")) from None
        except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
            raise UnreadableImage(name, f"damaged or unsupported image ({error})") from error


def _learn_heic(name: str) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableImage(name, "a HEIC photo; to read these: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()


def read_file(path: Path, name: str) -> bytes:
    """A photo's file, as it is. Raises UnreadableImage, by this name."""
    try:
        if path.exists() and not path.is_file():  # a folder, or a pipe that would block
            raise UnreadableImage(name, "not a file")
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableImage(name, f"larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage(name, "no such file") from None
    except OSError as error:
        raise UnreadableImage(name, f"cannot be read ({error.strerror})") from error


def _too_large(found: str) -> str:
    return f"{found}, more than the limit of {MAX_PIXELS // 1_000_000} megapixels; scale it down first"


def decode(image: Image.Image) -> np.ndarray:
    """A Pillow image as `read_image` gives it. Raises nearly any type if its file is damaged."""
    image.load()  # turns TIFF and HEIC upright, and then takes the tag away; PNG may have its EXIF after the pixels
    orientation = image.getexif().get(0x0112)
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8_bit(np.asarray(image), image.mode)
        image = Image.fromarray(grey)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if orientation in _ORIENTATIONS:
        image = image.transpose(_ORIENTATIONS[orientation])
    return np.array(image)


def _to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """Integer modes hold 16-bit values; float images are in [0,1], or in [0,255] when they exceed 1."""
    if mode == "F":
        values = np.nan_to_num(values)
        values = values * 255 if values.max() <= 1 else values
    else:
        values = values.astype(np.float32) / 257
    return (values + 0.5).clip(0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------- finding


@dataclass
class Face:
    """One face of a photo, all in the photo's pixels."""

    box: np.ndarray  # float32 (4,): x0, y0, x1, y1
    score: float  # MTCNN's probability in [0, 1]
    landmarks: np.ndarray  # float32 (68, 2)
    disagreement: float = 0.0  # of the landmarks with MTCNN's own five points: mean distance in eye distances

    @property
    def doubt(self) -> str:
        """A note on doubtful landmarks, else empty: about 3 % of the faces in LFW have one, mostly half outside."""
        if self.disagreement <= DOUBTFUL:
            return ""
        return f"landmarks and MTCNN's points are {self.disagreement:.2f} eye distances apart"

    @property
    def area(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


class FaceFinder:
    """MTCNN (Zhang et al. 2016) for the faces, dlib's shape predictor (Kazemi and Sullivan 2014) for 68 landmarks.

    On LFW the landmarks are within 0.7 % of the eye distance (median; 95th percentile 2 %) of those from dlib's boxes.
    Faces that lean by more than UPRIGHT degrees are turned upright first.

    device: where MTCNN runs; landmarks are always made on the CPU.
    min_score: faces below this MTCNN probability are left out.
    min_size: smallest face looked for, in pixels of the photo. Photos are searched at LONGEST pixels
        at most, so in larger ones faces below 1/64 of the longest side are missed. None: SHARE of the longest side.
    no_larger: search photos no larger than these faces need, which takes a third of the time at half the size.
    """

    LONGEST = 1280
    SMALLEST = 20  # MTCNN's own limit in pixels of the searched copy
    SHARE = 1 / 32

    def __init__(
        self,
        device: str | torch.device = "cpu",
        min_score: float = 0.9,
        min_size: int | None = 20,
        no_larger: bool = False,
    ) -> None:
        try:
            import dlib

            from gan_mask.mtcnn import MTCNN
        except ImportError as error:
            raise GanMaskError(f"{error}: finding faces needs `pip install dlib-bin facenet-pytorch==2.5.3`") from error

        self.min_score, self.min_size, self.no_larger = min_score, min_size, no_larger
        self._mtcnn = MTCNN(torch.device(device))
        self._hog = dlib.get_frontal_face_detector().run
        self._predictor = dlib.shape_predictor(str(weights.find("shape_predictor_68_face_landmarks.dat")))

    def find(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces of each photo (uint8 [H,W,3]), largest first."""
        found: list[list[Face]] = []
        for start in range(0, len(images), TOGETHER):
            part = images[start : start + TOGETHER]
            scales = [self._scale(image) for image in part]
            copies = [_shrink(image, scale) for image, scale in zip(part, scales, strict=True)]
            smallest = [self._smallest(image, scale) for image, scale in zip(part, scales, strict=True)]
            for image, scale, rows in zip(part, scales, self._mtcnn(copies, smallest), strict=True):
                faces = [self._face(image, row, scale) for row in rows if row[4] >= self.min_score]
                found.append(sorted(faces, key=lambda face: -face.area))
        return found

    def find_again(self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> list[list[Face | None]]:
        """What is found at the places of known faces, in copies of their photos that differ there alone.

        Not the whole photo is searched, but a window around each of these faces, in which it is as large as in the
        copy that `find` searches, and KNOWN pixels at most. None where the boxes of known and found face overlap by
        less than SAME_PLACE.
        """
        known = [(image, face) for image, some in zip(images, faces, strict=True) for face in some]
        found: list[Face | None] = []
        for start in range(0, len(known), 16 * TOGETHER):
            found += self._in_windows(known[start : start + 16 * TOGETHER])
        rest = iter(found)
        return [[next(rest) for _ in some] for some in faces]

    def _in_windows(self, known: Sequence[tuple[np.ndarray, Face]]) -> list[Face | None]:
        """Of photos and known faces in them."""
        corners, zooms, windows, smallest = [], [], [], []
        for image, face in known:
            scale, half = min(self._scale(image), KNOWN / _side(face)), AROUND * _side(face) / 2
            centre = (face.box[:2] + face.box[2:] + 1) / 2
            left, top = np.floor(centre - half).astype(int).clip(0)
            right, bottom = np.ceil(centre + half).astype(int)
            part = image[top:bottom, left:right]
            height, width = (max(1, round(n * scale)) for n in part.shape[:2])
            windows.append(_resampled(part, width, height))
            corners.append(np.array([left, top]))
            zooms.append(np.array([width / part.shape[1], height / part.shape[0]]))
            smallest.append(SMALLER * _side(face) * scale)
        found: list[Face | None] = []
        searched = self._mtcnn(windows, smallest)
        for (image, face), corner, zoom, rows in zip(known, corners, zooms, searched, strict=True):
            rows = rows[rows[:, 4] >= self.min_score]
            for column in (0, 2, 5, 7, 9, 11, 13):  # x and y of each point, to pixels of the photo
                rows[:, column : column + 2] = (rows[:, column : column + 2] + 0.5) / zoom - 0.5 + corner
            place = at_place(face.box, rows[:, :4])
            found.append(None if place is None else self._face(image, rows[place], 1.0))
        return found

    def _scale(self, image: np.ndarray) -> float:
        """Of the copy that is searched."""
        longest = max(image.shape[:2])
        needed = self.SMALLEST / self._wanted(image) if self.no_larger else 1.0
        return min(1.0, self.LONGEST / longest, needed)

    def _wanted(self, image: np.ndarray) -> float:
        """The smallest face looked for, pixels of the photo."""
        share = max(self.SMALLEST, self.SHARE * max(image.shape[:2]))
        return share if self.min_size is None else self.min_size

    def _smallest(self, image: np.ndarray, scale: float) -> float:
        """The same in pixels of the copy."""
        return max(self.SMALLEST, self._wanted(image) * scale)

    def _face(self, photo: np.ndarray, row: np.ndarray, scale: float) -> Face:
        box = ((row[:4] + 0.5) / scale - 0.5).astype(np.float32)
        points = ((row[5:].reshape(5, 2) + 0.5) / scale - 0.5).astype(np.float32)
        roll = _roll(points)
        found = [] if abs(roll) <= UPRIGHT else self._rolled(photo, box, roll)
        found = found or [(self.landmarks(photo, box), points)]
        if (
            _disagreement(*found[0]) > DOUBTFUL
        ):  # its eyes may be off, as where it lies: then it is more of a face turned
            turns = (self._rolled(photo, box, roll + turn, float(row[4])) for turn in (90, -90, 180))
            found += [pair for turned in turns for pair in turned]
        landmarks, points = min(found, key=lambda pair: _disagreement(*pair))
        return Face(box, float(row[4]), landmarks, _disagreement(landmarks, points))

    def _rolled(
        self, photo: np.ndarray, box: np.ndarray, roll: float, above: float = 0.0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """68 landmarks and MTCNN's five points of a face in a box, if it leans by about `roll` degrees; else [].

        The face is turned upright, the only pose that the networks were made for, and re-detected, until it is.
        above: the score that it must then exceed.
        """
        centre = np.floor((box[:2] + box[2:]) / 2) + 0.5  # between pixels
        half = math.ceil(1.5 * math.sqrt(2 * max(1.0, float(np.prod(box[2:] - box[:2])))))
        for _ in range(TURNS):
            window = _upright(photo, centre, half, roll)
            row = self._central(window)
            if row is None:
                break
            points = row[5:].reshape(5, 2)
            if abs(_roll(points)) <= UPRIGHT:
                if row[4] <= above:
                    break
                return [
                    (
                        _from_window(self.landmarks(window, row[:4]), centre, half, roll),
                        _from_window(points, centre, half, roll),
                    )
                ]
            roll += _roll(points)
        return []

    def _central(self, window: np.ndarray) -> np.ndarray | None:
        """MTCNN's row of the face in the middle of a window, or None."""
        rows = self._mtcnn([window], [_WINDOW / 8])[0]
        near = [r for r in rows if np.abs((r[:2] + r[2:4]) / 2 - _WINDOW / 2).max() < _WINDOW / 8]
        return max(near, key=lambda row: float(row[4]), default=None)

    def landmarks(self, photo: np.ndarray, box: np.ndarray) -> np.ndarray:
        """float32 (68, 2) in the photo's pixels, for a face in an MTCNN box (x0, y0, x1, y1).

        The mean over a few jittered boxes, on a copy of the face at one fixed size.
        """
        # The face on a square patch, _MAPPED of it covered by a box like those of dlib's HOG detector, for which
        # the predictor was made: 0.9 times the size of MTCNN's, and lower (fitted on LFW).
        width, height = box[2] - box[0], box[3] - box[1]
        side = 0.9 * math.sqrt(max(1.0, width * height))
        centre = np.array([(box[0] + box[2] + 1) / 2, (box[1] + box[3] + 1) / 2 + 0.06 * height])
        corner, around = np.floor(centre - side / _MAPPED / 2).astype(int), math.ceil(side / _MAPPED)
        patch = _resampled(_cut(photo, *corner, *corner + around), _PATCH, _PATCH)
        scale = _PATCH / around
        x, y = (centre - corner) * scale - 0.5
        points = self._predict(patch, *self._dlib_box(patch, x, y, side * scale))
        return ((points + 0.5) / scale + corner - 0.5).astype(np.float32)

    def _dlib_box(self, patch: np.ndarray, x: float, y: float, side: float) -> tuple[float, float, float]:
        """Centre x, y and side of dlib's own box on the patch; where it finds none, of this one, fitted to MTCNN's.

        MTCNN's box may be far off where a face touches the photo's edge, and is less regular for turned heads.
        """
        squares = [(x, y, side)]
        for found in self._hog(_resampled(patch, _PATCH // 2, _PATCH // 2), 0, -0.5)[0]:
            squares.append((2 * found.center().x + 0.5, 2 * found.center().y + 0.5, 2.0 * found.width()))
        centres, halves = np.array(squares)[:, :2], np.array(squares)[:, 2:] / 2
        boxes = np.hstack([centres - halves, centres + halves])
        shares = overlaps(boxes[:1], boxes)[0]
        shares[0] = 0.3  # what one of dlib's must exceed
        return squares[int(shares.argmax())]

    def _predict(self, patch: np.ndarray, x: float, y: float, side: float) -> np.ndarray:
        """(68, 2) in patch pixels."""
        import dlib

        found = []
        for dx, dy, zoom in _JITTER:
            cx, cy, half = x + dx * side, y + dy * side, side * zoom / 2
            edges = [round(edge) for edge in (cx - half, cy - half, cx + half, cy + half)]
            found.append([(p.x, p.y) for p in self._predictor(patch, dlib.rectangle(*edges)).parts()])
        return np.array(found, np.float64).mean(0)


TOGETHER = 4  # photos searched at once, which bounds the memory
SAME_PLACE = 1 / 3  # least overlap (IoU) of the boxes of one face, found twice
AROUND = 3.0  # sides of a known face's box: where it is looked for again
KNOWN = 48.0  # pixels: side of a known face there, what MTCNN's last network takes
SMALLER = 0.55  # of its size: the smallest face looked for there, below which boxes could not overlap enough
UPRIGHT = 15.0  # degrees: landmarks of faces that lean more are made on a copy turned upright
DOUBTFUL = 0.2  # disagreement, in eye distances, above which other turns are tried
TURNS = 3  # at most; MTCNN's eyes tell a lean of 60 degrees to within 10, one of 75 to within 20
_WINDOW = 600  # pixels: side of that copy, a face is a third of it
_AROUND = 850  # and of what is turned, in whose middle it lies


def _side(face: Face) -> float:
    """Pixels: of a square as large as the face's box."""
    return math.sqrt(max(1.0, face.area))


def at_place(box: np.ndarray, others: np.ndarray) -> int | None:
    """Which of the boxes (N, 4) is of the face at `box` (4,): the one that overlaps most, by SAME_PLACE at least."""
    if not len(others):
        return None
    shares = overlaps(box[None], others)[0]
    best = int(shares.argmax())
    return best if shares[best] >= SAME_PLACE else None


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4), x0, y0, x1, y1: (N, M)."""
    from torchvision.ops import box_iou

    shares: np.ndarray = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    return shares


def _roll(points: np.ndarray) -> float:
    """Degrees by which the eyes, the first two of the points, lean; clockwise is positive."""
    x, y = points[1] - points[0]
    return math.degrees(math.atan2(y, x))


def _upright(photo: np.ndarray, centre: np.ndarray, half: int, roll: float) -> np.ndarray:
    """The square within 1 / sqrt(2) of `half` around the centre, leaning by `roll` degrees, as [_WINDOW,_WINDOW,3]."""
    (left, top), edge = (centre + 0.5).astype(int) - half, (_AROUND - _WINDOW) // 2
    around = _resampled(_cut(photo, left, top, left + 2 * half, top + 2 * half), _AROUND, _AROUND)
    window = Image.fromarray(around).rotate(roll, _BICUBIC)
    return np.asarray(window.crop((edge, edge, edge + _WINDOW, edge + _WINDOW)))


def _from_window(points: np.ndarray, centre: np.ndarray, half: int, roll: float) -> np.ndarray:
    """Points of an `_upright` window in photo pixels, float32."""
    c, s = math.cos(math.radians(roll)), math.sin(math.radians(roll))
    flat = (points + 0.5 - _WINDOW / 2) * (2 * half / _AROUND)
    return (flat @ np.array([[c, s], [-s, c]]) + centre).astype(np.float32)


def _disagreement(landmarks: np.ndarray, points: np.ndarray) -> float:
    """Mean distance of five of the landmarks (68, 2) to MTCNN's points (5, 2), in eye distances of the larger."""
    five = lm.points5(torch.from_numpy(landmarks)).numpy()
    eyes = max(float(np.linalg.norm(p[1] - p[0])) for p in (five, points))
    return float(np.linalg.norm(five - points, axis=1).mean()) / max(eyes, 1e-6)


_PATCH = 440  # pixels
_MAPPED = 1 / 2.2
_JITTER = ((0, 0, 1), (0.04, 0, 1), (-0.04, 0, 1), (0, 0.04, 1), (0, -0.04, 1), (0, 0, 1.06), (0, 0, 0.94))


def _shrink(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return image
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX, reducing_gap=2.0))


def _cut(photo: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A rectangle of whole pixels, right and bottom excluded; it may leave the photo: edge pixels repeat."""
    height, width = photo.shape[:2]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return photo[top:bottom, left:right]
    rows, columns = np.arange(top, bottom).clip(0, height - 1), np.arange(left, right).clip(0, width - 1)
    return photo.take(rows, 0).take(columns, 1)  # three times as fast as np.ix_


def _resampled(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H,W,3] at another size, antialiased: what Pillow's bicubic filter gives, in a quarter of its time."""
    if picture.shape[:2] == (height, width):
        return picture
    channels = torch.from_numpy(np.require(picture, requirements=["C", "W"])).permute(2, 0, 1)[None]
    resampled = F.interpolate(channels, (height, width), mode="bicubic", antialias=True)
    return resampled[0].permute(1, 2, 0).contiguous().numpy()


# ------------------------------------------------------------------------------------------- aligning


def align(
    photo: np.ndarray, landmarks: np.ndarray, size: int = 160, margin: float = 0.375
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a face out: crop uint8 [size,size,3] and its landmarks float32 (68, 2), which may lie slightly outside.

    The similarity (rotation, one scale, shift) that best moves eye centres, nose tip and mouth corners onto
    landmarks.frame(size, margin). Antialiased when it shrinks; the photo's edge pixels are repeated beyond it.
    """
    points = torch.from_numpy(np.asarray(landmarks, np.float64))
    matrix = lm.fit_similarity(lm.points5(points), lm.points5(lm.frame(size, margin).double()))
    inverse = lm.invert(matrix).numpy()
    inverse[:, 2] += 0.5 - inverse[:, :2].sum(1) / 2  # from pixel centres to pixel edges, as Pillow counts

    # The part of the photo under the crop, shrunk first so that the turning samples at about scale 1.
    corners = np.array([(0, 0), (size, 0), (0, size), (size, size)]) @ inverse[:, :2].T + inverse[:, 2]
    left, top, right, bottom = (int(x) for x in (*np.floor(corners.min(0)) - 4, *np.ceil(corners.max(0)) + 4))
    scale = min(1.0, math.hypot(*matrix[:, 0].tolist()))
    width, height = math.ceil((right - left) * scale), math.ceil((bottom - top) * scale)
    part = _resampled(_cut(photo, left, top, right, bottom), width, height)
    ratio = np.array([width / (right - left), height / (bottom - top)])
    inverse[:, 2] = (inverse[:, 2] - (left, top)) * ratio
    inverse[:, :2] *= ratio[:, None]
    coefficients = inverse.ravel().tolist()
    bands = [  # as floats: for bytes, Pillow's transform rounds down
        np.asarray(band.convert("F").transform((size, size), Image.Transform.AFFINE, coefficients, _BICUBIC))
        for band in Image.fromarray(part).split()
    ]
    crop = (np.dstack(bands) + 0.5).clip(0, 255).astype(np.uint8)
    return crop, lm.transform(points, matrix).numpy().astype(np.float32)


def to_tensors(
    aligned: Sequence[tuple[np.ndarray, np.ndarray]], device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Aligned faces, as `align` gives them -> crops (B, 3, S, S) in [0, 1] and landmarks (B, 68, 2) px."""
    if not aligned:
        return torch.empty(0), torch.empty(0)
    crops = torch.from_numpy(np.stack([crop for crop, _ in aligned])).permute(0, 3, 1, 2).float() / 255
    landmarks = torch.from_numpy(np.stack([points for _, points in aligned])).float()
    return crops.to(device), landmarks.to(device)


def to_8_bit(images: Tensor) -> np.ndarray:
    """Pictures (..., 3, H, W) in [0, 1] -> uint8 (..., H, W, 3), as they are saved."""
    return (images.detach() * 255).round().clamp(0, 255).byte().movedim(-3, -1).cpu().numpy()
