"""What can go wrong inside a training, and what it says then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import TINY, error, run

from gan_mask import files, losses, networks
from gan_mask.errors import GanMaskError
from gan_mask.training import health
from gan_mask.training import step as training_step

STEPS = ("--steps", "120", "--validate_every", "200", "--save_every", "5", "--r1_every", "200")


def checkpoints(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").iterdir())


def steps_until(capsys: Any, prepared: Path, out: Path, *options: str) -> tuple[str, int]:
    """The complaint, and the last step that was logged."""
    complaint = error(capsys, "--data", str(prepared), "--out", str(out), *TINY, *STEPS, *options)
    return complaint, json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"]


def figures(terms: dict[str, torch.Tensor], texture: torch.Tensor) -> health.Figures:
    """Of a step with these losses, gradients of norm 1, and textures like their templates."""
    return health.read([{k: v.mean() for k, v in terms.items()}], [torch.ones(()), torch.ones(())], texture, texture)


def after(step: int, original: Callable[..., Any], changed: Callable[..., Any]) -> Callable[..., Any]:
    """`original` for the first `step` calls, then `changed`."""
    calls = [0]

    def switched(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return (original if calls[0] <= step else changed)(*args, **kwargs)

    return switched


# ------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "term, value",
    [("total_variation", "nan"), ("squared_distance", "inf"), ("g_nonsaturating", "inf"), ("d_logistic", "nan")],
)
def test_a_loss_that_is_not_finite_is_named_at_once(term, value, fakes, prepared, tmp_path, capsys, monkeypatch):
    name = {"total_variation": "smooth", "squared_distance": "fidelity", "g_nonsaturating": "realism"}.get(term, term)
    original = getattr(losses, term)
    monkeypatch.setattr(losses, term, after(3, original, lambda *a: original(*a) * float(value)))
    complaint, step = steps_until(capsys, prepared, tmp_path / "run")
    assert f"'{name}' is not finite" in complaint and step == 3
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_gradient_that_is_not_finite_is_traced_to_its_term(fakes, prepared, tmp_path, capsys, monkeypatch):
    """The value is fine, its derivative is not: sqrt at 0."""
    original = losses.total_variation
    monkeypatch.setattr(
        losses, "total_variation", after(3, original, lambda x: original(x) + (x * 0).sum((1, 2, 3)).sqrt())
    )
    complaint, step = steps_until(capsys, prepared, tmp_path / "run", "--save_every", "2")
    assert "the gradient of the loss term 'smooth' is not finite" in complaint and step == 3
    saved = load_file(tmp_path / "run/checkpoints/step-0000002/state.safetensors")
    assert all(torch.isfinite(v).all() for v in saved.values())


def test_a_dead_discriminator_ends_the_run_within_100_steps(fakes, prepared, tmp_path, capsys, monkeypatch):
    forward = networks.Discriminator.forward
    dead = lambda self, x: forward(self, x) * 0  # noqa: E731
    monkeypatch.setattr(networks.Discriminator, "forward", after(20, forward, dead))
    complaint, step = steps_until(capsys, prepared, tmp_path / "run")
    assert "the discriminator is dead: 'd_logistic'" in complaint and step < 10 + 100
    assert int(checkpoints(tmp_path / "run")[-1].removeprefix("step-")) <= step - health.STOP


def test_a_saturated_discriminator_is_noticed_only_where_it_counts():
    terms = {"d_logistic": torch.full((4,), 0.001), "smooth": torch.ones(4)}
    texture = torch.rand(4, 3, 8, 8)
    watch = health.Health(adversarial=False)
    for _ in range(3 * health.STOP):
        watch.check(figures(terms, texture))
    watch = health.Health(adversarial=True)
    with pytest.raises(GanMaskError, match="d_logistic"):
        for _ in range(health.STOP):
            watch.check(figures(terms, texture))


def test_a_flat_texture_ends_the_run_within_100_steps(fakes, prepared, tmp_path, capsys, monkeypatch):
    """Total variation without its reference flattens the texture, which is what the sign is for."""
    original = training_step.mask

    def flat(*args: Any) -> training_step.Masked:
        masked = original(*args)
        return masked._replace(texture=masked.texture * 0 + masked.texture.mean((2, 3), keepdim=True))

    monkeypatch.setattr(training_step, "mask", after(5, original, flat))
    options = ("--templates", "face-001", "face-002", "--smooth", "1000")
    complaint, step = steps_until(capsys, prepared, tmp_path / "run", *options)
    assert "textures have collapsed" in complaint and "largest loss term is 'smooth'" in complaint and step <= 5 + 100
    assert checkpoints(tmp_path / "run") == ["step-0000005"]


def test_plain_templates_are_flat_by_themselves():
    watch = health.Health(adversarial=True)
    plain = torch.full((4, 3, 8, 8), 0.5)
    for _ in range(2 * health.STOP):
        watch.check(figures({"d_logistic": torch.ones(4), "smooth": torch.ones(4)}, plain))
    assert watch.good


def test_a_sign_that_passes_is_forgotten():
    watch, good = health.Health(adversarial=True), torch.rand(4, 3, 8, 8)
    for _ in range(4):
        for loss in [0.001] * (health.STOP - 1) + [1.0]:
            watch.check(figures({"d_logistic": torch.full((4,), loss), "smooth": torch.ones(4)}, good))
    assert watch.good


# ------------------------------------------------------------------------------------------- fp16


class ScaledAccelerator:
    """What accelerate does under fp16 on a GPU, on the CPU: its own optimiser wrapper around torch's own scaler."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        from accelerate.optimizer import AcceleratedOptimizer

        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.optimizers = [
            AcceleratedOptimizer(torch.optim.AdamW(m.parameters(), 0.01), device_placement=False, scaler=self.scaler)
            for m in modules
        ]

    def unscale_gradients(self, optimizer: Any) -> None:
        self.scaler.unscale_(optimizer.optimizer)


@pytest.mark.parametrize("overflowing", [0, 1])
def test_fp16_overflow_of_one_network_leaves_out_only_its_step(overflowing: int) -> None:
    import accelerate

    accelerate.state.PartialState(cpu=True)
    accelerate.state.AcceleratorState(cpu=True)
    torch.manual_seed(0)
    modules = [torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)]
    accelerator = ScaledAccelerator(modules)
    for step in range(6):
        before = [[p.clone() for p in m.parameters()] for m in modules]
        for i, module in enumerate(modules):
            loss = module(torch.ones(2, 3)).square().mean() * (float("inf") if step == 2 and i == overflowing else 1)
            accelerator.scaler.scale(loss).backward()
        scale = accelerator.scaler.get_scale()
        health.clip(accelerator, modules, accelerator.optimizers, (1.0, 10.0))
        health.update(accelerator, accelerator.optimizers)
        for i, module in enumerate(modules):
            moved = any(not torch.equal(a, b) for a, b in zip(before[i], module.parameters(), strict=True))
            assert moved == (step != 2 or i != overflowing)
            assert all(torch.isfinite(p).all() for p in module.parameters())
        assert accelerator.scaler.get_scale() == scale / (2 if step == 2 else 1)


def test_fp16_that_always_overflows_ends_the_run() -> None:
    modules: list[torch.nn.Module] = [torch.nn.Linear(3, 1)]
    accelerator = ScaledAccelerator(modules)
    with pytest.raises(GanMaskError, match="every gradient overflows"):
        for _ in range(100):
            accelerator.scaler.scale(modules[0](torch.ones(2, 3)).mean() * float("inf")).backward()
            health.clip(accelerator, modules, accelerator.optimizers, (1.0,))
            health.update(accelerator, accelerator.optimizers)


# ------------------------------------------------------------------------------------------- GPU memory


def test_too_little_gpu_memory_is_answered_with_what_fits(fakes, prepared, tmp_path, capsys, monkeypatch):
    original, tried = training_step.mask, []

    def small(batch: training_step.Batch, *args: Any) -> training_step.Masked:
        tried.append(len(batch.faces))
        if len(batch.faces) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(batch, *args)

    data, out = str(prepared), str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "mask", small)
        complaint = error(capsys, "--data", data, "--out", out, *TINY, "--steps", "2", "--batch_size", "8")
        assert "does not hold --batch_size 8; 2 fits (tried)" in complaint and tried == [8, 4, 2]
        assert "--batch_size 2 --accumulate 4" in complaint
        run(prepared, tmp_path / "run", "--steps", "2", "--batch_size", "2", "--accumulate", "4")  # the same folder
    run(prepared, tmp_path / "whole", "--steps", "2", "--batch_size", "8")
    a, b = (load_file(tmp_path / n / "checkpoints/step-0000002/state.safetensors") for n in ("run", "whole"))
    assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a if k.startswith("ema."))
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "mask", lambda *a: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError()))
        complaint = error(capsys, "--data", data, "--out", str(tmp_path / "none"), *TINY, "--steps", "2")
    assert "not even a single face fits" in complaint


# ------------------------------------------------------------------------------------------- damaged state


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> Path:
    from fakes import FakeDetector, FakeEmbedder

    from gan_mask import pretrained

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pretrained.EMBEDDERS, "fake", lambda name: FakeEmbedder())  # type: ignore[arg-type,return-value]
        patch.setitem(pretrained.DETECTORS, "fake", lambda name: FakeDetector())  # type: ignore[arg-type,return-value]
        out = tmp_path_factory.mktemp("trained") / "run"
        run(prepared, out, "--steps", "4")
    return out


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_of_a_checkpoint_is_noticed(place, fakes, prepared, copy, capsys):
    flip(copy / "checkpoints/step-0000004/state.safetensors", place)
    run(prepared, copy, "--steps", "4")
    captured = capsys.readouterr()
    assert (
        "step-0000004/state.safetensors: checksum differs" in captured.err
        and "trying the checkpoint before" in captured.err
    )
    assert "resuming" in captured.out and "step-0000002" in captured.out


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"step": "x", "sha256": 3}', "\ufeff\x00"])
def test_damaged_json_of_a_checkpoint_is_noticed(text, fakes, prepared, copy, capsys):
    (copy / "checkpoints/step-0000004/state.json").write_text(text)
    run(prepared, copy, "--steps", "4")
    assert "step-0000002" in capsys.readouterr().out


def test_nothing_starts_over_while_damaged_checkpoints_lie_there(fakes, prepared, copy, capsys):
    for state in copy.glob("checkpoints/*/state.safetensors"):
        flip(state, 0.5)
    complaint = error(capsys, "--data", str(prepared), "--out", str(copy), *TINY, "--steps", "4")
    assert "no checkpoint in it is usable" in complaint and len(checkpoints(copy)) == 2


def test_weights_of_other_networks_are_named_by_key(fakes, prepared, copy, capsys):
    for folder in (copy / "checkpoints").iterdir():
        tensors = load_file(folder / "state.safetensors")
        tensors["net.heads.weight"] = tensors["net.heads.weight"][:1].clone()
        tensors["net.stranger"] = torch.zeros(1)
        save_file(tensors, folder / "state.safetensors")
        meta = json.loads((folder / "state.json").read_text())
        files.write_json(folder / "state.json", meta | {"sha256": files.sha256(folder / "state.safetensors")})
    complaint = error(capsys, "--data", str(prepared), "--out", str(copy), *TINY, "--steps", "4")
    assert "no checkpoint" in complaint and "net.heads.weight, net.stranger" in complaint


def test_damaged_clean_embeddings_are_computed_again(fakes, prepared, copy, capsys):
    (path,) = copy.glob("clean-*.npy")
    good = np.load(path)
    for data in (path.read_bytes()[:-9], b"", b"\x80\x04."):
        path.write_bytes(data)
        run(prepared, copy, "--steps", "4")
        assert f"{path.name}: damaged" in capsys.readouterr().err
        assert np.array_equal(np.load(path), good)


def test_a_damaged_prepared_set_is_named(fakes, prepared, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(prepared, tmp_path / "set")
    crops = bytearray((copy / "crops.bin").read_bytes())
    crops[: len(crops) // 2] = bytes(len(crops) // 2)
    (copy / "crops.bin").write_bytes(crops)
    complaint = error(capsys, "--data", str(copy), "--out", str(tmp_path / "run"), *TINY, "--steps", "2")
    assert "crops.bin: face" in complaint and "prepare the set again" in complaint
