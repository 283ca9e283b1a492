#!/usr/bin/env python3
"""python data_prep/demo_photos.py PREPARED OUT: photos of embedded synthetic people that training does not see.

PREPARED is the embedded set, prepared (`data_prep/prepare.py synthetic PREPARED`). Its test people's first
photos are written to OUT, but for the people whose faces are shipped as templates.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gan_mask import cli, files  # noqa: E402
from gan_mask.data import EMBEDDED, PreparedSet  # noqa: E402
from gan_mask.templates import TEMPLATE_PEOPLE  # noqa: E402
from gan_mask.values import COUNT  # noqa: E402


def write_photos(prepared: Path, out: Path, limit: int) -> int:
    """Write at most `limit` photos, one a person; returns their number."""
    test = PreparedSet(prepared, "test")
    first = {test.person(i): test.source(i) for i in reversed(range(len(test)))}
    sources = [source for person, source in sorted(first.items()) if person not in TEMPLATE_PEOPLE][:limit]
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(EMBEDDED) as archive:
        for source in sources:
            with files.replacing(out / source.split("/", 1)[1].replace("/", "_")) as temporary:
                temporary.write_bytes(archive.read(source))
    return len(sources)


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("input and output").add_argument
    add("prepared", type=Path, metavar="PREPARED", help="the embedded set, prepared")
    add("out", type=Path, metavar="OUT", help="folder for the photos")
    add("--limit", type=cli.number(int, COUNT), default=24, help="most photos (default: 24)")
    cli.add_message_options(parser)
    args = parser.parse_args()
    with cli.ending("the same command starts over"):
        print(f"{write_photos(args.prepared, args.out, args.limit)} photos in {args.out}")


if __name__ == "__main__":
    main()
