"""What a training shows: progress bar, log.jsonl, TensorBoard, previews."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from gan_mask import cli, files
from gan_mask.training.health import Figures
from gan_mask.training.options import TrainConfig

LOGGED, PICTURES = 10_000, 100  # at most, however long the run, so that its logs stay small


# TensorBoard's "Custom Scalars" page: figures that belong together, in one chart each.
CHARTS = {
    "generator": {
        "evasion": ["Multiline", ["train/dodging", "train/undetected", "train/found"]],
        "naturalness": ["Multiline", ["train/realism", "train/fidelity", "train/smooth", "train/perceptual"]],
        "texture": ["Multiline", ["train/change", "train/texture_std"]],
    },
    "discriminator": {"loss": ["Multiline", ["train/d_logistic", "train/d_r1"]]},
    "training": {
        "gradient norms": ["Multiline", ["train/g_norm", "train/d_norm"]],
        "speed": ["Multiline", ["train/images_per_second"]],
    },
    "validation": {"rates": ["Multiline", ["val/.*"]]},
}


class Log:
    """Progress bar, log.jsonl, TensorBoard and previews/ of the main process."""

    def __init__(self, out: Path, c: TrainConfig, start: int, accelerator: Accelerator) -> None:
        self.main, self.c, self.out = accelerator.is_main_process, c, out
        self.faces_per_step = c.batch_size * c.accumulate * accelerator.num_processes
        self.every = max(c.log_every, math.ceil(c.steps / LOGGED))
        self.writer: Any = None
        self.last = (time.monotonic(), start)
        if not self.main:
            return
        (out / "previews").mkdir(exist_ok=True)
        forget_after(out / "log.jsonl", start)
        self.bar = cli.Progress(total=c.steps, initial=start, desc="train", mininterval=2)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=start)
            self.writer.add_custom_scalars(CHARTS)
            self.writer.add_text("options", f"```yaml\n{cli.to_yaml(c)}```", start)
        except ImportError:
            print("tensorboard is not installed: figures go to log.jsonl only", file=sys.stderr)

    def step(self, step: int, figures: Figures) -> None:
        if not self.main:
            return
        self.bar.update()
        if step % self.every and step != self.c.steps:
            return
        values = dict(figures.terms)
        values |= {name: getattr(figures, name) for name in ("g_norm", "d_norm", "texture_std", "change")}
        now = time.monotonic()
        values["images_per_second"] = (step - self.last[1]) * self.faces_per_step / max(now - self.last[0], 1e-9)
        self.last = (now, step)
        self.figures(step, values, "train")
        self.bar.set_postfix({k: f"{values[k]:.2f}" for k in ("dodging", "undetected", "realism", "d_logistic")})

    def figures(self, step: int, values: dict[str, float], group: str) -> None:
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, "group": group, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)
        if group == "val":
            self.bar.write(f"step {step}: " + ", ".join(f"{k} {v:.1%}" for k, v in values.items()))

    def picture(self, step: int, image: Tensor) -> None:
        if step * PICTURES // self.c.steps == (step - self.c.validate_every) * PICTURES // self.c.steps:
            return  # this share of the run has its picture
        from PIL import Image

        from gan_mask.faces import to_8_bit

        pixels = to_8_bit(image)
        with files.replacing(self.out / "previews" / f"{step:07d}.png") as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
        if self.writer:
            self.writer.add_image("unmasked | DM | generated", image, step)

    def close(self) -> None:
        if self.main:
            self.bar.close()
            if self.writer:
                self.writer.close()


def forget_after(path: Path, step: int) -> None:
    """Leave the lines up to `step`: a killed run may have logged beyond its last checkpoint, and half a line."""
    if path.is_file():
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                kept += [line] if json.loads(line)["step"] <= step and line.endswith("\n") else []
            except (ValueError, KeyError, TypeError):
                continue
        files.write_text(path, "".join(kept))
