"""What all commands share."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, parser_of

import gan_mask
from gan_mask import cli
from gan_mask.errors import GanMaskError

MODULES = ("prepare", "training", "sampling", "evaluation", "harden", "alarm", "calibrate", "shards", "provenance")
SCRIPTS = sorted(path.stem for path in (REPOSITORY / "data_prep").glob("*.py") if path.stem != "prepare")


@pytest.mark.parametrize("module", MODULES)
def test_version_and_message_options(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib import import_module

    main = import_module(f"gan_mask.{module}").main
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"gan_mask {gan_mask.__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert {"--quiet", "--verbose"} <= set(capsys.readouterr().out.split())


UNGROUPED = {"--help", "--config", "--print_config"}


@pytest.mark.parametrize("module", [f"gan_mask.{name}" for name in (*MODULES, "harden.table")] + SCRIPTS)
def test_every_option_stands_in_a_group_and_says_its_default(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    monkeypatch.syspath_prepend(REPOSITORY / "data_prep")
    parser = parser_of(import_module(module).main, monkeypatch)
    for group in parser._action_groups:
        for action in group._group_actions:
            name = (action.option_strings or [action.dest])[-1]
            if group.title in ("options", "positional arguments"):
                assert name in UNGROUPED, f"{name} stands in no group"
                continue
            assert action.help, f"{name} has no help"
            if action.option_strings and group.title != "messages" and action.nargs != 0:  # a flag is off by default
                shown = parser._get_formatter()._expand_help(action)
                assert "required" in shown if action.required else "default" in shown or "required" in shown, (
                    f"{name}: {shown}"
                )


def test_endings(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, line in (
        (GanMaskError("photo.jpg: no face"), 2, "error: photo.jpg: no face\n"),
        (OSError(28, "Disk full", "a.png"), 2, "error: a.png: Disk full; free some space; try again\n"),
        (OSError(13, "Not allowed", "a.png"), 2, "error: a.png: Not allowed; try again\n"),
        (KeyboardInterrupt(), 130, "interrupted; try again\n"),
    ):
        with pytest.raises(SystemExit) as end, cli.ending("try again"):
            raise error
        assert (end.value.code, capsys.readouterr().err) == (code, line)
    with pytest.raises(ZeroDivisionError), cli.ending():  # a bug keeps its traceback
        raise ZeroDivisionError


@pytest.mark.parametrize("command", ["provenance", "sampling"])
def test_a_reader_that_has_gone_is_no_error(command: str, tmp_path: Path) -> None:
    """`python -m ... | head -1`: quiet, the others of the pipe decide."""
    (tmp_path / "a.png").write_bytes(b"no photo")
    code = f"""
import sys
from gan_mask import faces, {command}
faces.forget_old_shapes()
{command}.main(sys.argv[1:])
"""
    options = {
        "provenance": [str(REPOSITORY / "tests/cases/01_tiff/orientation3.jpg")],
        "sampling": ["--faces", str(tmp_path), "--out", str(tmp_path.with_name("out")), "--method", "dm", "--quiet",
            "--embedders", "--detectors"],
    }[command]  # fmt: skip
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, *options], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_everything_is_printed_where_a_gone_reader_is_noticed() -> None:
    """A command's main prints nothing outside of cli.ending()."""
    for path in [*(REPOSITORY / "gan_mask").rglob("*.py"), *(REPOSITORY / "data_prep").glob("*.py")]:
        for main in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(main, ast.FunctionDef) and main.name == "main":
                outside = [node for node in main.body if not isinstance(node, ast.With)]
                calls = [node for part in outside for node in ast.walk(part) if isinstance(node, ast.Call)]
                names = [node.func.id for node in calls if isinstance(node.func, ast.Name)]
                assert "print" not in names, path


@pytest.mark.parametrize(("options", "lines"), [([], 1), (["--quiet"], 0)])
def test_progress_in_a_log_file_is_lines(options: list[str], lines: int) -> None:
    code = """
import argparse, sys
from gan_mask import cli
parser = argparse.ArgumentParser()
cli.add_message_options(parser)
assert vars(parser.parse_args()) == {}
for _ in cli.Progress(range(1000), desc="work"):
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, check=True, cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert "\r" not in done.stderr
    assert sum("1000/1000" in line for line in done.stderr.splitlines()) == lines
    assert len(done.stderr.splitlines()) <= 3 * lines
