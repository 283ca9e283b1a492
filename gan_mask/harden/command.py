"""Rounds of making faced masks, fine-tuning and exporting."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gan_mask import attacks, cli, pretrained
from gan_mask import harden as package
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.harden import pictures
from gan_mask.harden.export import export, hardened_name
from gan_mask.harden.fit import Examples, fit, set_operating_point
from gan_mask.harden.options import HardenConfig, check, claimed
from gan_mask.harden.pools import Pool, make_pool
from gan_mask.pretrained.classifier import CloseNet, EitherNet, MaskClassifier, halve
from gan_mask.pretrained.protocol import Detector, fingerprints


def main(argv: Sequence[str] | None = None) -> None:
    with cli.ending():
        harden(cli.parse(HardenConfig, argv, (package.__doc__ or "").partition("\n\n")[0]))


def harden(c: HardenConfig) -> Path:
    """Harden a detector, or resume what --out holds; the sidecar of the result.

    GanMaskError for wrong options, and for a folder of others.
    """
    check(c)
    photos = PreparedSet(c.data, "train")
    detector = pretrained.load_detector(c.detector)
    pack = pictures.real_masks(c.real_masks)["train"] if c.real_masks else None
    optimised = any(method in attacks.OPTIMISED for method in c.against)
    embedders = {name: pretrained.load_embedder(name) for name in c.embedders if optimised}
    with claimed(c, fingerprints(embedders, {c.detector: detector})):
        return rounds(c, photos, detector, pack)


def rounds(c: HardenConfig, photos: PreparedSet, detector: Detector, pack: Any) -> Path:
    out = Path(c.out)
    trained, detector = apart(detector)
    original = {name: p.detach().clone() for name, p in trained.net.named_parameters()}
    if not original:
        raise GanMaskError(f"--detector {c.detector}: it has no weights that training could change")
    pools: list[Pool] = []
    for number in range(1, c.rounds + 1):
        folder = out / f"round-{number}"
        folder.mkdir(exist_ok=True)
        pools += [make_pool(c, photos, detector, method, number) for method in c.against]
        fit(c, number, trained, Examples(c, photos, pools, pack, number), folder)
        if isinstance(detector, MaskClassifier):
            halve(trained.net)
            set_operating_point(detector, PreparedSet(c.data, "val"), c.false_alarms)
        sidecar = export(c, detector, original, out)
    print(f"hardened detector: {hardened_name(c)}\nwhat that was worth: {table_command(c)}")
    return sidecar


def table_command(c: HardenConfig) -> str:
    """What measures the hardened detector on people that it has not seen, beside what it was."""
    words = ["python", "-m", "gan_mask.harden.table", "--data", c.data, "--before", c.detector]
    words += ["--after", hardened_name(c)]
    words += ["--generators", c.checkpoint] if c.checkpoint else []
    return shlex.join([*words, "--out", f"{c.out}/table"])


def apart(detector: Detector) -> tuple[Any, Detector]:
    """What is fine-tuned, and the detector that it becomes part of: our classifier stays as it is beside it."""
    if not isinstance(detector, MaskClassifier):
        return detector, detector
    net = detector.net
    if isinstance(net, EitherNet):
        first, second = net.first, net.second
    else:
        first, second = net, CloseNet()
        second.load_state_dict(net.state_dict())
    return MaskClassifier(second), MaskClassifier(EitherNet(first, second), detector.card, detector.name)
