"""What the modules of the packages import of each other."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A package imports those with a lower number, and its own modules.
FLOORS = {"modeling_wavlink": 0, "processing": 1, "wavlink": 2, "hub_cards": 3, "train": 4}


def modules() -> dict[str, Path]:
    paths = [path for package in FLOORS for path in (ROOT / package).rglob("*.py")] + [ROOT / "train.py"]
    paths = [path for path in paths if ROOT / "wavlink/models" not in path.parents]  # bundled: copies of shipped files
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports() -> dict[str, set[str]]:
    """Of every module, those of the project that it imports, also inside functions and for type checkers."""
    paths, graph = modules(), {}
    for name, path in paths.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & paths.keys()
            elif isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] if node.level else ""
                base = ".".join(filter(None, (above, node.module)))
                graph[name] |= {f"{base}.{alias.name}" for alias in node.names} & paths.keys() or {base} & paths.keys()
        graph[name].discard(name)
    return graph
