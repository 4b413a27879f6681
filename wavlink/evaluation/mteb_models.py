"""`wavlink.register_mteb`: models that `mteb.get_model` finds by their names."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavlink import packages
from wavlink.bundled_models import DEFAULT, resolve, stands_for_bundled
from wavlink.embedder import Embedder
from wavlink.installing import install_hint

if TYPE_CHECKING:
    from mteb.models import ModelMeta

_BYTES_OF_FP32 = 4
_NO_LIMIT = 1 << 20  # tokens; tokenizers without a limit state a huge one
_CITATION = """
@inproceedings{kumar2026wavlink,
  archiveprefix = {arXiv},
  author = {Kumar, G. K. and Lepauloux, L. and Hacid, H.},
  booktitle = {ICASSP},
  eprint = {2601.15118},
  title = {WavLink: Compact Audio-Text Embeddings with a Global Whisper Token},
  year = {2026},
}
"""


def register_mteb(
    model: str | os.PathLike[str] | None = None, name: str = "", *, revision: str | None = None, **facts: Any
) -> "ModelMeta":
    """Return mteb's `ModelMeta` of a model, and register it, so that `mteb.get_model` loads the model by its name.

    mteb then gets the vectors of an `Embedder`: clips over the model's limit in windows, which the meta states.
    `mteb.get_model(name, embed_dim=48)` loads a nested dim, and `long_clips="first"` takes the beginning of a long
    clip. Results of both are kept in folders of their own.

    Args:
        model: a folder, a Hub id or the name of a bundled model (default: `wavlink-tiny`), see `Embedder`.
        name: in mteb, `owner/name` (default: the Hub id; `wavlink/NAME` of a bundled model, which `NAME` alone finds
            too; `local/FOLDER` of a folder).
        revision: of a Hub id: a branch, tag or commit.
        facts: other fields of `ModelMeta`, which the model does not tell, such as `languages`, `license`,
            `training_datasets` and `release_date`. What is left out is stated as unknown.

    Raises:
        ImportError: mteb is not installed.
        ValueError: no such model, or a name or a fact that mteb does not accept.

    Example:

    ```python
    >>> from wavlink import register_mteb
    >>> meta = register_mteb(model_folder, "me/my-model", languages=["eng-Latn"])
    >>> meta.name, meta.embed_dim, meta.modalities
    ('me/my-model', [32, 16, 8, 4], ['audio', 'text'])

    ```
    """
    try:
        from mteb.models.model_implementations import MODEL_REGISTRY
    except ModuleNotFoundError as error:
        if packages.is_own(error.name or ""):
            raise
        hint = install_hint(error.name or "mteb", "maeb")
        raise ImportError(f"register_mteb cannot be used: {hint}", name=error.name) from error
    source = os.fspath(model or "") or DEFAULT
    meta = model_meta(source, name or name_in_mteb(source), revision, **facts)
    MODEL_REGISTRY[meta.name] = meta  # type: ignore[index]
    if not name and stands_for_bundled(source):
        MODEL_REGISTRY[source] = meta
    return meta


def name_in_mteb(source: str) -> str:
    """Return the name of a model in mteb, which is always `owner/name`."""
    if stands_for_bundled(source):
        return f"wavlink/{source}"
    return f"local/{Path(source).resolve().name}" if os.path.isdir(resolve(source)) else source


def model_meta(source: str, name: str, revision: str | None = None, **facts: Any) -> "ModelMeta":
    """Return what mteb states of a model; it is loaded for it.

    Args:
        source: what `Embedder` takes.
        name, revision, facts: see `register_mteb`.
    """
    from .mteb_encoder import WavLinkEncoder, WavLinkMeta, revision_name

    embedder = Embedder(source, revision=revision) if revision else Embedder(source)
    tokens = getattr(getattr(embedder.processor, "tokenizer", None), "model_max_length", None)
    known: dict[str, Any] = {
        "loader": functools.partial(WavLinkEncoder, source=source),
        "loader_kwargs": {"long_clips": "windows"},
        "name": name,
        "revision": revision_name(embedder),
        "release_date": None,
        "languages": None,
        "n_parameters": embedder.parameters,
        "memory_usage_mb": embedder.parameters * _BYTES_OF_FP32 / (1 << 20),
        "max_tokens": tokens if tokens and tokens < _NO_LIMIT else None,
        "embed_dim": sorted({embedder.dims, *embedder.matryoshka_dims}, reverse=True),
        "license": None,
        "open_weights": None,
        "public_training_code": None,
        "public_training_data": None,
        "framework": ["PyTorch", "Transformers"],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "training_datasets": None,
        "modalities": ["audio", "text"],
        "contacts": None,
    }
    if getattr(embedder.model.config, "model_type", "") == "wavlink":
        known["citation"] = _CITATION
    return WavLinkMeta(**known | facts)
