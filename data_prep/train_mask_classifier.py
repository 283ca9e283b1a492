"""Train the shipped mask classifier (gan_mask/assets/mask_classifier.safetensors).

python data_prep/train_mask_classifier.py --data PREPARED_LFW --real-masks realmask160.zip --out classifier.safetensors

Bare faces: the training identities of a prepared set and the bare half of the real-mask pack.
Masked faces: the pack's real masks, and plain, patterned and noisy masks worn on the prepared faces
with our own geometry. Faced masks are left out on purpose: the defender this network stands for has
not heard of them. Background: corners, shuffled pieces and blank pictures. Needs the `dev` extra.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))

from gan_mask import cli  # noqa: E402
from gan_mask.data import PreparedSet  # noqa: E402
from gan_mask.harden.pictures import (  # noqa: E402
    BACKGROUND,
    BARE,
    MASKED,
    Camera,
    background,
    ordinary_mask,
    real_masks,
)
from gan_mask.pretrained.classifier import SIZE, MaskClassifierNet, save  # noqa: E402
from gan_mask.values import COUNT, LEARNING_RATE, SEED, Range  # noqa: E402


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("input and output").add_argument
    add("--data", required=True, help="prepared set of unmasked faces (data_prep/prepare.py); required")
    add("--real-masks", required=True, help="zip with with_mask/, without_mask/ and labels.csv; required")
    add("--out", required=True, help="safetensors file to write; required")
    add = parser.add_argument_group("training").add_argument
    add("--steps", type=cli.number(int, COUNT), default=1500, help="optimiser steps (default: 1500)")
    add("--batch-size", type=cli.number(int, Range(1, 65536)), default=48, help="pictures per step (default: 48)")
    add(
        "--learning-rate",
        type=cli.number(float, LEARNING_RATE),
        default=2e-3,
        help="largest one of AdamW's cycle (default: 0.002)",
    )
    add("--seed", type=cli.number(int, SEED), default=0, help="of everything random (default: 0)")
    cli.add_message_options(parser)
    args = parser.parse_args()
    with cli.ending("the same command starts over"):
        train(args)


def train(args: argparse.Namespace) -> None:
    started = time.time()
    torch.manual_seed(args.seed)
    pack = real_masks(args.real_masks)
    faces = PreparedSet(args.data, "train")
    net = fit(MaskFaces(faces, pack["train"], args.steps * args.batch_size, args.seed, True), args)
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
    bar = cli.Progress(loader, desc="train", mininterval=5)
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
        self.camera = Camera()

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
                face = ordinary_mask(face, item["landmarks"], rng)
            elif kind == "background":
                face = background(face, rng)
        if self.augment:
            face = self.camera(face, int(rng.integers(2**31)))
        return F.interpolate(face[None], (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)[0], label


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
            [ordinary_mask(item["face"], item["landmarks"], rng) for item in items], MASKED),
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
    main()
