"""The wheel, where it is installed and no checkout can be imported (`make test-wheel`)."""

import importlib.metadata
import importlib.util
import sys
import sysconfig
from pathlib import Path

import pytest

import hub_cards
import modeling_wavlink
import processing
import wavlink
from hub_cards.space.folder import write_space
from tests.processes import run_process

SITE = Path(sysconfig.get_path("purelib"))
pytestmark = pytest.mark.skipif(
    SITE not in Path(modeling_wavlink.__file__).parents,
    reason="the checkout is imported, not a wheel: make test-wheel",
)


def test_packages_are_imported_from_the_wheel():
    modules = hub_cards, modeling_wavlink, processing, wavlink
    assert all(SITE in Path(module.__file__).parents for module in modules)
    assert importlib.util.find_spec("train") is None  # the name of many users' own script


def test_wheel_holds_templates_and_type_markers_but_no_tests():
    files = {str(file) for file in importlib.metadata.files("wavlink")}
    typed = {f"{name}/py.typed" for name in ("modeling_wavlink", "processing", "wavlink")}
    sounds = {f"wavlink/example_sounds/{name}" for name in ("bell.ogg", "metadata.csv", "CREDITS.md")}
    assert {"hub_cards/model_card.md"} | typed | sounds <= files
    assert importlib.metadata.version("wavlink") == wavlink.__version__
    assert not {name for name in files if name.startswith(("train", "tests/", "benchmarks/", "examples/"))}
    about = importlib.metadata.metadata("wavlink")
    assert "Apache-2.0" in (about["License-Expression"], about["License"]) and "pip install" in about.get_payload()


def test_wheel_holds_all_files_of_a_space(tmp_path):
    write_space(tmp_path, "user/demo", "user/model", "0" * 40)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"LICENSE", "README.md", "app.py", "requirements.txt", "hub_cards/space/style.css"} <= names
    assert "Apache License" in (tmp_path / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["query", "--help"], ["push", "--help"]])
def test_command_is_installed(command, tmp_path):
    program = Path(sys.executable).with_name("wavlink")
    done = run_process([program, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


@pytest.mark.slow
def test_space_is_built_from_the_wheel(wavlink_folder, tmp_path):
    """With its licence, which lies beside the packages in a checkout and not in a wheel."""
    program = Path(sys.executable).with_name("wavlink")
    command = [program, "push", wavlink_folder, "user/demo", "--space", "--dry_run", "--output_dir", "space"]
    done = run_process(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Apache License" in (tmp_path / "space/LICENSE").read_text(encoding="utf-8")
    assert (tmp_path / "space/model/model.safetensors").is_file() and (tmp_path / "space/app.py").is_file()
