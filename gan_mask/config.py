"""Options from a dataclass (its fields are the documentation): defaults, then a YAML file, then the command line."""

from __future__ import annotations

import argparse
import dataclasses
import math
import reprlib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from gan_mask import commands
from gan_mask.errors import GanMaskError

T = TypeVar("T")
LARGEST_FILE = 100_000  # bytes of a YAML file
MOST_ITEMS = 10_000  # of one option


def option(default: Any, help: str, group: str = "", required: bool = False) -> Any:
    """A dataclass field whose `--help` line is `help`. group: heading above it and those that follow.

    required: the help says so instead of a default; whoever takes the options checks them.
    """
    return dataclasses.field(default=default, metadata={"help": help, "group": group, "required": required})


def parse(cls: type[T], argv: Sequence[str] | None, description: str) -> T:
    """An instance of the dataclass `cls`. `--print_config` prints it as YAML and exits."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", help="YAML file with any of the options below; the command line wins")
    parser.add_argument("--print_config", action="store_true", help="print the resulting options as YAML and exit")
    add_options(parser, cls)
    commands.add_message_options(parser)
    given = vars(parser.parse_args(argv))
    path, print_config = given.pop("config"), given.pop("print_config")
    values = {**(read_yaml(path) if path else {}), **given}
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise GanMaskError(f"{path}: unknown option {', '.join(unknown)}; known: {', '.join(known)}")
    config = from_values(cls, values)
    if print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def add_options(parser: argparse._ActionsContainer, cls: type[Any], separator: str = "_") -> None:
    """One `--option` per field of the dataclass `cls` that has a help line; those not given stay out of the namespace.

    separator: between the words of an option's name, '_' or '-'.
    """
    types = typing.get_type_hints(cls)
    group = parser
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            continue
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        many = typing.get_origin(types[field.name]) is tuple
        group.add_argument(
            f"--{field.name.replace('_', separator)}",
            nargs="*" if many else None,
            default=argparse.SUPPRESS,
            metavar=_metavar(types[field.name]),
            help=f"{field.metadata['help']} ({_shown(field)})".replace("%", "%%"),
        )


def from_values(cls: type[T], values: dict[str, Any]) -> T:
    """An instance of the dataclass `cls` from strings or from what YAML made of them; other names are passed over."""
    types = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: _convert(name, values[name], types[name]) for name in names if name in values})


def read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE} bytes")
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GanMaskError(f"--config {path}: no such file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise GanMaskError(f"--config {path}: not readable as YAML ({error})") from error
    if not (isinstance(values, dict) and all(isinstance(name, str) for name in values)):
        raise GanMaskError(f"--config {path}: expected `option: value` lines")
    return values


def to_dict(config: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _shown(field: dataclasses.Field[Any]) -> str:
    if field.metadata["required"]:
        return "required"
    default = field.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    if default == "":
        return "no default"
    return "default: " + (f"{default:.4g}" if isinstance(default, float) else str(default))


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0].__name__.upper()
    return {bool: "{true,false}"}.get(kind, kind.__name__.upper())


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value`, a string or what YAML made of it, as `kind`."""
    try:
        if typing.get_origin(kind) is tuple:
            items = value if isinstance(value, list | tuple) else [value]
            if len(items) > MOST_ITEMS:
                raise ValueError
            return tuple(_convert(name, item, typing.get_args(kind)[0]) for item in items)
        if not isinstance(value, str | int | float):  # YAML's lists in lists may stand for billions of items
            raise ValueError
        if typing.get_origin(kind) is Literal:
            if str(value) not in typing.get_args(kind):
                raise ValueError
            return str(value)
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        if kind is not str and isinstance(value, bool):
            raise ValueError
        converted = kind(value)
        if kind is float and not math.isfinite(converted):
            raise ValueError
        return converted
    except (ValueError, TypeError, KeyError, OverflowError):
        raise GanMaskError(f"--{name}: expected {_metavar(kind)}, got {reprlib.repr(value)}") from None
