"""gan_mask: adversarial faced masks to measure and harden face recognition with mask detection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gan_mask._version import __version__ as __version__

if TYPE_CHECKING:
    from gan_mask.masking import region, unwrap, wear
    from gan_mask.networks import Generator, load_generator

_HOME = {
    "load_generator": "networks",
    "Generator": "networks",
    "wear": "masking",
    "unwrap": "masking",
    "region": "masking",
}
__all__ = ["Generator", "load_generator", "region", "unwrap", "wear"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used, so that `import gan_mask` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'gan_mask' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"gan_mask.{_HOME[name]}"), name)
