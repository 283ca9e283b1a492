"""Checkpoints: everything a run needs to resume exactly."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor, nn

from gan_mask import files
from gan_mask.errors import GanMaskError
from gan_mask.files import read_safetensors
from gan_mask.generator import Generator
from gan_mask.values import to_dict

FOLDER, STEPS = "checkpoints", "step-*"


def has_checkpoint(out: Path) -> bool:
    """Whether a run in this folder has something to resume."""
    return any((out / FOLDER).glob(STEPS))


class State:
    """Everything a run needs to resume exactly: networks, their average, optimisers, loss scaler, step.

    Randomness and the order of photos are functions of seed and step, so they have no state to save.
    One folder per checkpoint: state.safetensors, and state.json with its SHA-256. No pickle.
    """

    def __init__(
        self,
        out: Path,
        accelerator: Accelerator,
        modules: Mapping[str, nn.Module],
        ema: Generator,
        optimizers: Sequence[Any],
    ) -> None:
        self.folder, self.generator_folder, self.accelerator = out / FOLDER, out / "generator", accelerator
        self.modules, self.ema = modules, ema
        self.optimizers = dict(zip(("g", "d"), optimizers, strict=True))

    def save(self, step: int, keep: int) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            try:
                self._save(step, keep)
            except OSError as error:
                shutil.rmtree(self.folder / ".new", ignore_errors=True)
                raise GanMaskError(
                    f"{self.folder}: cannot write the checkpoint of step {step} ({error}); earlier ones are intact. "
                    "Make room and run the same command again"
                ) from error

    def _save(self, step: int, keep: int) -> None:
        new, final = self.folder / ".new", self.folder / f"step-{step:07d}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        tensors = self._tensors()
        if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise GanMaskError(f"step {step}: {', '.join(bad[:8])} not finite; the last checkpoint is untouched")
        with files.replacing(new / "state.safetensors") as temporary:
            write_tensors(tensors, temporary)
        scaler = self.accelerator.scaler
        checksum = files.sha256(new / "state.safetensors")
        files.write_json(
            new / "state.json", {"step": step, "sha256": checksum, "scaler": scaler and scaler.state_dict()}
        )
        save_generator(self.ema, self.generator_folder)  # first: a run that has its last checkpoint does nothing more
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
        files.sync_directory(self.folder)
        self.remove_old(keep)

    def remove_old(self, keep: int) -> None:
        if self.accelerator.is_main_process:
            for old in self._steps()[:-keep]:
                shutil.rmtree(old)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob(STEPS)) if self.folder.is_dir() else []

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"ema.{k}": v for k, v in self.ema.net.state_dict().items()}
        for name, module in self.modules.items():
            tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for i, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return tensors

    def load_latest(self) -> int:
        """Restore the newest whole checkpoint; returns the steps done so far, 0 for a new run."""
        for folder in reversed(self._steps()):
            try:
                meta = files.read_json(folder / "state.json")
                if files.sha256(folder / "state.safetensors") != meta["sha256"]:
                    raise GanMaskError(f"{folder / 'state.safetensors'}: checksum differs, the file is damaged")
                tensors, step = read_safetensors(folder / "state.safetensors"), int(meta["step"])
                self._check_keys(folder, tensors)
                self._restore(tensors, meta)
            except (GanMaskError, OSError, KeyError, ValueError, TypeError) as error:
                print(f"warning: {error}; trying the checkpoint before it", file=sys.stderr)
                continue
            if self.accelerator.is_main_process:
                print(f"resuming {folder}")
            return step
        if self._steps():
            raise GanMaskError(f"{self.folder}: no checkpoint in it is usable; delete this folder to start over")
        return 0

    def _check_keys(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Networks of the options, and nothing else; the optimisers' state appears with their first step."""
        due = {k: v.shape for k, v in self._tensors().items() if not k.startswith("optimizer.")}
        have = {k: v.shape for k, v in tensors.items() if not k.startswith("optimizer.")}
        if differing := sorted(k for k in due.keys() | have.keys() if due.get(k) != have.get(k)):
            raise GanMaskError(f"{folder}: other networks than those of the options: {', '.join(differing[:8])}")

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.ema.net.load_state_dict(part("ema."))
        for name, module in self.modules.items():
            module.load_state_dict(part(f"{name}."))
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"optimizer.{name}.").items():
                index, entry = key.split(".")
                layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format  # as the networks have it
                state.setdefault(int(index), {})[entry] = value.contiguous(memory_format=layout)
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.accelerator.scaler and meta["scaler"]:
            self.accelerator.scaler.load_state_dict(meta["scaler"])


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # Not save_file: on a full disk it raises an error of its own instead of OSError.
    path.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def save_generator(generator: Generator, folder: Path) -> None:
    """config.json and model.safetensors, as load_generator reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "config.json", to_dict(generator.config))
    with files.replacing(folder / "model.safetensors") as temporary:
        write_tensors(generator.state_dict(), temporary)
