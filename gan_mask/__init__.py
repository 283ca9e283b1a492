"""gan_mask: adversarial faced masks to measure and harden face recognition with mask detection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gan_mask._version import __version__ as __version__

if TYPE_CHECKING:
    from gan_mask import attacks
    from gan_mask.data.prepare import PrepareConfig
    from gan_mask.evaluation.command import evaluate
    from gan_mask.evaluation.options import EvaluationConfig
    from gan_mask.evaluation.report import Report
    from gan_mask.faces import FaceFinder, align, read_image
    from gan_mask.generator import Generator, load_generator
    from gan_mask.harden.options import HardenConfig
    from gan_mask.masking import region, unwrap, wear
    from gan_mask.networks import GeneratorConfig
    from gan_mask.sampling.command import sample
    from gan_mask.sampling.one_photo import MaskedPhoto, mask_photo
    from gan_mask.sampling.options import SampleConfig
    from gan_mask.training.loop import train
    from gan_mask.training.options import TrainConfig

_HOME = {
    "Generator": "generator",
    "load_generator": "generator",
    "GeneratorConfig": "networks",
    "wear": "masking",
    "unwrap": "masking",
    "region": "masking",
    "FaceFinder": "faces",
    "align": "faces",
    "read_image": "faces",
    "MaskedPhoto": "sampling.one_photo",
    "mask_photo": "sampling.one_photo",
    "PrepareConfig": "data.prepare",
    "HardenConfig": "harden.options",
    "sample": "sampling.command",
    "SampleConfig": "sampling.options",
    "evaluate": "evaluation.command",
    "EvaluationConfig": "evaluation.options",
    "Report": "evaluation.report",
    "train": "training.loop",
    "TrainConfig": "training.options",
}
__all__ = [
    "EvaluationConfig",
    "FaceFinder",
    "Generator",
    "GeneratorConfig",
    "HardenConfig",
    "MaskedPhoto",
    "PrepareConfig",
    "Report",
    "SampleConfig",
    "TrainConfig",
    "align",
    "attacks",
    "evaluate",
    "load_generator",
    "mask_photo",
    "read_image",
    "region",
    "sample",
    "train",
    "unwrap",
    "wear",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used, so that `import gan_mask` costs nothing."""
    from importlib import import_module

    if name == "attacks":
        return import_module("gan_mask.attacks")
    if name not in _HOME:
        raise AttributeError(f"module 'gan_mask' has no attribute '{name}'")
    return getattr(import_module(f"gan_mask.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
