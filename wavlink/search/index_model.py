"""The model of an index: named by a user, or looked up on this machine by the name in the index."""

import os
from typing import Any

from modeling_wavlink.configuration_wavlink import one_line
from processing.windows import check_window
from wavlink.embedder import Embedder
from wavlink.loading import OtherArchitecture, parse_name, stated_dims

from .manifest import Manifest


def embedder_of(
    manifest: Manifest, model: str | Embedder = "", device: str = "cpu", dtype: str = "float32"
) -> Embedder:
    """Load the model that an index was made with.

    The name in an index is data. Without `model` it is looked up on this machine only: a folder by its absolute path,
    a Hub id among earlier downloads, at the index's commit. Its weights must be those of the index, and no code beside
    them is run.

    Raises:
        ValueError: `model` has other weights; or without `model`, this machine does not have the index's model.
    """
    if model:
        pinned = model == manifest.model and is_commit(manifest.revision) and not os.path.isdir(model)
        embedder = new_embedder(model, device, dtype, manifest.revision if pinned else None)
    else:
        embedder = _local(manifest, device, dtype)
    if embedder.revision != manifest.revision:
        raise ValueError(
            f"the index was made by {manifest.model} at {manifest.revision}, but {embedder.name} is at "
            f"{embedder.revision}: their vectors do not compare; give that model, or index into another folder"
        )
    return embedder


def _local(manifest: Manifest, device: str, dtype: str) -> Embedder:
    """Load the model that an index names from this machine."""
    name = manifest.model
    try:
        source = parse_name(name)[0]
        pinned = {"local_files_only": True}
        if os.path.isabs(source):
            if source.startswith(("//", "\\\\")) or not os.path.isdir(source):  # another machine's share is not read
                raise ValueError("there is no such folder")
        elif os.path.exists(source):
            raise ValueError("it is a path from an unknown folder")  # paths that we write are absolute
        elif is_commit(manifest.revision):
            pinned["revision"] = manifest.revision
        _refuse_other_dims(source, manifest, pinned)
        return new_embedder(name, device, dtype, **pinned)
    except ValueError as error:
        raise ValueError(
            f"the index says it was made by {name!r}, which this machine does not have ({one_line(error)}): name it "
            "yourself with --model"
        ) from error


def _refuse_other_dims(source: str, manifest: Manifest, pinned: dict) -> None:
    """Compare dims by the config first: the revision is known only once the weights are loaded."""
    try:
        stated = stated_dims(source, **pinned)
    except OtherArchitecture as error:
        raise ValueError(f"its vectors have no known dims: {error}") from error
    except OSError:  # loading raises the error
        return
    if stated and (stated[0] != manifest.dims or set(stated[1]) != set(manifest.matryoshka_dims)):
        raise ValueError(f"its vectors have {stated[1]} dims, those of the index's model {manifest.matryoshka_dims}")


def is_commit(revision: str) -> bool:
    """True if a revision is a commit of the Hub, and not a digest of weights."""
    return len(revision) == 40


def check_window_of(embedder: Embedder, window: float, hop: float) -> None:
    """Raise a ValueError for a window or hop, in seconds, that is out of range or too long for the model."""
    check_window(window, hop, embedder.sampling_rate)
    if embedder.max_seconds and window > embedder.max_seconds:
        raise ValueError(f"a window of {window:g} s is more than the model's {embedder.max_seconds:g} s")


def new_embedder(model: str | Embedder, device: str, dtype: str, revision: str | None = None, **hub: Any) -> Embedder:
    """Load a model that a user names, under the name that a new index will hold.

    Args:
        hub: further options of `Embedder`.
    """
    if isinstance(model, Embedder):
        return model
    if not model:
        raise ValueError("a new index needs its model: give --model, a folder or a Hub id")
    name = _absolute(os.fspath(model))
    embedder = Embedder(name, revision=revision, device=device, dtype=dtype, **hub)
    embedder.name = name  # also of random:NAME@SEED
    return embedder


def _absolute(model: str) -> str:
    """Make a folder's path absolute, also in random:FOLDER: an index is opened from other working directories too."""
    source, _ = parse_name(model)
    if not os.path.isdir(source):
        return model
    kind, rest = ("random:", model.removeprefix("random:")) if source != model else ("", model)
    return f"{kind}{os.path.abspath(source)}{rest.removeprefix(source)}"
