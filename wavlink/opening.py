"""Open the model of an `Embedder`: by its export alone, in torch, or converted."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wavlink.backends.choice import (
    DTYPE_OF,
    PACKAGES,
    as_unavailable,
    choose,
    graph_precision,
    installed,
    without_torch,
)
from wavlink.backends.conversions import folder_key, open_conversion, write_note
from wavlink.backends.export_checks import STRIDE
from wavlink.backends.standalone import open_standalone, why_not

from . import defaults
from .bundled_models import name_of, resolve
from .model_names import is_on_hub

if TYPE_CHECKING:
    from .loading import Model, Processor

_TOWERS = {  # audio towers by their feature extractor
    "WavLinkFeatureExtractor": "whisper",
    "WavLinkClapFeatureExtractor": "clap_audio_model",
    "WavLinkPasstFeatureExtractor": "passt",
}


class Opened(NamedTuple):
    """A model that is ready to embed, with its processor.

    Attributes:
        arguments: of `Embedder`, that open the same model in the same way again.
        pack_text: packs the text tower, which the first texts need; None if nothing does.
        name, revision, parameters: see `Embedder`.
    """

    model: Any
    processor: Any
    name: str
    revision: str
    parameters: int
    arguments: dict[str, Any]
    pack_text: Callable[[], None] | None


def open_model(
    model: "str | Model",
    processor: "Processor | None",
    *,
    revision: str | None,
    local_files_only: bool,
    backend: str | None,
    precision: str | None,
    device: str,
    dtype: str,
    fast_kernels: bool,
) -> Opened:
    """Open a model by name, or copy a loaded one. All arguments are those of `Embedder`, and so are the errors."""
    if dtype not in defaults.DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(defaults.DTYPES)}, got {dtype!r}")
    _check_pair(model, processor, revision)
    folder, commit = resolve(model) if isinstance(model, str) else "", ""
    hub = {"revision": revision, "local_files_only": local_files_only}
    local = folder
    if is_on_hub(folder) and (backend in PACKAGES or not installed("torch")):
        from .backends.hub_export import download

        with suppress(ValueError) if installed("torch") else nullcontext():  # what is wrong is said by its loading
            local, commit = download(folder, backend, precision, **hub)
    place = Path(local) if local else None
    with as_unavailable():
        backend, precision = choose(backend, precision, place, str(device), dtype)
    dtype = DTYPE_OF.get(precision, dtype) if backend == "torch" else dtype
    run = {"backend": backend, "precision": precision if backend != "torch" else None}
    arguments = {**hub, **run, "device": device, "dtype": dtype, "fast_kernels": fast_kernels}
    alone, key = None, ""
    if place and backend != "torch":
        alone = open_standalone(place, backend, precision)
        if alone is None and graph_precision(precision) == "fp32":
            key = folder_key(place, backend)
            alone = open_conversion(place, key, backend, precision)
    if alone is None:
        if not installed("torch"):
            why = why_not(place, backend, precision) if place else ""
            raise ValueError(f"{why}{without_torch(place, precision, backend)}")
        opened = _load(model, processor, folder, backend, precision, arguments)
        return _by_its_conversion(opened, place, key) if place and getattr(opened.model, "converted", None) else opened
    if revision is not None and not commit:
        raise ValueError(f"revision={revision!r} is of a Hub id, {folder} is a folder: leave it out")
    name, loaded = model if commit else name_of(local), alone[0]
    if commit:
        loaded.name_or_path, loaded.hub_commit = model, commit
    return Opened(*alone, name, commit or loaded.source_revision, loaded.source_parameters, arguments, None)


def _load(
    model: "str | Model", processor: "Processor | None", folder: str, backend: str, precision: str, arguments: dict
) -> Opened:
    """Load a model in torch, or convert it."""
    from .backends import torch_model
    from .devices import check_device
    from .loading import parameter_count
    from .loading import revision as revision_of
    from .mapped_weights import WeightsFile

    check_device(arguments["device"])
    weights = WeightsFile.of(folder)
    hub = arguments["revision"], arguments["local_files_only"]
    loaded, processor = torch_model.load(model, processor, *hub)
    if commit := getattr(loaded, "hub_commit", None) if folder else None:
        weights = WeightsFile.downloaded(folder, commit)
    name = name_of(getattr(loaded, "name_or_path", "")) or type(loaded).__name__
    path = weights.path_for(loaded)
    weights = weights if path else WeightsFile(None)
    revision, parameters = revision_of(loaded, path), parameter_count(loaded)
    loaded.source_revision = revision  # packing changes the weights that it is a digest of
    if backend != "torch":
        from .backends.compiled_model import compile_model

        with as_unavailable():
            loaded = compile_model(loaded, backend, precision, folder, hub[1])
    run = [arguments[name] for name in ("device", "dtype", "fast_kernels")]
    loaded, pack_text = torch_model.on_device(loaded, *run, weights)
    return Opened(loaded, processor, name, revision, parameters, arguments, pack_text)


def _by_its_conversion(opened: Opened, folder: Path, key: str) -> Opened:
    """Write down by which conversion a folder is run, and open it so, as the next process does without torch.

    Args:
        opened: the model that was just converted.
        key: of the folder before it was loaded: unless it is a snapshot of the Hub, its files may be others since.
    """
    from .backends.exported import standalone_facts

    model, now = opened.model, folder_key(folder, opened.model.backend)
    if not now or not model.hub_commit and now != key:
        return opened
    with suppress(OSError, ValueError):  # a cache that is only read; then torch is loaded the next time too
        write_note(now, model.backend, model.converted, standalone_facts(folder, model, opened.processor))
    alone = open_conversion(folder, now, model.backend, model.precision)
    if alone is None:
        return opened
    alone[0].name_or_path, alone[0].hub_commit = model.name_or_path, model.hub_commit
    return opened._replace(model=alone[0], processor=alone[1], pack_text=None)


def _check_pair(model: "str | Model", processor: "Processor | None", revision: str | None) -> None:
    """Raise a ValueError for a processor that is too many or missing, or a revision that nothing has."""
    if isinstance(model, str):
        if processor is not None:
            raise ValueError(f"{model} brings its own processor: leave processor out, or give the loaded model")
    elif processor is None:
        raise ValueError("a loaded model needs its processor: Embedder(model, processor)")
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is of a Hub id, not of a loaded model")
    elif not hasattr(getattr(model, "config", None), "matryoshka_dims") or not hasattr(processor, "feature_extractor"):
        raise ValueError(
            f"a {type(model).__name__} with a {type(processor).__name__} is no loaded model and its processor: give a "
            "WavLinkModel (of a wrapper such as DataParallel its .module) and its WavLinkProcessor; of a CLAP or "
            "another model give the folder or Hub id, as in Embedder('laion/clap-htsat-unfused')"
        )


def check_tower(name: str, extractor: Any, config: Any) -> None:
    """Raise a ValueError for a feature extractor that does not fit the audio tower of the WavLink `name`."""
    if getattr(config, "model_type", None) != "wavlink":
        return
    audio, kind, advice = config.audio_config, type(extractor).__name__, "save its own processor there"
    tower = _TOWERS.get(kind)
    if tower and audio.model_type != tower:
        raise ValueError(f"{name} has a {kind}, which is for a {tower} tower, not for a {audio.model_type}: {advice}")
    bands, taken = getattr(extractor, "feature_size", None), getattr(audio, "num_mel_bins", None)
    if bands and taken and bands != taken:
        raise ValueError(
            f"{name} has a feature extractor of {bands} mel bands, its audio tower takes {taken}: {advice}"
        )
    frames, positions = getattr(extractor, "nb_max_frames", None), getattr(audio, "max_source_positions", None)
    if frames and positions and frames > STRIDE * positions:  # OpenVINO would read positions that are none
        raise ValueError(
            f"{name} has a feature extractor of up to {frames} frames, its audio tower takes {STRIDE * positions}: "
            f"{advice}"
        )
