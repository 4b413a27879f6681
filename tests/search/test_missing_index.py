"""Commands on a folder without an index: one line, before anything heavy is imported."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.processes import run_process
from wavlink import cli

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "lance", "pyarrow", "pandas", "soundfile", "huggingface_hub", "sklearn")
CODE = f"""
import sys
from wavlink.cli import main
code = main(sys.argv[1:])
print(sorted({{*{HEAVY!r}}} & {{*sys.modules}}), file=sys.stderr)
sys.exit(code)
"""
ARGUMENTS = {
    "query": ["a dog"],
    "duplicates": [],
    "info": [],
    "verify": ["--drop"],
    "remove": ["dog.wav"],
    "reindex": ["--out", "out"],
    "push-index": ["a/b"],
    "map": ["--out", "map.html"],
}


def run(*arguments: str, cwd: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return run_process(
        [sys.executable, "-c", CODE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("command", ARGUMENTS)
@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_missing_index_is_refused_before_anything_heavy_is_imported(tmp_path, command, folder):
    (tmp_path / "empty").mkdir()
    done = run(command, folder, *ARGUMENTS[command], cwd=tmp_path)
    line, modules = done.stderr.splitlines()
    assert done.returncode == 2 and modules == "[]" and folder in line
    assert line.startswith(f"wavlink {command}: ") and ("wavlink index SOUNDS" in line or command == "info")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not [*(tmp_path / "empty").iterdir()]


def test_every_command_of_an_index_is_tried():
    assert {name for name, command in cli.COMMANDS.items() if command.of_index} | {"info"} == {*ARGUMENTS}


def test_a_missing_index_is_an_error_in_json_too(tmp_path):
    done = run("query", "missing", "a dog", "--json", cwd=tmp_path)
    assert done.returncode == 2 and "wavlink index SOUNDS" in json.loads(done.stdout)["error"]
    assert done.stderr.splitlines()[-1] == "[]"


def test_an_index_of_an_earlier_version_is_refused_too(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/index.json").write_text("{}")
    done = run("query", "old", "a dog", cwd=tmp_path)
    assert done.returncode == 2 and "wavlink pull old --out NEW" in done.stderr and "[]" in done.stderr
