"""Names of models and data sets: local folders or repositories of the Hub, which is asked once and without retries."""

import difflib
import os
import re
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MODELS_OF_RUN = ("best", "last")  # folders of a training run that AutoModel loads
_MOST = 10_000  # names of a folder that are compared


def needs_cache(source: str, file: str = "config.json", *, revision: str | None = None, kind: str = "model") -> bool:
    """Return whether the Hub does not answer and `source` must come from its cache.

    Loaders retry for half a minute where there is no connection. This makes one request, for a small file. An error
    that the Hub returns is left to the loader.

    Args:
        source: a folder, which needs no request, or a Hub id.
        file: to request.
        revision: of the repository.
        kind: "model" or "dataset".

    Raises:
        ValueError: there is no such folder, the Hub does not answer, and the cache does not hold it.
    """
    if Path(source).exists():
        return False
    if not _HUB_ID.fullmatch(source):
        raise ValueError(f"{source!r} is neither a folder here nor a Hub id, which is owner/name{near_folder(source)}")
    if is_offline_mode():
        return False
    try:
        get_hf_file_metadata(
            hf_hub_url(source, file, repo_type=kind, revision=revision), timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except HfHubHTTPError:
        return False
    except Exception as error:  # of the HTTP library, which is not the same in all versions of huggingface_hub
        if _is_cached(source, file, revision, kind):
            return True
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{source!r} is neither a folder here nor available on the Hub, which does not answer "
            f"({why}){near_folder(source)}"
        ) from error
    return False


def near_folder(source: str) -> str:
    """Return a hint at a local folder with a similar name, or "".

    For the folder of a training run it is the folder that AutoModel loads, such as `runs/my/best`.
    """
    parent, name = os.path.split(source.rstrip("/"))
    if parent and name in MODELS_OF_RUN and (model := model_of_run(Path(parent))):
        return f"; {model}"
    folders = _folders(parent or ".")
    if not folders and parent:  # the mistake may be one level above
        above = near_name(parent)
        parent, folders = above, _folders(above) if above else []
    near = difflib.get_close_matches(name, folders, n=1)
    if not near:
        return ""
    path = Path(parent, near[0])
    return f"; {model_of_run(path) or f'did you mean the folder {path}?'}"


def model_of_run(folder: Path) -> str:
    """Return which model of a training run's folder to give, or that it has none yet; "" for any other folder."""
    for name in MODELS_OF_RUN:
        if (folder / name / "config.json").is_file():
            return f"did you mean the folder {folder / name}?"
    if (folder / "checkpoints").is_dir() or (folder / "recipe.json").is_file():
        return f"the training in {folder} has not saved a model yet: the command that started it resumes it"
    return ""


def near_name(path: str) -> str:
    """Return the folder beside `path` with the most similar name, or ""."""
    parent, name = os.path.split(path)
    near = difflib.get_close_matches(name, _folders(parent or "."), n=1)
    return os.path.join(parent, near[0]) if near else ""


def _folders(parent: str) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.name for entry, _ in zip(entries, range(_MOST), strict=False) if entry.is_dir()]
    except OSError:
        return []


def _is_cached(source: str, file: str, revision: str | None, kind: str) -> bool:
    if isinstance(try_to_load_from_cache(source, file, revision=revision, repo_type=kind), str):
        return True
    if kind != "dataset":
        return False
    from datasets import config

    return Path(config.HF_DATASETS_CACHE, source.replace("/", "___")).is_dir()
