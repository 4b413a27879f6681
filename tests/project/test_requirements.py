"""Whatever the packages import is declared in setup.cfg: by all installations, or by the extra of that command."""

import ast
import configparser
import functools
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import wavlink
from wavlink.cli import COMMANDS
from wavlink.installing import BRINGS, EXTRA_OF, extra_of

ROOT = Path(__file__).parents[2]
OWN = ("modeling_wavlink", "processing", "hub_cards", "wavlink", "train")
DISTRIBUTIONS = {"faiss": "faiss-cpu", "huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn"}
DISTRIBUTIONS |= {"sentence_transformers": "sentence-transformers", "prometheus_client": "prometheus-client"}
DISTRIBUTIONS |= {"python_multipart": "python-multipart"}
OTHERS = {
    "wavlink.training.trainer": "train",
    "wavlink.embedder": "",
    "modeling_wavlink.modeling_wavlink": "",
    "processing": "",
}
LAZY = {"gradio": "space", "lancedb": "cluster", "matplotlib": "data", "plotly": "map", "ray": "cluster"}
LAZY |= {"sklearn": "map", "threadpoolctl": "map", "datasets": "data", "peft": "train"}
LAZY |= {
    "accelerate": "train",
    "av": "formats",
    "faiss": "search",
    "shtab": "completion",
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


@functools.cache
def file_of(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """The modules that a file imports, and whether only a function of it does so when it is called."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = []

    def walk(node: ast.AST, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            inner = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                found.extend((alias.name, inner) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join([*above, *filter(None, [child.module])])
                found.append((module, inner))
                found.extend((f"{module}.{alias.name}", inner) for alias in child.names if file_of(module))
            walk(child, inner)

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def third_party(module: str) -> bool:
    top = module.split(".")[0]
    return top not in OWN and top not in sys.stdlib_module_names


def needed(start: str) -> dict[str, str]:
    """Of each package of others that importing `start` imports, the module that does so."""
    seen, packages, waiting = set(), {}, [start]
    while waiting:
        module = waiting.pop()
        if module in seen or not (path := file_of(module)):
            continue
        seen.add(module)
        parts = module.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        for name, lazy in imports(path):
            if not lazy and third_party(name):
                packages.setdefault(name.split(".")[0], module)
            elif not lazy:
                waiting.append(name)
    return packages


STARTS = {command.module: command.extra for command in COMMANDS.values()} | OTHERS


@pytest.mark.parametrize("start", STARTS)
def test_imports_of_commands_are_declared(start):
    declared = extras()[STARTS[start]]
    packages = needed(start)
    assert packages and file_of(start)
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
