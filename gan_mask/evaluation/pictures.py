"""Pictures as the evaluation writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from gan_mask import files
from gan_mask.faces import read_image


def write_pngs(paths: Sequence[Path], pictures: Iterable[np.ndarray]) -> None:
    """uint8 (H, W, 3) each. In threads, so that the disk's answers are waited for together."""

    def write(path: Path, picture: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG", compress_level=1)  # half the time of 6

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, paths, pictures))


def strip(paths: Mapping[str, Sequence[Path]], columns: int = 8) -> Image.Image:
    """A row of the same faces per method."""
    count = len(next(iter(paths.values())))
    chosen = np.linspace(0, count - 1, min(columns, count)).astype(int)
    rows = [np.concatenate([read_image(p[i]) for i in chosen], 1) for p in paths.values()]
    return Image.fromarray(np.concatenate(rows))
