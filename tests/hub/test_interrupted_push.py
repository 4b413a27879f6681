"""What a push leaves behind where it is stopped or killed: nothing that stops the same command."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hub_cards.push import working_folder
from tests.hub_server import TOKEN
from tests.processes import run_process

ROOT = Path(__file__).parents[2]
# The command, killed where it would verify what it has written.
KILLED = """
import runpy, signal, sys
import hub_cards.verify
hub_cards.verify.verify = lambda folder, expected: signal.raise_signal({number})
sys.argv = sys.argv[1:]
runpy.run_module("hub_cards.push", run_name="__main__")
"""
WHOLE = KILLED.replace("signal.raise_signal({number})", "None")


@pytest.fixture
def top(tmp_path, monkeypatch) -> Path:
    """Where temporary folders lie."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_temporary_folder_is_removed_at_the_end_and_after_an_error(top):
    with working_folder(None) as folder:
        (folder / "weights").write_text("1")
        assert folder.parent == top and folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(KeyError), working_folder(None):
        raise KeyError
    assert not list(top.iterdir())


@pytest.mark.slow
def test_push_works_after_a_killed_push(hub, top, wavlink_folder, tmp_path):
    environment = hub.environment(tmp_path / "home", TOKEN, TMPDIR=str(top), OMP_NUM_THREADS="1")
    out = tmp_path / "out"

    def push(script: str, *options) -> subprocess.CompletedProcess:
        line = [sys.executable, "-c", script, "hub_cards.push", str(wavlink_folder), "user/killed", *map(str, options)]
        return run_process(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)

    stopped = push(KILLED.format(number=int(signal.SIGTERM)))
    said = "wavlink push: stopped; the Hub has all of its commit or none, and the same command starts again"
    assert stopped.returncode == 128 + signal.SIGTERM and stopped.stderr.splitlines()[-1] == said, stopped.stderr
    assert not list(top.iterdir())
    assert push(KILLED.format(number=int(signal.SIGKILL)), "--output_dir", out).returncode == -signal.SIGKILL
    assert not out.exists() and not (hub.root / "models/user/killed").exists()
    done = push(WHOLE, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    assert len(hub.history("user/killed")) == 2 and (out / "config.json").exists()
    assert not list(tmp_path.glob(".out*"))
