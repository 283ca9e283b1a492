"""Training of the conditional generator, under `accelerate launch` on any number of processes.

Read `step` first (masked faces, discriminator, generator, optimisers), then `loop`; the rest is what they need:
`options`, the order of photos (`schedule`), `validation`, the `log`, and checkpoints (`state`).
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see --help."""
    from gan_mask.training.loop import main as command

    command(argv)
