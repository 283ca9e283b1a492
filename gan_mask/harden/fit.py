"""Fine-tuning of a mask detector, resumable, and its operating point."""

from __future__ import annotations

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
from gan_mask.pretrained.classifier import SIZE, EitherNet, MaskClassifier, mask_logit
from gan_mask.pretrained.protocol import Detector, resize

KINDS = ("bare", "worn", "faced", "background", "bare real", "masked real")
SHARES = (0.36, 0.2, 0.4, 0.04, 0.0, 0.0)
SHARES_WITH_REAL = (0.28, 0.15, 0.37, 0.03, 0.05, 0.12)


def steps_of(c: HardenConfig, number: int) -> int:
    return c.steps[min(number, len(c.steps)) - 1]


class Examples(Dataset[Any]):
    """Seeded draws of (face [3,S,S] in [0,1], class), S the side of the set's crops."""

    def __init__(
        self, c: HardenConfig, photos: PreparedSet, pools: list[np.ndarray], pack: dict[int, list[Any]] | None,
        number: int,
    ) -> None:  # fmt: skip
        self.photos, self.pools, self.pack, self.seed = photos, pools, pack, (c.seed, number)
        self.length = steps_of(c, number) * c.batch_size
        self.shares = SHARES_WITH_REAL if pack else SHARES
        self.camera = pictures.Camera()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((*self.seed, i))
        kind = str(rng.choice(KINDS, p=self.shares))
        if kind.endswith("real"):
            assert self.pack
            label = BARE if kind == "bare real" else MASKED
            picture = torch.from_numpy(self.pack[label][rng.integers(len(self.pack[label]))]).permute(2, 0, 1)
            face = F.interpolate(picture[None] / 255, self.photos.size, mode="bilinear", align_corners=False)[0]
        elif kind == "faced":
            label, pool = MASKED, self.pools[rng.integers(len(self.pools))]
            face = torch.from_numpy(pool[rng.integers(len(pool))]) / 255
        else:
            item = self.photos[int(rng.integers(len(self.photos)))]
            label, face = BARE, item["face"]
            if kind == "worn":
                label, face = MASKED, pictures.ordinary_mask(face, item["landmarks"], rng)
            elif kind == "background":
                label, face = BACKGROUND, pictures.background(face, rng)
        return self.camera(face, int(rng.integers(2**31))), label


def loss_of(mask_logit: Tensor, face_logit: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of both decisions, (B,) logits and classes -> mean. Backgrounds are no mask and no face."""
    masked, face = (label == MASKED).float(), (label != BACKGROUND).float()
    loss = F.binary_cross_entropy_with_logits(mask_logit, masked)
    if face_logit.requires_grad:  # a detector without a background class takes every picture for a face
        loss = loss + 0.5 * F.binary_cross_entropy_with_logits(face_logit, face)
    return loss


def fit(c: HardenConfig, number: int, detector: Detector, examples: Examples, folder: Path) -> None:
    """Fine-tune in place, in evaluation mode: normalisation keeps the statistics of the original training."""
    steps = steps_of(c, number)
    parameters = dict(detector.named_parameters())
    path = folder / "state.safetensors"
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters.values(), c.learning_rate, weight_decay=1e-4)
    start = restore(path, parameters, optimizer)
    loader = DataLoader(
        torch.utils.data.Subset(examples, range(start * c.batch_size, len(examples))), c.batch_size,
        num_workers=c.workers if start < steps else 0,
    )  # fmt: skip
    bar = Progress(loader, desc=f"round {number}: detector", initial=start, total=steps, mininterval=5)
    for step, (faces, labels) in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
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
            save_state(path, step + 1, parameters, optimizer)
    detector.freeze()


@torch.no_grad()
def set_operating_point(detector: MaskClassifier, photos: PreparedSet, false_alarms: float) -> None:
    """Move the second network's operating point: at most this share of the set's unmasked faces is to be reported.

    Where the first one alone reports more, the second one adds none.
    """
    assert isinstance(detector.net, EitherNet)
    first, second = detector.net.first, detector.net.second
    small = [resize(photos[i]["face"][None], SIZE, SIZE) for i in range(len(photos))]
    quiet = torch.cat([mask_logit(first(face)) for face in small]) <= 0
    ordered = torch.cat([mask_logit(second(face)) for face in small])[quiet].sort(descending=True).values
    allowed = max(0, int(false_alarms * len(quiet)) - int((~quiet).sum()))
    last = second.head[-1]
    assert isinstance(last, nn.Linear)
    last.bias[MASKED] -= ordered[allowed] + 1e-3  # beyond rounding


def save_state(path: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import save_file

    tensors = {name: p.detach().contiguous() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})  # empty where the loss does not reach, such as a box regression
        tensors |= {f"{key}|{name}": value.contiguous() for key, value in state.items()}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, {"step": str(step)})


def restore(path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Steps done before; 0 without a checkpoint."""
    if not path.is_file():
        return 0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f, torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(f.get_tensor(name))
                keys = [key for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}|{name}" in f.keys()]
                if keys:
                    optimizer.state[parameter] = {key: f.get_tensor(f"{key}|{name}") for key in keys}
            return int(f.metadata()["step"])
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise GanMaskError(f"{path}: damaged ({error}); delete it to repeat this round") from error
