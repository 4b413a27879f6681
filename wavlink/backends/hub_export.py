"""The export that a model of the Hub carries, downloaded without the model's weights."""

import glob
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from modeling_wavlink.config_checks_wavlink import one_line
from processing.hub_names import near_folder, needs_cache
from wavlink.installing import install_hint

from .choice import PACKAGES, choose, has_export, installed, is_wavlink, read_record, record_name

_FILES = [
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
_RECORDS = [f"{backend}/{record_name(precision)}" for backend in PACKAGES for precision in ("fp32", "int8")]
_NEED_TORCH = ("adapter_config.json", "modules.json")  # whose presence says that the export is not all of the model


def download(
    source: str,
    backend: str | None = None,
    precision: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> tuple[str, str]:
    """Download what a model of the Hub needs to run by its export, but not its weights.

    Args:
        source: a Hub id.
        backend, precision, revision, local_files_only: of `Embedder`.

    Returns:
        The folder, in the Hub's cache, and its commit.

    Raises:
        ValueError: there is no such model, it cannot be reached, or, where torch is not installed, it carries no
            such export.
    """
    try:
        local_files_only = local_files_only or needs_cache(source, revision=revision)
        hub = {"revision": revision, "local_files_only": local_files_only}
        folder = Path(snapshot_download(source, allow_patterns=[*_FILES, *_NEED_TORCH, *_RECORDS], **hub))
        _refuse_without_export(source, folder)
        backend, precision = choose(backend, precision, folder)
        if has_export(folder, backend, precision):
            names = read_record(folder / backend / record_name(precision))["files"]
            hub["revision"] = folder.name
            snapshot_download(source, allow_patterns=[f"{backend}/{glob.escape(name)}" for name in names], **hub)
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{source!r} is neither a folder here nor available on the Hub{near_folder(source)} ({one_line(error)})"
        ) from error
    return str(folder), folder.name


def _refuse_without_export(source: str, folder: Path) -> None:
    if not installed("torch") and is_wavlink(folder) and not any((folder / record).is_file() for record in _RECORDS):
        raise ValueError(
            f"{install_hint('torch')}; without torch a model runs by the export that it carries, and {source} carries "
            "none: run `wavlink export` on its folder where torch is, and push it again"
        )
