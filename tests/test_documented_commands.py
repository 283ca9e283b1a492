"""Every command in the README and in docs/ works: none has an option that does not exist, most are run.

A command is run as it stands there, in a folder in which its placeholders (PREPARED, LFW160, ...) are names of tiny
files and sets; SMALL adds what keeps it short. The ONNX networks of configs/ are stood in for by tiny ones.
It is run in this process, so that torch is imported once; test_readme.py runs those of the README's table as processes.
A command of a program that stands in none of the tables below fails by its name: add the program to one of them.
"""

from __future__ import annotations

import argparse
import configparser
import functools
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from unittest.mock import create_autospec

import dlib
import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from conftest import REPOSITORY, embedded_photo
from PIL import Image
from test_pretrained import tiny_classifier

from gan_mask.training.options import TrainConfig

README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
DOCKERFILE = REPOSITORY / "Dockerfile"

# What our programs cannot do without; for commands that leave it out ("sample.py --show").
NEEDED = {
    "data_prep/prepare.py": "SRC DST",
    "gan_mask.shards": "PREPARED OUT",
    "train.py": "--data PREPARED --out RUN",
    "sample.py": "--faces PHOTOS --out MASKED",
    "gan_mask.app": "",
    "gan_mask.evaluation": "--data PREPARED --checkpoint CHECKPOINT --out report",
    "gan_mask.harden": "--data PREPARED --checkpoint CHECKPOINT --out HARD",
    "gan_mask.harden.table": "--data PREPARED --out TABLE",
    "gan_mask.alarm": "--data PREPARED --checkpoint CHECKPOINT --out alarm.json",
    "gan_mask.calibrate": "--data PREPARED --embedder onnx:MODEL.json",
    "gan_mask.provenance": "FILE",
    "benchmarks/run.py": "",
    "benchmarks/scale.py": "--data PREPARED",
}
# Not started here: they change our modules, and one needs a package that only a developer has. Their source is read.
FAULTS = ("tests/faults/campaign.py", "tests/faults/fuzz.py", "tests/faults/long_run.py")
# What keeps them short; the last value of an option counts. Those that are not here take minutes or thousands of faces
# and are parsed only.
SMALL = {
    "data_prep/prepare.py": "--size 64 --splits 0.5,0.25,0.25 --workers 1",
    "gan_mask.shards": "",
    "train.py": "--embedders dlib --perceptual 0 --mixed_precision no --discriminator_width 8 --steps 1 "
    "--batch_size 2 --workers 0 --validation_faces 2 --templates face-001",
    "sample.py": "--steps 1 --largest",
    "gan_mask.evaluation": "--probes 2 --steps 1 --changed-probes 1 --stored-thresholds --threshold-faces 2 "
    "--distractors 1 --templates face-001",
    "gan_mask.harden": "--rounds 1 --steps 1 --batch_size 4 --pool 2 --attack_steps 1 --workers 0 --templates face-001",
    "gan_mask.alarm": "--faces 3 --calibration_faces 4 --false_alarms 0.25 --templates face-001",
    "gan_mask.provenance": "",
}
# Left out when a command is run: they need AlexNet's weights, and photos named as in LFW.
LEFT_OUT = {"--naturalness": 0, "--pairs": 1}
# Placeholders that stand for something else than a file.
VALUES = {
    "NAME": "mf2m",
    "~/scikit_learn_data/lfw_home/lfw_funneled": "SRC",
    "RANK": "0",
    "GPUS": "2",
    "ADDRESS": "127.0.0.1",
    "FILE...": "FILE",
}
DLIB_PREDICTOR = dlib.shape_predictor
ATTACK_TOOLS = ("art", "foolbox", "torchattacks")  # of others, to be imported; not everybody has them
OTHERS = {
    "curl",
    "export",
    "hf",
    "helm",
    "kubectl",
    "ray",
    "sbatch",
    "srun",
}  # programs of others, shown without anything of ours


class Shown(NamedTuple):
    page: str
    text: str
    block: bool  # stands by itself, so that nothing may be left out but at an ellipsis

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"[:100]


def starts_a_command(words: list[str]) -> bool:
    launchers = {"python", "accelerate", "pip", "make", "tensorboard", "pytest", *OTHERS}
    return words[0] in launchers or words[0].startswith("gan-mask-") or (words[0] in NEEDED and len(words) > 1)


def commands_of(page: Path) -> Iterator[Shown]:
    """Lines of its sh blocks, `run` steps of its workflows, and the code between single backticks."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if command := line.split(" #")[0].strip():
                yield Shown(page.name, " ".join(command.split()), True)
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for job in yaml.safe_load(block)["jobs"].values():
            for step in job["steps"]:
                yield from (Shown(page.name, line, True) for line in step.get("run", "").splitlines())
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose):
        words = span.split()
        if words and starts_a_command(words) and words != ["accelerate", "launch"]:
            yield Shown(page.name, " ".join(words), False)


def commands_of_the_dockerfile() -> Iterator[Shown]:
    """What its comment starts in the container."""
    comment = " ".join(re.findall(r"^#(.*)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE))
    for command in re.findall(r"accelerate launch [^.]*\.py[^;]*?--out \S+", comment.replace("\\", "")):
        yield Shown(DOCKERFILE.name, " ".join(command.split()), True)


SHOWN = list(dict.fromkeys([*(c for page in PAGES for c in commands_of(page)), *commands_of_the_dockerfile()]))


def take_apart(command: Shown) -> tuple[str, list[str]]:
    """(program, its arguments); accelerate's own options are read by accelerate's own parser on the way."""
    words = [VALUES.get(word, word) for word in shlex.split(command.text)]
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables in front of a command
        words.pop(0)
    whole = command.block and not {"…", "..."} & {*words}
    words = [word for word in words if word not in ("…", "...", "--help", "--version")]
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        launch = launch_command_parser().parse_args(words[2:])
        if launch.config_file:
            assert (REPOSITORY / launch.config_file).is_file(), command
        program, arguments = launch.training_script, launch.training_script_args
    elif words[:2] == ["python", "-m"]:
        program, arguments = words[2], words[3:]
    elif words[0] == "python":
        program, arguments = words[1], words[2:]
    elif words[0].startswith("gan-mask-"):
        program, arguments = console_script(words[0]), words[1:]
    else:
        program, arguments = words[0], words[1:]
    if not whole and "--print_config" not in arguments:
        arguments = [*missing(program, arguments), *arguments]
    return program, arguments


def missing(program: str, arguments: list[str]) -> list[str]:
    """What the program needs and the text leaves out."""
    needed = shlex.split(NEEDED.get(program, ""))
    if needed and not needed[0].startswith("--"):
        return [] if arguments else needed
    pairs = zip(needed[::2], needed[1::2], strict=True)
    return [word for option, value in pairs if option not in arguments for word in (option, value)]


def console_script(name: str) -> str:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    scripts = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].split("\n") if line)
    module = scripts[name].partition(":")[0]
    as_file = {"data.prepare": "data_prep/prepare.py", "training": "train.py", "sampling": "sample.py"}
    return as_file.get(module.removeprefix("gan_mask."), module)


def start(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """As its __main__, in this process; the exit status."""
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    try:
        if program.endswith(".py"):
            monkeypatch.syspath_prepend(str((REPOSITORY / program).parent))
            runpy.run_path(str(REPOSITORY / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


class Parsed(Exception):
    pass


def parse(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The program's own parser, once it has taken the arguments; the program does not begin its work."""
    parsers: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: object) -> None:
        original(self, *given)  # type: ignore[call-overload]
        parsers.append(self)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            assert start(program, arguments, patch) == 0, f"{program} does not take {' '.join(arguments)}"
    return parsers[0]


def options_in_the_source(program: str) -> set[str]:
    return set(re.findall(r'"(--[a-z][\w-]*)"', (REPOSITORY / program).read_text(encoding="utf-8")))


@pytest.mark.parametrize("command", SHOWN, ids=str)
def test_it_takes_its_options(command: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    program, arguments = take_apart(command)
    if program in NEEDED:
        parse(program, arguments, monkeypatch)
    elif program in FAULTS:
        given = {word for word in arguments if word.startswith("--")}
        if program.endswith("long_run.py"):  # which hands the others on to train.py
            given -= {f"--{name}" for name in TrainConfig.__dataclass_fields__}
        assert given <= options_in_the_source(program), f"{program} does not take {given}"
    elif program == "-c":
        import sklearn.datasets

        monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", create_autospec(sklearn.datasets.fetch_lfw_people))
        exec(arguments[0], {})
    elif program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=REPOSITORY, check=True, capture_output=True)
    elif program == "tensorboard":
        from tensorboard import program as tensorboard

        tensorboard.TensorBoard().configure(["tensorboard", *arguments])
    elif program == "pytest":
        assert all((REPOSITORY / path).exists() for path in arguments)
    elif program == "pip":
        setup = configparser.ConfigParser()
        setup.read(REPOSITORY / "setup.cfg")
        for name, extra in re.findall(r"(gan_mask|\.)\[(\w+)\]", " ".join(arguments)):
            assert extra in setup["options.extras_require"], name
    else:
        assert program in OTHERS, f"{command.page}: nobody covers the command `{command.text}`"


def test_options_in_the_text_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import launch_command_parser

    parsers = [parse(program, shlex.split(needed), monkeypatch) for program, needed in NEEDED.items()]
    known = {name for parser in [*parsers, launch_command_parser()] for name in parser._option_string_actions}
    known = known.union(*map(options_in_the_source, FAULTS))
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for span in re.findall(r"(?<!`)`(--[^`]+)`(?!`)", text):
            for option in re.findall(r"--[a-zA-Z][\w-]*", span):
                assert option in known, f"{page.name}: no command has {option}"


@pytest.fixture(scope="session")
def stock(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the placeholders stand for, made once: photos, an archive, a prepared set, its shards, networks."""
    from gan_mask.data import PreparedSet, shards
    from gan_mask.evaluation.folders import save_probes

    folder = tmp_path_factory.mktemp("stock")
    for person in range(1, 7):
        for view in (1, 2):
            path = folder / "people" / f"id_{person:04d}" / f"view_{view}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(embedded_photo(f"id_{person:04d}/view_{view}"))
    shutil.make_archive(str(folder / "people"), "zip", folder / "people")
    (folder / "photos").mkdir()
    shutil.copy(folder / "people/id_0004/view_1.webp", folder / "photos/id_0004_view_1.webp")
    (folder / "prepared").symlink_to(prepared)
    make_clip(folder / "clip.mp4", folder / "people/id_0004/view_1.webp")
    shards.write(prepared, folder / "shards")
    test = PreparedSet(prepared, "test")
    save_probes(test, np.arange(len(test)), folder / "probes")
    detector = tiny_classifier(folder, 3)
    detector.rename(folder / "detector.json")
    points = [[4, 6], [11, 6], [8, 9], [5, 12], [10, 12]]
    embedder = {"kind": "embedder", "template": points, "thresholds": {"cosine": {"0.01": 0.99, "0.001": 0.999}}}
    sidecar = json.loads((folder / "detector.json").read_text())
    for key in ("output", "mask_class"):
        del sidecar[key]
    (folder / "embedder.json").write_text(json.dumps(sidecar | embedder))
    (folder / "IR152.json").write_text(json.dumps(sidecar | embedder | {"published": {"amtgan": "IR152"}}))
    return folder


def make_clip(path: Path, photo: Path) -> None:
    """Three frames of a photo."""
    av = pytest.importorskip("av", reason="needs the extra [video]")
    with Image.open(photo) as picture:
        frame = av.VideoFrame.from_image(picture.convert("RGB"))
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
        for time in range(3):
            frame.pts, frame.time_base = time, Fraction(1, 10)
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))


@functools.cache
def shape_predictor(path: str) -> object:
    """dlib's, read once: reading takes longer than many of the commands."""
    return DLIB_PREDICTOR(path)


@pytest.fixture
def desk(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout as the reader of the documentation has it, with every placeholder in it; the working directory."""
    monkeypatch.setattr("dlib.shape_predictor", shape_predictor)
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "sample.py", "data_prep", "benchmarks", "tests", "checkpoints"):
        Path(name).symlink_to(REPOSITORY / name)
    for name in ("", "accelerate", "networks"):
        Path("configs", name).mkdir()
        for path in (REPOSITORY / "configs" / name).glob("*.yaml"):
            Path("configs", name, path.name).symlink_to(path)
    stands_for = {
        "people": ["SRC"], "people.zip": ["lfw.zip"], "photos": ["PHOTOS", "demo/photos"],
        "prepared": ["PREPARED", "LFW160", "lfw160", "data/lfw", "faces/prepared"], "shards": ["OUT"],
        "photos/id_0004_view_1.webp": ["FILE", "photo.jpg"], "clip.mp4": ["clip.mp4"],
    }  # fmt: skip
    for thing, names in stands_for.items():
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).symlink_to(stock / thing)
    for name in ("PROBES", "ATTACKED"):  # these are written to
        shutil.copytree(stock / "probes", name)
    shutil.copy(stock / "IR152.json", "IR152.json")
    shutil.copy(stock / "tiny.onnx", "tiny.onnx")
    Path("CHECKPOINT").symlink_to(REPOSITORY / "checkpoints/synthfaces")
    embedders = ["MODEL.json", "EMBEDDER.json", "configs/networks/mobileface.json",
        "configs/networks/mobilefacenet_casia.json"]  # fmt: skip
    detectors = ["DETECTOR.json", "HARD/hardened.json", "models/our_detector.json",
        "configs/networks/aizoo_ssd_260.json"]  # fmt: skip
    for kind, names in (("embedder", embedders), ("detector", detectors)):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(stock / f"{kind}.json", name)
            shutil.copy(stock / "tiny.onnx", Path(name).parent)
    return tmp_path


def is_run(command: Shown) -> bool:
    """Whether its program is quick, and it says what to start it with. The README's are run by test_readme.py.

    Those for a cluster are left to test_engines.py.
    """
    words = command.text.split()
    if "--engine" in words:
        return False
    program = next((word for word in words if word in NEEDED), "")
    return (
        program in SMALL and words[-1] not in (program, "--help") and command.page not in (README.name, DOCKERFILE.name)
    )


def output_of(program: str, arguments: list[str]) -> Path | None:
    if program in ("data_prep/prepare.py", "gan_mask.shards"):
        return Path(arguments[1])
    return Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None


@pytest.mark.slow
@pytest.mark.parametrize("command", filter(is_run, SHOWN), ids=str)
def test_it_runs(command: Shown, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, arguments = take_apart(command)
    for option, values in LEFT_OUT.items():
        if option in arguments:
            at = arguments.index(option)
            del arguments[at : at + 1 + values]
    out = output_of(program, arguments)
    if out and out.is_symlink():  # a placeholder that stands for an input elsewhere, such as OUT
        out.unlink()
    elif out and out.is_dir():
        shutil.rmtree(out)
    AcceleratorState._reset_state(reset_partial_state=True)
    status = start(program, [*arguments, *shlex.split(SMALL[program])], monkeypatch)
    # A gate that does not hold is a result, and so is a photo that does not carry our mark.
    assert status == 0 or (status == 1 and ("--require" in arguments or program == "gan_mask.provenance"))
    assert out is None or out.is_file() or any(out.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")], ids=lambda p: p.name
)
def test_its_python_runs_as_it_stands(page: Path, desk: Path, prepared: Path) -> None:
    from gan_mask.data import PreparedSet

    first = PreparedSet(prepared, "test")[0]
    names = {"faces": first["face"][None], "landmarks": first["landmarks"][None]}  # and what blocks above defined
    absent = [tool for tool in ATTACK_TOOLS if importlib.util.find_spec(tool) is None]
    left_out = 0
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if any(re.search(rf"^(import|from) {tool}\b", block, re.MULTILINE) for tool in absent):
            left_out += 1
            continue
        exec(block, names)
        if page == README:
            assert names["masked"].image.dtype == "uint8" and len(names["masked"].faces) == 1
    if left_out:
        pytest.skip(f"all but {left_out} examples ran; those need {', '.join(absent)} (docs/dependencies.md)")
