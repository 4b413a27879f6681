"""Register WavLink's classes with transformers' Auto classes, without importing transformers."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_WATCHED = "transformers"
_OWN = ("modeling_wavlink", "processing")


def register_with_transformers() -> None:
    """Register the classes: now if transformers is imported already, otherwise right after its import."""
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    if sys.modules.get(_WATCHED) is not None:
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    if importlib.util.find_spec("torch") is not None:  # without it transformers has no models
        importlib.import_module("processing.auto_classes").register()


class _Watcher:
    """A finder that finds transformers as the others do, and registers the classes once it has been imported.

    Often a module of this project imports transformers. The classes are then registered when that module is complete,
    since it may define some of them.
    """

    def __init__(self) -> None:
        self._running = 0  # imports of transformers and of this project's modules that have begun

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _WATCHED and fullname.partition(".")[0] not in _OWN:
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
            self._running += 1
            try:
                execute(module)
            finally:
                self._running -= 1
            if not self._running and _WATCHED in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        vars(loader)["exec_module"] = execute_and_register
        return spec
