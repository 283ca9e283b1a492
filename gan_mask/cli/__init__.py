"""What all commands share: options, messages, progress bars, and how they end."""

from gan_mask.cli.endings import ending
from gan_mask.cli.messages import Messages, printable
from gan_mask.cli.options import (
    Parser,
    add_message_options,
    add_options,
    number,
    parse,
    read_yaml,
    to_yaml,
    type_of,
)
from gan_mask.cli.progress import Progress

__all__ = [
    "Messages",
    "Parser",
    "Progress",
    "add_message_options",
    "add_options",
    "ending",
    "number",
    "parse",
    "printable",
    "read_yaml",
    "to_yaml",
    "type_of",
]
