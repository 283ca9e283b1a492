"""Honest evaluation: python -m gan_mask.evaluation --data PREPARED --checkpoint CHECKPOINT --out REPORT

Every masked face is written as an 8-bit PNG; then faces, landmarks, alignment, detection and
embedding are done anew from the file. The unmasked probe goes the same way. Definitions:

- probe: a photo of the split; mated with the next clean photo of the same person (the gallery side);
- accepted when clean: the unmasked probe's face is found and its similarity to its mate reaches the threshold;
- face found: MTCNN finds a face in the written file;
- dodging: face found and similarity below the threshold, among the probes accepted when clean;
- mask detection: the detector reports a mask, among the probes whose face is found;
- joint success: face found, no detector of the set reports a mask or loses the face, and no embedder of the
  set accepts, among the probes that all embedders of the set accept when clean.

Surrogates (trained against) and held-out networks are reported apart. Intervals are bootstrap 95 % over identities.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gan_mask import attacks, files, masking, pretrained, templates
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.faces import FaceFinder, align, read_image
from gan_mask.landmarks import FRAMING
from gan_mask.networks import Generator, load_generator
from gan_mask.surrogates import Surrogates

SOFTNESS = 0.03  # of DM and plain masks where no generator says otherwise
DEFAULT_METHODS = ["none", "plain", "dm", "generator"]


@dataclass
class Probes:
    """Positions in the prepared set."""

    index: np.ndarray  # (P,) probes
    mate: np.ndarray  # (P,) another photo of the same person
    identity: np.ndarray  # (P,)


@dataclass
class Seen:
    """What the networks make of one method's files, P rows each."""

    found: np.ndarray  # bool (P,): MTCNN finds a face in the file
    similarity: dict[str, np.ndarray]  # embedder -> cosine to the mate (P,), NaN where no face is found
    mask_logit: dict[str, np.ndarray]  # detector -> (P,)
    face_logit: dict[str, np.ndarray]


def choose_probes(photos: PreparedSet, limit: int, seed: int) -> Probes:
    """Every photo of everybody with two or more, thinned to `limit` at random; the mate is the person's next photo.

    The synthetic people whose faces are shipped as templates are left out: nobody wears himself.
    """
    identities = np.asarray(photos.identities)
    order = np.argsort(identities, kind="stable")
    order = order[[photos.person(int(i)) not in templates.TEMPLATE_PEOPLE for i in order]]
    index: list[int] = []
    mate: list[int] = []
    for group in np.split(order, np.flatnonzero(np.diff(identities[order])) + 1):
        if len(group) > 1:
            index.extend(group)
            mate.extend(np.roll(group, -1))
    if not index:
        raise GanMaskError(f"the split of {len(photos)} faces has nobody with two photos: no mated pairs to measure")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(index))[:limit])
    return Probes(np.array(index)[chosen], np.array(mate)[chosen], identities[np.array(index)[chosen]])


def batches(photos: PreparedSet, index: np.ndarray, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for start in range(0, len(index), size):
        rows = slice(start, min(start + size, len(index)))
        items = [photos[int(i)] for i in index[rows]]
        yield rows, torch.stack([x["face"] for x in items]), torch.stack([x["landmarks"] for x in items])


def check_held_out(generator: Generator | None, held_out: Sequence[str]) -> None:
    """A network that the generator was trained against is no held-out network."""
    if generator is None:
        return
    known = {Path(name).name for name in generator.config.trained_against}
    if used := [name for name in held_out if Path(name).name in known]:
        raise GanMaskError(
            f"{', '.join(used)}: the generator was trained against it, so it is not held out; "
            "name it with --embedders or --detectors"
        )


@torch.no_grad()
def write_masked(
    method: attacks.Method,
    photos: PreparedSet,
    probes: Probes,
    bank: Tensor,
    softness: float,
    folder: Path,
    device: str,
) -> tuple[list[Path], float]:
    """One 8-bit PNG per probe, and the method's seconds per face. Probe i wears template i mod N."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, seconds = [], 0.0
    for rows, face, landmarks in batches(photos, probes.index, 16):
        face, landmarks = face.to(device), landmarks.to(device)
        template = bank[torch.arange(rows.start, rows.stop) % len(bank)].to(device)
        started = time.perf_counter()
        texture = method(face, landmarks, template)
        masked = face if texture is None else masking.wear(face, landmarks, texture, softness)
        images = to_8_bit(masked)  # waits for the GPU, too
        seconds += time.perf_counter() - started
        for position, image in zip(range(rows.start, rows.stop), images, strict=True):
            path = folder / f"{position:05d}.png"
            with files.replacing(path) as temporary:
                Image.fromarray(image).save(temporary, format="PNG")
            paths.append(path)
    return paths, seconds / len(paths)


def to_8_bit(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> uint8 (B, H, W, 3)."""
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def look_at(
    paths: Sequence[Path], mates: dict[str, Tensor], embedders: dict[str, Any], detectors: dict[str, Any],
    finder: FaceFinder, device: str,
) -> Seen:  # fmt: skip
    """Detect, align and embed the written files."""
    count = len(paths)
    seen = Seen(
        np.zeros(count, bool),
        *({name: np.full(count, np.nan) for name in names} for names in (embedders, detectors, detectors)),
    )
    for start in range(0, count, 16):
        images = [read_image(path) for path in paths[start : start + 16]]
        faces = finder.find(images)
        rows = [start + i for i, found in enumerate(faces) if found]
        seen.found[rows] = True
        if not rows:
            continue
        aligned = [align(images[r - start], faces[r - start][0].landmarks, *FRAMING) for r in rows]
        crops = (
            torch.stack([torch.from_numpy(crop).permute(2, 0, 1) for crop, _ in aligned]).float().div(255).to(device)
        )
        landmarks = torch.stack([torch.as_tensor(points) for _, points in aligned]).float().to(device)
        for name, embedder in embedders.items():
            seen.similarity[name][rows] = (embedder(crops, landmarks).cpu() * mates[name][rows]).sum(1).numpy()
        for name, detector in detectors.items():
            mask_logit, face_logit = detector(crops)
            seen.mask_logit[name][rows], seen.face_logit[name][rows] = (
                mask_logit.cpu().numpy(),
                face_logit.cpu().numpy(),
            )
    return seen


@torch.no_grad()
def embed_mates(embedder: Any, photos: PreparedSet, probes: Probes, device: str) -> Tensor:
    rows = [embedder(f.to(device), m.to(device)).cpu() for _, f, m in batches(photos, probes.mate, 32)]
    return torch.cat(rows)


@torch.no_grad()
def distance(perceptual: Any, paths: Sequence[Path], others: Sequence[Path], device: str) -> np.ndarray:
    """Perceptual distances (P,) between two methods' files."""
    rows = []
    for start in range(0, len(paths), 16):
        pair = (np.stack([read_image(p) for p in part[start : start + 16]]) for part in (paths, others))
        a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255).to(device) for x in pair)
        rows.append(perceptual(a, b).cpu().numpy())
    return np.concatenate(rows).astype(float)


# ---------------------------------------------------------------------------------------- rates


def outcomes(
    seen: Seen, clean: Seen, thresholds: dict[str, float], embedders: Sequence[str], detectors: Sequence[str]
) -> dict[str, np.ndarray]:
    """Per measure an array (P,) of 1, 0, or NaN where the probe does not count."""
    result = {"face found": seen.found.astype(float)}
    dodged_all, accepted_all = seen.found.copy(), np.ones(len(seen.found), bool)
    for name in embedders:
        accepted = clean.found & (clean.similarity[name] >= thresholds[name])
        dodged = seen.found & (seen.similarity[name] < thresholds[name])
        result[f"dodging {name}"] = np.where(accepted, dodged, np.nan)
        accepted_all &= accepted
        dodged_all &= dodged
    unseen_all = seen.found.copy()
    for name in detectors:
        result[f"mask detection {name}"] = np.where(seen.found, seen.mask_logit[name] > 0, np.nan)
        unseen_all &= (seen.mask_logit[name] <= 0) & (seen.face_logit[name] > 0)
    if embedders and detectors:
        result["joint success"] = np.where(accepted_all, dodged_all & unseen_all, np.nan)
    return result


def rate(values: np.ndarray, identities: np.ndarray, draws: int = 2000) -> dict[str, float | int | None]:
    """Mean of the values that count, with the bootstrap 95 % interval over identities."""
    counts = ~np.isnan(values)
    if not counts.any():
        return {"rate": None, "low": None, "high": None, "probes": 0}
    people, person = np.unique(identities[counts], return_inverse=True)
    hits = np.bincount(person, values[counts])
    size = np.bincount(person)
    chosen = np.random.default_rng(0).integers(len(people), size=(draws, len(people)))
    means = hits[chosen].sum(1) / size[chosen].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"rate": hits.sum() / size.sum(), "low": low, "high": high, "probes": int(counts.sum())}


def table(results: dict[str, dict[str, Any]]) -> str:
    """methods x measures, per cent with interval."""
    measures = list(next(iter(results.values())))
    width = max(26, *(len(measure) + 2 for measure in measures))
    lines = [f"{'':14}" + "".join(f"{m:>{width}}" for m in measures)]
    for name, row in results.items():
        cells = (
            "-" if r["rate"] is None else f"{100 * r['rate']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
            for r in row.values()
        )
        lines.append(f"{name:14}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def strip(paths: dict[str, list[Path]], columns: int = 8) -> Image.Image:
    """A row of the same faces per method."""
    count = len(next(iter(paths.values())))
    chosen = np.linspace(0, count - 1, min(columns, count)).astype(int)
    rows = [np.concatenate([read_image(p[i]) for i in chosen], 1) for p in paths.values()]
    return Image.fromarray(np.concatenate(rows))


# ---------------------------------------------------------------------------------------- command


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gan_mask.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="prepared set (data_prep/prepare.py)")
    parser.add_argument("--split", default="test", help="split of identities: train, val, test (default: test)")
    parser.add_argument(
        "--out", required=True, help="folder for report.json, probes.csv, strip.png and the masked faces"
    )
    parser.add_argument(
        "--checkpoint", help="generator: a folder with config.json and model.safetensors, or a run folder"
    )
    known = ", ".join(attacks.METHODS)
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS, help=f"of {known} (default: all but the slow)")
    parser.add_argument("--lpips", action="store_true", help="measure LPIPS (AlexNet) to the DM result as well")
    parser.add_argument("--embedders", nargs="*", default=["dlib"], help="surrogate embedders (default: dlib)")
    parser.add_argument(
        "--detectors", nargs="*", default=["classifier"], help="surrogate mask detectors (default: classifier)"
    )
    parser.add_argument("--held-out-embedders", nargs="*", default=[], help="embedders that training never saw")
    parser.add_argument("--held-out-detectors", nargs="*", default=[], help="mask detectors that training never saw")
    parser.add_argument("--far", type=float, default=1e-3, help="false-accept rate of the thresholds (default: 0.001)")
    parser.add_argument("--templates", nargs="+", default=["faces"], help="template names or groups (default: faces)")
    parser.add_argument("--probes", type=int, default=500, help="most probes (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of probes (default: 0)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cpu or cuda (default: cpu)")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    if args.probes < 1:
        raise GanMaskError(f"--probes must be at least 1, got {args.probes}")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise GanMaskError(f"--device {args.device}: this machine has no CUDA device; use --device cpu")
    both = {*args.embedders} & {*args.held_out_embedders} | {*args.detectors} & {*args.held_out_detectors}
    if both:
        raise GanMaskError(f"{', '.join(sorted(both))}: named as surrogate and as held out; it can only be one of them")
    if args.lpips and "dm" not in args.methods:
        raise GanMaskError("--lpips compares with the DM result: add dm to --methods")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    check(args)
    photos = PreparedSet(args.data, args.split)
    probes = choose_probes(photos, args.probes, args.seed)
    generator = load_generator(args.checkpoint, args.device) if args.checkpoint else None
    check_held_out(generator, [*args.held_out_embedders, *args.held_out_detectors])
    size = generator.texture_size if generator else masking.TEXTURE
    softness = generator.config.softness if generator else SOFTNESS
    sets = {
        "surrogates": (args.embedders, args.detectors),
        "held-out": (args.held_out_embedders, args.held_out_detectors),
    }
    embedders = {name: pretrained.load_embedder(name, args.device) for e, _ in sets.values() for name in e}
    detectors = {name: pretrained.load_detector(name, args.device) for _, d in sets.values() for name in d}
    thresholds = {name: embedder.threshold(args.far) for name, embedder in embedders.items()}
    surrogates = Surrogates(
        [embedders[name] for name in args.embedders],
        [thresholds[name] for name in args.embedders],
        [detectors[name] for name in args.detectors],
    )
    methods = {name: attacks.method(name, generator, surrogates) for name in dict.fromkeys(["none", *args.methods])}
    perceptual = pretrained.load_perceptual(device=args.device) if args.lpips else None
    bank = templates.load_all(args.templates, size)
    finder = FaceFinder(args.device)

    out = Path(args.out)
    mates = {name: embed_mates(embedder, photos, probes, args.device) for name, embedder in embedders.items()}
    paths, seconds, seen = {}, {}, {}
    for name, method in tqdm(methods.items(), desc="methods"):
        folder = out / "faces" / name
        paths[name], seconds[name] = write_masked(method, photos, probes, bank, softness, folder, args.device)
        seen[name] = look_at(paths[name], mates, embedders, detectors, finder, args.device)

    report: dict[str, Any] = {
        "data": str(args.data),
        "split": args.split,
        "probes": len(probes.index),
        "identities": len(set(probes.identity)),
        "far": args.far,
        "thresholds": thresholds,
        "templates": args.templates,
        "checkpoint": args.checkpoint,
        "seconds_per_face": seconds,
        "results": {},
    }
    if perceptual:
        distances = {n: distance(perceptual, paths[n], paths["dm"], args.device) for n in paths}
        report["lpips_to_dm"] = {name: rate(d, probes.identity) for name, d in distances.items()}
    for title, (e, d) in sets.items():
        if e or d:
            measured = {name: outcomes(s, seen["none"], thresholds, e, d) for name, s in seen.items()}
            report["results"][title] = {
                name: {m: rate(v, probes.identity) for m, v in row.items()} for name, row in measured.items()
            }
    files.write_json(out / "report.json", report)
    write_rows(out / "probes.csv", photos, probes, seen)
    with files.replacing(out / "strip.png") as temporary:
        strip(paths).save(temporary, format="PNG")
    return report


def write_rows(path: Path, photos: PreparedSet, probes: Probes, seen: dict[str, Seen]) -> None:
    """Tidy: one row per probe, method and network."""
    with files.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(
            ["probe", "mate", "identity", "method", "network", "face_found", "similarity", "mask_logit", "face_logit"]
        )
        for name, s in seen.items():
            for i in range(len(probes.index)):
                head = [
                    photos.source(int(probes.index[i])),
                    photos.source(int(probes.mate[i])),
                    photos.person(int(probes.index[i])),
                    name,
                ]
                for network, values in s.similarity.items():
                    writer.writerow([*head, network, int(s.found[i]), f"{values[i]:.5f}", "", ""])
                for network, values in s.mask_logit.items():
                    writer.writerow(
                        [*head, network, int(s.found[i]), "", f"{values[i]:.4f}", f"{s.face_logit[network][i]:.4f}"]
                    )


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    try:
        report = evaluate(args)
    except (GanMaskError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    who = f"{report['probes']} probes of {report['identities']} people ({args.split} split)"
    print(f"\n{who}, thresholds at FAR {args.far:g}")
    for title, results in report["results"].items():
        print(f"\n{title}; per cent [95 % interval over identities]\n{table(results)}")
    for name, seconds in report["seconds_per_face"].items():
        lpips = report.get("lpips_to_dm", {}).get(name)
        natural = f", LPIPS to DM {lpips['rate']:.3f} [{lpips['low']:.3f}, {lpips['high']:.3f}]" if lpips else ""
        print(f"{name:14}{1000 * seconds:9.1f} ms per face{natural}")
    print(f"\nfigures: {Path(args.out) / 'report.json'}   picture: {Path(args.out) / 'strip.png'}")
