"""Every benchmark starts: what it imports and patches exists."""

import sys

import pytest

from benchmarks import records
from tests.processes import run_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="some benchmarks limit memory as Linux does"),
]
SKIPPED = ("__init__", "screenshots")  # the latter needs a browser's driver, which .[all] does not install
NAMES = sorted(path.stem for path in records.RESULTS.parent.glob("*.py") if path.stem not in SKIPPED)
STARTS = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
for change in sys.modules["variants"].VARIANTS.values():
    change()
print("started")
"""


def test_every_benchmark_can_be_imported_and_every_variant_applied():
    command = [sys.executable, "-c", STARTS, str(records.RESULTS.parent), *NAMES]
    done = run_process(command, capture_output=True, text=True, timeout=600, cwd=records.RESULTS.parents[1])
    assert done.returncode == 0 and done.stdout.endswith("started\n"), done.stderr
