"""A folder of photos in, masked copies out: python sample.py --faces DIR --out DIR --checkpoint CHECKPOINT

Every face of every photo (or only the largest) wears a mask, at the photo's full size. OUT receives

- each masked photo under the same relative path and name, tagged as not an original photograph;
- results.csv, one row per face, and one per photo that has none or cannot be read;
- overview.png, unmasked and masked faces side by side.

`similarity` in the table is the cosine between the embeddings of the clean face and of the masked
face, after the masked photo was written, read again, and its face found and aligned anew; below
`threshold` (FAR 0.001) the embedder takes the two for different people. A mask logit above 0 means
that the detector reports a mask: before on the clean photo, after on the written file.

The same command again goes on where it stopped; with other options everything is made anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import gan_mask
from gan_mask import attacks, commands, files, masking, photo_files, pretrained, report, templates
from gan_mask.errors import GanMaskError
from gan_mask.faces import IMAGE_SUFFIXES, Face, FaceFinder, UnreadableImage, align, read_image, to_8_bit, to_tensors
from gan_mask.landmarks import FRAMING
from gan_mask.networks import Generator, GeneratorConfig, load_generator
from gan_mask.surrogates import Surrogates

DEFAULT_CHECKPOINT = templates.ASSETS / "generator"  # in the package; its card: checkpoints/synthfaces
FAR = 1e-3  # false-accept rate of the thresholds
BATCH_PIXELS = 30_000_000  # of photos held in memory at a time (more only if one photo alone is larger)
PAIRS = 24  # faces on the overview
GALLERY = 200  # faces in the gallery, about 50 kB each
JOURNAL = ".sample.jsonl"  # in OUT: the settings, then one line per finished photo

Row = dict[str, Any]


@dataclass
class Photo:
    """A photo that is being worked on."""

    name: str  # path below --faces, with /
    image: np.ndarray  # uint8 (H, W, 3); the masks are put onto it
    faces: list[Face]
    worn: dict[int, Row] = field(default_factory=dict)  # per face: the template and, if optimised, what it took
    seconds: float = 0.0


@dataclass
class Sampler:
    """Everything that is loaded once."""

    source: Path
    out: Path
    config: GeneratorConfig
    method: attacks.Method
    method_name: str
    checkpoint: str | None
    template: str  # a name, a photo, 'random' or 'match'
    harmonise: bool
    seed: int
    largest: bool
    batch_size: int
    device: str
    finder: FaceFinder
    embedders: dict[str, pretrained.Embedder]
    detectors: dict[str, pretrained.Detector]

    def photo(self, name: str) -> Photo:
        return Photo(name, read_image(self.source / name, name), [])

    def find_faces(self, photos: Sequence[Photo]) -> None:
        for photo, faces in zip(photos, self.finder.find([photo.image for photo in photos]), strict=True):
            photo.faces = faces[:1] if self.largest else faces

    def choose_templates(self, wearers: Sequence[tuple[Photo, int]], crops: Tensor, landmarks: Tensor) -> list[str]:
        """The templates' names; a random one depends on seed, photo and face alone."""
        if self.method_name == "plain":
            return [attacks.PLAIN] * len(wearers)
        if self.template == "match":
            return templates.best(crops, landmarks)
        if self.template == "random":
            faces = templates.groups()["faces"]
            return [random.Random(f"{self.seed} {photo.name} {face}").choice(faces) for photo, face in wearers]
        return [self.template] * len(wearers)

    @torch.no_grad()
    def wear(self, photos: Sequence[Photo]) -> None:
        """Put masks on all faces of the photos, in place; larger faces last, since they are in front."""
        wearers = [(photo, index) for photo in photos for index in reversed(range(len(photo.faces)))]
        size = (self.config.texture_height, self.config.texture_width)
        for part in _parts(wearers, self.batch_size):
            crops, landmarks = self._crops(
                [(p.image, p.faces[i]) for p, i in part], self.config.size, self.config.margin
            )
            names = self.choose_templates(part, crops, landmarks)
            bank = templates.load_all(names, size).to(self.device)
            if self.harmonise:
                bank = templates.harmonise(bank, crops, landmarks)
            textures = self.method(crops, landmarks, bank)
            assert textures is not None  # only the method 'none' wears nothing
            for (photo, index), name, texture in zip(part, names, textures, strict=True):
                photo.worn[index] = {"template": name}
                wear_on_photo(photo.image, photo.faces[index].landmarks, texture, self.config.softness)
            if isinstance(self.method, attacks.Optimised):
                record = self.method.records.pop()
                for (photo, index), iterations, seconds in zip(part, *(x.tolist() for x in record), strict=True):
                    photo.worn[index] |= {"iterations": iterations, "attack_seconds": round(seconds, 3)}

    @torch.no_grad()
    def look_at(self, faces: Sequence[tuple[np.ndarray, Face]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings (N, D) per embedder and mask logits (N,) per detector of faces in photos."""
        embeddings: dict[str, list[Tensor]] = {name: [] for name in self.embedders}
        logits: dict[str, list[Tensor]] = {name: [] for name in self.detectors}
        for part in _parts(faces, self.batch_size):
            crops, landmarks = self._crops(part, *FRAMING)
            for name, embedder in self.embedders.items():
                embeddings[name].append(embedder(crops, landmarks).cpu())
            for name, detector in self.detectors.items():
                logits[name].append(detector(crops)[0].cpu())
        return {k: torch.cat(v) for k, v in embeddings.items()}, {k: torch.cat(v) for k, v in logits.items()}

    def _crops(self, faces: Sequence[tuple[np.ndarray, Face]], size: int, margin: float) -> tuple[Tensor, Tensor]:
        return to_tensors([align(image, face.landmarks, size, margin) for image, face in faces], self.device)


def wear_on_photo(photo: np.ndarray, landmarks: np.ndarray, texture: Tensor, softness: float) -> None:
    """Put a mask on one face of a photo, in place, at the cost of that face only.

    photo uint8 (H, W, 3), landmarks (68, 2) px, texture (3, h, w). No pixel outside of the mask changes.
    """
    points = landmarks[list(masking.MASK_LANDMARKS)]
    x0, y0 = np.floor(points.min(0)).astype(int).clip(0)
    x1, y1 = np.ceil(points.max(0)).astype(int) + 1
    patch = photo[y0:y1, x0:x1]
    if not patch.size:
        return
    image = torch.from_numpy(patch).permute(2, 0, 1)[None].to(texture.device) / 255
    shifted = torch.from_numpy(landmarks - np.array([x0, y0], np.float32))[None].to(texture.device)
    worn = masking.wear(image, shifted, texture[None], softness)[0]
    photo[y0:y1, x0:x1] = to_8_bit(worn)


# ------------------------------------------------------------------------------------------- the photos


def find_photos(folder: Path) -> tuple[list[str], list[Row]]:
    """Relative paths of all image files below `folder`, sorted, and rows for folders that cannot be listed.

    Links are followed, each folder is visited once (links may form a loop).
    """
    photos: list[str] = []
    problems: list[Row] = []
    visited = set()

    def unlisted(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        problems.append({"photo": name, "status": "unreadable", "note": f"folder cannot be listed ({error.strerror})"})

    for root, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        photos += [
            (Path(root) / name).relative_to(folder).as_posix()
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(photos), problems


def check_folders(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise GanMaskError(f"--faces {source}: no such folder")
    inner, outer = source.resolve(), out.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise GanMaskError(f"--out {out} and --faces {source} must be apart: the originals are never written to")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GanMaskError(f"--out {out}: cannot be made ({error.strerror})") from error


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# ------------------------------------------------------------------------------------------- one batch


def process(sampler: Sampler, photos: Sequence[Photo], stems: Counter[str]) -> dict[str, list[Row]]:
    """Mask the photos, write them, look at what was written; rows per photo."""
    start = time.perf_counter()
    sampler.find_faces(photos)
    with_faces = [photo for photo in photos if photo.faces]
    clean = [(photo.image, face) for photo in with_faces for face in photo.faces]
    rows: dict[str, list[Row]] = {p.name: [{"photo": p.name, "status": "no face"}] for p in photos if not p.faces}
    if clean:
        before = sampler.look_at(clean)
        sampler.wear(with_faces)
        for photo in with_faces:
            rows[photo.name] = write(sampler, photo, stems)
        score(sampler, with_faces, rows, *before)
    seconds = (time.perf_counter() - start) / len(photos)
    for photo in photos:
        for row in rows[photo.name]:
            row["seconds"] = round(seconds + photo.seconds, 3)
    return rows


def write(sampler: Sampler, photo: Photo, stems: Counter[str]) -> list[Row]:
    """Write the masked photo; one row per face."""
    original = photo_files.read_original(sampler.source / photo.name)
    target, note = photo.name, ""
    if not original.keeps_format:
        stem = os.path.splitext(photo.name)[0]
        target = f"{stem}.png" if stems[stem] == 1 else f"{photo.name}.png"
        reason = "only the first picture of an animation" if original.frames > 1 else f"{original.format} holds no tag"
        note = f"written as PNG ({reason})"
    named = dict.fromkeys(photo.worn[index]["template"] for index in range(len(photo.faces)))
    tag = photo_files.provenance(sampler.method_name, sampler.checkpoint, ",".join(named))
    path = sampler.out / target
    path.parent.mkdir(parents=True, exist_ok=True)
    photo_files.write(photo.image, path, original, tag)
    return [
        {
            "photo": photo.name, "status": "ok", "written": target, "face": index,
            "box": " ".join(f"{edge:.1f}" for edge in face.box), "note": note, **photo.worn[index],
        }
        for index, face in enumerate(photo.faces)
    ]  # fmt: skip


def score(
    sampler: Sampler,
    photos: Sequence[Photo],
    rows: dict[str, list[Row]],
    before: dict[str, Tensor],
    logits: dict[str, Tensor],
) -> None:
    """Complete the rows with what the networks make of the written files."""
    written = [read_image(sampler.out / rows[photo.name][0]["written"]) for photo in photos]
    found = sampler.finder.find(written)
    flat = [row for photo in photos for row in rows[photo.name]]
    again = [
        (image, match(face, faces))
        for photo, image, faces in zip(photos, written, found, strict=True)
        for face in photo.faces
    ]
    positions = [i for i, (_, face) in enumerate(again) if face is not None]
    after = sampler.look_at([again[i] for i in positions]) if positions else ({}, {})  # type: ignore[misc]
    for i, row in enumerate(flat):
        row["face_found_after"] = int(again[i][1] is not None)
        for name, values in logits.items():
            row[f"mask_logit_before_{name}"] = round(float(values[i]), 4)
    for k, i in enumerate(positions):
        for name, embeddings in after[0].items():
            flat[i][f"similarity_{name}"] = round(float(embeddings[k] @ before[name][i]), 5)
            flat[i][f"threshold_{name}"] = sampler.embedders[name].threshold(FAR)
        for name, values in after[1].items():
            flat[i][f"mask_logit_after_{name}"] = round(float(values[k]), 4)


def match(face: Face, candidates: Sequence[Face]) -> Face | None:
    """The face found in the written file at the place of `face`: boxes overlap by a third (IoU) at least."""
    best = max(candidates, key=lambda other: overlap(face.box, other.box), default=None)
    return best if best is not None and overlap(face.box, best.box) >= 1 / 3 else None


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of boxes x0, y0, x1, y1."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(shared / max(areas - shared, 1e-9))


# ------------------------------------------------------------------------------------------- the whole folder


class Journal:
    """Finished photos in OUT, so that an interrupted run can go on. One JSON line each; the first is the settings."""

    def __init__(self, folder: Path, source: Path, settings: dict[str, Any]) -> None:
        self.path, self.folder, self.source = folder / JOURNAL, folder, source
        self.entries: dict[str, dict[str, Any]] = {}
        lines = self._read()
        if lines and lines[0] == settings:
            self.entries = {line["photo"]: line for line in lines[1:]}
        with files.replacing(self.path) as temporary, open(temporary, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(line) + "\n" for line in (settings, *self.entries.values()))

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:  # the last line of a run that was killed
                    break
        return lines

    def finished(self, name: str) -> bool:
        """Whether `name` is done, unchanged since, and its masked copy still there."""
        entry = self.entries.get(name)
        if entry is None or entry["version"] != self._version(name):
            return False
        return all((self.folder / row["written"]).is_file() for row in entry["rows"] if "written" in row)

    def add(self, rows: dict[str, list[Row]]) -> None:
        for name, found in rows.items():
            self.entries[name] = {"photo": name, "version": self._version(name), "rows": found}
        # A batch in one write: a killed run then goes on with the batches, and so the bits, of an uninterrupted one.
        with open(self.path, "ab") as f:
            f.write("".join(json.dumps(self.entries[name]) + "\n" for name in rows).encode())

    def _version(self, name: str) -> list[int] | None:
        try:
            status = os.stat(self.source / name)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]


def sample(args: argparse.Namespace) -> list[Row]:
    """Do what the command says; the rows of results.csv."""
    source, out = Path(args.faces), Path(args.out)
    check_folders(source, out)
    names, problems = find_photos(source)
    if not names:
        raise GanMaskError(f"--faces {source}: no image files in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if "overview.png" in names:
        raise GanMaskError(f"{source / 'overview.png'}: this command writes a picture of that name; rename the photo")
    sampler = load(args)
    files.remove_leftovers(out)
    journal = Journal(out, source, settings(args))
    todo = [name for name in names if not journal.finished(name)]
    if len(todo) < len(names):
        print(f"{len(names) - len(todo)} of {len(names)} photos were done before")
    stems = Counter(os.path.splitext(name)[0] for name in names)
    with commands.Progress(total=len(todo), desc="photos", unit="photo") as bar:
        for batch, unreadable in batches(sampler, todo):
            rows = process(sampler, batch, stems) if batch else {}
            journal.add(rows | unreadable)
            bar.update(len(rows) + len(unreadable))
    rows_of_all = [row for name in names for row in journal.entries[name]["rows"]] + problems
    write_table(out / "results.csv", rows_of_all, sampler)
    write_overview(out / "overview.png", rows_of_all, sampler)
    if args.show:
        write_gallery(out / "gallery.html", rows_of_all, sampler)
    print_summary(rows_of_all, sampler)
    return rows_of_all


def batches(sampler: Sampler, names: Sequence[str]) -> Iterator[tuple[list[Photo], dict[str, list[Row]]]]:
    """Photos in batches that fit into memory, with rows for those that cannot be read."""
    batch: list[Photo] = []
    unreadable: dict[str, list[Row]] = {}
    for name in names:
        start = time.perf_counter()
        try:
            photo = sampler.photo(name)
            photo.seconds = time.perf_counter() - start
            batch.append(photo)
        except UnreadableImage as error:
            unreadable[name] = [{"photo": name, "status": "unreadable", "note": error.reason}]
        pixels = sum(p.image.shape[0] * p.image.shape[1] for p in batch)
        if len(batch) + len(unreadable) >= sampler.batch_size or pixels >= BATCH_PIXELS:
            yield batch, unreadable
            batch, unreadable = [], {}
    if batch or unreadable:
        yield batch, unreadable


def write_table(path: Path, rows: Sequence[Row], sampler: Sampler) -> None:
    columns = ["photo", "status", "face", "written", "template", "box", "face_found_after"]
    for name in sampler.embedders:
        columns += [f"similarity_{name}", f"threshold_{name}"]
    for name in sampler.detectors:
        columns += [f"mask_logit_before_{name}", f"mask_logit_after_{name}"]
    if isinstance(sampler.method, attacks.Optimised):
        columns += ["iterations", "attack_seconds"]
    columns += ["seconds", "note"]
    with files.replacing(path) as temporary:
        # surrogateescape: file names need not be UTF-8
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(rows)


def write_overview(path: Path, rows: Sequence[Row], sampler: Sampler) -> None:
    """A picture of unmasked and masked faces."""
    pairs, title = _pairs(rows, sampler, PAIRS)
    if pairs:
        report.contact_sheet(pairs, f"unmasked | masked: {title}", path)
    else:
        path.unlink(missing_ok=True)  # of an earlier run


def write_gallery(path: Path, rows: Sequence[Row], sampler: Sampler) -> None:
    """A page with a slider between each unmasked and masked face."""
    from gan_mask import gallery  # needs jinja2

    pairs, title = _pairs(rows, sampler, GALLERY)
    gallery.write(pairs, title, path)
    print(f"gallery: {path}")


def _pairs(rows: Sequence[Row], sampler: Sampler, most: int) -> tuple[list[report.Pair], str]:
    """At most so many faces, evenly chosen from the table, and what they are."""
    masked = [row for row in rows if row["status"] == "ok"]
    chosen = [masked[i] for i in np.linspace(0, len(masked) - 1, min(most, len(masked))).astype(int)]
    title = f"{len(chosen)} of {len(masked)} faces, method {sampler.method_name}"
    return [_pair(row, sampler) for row in chosen], title


def _pair(row: Row, sampler: Sampler) -> report.Pair:
    images = [Image.fromarray(read_image(p)) for p in (sampler.source / row["photo"], sampler.out / row["written"])]
    window = _window(images[0].size, tuple(map(float, row["box"].split())))
    caption = [row["photo"]]
    if not row["face_found_after"]:
        return report.Pair(images[0].crop(window), images[1].crop(window), [*caption, "face lost"])
    for name in sampler.embedders:
        similarity, threshold = row[f"similarity_{name}"], row[f"threshold_{name}"]
        verdict = "same" if similarity >= threshold else "other"
        caption.append(f"{name}: {verdict} person ({similarity:.2f}, threshold {threshold:.2f})")
    for name in sampler.detectors:
        logit = row[f"mask_logit_after_{name}"]
        caption.append(f"{name}: {'mask' if logit > 0 else 'no mask'} reported ({logit:+.1f})")
    return report.Pair(images[0].crop(window), images[1].crop(window), caption)


def _window(size: tuple[int, int], box: Sequence[float]) -> tuple[int, int, int, int]:
    """A square around a face's box, within the photo."""
    side = round(min(1.5 * max(box[2] - box[0], box[3] - box[1]), *size))
    left, top = (
        round(min(max((low + high - side) / 2, 0), length - side))
        for low, high, length in zip(box[:2], box[2:], size, strict=True)
    )
    return left, top, left + side, top + side


def print_summary(rows: Sequence[Row], sampler: Sampler) -> None:
    masked = [row for row in rows if row["status"] == "ok"]
    found = [row for row in masked if row["face_found_after"]]
    count = {status: sum(row["status"] == status for row in rows) for status in ("no face", "unreadable")}
    print(
        f"\n{len({row['photo'] for row in masked})} photos masked ({len(masked)} faces), "
        f"{count['no face']} without a face, {count['unreadable']} unreadable"
    )
    for row in rows:
        if row["status"] == "unreadable":
            print(f"  unreadable: {commands.printable(row['photo'])}: {row['note']}")
    if masked:
        print(f"face found in the written file: {len(found)} of {len(masked)}")
    for name in sampler.embedders if found else ():
        other = sum(row[f"similarity_{name}"] < row[f"threshold_{name}"] for row in found)
        print(f"{name} takes for another person (FAR {FAR:g}): {other} of {len(found)}")
    for name in sampler.detectors if found else ():
        before, after = (sum(row[f"mask_logit_{when}_{name}"] > 0 for row in found) for when in ("before", "after"))
        print(f"{name} reports a mask: {after} of {len(found)} (before: {before})")
    print(f"table: {sampler.out / 'results.csv'}" + (f"   picture: {sampler.out / 'overview.png'}" if masked else ""))


# ------------------------------------------------------------------------------------------- command


def load(args: argparse.Namespace) -> Sampler:
    if args.device != "cpu" and not torch.cuda.is_available():
        raise GanMaskError(f"--device {args.device}: this machine has no CUDA device; use --device cpu")
    generator = load_generator(checkpoint_of(args), args.device) if args.method == "generator" else None
    config = generator.config if generator else GeneratorConfig()
    template = args.template or config.default_template
    if template not in ("random", "match"):
        templates.load(template)  # fail now rather than after the first photos
    embedders = {name: pretrained.load_embedder(name, args.device) for name in args.embedders}
    detectors = {name: pretrained.load_detector(name, args.device) for name in args.detectors}
    surrogates = Surrogates(
        list(embedders.values()), [e.threshold(FAR) for e in embedders.values()], list(detectors.values())
    )
    return Sampler(
        source=Path(args.faces), out=Path(args.out), config=config, method=method_of(args, generator, surrogates),
        method_name=args.method, checkpoint=checkpoint_of(args).name if generator else None, template=template,
        harmonise=args.harmonise, seed=args.seed, largest=args.largest, batch_size=args.batch_size, device=args.device,
        finder=FaceFinder(args.device, args.min_score),
        embedders=embedders, detectors=detectors,
    )  # fmt: skip


def method_of(args: argparse.Namespace, generator: Generator | None, surrogates: Surrogates) -> attacks.Method:
    if generator is not None:
        return partial(generator.texture, seed=args.seed)
    return attacks.method(args.method, None, surrogates, attacks.options_of(args, GeneratorConfig().softness))


def checkpoint_of(args: argparse.Namespace) -> Path:
    """--checkpoint, or the shipped default, which lies in the checkout and not in an installed package."""
    if args.checkpoint:
        return Path(args.checkpoint)
    if not DEFAULT_CHECKPOINT.is_dir():
        raise GanMaskError(f"--checkpoint is needed for --method generator: {DEFAULT_CHECKPOINT} is not there")
    return DEFAULT_CHECKPOINT


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the outputs depend on; the same settings go on with what is in OUT."""
    values = {k: v for k, v in vars(args).items() if k not in ("out", "device", "batch_size", "show")}
    values |= {"faces": str(Path(args.faces).resolve()), "version": gan_mask.__version__}
    if args.method == "generator":
        folder = checkpoint_of(args)
        values["weights"] = [files.sha256(p) for p in sorted(folder.rglob("*.safetensors"))]
    if args.template and Path(args.template).is_file():
        values["template_file"] = files.sha256(args.template)
    return values


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sample.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("photos").add_argument
    add("--faces", required=True, help="folder of photos, searched with its subfolders; it is never written to")
    add("--out", required=True, help="folder for the masked photos, results.csv and overview.png")
    add("--show", action="store_true", help="write OUT/gallery.html, too: a slider between before and after per face")
    add("--largest", action="store_true", help="only the largest face of each photo")
    add("--min-score", type=float, default=0.9, help="lowest score of a face, in [0, 1] (default: 0.9)")

    add = parser.add_argument_group("masks").add_argument
    add("--method", default="generator", choices=[m for m in attacks.METHODS if m != "none"], help="default: generator")
    add("--checkpoint", help="generator: its folder, or a run folder of train.py (default: the shipped one)")
    add("--template", help="what the mask shows: a shipped template, a face photo, 'random', or 'match': for each face "
        "the shipped one nearest in skin tone and pose (default: the checkpoint's)")  # fmt: skip
    add("--harmonise", action="store_true", help="give the template the colours of the wearer's lower face first")
    add("--seed", type=int, default=0, help="of the methods' randomness and of random templates (default: 0)")

    add = parser.add_argument_group("networks and device").add_argument
    add("--embedders", nargs="*", default=["dlib"], metavar="NAME",
        help="measure similarity with these, optimise against them (default: dlib)")  # fmt: skip
    add("--detectors", nargs="*", default=["classifier"], metavar="NAME", help="mask detectors (default: classifier)")
    add("--batch-size", type=_positive, default=16, help="photos and faces at a time (default: 16)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="cpu or cuda (default: cpu)")
    attacks.add_options(parser)
    commands.add_message_options(parser)
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    with commands.ending():
        sample(args)
