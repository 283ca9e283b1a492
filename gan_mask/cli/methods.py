"""Commands whose options are a dataclass with the options of the optimised methods in it, as its field `attack`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from gan_mask.attacks import Options
from gan_mask.cli.options import Parser, add_message_options, add_options
from gan_mask.values import dashed, from_values, to_dict

T = TypeVar("T")
ATTACK = [field.name for field in dataclasses.fields(Options) if "help" in field.metadata]


def parser_with_attack(cls: type[Any], prog: str, description: str | None) -> Parser:
    """All options of the dataclass `cls`, with those of its field `attack` as a group of their own."""
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, cls, separator="-")
    group = parser.add_argument_group(
        "generator, and optimised methods (advnoise-dm, mf2m, advface, generator with --refine)"
    )
    add_options(group, Options, separator="-")
    add_message_options(parser)
    return parser


def parse_with_attack(cls: type[T], argv: Sequence[str] | None, prog: str, description: str | None) -> T:
    """An instance of the dataclass `cls` from the command line."""
    given = vars(parser_with_attack(cls, prog, description).parse_args(argv))
    attack = from_values(Options, {name: given[name] for name in ATTACK if name in given}, dashed)
    return from_values(cls, {**given, "attack": attack}, dashed)


def flat(config: Any) -> dict[str, Any]:
    """Such an instance as JSON values by the options' names; of `attack` only what is not the default."""
    told = to_dict(config)
    attack, usual = told.pop("attack"), to_dict(Options())
    return told | {name: value for name, value in attack.items() if value != usual[name]}
