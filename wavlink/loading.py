"""Load WavLinks, transformers' CLAPs and random baselines, all with one interface.

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
from pathlib import Path

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

from modeling_wavlink.modeling_wavlink import WavLinkModel
from modeling_wavlink.pretrained_wavlink import from_safetensors, refuse_adapter
from processing import WavLinkProcessor
from processing.hub_names import model_of_run, near_folder, needs_cache

from .clap_processor import RepeatableClapProcessor
from .progress import loading_bars_hidden

logger = logging.get_logger(__name__)

ACCEPTED = (
    "give a WavLink or a transformers CLAP (such as laion/clap-htsat-unfused), each a folder or a Hub id, or "
    "random:NAME or random:NAME@SEED for one of these with new weights"
)
_CLASSES = {"wavlink": WavLinkModel, "clap": ClapModel}
_CONTROL = re.compile(r"random:(?P<source>.+?)(?:@(?P<seed>\d+))?")
# Buffers that old checkpoints lack, and every model computes equally.
_CONSTANT = re.compile(r"(^|\.)(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$")


@loading_bars_hidden()
def load_for_evaluation(
    name: str, device: str | torch.device = "cpu", revision: str | None = None, local_files_only: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin | RepeatableClapProcessor]:
    """Load a model, in fp32 and eval mode, and its processor; a CLAP is used like a WavLink.

    Args:
        name: a folder or Hub id of a WavLink or of a CLAP of transformers, with or without fusion; or
            `random:NAME@SEED`, one of these with new weights (see `random_control`); `random:NAME` has seed 0. A
            number after the last `@` is always the seed. Code beside the weights is not run.
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
    model_type, commit, local_files_only = _look_up(source, revision, local_files_only)
    if revision and not commit:
        raise ValueError(f"revision={revision!r} is of a Hub id, {source} is a folder: leave it out")
    pinned = {"local_files_only": local_files_only}
    if commit:
        pinned["revision"] = commit  # so that what is recorded is what was loaded
    try:
        model = _pretrained(source, model_type, **pinned) if seed is None else random_control(source, seed, **pinned)
        processor = _processor(source, model, **pinned)
    except OSError as error:
        raise ValueError(f"{source} cannot be loaded: {error}") from error
    return model.to(device), processor


def random_control(
    name_or_model: str | PreTrainedModel, seed: int = 0, revision: str | None = None, local_files_only: bool = False
) -> PreTrainedModel:
    """Return a random baseline: the same architecture, in eval mode, with newly initialised weights.

    torch's generator is restored afterwards.

    Args:
        name_or_model: a folder or Hub id, of which only the config is read, or a loaded model, which is not changed;
            the baseline is then on the CPU.
        seed: of the initialisation.
        revision, local_files_only: of a Hub id, as for `load_for_evaluation`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs' generators too
        if isinstance(name_or_model, PreTrainedModel):
            model = type(name_or_model)(copy.deepcopy(name_or_model.config))
        else:
            model_type, _, local_files_only = _look_up(name_or_model, revision, local_files_only)
            kind = _CLASSES[model_type]
            pinned = {"revision": revision, "local_files_only": local_files_only}
            config = kind.config_class.from_pretrained(name_or_model, **pinned)
            model = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    model.control_seed = seed
    return _ready(model)


def describe(model: PreTrainedModel, processor: ProcessorMixin | RepeatableClapProcessor) -> dict:
    """Describe a model and how its inputs are made, for the record of its scores.

    Call it after the scoring, as it holds the counts of a CLAP's processor.

    Returns:
        `kind` (`"wavlink"`, `"clap"` or `"random control"`, this one with its `seed`), `model_type`, `parameters`,
        `dims`, `sampling_rate` in Hz, `revision` (see there), `note`, and for a CLAP `clips_over_window` and
        `texts_truncated`, summed over all inputs.
    """
    seed = getattr(model, "control_seed", None)
    model_type = model.config.model_type
    description = {
        "kind": model_type if seed is None else "random control",
        "model_type": model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dims": model.config.projection_dim,
        "sampling_rate": processor.feature_extractor.sampling_rate,
        "revision": revision(model),
        "note": _note(processor),
    }
    if seed is not None:
        description |= {"seed": seed, "note": f"new weights, nothing learned; {description['note']}"}
    if isinstance(processor, RepeatableClapProcessor):
        description |= {
            "clips_over_window": processor.clips_over_window,
            "texts_truncated": processor.texts_truncated,
        }
    return description


def revision(model: PreTrainedModel) -> str:
    """Return the Hub's commit of downloaded weights, else `sha256:` and 16 digits over all weights and buffers."""
    if getattr(model, "hub_commit", None):
        return model.hub_commit
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"


def _note(processor) -> str:
    extractor = processor.feature_extractor
    if not isinstance(processor, RepeatableClapProcessor):
        if hasattr(extractor, "max_length_s"):
            return f"clips in windows of {extractor.max_length_s} s, evenly spaced, their vectors averaged"
        if extractor.padding == "max_length":
            return f"clips padded to {extractor.chunk_length} s with silence, which is attended to"
        return "clips in full, at their own length"
    window = f"{extractor.max_length_s} s"
    padding = "are repeated as often as they fit, then padded" if extractor.padding == "repeatpad" else "are padded"
    if extractor.truncation == "fusion":
        over = f"the whole shrunk to {window} and three crops, none marked as longer that is not"
    else:
        over = f"one crop of {window}"
    crops = f"placed by the clip's samples and seed {processor.seed}, where ClapFeatureExtractor crops at random"
    return f"clips under {window} {padding}; over {window}: {over}, {crops}; texts up to {processor.text_limit} tokens"


def parse_name(name: str) -> tuple[str, int | None]:
    """Split a name into a folder or Hub id, and the seed of a random baseline, if it is one.

    Raises:
        ValueError: `random:` without a model.
    """
    if not name.startswith("random:"):
        return name, None
    match = _CONTROL.fullmatch(name)
    if not match:
        raise ValueError(f"{name!r} does not say which model: {ACCEPTED}")
    return match["source"], int(match["seed"] or 0)


def _look_up(source: str, revision: str | None, local_files_only: bool) -> tuple[str, str | None, bool]:
    """Read the config: return the model type, the commit of a Hub id, and whether only the cache may be used."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{source} has no config.json: {model_of_run(folder) or ACCEPTED}")
    try:
        local_files_only = local_files_only or needs_cache(source, revision=revision)
    except ValueError as error:
        raise ValueError(f"{error}: {ACCEPTED}") from error
    try:
        path = cached_file(source, "config.json", revision=revision, local_files_only=local_files_only)
    except OSError as error:
        raise ValueError(
            f"{source!r} is neither a folder here nor available on the Hub{near_folder(source)}: {ACCEPTED} ({error})"
        ) from error
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        model_type, auto_map = config.get("model_type"), config.get("auto_map")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the config.json of {source} is broken: {error}") from error
    if model_type not in ("wavlink", "clap"):
        raise ValueError(f"{source} is a {model_type!r} model: {ACCEPTED}")
    shipped = auto_map.get("AutoModel") if isinstance(auto_map, dict) else None
    if shipped and not str(shipped).endswith("modeling_wavlink.WavLinkModel"):
        logger.warning(
            f"the model class that {source} ships, {str(shipped)[:80]!r}, is not run: this package's is taken instead"
        )
    commit = extract_commit_hash(path, None)
    refuse_adapter(source, revision=commit, local_files_only=local_files_only)
    return model_type, commit, local_files_only


def _pretrained(source: str, model_type: str, revision: str | None = None, **hub) -> PreTrainedModel:
    options = {"dtype": torch.float32, "output_loading_info": True, "revision": revision, **hub}
    model, info = from_safetensors(_CLASSES[model_type].from_pretrained, source, **options)
    missing = sorted(key for key in info["missing_keys"] if not _CONSTANT.search(key))
    if missing:
        raise ValueError(f"{source} lacks weights, which would start random: {', '.join(missing)}")
    model.hub_commit = revision
    return _ready(model)


def _processor(source: str, model: PreTrainedModel, **hub):
    if model.config.model_type == "clap":
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
