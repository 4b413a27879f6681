"""The packages beside this one, and modules that shadow them.

Python looks in the working directory first, where a folder may have the name of one of these packages.
"""

import importlib.util
import os
import sys

PACKAGES = ("hub_cards", "modeling_wavlink", "processing")
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def is_own(module: str) -> bool:
    """Return whether a module, by its full name, belongs to this project."""
    return module.partition(".")[0] in (*PACKAGES, "train", "wavlink")


def refuse_shadowed() -> None:
    """Raise an ImportError if something else would be imported by the name of one of this project's packages.

    A process started as `python -m wavlink` runs no code of the working directory: it stops looking there.
    """
    if _is_command() and any(map(shadow_of, PACKAGES)):
        sys.path[:] = [path for path in sys.path if os.path.realpath(path) != os.path.realpath(os.getcwd())]
    for name in PACKAGES:
        if shadow := shadow_of(name):
            raise ImportError(
                f"wavlink cannot be imported: it needs its own package {name!r}, but python finds {shadow} first; "
                "rename that, or start python in another folder",
                name="wavlink",
            )


def shadow_of(name: str) -> str:
    """Find the path of what python imports by the name of one of this project's packages; "" if its own code."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module made by hand
        return f"a module {name!r} that is imported already"
    if spec is None:  # missing altogether, as its import will say
        return ""
    path = next(iter(spec.submodule_search_locations or ()), spec.origin or "")
    return "" if os.path.realpath(path) == os.path.join(_ROOT, name) else path


def _is_command() -> bool:
    """Return whether python was started with `-m wavlink`; `sys.argv` says so until the module has been found."""
    options = sys.orig_argv[1:]
    return sys.argv[:1] == ["-m"] and "-m" in options and options[options.index("-m") + 1 :][:1] == ["wavlink"]
