"""Where third-party weights lie. Nothing is ever replaced by random weights."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from gan_mask.errors import GanMaskError
from gan_mask.files import sha256

VARIABLE = "GAN_MASK_WEIGHTS"

KNOWN = {  # file name -> (sha256 or None, where it comes from)
    "shape_predictor_68_face_landmarks.dat": (
        "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
        "pip install face-recognition-models",
    ),
    "dlib_face_recognition_resnet_model_v1.dat": (
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        "pip install face-recognition-models",
    ),
    "alexnet_features.safetensors": (
        "36edd8b90fd96dac0fb9163f4add8f90dcdd7c54ccc272a5a3c3eadb45ec5b08",
        "torchvision's AlexNet (IMAGENET1K_V1), its `features.*` tensors saved as safetensors",
    ),
}


def search_path() -> list[Path]:
    """The folders of $GAN_MASK_WEIGHTS, the cache, and the PyPI package face-recognition-models."""
    folders = [Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p]
    folders.append(Path.home() / ".cache" / "gan_mask")
    # The package is located, not imported: importing it needs the retired pkg_resources.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec and spec.submodule_search_locations:
        folders += [Path(p) / "models" for p in spec.submodule_search_locations]
    return folders


def find(name: str, expected_sha256: str | None = None) -> Path:
    """Path of the weight file `name`; raises GanMaskError with how to place it by hand."""
    known_sha256, source = KNOWN.get(name, (None, "its publisher"))
    expected_sha256 = expected_sha256 or known_sha256
    folders = search_path()
    for folder in folders:
        path = folder / name
        if path.is_file():
            if expected_sha256 and sha256(path) != expected_sha256:
                raise GanMaskError(
                    f"{path}: SHA-256 differs from {expected_sha256}; the file is damaged or another version"
                )
            return path
    looked = ", ".join(str(f) for f in folders)
    raise GanMaskError(
        f"weights '{name}' not found (looked in {looked}). Get it from {source}, "
        f"or put the file into a folder named in ${VARIABLE}."
    )
