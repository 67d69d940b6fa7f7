"""The layout of the package: rooms import downward only, and no circle of imports joins two files."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = "runtime losses scheduling study tracking policy world data judge scoring training generation tables"
ROOMS += " launch planning trl cli"
"""From the bottom to the top: a room imports itself and the rooms to its left."""

TYPES = ("sams.study.settings", {"losses", "scheduling"})
"""Settings classes that rooms below may name in annotations, under `TYPE_CHECKING`."""

UPWARD = {
    ("sams.world.examples", "sams.data.records"): "the world yields the records that every source yields",
}
"""Imports that point upward, each with its reason."""


def modules() -> dict[str, Path]:
    """Every module of the package, by dotted name."""
    found = {}
    for file in sorted((ROOT / "sams").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """Modules of the package that a file imports anywhere, lazily too, and whether only for annotations."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    annotations = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = [
                name if (name := f"{node.module}.{alias.name}") in known else str(node.module)
                for alias in node.names
            ]
        for name in names:
            if name in known:
                yield name, node in annotations


MODULES = modules()
ARROWS: dict[tuple[str, str], bool] = {}
for name, file in MODULES.items():
    for other, typed in imports(file, MODULES):
        ARROWS[name, other] = typed and ARROWS.get((name, other), True)


def rank(module: str) -> int:
    """Position of a module's room, from the bottom."""
    return ROOMS.split().index(module.split(".")[1])


def test_every_file_lies_in_a_room() -> None:
    found = {path.name for path in (ROOT / "sams").iterdir()} - {"__pycache__", "__init__.py", "py.typed"}
    assert found == {*ROOMS.split()} - {"cli"} | {"cli.py"}


def test_no_circle_of_imports() -> None:
    """Imports count wherever they stand in a file, except for annotations."""
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for (name, other), typed in ARROWS.items():
        if not typed:
            graph[name].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_rooms_import_downward_only() -> None:
    above, users = TYPES
    found = {
        (name, other)
        for (name, other), typed in ARROWS.items()
        if other != "sams" and rank(name) < rank(other)
        if not (typed and other.startswith(above) and name.split(".")[1] in users)
    }
    assert not found - UPWARD.keys(), f"upward: {sorted(found - UPWARD.keys())}"
    assert not UPWARD.keys() - found, f"no longer upward: {sorted(UPWARD.keys() - found)}"
