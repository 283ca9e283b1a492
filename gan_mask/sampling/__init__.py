"""A folder of photos (or one photo) in, masked copies out: python sample.py --faces DIR --out DIR

Every face of every photo (or only the largest) wears a mask, at the photo's full size. OUT receives

- each masked photo, or the clip, under the same relative path and name, tagged as not an original photograph;
- results.csv, one row per face, and one per photo that has none, or cannot be read or written;
- overview.png, unmasked and masked faces side by side.

`similarity` in the table is the cosine between the embeddings of the clean face and of the masked
face, after the masked photo was written, and its face re-detected in the file; below
`threshold` (FAR 0.001) the embedder takes the two for different people. A mask logit above 0 means
that the detector reports a mask: before on the clean photo, after on the written file.

The same command again resumes where it stopped; with other options everything is made again.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see --help."""
    from gan_mask.sampling.command import main as command

    command(argv)
