"""Every command that the README names works as it stands there, and takes the options it is shown with.

The Python example is executed in test_package.py. `make demo` as a whole takes minutes: its commands are run one by one
on a few people and for two steps, and so is each command of the map.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, embedded_photo

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROGRAMS = {
    "data_prep/prepare.py": ["data_prep/prepare.py"], "train.py": ["train.py"], "sample.py": ["sample.py"],
    "gan_mask.app": ["-m", "gan_mask.app"],
    "gan_mask.evaluation": ["-m", "gan_mask.evaluation"], "gan_mask.harden": ["-m", "gan_mask.harden"],
    "gan_mask.calibrate": ["-m", "gan_mask.calibrate"], "gan_mask.shards": ["-m", "gan_mask.shards"],
}  # fmt: skip


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


def command_map() -> list[tuple[str, str]]:
    """(program, the row that shows it) of the table under "The commands"."""
    table = README.split("## The commands")[1].split("\n| where")[0]
    rows = re.findall(r"^\| `(.*)$", table, re.MULTILINE)
    return [(next(p for p in PROGRAMS if p in row.split("`")[0]), row) for row in rows]


@pytest.mark.parametrize("line", shell_lines())
def test_make_targets(line: str) -> None:
    program, target = line.split()[:2]
    assert program == "make"
    done = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("program", "row"), command_map(), ids=lambda value: value[:20])
def test_commands_take_the_options_they_are_shown_with(program: str, row: str) -> None:
    command = [sys.executable, *PROGRAMS[program], "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for option in set(re.findall(r"--[a-z][a-z_-]+", row)):
        assert option in done.stdout, (program, option)


# What stands for the capital letters of each command, in their order, and what keeps it short.
SMALL = {
    "data_prep/prepare.py": ("photos set", "--size 96 --splits 0.2,0.5,0.3"),
    "gan_mask.shards": ("set shards", ""),
    "train.py": (
        f"{REPOSITORY}/configs/quickstart.yaml set run",
        "--steps 2 --batch_size 2 --workers 0 --validation_faces 2 --validate_every 2 --save_every 2 --log_every 1",
    ),
    "sample.py": ("photos masked", "--largest --checkpoint run"),
    "gan_mask.evaluation": ("set run report", "--probes 2 --stored-thresholds"),
    "gan_mask.harden": (
        "set run hardened",
        "--against generator --rounds 1 --steps 2 --batch_size 4 --pool 4 --workers 0",
    ),
}
MADE = {
    "data_prep/prepare.py": "set/meta.json", "gan_mask.shards": "shards/shards.json",
    "train.py": "run/generator/model.safetensors",
    "sample.py": "masked/overview.png", "gan_mask.evaluation": "report/index.html",
    "gan_mask.harden": "hardened/hardened.json",
}  # fmt: skip


@pytest.mark.slow
def test_the_commands_run_as_they_stand_there(tmp_path: Path) -> None:
    for person in range(1, 13):
        folder = tmp_path / "photos" / f"id_{person:04d}"
        folder.mkdir(parents=True)
        for view in (1, 2):
            (folder / f"{view}.webp").write_bytes(embedded_photo(f"id_{person:04d}/view_{view}"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for program, row in command_map():
        if program == "gan_mask.app":  # goes on until it is interrupted; test_app.py visits it
            continue
        given, more = SMALL[program]
        shown = row.split("`")[0]
        for name in given.split():
            shown = re.sub(r"\b[A-Z]{3,}\b", name, shown, count=1)
        command = [str(REPOSITORY / word) if word.endswith(".py") else word for word in f"{shown} {more}".split()]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{shown}: {done.stdout}{done.stderr}"
        assert (tmp_path / MADE[program]).is_file(), shown


@pytest.mark.slow
def test_the_demo_runs_step_by_step(tmp_path: Path) -> None:
    """The commands of `make demo`, on a few of the embedded people and for two training steps."""
    from gan_mask.data.prepare import Settings, split
    from gan_mask.templates import TEMPLATE_PEOPLE

    shares, few = Settings(splits=(0.65, 0.1, 0.25)), {"train": 4, "val": 2, "test": 3}
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        for person in (f"id_{i:04d}" for i in range(1, 201)):
            part = split(person, shares)
            if few[part] and person not in TEMPLATE_PEOPLE:
                few[part] -= 1
                for view in (1, 2):
                    archive.writestr(f"synthfaces/{person}/view_{view}.webp", embedded_photo(f"{person}/view_{view}"))
    told = subprocess.run(
        ["make", "-n", "demo", f"VENV={sys.prefix}", f"DEMO={tmp_path}/demo"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = told.stdout.replace("\\\n", " ").splitlines()
    steps = [line for line in lines if line.startswith(f"{sys.prefix}/bin/") and "/pip " not in line]
    assert len(steps) == 5
    more = {
        "train.py": SMALL["train.py"][1], "gan_mask.evaluation": SMALL["gan_mask.evaluation"][1],
    }  # fmt: skip
    for step in steps:
        command = step.replace(" synthetic ", f" {tmp_path / 'few.zip'} ").split()
        command += next((options for name, options in more.items() if name in step), "").split()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    assert (tmp_path / "demo" / "masked" / "overview.png").is_file()
    assert "joint success" in done.stdout  # the demo ends with the rates


def test_all_commands_are_in_the_map() -> None:
    assert {program for program, _ in command_map()} >= PROGRAMS.keys() - {"gan_mask.calibrate"}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README):
        if not target.startswith("http"):
            assert (REPOSITORY / " ".join(target.split())).exists(), target


def test_the_templates_it_names_are_shipped() -> None:
    from gan_mask import templates

    line = next(part for part in README.split("- **") if part.startswith("Template."))
    for name in ("face-007", "plain-blue", "cloth-checks"):
        assert name in line and name in templates.names()
