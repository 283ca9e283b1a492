"""Options of hardening, and the folder that belongs to one set of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gan_mask import attacks, files, run_record, values
from gan_mask.errors import GanMaskError
from gan_mask.harden import blends
from gan_mask.values import COUNT, FRACTION, LEARNING_RATE, RATE, SEED, WORKERS, Range, option

KNOWN = (*(name for name in attacks.METHODS if name not in ("none", "plain")), blends.NAME)


@dataclass
class HardenConfig:
    data: str = option("", "prepared set; its train split is learned from", group="input and output", required=True)
    out: str = option("", "folder for the hardened detector; the same command again resumes", required=True)
    detector: str = option(
        "classifier",
        "classifier, classifier-hardened, onnx:SIDECAR.json or torch:SIDECAR.json",
        group="what is fine-tuned, and on which masks",
    )
    against: tuple[str, ...] = option(
        (blends.NAME, "generator", "dm-seamless", "dm"),
        f"methods to make faced masks with; {blends.NAME}: lower faces blended at random, without an attack",
    )
    checkpoint: str = option("", "generator: its folder")
    embedders: tuple[str, ...] = option(("dlib",), "recognisers that the optimised methods must dodge, too")
    far: float = option(1e-3, "false-accept rate of their thresholds", within=RATE)
    templates: tuple[str, ...] = option(("faces",), "what is printed on the masks: names, photos or groups")
    own_templates: float = option(
        0.5, "share of masks that show another person of the set instead, in [0, 1]", within=FRACTION
    )
    real_masks: str = option("", "zip of real masked and bare faces, whose train split joins the anchors")
    rounds: int = option(2, "times that a pool is made and the detector fine-tuned", group="training", within=COUNT)
    steps: tuple[int, ...] = option(
        (300,), "train steps of each round; the last number holds for all further rounds", within=COUNT
    )
    batch_size: int = option(48, "pictures per step, half of them bare", within=Range(1, 65536))
    learning_rate: float = option(3e-4, "of AdamW, falling to 0 within each round", within=LEARNING_RATE)
    pool: int = option(400, "faced masks per method and round", within=COUNT)
    attack_steps: int = option(20, "steps of the optimised methods at most", within=COUNT)
    generator_steps: int = option(
        0, "steps to retrain the generator against the detector before each further round", within=Range(0, 2**31 - 1)
    )
    mixed_precision: Literal["no", "bf16"] = option(
        "no", "bf16: twice as fast on a CPU that has it (avx512_bf16, amx_bf16), much slower on others"
    )
    save_every: int = option(50, "steps between checkpoints", within=COUNT)
    false_alarms: float = option(
        0.005, "our classifier: largest share of the val split's unmasked faces reported", within=RATE
    )
    workers: int = option(1, "loader processes", within=WORKERS)
    seed: int = option(0, "of everything random", within=SEED)


def check(c: HardenConfig) -> None:
    values.check(c)
    if wrong := [m for m in c.against if m not in KNOWN] or ([] if c.against else ["nothing"]):
        raise GanMaskError(f"--against {wrong[0]}: expected some of {', '.join(KNOWN)}")
    if "generator" in c.against and not c.checkpoint:
        raise GanMaskError("--against generator needs --checkpoint, a generator's folder")
    if c.batch_size % 2:
        raise GanMaskError(f"--batch_size {c.batch_size}: an even number is expected, pictures come in pairs")
    if not c.steps:
        raise GanMaskError("--steps: expected one number or more")


RESUMABLE = {"out", "workers", "save_every", "require"}  # what may change when a run is resumed


def claimed(
    c: Any, networks: Mapping[str, str], kind: str = "hardening", name: str = "harden.json"
) -> AbstractContextManager[None]:
    """--out belongs to this process, and to one set of options and inputs, kept in OUT/name; see run_record.claimed.

    networks: fingerprints of those that the options name.
    """
    now = run_record.inputs(kind, values.to_dict(c), inputs=inputs_of(c), networks=networks)
    defaults = values.to_dict(type(c)())
    return run_record.claimed(Path(c.out) / name, now, "use another --out", RESUMABLE, lambda before: defaults | before)


def inputs_of(c: Any) -> dict[str, str]:
    """SHA-256 of what the options name: the prepared set, checkpoints, sidecars and photos, which may change there."""
    found = {c.data: files.sha256(Path(c.data) / "index.npy")}
    for key, value in values.to_dict(c).items():
        for name in value if isinstance(value, list) else [value]:
            path = Path(files.split_scheme(str(name))[1])
            if key == "out" or not str(name):
                continue
            if path.is_file():
                found[str(name)] = files.sha256(path)
            elif (weights := generator_file(path)) is not None:
                found[str(name)] = files.sha256(weights)
    return found


def generator_file(folder: Path) -> Path | None:
    """The weights of the generator in `folder`, a checkpoint or a run folder; None where there is none."""
    places = (folder / "model.safetensors", folder / "generator" / "model.safetensors")
    return next((path for path in places if path.is_file()), None)
