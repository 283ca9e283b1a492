"""Every command that the README names exists and takes the options it is shown with; its links lead somewhere.

The Python example is executed in test_package.py. Here `make` targets are expanded (`make -n`) and programs are
started with --help, so that a renamed option or file fails. The work of the commands is tested in test_prepare,
test_training, test_sample, test_evaluation and test_harden, and, from the wheel, in test_wheel; `make demo` as a whole
takes minutes and is not run here.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROGRAMS = {
    "data_prep/prepare.py": ["data_prep/prepare.py"], "train.py": ["train.py"], "sample.py": ["sample.py"],
    "gan_mask.evaluation": ["-m", "gan_mask.evaluation"], "gan_mask.harden": ["-m", "gan_mask.harden"],
    "gan_mask.calibrate": ["-m", "gan_mask.calibrate"],
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
