"""The faced-mask alarm: is the lower half of this face printed on a mask, whoever made it?

python -m gan_mask.alarm --data PREPARED --checkpoint CHECKPOINT --out alarm.json

A logistic regression on a mask detector's logit for the crop, and on how well the upper half, the lower half and the
whole of the face agree in a recogniser's embedding. Fitted on the train split, on written, re-detected files;
its threshold lets at most --false_alarms of the val split's unmasked faces through as alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan_mask import attacks, cli, files, masking, pretrained, run_record, values
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.harden import blends
from gan_mask.landmarks import FRAMING, frame
from gan_mask.pretrained.protocol import Detector, Embedder, fingerprints
from gan_mask.values import COUNT, FRACTION, RATE, SEED, option

SHIPPED = Path(__file__).parent.parent / "assets" / "faced_mask_alarm.json"
BRIDGE = 28  # landmark on the nose's bridge at which a mask begins


def halves(faces: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower part of upright faces (B, 3, H, W), each with the mean colour of what is left of it elsewhere.

    landmarks (B, 68, 2) px. They part at the upper edge of a mask; on a tilted head a corner of it reaches higher.
    """
    rows = torch.arange(faces.shape[2], device=faces.device)
    upper = (rows[None] < landmarks[:, BRIDGE, 1, None])[:, None, :, None].to(faces)  # (B, 1, H, 1)
    parts = []
    for kept in (upper, 1 - upper):
        mean = (faces * kept).sum((2, 3), keepdim=True) / (kept.sum((2, 3), keepdim=True) * faces.shape[3]).clamp_min(1)
        parts.append(faces * kept + mean * (1 - kept))
    return parts[0], parts[1]


class UpperFace(nn.Module):
    """Periocular fallback: a recogniser that is shown the upper half alone. Needs a threshold of its own."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder
        self.name = f"upper {embedder.name}"

    def forward(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        return self.embedder(halves(faces, landmarks)[0], landmarks)


class Features:
    """features(faces [B,3,H,W] in [0,1], landmarks [B,68,2] px) -> [B, 1 + 3 E]: `names` says which column is what."""

    def __init__(self, detector: Detector, embedders: Sequence[Embedder]) -> None:
        self.detector, self.embedders = detector, embedders
        pairs = ("upper-whole", "lower-whole", "upper-lower")
        self.names = [f"logit {detector.name}", *(f"{pair} {e.name}" for e in embedders for pair in pairs)]

    def __call__(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        columns = [self.detector(faces)[0]]
        upper_face, lower_face = halves(faces, landmarks)
        for embedder in self.embedders:
            whole, upper, lower = (embedder(part, landmarks) for part in (faces, upper_face, lower_face))
            columns += [(upper * whole).sum(1), (lower * whole).sum(1), (upper * lower).sum(1)]
        return torch.stack(columns, 1)


@dataclass
class Alarm:
    """alarm(faces, landmarks) -> score (B,), above 0 where the alarm is raised."""

    features: Features
    weights: np.ndarray  # (F,) on the features as they are
    intercept: float  # with the threshold in it
    usual: np.ndarray  # (F,) the features' means on unmasked faces

    def __call__(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        return self.score(self.features(faces, landmarks))

    def score(self, features: Any) -> Any:
        """(N, F) -> (N,); arrays, or tensors with their gradients."""
        weights = torch.from_numpy(self.weights).to(features) if isinstance(features, Tensor) else self.weights
        return features @ weights + self.intercept

    @torch.no_grad()
    def explain(self, faces: Tensor, landmarks: Tensor) -> list[dict[str, float]]:
        """Per face what each feature adds to the score of a usual unmasked face ("usual"); together, its score."""
        features = self.features(faces, landmarks).double().numpy()
        terms, usual = (features - self.usual) * self.weights, float(self.score(self.usual))
        return [{"usual": usual, **dict(zip(self.features.names, row.tolist(), strict=True))} for row in terms]


def as_detector(alarm: Alarm) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The alarm as an attack sees a mask detector: faces [B,3,S,S], framed as usual -> (score [B], 'a face' [B])."""

    def detector(faces: Tensor) -> tuple[Tensor, Tensor]:
        score = alarm(faces, frame(faces.shape[-1], FRAMING[1]).to(faces).expand(len(faces), -1, -1))
        return score, torch.full_like(score, 10.0)

    return detector


def logistic(features: np.ndarray, labels: np.ndarray, ridge: float = 1e-3) -> tuple[np.ndarray, float]:
    """Weights (F,) and intercept of a logistic regression of labels (N,) in {0, 1}; classes weigh alike."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    model = LogisticRegression(
        C=1 / (ridge * len(labels)), class_weight="balanced", solver="newton-cholesky", tol=1e-6
    ).fit(scaler.transform(features), labels)
    weights = model.coef_[0] / scaler.scale_
    return weights, float(model.intercept_[0] - weights @ scaler.mean_)


def threshold(bare: np.ndarray, false_alarms: float) -> float:
    """The score above which at most a share `false_alarms` of the unmasked faces' scores (N,) lie."""
    allowed = int(false_alarms * len(bare))
    return float(np.sort(bare)[::-1][allowed])


def load(path: str | Path = SHIPPED) -> Alarm:
    """An alarm written by this module's command.

    Raises GanMaskError when the file is absent or damaged, or a network has other weights than it was fitted to.
    """
    kept = files.read_json(path)
    try:
        detector = pretrained.load_detector(kept["detector"])
        embedders = {name: pretrained.load_embedder(name) for name in kept["embedders"]}
        now = run_record.inputs("alarm", {}, networks=fingerprints(embedders, {kept["detector"]: detector}))
        run_record.check(Path(path), kept, now, "fit it again with python -m gan_mask.alarm")
        features = Features(detector, list(embedders.values()))
        weights, usual = (np.array([float(kept[key][name]) for name in features.names]) for key in ("weights", "usual"))
        return Alarm(features, weights, float(kept["intercept"]), usual)
    except (KeyError, TypeError, ValueError) as error:
        raise GanMaskError(f"{path}: not a faced-mask alarm ({error!r})") from error


# ------------------------------------------------------------------------------------------- calibration


AGAINST = ("generator", "dm-seamless", "dm", blends.NAME)  # no optimised ones: those stay unseen


@dataclass
class AlarmConfig:
    data: str = option(
        "",
        "prepared set: fitted on its train split, calibrated on its val split",
        group="input and output",
        required=True,
    )
    out: str = option("", "JSON file to write", required=True)
    detector: str = option("classifier-hardened", "mask detector whose logit is a feature", group="features")
    embedders: tuple[str, ...] = option(("dlib",), "recognisers whose disagreement is a feature")
    against: tuple[str, ...] = option(
        ("generator", "dm-seamless", "dm"),
        f"methods that make the faced masks: {', '.join(AGAINST)}",
        group="masks to learn from",
    )
    checkpoint: str = option("", "generator: its folder")
    templates: tuple[str, ...] = option(("faces",), "what is printed on the masks")
    own_templates: float = option(0.5, "share of masks that show another person of the set instead", within=FRACTION)
    faces: int = option(
        300, "unmasked faces, and faced masks, to fit to", group="fit and operating point", within=COUNT
    )
    calibration_faces: int = option(600, "unmasked faces of the val split at most", within=COUNT)
    false_alarms: float = option(
        0.005, "largest share of them that may raise the alarm; half of what is promised", within=RATE
    )
    seed: int = option(0, "of every random choice", within=SEED)


def fit_alarm(c: AlarmConfig) -> Alarm:
    """Fit, set the threshold, write --out."""
    values.check(c)
    with files.locked(Path(c.out).parent, Path(c.out).name):
        return _fit_alarm(c)


def _fit_alarm(c: AlarmConfig) -> Alarm:
    from gan_mask.generator import load_generator
    from gan_mask.harden.pools import SUITED, Wardrobe, faced_masks

    if wrong := [m for m in c.against if m not in AGAINST] or ([] if c.against else ["nothing"]):
        raise GanMaskError(f"--against {wrong[0]}: the alarm learns from {', '.join(AGAINST)}")
    if "generator" in c.against and not c.checkpoint:
        raise GanMaskError("--against generator needs --checkpoint, a generator's folder")
    detector = pretrained.load_detector(c.detector)
    embedders = {name: pretrained.load_embedder(name) for name in c.embedders}
    features = Features(detector, list(embedders.values()))
    train, val = PreparedSet(c.data, "train"), PreparedSet(c.data, "val")
    rng = np.random.default_rng(c.seed)
    generator = load_generator(c.checkpoint) if "generator" in c.against else None
    methods = {n: blends.Blend(c.seed) if n == blends.NAME else attacks.method(n, generator) for n in c.against}
    texture_size = generator.texture_size if generator else masking.TEXTURE
    wardrobe = Wardrobe(train, c.templates, texture_size, rng, c.own_templates, SUITED)
    count = c.faces // len(c.against)
    faced = [
        faced_masks(train, rng.integers(len(train), size=count), method, wardrobe, name)
        for name, method in methods.items()
    ]
    bare = _crops(train, rng.permutation(len(train))[: c.faces])
    positive, negative = seen(np.concatenate(faced), features), seen(bare, features)
    x, y = np.concatenate([positive, negative]), np.repeat([1.0, 0.0], [len(positive), len(negative)])
    weights, intercept = logistic(x, y)
    calibration = seen(_crops(val, rng.permutation(len(val))[: c.calibration_faces]), features)
    if len(calibration) * c.false_alarms < 1:
        raise GanMaskError(
            f"{len(calibration)} unmasked faces of the val split cannot show a false-alarm rate of "
            f"{c.false_alarms:g}; raise --false_alarms to {1 / max(1, len(calibration)):.2g} or take a larger set"
        )
    at = threshold(calibration @ weights + intercept, c.false_alarms)
    alarm = Alarm(features, weights, intercept - at, calibration.mean(0))
    provenance: dict[str, Any] = {
        "against": list(c.against), "fitted to": {"faced": len(positive), "unmasked": len(negative)},
        "calibrated on": len(calibration), "false alarms there": float((alarm.score(calibration) > 0).mean()),
    }  # fmt: skip
    files.write_json(c.out, run_record.inputs(
        "alarm", {"detector": c.detector, "embedders": c.embedders},
        weights=dict(zip(features.names, weights.tolist(), strict=True)), intercept=alarm.intercept,
        usual=dict(zip(features.names, alarm.usual.tolist(), strict=True)),
        networks=fingerprints(embedders, {c.detector: detector}), provenance=provenance,
    ))  # fmt: skip
    return alarm


def _crops(photos: PreparedSet, index: np.ndarray) -> np.ndarray:
    return np.stack([photos.faces(int(i)).numpy() for i in index])


@torch.no_grad()
def seen(crops: np.ndarray, features: Features) -> np.ndarray:
    """Features (M, F) of those of the pictures uint8 (N, 3, S, S) in which a face is found; re-detected and aligned."""
    from gan_mask.faces import FaceFinder, align, to_tensors

    finder = FaceFinder()
    pictures = [np.ascontiguousarray(crop.transpose(1, 2, 0)) for crop in crops]
    rows = []
    for start in range(0, len(pictures), 16):
        part = pictures[start : start + 16]
        aligned = [align(p, f[0].landmarks, *FRAMING) for p, f in zip(part, finder.find(part), strict=True) if f]
        if aligned:
            rows.append(features(*to_tensors(aligned, "cpu")).numpy())
    if not rows:
        raise GanMaskError("no face was found in any of the pictures")
    return np.concatenate(rows)


def main(argv: Sequence[str] | None = None) -> None:
    with cli.ending():
        fit_alarm(cli.parse(AlarmConfig, argv, (__doc__ or "").partition("\n\n")[0]))
