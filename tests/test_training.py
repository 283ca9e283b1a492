"""The training loop on tiny fake networks: seconds, on the CPU."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from fakes import FakeDetector, FakeEmbedder
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_mask import load_generator, losses, pretrained, templates, training
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.data.prepared import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.files import weights_digest
from gan_mask.generator import Generator
from gan_mask.landmarks import frame
from gan_mask.networks import GeneratorConfig
from gan_mask.pretrained import classifier
from gan_mask.pretrained.protocol import resize
from gan_mask.training import log, loop, state
from gan_mask.training.discriminator import make as make_discriminator
from gan_mask.training.health import STOP, Health, read
from gan_mask.training.options import TrainConfig
from gan_mask.training.validation import Validation, other_photos

TINY = (
    "--embedders fake --detectors fake --widths 8 16 --heads shape light residual --discriminator_width 8 "
    "--batch_size 4 --workers 0 --warmup 1 "
    "--templates face-001 plain-white --log_every 1 --validate_every 4 --save_every 2 --validation_faces 4 --r1_every 2"
).split()


def run(prepared: Path, out: Path, *options: str) -> None:
    training.main(["--data", str(prepared), "--out", str(out), *TINY, *options])


def weights(out: Path) -> dict[str, torch.Tensor]:
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "state.safetensors")


def weights_at_the_start(prepared: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    run(prepared, out, "--steps", "1", "--learning_rate", "1e-9", "--discriminator_learning_rate", "1e-9", *options)
    return weights(out)


def moves(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What training has added to each tensor of the networks; the running average is left out."""
    return {key: end[key] - start[key] for key in end if key.startswith(("net.", "discriminator."))}


def test_two_steps_make_a_loadable_generator_logs_and_a_preview(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "run", "--steps", "2")
    generator = load_generator(tmp_path / "run")
    face, landmarks = torch.rand(2, 3, 64, 64), torch.rand(2, 68, 2) * 60
    assert generator(face, landmarks).shape == face.shape
    assert generator.config.trained_against == ("fake", "fake")  # and by its weights, which a renamed copy keeps
    assert generator.config.trained_against_weights == (weights_digest(FakeEmbedder()), weights_digest(FakeDetector()))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["group"] for line in lines} == {"train", "val"}
    assert {"dodging", "undetected", "realism", "d_logistic", "fidelity"} <= set(lines[0])
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()
    assert "custom_scalars__config__" in tags["tensors"] and "options/text_summary" in tags["tensors"]
    charted = {tag for group in log.CHARTS.values() for _, names in group.values() for tag in names}
    unheard = {tag for tag in charted if not any(re.fullmatch(tag, known) for known in tags["scalars"])}
    assert unheard == {"train/perceptual"}  # which this training does without


@pytest.mark.parametrize(("threshold", "others"), [(-1.0, True), (2.0, False)])
def test_validation_compares_with_another_photo_that_is_accepted(prepared, threshold, others):
    """With the same photo a good recogniser knows everybody, and its dodging would stand at 0."""
    embedder, device = FakeEmbedder(), torch.device("cpu")
    c = TrainConfig(data=str(prepared), validation_faces=6)
    bank = templates.Bank(["face-001"], (72, 96))
    validation = Validation(c, Surrogates([embedder], [threshold], [FakeDetector()]), bank, device)
    own = embedder(validation.face, validation.landmarks)
    assert torch.allclose(validation.clean[0], own) is not others
    photos = PreparedSet(prepared, "val")
    for reference, same in zip(validation.clean[0], own, strict=True):
        distances = [
            (embedder(photos[i]["face"][None], photos[i]["landmarks"][None])[0] - reference).norm()
            for i in range(len(photos))
        ]
        nearest = int(torch.stack(distances).argmin())
        assert distances[nearest] < 1e-4
        assert others is not torch.allclose(reference, same)


def test_the_next_photo_of_the_same_person():
    people = np.array([3, 1, 3, 2, 1, 3])
    assert other_photos(people, np.array([0, 2, 5, 1, 3])).tolist() == [2, 5, 0, 4, 3]


def test_training_moves_every_network_and_lowers_the_attack_losses(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "run", "--steps", "30", "--realism", "0", "--fidelity", "0", "--residual_bound", "0.5")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    train = [line["dodging"] + line["undetected"] for line in lines if line["group"] == "train"]
    assert sum(train[-5:]) < 0.7 * sum(train[:5])
    moved = moves(weights_at_the_start(prepared, tmp_path / "start"), weights(tmp_path / "run"))
    assert {key.partition(".")[0] for key in moved} == {"net", "discriminator"}
    still = [key for key, move in moved.items() if move.abs().max() < 1e-4]  # weight decay alone: 1e-6
    assert not still


def test_the_generators_turn_leaves_the_discriminator_alone(fakes, prepared, tmp_path):
    """However much the generator cares about realism, the discriminator's own step is the same, bit for bit."""
    for name, realism in (("little", "0.1"), ("much", "100")):
        run(prepared, tmp_path / name, "--steps", "1", "--realism", realism)
    little, much = weights(tmp_path / "little"), weights(tmp_path / "much")
    same = {key: torch.equal(little[key], much[key]) for key in little}
    assert all(same[key] for key in same if key.startswith("discriminator."))
    assert not all(same[key] for key in same if key.startswith("net."))


def test_resuming_equals_an_uninterrupted_run_bit_for_bit(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "whole", "--steps", "6")

    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "scale_learning_rates", lambda o, c, s: die() if s == 5 else ORIGINAL(o, c, s))
        with pytest.raises(Killed):
            run(prepared, tmp_path / "cut", "--steps", "6")
    run(prepared, tmp_path / "cut", "--steps", "6")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


ORIGINAL = loop.scale_learning_rates


def test_fine_tuning_begins_with_the_checkpoint(fakes, prepared, tmp_path, capsys):
    run(prepared, tmp_path / "first", "--steps", "2")
    run(prepared, tmp_path / "tuned", "--steps", "1", "--start", str(tmp_path / "first"), "--learning_rate", "1e-9")
    first = load_generator(tmp_path / "first").state_dict()
    tuned = load_generator(tmp_path / "tuned").state_dict()
    assert all(torch.allclose(first[key], tuned[key], atol=1e-6) for key in first)
    start = (tmp_path / "first").rename(tmp_path / "away")  # what is resumed has its own weights
    run(prepared, tmp_path / "tuned", "--steps", "2", "--start", str(tmp_path / "first"), "--learning_rate", "1e-9")
    start.rename(tmp_path / "first")
    arguments = ["--data", str(prepared), "--out", str(tmp_path / "x"), *TINY, "--start", str(tmp_path / "first")]
    assert "--kernel 5, not 3" in error(capsys, *arguments, "--kernel", "3")
    within = ("--start", str(tmp_path / "first"), "--shape_bound", "0.04", "--learning_rate", "1e-9")
    run(prepared, tmp_path / "narrower", "--steps", "1", *within)
    narrower = load_generator(tmp_path / "narrower")
    assert narrower.config.shape_bound == 0.04
    assert all(torch.allclose(value, first[key], atol=1e-6) for key, value in narrower.state_dict().items())
    for other in ({"noise": 8}, {"texture_height": 36}):
        Generator(GeneratorConfig(widths=(8, 16), **other)).save_pretrained(tmp_path / "other")
        name, value = (*other.items(),)[0]
        message = error(capsys, *arguments[:-1], str(tmp_path / "other"))
        assert f"{name.replace('_', ' ')} {value}, not" in message
    assert "no checkpoint here" in error(capsys, *arguments[:-1], str(tmp_path / "nowhere"))
    assert not (tmp_path / "x").exists()


def test_a_run_killed_between_join_and_clean_up_leaves_nothing(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "run", "--steps", "1")
    (joined,) = (tmp_path / "run").glob("clean-*.npy")
    part = joined.with_name(f"{joined.stem}.part-0-of-1")
    part.write_bytes(joined.read_bytes())
    run(prepared, tmp_path / "run", "--steps", "2")
    assert joined.is_file() and not part.exists()


def test_a_compiled_run_resumes_without_the_compiler(fakes, prepared, tmp_path, monkeypatch):
    """accelerate launch --dynamo_backend; this one has all of torch.compile but the C++ compiler."""
    options = ["--r1_every", "1"]  # R1 differentiates twice
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
        run(prepared, tmp_path / "compiled", "--steps", "2", *options)
    run(prepared, tmp_path / "compiled", "--steps", "3", *options)
    run(prepared, tmp_path / "plain", "--steps", "3", *options)
    compiled, plain = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    assert compiled.keys() == plain.keys()
    start = weights_at_the_start(prepared, tmp_path / "start", *options)
    for network in ("net.", "discriminator."):
        ours, theirs = (
            torch.cat([move.flatten() for key, move in moves(start, end).items() if key.startswith(network)])
            for end in (compiled, plain)
        )
        # 1 for untrained weights. Adam magnifies the rounding of small gradients: 0.13 of the generator's is measured.
        assert (ours - theirs).norm() < 0.3 * theirs.norm()


def test_a_run_from_before_an_option_existed_resumes(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "run", "--steps", "2")
    path = tmp_path / "run" / "train.json"
    options = json.loads(path.read_text())
    del options["start"]
    path.write_text(json.dumps(options))
    run(prepared, tmp_path / "run", "--steps", "3")


def test_accumulated_micro_batches_equal_one_large_batch(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "large", "--steps", "2", "--batch_size", "8")
    run(prepared, tmp_path / "small", "--steps", "2", "--batch_size", "4", "--accumulate", "2")
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    for key in large:
        if key.startswith(("net.", "discriminator.")):
            assert torch.allclose(large[key], small[key], atol=2e-4), key


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(fakes, prepared, tmp_path, capsys):
    run(prepared, tmp_path / "run", "--steps", "4")
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    run(prepared, tmp_path / "run", "--steps", "6")
    captured = capsys.readouterr()
    assert "step-0000004" in captured.err and "checksum" in captured.err
    assert "resuming" in captured.out and "step-0000002" in captured.out


def test_old_checkpoints_are_removed(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "run", "--steps", "8", "--keep", "2")
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-0000006", "step-0000008"]


def test_old_checkpoints_that_a_killed_run_left_are_removed(fakes, prepared, tmp_path):
    run(prepared, tmp_path / "run", "--steps", "6", "--keep", "3")
    run(prepared, tmp_path / "run", "--steps", "6", "--keep", "2")
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-0000004", "step-0000006"]


def error(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        training.main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_errors_name_option_and_remedy(fakes, prepared, tmp_path, capsys):
    data, out = str(prepared), str(tmp_path / "run")
    assert "--data is missing" in error(capsys, "--out", out)
    assert "prepare.py" in error(capsys, "--data", str(tmp_path / "nowhere"), "--out", out)
    assert "arcfce" in error(capsys, "--data", data, "--out", out, "--embedders", "arcfce")
    assert "--steps" in error(capsys, "--data", data, "--out", out, "--steps", "many")
    config = tmp_path / "config.yaml"
    config.write_text("lerning_rate: 1\n")
    message = error(capsys, "--config", str(config))
    assert "lerning_rate" in message and "learning_rate" in message
    run(prepared, tmp_path / "other", "--steps", "1")
    assert "seed 0 -> 1" in error(capsys, "--data", data, "--out", str(tmp_path / "other"), *TINY, "--seed", "1")


def test_print_config_merges_defaults_file_and_command_line(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("steps: 7\nembedders: [dlib]\nfar: 0.01\n")
    with pytest.raises(SystemExit) as caught:
        training.main(["--config", str(tmp_path / "config.yaml"), "--steps", "9", "--print_config"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "steps: 9\n" in text and "far: 0.01\n" in text and "batch_size: 32\n" in text


def test_bfloat16_trains(fakes, prepared, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision per process
    try:
        run(prepared, tmp_path / "run", "--steps", "2", "--mixed_precision", "bf16")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "run").values())


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(fakes, prepared, tmp_path, capsys, monkeypatch):
    run(prepared, tmp_path / "run", "--steps", "2")
    write, full = state.write_tensors, OSError(28, "No space left on device")

    def fail(tensors, path):
        path.write_bytes(b"half of it")
        raise full

    monkeypatch.setattr(state, "write_tensors", fail)
    data, out = str(prepared), str(tmp_path / "run")
    message = error(capsys, "--data", data, "--out", out, *TINY, "--steps", "4")
    assert "No space left" in message and "step 4" in message and "run the same command again" in message
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000002"]
    monkeypatch.setattr(state, "write_tensors", write)
    run(prepared, tmp_path / "run", "--steps", "4")
    assert "step-0000002" in capsys.readouterr().out


def handlers():
    return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


def test_a_term_that_is_not_finite_is_named(fakes, prepared, tmp_path, capsys, monkeypatch):
    before = handlers()
    monkeypatch.setattr(losses, "total_variation", lambda x: x.sum((1, 2, 3)) * float("nan"))
    message = error(capsys, "--data", str(prepared), "--out", str(tmp_path / "run"), *TINY, "--steps", "2")
    assert "'smooth' is not finite" in message
    assert handlers() == before


def test_the_terminate_signal_ends_with_a_checkpoint(fakes, prepared, tmp_path, monkeypatch):
    before = handlers()

    def terminate(optimizers, c, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return ORIGINAL(optimizers, c, step)

    monkeypatch.setattr(loop, "scale_learning_rates", terminate)
    with pytest.raises(SystemExit) as caught:
        run(prepared, tmp_path / "run", "--steps", "50", "--save_every", "50")
    assert caught.value.code == 143
    assert handlers() == before  # a notebook's Ctrl-C is its own again
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000003"]


def test_a_checkpoint_has_no_path_of_this_machine_and_needs_no_photo(fakes, prepared, tmp_path, monkeypatch):
    texture = torch.rand(3, 72, 96, generator=torch.Generator().manual_seed(0))
    photo = tmp_path / "private" / "me.jpg"
    photo.parent.mkdir()
    photo.touch()
    monkeypatch.setattr(templates, "_from_photo", lambda path, modified, size: texture)
    network = tmp_path / "private" / "net.json"
    monkeypatch.setitem(pretrained.EMBEDDERS, "onnx:SIDECAR.json", lambda name: FakeEmbedder())
    options = ("--templates", str(photo), "--embedders", "fake", f"onnx:{network}")
    run(prepared, tmp_path / "run", "--steps", "2", *options)
    run(prepared, tmp_path / "run", "--steps", "3", *options)
    photo.unlink()
    monkeypatch.undo()
    generator = load_generator(tmp_path / "run")
    assert torch.equal(generator.template, texture)
    assert generator.config.trained_against == ("fake", "onnx:net.json", "fake")
    face = torch.rand(1, 3, 64, 64)
    landmarks = frame(64, 0.3)[None]
    assert torch.equal(generator(face, landmarks), generator(face, landmarks, texture[None]))
    for folder in ("generator", "checkpoints"):
        for file in (tmp_path / "run" / folder).rglob("*.*"):
            assert not file.is_file() or b"private" not in file.read_bytes()


# ------------------------------------------------------------------------------------------- what accelerate is told


def test_accelerate_that_accumulates_otherwise_is_refused(fakes, prepared, tmp_path, capsys, monkeypatch):
    """It would never have come to an optimiser's step."""
    arguments = ["--data", str(prepared), "--out", str(tmp_path / "run"), *TINY, "--steps", "2"]
    for told in ("4", "auto"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", told)
        message = error(capsys, *arguments)
        assert f"accumulate {told} micro-batches" in message and "--accumulate is 1" in message
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    run(prepared, tmp_path / "told", "--steps", "1", "--accumulate", "2", "--batch_size", "2")
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "ACCELERATE_USE_FSDP" in error(capsys, *arguments)


@pytest.fixture
def fresh():
    """accelerate keeps one precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_precision_that_accelerate_is_told_counts_unless_ours_is_given(fresh, monkeypatch):
    def precision(told: str, ours: str) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
        c, accelerator = loop.launched(TrainConfig(mixed_precision=ours))
        assert c.mixed_precision == accelerator.mixed_precision
        return c.mixed_precision

    assert [precision("bf16", ours) for ours in ("auto", "no", "bf16")] == ["bf16", "no", "bf16"]
    assert [precision("no", ours) for ours in ("auto", "bf16")] == ["no", "bf16"]
    with pytest.raises(GanMaskError, match="told 'fp8' .*expected no, fp16 or bf16"):
        precision("fp8", "auto")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert loop.launched(TrainConfig())[0].mixed_precision == "no"
    with pytest.raises(GanMaskError, match="--mixed_precision bf16: .*already been initialized"):
        loop.launched(TrainConfig(mixed_precision="bf16"))


def test_a_generator_that_no_gradient_reaches_is_noticed(capsys):
    terms, texture = {"d_logistic": torch.ones(4), "smooth": torch.ones(4)}, torch.rand(4, 3, 8, 8)
    watch, norms = Health(adversarial=True), [torch.zeros(()), torch.ones(())]
    with pytest.raises(GanMaskError, match="no gradient reaches the generator"):
        for _ in range(STOP):
            assert not watch.streaks["generator"] or not watch.good
            watch.check(read([{k: v.mean() for k, v in terms.items()}], norms, texture, texture))
    assert "warning: no gradient reaches the generator" in capsys.readouterr().err


def test_the_discriminator_begins_as_the_mask_classifier_and_tells_masks_at_once():
    """Its features are the classifier's own; batch norms are gone, so that no batch decides about a face."""
    made, original = make_discriminator(0), classifier.load()
    faces = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    small = (resize(faces, 128, 128) - 0.5) * 4
    assert torch.allclose(made.features(small), original.net.features(small), atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in made.modules())
    faces.requires_grad_()
    (gradient,) = torch.autograd.grad(made.train()(faces).sum(), faces, create_graph=True)
    gradient.square().sum().backward()  # R1
    assert all(p.requires_grad for p in made.parameters())
