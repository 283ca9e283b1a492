"""How natural the masks look: distances to the DM result, statistics against real faces, a real-or-masked classifier.

BRISQUE and NIQE are not measured: docs/evaluation.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_mask import masking
from gan_mask.evaluation.intervals import Cell, interval, of_auc
from gan_mask.evaluation.realism import FROZEN
from gan_mask.faces import read_image
from gan_mask.pretrained.perceptual import Perceptual

BATCH = 32
FEATURES = 256  # channels of AlexNet's last convolution
FOLDS = 5


def measure(
    paths: Mapping[str, Sequence[Path]],
    real: Tensor,
    landmarks: Tensor,
    identities: np.ndarray,
    real_identities: np.ndarray,
    perceptual: Perceptual,
    device: str,
) -> dict[str, dict[str, Cell]]:
    """method -> measure -> cell.

    paths: per method one file per probe, "dm" among them; real: uint8 (N, 3, S, S), unmasked faces of other people;
    landmarks (P, 68, 2) px of the probes; identities (P,) and real_identities (N,).

    - LPIPS, SSIM, PSNR to DM: on the whole crop and, with ", mask", on the mask alone, unwrapped into canonical mask
      space. Of PSNR the mean over probes, dB.
    - Frechet and kernel distance (AlexNet): the statistics of FID (Heusel et al. 2017) and KID (Binkowski et al.
      2018) on the spatial means of the last layer of LPIPS's AlexNet, since Inception's weights do not come with a
      package; not comparable with FID and KID. The Frechet distance needs more pictures than features.
    - realism AUC (frozen features): how well logistic regression on the same features tells the method's pictures from
      real ones, 5-fold cross-validated over people; 0.5 is indistinguishable. Kinder than a network that is trained
      for it (gan_mask.evaluation.realism).
    """
    reference = np.concatenate([_features(perceptual, part.to(device) / 255) for part in real.split(BATCH)])
    result: dict[str, dict[str, Cell]] = {}
    for method, files in paths.items():
        values: dict[str, list[np.ndarray]] = {}
        features = []
        for start in range(0, len(files), BATCH):
            rows = slice(start, start + BATCH)
            pictures = _read(files[rows], device)
            features.append(_features(perceptual, pictures))
            if method != "dm":
                benign, points = _read(paths["dm"][rows], device), landmarks[rows].to(device)
                pairs = {
                    "": (pictures, benign),
                    ", mask": (masking.unwrap(pictures, points), masking.unwrap(benign, points)),
                }
                for suffix, (a, b) in pairs.items():
                    for name, value in _distances(a, b, perceptual).items():
                        values.setdefault(name + suffix, []).append(value)
        cells = {name: interval(np.concatenate(parts), identities, rate=False) for name, parts in values.items()}
        result[method] = cells | _against_real(np.concatenate(features), reference, identities, real_identities)
    return result


def _read(paths: Sequence[Path], device: str) -> Tensor:
    return torch.from_numpy(np.stack([read_image(p) for p in paths])).permute(0, 3, 1, 2).to(device) / 255


@torch.no_grad()
def _distances(a: Tensor, b: Tensor, perceptual: Perceptual) -> dict[str, np.ndarray]:
    """Of pictures (B, 3, H, W) in [0, 1], pair by pair."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pairs = [(x.permute(1, 2, 0).cpu().numpy(), y.permute(1, 2, 0).cpu().numpy()) for x, y in zip(a, b, strict=True)]
    with np.errstate(divide="ignore"):  # equal pictures: infinite
        noise = np.array([peak_signal_noise_ratio(y, x, data_range=1) for x, y in pairs])
    return {
        "LPIPS to DM": perceptual(a, b).cpu().numpy().astype(float),
        "SSIM to DM": np.array([structural_similarity(x, y, data_range=1, channel_axis=2) for x, y in pairs]),
        "PSNR to DM": np.where(np.isfinite(noise), noise, np.nan),
    }


@torch.no_grad()
def _features(perceptual: Perceptual, pictures: Tensor) -> np.ndarray:
    """Spatial means (B, 256) of AlexNet's last convolution."""
    net: Any = perceptual.net
    layers = net.net(net.scaling_layer(2 * pictures - 1))
    return layers[-1].mean((2, 3)).double().cpu().numpy()


# ------------------------------------------------------------------------------------------- against real faces


def _against_real(
    masked: np.ndarray, real: np.ndarray, identities: np.ndarray, real_identities: np.ndarray
) -> dict[str, Cell]:
    cells = {
        "kernel distance (AlexNet)": _number(kernel_distance(masked, real), len(masked)),
        FROZEN: realism(masked, real, identities, real_identities),
    }
    if min(len(masked), len(real)) > FEATURES:
        cells["Frechet distance (AlexNet)"] = _number(frechet_distance(masked, real), len(masked))
    return cells


def _number(value: float, probes: int) -> Cell:
    return {"rate": value, "low": None, "high": None, "probes": probes}


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between Gaussians fitted to features (N, D) and (M, D): |m - n|^2 + tr(A + B - 2 (AB)^(1/2))."""
    means = a.mean(0) - b.mean(0)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root of AB from its eigenvalues, which are real and not negative.
    root = np.sqrt(np.linalg.eigvals(one @ two).real.clip(0)).sum()
    return float(means @ means + np.trace(one) + np.trace(two) - 2 * root)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, on features scaled by the second set's mean square."""
    scale = np.sqrt((b**2).mean())
    a, b = a / scale, b / scale
    n, m, d = len(a), len(b), a.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / d + 1) ** 3

    within_a, within_b = (k.sum() - np.trace(k) for k in (kernel(a, a), kernel(b, b)))
    return float(within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * kernel(a, b).mean())


def realism(masked: np.ndarray, real: np.ndarray, identities: np.ndarray, real_identities: np.ndarray) -> Cell:
    """AUC of a cross-validated real-or-masked classifier; the interval resamples people, not classifiers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([masked, real])
    label = np.repeat([1, 0], [len(masked), len(real)])
    people = np.concatenate([identities, real_identities + identities.max() + 1])
    if min(len(np.unique(identities)), len(np.unique(real_identities))) < FOLDS:
        return {"rate": None, "low": None, "high": None, "probes": 0}
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    score = cross_val_predict(
        classifier, features, label, groups=people, cv=GroupKFold(FOLDS), method="decision_function"
    )

    return of_auc(score, label, people, draws=200) | {"probes": len(masked)}
