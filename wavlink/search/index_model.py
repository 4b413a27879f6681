"""The model of an index: named by a user, or found on this machine by the name that the index holds."""

import os

from transformers import AutoConfig

from modeling_wavlink.configuration_wavlink import one_line
from wavlink.embedder import Embedder
from wavlink.loading import parse_name

from .store import Manifest


def embedder_of(
    manifest: Manifest, model: str | Embedder = "", device: str = "cpu", dtype: str = "float32"
) -> Embedder:
    """The model that an index was made by.

    The name in an index is data. Without `model` it is looked up on this machine alone: a folder by its absolute path,
    a Hub id by what has been downloaded before, at the index's commit. Either must have the index's weights, and no
    code that lies beside them is run.

    Raises:
        ValueError: `model` has other weights; or without `model`, this machine does not have the index's.
    """
    if model:
        pinned = model == manifest.model and _is_commit(manifest.revision) and not os.path.isdir(model)
        embedder = new_embedder(model, device, dtype, manifest.revision if pinned else None)
    else:
        embedder = _present(manifest, device, dtype)
    if embedder.revision != manifest.revision:
        raise ValueError(
            f"the index was made by {manifest.model} at {manifest.revision}, but {embedder.name} is at "
            f"{embedder.revision}: their vectors do not compare; give that model, or index into another folder"
        )
    return embedder


def _present(manifest: Manifest, device: str, dtype: str) -> Embedder:
    """The model that an index names, of what this machine has."""
    name = manifest.model
    try:
        source = parse_name(name)[0]
        pinned = {"local_files_only": True}
        if os.path.isabs(source):
            if source.startswith(("//", "\\\\")) or not os.path.isdir(source):  # another machine's share is not read
                raise ValueError("there is no such folder")
        elif os.path.exists(source):
            raise ValueError("it is a path from an unknown folder")  # ours are absolute
        elif _is_commit(manifest.revision):
            pinned["revision"] = manifest.revision
        _refuse_other_dims(source, manifest, pinned)
        return new_embedder(name, device, dtype, **pinned)
    except ValueError as error:
        raise ValueError(
            f"the index says it was made by {name!r}, which this machine does not have ({one_line(error)}): name it "
            "yourself with --model"
        ) from error


def _refuse_other_dims(source: str, manifest: Manifest, pinned: dict) -> None:
    """By its config, before weights are read, of which a digest can be had only when they are loaded."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **pinned)
    except OSError:  # there is none, which loading says in its words
        return
    dims = getattr(config, "projection_dim", None)
    nested = list(getattr(config, "matryoshka_dims", None) or [dims])
    if dims != manifest.dims or set(nested) != set(manifest.matryoshka_dims):
        raise ValueError(f"its vectors have {nested} dims, those of the index's model {manifest.matryoshka_dims}")


def _is_commit(revision: str) -> bool:
    return len(revision) == 40  # a digest of weights is not


def new_embedder(model: str | Embedder, device: str, dtype: str, revision: str | None = None, **hub) -> Embedder:
    """The model that a user names, and that an index is to name.

    Args:
        hub: further options of `Embedder`.
    """
    if isinstance(model, Embedder):
        return model
    if not model:
        raise ValueError("a new index needs its model: give --model, a folder or a Hub id")
    name = _absolute(os.fspath(model))
    embedder = Embedder(name, revision=revision, device=device, dtype=dtype, **hub)
    embedder.name = name  # also of a control, random:NAME@SEED
    return embedder


def _absolute(model: str) -> str:
    """A folder by its absolute path, since an index is read from other working folders too; also of a control."""
    source, _ = parse_name(model)
    if not os.path.isdir(source):
        return model
    kind, rest = ("random:", model.removeprefix("random:")) if source != model else ("", model)
    return f"{kind}{os.path.abspath(source)}{rest.removeprefix(source)}"
