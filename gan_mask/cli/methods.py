"""The options of the optimised methods, as several commands have them."""

from __future__ import annotations

import argparse

from gan_mask.attacks import Options
from gan_mask.cli.options import add_options
from gan_mask.values import dashed, from_values


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """The options of `Options`, as a group of their own."""
    group = parser.add_argument_group("optimised methods (advnoise-dm, mf2m, advface, and generator with --refine)")
    add_options(group, Options, separator="-")


def method_options(args: argparse.Namespace, softness: float) -> Options:
    """What the command line says, with its --seed and --placement. softness: of the masks' edges, of their width."""
    return from_values(Options, {**vars(args), "softness": softness}, dashed)
