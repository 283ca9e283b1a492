"""How much commands say, and how they write names."""

from __future__ import annotations


class Messages:
    """How much the running command says; set by its options, but not recorded as a setting of its result."""

    quiet = False
    verbose = False


def printable(text: str) -> str:
    """File names need not be valid Unicode, and may hold newlines and a terminal's commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
