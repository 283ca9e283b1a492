"""Can a network that is trained for it tell the masked faces from bare ones? Real-or-masked classifiers, end to end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_mask import files
from gan_mask.cli import Progress
from gan_mask.evaluation.intervals import NOTHING, Cell, of_auc
from gan_mask.evaluation.run import Experiment
from gan_mask.faces import read_image
from gan_mask.pretrained.perceptual import Perceptual

TRAINED = "realism AUC (trained)"
SMALL = "realism AUC (small CNN)"
FROZEN = "realism AUC (frozen features)"

PAIRS = 4  # probes per step, bare and masked
EPOCHS = {TRAINED: 6, SMALL: 10}
RATE = {TRAINED: 2e-4, SMALL: 2e-3}  # Adam's, falling to zero as a cosine
CROP = 0.06  # of the side: how much smaller training crops are than the picture, anywhere in it
LEAST = 64  # px: smaller pictures are enlarged, AlexNet takes no smaller ones


def measure(e: Experiment, perceptual: Perceptual | None, seed: int) -> tuple[str, dict[str, Cell]]:
    """The measure's name, and its cell per method; those trained for in an earlier run of the same settings are kept.

    A method's files against the bare ones of the same probes; as the control, under "none", the probes' bare photos
    against their mates', no photo twice.
    """
    name = SMALL if perceptual is None else TRAINED
    bare = _read(e.paths("none"))
    cells: dict[str, Cell] = {}
    for method in Progress(e.methods, desc="realism", unit="method"):
        kept = e.out / "cache" / method / f"{files.safe_name(name)}.json"
        if not kept.is_file():
            a, b, people = bare, _read(e.paths(method)), e.probes.identity
            if method == "none":
                rows = pairs_apart(e.probes.index, e.probes.mate)
                mates = [e.photos.faces(int(i)).permute(1, 2, 0).numpy() for i in e.probes.mate[rows]]
                a, b, people = bare[rows], np.stack(mates), people[rows]
            files.write_json(kept, cell_of(a, b, people, perceptual, seed, e.device))
        cells[method] = files.read_json(kept)
    return name, cells


def _read(paths: Sequence[Path]) -> np.ndarray:
    return np.stack([read_image(path) for path in paths])


def cell_of(
    bare: np.ndarray, masked: np.ndarray, identities: np.ndarray, perceptual: Perceptual | None, seed: int, device: str
) -> Cell:
    """AUC of telling `masked` from `bare`, each uint8 (P, H, W, 3); 0.5 means not at all, 1 always.

    identities (P,) of both, row by row. The people are dealt into two halves; one classifier learns on each half and
    scores the other one, so that it has seen nobody whom it scores. Their scores are standardised half by half
    and pooled. The interval resamples people, not trainings. perceptual: whose AlexNet is fine-tuned; None: a
    small CNN starts from nothing. Nothing is measured with fewer than two people.
    """
    half = halves(identities, seed)
    if not half.any():
        return dict(NOTHING)
    pictures = torch.from_numpy(np.stack([bare, masked])).permute(0, 1, 4, 2, 3)  # (2, P, 3, H, W)
    score = np.empty((2, len(identities)))
    for scored in (half, ~half):
        net = _train(pictures[:, torch.from_numpy(~scored)], perceptual, seed, device)
        values = _scores(net, pictures[:, torch.from_numpy(scored)].flatten(0, 1), device)
        score[:, scored] = ((values - values.mean()) / max(values.std(), 1e-9)).reshape(2, -1)
    label = np.repeat([0, 1], len(identities))
    return of_auc(score.ravel(), label, np.tile(identities, 2), draws=200) | {"probes": len(identities)}


def halves(identities: np.ndarray, seed: int) -> np.ndarray:
    """bool (P,): nobody is in both halves, which have as equally many pictures as people allow."""
    people, count = np.unique(identities, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(people))
    size, second = [0, 0], []
    for i in order[np.argsort(-count[order], kind="stable")]:  # the largest first, to the smaller half
        side = int(size[1] < size[0])
        size[side] += int(count[i])
        second += [people[i]] * side
    return np.isin(identities, second)


def pairs_apart(index: np.ndarray, mate: np.ndarray) -> np.ndarray:
    """Rows of probe and mate, (P,) each, such that no photo is in two of them: bare faces against bare faces."""
    used: set[int] = set()
    rows = []
    for row, photos in enumerate(zip(index.tolist(), mate.tolist(), strict=True)):
        if not used & set(photos):
            used |= set(photos)
            rows.append(row)
    return np.array(rows, int)


def _train(pictures: Tensor, perceptual: Perceptual | None, seed: int, device: str) -> nn.Module:
    """pictures uint8 (2, P, 3, H, W), bare and masked. The same network again for the same seed.

    Each batch has both pictures of its probes, cut and mirrored alike, so that all that tells them apart is the mask.
    """
    name = SMALL if perceptual is None else TRAINED
    random = torch.Generator().manual_seed(seed)
    net = (_small(seed) if perceptual is None else _alexnet(perceptual)).to(device).train()
    optimiser = torch.optim.Adam(net.parameters(), RATE[name])
    steps = EPOCHS[name] * -(-pictures.shape[1] // PAIRS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad(), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        for _ in range(EPOCHS[name]):
            for rows in torch.randperm(pictures.shape[1], generator=random).split(PAIRS):
                score = net(_augmented(pictures[:, rows], random).to(device)).flatten()
                masked = torch.arange(2, device=device).repeat_interleave(len(rows)).float()
                loss = F.binary_cross_entropy_with_logits(score, masked)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return net.eval()


def _augmented(pictures: Tensor, random: torch.Generator) -> Tensor:
    """(2, B, 3, H, W) -> (2 * B, 3, h, w) in [0, 1]: a crop at a random place, half of the probes mirrored."""
    y, x = (int(torch.randint(_rest(side) + 1, (), generator=random)) for side in pictures.shape[3:])
    mirrored = torch.rand(pictures.shape[1], generator=random) < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(4), pictures)
    return _crop(pictures.flatten(0, 1), y, x)


def _rest(side: int) -> int:
    return round(CROP * side)


def _crop(pictures: Tensor, y: int, x: int) -> Tensor:
    height, width = (side - _rest(side) for side in pictures.shape[2:])
    return pictures[:, :, y : y + height, x : x + width].float() / 255


@torch.no_grad()
def _scores(net: nn.Module, pictures: Tensor, device: str) -> np.ndarray:
    """Logits (N,), the mean of the picture's middle and its mirror image."""
    parts = []
    y, x = (_rest(side) // 2 for side in pictures.shape[2:])
    for part in pictures.split(32):
        batch = _crop(part, y, x).to(device)
        parts.append((net(batch) + net(batch.flip(3))).flatten() / 2)
    return torch.cat(parts).double().cpu().numpy()


def _alexnet(perceptual: Perceptual) -> nn.Module:
    """A copy of LPIPS's AlexNet, all of which learns, with one new output that begins at 0."""
    source: Any = perceptual.net
    head = nn.Linear(2 * 256, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    trunk = [copy.deepcopy(getattr(source.net, f"slice{i}")) for i in range(1, 6)]
    scale = _Scale(copy.deepcopy(source.scaling_layer))
    return nn.Sequential(scale, *trunk, _Pool(), head).requires_grad_()


class _Scale(nn.Module):
    """[0, 1] -> what AlexNet was trained with, at least LEAST px large."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, pictures: Tensor) -> Tensor:
        side = min(pictures.shape[2:])
        if side < LEAST:
            pictures = F.interpolate(pictures, scale_factor=LEAST / side, mode="bilinear")
        return self.layer(2 * pictures - 1)


class _Pool(nn.Module):
    """Mean and largest value of each feature: an edge is small, a tone is everywhere."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


def _small(seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, _Pool(), nn.Linear(2 * 64, 1))
