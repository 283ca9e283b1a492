"""Fine-tuning of a mask detector, resumable, and its operating point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gan_mask import files
from gan_mask.cli import Progress
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.harden import pictures
from gan_mask.harden.options import HardenConfig
from gan_mask.harden.pictures import BACKGROUND, BARE, MASKED
from gan_mask.harden.pools import Pool
from gan_mask.pretrained.classifier import EitherNet, MaskClassifier
from gan_mask.pretrained.protocol import Detector

PAIRS = ("faced", "worn", "background", "real")
SHARES = (0.9, 0.08, 0.02, 0.0)  # few ordinary masks: the original detector beside it knows those
SHARES_WITH_REAL = (0.86, 0.07, 0.02, 0.05)


def steps_of(c: HardenConfig, number: int) -> int:
    return c.steps[min(number, len(c.steps)) - 1]


class Examples(Dataset[Any]):
    """Seeded draws of (face [3,S,S] in [0,1], class), S the side of the set's crops.

    An odd one is the bare face of the even one before it, seen through the same camera, so that all that tells them
    apart is the mask; of a real mask any real bare face.
    """

    def __init__(
        self, c: HardenConfig, photos: PreparedSet, pools: Sequence[Pool], pack: dict[int, list[Any]] | None,
        number: int,
    ) -> None:  # fmt: skip
        self.photos, self.pools, self.pack, self.seed = photos, pools, pack, (c.seed, number)
        self.length = steps_of(c, number) * c.batch_size
        self.shares = SHARES_WITH_REAL if pack else SHARES
        self.camera = pictures.Camera()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((*self.seed, i // 2))
        bare = bool(i % 2)
        kind, through = str(rng.choice(PAIRS, p=self.shares)), int(rng.integers(2**31))
        if kind == "real":
            assert self.pack
            label = BARE if bare else MASKED
            picture = torch.from_numpy(self.pack[label][rng.integers(len(self.pack[label]))]).permute(2, 0, 1)
            face = F.interpolate(picture[None] / 255, self.photos.size, mode="bilinear", align_corners=False)[0]
            return self.camera(face, through), label
        pool = self.pools[int(rng.integers(len(self.pools)))]
        row = int(rng.integers(len(pool.rows)))
        item = self.photos[int(pool.rows[row])]
        label, face = BARE, item["face"]
        if not bare and kind == "faced":
            label, face = MASKED, torch.from_numpy(pool.faces[row] / np.float32(255))
        elif not bare and kind == "worn":
            label, face = MASKED, pictures.ordinary_mask(face, item["landmarks"], rng)
        elif not bare:
            label, face = BACKGROUND, pictures.background(face, rng)
        return self.camera(face, through), label


def loss_of(mask_logit: Tensor, face_logit: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of both decisions, (B,) logits and classes -> mean. Backgrounds are no mask and no face."""
    masked, face = (label == MASKED).float(), (label != BACKGROUND).float()
    loss = F.binary_cross_entropy_with_logits(mask_logit, masked)
    if face_logit.requires_grad:  # a detector without a background class takes every picture for a face
        loss = loss + 0.5 * F.binary_cross_entropy_with_logits(face_logit, face)
    return loss


def fit(c: HardenConfig, number: int, detector: Detector, examples: Examples, folder: Path) -> None:
    """Fine-tune in place. Our classifier's batch norms learn as well; what else a detector has stays as in use."""
    steps = steps_of(c, number)
    parameters = dict(detector.named_parameters())
    path = folder / "state.safetensors"
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for module in detector.modules() if isinstance(detector, MaskClassifier) else ():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    optimizer = torch.optim.AdamW(parameters.values(), c.learning_rate, weight_decay=1e-2)
    start = restore(path, detector, optimizer)
    loader = DataLoader(
        torch.utils.data.Subset(examples, range(start * c.batch_size, len(examples))), c.batch_size,
        num_workers=c.workers if start < steps else 0,
    )  # fmt: skip
    bar = Progress(loader, desc=f"round {number}: detector", initial=start, total=steps, mininterval=5)
    for step, (faces, labels) in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)
        faces = faces.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=c.mixed_precision == "bf16"):
            mask_logit, face_logit = detector(faces)
        loss = loss_of(mask_logit, face_logit, labels)
        if not torch.isfinite(loss):
            raise GanMaskError(
                f"step {step}: the loss is no longer finite; lower --learning_rate and use another --out"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % c.save_every == 0 or step + 1 == steps:
            save_state(path, step + 1, detector, optimizer)
    detector.freeze()


@torch.no_grad()
def set_operating_point(detector: MaskClassifier, photos: PreparedSet, false_alarms: float) -> None:
    """Move the second network's operating point: at most this share of the set's unmasked faces is to be reported.

    Where the first one alone reports more, the second one adds none.
    """
    assert isinstance(detector.net, EitherNet)
    net = detector.net
    alone = MaskClassifier(net.first), MaskClassifier(net.second)
    seen = [[part(photos[i]["face"][None])[0] for part in alone] for i in range(len(photos))]
    first, second = (torch.cat(logits) for logits in zip(*seen, strict=True))
    quiet = first <= 0
    ordered = second[quiet].sort(descending=True).values
    allowed = max(0, int(false_alarms * len(quiet)) - int((~quiet).sum()))
    last = net.second.head[-1]
    assert isinstance(last, nn.Linear)
    last.bias[MASKED] -= ordered[allowed] + 1e-3  # beyond rounding


def save_state(path: Path, step: int, detector: Detector, optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in detector.state_dict().items()}
    for name, parameter in detector.named_parameters():
        state = optimizer.state.get(parameter, {})  # empty where the loss does not reach, such as a box regression
        tensors |= {f"{key}|{name}": value.contiguous() for key, value in state.items()}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, {"step": str(step)})


def restore(path: Path, detector: Detector, optimizer: torch.optim.Optimizer) -> int:
    """Steps done before; 0 without a checkpoint."""
    if not path.is_file():
        return 0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f, torch.no_grad():
            for name, value in detector.state_dict().items():
                value.copy_(f.get_tensor(name))
            for name, parameter in detector.named_parameters():
                keys = [key for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}|{name}" in f.keys()]
                if keys:
                    optimizer.state[parameter] = {key: f.get_tensor(f"{key}|{name}") for key in keys}
            return int(f.metadata()["step"])
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise GanMaskError(f"{path}: damaged ({error}); delete it to repeat this round") from error
