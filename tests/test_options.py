"""What people type after a command: ranges, spellings, YAML; all of it answered before any work."""

from __future__ import annotations

import dataclasses
import math
import typing
from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPOSITORY, parser_of, status

from gan_mask import EvaluationConfig, SampleConfig, attacks, cli, evaluate, pretrained, sample, training
from gan_mask.cli.methods import parse_with_attack
from gan_mask.data.prepare import PrepareConfig, prepare
from gan_mask.errors import GanMaskError
from gan_mask.harden import alarm, table
from gan_mask.harden import options as harden_options
from gan_mask.networks import GeneratorConfig
from gan_mask.training.loop import train
from gan_mask.training.options import TrainConfig

CASES = Path(__file__).parent / "cases"
DATACLASSES = (
    TrainConfig, harden_options.HardenConfig, table.TableConfig, alarm.AlarmConfig, attacks.Options,
    GeneratorConfig, PrepareConfig, SampleConfig, EvaluationConfig,
)  # fmt: skip
FOLDERS = {
    "training": "--data X --out Y", "harden": "--data X --out Y --against dm", "harden.table": "--data X --out Y",
    "alarm": "--data X --out Y --against dm", "evaluation": "--data X --out Y --methods dm",
    "sampling": "--faces X --out Y", "prepare": "X Y", "shards": "X Y", "demo_photos": "X Y",
    "train_mask_classifier": "--data X --real-masks Z --out Y",
}  # fmt: skip
WRONG = [
    ("training", "--learning_rate", "-1"), ("training", "--learning_rate", "nan"), ("training", "--seed", "-1"),
    ("training", "--seed", "4294967296"), ("training", "--widths", "33"), ("training", "--widths", "1e9"),
    ("training", "--ema", "1.5"), ("training", "--far", "2"), ("training", "--workers", "-1"),
    ("training", "--warmup", "-5"), ("training", "--clip", "0"), ("training", "--kernel", "4"),
    ("training", "--softness", "0.7"), ("training", "--dodging", "-1"), ("training", "--fidelity", "inf"),
    ("training", "--diversity", "-1"), ("training", "--discriminator_width", "-1"), ("training", "--steps", "0"),
    ("training", "--steps", "1.5"), ("training", "--steps", "1e400"), ("training", "--validation_faces", "1"),
    ("training", "--mixed_precision", "fp8"), ("training", "--embedders", ""),
    ("harden", "--learning_rate", "-1"), ("harden", "--seed", "-1"), ("harden", "--far", "0"),
    ("harden", "--steps", "0"), ("harden", "--generator_steps", "-1"), ("harden", "--own_templates", "1.1"),
    ("harden.table", "--probes", "0"), ("harden.table", "--threshold_faces", "-3"),
    ("harden.table", "--crops", "maybe"),
    ("alarm", "--faces", "-2"), ("alarm", "--calibration_faces", "0"), ("alarm", "--false_alarms", "1"),
    ("evaluation", "--seed", "-1"), ("evaluation", "--far", "1"), ("evaluation", "--fars", "nan"),
    ("evaluation", "--probes", "0"), ("evaluation", "--changed-probes", "-1"), ("evaluation", "--momentum", "1"),
    ("evaluation", "--step-size", "-0.1"), ("evaluation", "--surrogates", ""),
    ("sampling", "--min-score", "90"), ("sampling", "--seed", "-1"), ("sampling", "--batch-size", "0"),
    ("sampling", "--filter-rate", "inf"), ("sampling", "--kernel", "2"), ("sampling", "--patience", "-1"),
    ("sampling", "--embedders", ""),
    ("prepare", "--size", "8"), ("prepare", "--seed", "-1"), ("prepare", "--min-score", "90"),
    ("prepare", "--quality", "0"), ("prepare", "--splits", "a,b"), ("prepare", "--workers", "0"),
    ("prepare", "--margin", "nan"),
    ("shards", "--faces-per-shard", "0"), ("demo_photos", "--limit", "-1"),
    ("train_mask_classifier", "--learning-rate", "0"), ("train_mask_classifier", "--batch-size", "-8"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "option", "value"), WRONG)
def test_a_wrong_value_is_one_line_that_names_option_value_and_range(module, option, value, monkeypatch, capsys):
    monkeypatch.syspath_prepend(REPOSITORY / "data_prep")
    script = module in ("demo_photos", "train_mask_classifier")
    main = import_module(module if script else f"gan_mask.{module}").main
    argv = [*FOLDERS[module].split(), option, value]
    monkeypatch.setattr("sys.argv", ["command", *argv])
    assert status((lambda _: main()) if script else main, argv) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and option in message and "expected" in message and repr(value) in message
    assert not any(word in message.replace(option, "") for word in ("_positive", "_fractions", "Config", "Options"))


@pytest.mark.parametrize("cls", DATACLASSES)
def test_every_number_has_a_range(cls):
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = kinds[field.name]
        kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        if kind in (int, float) and not (cls is attacks.Options and field.name in ("softness", "seed")):
            within = field.metadata.get("within")
            assert within is not None, f"{cls.__name__}.{field.name}"
            default = field.default if isinstance(field.default, tuple) else (field.default,)
            assert all(number in within for number in default)


@pytest.mark.parametrize("module", sorted(FOLDERS))
def test_no_number_is_taken_without_a_range(module, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "data_prep")
    main = import_module(module if module in ("demo_photos", "train_mask_classifier") else f"gan_mask.{module}").main
    parser = parser_of(main, monkeypatch)
    assert isinstance(parser, cli.Parser)
    assert not [a.dest for a in parser._actions if a.type in (int, float)]


def test_options_made_in_python_are_checked_too(tmp_path):
    with pytest.raises(GanMaskError, match="^learning_rate: expected a number above 0 .*, got -1"):
        train(TrainConfig(data="X", out=str(tmp_path / "out"), learning_rate=-1))
    with pytest.raises(GanMaskError, match="^step_size: expected a number from 0 to 1, got 2"):
        attacks.Options(step_size=2)
    with pytest.raises(GanMaskError, match="^min_score: expected a number from 0 to 1, got nan"):
        prepare(PrepareConfig(src="synthetic", dst=str(tmp_path / "out"), min_score=math.nan))
    with pytest.raises(GanMaskError, match="^min_score: expected a number from 0 to 1, got 90"):
        sample(SampleConfig(faces="X", out=str(tmp_path / "out"), min_score=90))
    with pytest.raises(GanMaskError, match="^faces is missing: folder of photos"):
        sample(SampleConfig(out=str(tmp_path / "out")))
    with pytest.raises(GanMaskError, match="^far: expected a number above 0 and below 1, got 1"):
        evaluate(EvaluationConfig(data="X", out=str(tmp_path / "out"), far=1))
    with pytest.raises(GanMaskError, match="^method: expected one of plain, dm, .*, got 'mf3m'"):
        sample(SampleConfig(faces="X", out=str(tmp_path / "out"), method="mf3m"))
    with pytest.raises(GanMaskError, match="^attack.seed: it is the run's own"):
        attacks.Options(seed=3).within(0, "paper", 0.03)
    assert not (tmp_path / "out").exists()


def test_widths_that_the_texture_does_not_divide_by_are_refused_before_the_data(tmp_path, capsys):
    out = tmp_path / "out"
    assert status(training.main, ["--data", "nowhere", "--out", str(out), "--widths", "8", "8", "8", "8"]) == 2
    assert "texture 72x96 must be divisible by 16" in capsys.readouterr().err


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert status(training.main, [*argv, "--print_config"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["--batch_size", "--batch-size"])
def test_underscores_and_dashes_are_one_option_everywhere(spelling, capsys):
    assert "batch_size: 5\n" in printed(capsys, spelling, "5")
    assert "batch_size: 6\n" in printed(capsys, f"{spelling}=6")
    config = parse_with_attack(SampleConfig, ["--faces", "X", "--out", "Y", spelling, "7"], "sample.py", None)
    assert config.batch_size == 7
    # A value keeps its dashes and underscores.
    assert "out: my-run_1\n" in printed(capsys, "--out", "my-run_1") and "out: a_b-c\n" in printed(
        capsys, "--out=a_b-c"
    )


def test_yaml_words_and_numbers_stay_what_they_are_written_as(tmp_path, capsys):
    assert "mixed_precision: 'no'\n" in printed(capsys, "--config", str(CASES / "15_mixed_precision.yaml"))
    path = tmp_path / "options.yaml"
    path.write_text(
        "data: 2024-01-01\nout: 010\ntemplates: [on, 1_000]\nlearning-rate: 1e-4\nsteps: 1e3\nembedders: dlib\n"
    )
    text = printed(capsys, "--config", str(path))
    assert "data: '2024-01-01'\nout: '010'\nsteps: 1000\n" in text
    assert "templates:\n- 'on'\n- '1_000'\n" in text and "learning_rate: 0.0001\n" in text
    path.write_text(text)
    assert printed(capsys, "--config", str(path)) == text  # what is printed can be given


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("seed: -1", "--seed: expected a whole number from 0 to 4294967295, got '-1'"),
        ("ema: .nan", "--ema: expected"), ("widths: [8, [8]]", "--widths: expected"), ("widths: []", "widths"),
        ("steps: {a: 1}", "--steps: expected"),
        ("mixed_precision: off", "expected one of auto, no, fp16, bf16, got 'off'"),
    ],
)  # fmt: skip
def test_yaml_is_checked_like_the_command_line(line, complaint, tmp_path, capsys):
    path = tmp_path / "options.yaml"
    path.write_text(line + "\n")
    assert status(training.main, ["--config", str(path), "--data", "X", "--out", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_booleans_of_yaml(tmp_path):
    path = tmp_path / "options.yaml"
    for word, value in (("yes", True), ("on", True), ("true", True), ("no", False), ("Off", False)):
        path.write_text(f"crops: {word}\n")
        argv = ["--data", "X", "--out", "Y", "--config", str(path)]
        assert cli.parse(table.TableConfig, argv, "").crops is value


@pytest.mark.parametrize("load", [pretrained.load_embedder, pretrained.load_detector])
@pytest.mark.parametrize("name", ["onnx:folder/model.onnx", "folder/model.onnx", "onnx:folder/MODEL.ONNX"])
def test_an_onnx_file_in_place_of_its_sidecar_is_told(load, name):
    with pytest.raises(GanMaskError, match="sidecar.*such as onnx:folder/(model|MODEL).json.*keys are described in"):
        load(name)
