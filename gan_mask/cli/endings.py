"""How all commands end.

Exit codes: 0 done, 2 bad input or a file that cannot be read or written, 130 interrupted, 141 nobody reads what is
printed any more (`| head`), which prints no message.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from gan_mask.cli.messages import Messages, printable
from gan_mask.errors import GanMaskError


@contextmanager
def ending(again: str = "the same command resumes from here") -> Iterator[None]:
    """Turn errors that people can fix into one line on stderr and an exit code.

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
