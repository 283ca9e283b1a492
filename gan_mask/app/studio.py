"""What the page does, without the page: masks on one photo with networks that are loaded once."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from gan_mask import attacks
from gan_mask.app.options import AppConfig
from gan_mask.errors import GanMaskError
from gan_mask.faces import opened, read_image
from gan_mask.generator import load_generator
from gan_mask.masking import PlacementName
from gan_mask.sampling.batch import process
from gan_mask.sampling.folder import Targets
from gan_mask.sampling.masker import Row
from gan_mask.sampling.options import MethodName, SampleConfig
from gan_mask.sampling.output import window_of
from gan_mask.sampling.sampler import Sampler, checkpoint_name, checkpoint_of, load, make_masker

SHOWN = 1600  # pixels: longest side of the pictures on the page; what is downloaded has the photo's own size
KEPT = 3600.0  # seconds for which results are kept


class Way(NamedTuple):
    """A method as the page offers it."""

    label: str
    method: MethodName
    refined: bool = False

    @property
    def has_placement(self) -> bool:
        """Whether the placement can be chosen: a generator has its own, and a plain mask is laid over."""
        return self.method not in ("generator", "plain")

    @property
    def takes_steps(self) -> bool:
        return self.refined or self.method in attacks.OPTIMISED


WAYS = (
    Way("Generator", "generator"),
    Way("Generator, then refined", "generator", refined=True),
    Way("DM: another face as it is", "dm"),
    Way("AdvNoise-DM: optimised noise", "advnoise-dm"),
    Way("MF²M: optimised filters", "mf2m"),
    Way("AdvFace: an optimised face", "advface"),
    Way("Plain mask", "plain"),
)


@dataclass(frozen=True)
class Choice:
    """How a photo is to be masked."""

    way: Way = WAYS[0]
    template: str = "match"  # as sample.py has it
    placement: PlacementName = "seamless"
    steps: int = 10  # of the ways that take some
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """A photo masked once."""

    choice: Choice
    photo: tuple[Path, Path]  # before and after: JPEGs for the page
    face: tuple[Path, Path]  # likewise, the largest face
    file: Path  # the masked photo at its own size, marked as synthetic
    rows: list[Row]  # of the faces, as in results.csv
    seconds: float


class Studio:
    """Networks that are loaded once. `folder`: for results, those older than KEPT are removed from it."""

    def __init__(self, c: AppConfig, folder: Path) -> None:
        self.c, self.folder = c, folder
        self._base = SampleConfig(
            faces=str(folder), out=str(folder), checkpoint=c.checkpoint, embedders=c.embedders, detectors=c.detectors,
            device=c.device,
        )  # fmt: skip
        self._sampler = load(replace(self._base, method="plain"))
        self._generator = load_generator(checkpoint_of(self._base), c.device)

    def mask(self, photo: Path, choice: Choice) -> Trial:
        """GanMaskError for a file that is no photo, too large, or without a face, and for a template without one."""
        start = time.perf_counter()
        self._check(photo)
        self._forget()
        out = self.folder / uuid.uuid4().hex
        out.mkdir()
        sampler = self._with(choice, photo.parent, out)
        masked = sampler.photo(photo.name)
        before = masked.image.copy()
        targets = Targets(f"{photo.stem}-masked{photo.suffix}", f"{photo.stem}-masked.png")
        rows = process(sampler, [masked], {photo.name: targets})[photo.name]
        if rows[0]["status"] == "no face":
            raise GanMaskError(
                "No face found in this photo. Take one that shows a whole face, not much turned away or covered."
            )
        if rows[0]["status"] != "ok":
            raise GanMaskError(f"{photo.name}: {rows[0]['note']}")
        seconds = time.perf_counter() - start
        pictures = Image.fromarray(before), Image.fromarray(read_image(out / rows[0]["written"]))
        window = window_of(pictures[0].size, [float(edge) for edge in rows[0]["box"].split()])
        return Trial(
            choice, _shown(pictures, out / "photo"), _shown([p.crop(window) for p in pictures], out / "face"),
            out / rows[0]["written"], rows, seconds,
        )  # fmt: skip

    def _with(self, choice: Choice, source: Path, out: Path) -> Sampler:
        method = choice.way.method
        attack = attacks.Options(steps=choice.steps, refine=choice.steps if choice.way.refined else 0)
        c = replace(
            self._base, method=method, template=choice.template, placement=choice.placement, seed=choice.seed,
            attack=attack,
        )  # fmt: skip
        generator = self._generator if method == "generator" else None
        masker = make_masker(c, generator, self._sampler.embedders, self._sampler.detectors)
        return replace(
            self._sampler, source=source, out=out, masker=masker, method_name=method, checkpoint=checkpoint_name(c)
        )

    def _check(self, photo: Path) -> None:
        """Its size, before it is decoded."""
        if photo.stat().st_size > self.c.megabytes * 1_000_000:
            raise GanMaskError(f"{photo.name}: larger than {self.c.megabytes} MB, the limit of this page")
        with opened(photo, photo.name) as image:
            pixels = image.width * image.height
        if pixels > self.c.megapixels * 1_000_000:
            raise GanMaskError(
                f"{photo.name}: {pixels / 1e6:.0f} million pixels, {self.c.megapixels} are the limit of this page"
            )

    def _forget(self) -> None:
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old, ignore_errors=True)


def _shown(pictures: Sequence[Image.Image], folder: Path) -> tuple[Path, Path]:
    """Copies for the page, in a new folder."""
    folder.mkdir()
    paths = folder / "before.jpg", folder / "after.jpg"
    for picture, path in zip(pictures, paths, strict=True):
        small = picture.copy()
        small.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS, reducing_gap=3.0)
        small.save(path, "JPEG", quality=92, subsampling="4:4:4")
    return paths
