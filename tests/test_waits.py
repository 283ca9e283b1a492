"""How often a training step waits for the GPU, on one that is pretended (tests/pretend_gpu.py)."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fakes import FakeDetector, FakeEmbedder
from pretend_gpu import DEVICE, OnGpu, pretended
from torch import Tensor

from gan_mask import landmarks, templates
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.generator import Generator
from gan_mask.networks import GeneratorConfig
from gan_mask.pretrained import alignment
from gan_mask.training import loop
from gan_mask.training.discriminator import make as make_discriminator
from gan_mask.training.health import Figures
from gan_mask.training.options import TrainConfig
from gan_mask.training.schedule import Schedule
from gan_mask.training.step import TrainStep

SIZE, BATCH = 64, 4


class Aligning(FakeEmbedder):
    """Looks at an aligned chip, as real recognisers do."""

    def forward(self, faces: Tensor, points: Tensor) -> Tensor:
        return super().forward(alignment.chips(faces, points, alignment.ARCFACE, 56, 56), points)


def make_step(c: TrainConfig, device: torch.device) -> TrainStep:
    torch.manual_seed(0)
    config = GeneratorConfig(widths=(8, 16, 32), placement=c.placement, heads=c.heads, softness=c.softness)
    generator = Generator(config)
    net, discriminator = generator.net.to(device), make_discriminator(8).to(device)
    surrogates = Surrogates([Aligning().to(device)], [0.9], [FakeDetector()])
    references = [torch.nn.functional.normalize(torch.randn(8, 16), dim=1)]
    bank = templates.Bank(c.templates, generator.texture_size, device)
    schedule = Schedule(np.arange(8) // 2, c, 0, 1, 0)
    return TrainStep(
        c, Accelerator(cpu=True), net, discriminator, discriminator, loop.optimizers_of(c, net, discriminator),
        surrogates, references, bank, schedule,
    )  # fmt: skip


def two_steps(c: TrainConfig, device: torch.device, waits: list[str]) -> Figures:
    """The second one's figures; `waits` has its waits only, as the first fills caches."""
    numbers = torch.Generator().manual_seed(0)
    points = landmarks.frame(SIZE, 0.2) + torch.randn(BATCH, 68, 2, generator=numbers)
    faces = torch.rand(BATCH, 3, SIZE, SIZE, generator=numbers)
    loaded: dict[str, Any] = {"face": faces, "landmarks": points, "index": torch.arange(BATCH)}
    step = make_step(c, device)
    with patch.object(Accelerator, "device", device):
        step(iter([loaded]), 0)
        waits.clear()
        return step(iter([loaded]), 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "placement": "paper",
            "softness": 0.1,
            "templates": ("face-001", "plain-white"),
            "heads": ("filter", "residual"),
        },
    ],
    ids=["seamless", "paper"],
)
def test_a_step_waits_once_for_its_figures(options):
    """Of R1, too. A GPU that is waited for stands still until the next step has been told."""
    c = TrainConfig(data="", out="", batch_size=BATCH, steps=4, r1_every=1, **options)
    with pretended() as waits:
        figures = two_steps(c, DEVICE, waits.found)
    assert len(waits.found) == 1 and "health.py" in waits.found[0], "\n".join(waits.found)
    assert figures == two_steps(c, torch.device("cpu"), [])  # the pretended GPU computes what the CPU does


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x[0]), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: bool((x > 0).all()),
        lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.new_tensor([1.0]), lambda x: torch.ones(3).to(x.device),
        lambda x: x.repeat_interleave((x > 0).long()), lambda x: torch.linalg.inv(x[:1, None]), lambda x: x.unique(),
        lambda x: torch.equal(x, x + 1),
    ],
)  # fmt: skip
def test_what_waits_is_seen(wait):
    with pretended() as waits:
        x = torch.tensor([1.0, -2.0, 3.0]).to(DEVICE, non_blocking=True)
        assert isinstance(x + 1, OnGpu) and not waits.found
        wait(x)
    assert len(waits.found) >= 1


def test_a_list_of_numbers_as_an_index_is_refused():
    with pretended(), pytest.raises(AssertionError, match="indexed with numbers"):
        torch.ones(3).to(DEVICE, non_blocking=True)[[0, 2]]
