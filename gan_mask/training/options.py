"""Options of a training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from gan_mask import templates
from gan_mask.config import option
from gan_mask.errors import GanMaskError
from gan_mask.masking import PlacementName
from gan_mask.networks import FACE_HEADS, HEADS
from gan_mask.surrogates import Goal

GENERATOR_NOISE = 32  # length of z


@dataclass
class TrainConfig:
    data: str = option(
        "",
        "prepared set to train on (data_prep/prepare.py makes it), or its shards (gan_mask.shards)",
        group="run",
        required=True,
    )
    out: str = option("", "run folder; running the same command again resumes it", required=True)
    steps: int = option(20000, "optimiser steps in all")
    batch_size: int = option(32, "faces per process and micro-batch")
    accumulate: int = option(1, "micro-batches per optimiser step")
    seed: int = option(0, "of everything random")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "arithmetic of the networks; geometry stays float32")
    workers: int = option(2, "loader processes per training process")

    embedders: tuple[str, ...] = option(
        ("dlib",), "surrogate face recognisers", group="what the masks are made against, and of"
    )
    detectors: tuple[str, ...] = option(("classifier",), "surrogate mask detectors")
    far: float = option(1e-3, "false-accept rate of the thresholds to get below")
    templates: tuple[str, ...] = option(
        ("match",),
        "mask templates to sample: names, or the groups faces, plain, cloth; match: of those that suit the wearer",
    )

    start: str = option(
        "", "checkpoint to fine-tune: the generator begins with its weights, not with random ones", group="networks"
    )
    widths: tuple[int, ...] = option((32, 64, 128), "generator's channels, one per resolution")
    heads: tuple[str, ...] = option(FACE_HEADS, f"what the generator predicts, of {', '.join(HEADS)}")
    appearance_bound: float = option(2.0, "largest change of the appearance, standard deviations among people")
    shape_bound: float = option(0.05, "largest displacement, fraction of the texture's width")
    light_bound: float = option(0.06, "largest change of the light, luminance in [0, 1]")
    kernel: int = option(5, "side of the filter kernels, texels")
    residual_bound: float = option(0.12, "largest change of a texel by the residual, of [0, 1]")
    placement: PlacementName = option("seamless", "how masks are worn: cloned into the face, or laid over it (paper)")
    softness: float = option(0.03, "paper placement: fade at the mask's edge, fraction of the mask's width")
    discriminator_width: int = option(32, "discriminator's channels in its first layer")

    realism: float = option(0.2, "weight: discriminator's opinion", group="losses")
    dodging: float = option(2.0, "weight: similarity to the wearer's photos above threshold")
    undetected: float = option(0.5, "weight: mask logit")
    found: float = option(0.5, "weight: face logit, so that the face stays a face")
    perceptual: float = option(0.0, "weight: LPIPS to the DM result (needs AlexNet's weights)")
    fidelity: float = option(100.0, "weight: mean squared difference to the template's texture")
    smooth: float = option(1.0, "weight: total variation of what the generator changes")
    dodging_margin: float = option(0.25, "how far below threshold, in units of 1 - threshold")
    detection_margin: float = option(2.0, "how far beyond the detectors' decision, logits")
    plausible: float = option(
        1.0, "weight: how far the lower face is from those of people, squared deviations beyond two"
    )
    r1: float = option(1.0, "weight gamma of the R1 penalty")
    r1_every: int = option(8, "steps between R1 penalties, each counted as many times")

    diversity: float = option(
        1.0, "strength of the augmentations before surrogates and discriminator; 0: none", group="augmentation"
    )
    eot: float = option(0.3, "strength of the jitter at which masks are worn; 0: none")

    learning_rate: float = option(1e-3, "generator's, AdamW", group="optimisers")
    discriminator_learning_rate: float = option(5e-4, "discriminator's, AdamW")
    warmup: int = option(50, "steps of linear warm-up")
    clip: float = option(1.0, "largest gradient norm")
    ema: float = option(0.995, "decay of the averaged generator, which is the one that is kept")

    log_every: int = option(10, "steps between logged figures", group="logs and checkpoints")
    validate_every: int = option(200, "steps between validations and image grids")
    validation_faces: int = option(48, "faces of the val split to validate on")
    save_every: int = option(200, "steps between checkpoints")
    keep: int = option(2, "checkpoints kept")

    @property
    def goal(self) -> Goal:
        return Goal(self.dodging_margin, self.detection_margin)


# Options that may change when a run is resumed; with any other change the result would not be that of one run.
RESUMABLE = {"out", "data", "steps", "workers", "log_every", "validate_every", "validation_faces", "save_every", "keep"}
BATCH = ("batch_size", "accumulate")  # free to change, too, while their product stays: the faces of a step


def check(c: TrainConfig) -> None:
    for field in fields(c):
        if field.metadata["required"] and not getattr(c, field.name):
            raise GanMaskError(f"--{field.name} is missing: {field.metadata['help']}")
    for name in ("steps", "batch_size", "accumulate", "r1_every", "log_every", "validate_every", "save_every", "keep"):
        if getattr(c, name) < 1:
            raise GanMaskError(f"--{name} must be at least 1, got {getattr(c, name)}")


# What options that are newer than a run stood at before there were any.
EARLIER: dict[str, Any] = {"placement": "paper", "plausible": 0.0}


def default_template(c: TrainConfig) -> str:
    """What the generator takes when it is given none: 'match', or the first of its templates."""
    return "match" if c.templates == ("match",) else next(iter(templates.expand(c.templates)))
