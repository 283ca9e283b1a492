"""Harden a mask detector: fine-tune it on freshly made adversarial faced masks.

python -m gan_mask.harden --data PREPARED --checkpoint CHECKPOINT --out DIR

Each round makes a pool of faced masks with every method of --against, the optimised ones against the detector as it
is then, and fine-tunes the detector on the pools so far: on pairs of a masked face and the same photo unmasked, with a
few ordinary masks (plain, patterned, cloth) and backgrounds. With --generator_steps the generator is retrained against
the detector between the rounds. DIR receives hardened.json and hardened.onnx (`--detectors onnx:DIR/hardened.json`),
and for our own classifier hardened.safetensors; for a torch module hardened.json and hardened.safetensors
(`--detectors torch:DIR/hardened.json`). The same command again resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see --help."""
    from gan_mask.harden.command import main as command

    command(argv)
