"""Networks small enough to read, in place of pretrained ones. Needs torch alone."""

from __future__ import annotations

import torch


class FakeEmbedder(torch.nn.Module):
    """Fixed random projection of the shrunken face, small enough to read; stands in for a recogniser in tests."""

    name = "fake"
    published: dict[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(16, 3 * 8 * 8, generator=torch.Generator().manual_seed(0)), False)

    def forward(self, faces: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(faces, 8).flatten(1)
        return torch.nn.functional.normalize((small - 0.5) @ self.weight.T.to(small), dim=1)

    def threshold(self, far: float) -> float:
        return 0.9


class FakeDetector(torch.nn.Module):
    """Takes a dark lower half for a mask, and any picture for a face."""

    name = "fake"

    def forward(self, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lower = faces[:, :, faces.shape[2] // 2 :].mean((1, 2, 3))
        return 20 * (0.5 - lower), torch.full_like(lower, 5.0)
