"""The evaluation: python -m gan_mask.evaluation --data PREPARED --checkpoint CHECKPOINT --out REPORT

Every masked face is written as an 8-bit PNG and re-detected: faces, landmarks, alignment, detection and
embedding start over from the file. The unmasked probe is treated alike. Definitions:

- probe: a photo of the split; mated with the next clean photo of the same person (the gallery side);
- accepted when clean: the unmasked probe's face is found and its similarity to its mate reaches the threshold;
- face found: MTCNN finds a face in the written file;
- dodging: face found and similarity below the threshold, among the probes accepted when clean;
- mask detection: the detector reports a mask, among the probes whose face is found;
- joint success: face found, no detector of the set reports a mask or loses the face, and no embedder of the
  set accepts, among the probes that all embedders of the set accept when clean.

Surrogates (trained against) and held-out networks are reported apart. Intervals are bootstrap 95 % over identities.
OUT receives index.html, report.json (the same again in a second run), cost.json (times and memory), probes.csv,
curves.csv, robustness.csv, strip.png and the faces. The same command again resumes where it stopped; with --workers,
or under `accelerate launch`, several processes share the work. docs/evaluation.md has every definition.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see --help."""
    from gan_mask.evaluation.command import main as command

    command(argv)
