"""Code run in a process that cannot import this repository."""

import os
import sys
import textwrap

from .processes import run_process

# A clean environment: installed libraries, and not this repository.
STRANGER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_wavlink", "processing", "hub_cards", "wavlink"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
sys.path = [path for path in sys.path if path]
"""


def run_clean(code: str, *args, tmp_path, environment: dict | None = None) -> str:
    """What code prints that runs where only installed libraries can be imported, by default without the Hub."""
    offline = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = run_process(
        [sys.executable, "-c", STRANGER + textwrap.dedent(code), *map(str, args)],
        cwd=tmp_path,
        env={**(environment or offline), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
