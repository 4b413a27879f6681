"""Files named `*_wavlink.py` travel to the Hub: what they may import, and that they flatten into one folder."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = sorted([*(ROOT / "modeling_wavlink").glob("*_wavlink.py"), *(ROOT / "processing").glob("*_wavlink.py")])
ALLOWED = {*sys.stdlib_module_names, "numpy", "torch", "transformers"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_imports_are_what_a_hub_user_has(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in ALLOWED
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module and re.fullmatch(r"\w+_wavlink", node.module)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_no_docstring_line_looks_like_a_relative_import(path):
    """transformers finds relative imports with a regular expression, docstrings included."""
    found = re.findall(r"^\s*(?:import|from)\s+\.(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert all((path.parent / f"{name}.py").exists() for name in found)


def test_base_names_are_unique():
    assert len({path.name for path in SHIPPED}) == len(SHIPPED) == 11


def test_a_saved_folder_holds_code_config_weights_and_tokenizer(wavlink_folder):
    names = {path.name for path in wavlink_folder.iterdir()}
    assert {path.name for path in SHIPPED} <= names
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
