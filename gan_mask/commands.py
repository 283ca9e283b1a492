"""What all commands share: --version, --quiet, --verbose, progress bars, and how they end.

Exit codes: 0 done, 2 bad input or a file that cannot be read or written, 130 interrupted, 141 nobody reads what is
printed any more (`| head`), of which nothing is said.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tqdm import tqdm

import gan_mask
from gan_mask.errors import GanMaskError

LOG_SECONDS = 30.0  # between the lines of a progress bar that goes to a file


def forget_old_shapes() -> None:
    """Keep memory constant where pictures of ever new sizes go through the networks; call it before the first one.

    On CPUs torch keeps the kernels that oneDNN made for each shape of a layer's input, half a megabyte each and
    1,024 of them by default. Face detection has new shapes with every photo.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class Parser(argparse.ArgumentParser):
    """What every command's options are read with.

    --batch_size and --batch-size are one option, however its name is written, and a wrong value is one line.
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


class Messages:
    """How much the running command says; set by its options, so that they are no setting of its result."""

    quiet = False
    verbose = False


def add_message_options(parser: argparse.ArgumentParser) -> None:
    """--version, --quiet and --verbose; nothing of them enters the namespace of options."""
    Messages.quiet = Messages.verbose = False
    group = parser.add_argument_group("messages")
    group.add_argument("--version", action="version", version=f"gan_mask {gan_mask.__version__}")
    group.add_argument("--quiet", action=_Set, help="no progress bars")
    group.add_argument("--verbose", action=_Set, help="the whole traceback of an error, for a report of it")


class _Set(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        self.name = dest
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, *_: Any) -> None:
        setattr(Messages, self.name, True)


class Progress(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm that keeps quiet when asked to, and that writes a line now and then where nobody watches (a log file)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        if Messages.quiet:
            options["disable"] = True
        if not sys.stderr.isatty():
            options.update(mininterval=LOG_SECONDS, dynamic_ncols=False, ncols=100)
        super().__init__(*args, **options)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if file.isatty():
            return tqdm.status_printer(file)

        def line(text: str) -> None:
            if text.strip():
                file.write(text.strip() + "\n")
                file.flush()

        return line


@contextmanager
def ending(again: str = "the same command goes on from here") -> Iterator[None]:
    """Turns errors that people can mend into one line on stderr and an exit code.

    again: said when interrupted, and when a file or the disk fails.
    """
    try:
        yield
        sys.stdout.flush()  # fails here rather than when Python ends, if nobody reads it any more
    except GanMaskError as error:
        # From a loader process the error comes as text, with its traceback before it.
        complaint = str(error).rpartition("GanMaskError: ")[2].strip()
    except OSError as error:
        if isinstance(error, BrokenPipeError) and (unread := _unread()):
            for descriptor in unread:  # Python writes what is left in them when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            raise SystemExit(141) from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"free some space; {again}" if full else again
        complaint = f"{error.filename or 'file'}: {error.strerror or error}; {remedy}"
    except KeyboardInterrupt:
        print(f"interrupted; {again}", file=sys.stderr)
        raise SystemExit(130) from None
    else:
        return
    if Messages.verbose:
        traceback.print_exc()
    print(f"error: {printable(complaint)}", file=sys.stderr)
    raise SystemExit(2)


def _unread() -> list[int]:
    """Those of stdout and stderr that are pipes whose other end is closed, as `| head` does it."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        try:
            poll.register(stream.fileno(), 0)
        except (OSError, ValueError):  # no file at all, as in a notebook
            continue
    return [descriptor for descriptor, events in poll.poll(0) if events & select.POLLERR]


def printable(text: str) -> str:
    """File names need not be valid Unicode, and may hold newlines and a terminal's commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
