"""The training loop, under `accelerate launch` on any number of processes."""

from __future__ import annotations

import atexit
import glob
import math
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gan_mask import cli, files, run_record, templates, values
from gan_mask.attacks.surrogates import Surrogates, load_surrogates
from gan_mask.data import PreparedSet
from gan_mask.data.shards import ShardSet, open_faces
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator, load_generator
from gan_mask.networks import FACE_HEADS, OWN, GeneratorConfig
from gan_mask.pretrained import contract
from gan_mask.pretrained.protocol import fingerprint
from gan_mask.training.camera import Photographed
from gan_mask.training.discriminator import make as make_discriminator
from gan_mask.training.health import Health
from gan_mask.training.log import Log
from gan_mask.training.options import (
    GENERATOR_NOISE,
    TrainConfig,
    check,
    default_template,
    of_today,
    resumable,
    scaled,
    trained_against,
)
from gan_mask.training.schedule import Schedule
from gan_mask.training.state import State, has_checkpoint
from gan_mask.training.step import TrainStep
from gan_mask.training.validation import Validation

ENGINES = ("USE_DEEPSPEED", "USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG")  # of accelerate, not ours
PRECISION = "ACCELERATE_MIXED_PRECISION"

# What a generator may be fine-tuned to: its networks stay as they are.
FREE = {
    "placement", "softness", "size", "margin", "default_template", "trained_against", "trained_against_weights",
    *(f"{head}_bound" for head in (*FACE_HEADS, "residual")),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    with cli.ending("earlier checkpoints are intact: run the same command again"):
        c = cli.parse(TrainConfig, argv, "Train the conditional generator. Run the same command again to resume.")
        try:
            train(c)
        except RuntimeError as error:
            if not lost_process(error):
                raise
            atexit.register(leave)
            complaint = "another process of this training is gone; run the same command again to resume"
            raise GanMaskError(complaint) from error


def leave() -> None:
    """End at once: threads of gloo that wait for a lost process abort an interpreter that ends in order."""
    end_loaders()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def lost_process(error: RuntimeError) -> bool:
    """Whether a collective operation failed, which is how a process learns that another one has died."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return isinstance(error, distributed.DistError) or bool(re.search("gloo|NCCL|ncclSystemError", str(error)))


def train(c: TrainConfig) -> None:
    """Train, or resume what --out holds. SIGTERM and Ctrl-C end it after the step, with a checkpoint."""
    check(c)
    with stop_on_signals() as stop, ExitStack() as held:
        _train(c, stop, held)


def _train(c: TrainConfig, stop: stop_on_signals, held: ExitStack) -> None:
    out = Path(c.out)
    c, accelerator = launched(c)
    photos = open_faces(c.data, "train")
    if len(photos) < 2:
        raise GanMaskError(f"{c.data}: {len(photos)} faces in the train split; at least 2 are needed")
    photographed = Photographed(photos, c.camera, c.seed)

    # Networks, and what they are made against
    device = accelerator.device
    surrogates = load_surrogates(c.embedders, c.detectors, c.far, device, perceptual=c.perceptual > 0)
    set_seed(c.seed)  # after the surrogates, some of which draw numbers when they are made
    generator, ema, bare_discriminator = networks_of(c, photos, surrogates, device)

    # Templates; only then the run folder, so that a start that fails leaves none
    bank = templates.Bank(c.templates, generator.texture_size, device)
    if generator.config.default_template == OWN:
        ema.template.copy_(bank.textures[0])
    claim(out, c, surrogates, accelerator, held)
    c = scaled(c, accelerator.num_processes)

    # Where an earlier run stopped. `bare` is without what accelerate wraps around the networks: torch.compile, DDP
    bare = {"net": generator.net, "discriminator": bare_discriminator}
    net, discriminator, *optimizers = accelerator.prepare(*bare.values(), *optimizers_of(c, *bare.values()))
    state = State(out, accelerator, bare, ema, optimizers)
    start = state.load_latest()

    # Faces, in an order that follows from seed and step
    atexit.register(end_loaders)
    references = [clean_embeddings(e, photos, out, accelerator, c.workers) for e in surrogates.embedders]
    validation = Validation(c, surrogates, bank, device) if accelerator.is_main_process else None
    schedule = Schedule(photos.identities, c, accelerator.process_index, accelerator.num_processes, start, photos.run)
    loader = DataLoader(
        photographed, batch_sampler=schedule, num_workers=c.workers, pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
    )  # fmt: skip

    # Steps
    train_step = TrainStep(
        c, accelerator, net, discriminator, accelerator.unwrap_model(discriminator), optimizers, surrogates, references,
        bank, schedule,
    )  # fmt: skip
    log = Log(out, c, start, accelerator)
    take_steps(c, start, iter(loader), train_step, ema, bare["net"], state, validation, log, stop)
    log.close()
    state.remove_old(c.keep)  # a run that was killed while it did so has no more steps to do
    if accelerator.is_main_process:
        print(f"done: {c.steps} steps; the generator is in {out / 'generator'}")
    accelerator.end_training()


def networks_of(
    c: TrainConfig, photos: PreparedSet | ShardSet, surrogates: Surrogates, device: torch.device
) -> tuple[Generator, Generator, nn.Module]:
    """Generator, its average over the steps, and discriminator."""
    config = GeneratorConfig(
        widths=c.widths, noise=GENERATOR_NOISE, heads=c.heads, appearance_bound=c.appearance_bound,
        shape_bound=c.shape_bound, light_bound=c.light_bound, kernel=c.kernel, residual_bound=c.residual_bound,
        placement=c.placement, softness=c.softness, size=photos.size, margin=photos.margin,
        default_template=default_template(c), trained_against=trained_against(c),
        trained_against_weights=tuple(map(files.weights_digest, (*surrogates.embedders, *surrogates.detectors))),
    )  # fmt: skip
    generator = Generator(config)
    if c.start and not has_checkpoint(Path(c.out)):
        begin_with(generator, c.start)
    ema = Generator(generator.config)
    discriminator = make_discriminator(c.discriminator_width)
    ema.load_state_dict(generator.state_dict())
    ema.requires_grad_(False).to(device)
    for network in (generator, ema, discriminator):
        network.to(memory_format=torch.channels_last)  # a step takes a fifth less time on CPUs
    return generator, ema, discriminator


def optimizers_of(c: TrainConfig, net: nn.Module, discriminator: nn.Module) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.AdamW(net.parameters(), c.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4),
        torch.optim.AdamW(
            discriminator.parameters(), c.discriminator_learning_rate, betas=(0.5, 0.99), weight_decay=0.0
        ),
    ]


def take_steps(
    c: TrainConfig,
    start: int,
    loaded: Iterator[dict[str, Tensor]],
    train_step: TrainStep,
    ema: Generator,
    net: nn.Module,
    state: State,
    validation: Validation | None,
    log: Log,
    stop: stop_on_signals,
) -> None:
    """From step `start` to the last, or to a signal; validations, logs and checkpoints when they are due."""
    health, unsaved = Health(adversarial=c.realism > 0), False
    stop.begin()
    for step in range(start, c.steps):
        scale_learning_rates(train_step.optimizers, c, step)
        figures = train_step(loaded, step)
        update_average(ema.net, net, min(c.ema, (1 + step) / (10 + step)))

        done = step + 1
        log.step(done, figures)
        health.check(figures)
        if validation and (done % c.validate_every == 0 or done == c.steps):
            log.figures(done, validation.figures(ema), "val")
            log.picture(done, validation.picture(ema))

        stopping = stop.is_set(train_step.accelerator)
        unsaved = unsaved or done % c.save_every == 0
        if (unsaved and health.good) or done == c.steps or stopping:
            state.save(done, c.keep)
            unsaved = False
        if stopping:
            log.close()
            raise SystemExit(stop.goodbye(done))


def launched(c: TrainConfig) -> tuple[TrainConfig, Accelerator]:
    """The options with what accelerate is told by its launcher or environment; GanMaskError where that cannot be."""
    told = {name: os.environ.get(f"ACCELERATE_{name}", "") for name in ("GRADIENT_ACCUMULATION_STEPS", *ENGINES)}
    steps = told["GRADIENT_ACCUMULATION_STEPS"]
    if steps not in ("", str(c.accumulate)):
        raise GanMaskError(
            f"accelerate is told to accumulate {steps} micro-batches ($ACCELERATE_GRADIENT_ACCUMULATION_STEPS), "
            f"--accumulate is {c.accumulate}; give the same, or leave it to --accumulate"
        )
    if used := [name for name in ENGINES if told[name].lower() in ("1", "true", "yes", "on", "y", "t")]:
        raise GanMaskError(f"$ACCELERATE_{used[0]}: this training runs in plain or distributed PyTorch only; unset it")
    precision = None if c.mixed_precision == "auto" else c.mixed_precision  # None: as accelerate is told
    if precision is None and os.environ.get(PRECISION, "no").lower() not in ("no", "fp16", "bf16"):
        raise GanMaskError(f"accelerate is told {os.environ[PRECISION]!r} (${PRECISION}): expected no, fp16 or bf16")
    try:
        accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=c.accumulate)
    except ValueError as error:  # it keeps one precision per process, and asks the machine for what it can do
        raise GanMaskError(f"--mixed_precision {precision or os.environ.get(PRECISION)}: {error}") from error
    return replace(c, mixed_precision=accelerator.mixed_precision), accelerator


def claim(out: Path, c: TrainConfig, surrogates: Surrogates, accelerator: Accelerator, held: ExitStack) -> None:
    """Make the run folder, or make sure that it holds the same run, and that no other process writes there."""
    if accelerator.is_main_process:
        now = run_record.inputs(
            "training", values.to_dict(c), processes=accelerator.num_processes, networks=surrogates.fingerprints(),
            faces_per_step=accelerator.num_processes * c.batch_size * c.accumulate,
            photos={name: files.sha256(name) for name in c.templates if Path(name).is_file()},
        )  # fmt: skip
        remedy, older = "give another --out, or the same to resume", partial(of_today, accelerator.num_processes)
        try:
            held.enter_context(run_record.claimed(out / "train.json", now, remedy, resumable(c), older))
        except OSError as error:
            raise GanMaskError(f"--out {out}: cannot write there ({error.strerror})") from error
    accelerator.wait_for_everyone()


def begin_with(generator: Generator, checkpoint: str) -> None:
    """Give the generator the weights of a checkpoint, which must be of the same architecture."""
    earlier = load_generator(checkpoint)
    before, now = values.to_dict(earlier.config), values.to_dict(generator.config)
    options = {field.name for field in fields(TrainConfig)}
    differing = [
        f"{f'--{name}' if name in options else name.replace('_', ' ')} {before[name]}, not {now[name]}"
        for name in now
        if name not in FREE and before[name] != now[name]
    ]
    if differing:
        raise GanMaskError(f"--start {checkpoint}: that generator has {'; '.join(differing)}; give the same")
    generator.net.load_state_dict(earlier.net.state_dict())


def clean_embeddings(
    embedder: Any, photos: PreparedSet | ShardSet, out: Path, accelerator: Accelerator, workers: int
) -> Tensor:
    """Embeddings (N, D) of the unmasked train split, computed once per run, by all processes, and kept beside it."""
    # Of these weights and these faces: --data may change, to a set's shards or to more people.
    weights = fingerprint(embedder.name, embedder)
    key = run_record.key("clean embeddings", weights, photos.fingerprint(), str(photos.split))
    path = out / f"clean-{files.safe_name(embedder.name)}-{len(photos)}-{key}.npy"
    absent = torch.tensor(int(run_record.embeddings(path, len(photos)) is None), device=accelerator.device)
    if accelerator.reduce(absent, "sum").item():  # one answer for all processes, before any of them writes
        shares = min(accelerator.num_processes, len(photos))
        parts = [path.with_name(f"{path.stem}.part-{k}-of-{shares}") for k in range(shares)]
        if (k := accelerator.process_index) < shares:
            share = range(k * len(photos) // shares, (k + 1) * len(photos) // shares)
            loader = DataLoader(photos, 64, sampler=share, num_workers=workers, worker_init_fn=ignore_signals)
            embed(embedder, loader, parts[k], accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            join(parts, path)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # also those of a run that was killed before, on other numbers of processes
        for part in path.parent.glob(f"{glob.escape(path.stem)}.part-*"):
            part.unlink()
    kept = run_record.embeddings(path, len(photos))
    if kept is None:
        raise GanMaskError(f"{path}: cannot be read; check the disk, and run the same command again")
    return torch.from_numpy(kept)


@torch.no_grad()
def embed(embedder: Any, loader: DataLoader[Any], path: Path, accelerator: Accelerator) -> None:
    """Write the embeddings of the loader's faces to `path`, a .npy file."""
    rows, faces = [], loader.dataset
    if accelerator.is_main_process:
        loader = cli.Progress(loader, desc=f"clean embeddings, {embedder.name}", mininterval=2)
    for batch in loader:
        with contract.naming(contract.sources(faces, batch["index"])):
            embedding = embedder(batch["face"].to(accelerator.device), batch["landmarks"].to(accelerator.device))
        rows.append(embedding.cpu())
    with files.replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, torch.cat(rows).numpy())


def join(parts: Sequence[Path], path: Path) -> None:
    """Several .npy files as one."""
    arrays = [np.load(part, mmap_mode="r", allow_pickle=False) for part in parts]
    rows, width = sum(map(len, arrays)), arrays[0].shape[1]
    with files.replacing(path) as temporary:
        whole = np.lib.format.open_memmap(temporary, "w+", arrays[0].dtype, (rows, width))
        np.concatenate(arrays, out=whole)
        whole.flush()


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


def end_loaders() -> None:
    """At exit: an error may leave loader processes, which ignore the signal that multiprocessing would send them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would complain of their end
    for process in multiprocessing.active_children():
        process.kill()


class stop_on_signals:
    """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint."""

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> stop_on_signals:
        return self

    def begin(self) -> None:
        """From here on; before the first step there is nothing to keep."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._notice)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: Any) -> None:
        self.signal = number

    def is_set(self, accelerator: Accelerator) -> bool:
        """The same answer on every process."""
        if accelerator.num_processes == 1:
            return self.signal != 0
        flag = torch.tensor(self.signal, device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item())

    def goodbye(self, step: int) -> int:
        print(f"stopped after step {step}, checkpoint written; run the same command again to resume", file=sys.stderr)
        return 128 + (self.signal or signal.SIGTERM)
