"""Which file may import which."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


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
def test_no_file_of_the_tests_imports_a_test_module(path):
    modules = {other.stem for other in TESTS.rglob("test_*.py")}
    assert not imported(path.read_text(encoding="utf-8")) & modules
