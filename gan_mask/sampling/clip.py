"""Clips: their frames upright one by one, and a copy with other frames, the same sound, and the mark of its origin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gan_mask import files
from gan_mask.errors import GanMaskError
from gan_mask.faces import MAX_PIXELS, UnreadableImage

SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)  # of files that are taken for clips
KEPT = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # what is written as it was; others as .mkv
ENCODER = "libx264"
QUALITY = {"crf": "16", "preset": "medium"}  # hardly to be told from the original
DEFAULT_RATE = Fraction(25)  # frames per second of a clip that does not say
UNSPECIFIED = 2  # FFmpeg's colour space of a clip that does not say
MARK = "comment"  # key of the metadata that holds the mark, in every container of KEPT


def is_clip(path: str | Path) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


class Frame(NamedTuple):
    """Of a clip, upright."""

    image: np.ndarray  # uint8 RGB (H, W, 3)
    pts: int  # in the stream's time base
    time: float  # seconds


class Clip:
    """A clip that is being read."""

    def __init__(self, container: Any, name: str) -> None:
        self.container, self.name = container, name
        covers = [s for s in container.streams.video if "attached_pic" in str(s.disposition)]
        streams = [s for s in container.streams.video if s not in covers]
        if not streams:
            raise UnreadableImage(name, "no video in it")
        self.stream = streams[0]
        self.sound = list(container.streams.audio)
        if self.stream.width * self.stream.height > MAX_PIXELS:
            raise UnreadableImage(name, f"{self.stream.width} x {self.stream.height} pixels are too many")
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or DEFAULT_RATE)

    @property
    def frames_told(self) -> int:
        """How many frames the file says that it has, by their number or its length; 0: it does not say."""
        if self.stream.frames:
            return int(self.stream.frames)
        length = self.container.duration
        return round(float(self.rate) * length / 1_000_000) if length else 0

    def read(self, writer: Writer | None = None) -> Iterator[Frame]:
        """All frames; the sound between them goes to `writer`. UnreadableImage where the file is damaged."""
        import av

        try:
            count = 0
            for packet in self.container.demux(self.stream, *(self.sound if writer else ())):
                if packet.stream is not self.stream:
                    if writer:
                        writer.copy(packet)
                    continue
                for frame in packet.decode():
                    yield self._frame(frame, count)
                    count += 1
        except av.FFmpegError as error:
            raise UnreadableImage(self.name, f"damaged or unsupported clip ({error.strerror})") from error

    def at(self, seconds: float) -> np.ndarray:
        """The frame shown then."""
        self.container.seek(max(0, int(seconds / self.stream.time_base)), stream=self.stream)
        shown = None
        for shown in self.read():
            if shown.time >= seconds - 0.5 / float(self.rate):
                break
        if shown is None:
            raise UnreadableImage(self.name, f"no frame at {seconds:.2f} s")
        return shown.image

    def _frame(self, frame: Any, count: int) -> Frame:
        pts = frame.pts if frame.pts is not None else round(count / self.rate / self.stream.time_base)
        image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        return Frame(np.ascontiguousarray(image), pts, float(pts * self.stream.time_base))


class Writer:
    """A clip that is being written, with the sound of another."""

    def __init__(self, container: Any, clip: Clip, tag: str) -> None:
        self.container, self.clip = container, clip
        created = clip.container.metadata.get("creation_time")
        container.metadata.update({MARK: tag, **({"creation_time": created} if created else {})})
        self.video: Any = None
        self.sound = {stream: container.add_stream_from_template(stream) for stream in clip.sound}
        self._waiting: list[Any] = []  # sound from before the first frame

    def add(self, frame: Frame) -> None:
        import av

        if self.video is None:
            self._begin(frame)
        context = self.video.codec_context
        pixels = av.VideoFrame.from_ndarray(frame.image, format="rgb24").reformat(
            format=context.pix_fmt,
            dst_colorspace=None if context.colorspace == UNSPECIFIED else context.colorspace,
            dst_color_range=context.color_range or None,
        )
        pixels.pts, pixels.time_base = frame.pts, self.clip.stream.time_base
        self.container.mux(self.video.encode(pixels))

    def copy(self, packet: Any) -> None:
        """A packet of sound, as it is."""
        if packet.dts is None:  # the end of its stream
            return
        if self.video is None:
            self._waiting.append(packet)
            return
        packet.stream = self.sound[packet.stream]
        self.container.mux(packet)

    def finish(self) -> None:
        if self.video is not None:
            self.container.mux(self.video.encode(None))

    def _begin(self, frame: Frame) -> None:
        """The video stream, once it is known how large upright frames are."""
        height, width = frame.image.shape[:2]
        source = self.clip.stream
        self.video = self.container.add_stream(ENCODER, rate=self.clip.rate, options=QUALITY)
        self.video.width, self.video.height = width, height
        self.video.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        context, like = self.video.codec_context, source.codec_context
        context.time_base = source.time_base
        turned = (width, height) != (source.width, source.height)
        if aspect := source.sample_aspect_ratio:
            context.sample_aspect_ratio = 1 / aspect if turned else aspect
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(context, name, getattr(like, name))
        waiting, self._waiting = self._waiting, []
        for packet in waiting:
            self.copy(packet)


@contextmanager
def reading(path: Path, name: str | None = None) -> Iterator[Clip]:
    """UnreadableImage for a file that is no clip; GanMaskError without PyAV. name: what errors call it."""
    av = _av(path)
    try:
        container = av.open(str(path), metadata_errors="replace")
    except av.FFmpegError as error:
        raise UnreadableImage(name or str(path), f"not a clip in a known format ({error.strerror})") from error
    with container:
        yield Clip(container, name or str(path))


@contextmanager
def writing(path: Path, clip: Clip, tag: str) -> Iterator[Writer]:
    """`path`, whole or not at all, in a container by its suffix (see KEPT), marked with `tag`."""
    av = _av(path)
    if ENCODER not in av.codecs_available:
        raise GanMaskError(f"{path}: this PyAV cannot write H.264 ({ENCODER}); install the one of PyPI: pip install av")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = KEPT[path.suffix.lower()]
    options = {"movflags": "+faststart"} if kind != "matroska" else {}
    with files.replacing(path) as temporary:
        with av.open(str(temporary), "w", format=kind, options=options) as container:
            writer = Writer(container, clip, tag)
            yield writer
            writer.finish()


def read_comment(path: Path) -> str | None:
    """What stands where `writing` puts the tag, whoever wrote it. UnreadableImage where it is no clip."""
    with reading(path) as clip:
        metadata = {key.lower(): value for key, value in clip.container.metadata.items()}
    return metadata.get(MARK)


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise GanMaskError(f"{path}: clips need PyAV; pip install 'gan_mask[video]' ({error})") from error
    return av
