"""Options of all commands: --version, --quiet and --verbose, and those that are the fields of a dataclass.

A field's value is its default, then that of a YAML file, then that of the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from gan_mask._version import __version__
from gan_mask.cli.messages import Messages, printable
from gan_mask.errors import GanMaskError
from gan_mask.values import Range, check, complaint, convert, from_values, to_dict, underscored

T = TypeVar("T")
LARGEST_FILE = 100_000  # bytes of a YAML file


class Parser(argparse.ArgumentParser):
    """The argument parser of every command.

    --batch_size and --batch-size are one option, in either spelling, and a wrong value gives a one-line message.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(self._spelt(sys.argv[1:] if args is None else args), namespace)
        for action in self._actions:  # a list without items is written in another way
            values = getattr(found, action.dest, None)
            if isinstance(values, list) and "" in values:
                self.error(str(argparse.ArgumentError(action, "expected names, got ''")))
        return found, rest

    def _spelt(self, args: Sequence[str]) -> list[str]:
        """The arguments with the words of options' names joined as here: by underscores or dashes."""
        end = list(args).index("--") if "--" in args else len(args)
        return [self._known(a) if a.startswith("--") else a for a in args[:end]] + list(args[end:])

    def _known(self, argument: str) -> str:
        name, equals, value = argument[2:].partition("=")
        for spelt in (name, name.replace("-", "_"), name.replace("_", "-")):
            if any(known.startswith(f"--{spelt}") for known in self._option_string_actions):
                return f"--{spelt}{equals}{value}"
        return argument

    def error(self, message: str) -> NoReturn:
        complaint = message.removeprefix("argument ")
        self.exit(2, f"error: {printable(complaint)}; {self.prog} --help lists the options\n")


def add_message_options(parser: argparse.ArgumentParser) -> None:
    """--version, --quiet and --verbose; nothing of them enters the namespace of options."""
    Messages.quiet = Messages.verbose = False
    group = parser.add_argument_group("messages")
    group.add_argument("--version", action="version", version=f"gan_mask {__version__}")
    group.add_argument("--quiet", action=_Set, help="no progress bars")
    group.add_argument("--verbose", action=_Set, help="the whole traceback of an error, for a report of it")


class _Set(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        self.name = dest
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, *_: Any) -> None:
        setattr(Messages, self.name, True)


def parse(cls: type[T], argv: Sequence[str] | None, description: str) -> T:
    """An instance of the dataclass `cls`. `--print_config` prints it as YAML and exits."""
    parser = Parser(description=description)
    parser.add_argument("--config", help="YAML file with any of the options below; the command line wins")
    parser.add_argument("--print_config", action="store_true", help="print the resulting options as YAML and exit")
    add_options(parser, cls)
    add_message_options(parser)
    given = vars(parser.parse_args(argv))
    path, print_config = given.pop("config"), given.pop("print_config")
    chosen = {**(read_yaml(path) if path else {}), **given}
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(chosen) - set(known)):
        raise GanMaskError(f"{path}: unknown option {', '.join(unknown)}; known: {', '.join(known)}")
    config = from_values(cls, chosen)
    if print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    check(config, underscored)
    return config


def add_options(parser: argparse._ActionsContainer, cls: type[Any], separator: str = "_") -> None:
    """One `--option` per field of the dataclass `cls` that has a help line; those not given stay out of the namespace.

    separator: between the words of an option's name, '_' or '-'. With '_' a YAML file may give what the command line
    does not, and a boolean takes a value; with '-' required options are asked for here, and a boolean is a switch.
    """
    types = typing.get_type_hints(cls)
    group = parser
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            continue
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        told, kind = field.metadata, types[field.name]
        names = [f"--{name}" for name in (field.name.replace("_", separator), *told["aliases"])]
        given: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        if kind is bool and separator == "-":
            group.add_argument(*names, **given, action="store_true", help=told["help"].replace("%", "%%"))
            continue
        if typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
            given["nargs"] = "+" if told["required"] else "*"
        group.add_argument(
            *names,
            **given,
            type=_typed(kind, told["within"]),
            required=separator == "-" and told["required"] and not field.default,
            metavar=told["metavar"] or _metavar(types[field.name]),
            help=f"{told['help']} ({_shown(field)})".replace("%", "%%"),
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
            return convert(text, kind, within)
        except ValueError:
            raise argparse.ArgumentTypeError(complaint(text, kind, within)) from None

    return converted


def read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE} bytes")
        # Every scalar as it is written, for convert to read: YAML 1.1 would make a boolean of `no`, 8 of 010.
        values = yaml.BaseLoader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise GanMaskError(f"--config {path}: no such file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise GanMaskError(f"--config {path}: not readable as YAML ({error})") from error
    if not (isinstance(values, dict) and all(isinstance(name, str) for name in values)):
        raise GanMaskError(f"--config {path}: expected `option: value` lines")
    return {name.replace("-", "_"): value for name, value in values.items()}


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _shown(field: dataclasses.Field[Any]) -> str:
    if field.metadata["required"] and not field.default:
        return "required"
    default = field.metadata["shown"] or field.default
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
