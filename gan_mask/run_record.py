"""The record of the inputs that results were made from. A command resumes a folder only where they are the same.

Inputs are a dictionary that lies beside the results as JSON: options by their names; SHA-256 of what options name, the
networks, the data, the photos (one, or several in a list or a dictionary by name); and `code`, the version of the
code that made this kind of result. What a folder does not know, as it is older than the key, counts as it was then:
an option as its default, `code` as 1, a SHA-256 as not known and the same.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gan_mask import files
from gan_mask.errors import GanMaskError

# Of each kind of result; to be raised when a change of the code changes what is kept, or makes it unusable.
CODE = {
    "prepared set": 1,
    "shards": 1,
    "training": 2,
    "clean embeddings": 1,
    "masked photos": 8,
    "shards of masked photos": 4,
    "evaluation": 8,
    "hardening": 3,
    "hardening table": 6,
    "thresholds": 1,
    "alarm": 3,
}

WORDS = {  # of keys whose SHA-256 differs
    "index": "faces of --data",
    "prepared_sha256": "the prepared set",
    "photos_sha256": "names of the photos",
    "contents_sha256": "sizes of the photos",
    "weights": "weights of --checkpoint",
    "weights_sha256": "weights of the network",
    "template_file": "the photo of --template",
    "photos": "photos of --templates",
    "inputs": "content",
    "networks": "weights",
    "folders": "pictures",
}


def inputs(kind: str, options: Mapping[str, Any], **digests: Any) -> dict[str, Any]:
    """As they are read again: with JSON's types. kind: a key of CODE."""
    return dict(json.loads(json.dumps({**options, **digests, "code": CODE[kind]})))


def key(kind: str, *digests: str) -> str:
    """For the name of a file that belongs to these inputs alone."""
    return files.digest(" ".join((f"{kind} {CODE[kind]}", *digests)))[:16]


def read(file: Path) -> dict[str, Any] | None:
    """The inputs that `file` holds; None where there is none, empty where it holds something else."""
    if not file.is_file():
        return None
    found = files.read_json(file)
    return found if isinstance(found, dict) else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, str]:
    """Which of the inputs `now` are others than `before`, by key, in words; `free` ones may be."""
    found = {}
    for name in (name for name in now if name not in free):
        if name == "code":
            known = before.get("code", before.get("choice", 1))  # the evaluation's own, before all had one
            words = f"another version of the code, {known} -> {now['code']}" if known != now["code"] else ""
        elif _is_digest(now[name]):
            words = _content(name, before.get(name), now[name])
        else:
            known = before.get(name, "not known")
            words = f"{name} {known} -> {now[name]}" if known != now[name] else ""
        if words:
            found[name] = words
    return found


def _is_digest(value: Any) -> bool:
    """Whether it is a SHA-256, or some."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    some = bool(values) or isinstance(value, dict)  # no option is a dictionary
    return some and all(isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) for v in values)


def _content(name: str, before: Any, now: Any) -> str:
    """What of a SHA-256, or of several, is another than before; what was not known before is not."""
    if before is None:
        return ""
    if not isinstance(now, dict):
        return f"other {WORDS.get(name, name)}" if before != now else ""
    if not isinstance(before, dict):  # a list in the same order, from before their names were kept
        before = dict(zip(now, before, strict=False))
    others = [part for part in now if part in before and before[part] != now[part]]
    return f"other {WORDS.get(name, name)} of {', '.join(others)}" if others else ""


def check(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str, free: Collection[str] = ()
) -> None:
    """GanMaskError that names what differs, where something does that is not `free`."""
    if found := differences(before, now, free):
        raise GanMaskError(f"{folder}: belongs to other inputs ({'; '.join(found.values())}); {remedy}")


@contextmanager
def claimed(
    file: Path,
    now: Mapping[str, Any],
    remedy: str,
    free: Collection[str] = (),
    of_today: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> Iterator[None]:
    """The folder of `file` is this command's alone while it works there, and belongs to the inputs `now`.

    free: what may be another. of_today: turns the inputs of an older folder into what they are today. GanMaskError
    where the folder belongs to other inputs, or another command has it.
    """
    folder = file.parent
    with files.locked(folder):
        before = read(file)
        if before is not None:
            check(folder, of_today(before), now, remedy, free)
        files.remove_leftovers(folder)
        files.write_json(file, now)
        yield


def embeddings(path: Path, rows: int) -> np.ndarray | None:
    """Kept embeddings (rows, D), mapped into memory; None where there are none, or, with a warning, no usable ones."""
    if not path.is_file():
        return None
    try:
        # All processes of a machine share the pages. "c": torch wants memory that it may write to.
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        reason = f"{len(found)} rows, expected {rows}" if len(found) != rows else ""
        if not reason and not all(np.isfinite(found[i : i + 4096]).all() for i in range(0, rows, 4096)):
            reason = "not finite"
    except (ValueError, EOFError, OSError, TypeError) as error:
        reason = str(error)
    if reason:
        print(f"warning: {path}: damaged ({reason}); it is computed again", file=sys.stderr)
        return None
    return found
