"""Cosine thresholds at stated false-accept rates, from clean impostor pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_mask import files, run_record
from gan_mask.errors import GanMaskError

FARS = (0.01, 0.001)
FURTHER = (0.0001,)  # where there are pairs enough
SHIPPED = Path(__file__).parent.parent / "assets" / "thresholds"
CALIBRATED = Path.home() / ".cache" / "gan_mask" / "thresholds"
# Of lines of papers, by their networks: what --protocol of the evaluation compares with. FAR as text -> cosine.
PUBLISHED = {
    "amtgan": {  # AMT-GAN (arXiv 2203.03121) and what came after it, on their own crops of LFW
        "IR152": {"0.1": 0.094632, "0.01": 0.166788, "0.001": 0.227922},
        "IRSE50": {"0.1": 0.144840, "0.01": 0.241045, "0.001": 0.312703},
        "FaceNet": {"0.1": 0.256587, "0.01": 0.409131, "0.001": 0.591191},
        "MobileFace": {"0.1": 0.183635, "0.01": 0.301611, "0.001": 0.380878},
    }
}
BINS_PER_UNIT = 100_000  # cosine similarities are counted in steps of 1e-5
BLOCK = 1024


class Thresholds(dict[str, float]):
    """FAR as text -> cosine, and which weights they belong to: `where` they stand, with their `provenance`."""

    def __init__(self, found: Mapping[str, float] = {}, where: str = "", provenance: Mapping[str, Any] = {}) -> None:
        super().__init__(found)
        self.where, self.provenance = where, provenance

    def check(self, name: str, weights_sha256: str) -> None:
        """GanMaskError where they were measured on other weights than those of the network `name`."""
        now = run_record.inputs("thresholds", {}, weights_sha256=weights_sha256)
        if changed := run_record.differences(self.provenance, now):
            raise GanMaskError(
                f"{self.where}: these thresholds do not belong to {name} as it is now ({'; '.join(changed.values())}). "
                f"Calibrate it again: python -m gan_mask.calibrate --embedder {name} --data PREPARED"
            )


def shipped(name: str) -> Thresholds:
    """From the user's own calibration or else from the package; empty when there is neither."""
    for folder in (CALIBRATED, SHIPPED):
        path = folder / f"{name}.json"
        if path.is_file():
            return checked(files.read_json(path), str(path))
    return Thresholds()


def checked(value: Any, where: str) -> Thresholds:
    """The thresholds of {"cosine": {"0.01": ..., ...}, "provenance": {...}}; GanMaskError if it is not that."""
    try:
        found = {str(float(far)): float(cosine) for far, cosine in value["cosine"].items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        found = {"": 0.0}
    if not all(far and 0 < float(far) < 1 and -1 <= cosine <= 1 for far, cosine in found.items()):
        raise GanMaskError(f'{where}: thresholds must look like {{"cosine": {{"0.01": 0.27, "0.001": 0.39}}}}')
    provenance = value.get("provenance")
    return Thresholds(found, where, provenance if isinstance(provenance, dict) else {})


def far_thresholds(
    embeddings: Tensor, identities: Tensor, fars: tuple[float, ...] = FARS, further: tuple[float, ...] = ()
) -> tuple[dict[str, float], int]:
    """Thresholds over all cross-identity pairs of embeddings [N,D] (unit length) with identities [N].

    A pair is accepted when its cosine >= threshold. Returns (FAR as text -> the smallest such threshold at
    steps of 1e-5 whose FAR is at most the stated one, number of pairs). At least ten false accepts
    must be expected at each FAR, otherwise GanMaskError; a FAR of `further` is then left out instead.
    """
    counts = torch.zeros(2 * BINS_PER_UNIT + 1, dtype=torch.int64)
    for start in range(0, len(embeddings), BLOCK):
        block = slice(start, start + BLOCK)
        similarity = embeddings[block] @ embeddings[start:].T
        # Each pair once: the second face comes later in the list.
        later = torch.ones_like(similarity, dtype=torch.bool).triu(1)
        pairs = similarity[later & (identities[block, None] != identities[None, start:])]
        bins = ((pairs.clamp(-1, 1) + 1) * BINS_PER_UNIT).long()
        counts += torch.bincount(bins.cpu(), minlength=len(counts))
    total = int(counts.sum())
    needed = round(10 / min(fars))
    if total < needed:
        raise GanMaskError(f"{total} impostor pairs are too few for FAR {min(fars):g}; at least {needed} are needed")
    accepted = counts.flip(0).cumsum(0).flip(0)  # pairs in this bin or above
    result = {}
    for far in (*fars, *(far for far in further if total >= round(10 / far))):
        edge = int((accepted > far * total).sum())  # the first bin from which on few enough pairs lie
        result[f"{far:g}"] = round(edge / BINS_PER_UNIT - 1, 5)
    return result, total
