"""Which file may import which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.project_imports import FLOORS, imports

TESTS = Path(__file__).parents[1]


def imported(code: str) -> set[str]:
    """Last names of the modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(alias.name for alias in node.names if not node.module)}
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.stem)
def test_no_test_file_imports_a_test_module(path):
    modules = {other.stem for other in TESTS.rglob("test_*.py")}
    assert not imported(path.read_text(encoding="utf-8")) & modules


def test_no_module_imports_from_a_higher_layer():
    graph = imports()
    floor = {name: FLOORS[name.partition(".")[0]] for name in graph}
    upward = {(name, other) for name, others in graph.items() for other in others if floor[other] > floor[name]}
    assert len(graph) > 100 and not upward


def test_imports_have_no_circle():
    graph = imports()
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the modules


def test_model_folder_holds_only_shipped_files():
    names = {path.name for path in (TESTS.parent / "modeling_wavlink").glob("*.py")}
    assert {name for name in names if not name.endswith("_wavlink.py")} == {"__init__.py"}
