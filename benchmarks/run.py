"""What the hot paths cost beside their floors: python benchmarks/run.py [--only SECTION ...] [--out FILE.json]

Every figure is a ratio of times measured in one run: the contestants take turns, and the median over the rounds of
each round's ratio counts, so that a busy machine slows both alike (the loop over faces is timed once, on two
faces). Sections: geometry, methods, training, start-up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_mask import attacks, augment, files, landmarks, masking, templates
from gan_mask.networks import Discriminator, Generator
from gan_mask.surrogates import load_surrogates
from gan_mask.training.options import TrainConfig
from gan_mask.training.step import discriminator_terms, dress, generator_terms

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
    """`wear` and `unwrap` beside a bare grid_sample of the picture's size, and a loop over faces (scikit-image)."""
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
        loop = take_turns({"loop": lambda i=image, p=points, t=texture: slow_wear(i[:2], p[:2], t[:2])}, 1)["loop"][0]
        ours = take_turns({"wear": lambda i=image, p=points, t=texture: masking.wear(i, p, t)}, rounds)["wear"]
        result[f"{size} px, speed-up over a loop of scikit-image"] = round(loop / 2 * batch / float(np.median(ours)), 1)
    result["memory allocated by wear, 160 px, MB per face"] = memory(device, quick)
    return result


def slow_wear(image: Tensor, points: Tensor, texture: Tensor) -> list[np.ndarray]:
    """The same warp face by face, with scikit-image's piecewise affine transform, which triangulates each face anew."""
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
        {"generator": lambda: generator.texture(image, points, bank), "mf2m": lambda: slow(image, points, bank)},
        1 if quick else 2,
    )
    per_face = {f"{n}, ms per face": round(v / batch, 2) for n, v in milliseconds(seconds).items()}
    return {**per_face, "mf2m over generator": round(ratio(seconds, "mf2m", "generator"), 1), "steps": steps}


def training(quick: bool, device: str) -> dict[str, Any]:
    """A training step (without R1 and optimisers) beside its networks' bare forward and backward passes."""
    batch = 2 if quick else 12
    c = TrainConfig(batch_size=batch)
    image, points = faces(batch, 160, device)
    bank = templates.load_all(["face-001"]).expand(batch, -1, -1, -1).to(device)
    s = load_surrogates(c.embedders, c.detectors, c.far, device)
    net, discriminator = Generator().net.to(device), Discriminator().to(device)
    with torch.no_grad():
        references = [embedder(image, points)[:, None].expand(-1, 2, -1) for embedder in s.embedders]
    texture, picture = torch.rand_like(bank), image.clone().requires_grad_()
    noise = torch.randn(batch, net.config.noise, device=device)

    def step() -> None:
        draws = augment.Draws(0, 0, range(batch), batch, torch.device(device))
        scene = dress(image, points, bank, net, draws, c)
        terms = discriminator_terms(scene, discriminator, draws, c, r1=False)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        discriminator.requires_grad_(False)
        terms = generator_terms(scene, references, discriminator, s, draws, c)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        discriminator.requires_grad_(True)

    def networks() -> None:
        net(texture, bank, noise).sum().backward()
        discriminator(torch.cat([image, image])).sum().backward()
        discriminator.requires_grad_(False)
        discriminator(picture).sum().backward()
        discriminator.requires_grad_(True)
        for embedder in s.embedders:
            embedder(picture, points).sum().backward()
        for detector in s.detectors:
            torch.stack(detector(picture)).sum().backward()

    seconds = take_turns({"step": step, "networks alone": networks}, 1 if quick else 7)
    over = round(ratio(seconds, "step", "networks alone"), 2)
    return {"batch": batch, "ms": milliseconds(seconds), "step over networks alone": over}


# ------------------------------------------------------------------------------------------- start-up


def start_up(quick: bool, device: str) -> dict[str, Any]:
    """Seconds of processes: importing gan_mask and showing a help text, beyond importing torch."""
    root = Path(__file__).parent.parent
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import torch, gan_mask": [sys.executable, "-c", "import torch, gan_mask"],
        "sample.py --help": [sys.executable, "sample.py", "--help"],
        "train.py --help": [sys.executable, "train.py", "--help"],
    }
    run = {
        name: lambda c=command: subprocess.run(c, cwd=root, check=True, capture_output=True)
        for name, command in commands.items()
    }
    seconds = take_turns(run, 1 if quick else 5)
    base = np.array(seconds["import torch"])
    return {f"{n}, s beyond import torch": round(float(np.median(np.array(v) - base)), 2) for n, v in seconds.items()}


SECTIONS: dict[str, Callable[[bool, str], dict[str, Any]]] = {
    "geometry": geometry, "methods": methods, "training": training, "start-up": start_up,
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
