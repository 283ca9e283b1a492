"""Small constants where they are needed, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constant(values: Tensor | Sequence[float], like: Tensor) -> Tensor:
    """`values` on the device of `like` and in its dtype.

    `like.new_tensor(values)` and `values.to(like)` give the same, but wait until a GPU has done all that it was given.
    """
    return torch.as_tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
