"""Register WavLink's classes with transformers' Auto classes, without importing transformers."""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_WATCHED = "transformers"


def register_with_transformers() -> None:
    """Register the classes: now if transformers is imported already, otherwise right after its import."""
    if _WATCHED in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    importlib.import_module("processing")  # whose import registers them


class _Watcher:
    """A finder that finds transformers as the others do, and registers the classes once it has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _WATCHED:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        loader = spec.loader if spec else None
        if loader is None:
            return spec
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # restores the method of the class
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        vars(loader)["exec_module"] = execute_and_register
        return spec
