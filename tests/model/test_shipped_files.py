"""Files named `*_wavlink.py` travel to the Hub: what they may import, and that they flatten into one folder."""

import ast
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

from tests.helpers import SHIPPED

ALLOWED = {*sys.stdlib_module_names, "numpy", "torch", "transformers"}
OPTIONAL = {"soundfile", "soxr"}  # which a user may lack: in a `try:` of their own, where the Hub's check skips them


def optional_imports(tree: ast.AST) -> set[ast.AST]:
    """The imports of `try: import x` with an `except ImportError`."""
    tries = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(handler) for handler in node.handlers)
    ]
    return {node for part in tries for node in part.body if isinstance(node, ast.Import)}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_imports_are_what_a_hub_user_has(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    optional = optional_imports(tree)
    assert {alias.name for node in optional for alias in node.names} <= OPTIONAL
    for node in set(ast.walk(tree)) - optional:
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in ALLOWED
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module and re.fullmatch(r"\w+_wavlink", node.module)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_hubs_own_check_asks_for_nothing_else(path):
    assert {name.split(".")[0] for name in get_imports(path)} <= {
        "numpy",
        "torch",
        "transformers",
        *sys.stdlib_module_names,
    }


ENTRIES = [
    *("configuration_wavlink.py", "modeling_wavlink.py", "feature_extraction_wavlink.py", "processing_wavlink.py"),
    *("whisper_audio_wavlink.py", "clap_audio_wavlink.py", "passt_audio_wavlink.py"),
    *("passt_configuration_wavlink.py", "passt_features_wavlink.py"),
]


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.name in ENTRIES], ids=lambda path: path.name)
def test_an_auto_class_names_all_files_that_it_needs(path):
    """transformers 5.6 brings along the files that an entry imports itself, and not what those import."""
    needed = {Path(file).name for file in get_relative_import_files(path)}
    assert needed == {f"{name}.py" for name in get_relative_imports(path)}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_no_docstring_line_looks_like_a_relative_import(path):
    """transformers finds relative imports with a regular expression, docstrings included."""
    found = re.findall(r"^\s*(?:import|from)\s+\.(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert all((path.parent / f"{name}.py").exists() for name in found)


def test_base_names_are_unique():
    assert len({path.name for path in SHIPPED}) == len(SHIPPED) == 25


def test_a_saved_folder_holds_code_config_weights_and_tokenizer(wavlink_folder):
    names = {path.name for path in wavlink_folder.iterdir()}
    assert {path.name for path in SHIPPED} <= names
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
