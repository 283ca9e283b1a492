"""Options of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from gan_mask import files, templates, values
from gan_mask.attacks.surrogates import Goal
from gan_mask.errors import GanMaskError
from gan_mask.masking import PlacementName
from gan_mask.networks import (
    DEVIATIONS,
    FACE_HEADS,
    HEADS,
    KERNEL,
    OWN,
    PIXEL_HEADS,
    SOFTNESS,
    WIDTHS,
    generator_config,
)
from gan_mask.values import COUNT, FRACTION, LEARNING_RATE, RATE, SEED, WEIGHT, WORKERS, Range, option

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
    steps: int = option(20000, "train steps in all", within=COUNT)
    batch_size: int = option(32, "faces per process and micro-batch", within=Range(1, 65536))
    accumulate: int = option(1, "micro-batches per optimiser step", within=COUNT)
    seed: int = option(0, "of everything random", within=SEED)
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = option(
        "auto", "arithmetic of the networks, geometry stays float32; auto: what accelerate is told, else no"
    )
    workers: int = option(2, "loader processes per training process", within=WORKERS)

    embedders: tuple[str, ...] = option(("dlib",), "surrogate face recognisers", group="surrogates and templates")
    detectors: tuple[str, ...] = option(("classifier",), "surrogate mask detectors")
    far: float = option(1e-3, "false-accept rate of the surrogates' thresholds", within=RATE)
    templates: tuple[str, ...] = option(
        ("match",),
        "mask templates to sample: names, or the groups faces, plain, cloth; match: of those that suit the wearer",
    )

    start: str = option(
        "", "checkpoint to fine-tune: the generator starts with its weights, not with random ones", group="networks"
    )
    widths: tuple[int, ...] = option((32, 64, 128), "generator's channels, one per resolution", within=WIDTHS)
    heads: tuple[str, ...] = option(FACE_HEADS, f"what the generator predicts, of {', '.join(HEADS)}")
    appearance_bound: float = option(
        2.0, "largest change of the appearance, standard deviations among people", within=DEVIATIONS
    )
    shape_bound: float = option(0.08, "largest displacement, fraction of the texture's width", within=FRACTION)
    light_bound: float = option(0.03, "largest change of the light, luminance in [0, 1]", within=FRACTION)
    kernel: int = option(5, "side of the filter kernels, texels", within=KERNEL)
    residual_bound: float = option(0.12, "largest change of a texel by the residual, of [0, 1]", within=FRACTION)
    placement: PlacementName = option("seamless", "how masks are worn: cloned into the face, or laid over it (paper)")
    softness: float = option(
        0.03, "paper placement: fade at the mask's edge, fraction of the mask's width", within=SOFTNESS
    )
    discriminator_width: int = option(
        0,
        "discriminator's channels in its first layer, with random weights; 0: it starts as our mask classifier",
        within=Range(0, 1024),
    )

    realism: float = option(0.1, "weight: realism, the discriminator's logit", group="losses", within=WEIGHT)
    dodging: float = option(6.0, "weight: similarity to the wearer's photos above threshold", within=WEIGHT)
    undetected: float = option(0.3, "weight: mask logit", within=WEIGHT)
    found: float = option(0.3, "weight: face logit, so that the face is still found", within=WEIGHT)
    perceptual: float = option(0.0, "weight: LPIPS to the DM result (needs AlexNet's weights)", within=WEIGHT)
    fidelity: float = option(1.0, "weight: mean squared difference to the template's texture", within=WEIGHT)
    smooth: float = option(0.3, "weight: total variation of what the generator changes", within=WEIGHT)
    dodging_margin: float = option(0.15, "how far below threshold, in units of 1 - threshold", within=Range(0, 2))
    detection_margin: float = option(2.0, "how far beyond the detectors' decision, logits", within=Range(0, 100))
    plausible: float = option(
        1.0, "weight: how far a lower face is from those of people, squared deviations beyond two", within=WEIGHT
    )
    rough: float = option(0.3, "weight: unevenness of the displacement and the light", within=WEIGHT)
    r1: float = option(0.005, "weight gamma of the R1 penalty", within=WEIGHT)
    r1_every: int = option(8, "steps between R1 penalties, each counted as many times", within=COUNT)

    diversity: float = option(
        0.6,
        "strength of the augmentations before surrogates and discriminator; 0: none",
        group="augmentation",
        within=Range(0, 10),
    )
    camera: float = option(
        0.3, "share of the photos with a camera's faults (albumentations): JPEG, noise, blur, gamma", within=FRACTION
    )
    eot: float = option(0.3, "strength of the jitter at which masks are worn; 0: none", within=Range(0, 10))

    learning_rate: float = option(1.5e-3, "generator's, AdamW", group="optimisers", within=LEARNING_RATE)
    discriminator_learning_rate: float = option(3e-4, "discriminator's, AdamW", within=LEARNING_RATE)
    scale_lr: Literal["none", "linear", "sqrt"] = option(
        "none", "multiply both learning rates by the number of processes (linear) or its square root (sqrt)"
    )
    warmup: int = option(50, "steps of linear warm-up", within=Range(0, 2**31 - 1))
    clip: float = option(1.0, "largest gradient norm", within=Range(above=0))
    ema: float = option(0.995, "decay of the averaged generator, which is what is saved", within=Range(0, below=1))

    log_every: int = option(10, "steps between logged figures", group="logs and checkpoints", within=COUNT)
    validate_every: int = option(200, "steps between validations and image grids", within=COUNT)
    validation_faces: int = option(48, "faces of the val split to validate on", within=Range(2, 2**31 - 1))
    save_every: int = option(200, "steps between checkpoints", within=COUNT)
    keep: int = option(2, "checkpoints kept", within=COUNT)

    @property
    def goal(self) -> Goal:
        return Goal(self.dodging_margin, self.detection_margin)


# What may change when a run is resumed; with any other change the result would not be that of one run.
BATCH = ("batch_size", "accumulate", "processes")  # while their product stays, faces_per_step
RESUMABLE = {
    "out", "data", "steps", "workers", "log_every", "validate_every", "validation_faces", "save_every", "keep", *BATCH,
}  # fmt: skip


def scaled(c: TrainConfig, processes: int) -> TrainConfig:
    """With the learning rates that so many processes take, which --scale_lr asks for (docs/multi_gpu.md)."""
    factor = {"none": 1.0, "linear": float(processes), "sqrt": math.sqrt(processes)}[c.scale_lr]
    return replace(
        c, learning_rate=c.learning_rate * factor, discriminator_learning_rate=c.discriminator_learning_rate * factor
    )


def resumable(c: TrainConfig) -> set[str]:
    """What may be another when the run goes on; the number of processes not where learning rates hang on it."""
    return RESUMABLE if c.scale_lr == "none" else RESUMABLE - {"processes"}


def check(c: TrainConfig) -> None:
    """Raises GanMaskError that names an option which is missing, of another kind or out of range."""
    values.check(c)
    if not (c.embedders or c.detectors):
        raise GanMaskError("--embedders, --detectors: no network to make masks against; name one at least")
    shape = {
        name: getattr(c, name)
        for name in ("widths", "heads", "kernel", *(f"{head}_bound" for head in (*FACE_HEADS, "residual")), "softness")
    }
    generator_config(shape)  # which number of widths fits


# What options that are newer than a run stood at before there were any.
EARLIER: dict[str, Any] = {"placement": "paper", "plausible": 0.0, "rough": 0.0, "camera": 0.0}


def of_today(processes: int, before: dict[str, Any]) -> dict[str, Any]:
    """The options that a run was started with, in today's form.

    processes: today's number, for runs that did not record theirs.
    """
    told = values.to_dict(TrainConfig()) | EARLIER | {"processes": processes} | before
    if isinstance(told["heads"], str):  # one word, before heads became a list
        told["heads"] = list(PIXEL_HEADS) if told["heads"] == "both" else [told["heads"]]
    return told | {"faces_per_step": math.prod(told[key] for key in BATCH)}


def default_template(c: TrainConfig) -> str:
    """What the generator takes when it is given none: 'match', or the first of its templates by its shipped name.

    OWN for a photo, whose texture the checkpoint holds: it is passed on, with no path of this machine in it.
    """
    if c.templates == ("match",):
        return "match"
    first = next(iter(templates.expand(c.templates)))
    return first if first in templates.names() else OWN


def trained_against(c: TrainConfig) -> tuple[str, ...]:
    """Names of the surrogates as the checkpoint tells them: of an ONNX sidecar without its folder."""
    return tuple(files.without_folder(name) for name in (*c.embedders, *c.detectors))
