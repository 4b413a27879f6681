"""Trained models that come with the package: their names, their folders, and whether their files are unchanged.

`models/NAME/` is a folder as `wavlink push` makes it, and `models/SHA256SUMS.json` holds the hash of each of its
files.
"""

import difflib
import functools
import hashlib
import json
import os
import re
from pathlib import Path

MODELS = Path(__file__).with_name("models")
DEFAULT = "wavlink-tiny"
SUMS = "SHA256SUMS.json"
_AGAIN = "install the package again: pip install --force-reinstall wavlink"
_NAME = re.compile(r"[\w.-]+")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_CONTROL = "random:"  # begins the name of a random baseline, see `loading.parse_name`


def bundled(name: str = DEFAULT) -> str:
    """Return the folder of a trained model that comes with this package.

    Its files are compared with their hashes, once in a process. The folder is what `Embedder`, `AutoModel` and
    transformers' `pipeline` take. WavLink's own functions and commands take the bare name as well, and `wavlink-tiny`
    where no model is named.

    Args:
        name: of the model.

    Raises:
        ValueError: no such model, or files that are not those of this release.

    Example:

    ```python
    >>> import wavlink
    >>> from transformers import AutoConfig
    >>> AutoConfig.from_pretrained(wavlink.bundled("wavlink-tiny")).model_type
    'wavlink'

    ```
    """
    if name not in names():
        raise ValueError(_unknown(name))
    folder = MODELS / name
    _verify(folder)
    return str(folder)


def names() -> list[str]:
    """Return the names of the models that come with the package, in order."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def resolve(name: str | None) -> str:
    """Return what a model's name stands for: a bundled model's folder, or the folder or Hub id unchanged.

    A bare name, without a slash, is a bundled model. A local folder of that name comes first only if it holds a
    config.json.

    Args:
        name: a bundled model's name, a folder or a Hub id; None or "" is the default model, whatever the working
            directory holds.

    Raises:
        ValueError: a bare name that is neither a bundled model nor a local path, a path that is no folder, or a
            bundled model that was changed.
    """
    if not name:
        return bundled()
    if stands_for_bundled(name):
        return bundled(name)
    if os.path.isdir(name) or name.startswith(_CONTROL):
        return name
    if os.path.exists(name):
        raise ValueError(_no_folder(name))
    if _NAME.fullmatch(name):
        raise ValueError(_unknown(name))
    if not _HUB_ID.fullmatch(name):
        raise ValueError(_no_folder(name))
    return name


def stands_for_bundled(name: str) -> bool:
    """True if a name is that of a bundled model, and no local folder with a config.json comes first."""
    return name in names() and not os.path.isfile(os.path.join(name, "config.json"))


def name_of(source: str) -> str:
    """Return the bundled model's name for its folder, which differs between machines; any other source unchanged."""
    path = Path(source)
    return path.name if path.parent == MODELS and path.name in names() else source


def describe_all() -> list[dict[str, object]]:
    """Describe each model that this release comes with (see `describe`), also one that is missing."""
    return [describe(name) for name in released()]


def released() -> list[str]:
    """Return the names of the models that this release comes with, also of those that are missing here, in order."""
    try:
        stated = {*known_sums()}
    except ValueError:  # the error of each model says so
        stated = set()
    return sorted({DEFAULT, *stated, *names()})


def describe(name: str) -> dict[str, object]:
    """Describe a bundled model: its `name`, `path`, `bytes`, and nested `dims` if its files are `intact`."""
    folder = MODELS / name
    try:
        bundled(name)
        config, error = json.loads((folder / "config.json").read_text(encoding="utf-8")), ""
    except ValueError as raised:
        config, error = {}, str(raised)
    return {
        "name": name,
        "path": str(folder),
        "bytes": sum((folder / file).stat().st_size for file in _files(folder)),
        "dims": [dim for dim in config.get("matryoshka_dims") or [config.get("projection_dim")] if dim],
        "intact": not error,
        "error": error,
    }


def known_sums(models: Path | None = None) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of each file of each bundled model, as the release states them; {} without any model.

    Args:
        models: the folder of all bundled models (default: that of this package).

    Raises:
        ValueError: the file that states them is damaged.
    """
    path = (models or MODELS) / SUMS
    sums = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(sums, dict) or not all(isinstance(files, dict) for files in sums.values()):
        raise ValueError(f"{path} is damaged: {_AGAIN}")
    return sums


def sums_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a model's folder, by its path below the folder."""
    return {file: digest_of(folder / file) for file in _files(folder)}


def _files(folder: Path) -> list[str]:
    """Return the paths of a model's files; bytecode and hidden files are none."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if "__pycache__" not in path.parts and not any(part.startswith(".") for part in path.parts)
    )


@functools.cache
def _verify(folder: Path) -> None:
    """Raise a ValueError unless a folder holds exactly the files of the release."""
    try:
        expected = dict(json.loads((MODELS / SUMS).read_text(encoding="utf-8"))[folder.name])
        found = sums_of(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the bundled model {folder} cannot be verified ({error!r}): {_AGAIN}") from error
    for problem, files in {
        "is missing": sorted(set(expected) - set(found)),
        "was changed": [file for file in found if expected.get(file, found[file]) != found[file]],
        "does not belong to it": sorted(set(found) - set(expected)),
    }.items():
        if files:
            raise ValueError(
                f"the bundled model {folder} is not that of this release: {files[0]} {problem} (by {SUMS}): {_AGAIN}"
            )


def digest_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _no_folder(path: str) -> str:
    from processing.hub_names import near_folder

    return (
        f"{path!r} is neither a folder here nor a Hub id, which is owner/name: give a model's folder, a Hub id such "
        f"as laion/clap-htsat-unfused, or a bundled model ({_listed()}){near_folder(path)}"
    )


def _listed() -> str:
    return f"there are: {', '.join(names()) or f'none, as they are missing here; {_AGAIN}'}"


def _unknown(name: str) -> str:
    from processing.hub_names import near_folder

    if name in released():
        return f"the bundled model {MODELS / name} is missing: {_AGAIN}"
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else near_folder(name)
    return (
        f"{name!r} is neither a folder here nor a bundled model ({_listed()}): give a "
        f"model's folder, or a Hub id such as laion/clap-htsat-unfused{hint}"
    )
