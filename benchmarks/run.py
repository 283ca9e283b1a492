"""What the hot paths cost beside their floors: python benchmarks/run.py [--only SECTION ...] [--out FILE.json]

Every figure is a ratio of times measured in one run: the contestants take turns, and the median over the rounds of
each round's ratio counts, so that a busy machine slows both alike (the loop over faces is timed on two of them).
Photos are the embedded synthetic ones, enlarged. Sections: geometry, methods, training, switches, loading,
sampling, preparation, evaluation, start-up.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader

from gan_mask import attacks, augment, files, landmarks, masking, templates
from gan_mask.attacks.surrogates import load_surrogates
from gan_mask.data import EMBEDDED, PreparedSet, prepare
from gan_mask.evaluation import redetection
from gan_mask.evaluation.run import write_pngs
from gan_mask.faces import FaceFinder, align, read_image, to_8_bit, to_tensors
from gan_mask.generator import Generator, load_generator
from gan_mask.networks import Discriminator, TextureUNet
from gan_mask.sampling import batch as sampling_batch
from gan_mask.sampling import command as sampling_command
from gan_mask.sampling import masker as sampling_masker
from gan_mask.sampling import sampler as sampling_sampler
from gan_mask.sampling.folder import find_targets
from gan_mask.sampling.options import SampleConfig
from gan_mask.training.options import TrainConfig
from gan_mask.training.schedule import Schedule
from gan_mask.training.step import Batch, discriminator_terms, generator_terms, mask

ROOT = Path(__file__).parent.parent
Contestants = dict[str, Callable[[], object]]


def take_turns(contestants: Contestants, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, run in contestants.items():
            _wait()
            started = time.perf_counter()
            run()
            _wait()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: dict[str, list[float]], name: str, floor: str) -> float:
    return float(np.median(np.array(seconds[name]) / np.array(seconds[floor])))


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(1000 * float(np.median(values)), 2) for name, values in seconds.items()}


def faces(batch: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Noise with plausible landmarks; geometry does not look at pixels."""
    points = landmarks.frame(size, 0.375)[None].expand(batch, -1, -1).to(device)
    draws = augment.Draws(0, 0, range(batch), batch, device)
    return torch.rand(batch, 3, size, size, device=device), augment.jitter_landmarks(points, draws, 1.0)


# ------------------------------------------------------------------------------------------- geometry


def geometry(quick: bool, device: str) -> dict[str, Any]:
    """`wear` and `unwrap` beside a bare grid_sample of the picture's size, and a loop over faces (scikit-image);
    seamless placement beside the paper's.
    """
    result: dict[str, Any] = {}
    batch, rounds = (4, 2) if quick else (32, 9)
    for size in (64,) if quick else (160, 256):
        image, points = faces(batch, size, device)
        texture = torch.rand(batch, 3, *masking.TEXTURE, device=device)
        grid = torch.rand(batch, size, size, 2, device=device) * 2 - 1
        placed = masking.place(points, size, size)
        for backward in (False, True):
            contestants: Contestants = {
                "grid_sample": lambda x=texture, g=grid: F.grid_sample(x, g, align_corners=False),
                "place": lambda p=points, s=size: masking.place(p, s, s),
                "wear": lambda i=image, p=points, t=texture: masking.wear(i, p, t, 0.03),
                "wear, placed": lambda i=image, p=placed, t=texture: masking.wear(i, p, t, 0.03),
                "unwrap": lambda i=image, p=points: masking.unwrap(i, p),
            }
            if backward:
                for tensor in (image, texture, grid):
                    tensor.requires_grad_()
                del contestants["place"]
                contestants = {name: lambda f=f: f().sum().backward() for name, f in contestants.items()}  # type: ignore[misc]
            seconds = take_turns(contestants, rounds)
            key = f"{size} px, batch {batch}, {'forward and backward' if backward else 'forward'}"
            result[key] = {
                "ms": milliseconds(seconds),
                "over grid_sample": {
                    n: round(ratio(seconds, n, "grid_sample"), 2) for n in seconds if n != "grid_sample"
                },
            }
            for tensor in (image, texture, grid):
                tensor.requires_grad_(False)
        slow: Contestants = {
            "loop": lambda i=image, p=points, t=texture: slow_wear(i[:2], p[:2], t[:2]),
            "wear": lambda i=image, p=points, t=texture: masking.wear(i, p, t),
        }
        faster = ratio(take_turns(slow, rounds), "loop", "wear") * batch / 2
        result[f"{size} px, speed-up over a loop of scikit-image"] = round(faster, 1)
    result["placements, 160 px, batch 32"] = placements(device, 9)
    result["memory allocated by wear, 160 px, MB per face"] = memory(device, quick)
    return result


def placements(device: str, rounds: int) -> dict[str, Any]:
    """What seamless placement adds, forward and with backward, at the same size whether quick or not."""
    image, points = faces(32, 160, device)
    texture = torch.rand(32, 3, *masking.TEXTURE, device=device)

    def paper() -> Tensor:
        return masking.unwrap(image, points).sum() + masking.wear(image, points, texture, 0.03).sum()

    def seamless() -> Tensor:
        own = masking.unwrap(image, points)
        return masking.wear(image, points, masking.seamless(texture, own), own=own).sum()

    contestants: dict[str, Callable[[], Tensor]] = {
        "unwrap and wear": paper,
        "unwrap, seamless and wear": seamless,
        "put_on, paper": lambda: masking.put_on(image, points, texture, "paper", 0.03).sum(),
        "put_on, seamless": lambda: masking.put_on(image, points, texture, "seamless").sum(),
    }
    result = {}
    for backward in (False, True):
        for tensor in (image, texture):
            tensor.requires_grad_(backward)
        passes: Contestants = {n: lambda f=f, b=backward: f().backward() if b else f() for n, f in contestants.items()}  # type: ignore[misc]
        seconds = take_turns(passes, rounds)
        result["forward and backward" if backward else "forward"] = {
            "ms": milliseconds(seconds),
            "seamless over unwrap and wear": round(ratio(seconds, "unwrap, seamless and wear", "unwrap and wear"), 2),
            "the same, fastest rounds": round(
                min(seconds["unwrap, seamless and wear"]) / min(seconds["unwrap and wear"]), 2
            ),
            "put_on, seamless over paper": round(ratio(seconds, "put_on, seamless", "put_on, paper"), 2),
        }
    return result


def slow_wear(image: Tensor, points: Tensor, texture: Tensor) -> list[np.ndarray]:
    """The same warp face by face, with scikit-image's piecewise affine transform, which triangulates each face."""
    from skimage.transform import PiecewiseAffineTransform, warp

    height, width = texture.shape[2:]
    corners = masking.CANONICAL.numpy() * (width, height) - 0.5
    pictures = []
    for face, mark, paint in zip(image.cpu(), points.cpu(), texture.cpu(), strict=True):
        transform = PiecewiseAffineTransform()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its successor exists from scikit-image 0.26 on only
            transform.estimate(mark[list(masking.MASK_LANDMARKS)].numpy(), corners)
        painted = warp(paint.permute(1, 2, 0).numpy(), transform, output_shape=face.shape[1:], cval=-1)
        pictures.append(np.where(painted < 0, face.permute(1, 2, 0).numpy(), painted))
    return pictures


def memory(device: str, quick: bool) -> dict[str, float]:
    """What the profiler sees allocated by one forward and backward pass, over the batch: constant if it is linear."""
    found = {}
    for batch in (2, 4) if quick else (8, 32, 128):
        image, points = faces(batch, 160, device)
        texture = torch.rand(batch, 3, *masking.TEXTURE, device=device, requires_grad=True)
        with torch.profiler.profile(profile_memory=True) as profile:
            masking.wear(image, points, texture, 0.03).sum().backward()
        total = sum(max(event.self_device_memory_usage if device == "cuda" else event.self_cpu_memory_usage, 0)
                    for event in profile.key_averages())  # fmt: skip
        found[f"batch {batch}"] = round(total / batch / 2**20, 3)
    return found


# ------------------------------------------------------------------------------------------- methods and training


def methods(quick: bool, device: str) -> dict[str, Any]:
    """The generator beside MF2M with all of its 100 steps, per face, same batch; surrogates dlib and our classifier."""
    batch, steps = (2, 2) if quick else (8, 100)
    image, points = faces(batch, 160, device)
    bank = templates.load_all(["face-001"]).expand(batch, -1, -1, -1).to(device)
    surrogates = load_surrogates(["dlib"], ["classifier"], 1e-3, device)
    generator = Generator().to(device).eval().requires_grad_(False)
    slow = attacks.MF2M(surrogates, attacks.Options(steps=steps, patience=0))
    seconds = take_turns(
        {"generator": lambda: generator.texture(image, points, bank), "mf2m": lambda: slow.apply(image, points, bank)},
        1 if quick else 2,
    )
    per_face = {f"{n}, ms per face": round(v / batch, 2) for n, v in milliseconds(seconds).items()}
    return {**per_face, "mf2m over generator": round(ratio(seconds, "mf2m", "generator"), 1), "steps": steps}


class Training:
    """The networks of a training, and faces to train on."""

    def __init__(self, batch: int, device: str) -> None:
        self.c, self.device = TrainConfig(batch_size=batch), torch.device(device)
        self.image, self.points = faces(batch, 160, device)
        self.bank = templates.load_all(["face-001"]).expand(batch, -1, -1, -1).to(device)
        self.surrogates = load_surrogates(self.c.embedders, self.c.detectors, self.c.far, device)
        self.net, self.discriminator = (
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for network in (Generator().net, Discriminator())
        )
        self.texture, self.picture = torch.rand_like(self.bank), self.image.clone().requires_grad_()
        self.noise = torch.randn(batch, self.net.config.noise, device=device)
        with torch.no_grad():
            self.references = [e(self.image, self.points)[:, None].expand(-1, 2, -1) for e in self.surrogates.embedders]

    def step(self, image: Tensor | None = None, points: Tensor | None = None) -> None:
        """What training does between loading and the optimisers, without R1."""
        image, points = (self.image, self.points) if image is None or points is None else (image, points)
        draws = augment.Draws(0, 0, range(len(image)), len(image), self.device)
        batch = Batch(image, points, points.cpu(), self.bank, self.references, draws)
        masked = mask(batch, self.net, self.c)
        terms = discriminator_terms(batch, masked, self.discriminator, self.c, r1=False)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        self.discriminator.requires_grad_(False)
        terms = generator_terms(batch, masked, self.discriminator, self.surrogates, self.c)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        self.discriminator.requires_grad_(True)

    def networks(self) -> None:
        """The same passes of the same networks, on any input."""
        self.net(self.texture, self.bank, self.noise).texture.sum().backward()
        self.discriminator(torch.cat([self.image, self.image])).sum().backward()
        self.discriminator.requires_grad_(False)
        self.discriminator(self.picture).sum().backward()
        self.discriminator.requires_grad_(True)
        for embedder in self.surrogates.embedders:
            embedder(self.picture, self.points).sum().backward()
        for detector in self.surrogates.detectors:
            torch.stack(detector(self.picture)).sum().backward()


def training(quick: bool, device: str) -> dict[str, Any]:
    """A training step (without R1 and optimisers) beside its networks' bare forward and backward passes."""
    t = Training(2 if quick else 12, device)
    seconds = take_turns({"step": t.step, "networks alone": t.networks}, 1 if quick else 9)
    over = round(ratio(seconds, "step", "networks alone"), 2)
    result = {"batch": len(t.image), "ms": milliseconds(seconds), "step over networks alone": over}
    if device == "cuda":
        result["peak memory, MiB"] = torch.cuda.max_memory_allocated() >> 20
    return result


def switches(quick: bool, device: str) -> dict[str, Any]:
    """What train.py has switched on, channels_last of our networks; and what one could, fused AdamW."""
    last = Training(2 if quick else 12, device)
    apart = copy.copy(last)
    apart.net, apart.discriminator = copy.deepcopy((last.net, last.discriminator))
    for network in (apart.net, apart.discriminator):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    last.step()  # gives the optimisers gradients
    parameters = [*last.net.parameters(), *last.discriminator.parameters()]
    optimisers = {
        name: torch.optim.AdamW([p.detach().clone().requires_grad_() for p in parameters], fused=fused)
        for name, fused in {"AdamW": False, "AdamW, fused": True}.items()
    }
    for optimiser in optimisers.values():
        for ours, given in zip(optimiser.param_groups[0]["params"], parameters, strict=True):
            ours.grad = None if given.grad is None else given.grad.clone()
    contestants: Contestants = {"step": last.step, "step, channels apart": apart.step}
    contestants |= {name: optimiser.step for name, optimiser in optimisers.items()}
    seconds = take_turns(contestants, 1 if quick else 7)
    return {
        "ms": milliseconds(seconds),
        "channels_last over not": round(ratio(seconds, "step", "step, channels apart"), 2),
        "fused over not": round(ratio(seconds, "AdamW, fused", "AdamW"), 2),
    }


def loading(quick: bool, device: str) -> dict[str, Any]:
    """How much of a training's time it waits for its loader: two loader processes, batch 12."""
    batch, steps = (2, 3) if quick else (12, 12)
    t = Training(batch, device)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos", 8 if quick else 36, 128)
        prepare.prepare(prepare.PrepareConfig(splits=(1.0, 0.0, 0.0), src=f"{folder}/photos", dst=f"{folder}/prepared"))
        photos = PreparedSet(Path(folder) / "prepared", "train")
        config = TrainConfig(batch_size=batch, steps=steps + 2)
        batches = iter(DataLoader(photos, batch_sampler=Schedule(photos.identities, config, 0, 1, 0), num_workers=2))
        waited = worked = 0.0
        for number in range(steps + 2):
            started = time.perf_counter()
            loaded = next(batches)
            loaded_at = time.perf_counter()
            t.step(loaded["face"].to(device), loaded["landmarks"].to(device))
            _wait()
            if number > 1:  # the processes start, the first step allocates
                waited, worked = waited + loaded_at - started, worked + time.perf_counter() - loaded_at
    return {"batch": batch, "share of time waiting, %": round(100 * waited / (waited + worked), 2)}


# ------------------------------------------------------------------------------------------- photos


def write_photos(folder: Path, count: int, side: int) -> None:
    """So many embedded photos of synthetic people, enlarged to side x side JPEG files, again from the first."""
    with zipfile.ZipFile(EMBEDDED) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".webp")]
        for i in range(count):
            name = names[i % len(names)]
            target = folder / Path(name).parent.name / f"{i:05d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            photo.resize((side, side), Image.Resampling.BICUBIC).save(target, quality=92)


class Stages:
    """Seconds spent in functions, each for itself: what one calls within another counts for the outer one."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside, self._clock = False, clock

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, started = True, self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                _wait()
                self.seconds[stage] += self._clock() - started
                self._inside = False

        return run

    @contextmanager
    def watching(self, parts: list[tuple[object, str, str]]) -> Iterator[None]:
        """parts: (owner, name of its function, stage)."""
        with ExitStack() as stack:
            for owner, name, stage in parts:
                stack.enter_context(mock.patch.object(owner, name, self.timed(getattr(owner, name), stage)))
            yield


def write_scenes(folder: Path, count: int, megapixels: int) -> None:
    """So many photos of this size: one, three, one, six embedded faces on a soft background, and so on."""
    width, height = round((megapixels * 4e6 / 3) ** 0.5), round((megapixels * 3e6 / 4) ** 0.5)
    random = np.random.default_rng(0)
    edge = Image.new("L", (128, 128))
    edge.paste(255, (6, 6, 122, 122))
    edge = edge.filter(ImageFilter.GaussianBlur(4))
    folder.mkdir(parents=True)
    with zipfile.ZipFile(EMBEDDED) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".webp")]
        for i in range(count):
            colours = random.integers(60, 200, (9, 12, 3)).astype(np.uint8)
            scene = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
            faces = (1, 3, 1, 6)[i % 4]
            for k in range(faces):
                face = Image.open(io.BytesIO(archive.read(names[(7 * i + 3 * k) % len(names)]))).convert("RGB")
                side = round(height * (0.5 if faces == 1 else 0.22) * random.uniform(0.8, 1.2))
                x, y = round(width * (k + 0.5) / faces - side / 2), round((height - side) * random.uniform(0.2, 0.8))
                scene.paste(face.resize((side, side), Image.Resampling.BICUBIC), (x, y), edge.resize((side, side)))
            scene.save(folder / f"{i:03d}.jpg", quality=92)


def sampling(quick: bool, device: str) -> dict[str, Any]:
    """`sample.py`: where the seconds of a photo go, at 640 x 640 px and in scenes of 1, 4 and 12 megapixels.

    And the memory of four times as many photos.
    """
    count, side = (4, 256) if quick else (32, 640)
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        write_photos(few, count, side)
        result = sampling_stages(few, Path(folder) / "out", device)
        for megapixels in (1,) if quick else (1, 4, 12):
            scenes = Path(folder) / f"scenes{megapixels}"
            write_scenes(scenes, 1 if quick else 8, megapixels)
            result[f"{megapixels} megapixels"] = sampling_stages(scenes, Path(folder) / f"out{megapixels}", device)
        if device == "cpu":
            write_photos(many, 4 * count, side)
            peaks = {}
            for source, photos in ((few, count), (many, 4 * count)):
                options = ["--device", device, "--batch-size", "8", "--faces", str(source), "--out", f"{source}-masked"]
                peaks[f"{photos} photos"] = peak_memory(["sample.py", *options])
            result["peak memory, MiB"] = peaks
    return result


def sampling_stages(source: Path, out: Path, device: str) -> dict[str, Any]:
    """Of all photos in `source`; their networks' time is that of what they call alone, in the same run."""
    config = SampleConfig(str(source), str(out), device="cuda" if device == "cuda" else "cpu", batch_size=8)
    sampler = sampling_command.load(config)
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.jpg"))
    targets = find_targets(names)
    stages = Stages()
    parts = [
        (sampling_sampler, "read_image", "decode"), (sampler.finder, "_mtcnn", "detect"),
        (sampler.finder, "landmarks", "landmarks"), (sampling_masker, "align", "align"),
        (type(sampler.masker.method), "apply", "generate"), (attacks.base, "wear_on_photo", "wear"),
        (sampling_batch, "at_once", "encode, and decode what is written"), (sampling_batch, "align", "align"),
        (sampler.finder, "find_again", "find in what is written"), (sampler, "measure", "measure"),
    ]  # fmt: skip
    networks, search = Stages(time.process_time), sampler.finder._mtcnn
    bare = [
        (search.pnet, "forward", "MTCNN"), (search.rnet, "forward", "MTCNN"), (search.onet, "forward", "MTCNN"),
        (sampler.finder, "_hog", "dlib's detector"), (sampler.finder, "_predictor", "dlib's landmarks"),
        (TextureUNet, "forward", "generator"),
        *((embedder.net, "forward", name) for name, embedder in sampler.embedders.items()),
        *((detector.net, "forward", name) for name, detector in sampler.detectors.items()),
    ]  # fmt: skip
    sampling_batch.process(sampler, [sampler.photo(names[0])], targets)  # warm
    with networks.watching(bare), stages.watching(parts):
        started, working = time.perf_counter(), time.process_time()
        for batch, _ in sampling_command.batches(sampler, names):
            sampling_batch.process(sampler, batch, targets)
        whole, working = time.perf_counter() - started, time.process_time() - working
    stages.seconds["all else"] = whole - sum(stages.seconds.values())
    return {
        "photos": len(names),
        "ms per photo": {name: round(1000 * s / len(names), 2) for name, s in stages.seconds.items()},
        "s per photo": round(whole / len(names), 3),
        "processor s per photo": round(working / len(names), 3),
        "processor ms of networks": {n: round(1000 * s / len(names), 2) for n, s in networks.seconds.items()},
        "processor time over that of networks": round(working / sum(networks.seconds.values()), 2),
    }


def peak_memory(command: list[str]) -> int:
    """MiB of a process, the largest that was resident at a time (Linux)."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return usage.ru_maxrss >> 10


def preparation(quick: bool, device: str) -> dict[str, Any]:
    """`prepare.py` with one process beside face detection and landmarks alone, and beside plain MTCNN and dlib."""
    import dlib

    count, side = (3, 256) if quick else (16, 640)
    settings = prepare.Settings()
    with tempfile.TemporaryDirectory() as folder:
        source, parts = Path(folder) / "photos", Path(folder) / "parts"
        parts.mkdir()
        write_photos(source, count, side)
        worker = prepare.Worker(source, parts, settings, device)
        photos = worker.source.photos(settings.identity_regex)
        images = [worker.source.read(photo.path) for photo in photos]
        finder = worker.finder

        def plain() -> None:
            boxes = finder._mtcnn(images, [settings.min_size] * len(images))
            for image, found in zip(images, boxes, strict=True):
                for box in found:
                    finder._predictor(image, dlib.rectangle(*box[:4].round().astype(int).tolist()))

        contestants: Contestants = {
            "prepare": lambda: worker(0, photos),
            "our detection and landmarks": lambda: finder.find(images),
            "plain MTCNN and dlib": plain,
        }
        seconds = take_turns(contestants, 1 if quick else 5)
    return {
        "images/s": {name: round(count / float(np.median(values)), 1) for name, values in seconds.items()},
        "prepare over our detection and landmarks": round(ratio(seconds, "prepare", "our detection and landmarks"), 2),
        "prepare over plain MTCNN and dlib": round(ratio(seconds, "prepare", "plain MTCNN and dlib"), 2),
    }


def evaluation(quick: bool, device: str) -> dict[str, Any]:
    """One unit of an evaluation (generate, wear, write and read PNG, re-detect) beside its networks and detectors."""
    import dlib

    count = 3 if quick else 16
    finder, hog = FaceFinder(device), dlib.get_frontal_face_detector()
    s = load_surrogates(["dlib"], ["classifier"], 1e-3, device)
    generator = load_generator(device=device)
    bank = templates.load_all(["face-001"]).expand(count, -1, -1, -1).to(device)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), count, 320)
        photos = [read_image(path) for path in sorted(Path(folder).rglob("*.jpg"))]
        found = [(photo, faces[0]) for photo, faces in zip(photos, finder.find(photos), strict=True) if faces]
        crops, points = to_tensors([align(photo, face.landmarks, 160) for photo, face in found], device)
        bank, size = bank[: len(crops)], 160
        paths = [Path(folder) / f"{i}.png" for i in range(len(crops))]
        pictures = list(to_8_bit(crops))

        @torch.no_grad()
        def unit() -> None:
            masked = to_8_bit(masking.wear(crops, points, generator.texture(crops, points, bank), 0.03))
            write_pngs(paths, masked)
            images = [read_image(path) for path in paths]
            redetection.redetect(images, {"dlib": s.embedders[0]}, {"classifier": s.detectors[0]}, finder, device)

        @torch.no_grad()
        def networks() -> None:
            generator.texture(crops, points, bank)
            finder.find(pictures)
            for picture in pictures:
                hog(picture, 1)
            s.embedders[0](crops, points)
            s.detectors[0](crops)

        seconds = take_turns({"unit": unit, "networks and detectors alone": networks}, 1 if quick else 5)
    over = round(ratio(seconds, "unit", "networks and detectors alone"), 2)
    return {"faces": len(crops), "size": size, "ms": milliseconds(seconds), "unit over networks and detectors": over}


# ------------------------------------------------------------------------------------------- start-up


def start_up(quick: bool, device: str) -> dict[str, Any]:
    """Seconds of processes: importing gan_mask and showing a help text, beyond importing torch."""
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import torch, gan_mask": [sys.executable, "-c", "import torch, gan_mask"],
        "sample.py --help": [sys.executable, "sample.py", "--help"],
        "train.py --help": [sys.executable, "train.py", "--help"],
    }
    run = {
        name: lambda c=command: subprocess.run(c, cwd=ROOT, check=True, capture_output=True)
        for name, command in commands.items()
    }
    seconds = take_turns(run, 1 if quick else 5)
    base = np.array(seconds["import torch"])
    return {f"{n}, s beyond import torch": round(float(np.median(np.array(v) - base)), 2) for n, v in seconds.items()}


SECTIONS: dict[str, Callable[[bool, str], dict[str, Any]]] = {
    "geometry": geometry, "methods": methods, "training": training, "switches": switches, "loading": loading,
    "sampling": sampling, "preparation": preparation, "evaluation": evaluation, "start-up": start_up,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="default: all")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; the figures mean nothing"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if devices == ["cpu"]:
        print("no CUDA device: GPU sections skipped")
    result: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "quick": args.quick}
    for device in devices:
        for name in args.only:
            if device == "cuda" and name == "start-up":
                continue
            result[f"{name}, {device}"] = figures = SECTIONS[name](args.quick, device)
            print(f"\n{name}, {device}")
            for key, value in figures.items():
                print(f"  {key}: {json.dumps(value)}")
    if args.out:
        files.write_json(args.out, result)


if __name__ == "__main__":
    main()
