"""Whatever the packages import is declared in setup.cfg: by all installations, or by the extra of that command."""

import configparser
import functools
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import wavlink
from tests.needed_packages import DISTRIBUTIONS, OWN, file_of, imports, needed, third_party
from wavlink.cli import COMMANDS
from wavlink.installing import BRINGS, EXTRA_OF, extra_of

ROOT = Path(__file__).parents[2]
OTHERS = {
    "wavlink.training.trainer": "train",
    "wavlink.embedder": "",
    "modeling_wavlink.modeling_wavlink": "",
    "processing.processing_wavlink": "",
}
AT_ONCE = {"wavlink.search.information"}  # a command that imports packages only once it has an index or a model
LAZY = {"gradio": "space", "matplotlib": "data", "plotly": "map", "ray": "cluster"}
LAZY |= {"sklearn": "map", "threadpoolctl": "map", "datasets": "data", "peft": "train"}
LAZY |= {
    "accelerate": "train",
    "av": "formats",
    "lance": "search",
    "shtab": "completion",
    "mteb": "maeb",
    "pyarrow": "data",
    "sentence_transformers": "models",
    **dict.fromkeys(("openvino", "nncf"), "fast"),
    **dict.fromkeys(("onnx", "onnxruntime"), "onnx"),
}


@functools.cache
def extras() -> dict[str, set[str]]:
    """The distributions that an installation with each extra brings."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    names = {
        extra: {Requirement(line).name for line in lines.splitlines() if line.strip()}
        for extra, lines in groups.items()
    }
    return {extra: found | names[""] for extra, found in names.items()}


STARTS = {command.module: command.extra for command in COMMANDS.values()} | OTHERS


@pytest.mark.parametrize("start", STARTS)
def test_imports_of_commands_are_declared(start):
    declared = extras()[STARTS[start]]
    packages = needed(start)
    assert file_of(start) and bool(packages) == (start not in AT_ONCE)
    missing = {name: where for name, where in packages.items() if DISTRIBUTIONS.get(name, name) not in declared}
    assert not missing, f"add to the extra {STARTS[start]!r} of setup.cfg: {missing}"


@pytest.mark.parametrize("name", wavlink.__all__)
def test_imports_of_public_names_are_declared(name):
    home, extra = wavlink._HOMES[name]
    packages = needed(home)
    declared = extras()[extra]
    missing = {name: where for name, where in packages.items() if DISTRIBUTIONS.get(name, name) not in declared}
    assert not missing, f"name the extra that brings them in wavlink._HOMES: {missing}"


def test_package_imports_only_the_standard_library():
    assert file_of("wavlink") and not needed("wavlink")


def test_imports_in_functions_are_declared():
    files = [ROOT / "train.py", *(path for name in OWN for path in (ROOT / name).rglob("*.py"))]
    lazily = {name.split(".")[0] for path in files for name, lazy in imports(path) if lazy and third_party(name)}
    declared = extras()
    undeclared = {
        name
        for name in lazily
        if DISTRIBUTIONS.get(name, name) not in declared[""]
        and DISTRIBUTIONS.get(name, name) not in declared[LAZY.get(name, "")]
    }
    assert {"gradio", "matplotlib"} <= lazily and not undeclared, (
        "declare in setup.cfg, and tell in LAZY by which extra"
    )


def test_hint_names_the_extra_of_a_module():
    declared = extras()
    known = {name for name in declared["all"] if not name.startswith(("pytest", "ruff"))}
    for module, extra in EXTRA_OF.items():
        assert DISTRIBUTIONS.get(module, module) in declared[extra], module
        for wanted in BRINGS:
            found = extra_of(module, wanted)
            assert found in (wanted, extra) and DISTRIBUTIONS.get(module, module) in declared[found]
    assert all(declared[inner] <= declared[extra] for extra, inners in BRINGS.items() for inner in inners)
    assert declared["space"] | declared["completion"] <= known | declared[""]
