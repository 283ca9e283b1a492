"""A page in the browser to try masks on a photo: gan-mask-app, or python -m gan_mask.app

Drop a photo or take one, choose what masks its faces, and see it before and after with what each network says, or
several methods side by side. The page is for this machine alone unless --host says otherwise, and it sends nothing
anywhere: no telemetry, no fonts or scripts of others. Photos lie in a folder of the page's own that goes with it.
Every picture that it offers for download is marked as synthetic, as sample.py marks them.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see --help."""
    from gan_mask.app.command import main as command

    command(argv)
