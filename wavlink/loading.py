"""Load WavLinks, models of other libraries and random baselines, all with one interface.

```python
>>> model, processor = load_for_evaluation("laion/clap-htsat-unfused")  # or a WavLink, or "random:runs/sounds/best"
>>> inputs = processor(audio=[clip], sampling_rate=processor.feature_extractor.sampling_rate, return_tensors="pt")
>>> model.get_audio_features(**inputs).pooler_output.shape
torch.Size([1, 512])
```
"""

import copy
import hashlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from modeling_wavlink.compat_wavlink import optional_file
from modeling_wavlink.modeling_wavlink import WavLinkModel
from modeling_wavlink.pretrained_wavlink import CheckedWeights, from_safetensors, mapped_anew, refuse_adapter
from processing import WavLinkProcessor
from processing.hub_names import model_of_run, near_folder, needs_cache

from . import bundled_models, sentence_transformer
from .adapted_models import ADAPTED, adapted_classes
from .adapted_processor import AdaptedProcessor
from .backends.choice import precision_of
from .clap_processor import RepeatableClapProcessor
from .model_names import ACCEPTED, OtherArchitecture
from .model_names import parse_name as parse_name
from .progress import loading_bars_hidden

Model: TypeAlias = PreTrainedModel | sentence_transformer.SentenceTransformerEmbedder
Processor: TypeAlias = ProcessorMixin | AdaptedProcessor

logger = logging.get_logger(__name__)

_CLASSES = {"wavlink": WavLinkModel, "clap": ClapModel}
_SENTENCE_TRANSFORMER = "sentence_transformer"  # what only sentence-transformers can load
# Buffers that old checkpoints lack, and every model computes equally.
_CONSTANT = re.compile(r"(^|\.)(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$")


@loading_bars_hidden()
def load_for_evaluation(
    name: str, device: str | torch.device = "cpu", revision: str | None = None, local_files_only: bool = False
) -> tuple[Model, Processor]:
    """Load a model, in fp32 and eval mode, and its processor; each is used like a WavLink.

    Args:
        name: a folder or Hub id of a WavLink; of a CLAP (with or without fusion), PE-Audio, PE-Audio-Video (its
            audio-text part) or EmbeddingGemma 2 (its audio and text towers) of transformers; of a SentenceTransformer
            that encodes audio and text; or `random:NAME@SEED`, one of these with new weights (see `random_control`);
            `random:NAME` has seed 0. A number after the last `@` is always the seed. Code beside the weights is not
            run. A bundled model has its bare name, and "" is the default one (see `wavlink.bundled`).
        device: that the model is moved to.
        revision: of a Hub id: a branch, tag or commit (default: its main branch).
        local_files_only: whether a Hub id is looked up in the local cache alone.

    Returns:
        The model, with `get_audio_features`, `get_text_features` (`pooler_output` `[B, D]`, L2-normalised),
        `config.projection_dim` and `config.matryoshka_dims`, and a processor with `feature_extractor.sampling_rate`,
        `tokenizer` and calls `(audio=[...], sampling_rate=...)` or `(text=[...])`. A CLAP's model is transformers'.

    Raises:
        ValueError: a name that is none of these, or weights or a processor that are missing.
    """
    source, seed = parse_name(name)
    try:
        source = bundled_models.resolve(source)
    except ValueError as error:
        if source == name:
            raise
        raise ValueError(f"{error}; random:NAME and random:NAME@SEED are one of these with new weights") from error
    kind, commit, local_files_only = _look_up(source, revision, local_files_only)
    if revision and not commit:
        raise ValueError(f"revision={revision!r} is of a Hub id, {source} is a folder: leave it out")
    pinned = {"local_files_only": local_files_only}
    if commit:
        pinned["revision"] = commit  # so that what is recorded is what was loaded
    try:
        if kind == _SENTENCE_TRANSFORMER and seed is None:
            model, processor = sentence_transformer.load(source, **pinned)
            model.hub_commit = commit
        else:
            model = _pretrained(source, kind, **pinned) if seed is None else random_control(source, seed, **pinned)
            processor = _processor(source, kind, model, **pinned)
    except OSError as error:
        raise ValueError(f"{source} cannot be loaded: {error}") from error
    return model.to(device), processor


def random_control(
    name_or_model: str | Model, seed: int = 0, revision: str | None = None, local_files_only: bool = False
) -> PreTrainedModel:
    """Return a random baseline: the same architecture, in eval mode, with newly initialised weights.

    torch's generator is restored afterwards.

    Args:
        name_or_model: a folder or Hub id, of which only the config is read, or a loaded model, which is not changed;
            the baseline is then on the CPU.
        seed: of the initialisation.
        revision, local_files_only: of a Hub id, as for `load_for_evaluation`.

    Raises:
        ValueError: a SentenceTransformer, whose modules may be any and have no common initialisation.
    """
    kind = _SENTENCE_TRANSFORMER
    pinned = {"revision": revision, "local_files_only": local_files_only}
    if isinstance(name_or_model, str):
        kind, _, pinned["local_files_only"] = _look_up(name_or_model, revision, local_files_only)
    elif isinstance(name_or_model, PreTrainedModel):
        kind = name_or_model.config.model_type
    if kind == _SENTENCE_TRANSFORMER:
        raise ValueError(
            "a SentenceTransformer has no random baseline, since its modules may be any: take one of another model"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' generators too
        if isinstance(name_or_model, PreTrainedModel):
            model = type(name_or_model)(copy.deepcopy(name_or_model.config))
        elif kind in ADAPTED:
            model_class, _ = adapted_classes(kind)
            model = model_class(model_class.read_config(name_or_model, **pinned)).float()
        else:
            config = _CLASSES[kind].config_class.from_pretrained(name_or_model, **pinned)
            model = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    model.control_seed = seed
    if model.config.model_type == "wavlink":
        model.config.match_calibration = None  # of the learned weights
    return _ready(model)


def stated_dims(
    source: str, revision: str | None = None, local_files_only: bool = False
) -> tuple[int, list[int]] | None:
    """Return the dims and the nested dims that a model's config states, None if only the loaded model tells.

    Args:
        source: a folder or Hub id.
        revision, local_files_only: of a Hub id, as for `load_for_evaluation`.

    Raises:
        ValueError: `load_for_evaluation`'s.
    """
    kind, _, local_files_only = _look_up(source, revision, local_files_only)
    if kind == _SENTENCE_TRANSFORMER:
        return None
    pinned = {"revision": revision, "local_files_only": local_files_only}
    if kind in ADAPTED:
        config = adapted_classes(kind)[0].read_config(source, **pinned)
    else:
        config = _CLASSES[kind].config_class.from_pretrained(source, **pinned)
    return config.projection_dim, list(getattr(config, "matryoshka_dims", None) or [config.projection_dim])


def describe(model: Model, processor: Processor) -> dict:
    """Describe a model and how its inputs are made, for the record of its scores.

    Call it after the scoring, as it holds the counts of the processor.

    Returns:
        `kind` (the model type, or `"random control"`, this one with its `seed`), `model_type`, `parameters`,
        `backend` and `precision` (see `Embedder`), `dims`, `sampling_rate` in Hz, `revision` (see there), `note`, and
        for a model of another library `texts_truncated`, for a CLAP also `clips_over_window`, summed over all inputs.
    """
    seed = getattr(model, "control_seed", None)
    model_type = model.config.model_type
    description = {
        "kind": model_type if seed is None else "random control",
        "model_type": model_type,
        "parameters": parameter_count(model),
        "backend": getattr(model, "backend", "torch"),
        "precision": precision_of(model),
        "dims": model.config.projection_dim,
        "sampling_rate": processor.feature_extractor.sampling_rate,
        "revision": revision(model),
        "note": _note(processor),
    }
    if seed is not None:
        description |= {"seed": seed, "note": f"new weights, nothing learned; {description['note']}"}
    counts = ("clips_over_window", "texts_truncated")
    description |= {name: getattr(processor, name) for name in counts if hasattr(processor, name)}
    return description


def revision(model: Model, path: str | None = None) -> str:
    """Return the Hub's commit of downloaded weights, else `sha256:` and 16 digits over all weights and buffers.

    Args:
        path: of the file that the weights were loaded from, if it is known, see `mapped_anew`.
    """
    known = getattr(model, "hub_commit", None) or getattr(model, "source_revision", None)
    return known or weights_digest(model, path)


def weights_digest(model: torch.nn.Module, path: str | None = None) -> str:
    """Return `sha256:` and 16 digits over all weights and buffers; arguments as of `revision`."""
    digest = hashlib.sha256()
    for name, tensor in mapped_anew(sorted(model.state_dict().items()), path):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"


def parameter_count(model: Model) -> int:
    """Return the number of a model's parameters, of one in another backend those it was made from."""
    return getattr(model, "source_parameters", None) or sum(parameter.numel() for parameter in model.parameters())


def _note(processor: Processor) -> str:
    if isinstance(processor, AdaptedProcessor):
        return processor.note()
    extractor = processor.feature_extractor
    if hasattr(extractor, "max_length_s"):
        return f"clips in windows of {extractor.max_length_s} s, evenly spaced, their vectors averaged"
    if hasattr(extractor, "window_seconds"):
        window = f"{extractor.window_seconds:g} s"
        return f"clips at their own length, over {window} in windows of {window}, their vectors averaged"
    if extractor.padding == "max_length":
        return f"clips padded to {extractor.chunk_length} s with silence, which is attended to"
    return "clips in full, at their own length"


def _look_up(source: str, revision: str | None, local_files_only: bool) -> tuple[str, str | None, bool]:
    """Read the config: return the kind of a model, the commit of a Hub id, and whether only the cache may be used.

    The kind is the model type, or that of a SentenceTransformer which does more than the model in its root folder.
    """
    folder = Path(source)
    names = [name for name in ("config.json", "modules.json") if not folder.is_dir() or (folder / name).is_file()]
    if not names:
        raise ValueError(f"{source} has no config.json: {model_of_run(folder) or ACCEPTED}")
    try:
        local_files_only = local_files_only or needs_cache(source, revision=revision)
    except ValueError as error:
        raise ValueError(f"{error}: {ACCEPTED}") from error
    config, commit = _read_config(source, names, revision, local_files_only)
    model_type, auto_map = config.get("model_type"), config.get("auto_map")
    pinned = {"revision": commit, "local_files_only": local_files_only}
    modules = sentence_transformer.modules_of(source, **pinned)
    known = model_type in (*_CLASSES, *ADAPTED)
    if modules and not (
        known and sentence_transformer.is_plain(source, modules, model_type == "embedding_gemma2", **pinned)
    ):
        return _SENTENCE_TRANSFORMER, commit, local_files_only
    if not known:
        raise OtherArchitecture(f"{source} is a {model_type!r} model: {ACCEPTED}")
    shipped = auto_map.get("AutoModel") if isinstance(auto_map, dict) else None
    if shipped and not str(shipped).endswith("modeling_wavlink.WavLinkModel"):
        logger.warning(
            f"the model class that {source} ships, {str(shipped)[:80]!r}, is not run: this package's is taken instead"
        )
    refuse_adapter(source, **pinned)
    return model_type, commit, local_files_only


def _read_config(
    source: str, names: list[str], revision: str | None, local_files_only: bool
) -> tuple[dict[str, Any], str | None]:
    """Return the config, empty where the model has none in its root folder, and the commit of a Hub id."""
    pinned = {"revision": revision, "local_files_only": local_files_only}
    try:
        path = cached_file(source, names[0], **pinned)
    except OSError as error:
        try:
            path = optional_file(source, "modules.json", **pinned)
        except OSError:
            path = None
        if path is None:
            raise ValueError(
                f"{source!r} is neither a folder here nor available on the Hub{near_folder(source)}: {ACCEPTED} "
                f"({error})"
            ) from error
    commit = extract_commit_hash(path, None)
    if Path(path).name == "modules.json":
        return {}, commit
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the config.json of {source} is broken: {error}") from error
    return config, commit


def _pretrained(source: str, kind: str, revision: str | None = None, **hub) -> PreTrainedModel:
    hub["revision"] = revision
    options = {"dtype": torch.float32, "output_loading_info": True, **hub}
    if kind in ADAPTED:
        model_class, _ = adapted_classes(kind)
        options |= {"config": model_class.read_config(source, **hub), "key_mapping": model_class.key_mapping}
    else:
        model_class = _CLASSES[kind]
    load = model_class.from_pretrained
    if not issubclass(model_class, CheckedWeights):  # which does this itself
        load = partial(from_safetensors, load)
    model, info = load(source, **options)
    missing = sorted(key for key in info["missing_keys"] if not _CONSTANT.search(key))
    if missing:
        raise ValueError(f"{source} lacks weights, which would start random: {', '.join(missing)}")
    model.hub_commit = revision
    return _ready(model)


def _processor(source: str, kind: str, model: PreTrainedModel, **hub) -> Processor:
    if kind in ADAPTED:
        _, processor_class = adapted_classes(kind)
        return processor_class(source, model, **hub)
    if kind == "clap":
        extractor = ClapFeatureExtractor.from_pretrained(source, **hub)
        tokenizer = AutoTokenizer.from_pretrained(source, config=model.config, trust_remote_code=False, **hub)
        processor = RepeatableClapProcessor(ClapProcessor(extractor, tokenizer), model.config.text_config)
        _refuse_other_truncation(source, model, processor)
        return processor
    return WavLinkProcessor.from_pretrained(source, **hub)


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    if model.config.model_type == "clap":
        model.config.matryoshka_dims = [model.config.projection_dim]
    return model.eval()


def _refuse_other_truncation(source: str, model: PreTrainedModel, processor) -> None:
    """Refuse an extractor that makes four spectrograms for a model without fusion, which fails at the first batch."""
    if processor.feature_extractor.truncation == "fusion" and not model.config.audio_config.enable_fusion:
        raise ValueError(
            f"{source} is a CLAP without fusion whose feature extractor has truncation='fusion': save it with "
            "truncation='rand_trunc'"
        )
