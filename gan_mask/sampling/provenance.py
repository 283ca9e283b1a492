"""What made a photo: python -m gan_mask.provenance FILE...

sample.py marks every photo and clip that it writes. This reads the mark. Exit status: 0 all files carry it, 1 some do
not, 2 some cannot be read. A mark is easily removed: its absence proves nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gan_mask import cli
from gan_mask.faces import UnreadableImage
from gan_mask.sampling import photo_writer


def fields(tag: str) -> dict[str, str]:
    """'gan_mask 0.1 synthetic ...; method=dm; template=face-001; ...' -> software, method, checkpoint, template."""
    software = " ".join(tag.split()[:2])
    return {"software": software, **dict(part.split("=", 1) for part in tag.split("; ") if "=" in part)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m gan_mask.provenance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("input and output").add_argument
    add("files", nargs="+", metavar="FILE", help="photos and clips")
    add("--json", action="store_true", help="one JSON object per file")
    cli.add_message_options(parser)
    args = parser.parse_args(argv)
    with cli.ending("the same command starts over"):
        return report(args.files, args.json)


def report(names: Sequence[str], as_json: bool) -> int:
    """Print what each file says; the exit status."""
    status = 0
    for name in names:
        try:
            tag = photo_writer.read_provenance(Path(name))
        except UnreadableImage as error:
            status = 2
            print(f"error: {cli.printable(str(error))}", file=sys.stderr)
            if as_json:
                print(json.dumps({"file": name, "error": error.reason}))
            continue
        if tag is None:
            status = max(status, 1)
        if as_json:
            print(json.dumps({"file": name, "tagged": tag is not None, "tag": tag, **(fields(tag) if tag else {})}))
        else:
            print(cli.printable(f"{name}: {tag or 'no mark of gan_mask'}"))
    return status
