"""Harden a mask detector: fine-tune it on freshly made adversarial faced masks.

python -m gan_mask.harden --data PREPARED --against generator advnoise-dm dm --out DIR

Each round makes a pool of faced masks with every method of --against, the optimised ones against the detector as it
is then, and fine-tunes the detector on the pools so far, with unmasked faces, ordinary masks (plain, patterned, cloth)
and backgrounds as anchors. With --generator_steps the generator is retrained against the detector between the rounds.
DIR receives hardened.json and hardened.onnx (`--detectors onnx:DIR/hardened.json`), and for our own classifier
hardened.safetensors. The same command again goes on where it stopped.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gan_mask import attacks, commands, config, files, harden_data, masking, pretrained, templates
from gan_mask.commands import Progress
from gan_mask.config import option
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.harden_data import BACKGROUND, BARE, MASKED
from gan_mask.networks import GeneratorConfig, load_generator
from gan_mask.pretrained.classifier import SIZE, EitherNet, MaskClassifier, mask_logit
from gan_mask.pretrained.protocol import Detector, resize
from gan_mask.surrogates import Surrogates

KINDS = ("bare", "worn", "faced", "background", "bare real", "masked real")
SHARES = (0.36, 0.2, 0.4, 0.04, 0.0, 0.0)
SHARES_WITH_REAL = (0.28, 0.15, 0.37, 0.03, 0.05, 0.12)


@dataclass
class HardenConfig:
    data: str = option("", "prepared set; its train split is learned from")
    out: str = option("", "folder for the hardened detector; the same command again goes on")
    detector: str = option("classifier", "classifier, classifier-hardened or onnx:SIDECAR.json")
    against: tuple[str, ...] = option(("generator", "mf2m", "advnoise-dm", "dm"), "methods to make faced masks with")
    checkpoint: str = option("", "generator: its folder")
    embedders: tuple[str, ...] = option(("dlib",), "recognisers that the optimised methods must dodge, too")
    far: float = option(1e-3, "false-accept rate of their thresholds")
    templates: tuple[str, ...] = option(("faces",), "what is printed on the masks: names, photos or groups")
    own_templates: float = option(0.5, "share of masks that show another person of the set instead, in [0, 1]")
    real_masks: str = option("", "zip of real masked and bare faces, whose train split joins the anchors")
    rounds: int = option(2, "times that a pool is made and the detector fine-tuned")
    steps: tuple[int, ...] = option((300,), "optimiser steps of each round; the last number goes for all further ones")
    batch_size: int = option(48, "pictures per step")
    learning_rate: float = option(3e-4, "of AdamW, falling to 0 within each round")
    pool: int = option(400, "faced masks per method and round")
    attack_steps: int = option(20, "steps of the optimised methods at most")
    generator_steps: int = option(0, "steps to retrain the generator against the detector before each further round")
    save_every: int = option(50, "steps between checkpoints")
    false_alarms: float = option(0.005, "our classifier: largest share of the val split's unmasked faces reported")
    workers: int = option(1, "loader processes")
    seed: int = option(0, "of everything random")


def main(argv: Sequence[str] | None = None) -> None:
    with commands.ending():
        harden(config.parse(HardenConfig, argv, (__doc__ or "").partition("\n\n")[0]))


def harden(c: HardenConfig) -> Path:
    """Returns the sidecar of the hardened detector."""
    check(c)
    out = Path(c.out)
    photos = PreparedSet(c.data, "train")
    detector = pretrained.load_detector(c.detector)
    pack = harden_data.real_masks(c.real_masks)["train"] if c.real_masks else None
    claim(out, c)
    trained, detector = apart(detector)
    original = {name: p.detach().clone() for name, p in trained.net.named_parameters()}
    for number in range(1, c.rounds + 1):
        folder = out / f"round-{number}"
        folder.mkdir(exist_ok=True)
        for method in c.against:
            make_pool(c, photos, detector, method, number)
        every = [
            np.load(p, allow_pickle=False)
            for i in range(1, number + 1)
            for p in sorted((out / f"round-{i}").glob("pool-*.npy"))
        ]
        fit(c, number, trained, Examples(c, photos, every, pack, number), folder)
        if isinstance(detector, MaskClassifier):
            calibrate(detector, PreparedSet(c.data, "val"), c.false_alarms)
        sidecar = export(c, detector, original, out)
    print(f"hardened detector: onnx:{sidecar}")
    return sidecar


def apart(detector: Detector) -> tuple[Any, Detector]:
    """What is fine-tuned, and the detector that it becomes part of: our classifier stays as it is beside it."""
    if not isinstance(detector, MaskClassifier):
        return detector, detector
    net = detector.net
    first, second = (net.first, net.second) if isinstance(net, EitherNet) else (net, copy.deepcopy(net))
    return MaskClassifier(second), MaskClassifier(EitherNet(first, second), detector.card, detector.name)


def check(c: HardenConfig) -> None:
    if not c.data or not c.out:
        raise GanMaskError("--data (a prepared set) and --out (a folder) are needed")
    known = [m for m in attacks.METHODS if m not in ("none", "plain")]
    if wrong := [m for m in c.against if m not in known] or ([] if c.against else ["nothing"]):
        raise GanMaskError(f"--against {wrong[0]}: expected some of {', '.join(known)}")
    if "generator" in c.against and not c.checkpoint:
        raise GanMaskError("--against generator needs --checkpoint, a generator's folder")
    if not c.steps or min(c.steps) < 1:
        raise GanMaskError(f"--steps must be one or more numbers of at least 1, got {c.steps}")
    for name in ("rounds", "batch_size", "pool", "attack_steps", "save_every"):
        if getattr(c, name) < 1:
            raise GanMaskError(f"--{name} must be at least 1, got {getattr(c, name)}")
    if not 0 < c.false_alarms < 1:
        raise GanMaskError(f"--false_alarms must lie between 0 and 1, got {c.false_alarms}")
    if not 0 <= c.own_templates <= 1:
        raise GanMaskError(f"--own_templates must be in [0, 1], got {c.own_templates}")


def claim(out: Path, c: Any, name: str = "harden.json") -> None:
    """OUT belongs to one set of options, kept in OUT/name; `workers` and `save_every` may change."""
    settings = {k: v for k, v in config.to_dict(c).items() if k not in ("out", "workers", "save_every")}
    path = out / name
    if path.is_file():
        before = files.read_json(path)
        if changed := [k for k, v in settings.items() if before.get(k) != v]:
            raise GanMaskError(f"{out} was begun with other options ({', '.join(changed)}); use another --out")
    out.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(out)
    files.write_json(path, settings)


# ------------------------------------------------------------------------------------------- faced masks


def make_pool(c: HardenConfig, photos: PreparedSet, detector: Detector, method: str, number: int) -> np.ndarray:
    """Faces that wear faced masks, uint8 (N, 3, S, S), as they would be saved; kept in the round's folder."""
    path = Path(c.out) / f"round-{number}" / f"pool-{method}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    generator = load_generator(current_checkpoint(c, number)) if method == "generator" else None
    options = attacks.Options(steps=c.attack_steps, seed=c.seed + number)
    function = attacks.method(method, generator, surrogates_of(c, detector) if method in attacks.OPTIMISED else None,
                              options)  # fmt: skip
    texture_size = generator.texture_size if generator else masking.TEXTURE
    softness = (generator.config if generator else GeneratorConfig()).softness
    bank = templates.load_all(c.templates, texture_size)
    rng = np.random.default_rng((c.seed, number, attacks.METHODS.index(method)))
    index = rng.integers(len(photos), size=c.pool)
    pool = faced_masks(photos, index, function, bank, c.own_templates, softness, rng, f"round {number}: {method}")
    with files.replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, pool)
    return pool


def faced_masks(
    photos: PreparedSet, index: np.ndarray, function: attacks.Method, bank: Tensor, own_templates: float,
    softness: float, rng: np.random.Generator, title: str,
) -> np.ndarray:  # fmt: skip
    """The faces `index` (N,) of the set with the method's masks on, as they would be saved: uint8 (N, 3, S, S).

    Each wears a template of the bank (T, 3, h, w), or with probability `own_templates` another person of the set.
    """
    result = []
    for start in Progress(range(0, len(index), 16), desc=title, mininterval=5):
        items = [photos[int(i)] for i in index[start : start + 16]]
        face, landmarks = (torch.stack([item[key] for item in items]) for key in ("face", "landmarks"))
        template = torch.stack([draw_template(photos, bank, own_templates, rng) for _ in items])
        with torch.no_grad():
            texture = function(face, landmarks, template)
            worn = face if texture is None else masking.wear(face, landmarks, texture, softness)
        result.append((worn * 255).round().clamp(0, 255).byte().numpy())
    return np.concatenate(result)


def draw_template(photos: PreparedSet, bank: Tensor, own_templates: float, rng: np.random.Generator) -> Tensor:
    """A texture (3, h, w): from the bank, or another person's lower face."""
    if rng.random() >= own_templates:
        return bank[int(rng.integers(len(bank)))]
    item = photos[int(rng.integers(len(photos)))]
    return masking.unwrap(item["face"][None], item["landmarks"][None], (bank.shape[2], bank.shape[3]))[0]


def surrogates_of(c: HardenConfig, detector: Detector) -> Surrogates:
    embedders = [pretrained.load_embedder(name) for name in c.embedders]
    return Surrogates(embedders, [e.threshold(c.far) for e in embedders], [detector])


def current_checkpoint(c: HardenConfig, number: int) -> Path:
    """--checkpoint; from round 2 on, with --generator_steps, a generator trained against the detector of before."""
    if number == 1 or not c.generator_steps:
        return Path(c.checkpoint)
    from gan_mask import training

    run = Path(c.out) / f"round-{number}" / "generator"
    training.train(
        training.TrainConfig(
            data=c.data, out=str(run), steps=c.generator_steps, batch_size=12, seed=c.seed, workers=c.workers,
            embedders=c.embedders, detectors=(f"onnx:{Path(c.out) / 'hardened.json'}",), far=c.far,
            templates=c.templates, discriminator_width=16, kernel=3,
            validate_every=c.generator_steps, save_every=100,
        )
    )  # fmt: skip
    return run


# ------------------------------------------------------------------------------------------- fine-tuning


def steps_of(c: HardenConfig, number: int) -> int:
    return c.steps[min(number, len(c.steps)) - 1]


class Examples(Dataset[Any]):
    """Seeded draws of (face [3,S,S] in [0,1], class), S the side of the set's crops."""

    def __init__(
        self, c: HardenConfig, photos: PreparedSet, pools: list[np.ndarray], pack: dict[int, list[Any]] | None,
        number: int,
    ) -> None:  # fmt: skip
        self.photos, self.pools, self.pack, self.seed = photos, pools, pack, (c.seed, number)
        self.length = steps_of(c, number) * c.batch_size
        self.shares = SHARES_WITH_REAL if pack else SHARES
        self.camera = harden_data.Camera()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((*self.seed, i))
        kind = str(rng.choice(KINDS, p=self.shares))
        if kind.endswith("real"):
            assert self.pack
            label = BARE if kind == "bare real" else MASKED
            picture = torch.from_numpy(self.pack[label][rng.integers(len(self.pack[label]))]).permute(2, 0, 1)
            face = F.interpolate(picture[None] / 255, self.photos.size, mode="bilinear", align_corners=False)[0]
        elif kind == "faced":
            label, pool = MASKED, self.pools[rng.integers(len(self.pools))]
            face = torch.from_numpy(pool[rng.integers(len(pool))]) / 255
        else:
            item = self.photos[int(rng.integers(len(self.photos)))]
            label, face = BARE, item["face"]
            if kind == "worn":
                label, face = MASKED, harden_data.ordinary_mask(face, item["landmarks"], rng)
            elif kind == "background":
                label, face = BACKGROUND, harden_data.background(face, rng)
        return self.camera(face, int(rng.integers(2**31))), label


def loss_of(mask_logit: Tensor, face_logit: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of both decisions, (B,) logits and classes -> mean. Backgrounds are no mask and no face."""
    masked, face = (label == MASKED).float(), (label != BACKGROUND).float()
    loss = F.binary_cross_entropy_with_logits(mask_logit, masked)
    if face_logit.requires_grad:  # a detector without a background class takes every picture for a face
        loss = loss + 0.5 * F.binary_cross_entropy_with_logits(face_logit, face)
    return loss


def fit(c: HardenConfig, number: int, detector: Detector, examples: Examples, folder: Path) -> None:
    """Fine-tune in place, in evaluation mode: normalisation keeps the statistics of the original training."""
    steps = steps_of(c, number)
    parameters = dict(detector.named_parameters())
    path = folder / "state.safetensors"
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters.values(), c.learning_rate, weight_decay=1e-4)
    start = restore(path, parameters, optimizer)
    loader = DataLoader(
        torch.utils.data.Subset(examples, range(start * c.batch_size, len(examples))), c.batch_size,
        num_workers=c.workers if start < steps else 0,
    )  # fmt: skip
    bar = Progress(loader, desc=f"round {number}: detector", initial=start, total=steps, mininterval=5)
    for step, (faces, labels) in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        mask_logit, face_logit = detector(faces)
        loss = loss_of(mask_logit, face_logit, labels)
        if not torch.isfinite(loss):
            raise GanMaskError(
                f"step {step}: the loss is no longer finite; lower --learning_rate and use another --out"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % c.save_every == 0 or step + 1 == steps:
            save_state(path, step + 1, parameters, optimizer)
    detector.freeze()


@torch.no_grad()
def calibrate(detector: MaskClassifier, photos: PreparedSet, false_alarms: float) -> None:
    """Move the second network's operating point: at most this share of the set's unmasked faces is to be reported.

    Where the first one alone reports more, the second one adds none.
    """
    assert isinstance(detector.net, EitherNet)
    first, second = detector.net.first, detector.net.second
    small = [resize(photos[i]["face"][None], SIZE, SIZE) for i in range(len(photos))]
    quiet = torch.cat([mask_logit(first(face)) for face in small]) <= 0
    ordered = torch.cat([mask_logit(second(face)) for face in small])[quiet].sort(descending=True).values
    allowed = max(0, int(false_alarms * len(quiet)) - int((~quiet).sum()))
    last = second.head[-1]
    assert isinstance(last, nn.Linear)
    last.bias[MASKED] -= ordered[allowed] + 1e-3  # beyond rounding


def save_state(path: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import save_file

    tensors = {name: p.detach().contiguous() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        tensors |= {f"{key}|{name}": state[key].contiguous() for key in ("exp_avg", "exp_avg_sq", "step")}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, {"step": str(step)})


def restore(path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Steps done before; 0 without a checkpoint."""
    if not path.is_file():
        return 0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f, torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(f.get_tensor(name))
                keys = ("exp_avg", "exp_avg_sq", "step")
                optimizer.state[parameter] = {key: f.get_tensor(f"{key}|{name}") for key in keys}
            return int(f.metadata()["step"])
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise GanMaskError(f"{path}: damaged ({error}); delete it to repeat this round") from error


# ------------------------------------------------------------------------------------------- export


def export(c: HardenConfig, detector: Detector, original: dict[str, Tensor], out: Path) -> Path:
    """hardened.onnx and its sidecar hardened.json, checked against the detector itself; the sidecar's path."""
    from gan_mask.pretrained import classifier, onnx

    if isinstance(detector, MaskClassifier):
        # Without the card's test figures: they are those of the detector as it was.
        kept = {k: v for k, v in detector.card.items() if k != "test"}
        card = {**kept, "hardened": {k: v for k, v in config.to_dict(c).items() if k not in ("data", "out")}}
        classifier.save(detector.net, out / "hardened.safetensors", card)
        sidecar = classifier_to_onnx(detector.net, out / "hardened.onnx")
    else:
        source = Path(c.detector.removeprefix("onnx:"))
        sidecar = onnx.read_sidecar(source, "ssd", "classifier")
        net = vars(detector)["_modules"]["net"]
        rewrite_onnx(onnx.file_of(source, sidecar), original, dict(net.named_parameters()), out / "hardened.onnx")
    sidecar |= {"file": "hardened.onnx", "sha256": files.sha256(out / "hardened.onnx")}
    files.write_json(out / "hardened.json", sidecar)
    again = onnx.load_detector(out / "hardened.json")
    picture = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(detector(picture), again(picture), strict=True):
            if not torch.allclose(ours, theirs, atol=1e-3):
                raise GanMaskError(f"{out / 'hardened.onnx'}: differs from the detector that it was made from")
    return out / "hardened.json"


def classifier_to_onnx(net: nn.Module, path: Path) -> dict[str, Any]:
    """Write our classifier as ONNX; what a sidecar says about it."""
    from gan_mask.pretrained.classifier import CLASSES

    batch = {"image": {0: "batch"}, "logits": {0: "batch"}}
    # The exporter without `dynamo` needs no further package; torch 2.4 knows no other.
    old: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    picture: Any = torch.zeros(2, 3, SIZE, SIZE)
    with warnings.catch_warnings(), files.replacing(path) as temporary:
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (picture,), str(temporary), input_names=["image"], output_names=["logits"],
                          dynamic_axes=batch, opset_version=17, **old)  # fmt: skip
    return {
        "kind": "classifier", "size": [SIZE, SIZE], "mean": [0, 0, 0], "std": [255, 255, 255], "channel_order": "RGB",
        "output": "logits", "mask_class": CLASSES.index("masked"), "background_class": CLASSES.index("background"),
        "source": "gan_mask.harden", "licence": "Apache-2.0",
    }  # fmt: skip


def rewrite_onnx(source: Path, before: dict[str, Tensor], after: dict[str, nn.Parameter], path: Path) -> None:
    """The ONNX file `source` with its weights replaced: found in it by their values before the fine-tuning."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    left = list(model.graph.initializer)
    for name, old in before.items():
        values = old.numpy()
        match = next((t for t in left if np.array_equal(numpy_helper.to_array(t), values)), None)
        if match is None:
            raise GanMaskError(
                f"{source}: weight {name} is not kept in it as it is used; this network can not be exported"
            )
        left = [t for t in left if t is not match]
        match.CopyFrom(numpy_helper.from_array(after[name].detach().contiguous().numpy(), match.name))
    with files.replacing(path) as temporary:
        onnx.save(model, str(temporary))


if __name__ == "__main__":
    main()
