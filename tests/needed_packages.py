"""The packages of others that importing a module of this project needs."""

import ast
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = ("modeling_wavlink", "processing", "hub_cards", "wavlink", "train")
DISTRIBUTIONS = {"lance": "pylance", "huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn"}
DISTRIBUTIONS |= {"sentence_transformers": "sentence-transformers", "prometheus_client": "prometheus-client"}
DISTRIBUTIONS |= {"python_multipart": "python-multipart"}


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
