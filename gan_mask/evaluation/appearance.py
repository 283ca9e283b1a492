"""How a worn mask looks, against the same picture without it: edge, fine detail, skin tone.

All measures take two uint8 pictures (H, W, 3) of one size, of any size, and the landmarks (68, 2), px, of the bare one.
The reference is the unmasked face: a picture against itself has exactly 0, 1 and 0. NaN where nothing can be
measured: an edge outside of the picture, or a bare face without any detail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gan_mask import masking
from gan_mask.errors import GanMaskError
from gan_mask.evaluation.intervals import NOTHING, Cell, of_statistic
from gan_mask.faces import read_image

UPPER_EDGE = (1, 28, 15)  # landmarks: the mask's upper edge, from ear to ear over the bridge of the nose
BAND = 0.05  # width of the bands beside the edge, of the mask's width
DEPTHS = (-1, 0, 1)  # where the bands begin, in bands inwards: one outside of the mask and two inside
PLACES = 12  # along each half of the edge
ENDS = 0.12  # of each half of the edge, left out at both ends, where hair and ears begin
SAMPLES = (5, 25)  # fewest and most samples across a band: one per pixel in between
SIGMA = 1.5  # px: what a Gaussian of this width takes away is fine detail
RIM = 5  # px (3 sigma) at the mask's edge that are left out: there the edge itself would count as detail
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of R'G'B' (ITU-R BT.601)

MEASURES = ("edge step", "fine detail", "skin tone difference")
# Cell -> measure and percentile. Of a method the bad end counts, not the mean: one face in ten looks worse.
STATISTICS = {
    "edge step median": ("edge step", 50),
    "edge step p90": ("edge step", 90),
    "fine detail median": ("fine detail", 50),
    "fine detail p10": ("fine detail", 10),
    "skin tone difference median": ("skin tone difference", 50),
    "skin tone difference p90": ("skin tone difference", 90),
}


def measure(bare: np.ndarray, masked: np.ndarray, landmarks: np.ndarray) -> dict[str, float]:
    """All three measures by name, at the cost of the mask's surroundings, however large the picture is.

    Raises GanMaskError unless the pictures are of one size and the landmarks (68, 2).
    """
    if bare.shape != masked.shape or bare.ndim != 3 or landmarks.shape != (68, 2):
        raise GanMaskError(
            f"expected two pictures (H, W, 3) of one size and landmarks (68, 2), got {bare.shape}, {masked.shape} and "
            f"{landmarks.shape}"
        )
    points = landmarks[list(masking.MASK_LANDMARKS)]
    # So far around the mask that neither bands nor Gaussian notice the cut.
    margin = int(np.ceil(max(2 * BAND * _width(landmarks), 4 * SIGMA))) + 2
    x0, y0 = np.clip(np.floor(points.min(0)).astype(int) - margin, 0, None)
    x1, y1 = np.clip(np.ceil(points.max(0)).astype(int) + margin + 1, 0, None)
    bare, masked, landmarks = bare[y0:y1, x0:x1], masked[y0:y1, x0:x1], landmarks - np.array([x0, y0])
    if not bare.size:
        return dict.fromkeys(MEASURES, np.nan)
    inside = region(landmarks, bare.shape[0], bare.shape[1])
    values = (
        edge_step(bare, masked, landmarks),
        fine_detail(bare, masked, inside),
        tone_difference(bare, masked, inside),
    )
    return dict(zip(MEASURES, values, strict=True))


def region(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where the mask lies: bool (H, W)."""
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[None]
    return masking.region(points, height, width)[0, 0].numpy() > 0


def edge_step(bare: np.ndarray, masked: np.ndarray, landmarks: np.ndarray) -> float:
    """Excess step of colour at the mask's upper edge, CIEDE2000: masked minus bare at the same places.

    Mean colours of bands parallel to the edge; of the two borders between them (the edge, and 5 % of the mask's width
    further in, so that a seam which a method moves inwards is not overlooked) the larger mean over places counts.
    """
    from skimage.color import deltaE_ciede2000

    x, y = _bands(landmarks)
    inside = ((x >= 0) & (x < bare.shape[1]) & (y >= 0) & (y < bare.shape[0])).all((1, 2))
    if not inside.any():
        return np.nan
    x, y = x[inside], y[inside]
    steps = []
    for picture in (masked, bare):
        colours = _lab(picture[y, x]).mean(2)  # (places, bands, 3)
        steps.append(deltaE_ciede2000(colours[:, :-1], colours[:, 1:]))
    return float((steps[0] - steps[1]).mean(0).max())


def _bands(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels x, y, each (places, bands, samples), of little squares in each band at each place of the edge."""
    width = _width(landmarks)
    count = int(np.clip(round(BAND * width), *SAMPLES))
    across = (np.arange(count) + 0.5) / count
    depth = BAND * width * (np.array(DEPTHS)[:, None] + across)  # (bands, samples)
    along = BAND * width * (across - 0.5)
    corners = landmarks[list(UPPER_EDGE)].astype(np.float64)
    squares = []
    for start, end in zip(corners[:-1], corners[1:], strict=True):
        direction = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
        inwards = np.array([-direction[1], direction[0]])
        places = start + np.linspace(ENDS, 1 - ENDS, PLACES)[:, None] * (end - start)
        square = depth[:, :, None, None] * inwards + along[:, None] * direction  # (bands, depth, along, 2)
        squares.append(places[:, None, None] + square.reshape(len(DEPTHS), -1, 2))
    pixels = np.round(np.concatenate(squares)).astype(int)
    return pixels[..., 0], pixels[..., 1]


def _width(landmarks: np.ndarray) -> float:
    """Of the mask, px: from ear to ear."""
    return float(np.linalg.norm(landmarks[UPPER_EDGE[-1]] - landmarks[UPPER_EDGE[0]]))


def fine_detail(bare: np.ndarray, masked: np.ndarray, inside: np.ndarray) -> float:
    """RMS of the high-passed luminance in the region `inside` but for its rim, masked over bare.

    1: as much as the skin had; a uniform patch has 0, however hard its edge.
    """
    from scipy.ndimage import binary_erosion

    inner = binary_erosion(inside, iterations=RIM)
    if not inner.any():
        return np.nan
    rms = [np.sqrt((_high_pass(picture)[inner] ** 2).mean()) for picture in (masked, bare)]
    return float(rms[0] / rms[1]) if rms[1] > 1e-6 else np.nan  # a uniform picture is left with rounding errors


def _high_pass(picture: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    luminance = picture @ LUMINANCE
    return luminance - gaussian_filter(luminance, SIGMA)


def tone_difference(bare: np.ndarray, masked: np.ndarray, inside: np.ndarray) -> float:
    """CIEDE2000 between the median colours of the region `inside`."""
    from skimage.color import deltaE_ciede2000

    if not inside.any():
        return np.nan
    return float(deltaE_ciede2000(*(_lab(np.median(picture[inside], 0)[None]) for picture in (masked, bare)))[0])


def _lab(colours: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) of 0 to 255 -> CIELAB (D65)."""
    from skimage.color import rgb2lab

    return rgb2lab(colours.astype(np.float64) / 255)


def measure_all(paths: Mapping[str, Sequence[Path]], landmarks: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """method -> measure -> one value per probe.

    paths: per method one file per probe, "none" (the bare faces) among them; landmarks (P, 68, 2), px of those.
    """
    result: dict[str, dict[str, list[float]]] = {method: {name: [] for name in MEASURES} for method in paths}
    for i, points in enumerate(landmarks):
        bare = read_image(paths["none"][i])
        for method, files in paths.items():
            for name, value in measure(bare, read_image(files[i]), points).items():
                result[method][name].append(value)
    return result


def table(values: Mapping[str, Sequence[float]], identities: np.ndarray) -> dict[str, Cell]:
    """Cells of STATISTICS of measures (P,), with bootstrap intervals over identities (P,); NaN does not count."""
    cells = {}
    for name, (source, share) in STATISTICS.items():
        numbers = np.asarray(values[source], float)
        known = ~np.isnan(numbers)
        cells[name] = dict(NOTHING)
        if known.any():
            cells[name] = of_statistic(partial(_percentile, numbers[known], share), identities[known])
    return cells


def _percentile(values: np.ndarray, share: float, rows: np.ndarray) -> float:
    return float(np.percentile(values[rows], share))
