"""Cosine thresholds of an embedder from the clean impostor pairs of a prepared set.

python -m gan_mask.calibrate --data PREPARED --embedder NAME [--split train|val|test] [--out FILE]
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gan_mask import cli, files, run_record
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.pretrained import contract, load_embedder, thresholds
from gan_mask.pretrained.protocol import Embedder


def measure(embedder: Embedder, faces: Dataset[dict[str, Any]], source: str, device: str = "cpu") -> dict[str, Any]:
    """{"cosine": {FAR: threshold}, "provenance": {...}} over all cross-identity pairs of `faces`.

    At FAR 0.01 and 0.001, and at 0.0001 where there are 100,000 pairs or more.

    faces: items as of PreparedSet; source: what to call them in the provenance. GanMaskError when they hold
    too few pairs.
    """
    embeddings, identities = embed(embedder, faces, device)
    cosine, pairs = thresholds.far_thresholds(embeddings, identities, further=thresholds.FURTHER)
    return {
        "cosine": cosine,
        "provenance": {
            "embedder": embedder.name,
            **run_record.inputs("thresholds", {}, weights_sha256=embedder.weights_sha256),
            "data": source,
            "faces": len(identities),
            "identities": len(identities.unique()),
            "impostor_pairs": pairs,
            "alignment": "similarity from the five points of gan_mask.landmarks.points5, on aligned crops",
            "date": date.today().isoformat(),
        },
    }


def embed(embedder: Embedder, faces: Dataset[dict[str, Any]], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Embeddings (N,D) and identities (N,) of all faces, on the CPU."""
    parts = []
    with torch.no_grad():
        for batch in DataLoader(faces, batch_size=64):
            with contract.naming(contract.sources(faces, batch["index"])):
                embedding = embedder(batch["face"].to(device), batch["landmarks"].to(device))
            parts.append((embedding.cpu(), batch["identity"]))
    if not parts:
        raise GanMaskError("no faces to calibrate on")
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def save(result: dict[str, Any], name: str, out: Path | None) -> Path:
    """Where load_embedder(name) finds it again: in an ONNX sidecar, or among the user's own calibrations."""
    if out is None and name.startswith("onnx:"):
        out = Path(name.removeprefix("onnx:"))
        files.write_json(out, files.read_json(out) | {"thresholds": result})
        return out
    out = out or thresholds.CALIBRATED / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(out, result)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m gan_mask.calibrate", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument_group("calibration").add_argument
    add("--data", required=True, help="prepared set (see data_prep/prepare.py); required")
    add("--embedder", required=True, help="name, or onnx:SIDECAR.json; required")
    add("--split", help="train, val or test (default: all of them)")
    add("--out", type=Path, help="JSON file (default: the sidecar of an ONNX embedder, else the cache)")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=here, help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    cli.add_message_options(parser)
    options = parser.parse_args(arguments)
    with cli.ending("the same command starts over"):
        faces = PreparedSet(options.data, options.split)
        source = f"{Path(options.data).resolve().name}, split {options.split or 'all'}"
        result = measure(load_embedder(options.embedder, options.device), faces, source, options.device)
        path = save(result, options.embedder, options.out)
        for far, cosine in result["cosine"].items():
            print(f"FAR {far}: cosine {cosine:.4f}")
        print(f"{result['provenance']['impostor_pairs']:,} impostor pairs; written to {path}")
        print("no command reads it there by itself" if options.out else "all commands use them from now on")
