"""A GPU that is none: tensors on it are computed on the CPU, and whoever has to wait for it is written down.

On device 'meta', for which torch's autograd needs no driver. Needs torch alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")

# What returns a number, or a tensor whose size depends on numbers, or an error about them.
ANSWERS = (
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount", "_linalg_check_errors",
)  # fmt: skip


class OnGpu(Tensor):
    """A tensor on the pretended GPU."""

    values: Tensor  # on the CPU

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, values.size(), values.stride(), values.storage_offset(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `pretended`")


class Waits(TorchDispatchMode):
    """Runs everything, and lists each wait with the lines of gan_mask that it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        before = any(isinstance(x, OnGpu) for x in tree_leaves((args, given)))
        device = given.get("device")
        after = before if device is None else torch.device(device) == DEVICE
        name = func.overloadpacket.__name__
        if name == "_to_copy" and after != before and not (after and given.get("non_blocking")):
            self._note("copied to the GPU" if after else "copied to the CPU")
        if before and name in ANSWERS and given.get("output_size") is None:
            self._note(name)
        if before and name in ("index", "index_put_"):
            for index in (index for index in args[1] if index is not None):
                assert isinstance(index, OnGpu), f"indexed with numbers of the CPU, which wait: {_lines()}"
                if index.dtype == torch.bool:
                    self._note("indexed by a mask")
        if device is not None:
            given["device"] = torch.device("cpu")
        result = func(*tree_map_only(OnGpu, _values, args), **tree_map_only(OnGpu, _values, given))
        if func._schema.is_mutable and isinstance(args[0], OnGpu):
            return args[0]
        return tree_map_only(Tensor, OnGpu, result) if after else result

    def _note(self, what: str) -> None:
        self.found.append(f"{what}: {_lines()}")


def _values(tensor: OnGpu) -> Tensor:
    return tensor.values


def _lines() -> str:
    frames = [f for f in traceback.extract_stack() if "/gan_mask/" in f.filename]
    return " < ".join(f"{f.filename.rpartition('/gan_mask/')[2]}:{f.lineno}" for f in reversed(frames[-4:]))


@contextmanager
def pretended() -> Iterator[Waits]:
    """Within, DEVICE is a GPU. Autocast is left out, which knows no device of this name."""
    to_list = Tensor.tolist

    def new_tensor(like: Tensor, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(values, dtype=dtype or like.dtype).to(like.device)  # without it, one without values

    with (
        patch.object(Tensor, "tolist", lambda tensor: to_list(tensor.cpu())),
        patch.object(Tensor, "new_tensor", new_tensor),
        patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
        Waits() as waits,
    ):
        yield waits
