"""Progress bars of all commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from gan_mask.cli.messages import Messages

LOG_SECONDS = 30.0  # between the lines of a progress bar that goes to a file


class Progress(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm that is silent when asked to, and that writes an occasional line where nobody watches (a log file)."""

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
