"""Dataclasses from JSON values and back; the one place where a value is checked: its kind and a number's range."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, TypeVar

from gan_mask.errors import GanMaskError

T = TypeVar("T")
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


def option(
    default: Any,
    help: str,
    group: str = "",
    required: bool = False,
    within: Range | None = None,
    shown: str = "",
    metavar: str = "",
    aliases: tuple[str, ...] = (),
) -> Any:
    """A dataclass field whose `--help` line is `help`. group: heading above it and those that follow.

    required: `check` asks for a value, for one at least of many; without a default the help says so in its place.
    within: of a number, or of each of many. shown: the default in words. metavar: what stands for a value in the help.
    aliases: other names of the option.
    """
    metadata = {"help": help, "group": group, "required": required, "within": within}
    metadata |= {"shown": shown, "metavar": metavar, "aliases": aliases}
    return dataclasses.field(default=default, metadata=metadata)


def limited(default: Any, within: Range) -> Any:
    """A dataclass field that is no option of a command, with the range of its number or numbers."""
    return dataclasses.field(default=default, metadata={"within": within})


def underscored(name: str) -> str:
    """How messages call the option of a field: as the commands that take a --config write it."""
    return f"--{name}"


def dashed(name: str) -> str:
    """The same, as the other commands write it."""
    return f"--{name.replace('_', '-')}"


def from_values(cls: type[T], values: dict[str, Any], label: Callable[[str], str] = underscored) -> T:
    """An instance of the dataclass `cls` from strings or from what JSON made of them; other names are ignored.

    label: what messages call a field. GanMaskError names it, its value, and what is expected.
    """
    types = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.name in values]  # type: ignore[arg-type]
    return cls(**{f.name: _checked(f, values[f.name], types[f.name], label) for f in fields})


def check(config: Any, label: Callable[[str], str] = str) -> None:
    """GanMaskError names an option that is missing, of another kind, or out of range; by default as the field it is."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("required") and value in ("", ()):
            raise GanMaskError(f"{label(field.name)} is missing: {field.metadata['help']}")
        _checked(field, value, types[field.name], label)


def _checked(field: dataclasses.Field[Any], value: Any, kind: Any, label: Callable[[str], str]) -> Any:
    within = field.metadata.get("within")
    try:
        return convert(value, kind, within)
    except ValueError:
        raise GanMaskError(f"{label(field.name)}: {complaint(value, kind, within)}") from None


def to_dict(config: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def convert(value: Any, kind: Any, within: Range | None) -> Any:
    """`value`, a string or what JSON made of it, as `kind`; ValueError where it is none, or not `within` its range."""
    if isinstance(kind, UnionType):  # `kind | None`
        return None if value is None else convert(value, typing.get_args(kind)[0], within)
    if dataclasses.is_dataclass(kind):  # it checks itself
        if not isinstance(value, kind):  # type: ignore[arg-type]
            raise ValueError
        return value
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
    return convert(value, kind, within)


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


def complaint(value: Any, kind: Any, within: Range | None) -> str:
    return f"expected {_expected(kind, within)}, got {reprlib.repr(value)}"


def _expected(kind: Any, within: Range | None) -> str:
    if isinstance(kind, UnionType):
        kind = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind):
        return getattr(kind, "__name__", "")
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
        of = {int: "whole numbers", float: "numbers"}.get(kind, "names")
        return f"{of} {within}, separated by blanks" if within else of
    word = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[kind]
    return f"{word} {within}" if within else word
