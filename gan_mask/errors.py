"""The one error type that commands show to people without a traceback."""


class GanMaskError(Exception):
    """Bad input or a missing file. The message names the file or option and the remedy."""
