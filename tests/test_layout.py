"""Which modules import which: down CONTRIBUTING's map of the package, never up or in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "gan_mask"


def package_map() -> list[list[str]]:
    """The modules of each row, from the top."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| .* \| `gan_mask/\{?([\w,]+)\}?.*\|$", text, re.MULTILINE)
    return [cell.split(",") for cell in cells]


def modules() -> dict[str, ast.Module]:
    """Dotted name below gan_mask -> what it holds; packages by the name of their folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    found.pop("__init__")  # the public names, which come from anywhere
    return found


MODULES = modules()


def imports(name: str, anywhere: bool = True) -> Iterator[str]:
    """Absolute dotted names that a module imports; anywhere: inside of functions, too."""
    tree = MODULES[name]
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_map_names_every_module_once() -> None:
    named = [module for row in package_map() for module in row]
    assert sorted(named) == sorted({name.partition(".")[0] for name in MODULES})


def test_imports_go_down_the_map_and_not_round() -> None:
    floor = {module: number for number, row in enumerate(package_map()) for module in row}
    graph: dict[str, set[str]] = {module: set() for module in floor}
    for name in MODULES:
        module = name.partition(".")[0]
        for imported in imports(name):
            assert imported != "gan_mask" and not imported.startswith("gan_mask.__"), f"{name} imports the package"
            below = imported.split(".")[1] if imported.startswith("gan_mask.") else module
            assert floor[below] >= floor[module], f"{name} imports {imported}"
            if below != module:
                graph[module].add(below)
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def reached(start: str) -> set[str]:
    """All that importing a module imports, of the package by file, of others by name."""
    seen, left = set(), [start]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in imports(name, anywhere=False):
            if not imported.startswith("gan_mask."):
                seen.add(imported.partition(".")[0])
                continue
            parts = imported.split(".")[1:]
            left += [".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in MODULES]
    return seen


@pytest.mark.parametrize("module", ["networks", "generator"])
def test_the_model_knows_no_commands(module: str) -> None:
    assert {"argparse", "tqdm", "yaml", "cli"}.isdisjoint(reached(module))
    if module == "networks":
        assert "templates" not in reached(module)
    # As Python has it, too; torch and huggingface_hub bring an argparse and a tqdm of their own.
    code = f"import sys, gan_mask.{module}; print(*(name for name in sys.modules if name.startswith('gan_mask.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    loaded = {name.removeprefix("gan_mask.") for name in done.stdout.split()}
    assert loaded <= {"_version", *reached(module)}


def test_the_ground_needs_no_torch() -> None:
    code = "import sys, gan_mask.values, gan_mask.files, gan_mask.weights; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
