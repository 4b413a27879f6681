"""The notebooks: small, without outputs, importing what exists, and each runs from its top to its end."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import snippets

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples/notebooks").glob("*.ipynb"))


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_both_notebooks_exist():
    assert {path.stem for path in NOTEBOOKS} == {"search_a_folder", "finetune_with_lora"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_small_and_imports_what_exists(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1e6
    assert not any(cell.get("outputs") for cell in notebook.cells)
    for cell in code(path):
        assert snippets.missing_imports(cell) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(snippets.ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stdout"
    )
    if path.stem == "search_a_folder":
        assert int(re.search(r"(\d+) of 12 found", printed)[1]) > 3  # at random: 1
        assert int(re.search(r"(\d+) of 12 named", printed)[1]) > 3
    else:
        assert float(re.search(r"after +([\d.]+) %", printed)[1]) > 40  # at random: 25
