"""Files that are either whole or absent: write, fsync, rename."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_mask.errors import GanMaskError

if TYPE_CHECKING:
    from torch import Tensor
SCHEMES = ("onnx:", "torch:")  # of networks that are named by a sidecar, a JSON file
NAME_BYTES = 255  # of a file's name, at most, on nearly all file systems
DAY = 86400.0  # seconds


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`.

    On any exception (a full disk, Ctrl-C) the temporary file is removed and `path` is untouched.
    """
    path = Path(path)
    ending = f".{_machine()}-{os.getpid()}.tmp"
    stem = path.name if len(os.fsencode(f".{path.name}{ending}")) <= NAME_BYTES else digest(path.name)
    temporary = path.with_name(f".{stem}{ending}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some libraries write files that only their owner may read
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


LOCK = ".lock"  # stays in the folder; what counts is who holds it
_held: set[Any] = set()


@contextmanager
def locked(folder: str | Path, file: str = "") -> Iterator[None]:
    """Make `folder` this command's own while it works there; GanMaskError when another command has it.

    file: its name, where a command writes this one file of the folder only. The system lets go of the lock when the
    process ends, in whatever way.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / (f".{file}{LOCK}" if file else LOCK), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GanMaskError(
                f"{folder / file}: another command is writing there; wait for it, or choose another "
                + ("file" if file else "folder")
            ) from None
        except OSError as error:  # some network file systems
            print(f"warning: {folder}: cannot be locked ({error.strerror}); let no other command write there",
                  file=sys.stderr)  # fmt: skip
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


def _let_go() -> None:
    """In a forked process, such as a loader's: it must not keep the lock when its parent is killed."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left anywhere below `folder`.

    Those of other machines, of whose processes nothing is known here, when they are a day old.
    """
    for path in folder.rglob(".*.tmp"):
        machine, _, owner = path.name.split(".")[-2].rpartition("-")
        if not owner.isdecimal():
            continue
        with suppress(FileNotFoundError):
            if not _running(int(owner)) if machine in ("", _machine()) else time.time() - path.stat().st_mtime > DAY:
                path.unlink()


@cache
def _machine() -> str:
    """A word for this machine: its processes' numbers are no others'."""
    return digest(socket.gethostname())[:8]


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Raises GanMaskError, naming the file, when it is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GanMaskError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise GanMaskError(f"{path}: not readable as JSON ({error})") from error


def sha256(*paths: str | Path) -> str:
    """Of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def digest(text: str) -> str:
    """SHA-256 of a text, as hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def safe_name(text: str) -> str:
    """`text` as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)


def split_scheme(name: str) -> tuple[str, str]:
    """A network's name as ("onnx:" or "torch:", its sidecar's path); any other name as ("", name)."""
    scheme = next((scheme for scheme in SCHEMES if name.startswith(scheme)), "")
    return scheme, name.removeprefix(scheme)


def absolute_network(name: str) -> str:
    """A network's name for a process that has another working directory."""
    scheme, path = split_scheme(name)
    return scheme + str(Path(path).absolute()) if scheme else name


def absolute_where_there(name: str) -> str:
    """The same of a file or folder; what is none here is a shipped template's name, or a generator's on the hub."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def without_folder(name: str) -> str:
    """The name of a network, template or file as a file that is passed on tells it: no path of this machine."""
    scheme, path = split_scheme(name)
    return scheme + Path(path).name


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file; raises GanMaskError that names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise GanMaskError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise GanMaskError(f"{path}: damaged or not a safetensors file ({error})") from error


def weights_digest(network: Any) -> str:
    """SHA-256 of a network's weights, whatever its name, file and sidecar; of its name where it has none."""
    digest = hashlib.sha256()
    tensors = list(getattr(network, "net", network).state_dict().values())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes())
    if not tensors:
        digest.update(network.name.encode())
    return digest.hexdigest()
