"""The mutations run by hand name lines and tests that exist."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def mutations() -> dict:
    spec = importlib.util.spec_from_file_location("mutations", ROOT / ".ci/mutations.py")
    module = sys.modules["mutations"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MUTATIONS


@pytest.mark.parametrize("mutation", [pytest.param(value, id=name) for name, value in mutations().items()])
def test_line_stands_once_in_its_file_and_its_tests_exist(mutation):
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.line) == 1
    files = [word for word in mutation.tests.split() if word.endswith(".py")]
    assert files and all((ROOT / file).is_file() for file in files)
