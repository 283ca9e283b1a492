"""Options from a dataclass (its fields are the documentation): defaults, then a YAML file, then the command line.

Here, too, is the one place where a value is checked: its kind and, for numbers, its range.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import reprlib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

import yaml

from gan_mask import commands
from gan_mask.errors import GanMaskError

T = TypeVar("T")
LARGEST_FILE = 100_000  # bytes of a YAML file
MOST_ITEMS = 10_000  # of one option


@dataclass(frozen=True)
class Range:
    """Of a number: from `low` to `high`, or between `above` and `below`, which do not belong to it.

    also: what else is asked of a number, in words and as a function.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[str, Callable[[Any], bool]] | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
            and (self.also is None or self.also[1](number))
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            parts = [f"from {self.low} to {self.high}"]
        else:
            named = (("of at least", self.low), ("above", self.above), ("of at most", self.high), ("below", self.below))
            parts = [" and ".join(f"{word} {edge}" for word, edge in named if edge is not None)]
        return ", ".join(parts + ([self.also[0]] if self.also else []))


COUNT = Range(1, 2**31 - 1)
SEED = Range(0, 2**32 - 1)  # what NumPy takes
FRACTION = Range(0, 1)
RATE = Range(above=0, below=1)
WORKERS = Range(0, 1024)
WEIGHT = Range(0, 1_000_000)
LEARNING_RATE = Range(above=0, high=10)


def option(default: Any, help: str, group: str = "", required: bool = False, within: Range | None = None) -> Any:
    """A dataclass field whose `--help` line is `help`. group: heading above it and those that follow.

    required: the help says so instead of a default, and `check` asks for it. within: of a number, or of each of many.
    """
    metadata = {"help": help, "group": group, "required": required, "within": within}
    return dataclasses.field(default=default, metadata=metadata)


def limited(default: Any, within: Range) -> Any:
    """A dataclass field that is no option of a command, with the range of its number or numbers."""
    return dataclasses.field(default=default, metadata={"within": within})


def parse(cls: type[T], argv: Sequence[str] | None, description: str) -> T:
    """An instance of the dataclass `cls`. `--print_config` prints it as YAML and exits."""
    parser = commands.Parser(description=description)
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
            type=_typed(typing.get_args(types[field.name])[0] if many else types[field.name], field.metadata["within"]),
            default=argparse.SUPPRESS,
            metavar=_metavar(types[field.name]),
            help=f"{field.metadata['help']} ({_shown(field)})".replace("%", "%%"),
        )


def number(kind: type[int] | type[float], within: Range) -> Callable[[str], Any]:
    """argparse's `type` of a number `within` a range."""
    return _typed(kind, within)


def type_of(cls: type[Any], name: str) -> Callable[[str], Any]:
    """argparse's `type` of the option `name` of the dataclass `cls`."""
    field = {f.name: f for f in dataclasses.fields(cls)}[name]
    return _typed(typing.get_type_hints(cls)[name], field.metadata["within"])


def _typed(kind: Any, within: Range | None) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        try:
            return _convert(text, kind, within)
        except ValueError:
            raise argparse.ArgumentTypeError(_complaint(text, kind, within)) from None

    return converted


def underscored(name: str) -> str:
    """How messages call the option of a field: as the commands that take a --config write it."""
    return f"--{name}"


def dashed(name: str) -> str:
    """The same, as the other commands write it."""
    return f"--{name.replace('_', '-')}"


def from_values(cls: type[T], values: dict[str, Any], label: Callable[[str], str] = underscored) -> T:
    """An instance of the dataclass `cls` from strings or from what JSON made of them; other names are passed over.

    label: what messages call a field. GanMaskError names it, its value, and what is expected.
    """
    types = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.name in values]  # type: ignore[arg-type]
    return cls(**{f.name: _checked(f, values[f.name], types[f.name], label) for f in fields})


def check(config: Any, label: Callable[[str], str] = underscored) -> None:
    """Of options made in Python: GanMaskError names one that is missing, of another kind, or out of range."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("required") and not value:
            raise GanMaskError(f"{label(field.name)} is missing: {field.metadata['help']}")
        _checked(field, value, types[field.name], label)


def _checked(field: dataclasses.Field[Any], value: Any, kind: Any, label: Callable[[str], str]) -> Any:
    within = field.metadata.get("within")
    try:
        return _convert(value, kind, within)
    except ValueError:
        raise GanMaskError(f"{label(field.name)}: {_complaint(value, kind, within)}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE} bytes")
        # Every scalar as it is written, for _convert to read: YAML 1.1 would make a boolean of `no`, 8 of 010.
        values = yaml.BaseLoader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise GanMaskError(f"--config {path}: no such file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise GanMaskError(f"--config {path}: not readable as YAML ({error})") from error
    if not (isinstance(values, dict) and all(isinstance(name, str) for name in values)):
        raise GanMaskError(f"--config {path}: expected `option: value` lines")
    return {name.replace("-", "_"): value for name, value in values.items()}


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


BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _convert(value: Any, kind: Any, within: Range | None) -> Any:
    """`value`, a string or what JSON made of it, as `kind`; ValueError where it is none, or not `within` its range."""
    if isinstance(kind, UnionType):  # `kind | None`
        return None if value is None else _convert(value, typing.get_args(kind)[0], within)
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > MOST_ITEMS:
            raise ValueError
        return tuple(_item(item, typing.get_args(kind)[0], within) for item in items)
    if not isinstance(value, str | int | float):  # YAML's lists in lists may stand for billions of items
        raise ValueError
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError
        return value
    if kind is bool:
        if str(value).lower() not in BOOLEANS:
            raise ValueError
        return BOOLEANS[str(value).lower()]
    if isinstance(value, bool):
        raise ValueError
    if kind is str:
        return str(value)
    return _number(value, kind, within)


def _item(value: Any, kind: Any, within: Range | None) -> Any:
    if value == "":  # a list without items is written in another way
        raise ValueError
    return _convert(value, kind, within)


def _number(value: str | int | float, kind: Any, within: Range | None) -> Any:
    try:
        exact = float(value)
        converted = kind(exact)
    except OverflowError:  # infinite
        raise ValueError from None
    if not math.isfinite(exact) or (kind is int and converted != exact):  # 1e3 is a whole number, 0.5 is none
        raise ValueError
    if within is not None and converted not in within:
        raise ValueError
    return converted


def _complaint(value: Any, kind: Any, within: Range | None) -> str:
    return f"expected {_expected(kind, within)}, got {reprlib.repr(value)}"


def _expected(kind: Any, within: Range | None) -> str:
    if isinstance(kind, UnionType):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
        of = {int: "whole numbers", float: "numbers"}.get(kind, "names")
        return f"{of} {within}, separated by blanks" if within else of
    word = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[kind]
    return f"{word} {within}" if within else word
