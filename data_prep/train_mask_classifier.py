"""Train the shipped mask classifier (gan_mask/assets/mask_classifier.safetensors).

python data_prep/train_mask_classifier.py --data PREPARED_LFW --real-masks realmask160.zip --out classifier.safetensors

Bare faces: the training identities of a prepared set and the bare half of the real-mask pack.
Masked faces: the pack's real masks, and plain, patterned and noisy masks worn on the prepared faces
with our own geometry. Faced masks are left out on purpose: the defender this network stands for has
not heard of them. Background: corners, shuffled pieces and blank pictures. Needs the `dev` extra.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from gan_mask import masking  # noqa: E402
from gan_mask.data import PreparedSet  # noqa: E402
from gan_mask.errors import GanMaskError  # noqa: E402
from gan_mask.pretrained.classifier import CLASSES, SIZE, MaskClassifierNet, save  # noqa: E402

BACKGROUND, BARE, MASKED = range(len(CLASSES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared set of unmasked faces (data_prep/prepare.py)")
    parser.add_argument("--real-masks", required=True, help="zip with with_mask/, without_mask/ and labels.csv")
    parser.add_argument("--out", required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    torch.manual_seed(args.seed)
    pack = real_masks(args.real_masks)
    train = MaskFaces(PreparedSet(args.data, "train"), pack["train"], args.steps * args.batch_size, args.seed, True)
    net = fit(train, args)
    card = {
        "training": {
            "steps": args.steps, "batch_size": args.batch_size, "seed": args.seed,
            "seconds": round(time.time() - started), "prepared_set": str(Path(args.data).name),
            "real_mask_pack": Path(args.real_masks).name,
        },
        "test": evaluate(net.eval(), args, pack["test"]),
    }  # fmt: skip
    save(net, args.out, card)
    print(card)


def fit(train: Dataset[Any], args: argparse.Namespace) -> MaskClassifierNet:
    net = MaskClassifierNet()
    loader = DataLoader(train, args.batch_size, num_workers=1, prefetch_factor=4)
    optimizer = torch.optim.AdamW(net.parameters(), args.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps)
    bar = tqdm(loader, desc="train", mininterval=5)
    right = 0.0
    for faces, labels in bar:
        logits = net(faces)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = 0.98 * right + 0.02 * (logits.argmax(1) == labels).float().mean().item()
        bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{right:.3f}")
    return net


class MaskFaces(Dataset[Any]):
    """`length` seeded draws of (face [3,128,128] in [0,1], class)."""

    def __init__(self, faces: PreparedSet, pack: dict[int, list[Any]], length: int, seed: int, augment: bool) -> None:
        self.faces, self.pack, self.length, self.seed, self.augment = faces, pack, length, seed, augment
        self.pipeline: Any = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((self.seed, i))
        kind = rng.choice(["bare", "bare real", "worn", "masked real", "background"], p=[0.3, 0.1, 0.27, 0.23, 0.1])
        if kind.endswith("real"):
            label = BARE if kind == "bare real" else MASKED
            image = self.pack[label][rng.integers(len(self.pack[label]))]
            face = torch.from_numpy(image).permute(2, 0, 1) / 255
        else:
            label = {"bare": BARE, "worn": MASKED, "background": BACKGROUND}[kind]
            item = self.faces[int(rng.integers(len(self.faces)))]
            face = item["face"]
            if kind == "worn":
                face = wear_random_mask(face, item["landmarks"], rng)
            elif kind == "background":
                face = background(face, rng)
        if self.augment:
            face = self._augmented(face, int(rng.integers(2**31)))
        return F.interpolate(face[None], (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)[0], label

    def _augmented(self, face: Tensor, seed: int) -> Tensor:
        import albumentations as A

        if self.pipeline is None:
            self.pipeline = A.Compose([
                A.HorizontalFlip(p=0.5),
                A.Affine(scale=(0.8, 1.4), translate_percent=(-0.08, 0.08), rotate=(-12, 12), border_mode=1, p=0.9),
                A.RandomBrightnessContrast(0.25, 0.25, p=0.7),
                A.HueSaturationValue(8, 30, 0, p=0.5),
                A.OneOf([A.GaussianBlur((3, 5)), A.Downscale((0.4, 0.8)), A.ImageCompression("jpeg", (30, 90))], p=0.5),
                A.GaussNoise((0.01, 0.05), p=0.2),
                A.ToGray(p=0.05),
            ])  # fmt: skip
        self.pipeline.set_random_seed(seed)
        image = (face * 255).round().byte().permute(1, 2, 0).numpy()
        return torch.from_numpy(np.ascontiguousarray(self.pipeline(image=image)["image"])).permute(2, 0, 1) / 255


def wear_random_mask(face: Tensor, landmarks: Tensor, rng: np.random.Generator) -> Tensor:
    """A plain, patterned or noisy mask with soft folds, worn a little too high, low, wide or narrow."""
    height, width = masking.TEXTURE
    colours = np.array([rng.uniform(0, 1, 3), (0.62, 0.76, 0.85), (0.95, 0.95, 0.95), (0.08, 0.08, 0.09)])
    colour = torch.from_numpy(rng.choice(colours))
    texture = colour.float()[:, None, None].expand(3, height, width).clone()
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    pattern = rng.choice(
        ["plain", "stripes", "checks", "dots", "blotches", "noise"], p=[0.45, 0.12, 0.1, 0.1, 0.13, 0.1]
    )
    if pattern != "plain":
        other = torch.tensor(rng.uniform(0, 1, 3)).float()[:, None, None]
        texture = torch.lerp(texture, other, _pattern(str(pattern), u, v, rng))
    folds = _smooth_noise(rng, 6, 3) * rng.uniform(0.02, 0.15) + 0.06 * rng.uniform() * torch.sin(
        v * rng.uniform(8, 40)
    )
    texture = (texture * (0.95 + folds) * (1 - 0.25 * rng.uniform() * (u - 0.5).abs())).clamp(0, 1)
    jaw_width = float((landmarks[16] - landmarks[0]).norm())
    moved = landmarks + torch.tensor([0.0, rng.uniform(-0.08, 0.1)]).float() * jaw_width
    moved = moved + torch.from_numpy(rng.normal(0, 0.012 * jaw_width, (68, 2))).float()
    return masking.wear(face[None], moved[None], texture[None], float(rng.choice([0.01, 0.03])))[0]


def _pattern(name: str, u: Tensor, v: Tensor, rng: np.random.Generator) -> Tensor:
    frequency, angle = rng.uniform(10, 90), rng.uniform(0, np.pi)
    a, b = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    if name == "stripes":
        return (torch.sin(frequency * a) > 0).float()[None]
    if name == "checks":
        return ((torch.sin(frequency * a) > 0) ^ (torch.sin(frequency * b) > 0)).float()[None]
    if name == "dots":
        return (torch.sin(frequency * a) * torch.sin(frequency * b) > 0.5).float()[None]
    if name == "blotches":
        return _smooth_noise(rng, int(rng.integers(3, 12)), int(rng.integers(3, 12))).gt(0).float()[None]
    return torch.from_numpy(rng.uniform(0, rng.uniform(0.1, 1), (3, *u.shape))).float()


def _smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    coarse = torch.from_numpy(rng.normal(size=(1, 1, rows, columns))).float()
    return F.interpolate(coarse, masking.TEXTURE, mode="bicubic", align_corners=False)[0, 0]


def background(face: Tensor, rng: np.random.Generator) -> Tensor:
    """A corner blown up, a face cut in shuffled pieces, or a blank."""
    size = face.shape[-1]
    kind = rng.integers(3)
    if kind == 0:
        side = size // 4
        y, x = rng.choice([0, size - side]), rng.choice([0, size - side])
        patch = face[None, :, y : y + side, x : x + side]
        return F.interpolate(patch, (size, size), mode="bilinear", align_corners=False)[0]
    if kind == 1:
        pieces = int(rng.choice([4, 5, 8]))
        cut = face.unfold(1, size // pieces, size // pieces).unfold(2, size // pieces, size // pieces)
        cut = cut.flatten(1, 2)[:, rng.permutation(pieces**2)].unflatten(1, (pieces, pieces))
        return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    blank = torch.from_numpy(rng.uniform(0, 1, (3, 1, 1))).float().expand(3, size, size)
    return (blank + torch.from_numpy(rng.normal(0, 0.05, (3, size, size))).float()).clamp(0, 1)


def real_masks(path: str) -> dict[str, dict[int, list[Any]]]:
    """The pack's pictures by split and class."""
    pack: dict[str, dict[int, list[Any]]] = {s: {BARE: [], MASKED: []} for s in ("train", "test")}
    try:
        with zipfile.ZipFile(path) as archive:
            for row in csv.DictReader(io.StringIO(archive.read("labels.csv").decode())):
                image = np.array(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB"))
                pack[row["split"]][MASKED if row["label"] == "1" else BARE].append(image)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise GanMaskError(f"{path}: not the real-mask pack ({error})") from error
    return pack


@torch.no_grad()
def evaluate(net: MaskClassifierNet, args: argparse.Namespace, pack: dict[int, list[Any]]) -> dict[str, Any]:
    """Rates on pictures and identities that training has not seen."""
    bare = PreparedSet(args.data, "test")
    rng = np.random.default_rng(1)
    chosen = rng.permutation(len(bare))[:1000].tolist()
    items = [bare[i] for i in chosen]
    sets = {
        "prepared test identities, bare": ([item["face"] for item in items], BARE),
        "prepared test identities, synthetic masks": (
            [wear_random_mask(item["face"], item["landmarks"], rng) for item in items], MASKED),
        "real pack test, bare": ([torch.from_numpy(x).permute(2, 0, 1) / 255 for x in pack[BARE]], BARE),
        "real pack test, masked": ([torch.from_numpy(x).permute(2, 0, 1) / 255 for x in pack[MASKED]], MASKED),
        "backgrounds": ([background(item["face"], rng) for item in items], BACKGROUND),
    }  # fmt: skip
    result: dict[str, Any] = {}
    for name, (faces, _) in sets.items():
        batches = [torch.stack(faces[i : i + 64]) for i in range(0, len(faces), 64)]
        sized = (F.interpolate(b, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False) for b in batches)
        logits = torch.cat([net(b) for b in sized])
        background_, bare_, masked = logits.unbind(1)
        result[name] = {
            "pictures": len(faces),
            "reported as masked": round((masked > torch.logaddexp(bare_, background_)).float().mean().item(), 4),
            "face found": round((torch.logaddexp(bare_, masked) > background_).float().mean().item(), 4),
        }
    return result


if __name__ == "__main__":
    try:
        main()
    except GanMaskError as error:
        sys.exit(f"error: {error}")
