"""Options of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gan_mask.values import Range, option


@dataclass(frozen=True)
class AppConfig:
    host: str = option(
        "127.0.0.1", "address to listen at; 0.0.0.0 lets others on the network in", group="page", metavar="ADDRESS"
    )
    port: int = option(7860, "port to listen at", within=Range(1, 65535))
    megabytes: int = option(30, "largest file of a photo, MB", within=Range(1, 1024))
    megapixels: int = option(50, "largest photo, million pixels", within=Range(1, 100))
    waiting: int = option(
        8, "photos that may wait while one is masked; more are refused until there is room", within=Range(1, 1000)
    )

    checkpoint: str | None = option(
        None, "generator: its folder, or a run folder of train.py", group="networks and device",
        shown="the shipped one", metavar="CHECKPOINT",
    )  # fmt: skip
    embedders: tuple[str, ...] = option(
        ("dlib", "sface"), "recognisers that are asked, and that optimised methods are made against", metavar="NAME"
    )
    detectors: tuple[str, ...] = option(("classifier",), "mask detectors, likewise", metavar="NAME")
    device: Literal["cpu", "cuda"] = option("cpu", "cpu or cuda")
