"""Training of the conditional generator, under `accelerate launch` on any number of processes.

Reads top down: the options, one step (scene, discriminator's turn, generator's turn), the loop,
validation, checkpoints.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gan_mask import augment, commands, config, files, losses, masking, templates
from gan_mask.augment import Draws
from gan_mask.config import option
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.health import Health, largest_batch_that_fits, name_the_culprit, not_finite, step_optimizers, total
from gan_mask.networks import Discriminator, Generator, read_safetensors
from gan_mask.surrogates import Goal, Surrogates, evasion_terms, load_surrogates


@dataclass
class TrainConfig:
    data: str = option("", "prepared set to train on (data_prep/prepare.py makes it)")
    out: str = option("", "run folder; running the same command again resumes it")
    steps: int = option(20000, "optimiser steps in all")
    batch_size: int = option(32, "faces per process and micro-batch")
    accumulate: int = option(1, "micro-batches per optimiser step")
    seed: int = option(0, "of everything random")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "arithmetic of the networks; geometry stays float32")
    workers: int = option(2, "loader processes per training process")

    embedders: tuple[str, ...] = option(("dlib",), "surrogate face recognisers")
    detectors: tuple[str, ...] = option(("classifier",), "surrogate mask detectors")
    far: float = option(1e-3, "false-accept rate of the thresholds to get below")
    templates: tuple[str, ...] = option(
        ("faces",), "mask templates to sample: names, or the groups faces, plain, cloth"
    )

    widths: tuple[int, ...] = option((32, 64, 128), "generator's channels, one per resolution")
    heads: Literal["filter", "residual", "both"] = option("both", "what the generator predicts")
    kernel: int = option(5, "side of the filter kernels, texels")
    residual_bound: float = option(0.12, "largest change of a texel by the residual, of [0, 1]")
    softness: float = option(0.03, "fade at the mask's edge, fraction of the mask's width")
    discriminator_width: int = option(32, "discriminator's channels in its first layer")

    realism: float = option(0.2, "weight: discriminator's opinion")
    dodging: float = option(2.0, "weight: similarity to the wearer's photos above threshold")
    undetected: float = option(0.5, "weight: mask logit")
    found: float = option(0.5, "weight: face logit, so that the face stays a face")
    perceptual: float = option(0.0, "weight: LPIPS to the DM result (needs AlexNet's weights)")
    fidelity: float = option(100.0, "weight: mean squared difference to the template's texture")
    smooth: float = option(1.0, "weight: total variation of what the generator changes")
    dodging_margin: float = option(0.25, "how far below threshold, in units of 1 - threshold")
    detection_margin: float = option(2.0, "how far beyond the detectors' decision, logits")
    r1: float = option(1.0, "weight gamma of the R1 penalty")
    r1_every: int = option(8, "steps between R1 penalties, each counted as many times")

    diversity: float = option(1.0, "strength of the augmentations before surrogates and discriminator")
    eot: float = option(0.3, "strength of the jitter at which masks are worn")

    learning_rate: float = option(1e-3, "generator's, AdamW")
    discriminator_learning_rate: float = option(5e-4, "discriminator's, AdamW")
    warmup: int = option(50, "steps of linear warm-up")
    clip: float = option(1.0, "largest gradient norm")
    ema: float = option(0.995, "decay of the averaged generator, which is the one that is kept")

    log_every: int = option(10, "steps between logged figures")
    validate_every: int = option(200, "steps between validations and image grids")
    validation_faces: int = option(48, "faces of the val split to validate on")
    save_every: int = option(200, "steps between checkpoints")
    keep: int = option(2, "checkpoints kept")

    @property
    def goal(self) -> Goal:
        return Goal(self.dodging_margin, self.detection_margin)


# Options that may change when a run is resumed; with any other change the result would not be that of one run.
RESUMABLE = {"out", "data", "steps", "workers", "log_every", "validate_every", "validation_faces", "save_every", "keep"}
BATCH = ("batch_size", "accumulate")  # free to change, too, while their product stays: the faces of a step


# ---------------------------------------------------------------------------------------- one step


class Scene(NamedTuple):
    """What one micro-batch looks like."""

    face: Tensor  # (B, 3, S, S) in [0, 1], unmasked
    landmarks: Tensor  # (B, 68, 2) px
    template: Tensor  # (B, 3, h, w)
    texture: Tensor  # (B, 3, h, w), the generator's
    dm: Tensor  # (B, 3, S, S), the benign faced mask
    masked: Tensor  # (B, 3, S, S), the generated one


def dress(face: Tensor, landmarks: Tensor, template: Tensor, net: nn.Module, draws: Draws, c: TrainConfig) -> Scene:
    """Generate the textures and wear them, a little displaced (expectation over transformations, Athalye 2018)."""
    texture = net(
        masking.unwrap(face, landmarks, (template.shape[2], template.shape[3])), template, draws.normal(GENERATOR_NOISE)
    )
    worn_at = masking.place(augment.jitter_landmarks(landmarks, draws, c.eot), *face.shape[2:])
    dm = masking.wear(face, worn_at, template, c.softness)
    masked = augment.round_to_8_bit(masking.wear(face, worn_at, texture, c.softness))
    return Scene(face, landmarks, template, texture, dm, masked)


def discriminator_terms(
    scene: Scene, discriminator: nn.Module, draws: Draws, c: TrainConfig, r1: bool
) -> dict[str, Tensor]:
    """Real against generated. Half of the reals wear a benign DM mask: its seam is not what is to be learned away."""
    wears_dm = draws.uniform(1, 1, 1) < 0.5
    real = disguise(torch.where(wears_dm, scene.dm, scene.face), draws, c.diversity).detach().requires_grad_(r1)
    fake = disguise(scene.masked.detach(), draws, c.diversity)
    real_logits, fake_logits = discriminator(torch.cat([real, fake])).float().chunk(2)
    terms = {"d_logistic": losses.d_logistic(real_logits, fake_logits)}
    if r1:
        terms["d_r1"] = losses.r1_penalty(real_logits, real) * (c.r1 / 2 * c.r1_every)
    return terms


def generator_terms(
    scene: Scene, references: Sequence[Tensor], discriminator: nn.Module, s: Surrogates, draws: Draws, c: TrainConfig
) -> dict[str, Tensor]:
    """The weighted losses, each (B,). references: per embedder (B, 2, D), the wearer's own and another clean photo."""
    terms = {
        "realism": c.realism * losses.g_nonsaturating(discriminator(disguise(scene.masked, draws, c.diversity)).float())
    }
    evasion = evasion_terms(scene.masked, scene.landmarks, references, s, draws, c.diversity, c.goal)
    terms |= {name: getattr(c, name) * term for name, term in evasion.items()}
    if s.perceptual is not None:
        terms["perceptual"] = c.perceptual * s.perceptual(scene.masked, scene.dm)
    terms["fidelity"] = c.fidelity * losses.squared_distance(scene.texture, scene.template)
    terms["smooth"] = c.smooth * losses.total_variation(scene.texture - scene.template)
    return terms


def disguise(images: Tensor, draws: Draws, strength: float) -> Tensor:
    """The discriminator's differentiable augmentation (Zhao et al. 2020)."""
    return augment.shift_image(augment.relight(images, draws, strength), draws, strength)


@dataclass
class Game:
    """One micro-batch: dress, the discriminator's turn, the generator's turn."""

    c: TrainConfig
    net: nn.Module
    discriminator: nn.Module
    judge: nn.Module  # the discriminator itself, without what accelerate wraps around it
    surrogates: Surrogates
    references: Sequence[Tensor]  # per embedder, clean embeddings (N, D) of the train split
    bank: Tensor  # (T, 3, h, w) templates
    schedule: Schedule
    autocast: Callable[[], Any]
    device: torch.device

    def play(
        self,
        batch: dict[str, Tensor],
        step: int,
        micro: int,
        backward: Callable[[dict[str, Tensor]], Any],
        size: int | None = None,
    ) -> tuple[Scene, dict[str, Tensor]]:
        """The scene and all loss terms, after `backward` had each side's. size: only the first faces of the batch."""
        c = self.c
        first = self.schedule.row(micro)
        draws = Draws(c.seed, step, range(first, first + (size or c.batch_size)), self.schedule.total, self.device)
        index = batch["index"].numpy()[:size]
        mates = self.schedule.mates(index, draws.integers(2**31 - 1).cpu().numpy())
        near = [torch.stack([r[index], r[mates]], 1).to(self.device) for r in self.references]
        template = self.bank[draws.integers(len(self.bank))]
        face = batch["face"][:size].to(self.device, non_blocking=True)
        landmarks = batch["landmarks"][:size].to(self.device, non_blocking=True)
        with self.autocast():
            scene = dress(face, landmarks, template, self.net, draws, c)

        # Discriminator's turn
        d_terms = discriminator_terms(scene, self.discriminator, draws, c, r1=(step + 1) % c.r1_every == 0)
        backward(d_terms)

        # Generator's turn, against the frozen discriminator
        self.judge.requires_grad_(False)
        try:
            with self.autocast():
                g_terms = generator_terms(scene, near, self.judge, self.surrogates, draws, c)
        finally:
            self.judge.requires_grad_(True)
        backward(g_terms)
        return scene, {**g_terms, **d_terms}

    def alone(self, accelerator: Accelerator) -> Game:
        """The same without the other processes, to find out what went wrong on this one."""
        return replace(self, net=accelerator.unwrap_model(self.net), discriminator=self.judge)


# ---------------------------------------------------------------------------------------- the order of photos


class Schedule:
    """Which photos each step sees, as a function of the seed alone; a batch sampler for this process."""

    def __init__(self, identities: np.ndarray, c: TrainConfig, process: int, processes: int, start: int) -> None:
        self.c, self.process, self.processes, self.start = c, process, processes, start
        self.total = c.batch_size * c.accumulate * processes
        self.order = np.argsort(identities, kind="stable")
        self.rank = np.empty_like(self.order)  # photo -> position among its person's neighbours
        self.rank[self.order] = np.arange(len(identities))
        _, self.first, self.size = np.unique(identities[self.order], return_index=True, return_counts=True)
        self.person = np.searchsorted(self.first, self.rank, side="right") - 1
        self._epoch, self._shuffled = -1, self.order

    def row(self, micro: int) -> int:
        """Where this process' micro-batch begins within the effective batch."""
        return (micro * self.processes + self.process) * self.c.batch_size

    def __len__(self) -> int:
        return (self.c.steps - self.start) * self.c.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        for step in range(self.start, self.c.steps):
            for micro in range(self.c.accumulate):
                first = step * self.total + self.row(micro)
                yield [self._photo(position) for position in range(first, first + self.c.batch_size)]

    def _photo(self, position: int) -> tuple[int, bool]:
        epoch, place = divmod(position, len(self.order))
        if epoch != self._epoch:
            self._epoch, self._shuffled = (
                epoch,
                np.random.default_rng((self.c.seed, epoch)).permutation(len(self.order)),
            )
        photo = int(self._shuffled[place])
        return photo, bool((photo + epoch) % 2)  # each photo is mirrored in every other epoch

    def mates(self, photos: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Another photo of the same person for each photo (the photo itself if it is the only one)."""
        first, size = self.first[self.person[photos]], self.size[self.person[photos]]
        offset = 1 + draw % np.maximum(size - 1, 1)
        return self.order[first + (self.rank[photos] - first + offset) % size]


# ---------------------------------------------------------------------------------------- the loop

GENERATOR_NOISE = 32  # length of z


def main(argv: Sequence[str] | None = None) -> None:
    with commands.ending("earlier checkpoints are intact: run the same command again"):
        c = config.parse(TrainConfig, argv, "Train the conditional generator. Run the same command again to resume.")
        try:
            train(c)
        except RuntimeError as error:
            if not lost_process(error):
                raise
            complaint = "another process of this training is gone; run the same command again to resume"
            raise GanMaskError(complaint) from error


def lost_process(error: RuntimeError) -> bool:
    """Whether a collective operation failed, which is how a process learns that another one has died."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return isinstance(error, distributed.DistError) or bool(re.search("gloo|NCCL|ncclSystemError", str(error)))


def train(c: TrainConfig) -> None:
    check(c)
    out = Path(c.out)
    accelerator = Accelerator(mixed_precision=c.mixed_precision, gradient_accumulation_steps=c.accumulate)
    set_seed(c.seed)
    photos = PreparedSet(c.data, "train")
    if len(photos) < 2:
        raise GanMaskError(f"{c.data}: {len(photos)} faces in the train split; at least 2 are needed")
    claim(out, c, accelerator)

    # Networks and optimisers
    generator = Generator(
        widths=c.widths, noise=GENERATOR_NOISE, heads=c.heads, kernel=c.kernel, residual_bound=c.residual_bound,
        softness=c.softness, size=photos.size, margin=photos.margin, default_template=first_template(c),
        trained_against=(*c.embedders, *c.detectors),
    )  # fmt: skip
    net, ema, discriminator = (
        generator.net,
        Generator(**config.to_dict(generator.config)),
        Discriminator(c.discriminator_width),
    )
    ema.load_state_dict(generator.state_dict())
    ema.requires_grad_(False).to(accelerator.device)
    optimizers = (
        torch.optim.AdamW(net.parameters(), c.learning_rate, betas=(0.5, 0.99), weight_decay=1e-4),
        torch.optim.AdamW(
            discriminator.parameters(), c.discriminator_learning_rate, betas=(0.0, 0.99), weight_decay=0.0
        ),
    )
    net, discriminator, *optimizers = accelerator.prepare(net, discriminator, *optimizers)
    state = State(out, accelerator, net, discriminator, ema, optimizers)
    start = state.load_latest()

    # Frozen networks, templates, clean embeddings
    device = accelerator.device
    surrogates = load_surrogates(c.embedders, c.detectors, c.far, device, perceptual=c.perceptual > 0)
    bank = templates.load_all(c.templates, generator.texture_size).to(device)
    references = [clean_embeddings(e, photos, out, accelerator) for e in surrogates.embedders]
    validation = Validation(c, surrogates, bank, device) if accelerator.is_main_process else None

    schedule = Schedule(photos.identities, c, accelerator.process_index, accelerator.num_processes, start)
    loader = DataLoader(
        photos,
        batch_sampler=schedule,
        num_workers=c.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
    )
    batches = iter(loader)
    judge = accelerator.unwrap_model(discriminator)
    game = Game(c, net, discriminator, judge, surrogates, references, bank, schedule, accelerator.autocast, device)
    log = Log(out, c, start, accelerator)
    health = Health(judged=c.realism > 0)
    stop = stop_on_signals()
    norms: tuple[float, ...] = (0.0, 0.0)
    due = False

    for step in range(start, c.steps):
        scale_learning_rates(optimizers, c, step)
        for micro in range(c.accumulate):
            batch = next(batches)
            with accelerator.accumulate(net, discriminator):
                scene, terms = play_in_memory(game, accelerator, batch, step, micro)
                if accelerator.sync_gradients:
                    try:
                        norms = step_optimizers(accelerator, (net, discriminator), optimizers, (c.clip, 10 * c.clip))
                    except FloatingPointError:
                        alone = game.alone(accelerator)
                        parameters = [*alone.net.parameters(), *alone.judge.parameters()]
                        alone.play(batch, step, micro, partial(name_the_culprit, parameters=parameters))
                        raise not_finite("a gradient") from None
        update_average(ema.net, accelerator.unwrap_model(net), min(c.ema, (1 + step) / (10 + step)))

        done = step + 1
        log.step(done, terms, scene, norms)
        health.look(terms, norms, scene.texture, scene.template)
        if validation and (done % c.validate_every == 0 or done == c.steps):
            log.figures(done, validation.figures(ema), "val")
            log.picture(done, validation.picture(ema))
        stopping = stop.is_set(accelerator)
        due = due or done % c.save_every == 0
        if (due and health.good) or done == c.steps or stopping:
            state.save(done, c.keep)
            due = False
        if stopping:
            log.close()
            raise SystemExit(stop.goodbye(done))
    log.close()
    if accelerator.is_main_process:
        print(f"done: {c.steps} steps; the generator is in {out / 'generator'}")
    accelerator.end_training()


def check(c: TrainConfig) -> None:
    for name in ("data", "out"):
        if not getattr(c, name):
            raise GanMaskError(f"--{name} is missing: {TrainConfig.__dataclass_fields__[name].metadata['help']}")
    for name in ("steps", "batch_size", "accumulate", "r1_every", "log_every", "validate_every", "save_every", "keep"):
        if getattr(c, name) < 1:
            raise GanMaskError(f"--{name} must be at least 1, got {getattr(c, name)}")


def claim(out: Path, c: TrainConfig, accelerator: Accelerator) -> None:
    """Make the run folder, or make sure that it holds the same run."""
    if accelerator.is_main_process:
        path = out / "train.json"
        if path.is_file():
            before, now = files.read_json(path), config.to_dict(c)
            changed = [k for k in now if k not in RESUMABLE and before.get(k) != now[k]]
            if all(before.get(k) for k in BATCH) and math.prod(before[k] for k in BATCH) == math.prod(
                now[k] for k in BATCH
            ):
                changed = [k for k in changed if k not in BATCH]
            if changed:
                differences = ", ".join(f"{k} {before.get(k)} -> {now[k]}" for k in changed)
                raise GanMaskError(
                    f"{out} holds a run with other options ({differences}); "
                    "give another --out, or the same options to resume"
                )
        try:
            out.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(out)
            files.write_json(path, config.to_dict(c))
        except OSError as error:
            raise GanMaskError(f"--out {out}: cannot write there ({error.strerror})") from error
    accelerator.wait_for_everyone()


def first_template(c: TrainConfig) -> str:
    return next(iter(templates.expand(c.templates)))


@torch.no_grad()
def clean_embeddings(embedder: Any, photos: PreparedSet, out: Path, accelerator: Accelerator) -> Tensor:
    """Embeddings (N, D) of the unmasked train split, computed once per run and kept beside it."""
    path = out / f"clean-{files.safe_name(embedder.name)}-{len(photos)}.npy"
    if accelerator.is_main_process and not (path.is_file() and readable(path, len(photos))):
        rows = []
        loader = DataLoader(photos, batch_size=64, num_workers=0)
        for batch in commands.Progress(loader, desc=f"clean embeddings, {embedder.name}", mininterval=2):
            rows.append(embedder(batch["face"].to(accelerator.device), batch["landmarks"].to(accelerator.device)).cpu())
        with files.replacing(path) as temporary, open(temporary, "wb") as f:
            np.save(f, torch.cat(rows).numpy())
    accelerator.wait_for_everyone()
    return torch.from_numpy(np.load(path, allow_pickle=False))


def readable(path: Path, rows: int) -> bool:
    try:
        return len(np.load(path, allow_pickle=False)) == rows
    except (ValueError, EOFError, OSError) as error:
        print(f"warning: {path}: damaged ({error}); it is computed again", file=sys.stderr)
        return False


def play_in_memory(
    game: Game, accelerator: Accelerator, batch: dict[str, Tensor], step: int, micro: int
) -> tuple[Scene, dict[str, Tensor]]:
    """`game.play` with backward passes; where the GPU's memory is too small, an error that says what would fit."""
    try:
        return game.play(batch, step, micro, lambda terms: accelerator.backward(total(terms)))
    except torch.cuda.OutOfMemoryError:
        pass  # the memory that its traceback holds is free from here on
    c, alone = game.c, game.alone(accelerator)
    fits = largest_batch_that_fits(
        lambda size: alone.play(batch, step, micro, lambda terms: total(terms).backward(), size), c.batch_size
    )
    remedy = "not even a single face fits; use smaller --widths or fewer surrogates"
    if fits:
        parts = c.accumulate * math.ceil(c.batch_size / fits)
        remedy = f"{fits} fits (tried). Go on with --batch_size {fits} --accumulate {parts}"
    raise GanMaskError(f"the GPU's memory does not hold --batch_size {c.batch_size}; {remedy}")


def scale_learning_rates(optimizers: Sequence[Any], c: TrainConfig, step: int) -> None:
    """Linear warm-up, then a cosine down to a tenth."""
    factor = min((step + 1) / max(c.warmup, 1), 1.0) * (0.55 + 0.45 * math.cos(math.pi * step / c.steps))
    for optimizer, rate in zip(optimizers, (c.learning_rate, c.discriminator_learning_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    for a, b in zip(average.parameters(), net.parameters(), strict=True):
        a.lerp_(b.detach().float(), 1 - decay)


def ignore_signals(worker: int) -> None:
    """For loader processes: a signal to the whole process group is for the training process to answer."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class stop_on_signals:
    """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._notice)

    def _notice(self, number: int, frame: Any) -> None:
        self.signal = number

    def is_set(self, accelerator: Accelerator) -> bool:
        """The same answer on every process."""
        if accelerator.num_processes == 1:
            return self.signal != 0
        flag = torch.tensor(self.signal, device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item())

    def goodbye(self, step: int) -> int:
        print(f"stopped after step {step}, checkpoint written; run the same command again to go on", file=sys.stderr)
        return 128 + (self.signal or signal.SIGTERM)


# ---------------------------------------------------------------------------------------- validation and logs


class Validation:
    """Joint success on fixed faces of the val split, on 8-bit crops, without detecting the face anew.

    A quick guide while training; the figures to quote come from gan_mask.evaluation.
    """

    def __init__(self, c: TrainConfig, surrogates: Surrogates, bank: Tensor, device: torch.device) -> None:
        self.c, self.surrogates, self.device = c, surrogates, device
        photos = PreparedSet(c.data, "val")
        count = min(c.validation_faces, len(photos))
        if count < 2:
            raise GanMaskError(f"{c.data}: {len(photos)} faces in the val split; prepare with a larger --splits share")
        items = [photos[int(i)] for i in np.linspace(0, len(photos) - 1, count)]
        self.face = torch.stack([item["face"] for item in items]).to(device)
        self.landmarks = torch.stack([item["landmarks"] for item in items]).to(device)
        self.template = bank[torch.arange(count) % len(bank)]
        self.clean = [torch.cat([e(f, m) for f, m in self._batches()]) for e in surrogates.embedders]

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.face.split(16), self.landmarks.split(16), strict=True)

    @torch.no_grad()
    def masked(self, generator: Generator | None) -> Tensor:
        rows = []
        for f, m, t in zip(self.face.split(16), self.landmarks.split(16), self.template.split(16), strict=True):
            texture = generator.texture(f, m, t) if generator else t
            rows.append(augment.round_to_8_bit(masking.wear(f, m, texture, self.c.softness)))
        return torch.cat(rows)

    @torch.no_grad()
    def figures(self, generator: Generator) -> dict[str, float]:
        result = {}
        for name, masked in {"dm": self.masked(None), "generator": self.masked(generator)}.items():
            dodged = torch.ones(len(masked), dtype=torch.bool, device=self.device)
            for embedder, threshold, clean in zip(
                self.surrogates.embedders, self.surrogates.thresholds, self.clean, strict=True
            ):
                rows = [embedder(f, m) for f, m in zip(masked.split(16), self.landmarks.split(16), strict=True)]
                dodged &= (torch.cat(rows) * clean).sum(1) < threshold
            hidden = torch.ones_like(dodged)
            for detector in self.surrogates.detectors:
                logits = [torch.stack(detector(f)) for f in masked.split(16)]
                mask_logit, face_logit = torch.cat(logits, 1)
                hidden &= (mask_logit <= 0) & (face_logit > 0)
            result[f"{name}/dodging"] = dodged.float().mean().item()
            result[f"{name}/undetected"] = hidden.float().mean().item()
            result[f"{name}/joint"] = (dodged & hidden).float().mean().item()
        return result

    @torch.no_grad()
    def picture(self, generator: Generator, columns: int = 8) -> Tensor:
        """Unmasked, DM, generated: (3, 3 S, columns * S) in [0, 1]."""
        rows = (self.face, self.masked(None), self.masked(generator))
        return torch.cat([torch.cat(list(row[:columns]), 2) for row in rows], 1).cpu()


LOGGED, PICTURES = 10_000, 100  # at most, however long the run, so that its logs stay small


# TensorBoard's "Custom Scalars" page: figures that belong together, in one chart each.
CHARTS = {
    "generator": {
        "evasion": ["Multiline", ["train/dodging", "train/undetected", "train/found"]],
        "naturalness": ["Multiline", ["train/realism", "train/fidelity", "train/smooth", "train/perceptual"]],
        "texture": ["Multiline", ["train/change", "train/texture_std"]],
    },
    "discriminator": {"loss": ["Multiline", ["train/d_logistic", "train/d_r1"]]},
    "training": {
        "gradient norms": ["Multiline", ["train/g_norm", "train/d_norm"]],
        "speed": ["Multiline", ["train/images_per_second"]],
    },
    "validation": {"rates": ["Multiline", ["val/.*"]]},
}


class Log:
    """Progress bar, log.jsonl, TensorBoard and previews/ of the main process."""

    def __init__(self, out: Path, c: TrainConfig, start: int, accelerator: Accelerator) -> None:
        self.main, self.c, self.out = accelerator.is_main_process, c, out
        self.faces_per_step = c.batch_size * c.accumulate * accelerator.num_processes
        self.every = max(c.log_every, math.ceil(c.steps / LOGGED))
        self.writer: Any = None
        self.last = (time.monotonic(), start)
        if not self.main:
            return
        (out / "previews").mkdir(exist_ok=True)
        forget_after(out / "log.jsonl", start)
        self.bar = commands.Progress(total=c.steps, initial=start, desc="train", mininterval=2)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=start)
            self.writer.add_custom_scalars(CHARTS)
            self.writer.add_text("options", f"```yaml\n{config.to_yaml(c)}```", start)
        except ImportError:
            print("tensorboard is not installed: figures go to log.jsonl only", file=sys.stderr)

    def step(self, step: int, terms: dict[str, Tensor], scene: Scene, norms: tuple[float, ...]) -> None:
        if not self.main:
            return
        self.bar.update()
        if step % self.every and step != self.c.steps:
            return
        values = {name: term.mean().item() for name, term in terms.items()}
        values["g_norm"], values["d_norm"] = norms
        values["texture_std"] = scene.texture.std((2, 3)).mean().item()
        values["change"] = (scene.texture - scene.template).abs().mean().item()
        now = time.monotonic()
        values["images_per_second"] = (step - self.last[1]) * self.faces_per_step / max(now - self.last[0], 1e-9)
        self.last = (now, step)
        self.figures(step, values, "train")
        self.bar.set_postfix({k: f"{values[k]:.2f}" for k in ("dodging", "undetected", "realism", "d_logistic")})

    def figures(self, step: int, values: dict[str, float], group: str) -> None:
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, "group": group, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)
        if group == "val":
            self.bar.write(f"step {step}: " + ", ".join(f"{k} {v:.1%}" for k, v in values.items()))

    def picture(self, step: int, image: Tensor) -> None:
        if step * PICTURES // self.c.steps == (step - self.c.validate_every) * PICTURES // self.c.steps:
            return  # this share of the run has its picture
        from PIL import Image

        from gan_mask.faces import to_8_bit

        pixels = to_8_bit(image)
        with files.replacing(self.out / "previews" / f"{step:07d}.png") as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
        if self.writer:
            self.writer.add_image("unmasked | DM | generated", image, step)

    def close(self) -> None:
        if self.main:
            self.bar.close()
            if self.writer:
                self.writer.close()


def forget_after(path: Path, step: int) -> None:
    """Leave the lines up to `step`: a killed run may have logged beyond its last checkpoint, and half a line."""
    if path.is_file():
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                kept += [line] if json.loads(line)["step"] <= step and line.endswith("\n") else []
            except (ValueError, KeyError, TypeError):
                continue
        files.write_text(path, "".join(kept))


# ---------------------------------------------------------------------------------------- checkpoints


class State:
    """Everything a run needs to go on exactly: networks, their average, optimisers, loss scaler, step.

    Randomness and the order of photos are functions of seed and step, so there is no state of theirs.
    One folder per checkpoint: state.safetensors, and state.json with its SHA-256. No pickle.
    """

    def __init__(
        self,
        out: Path,
        accelerator: Accelerator,
        net: nn.Module,
        discriminator: nn.Module,
        ema: Generator,
        optimizers: Sequence[Any],
    ) -> None:
        self.folder, self.generator_folder, self.accelerator = out / "checkpoints", out / "generator", accelerator
        self.modules = {"net": accelerator.unwrap_model(net), "discriminator": accelerator.unwrap_model(discriminator)}
        self.ema, self.optimizers = ema, dict(zip(("g", "d"), optimizers, strict=True))

    def save(self, step: int, keep: int) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            try:
                self._save(step, keep)
            except OSError as error:
                shutil.rmtree(self.folder / ".new", ignore_errors=True)
                raise GanMaskError(
                    f"{self.folder}: cannot write the checkpoint of step {step} ({error}); earlier ones are intact. "
                    "Make room and run the same command again"
                ) from error

    def _save(self, step: int, keep: int) -> None:
        new, final = self.folder / ".new", self.folder / f"step-{step:07d}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        tensors = self._tensors()
        if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise GanMaskError(f"step {step}: {', '.join(bad[:8])} not finite; the last checkpoint is untouched")
        with files.replacing(new / "state.safetensors") as temporary:
            write_tensors(tensors, temporary)
        scaler = self.accelerator.scaler
        checksum = files.sha256(new / "state.safetensors")
        files.write_json(
            new / "state.json", {"step": step, "sha256": checksum, "scaler": scaler and scaler.state_dict()}
        )
        save_generator(self.ema, self.generator_folder)  # first: a run that has its last checkpoint does nothing more
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
        files.sync_directory(self.folder)
        for old in self._steps()[:-keep]:
            shutil.rmtree(old)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"ema.{k}": v for k, v in self.ema.net.state_dict().items()}
        for name, module in self.modules.items():
            tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for i, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return tensors

    def load_latest(self) -> int:
        """Restore the newest whole checkpoint; returns the steps done so far, 0 for a new run."""
        for folder in reversed(self._steps()):
            try:
                meta = files.read_json(folder / "state.json")
                if files.sha256(folder / "state.safetensors") != meta["sha256"]:
                    raise GanMaskError(f"{folder / 'state.safetensors'}: checksum differs, the file is damaged")
                tensors, step = read_safetensors(folder / "state.safetensors"), int(meta["step"])
                self._check_keys(folder, tensors)
                self._restore(tensors, meta)
            except (GanMaskError, OSError, KeyError, ValueError, TypeError) as error:
                print(f"warning: {error}; trying the checkpoint before it", file=sys.stderr)
                continue
            if self.accelerator.is_main_process:
                print(f"resuming {folder}")
            return step
        if self._steps():
            raise GanMaskError(f"{self.folder}: no checkpoint in it is usable; delete this folder to start anew")
        return 0

    def _check_keys(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Networks of the options, and nothing else; the optimisers' state appears with their first step."""
        due = {k: v.shape for k, v in self._tensors().items() if not k.startswith("optimizer.")}
        have = {k: v.shape for k, v in tensors.items() if not k.startswith("optimizer.")}
        if differing := sorted(k for k in due.keys() | have.keys() if due.get(k) != have.get(k)):
            raise GanMaskError(f"{folder}: other networks than those of the options: {', '.join(differing[:8])}")

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.ema.net.load_state_dict(part("ema."))
        for name, module in self.modules.items():
            module.load_state_dict(part(f"{name}."))
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"optimizer.{name}.").items():
                index, entry = key.split(".")
                state.setdefault(int(index), {})[entry] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.accelerator.scaler and meta["scaler"]:
            self.accelerator.scaler.load_state_dict(meta["scaler"])


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # Not save_file: on a full disk it raises an error of its own instead of OSError.
    path.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def save_generator(generator: Generator, folder: Path) -> None:
    """config.json and model.safetensors, as load_generator reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "config.json", config.to_dict(generator.config))
    with files.replacing(folder / "model.safetensors") as temporary:
        write_tensors(generator.state_dict(), temporary)
