"""What cameras do to photos, for the faces that are trained on: masks should work on poor photos, too."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gan_mask.errors import GanMaskError


class Photographed(Dataset[dict[str, Any]]):
    """A prepared set whose faces have a camera's faults, a share `share` of them: set[i, mirrored, row].

    JPEG, noise, blur, gamma, low resolution, by albumentations; each row of the training (`Schedule`) has its own
    seed, so that a run that resumes sees the same. Landmarks stay where they are.
    """

    def __init__(self, photos: Dataset[dict[str, Any]], share: float, seed: int) -> None:
        if share and importlib.util.find_spec("albumentations") is None:
            raise GanMaskError("--camera needs the package albumentations: pip install albumentations, or --camera 0")
        self.photos, self.share, self.seed = photos, share, seed
        self.faults: Any = None  # albumentations' own object; made in the process that uses it

    def __getitem__(self, key: tuple[int, bool, int]) -> dict[str, Any]:
        photo, mirrored, row = key
        item = self.photos[photo, mirrored]
        if self.share:
            item["face"] = self.photograph(item["face"], int(np.random.default_rng((self.seed, row)).integers(2**31)))
        return item

    def photograph(self, face: Tensor, seed: int) -> Tensor:
        """face (3, S, S) in [0, 1], as a camera saves it in 8 bits."""
        if self.faults is None:
            self.faults = _faults(self.share)
        self.faults.set_random_seed(seed)
        pixels = (face * 255).round().byte().permute(1, 2, 0).numpy()
        return torch.from_numpy(np.ascontiguousarray(self.faults(image=pixels)["image"])).permute(2, 0, 1) / 255


def _faults(share: float) -> Any:
    import albumentations as A

    one = A.OneOf([
        A.ImageCompression("jpeg", (40, 90)), A.GaussNoise((0.01, 0.04)), A.GaussianBlur((3, 5)),
        A.RandomGamma((75, 130)), A.Downscale((0.4, 0.8)),
    ], p=1.0)  # fmt: skip
    return A.Compose([one], p=share)
