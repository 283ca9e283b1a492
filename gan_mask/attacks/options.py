"""Options of the generator and of the optimised methods."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gan_mask import masking, values
from gan_mask.attacks.surrogates import Goal
from gan_mask.errors import GanMaskError
from gan_mask.networks import KERNEL
from gan_mask.values import FRACTION, WEIGHT, Range, option


@dataclass(frozen=True)
class Options:
    """Of generator and optimised methods; colours are in [0, 1], so a step of 8-bit colour is 1/255 = 0.0039."""

    steps: int = option(100, "gradient steps at most", within=Range(0, 2**31 - 1))
    bound: float = option(12 / 255, "L-infinity bound of the noise, in [0, 1] of colour", within=FRACTION)
    step_size: float = option(1.5 / 255, "advnoise-dm: each sign step, in [0, 1] of colour", within=FRACTION)
    momentum: float = option(0.9, "advnoise-dm: decay of the accumulated gradient, in [0, 1)", within=Range(0, below=1))
    kernel: int = option(5, "mf2m: side of the filter kernels, texels, odd", within=KERNEL)
    filter_rate: float = option(0.005, "mf2m: Adam's learning rate of the kernels", within=WEIGHT)
    noise_rate: float = option(1 / 255, "mf2m: Adam's learning rate of the noise, in [0, 1] of colour", within=WEIGHT)
    smooth: float = option(
        10.0, "mf2m: weight of the total variation of the kernels and of the texture's change", within=WEIGHT
    )
    face_rate: float = option(0.3, "advface: Adam's learning rate, in units of the bounds", within=WEIGHT)
    plausible: float = option(0.05, "advface: weight of how far the lower face is from those of people", within=WEIGHT)
    strength: float = option(
        1.0,
        "generator: share of its change to make: 0 is its template alone, less than 1 looks better and dodges less",
        within=Range(0, 2),
    )
    refine: int = option(
        0,
        "generator: at most so many of advface's steps from its output, until the goal is met",
        within=Range(0, 2**31 - 1),
    )
    diversity: float = option(
        0.5,
        "advnoise-dm, mf2m: strength of the augmentations before the surrogates; 0: none, 1: as in training",
        within=Range(0, 10),
    )
    dodging_margin: float = option(
        0.25, "how far below the threshold to get, in units of 1 - threshold", within=Range(0, 2)
    )
    detection_margin: float = option(2.0, "how far beyond the detectors' decision to get, logits", within=Range(0, 100))
    patience: int = option(
        3, "stop on a face once it has met its goal at so many steps in a row; 0: never", within=Range(0, 2**31 - 1)
    )
    placement: masking.PlacementName = "paper"
    softness: float = 0.03  # at the mask's edge, fraction of the mask's width
    seed: int = 0

    def __post_init__(self) -> None:
        values.check(self)

    def within(self, seed: int, placement: masking.PlacementName, softness: float) -> Options:
        """Of a run that has these three for all of its methods. GanMaskError where they are given here, too."""
        for name in ("seed", "placement", "softness"):
            if getattr(self, name) != getattr(Options, name):
                raise GanMaskError(f"attack.{name}: it is the run's own; leave it out of attack")
        return replace(self, seed=seed, placement=placement, softness=softness)

    @property
    def goal(self) -> Goal:
        return Goal(self.dodging_margin, self.detection_margin)
