"""Earlier import paths and `python -m` commands go on working."""

import importlib
import json
import sys

import pytest

from processing.former_paths import MOVED, RENAMED
from tests.processes import run_process

COMMANDS = ["classify", "cli", "evaluation", "long", "onnx_export", "ray_embedding", "search", "sound_map"]


@pytest.mark.parametrize("former", MOVED)
def test_a_former_path_is_the_module_itself(former):
    pytest.importorskip("ray") if former.endswith("ray_embedding") else None
    module = importlib.import_module(former)
    assert module is importlib.import_module(MOVED[former])
    assert module.__name__ == module.__spec__.name == MOVED[former]


@pytest.mark.parametrize("module, former", [(module, former) for module in RENAMED for former in RENAMED[module]])
def test_a_former_name_is_what_has_the_new_name(module, former):
    home, _, name = RENAMED[module][former].partition(":")
    assert getattr(importlib.import_module(module), former) is getattr(importlib.import_module(home), name)


def test_a_former_name_is_the_function_itself():
    from modeling_wavlink.long import hear

    from wavlink.long_recordings import encode_recording

    assert hear is encode_recording


def test_names_of_the_former_data_module_are_those_of_their_modules():
    from processing import collator, data, sampling
    from processing.datasets import load

    homes = [getattr(home, name) for name in data.__all__ for home in (collator, load, sampling) if name in vars(home)]
    assert [getattr(data, name) for name in data.__all__] == list(dict.fromkeys(homes))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_former_command_runs(name):
    done = run_process([sys.executable, "-m", f"modeling_wavlink.{name}", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: wavlink")


def test_a_former_command_prints_its_json_without_a_wrapping(tmp_path):
    command = [sys.executable, "-m", "modeling_wavlink.search", "info", str(tmp_path), "--json"]
    done = run_process(command, capture_output=True, text=True)
    assert done.returncode == 2 and "results" not in json.loads(done.stdout or "{}")
