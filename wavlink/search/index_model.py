"""The model of an index: named by a user, or looked up on this machine by the name in the index."""

import hashlib
import json
import os
from typing import Any

from modeling_wavlink.config_checks_wavlink import one_line
from processing.windows import check_window
from wavlink.backends import standalone
from wavlink.backends.choice import UnavailableBackend, UnavailableDevice, installed
from wavlink.bundled_models import bundled, name_of, names, stands_for_bundled
from wavlink.embedder import Embedder
from wavlink.model_names import OtherArchitecture, parse_name

from .manifest import Manifest

_NAMES = {"auto_map", "processor_class", "feature_extractor_type", "transformers_version", "mel_filters"}


def embedder_of(
    manifest: Manifest, model: str | Embedder = "", device: str = "cpu", dtype: str = "float32", **run: str | None
) -> Embedder:
    """Load the model that an index was made with.

    The name in an index is data. Without `model` it is looked up on this machine only: a bundled model by its name, a
    folder by its absolute path, a Hub id among earlier downloads, at the index's commit. Its weights must be those of
    the index, and no code beside them is run.

    Args:
        device, dtype, run: of `Embedder`, such as its `backend`.

    Raises:
        UnavailableBackend: the model does not run in the backend or precision.
        UnavailableDevice: torch cannot compute on the device.
        ValueError: `model` has other weights; or without `model`, this machine does not have the index's model.
    """
    if model:
        pinned = model == manifest.model and is_commit(manifest.revision) and not os.path.isdir(model)
        embedder = new_embedder(model, device, dtype, manifest.revision if pinned else None, **run)
    else:
        embedder = _local(manifest, device, dtype, run)
    if embedder.revision != manifest.revision:
        raise ValueError(
            f"the index was made by {manifest.model} at {manifest.revision}, but {embedder.name} is at "
            f"{embedder.revision}: their vectors do not compare; give that model, or index into another folder"
        )
    made_by = preprocessing_of(embedder)
    if made_by and manifest.preprocessing and made_by != manifest.preprocessing:
        raise ValueError(
            f"the index was made by {manifest.model} with another preprocessing of sounds than {embedder.name} has: "
            "give that model, or index into another folder"
        )
    return embedder


def _local(manifest: Manifest, device: str, dtype: str, run: dict[str, str | None]) -> Embedder:
    """Load the model that an index names from this machine."""
    name = manifest.model
    try:
        source = parse_name(name)[0]
        pinned = {"local_files_only": True}
        if source in names():  # also where the working directory has a folder of that name
            name, source = name.replace(source, bundled(source), 1), bundled(source)
        if os.path.isabs(source):
            if source.startswith(("//", "\\\\")) or not os.path.isdir(source):  # another machine's share is not read
                raise ValueError("there is no such folder")
        elif os.path.exists(source):
            raise ValueError("it is a path from an unknown folder")  # paths that we write are absolute
        elif is_commit(manifest.revision):
            pinned["revision"] = manifest.revision
        _refuse_other_dims(source, manifest, pinned)
        return new_embedder(name, device, dtype, **pinned, **run)
    except UnavailableBackend as error:
        raise UnavailableBackend(f"{error}; a folder other than the index's is given by --model") from error
    except UnavailableDevice:
        raise
    except ValueError as error:
        raise ValueError(
            f"the index says it was made by {name!r}, which this machine does not have ({one_line(error)}): name it "
            "yourself with --model"
        ) from error


def _refuse_other_dims(source: str, manifest: Manifest, pinned: dict) -> None:
    """Compare dims by the config first: the revision is known only once the weights are loaded."""
    try:
        stated = standalone.stated_dims(source) or _stated_dims(source, pinned)
    except OtherArchitecture as error:
        raise ValueError(f"its vectors have no known dims: {error}") from error
    except OSError:  # loading raises the error
        return
    if stated and (stated[0] != manifest.dims or set(stated[1]) != set(manifest.matryoshka_dims)):
        raise ValueError(f"its vectors have {stated[1]} dims, those of the index's model {manifest.matryoshka_dims}")


def _stated_dims(source: str, pinned: dict) -> tuple[int, list[int]] | None:
    """Return the dims that another model's config states."""
    if not installed("torch"):
        return None
    from wavlink.loading import stated_dims

    return stated_dims(source, **pinned)


def preprocessing_of(embedder: Embedder) -> str:
    """Return a digest of how a model's feature extractor makes inputs of sounds; "" where it does not say."""
    extractor = getattr(getattr(embedder, "processor", None), "feature_extractor", None)
    if not hasattr(extractor, "to_dict"):
        return ""
    facts = {name: value for name, value in extractor.to_dict().items() if name not in _NAMES}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_commit(revision: str) -> bool:
    """True if a revision is a commit of the Hub, and not a digest of weights."""
    return len(revision) == 40


def check_window_of(embedder: Embedder, window: float, hop: float) -> None:
    """Raise a ValueError for a window or hop, in seconds, that is out of range or too long for the model."""
    check_window(window, hop, embedder.sampling_rate)
    if embedder.max_seconds and window > embedder.max_seconds:
        raise ValueError(f"a window of {window:g} s is more than the model's {embedder.max_seconds:g} s")


def new_embedder(
    model: str | Embedder, device: str, dtype: str, revision: str | None = None, **others: Any
) -> Embedder:
    """Load a model that a user names, under the name that a new index will hold.

    Args:
        others: options of `Embedder`.
    """
    if isinstance(model, Embedder):
        return model
    name = portable(os.fspath(model) if model else bundled())
    embedder = Embedder(
        bundled(name) if name in names() else name, revision=revision, device=device, dtype=dtype, **others
    )
    embedder.name = name  # also of random:NAME@SEED
    return embedder


def portable(model: str) -> str:
    """Return the name that stands for a model in other working directories, and if it is a bundled one anywhere.

    A folder's path becomes absolute, also in random:FOLDER; a bundled model's becomes its name.
    """
    source, _ = parse_name(model)
    if stands_for_bundled(source) or not os.path.isdir(source):
        return model
    if source == model and name_of(os.path.abspath(model)) in names():
        return name_of(os.path.abspath(model))
    kind, rest = ("random:", model.removeprefix("random:")) if source != model else ("", model)
    return f"{kind}{os.path.abspath(source)}{rest.removeprefix(source)}"
