"""What is scored side by side: WavLinks, transformers' CLAPs, and controls with new weights, all asked alike.

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
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BatchFeature,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from modeling_wavlink.modeling_wavlink import WavLinkModel
from modeling_wavlink.pretrained_wavlink import from_safetensors, refuse_adapter
from processing import WavLinkProcessor
from processing.hub_names import near_folder, needs_cache

logger = logging.get_logger(__name__)

ACCEPTED = (
    "give a WavLink or a transformers CLAP (such as laion/clap-htsat-unfused), each a folder or a Hub id, or "
    "random:NAME or random:NAME@SEED for one of these with new weights"
)
_CLASSES = {"wavlink": WavLinkModel, "clap": ClapModel}
_CONTROL = re.compile(r"random:(?P<source>.+?)(?:@(?P<seed>\d+))?")
# Buffers that old checkpoints lack and every model makes anew, alike.
_CONSTANT = re.compile(r"(^|\.)(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$")


class RepeatableClapProcessor:
    """A `ClapProcessor` without its chance: a clip's inputs depend on nothing but the clip.

    Up to the window (10 s) `ClapFeatureExtractor` takes a whole clip. Of a longer one it takes a crop ("rand_trunc"),
    or three crops beside the whole clip shrunk ("fusion"), placed by numpy's global generator. Here each clip is
    extracted alone, with that generator seeded by the clip's own samples, so that clips of one length are not all cut
    at one place, and put back afterwards. "fusion" also marks one clip of a batch at random as longer where none is,
    which gives that clip another vector: here only clips that are longer are marked.

    Args:
        processor: of a CLAP, fused or not.
        text_config: of the same CLAP.

    `clips_over_window` and `texts_truncated` count what was not heard or read whole.
    """

    seed = 0

    def __init__(self, processor: ClapProcessor, text_config: PretrainedConfig):
        self.feature_extractor = processor.feature_extractor
        self.tokenizer = processor.tokenizer
        # As in RoBERTa, whose positions start after that of padding.
        positions = text_config.max_position_embeddings - text_config.pad_token_id - 1
        self.text_limit = min(self.tokenizer.model_max_length, positions)
        self.clips_over_window = 0
        self.texts_truncated = 0

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: np.ndarray | Sequence[np.ndarray] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Args:
            text: a sentence or a list; padded to the longest, and truncated, with one warning, to the tower's limit.
            audio: one mono clip `[samples]` of floats in [-1, 1] or a list.
            sampling_rate: of the clips, in Hz; required with audio.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `input_ids`, `attention_mask` `[B_text, L]` and/or `input_features` `[B_audio, C, T, F]` (C = 1, or 4 with
            fusion) and `is_longer` bool `[B_audio, 1]`.
        """
        if text is None and audio is None:
            raise ValueError("give text, audio or both")
        data = {}
        if text is not None:
            data |= self._read([text] if isinstance(text, str) else list(text))
        if audio is not None:
            data |= self._hear([audio] if isinstance(audio, np.ndarray) else list(audio), sampling_rate)
        return BatchFeature(data, tensor_type=return_tensors)

    def _read(self, texts: list[str]) -> dict:
        lengths = [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]
        over = sum(length > self.text_limit for length in lengths)
        if over:
            logger.warning_once(f"texts over CLAP's limit of {self.text_limit} tokens are truncated (said once)")
        self.texts_truncated += over
        return dict(self.tokenizer(texts, padding=True, truncation=True, max_length=self.text_limit))

    def _hear(self, clips: list[np.ndarray], sampling_rate: int | None) -> dict[str, np.ndarray]:
        if sampling_rate != self.feature_extractor.sampling_rate:
            raise ValueError(
                f"the clips have sampling_rate={sampling_rate} but this CLAP takes "
                f"{self.feature_extractor.sampling_rate} Hz: resample them, and say their rate"
            )
        if not clips:
            raise ValueError("no clips: give one clip, or a list of at least one")
        inputs = [self._extract(np.asarray(clip), number) for number, clip in enumerate(clips)]
        return {name: np.concatenate([row[name] for row in inputs]) for name in inputs[0]}

    def _extract(self, clip: np.ndarray, number: int) -> dict[str, np.ndarray]:
        """`input_features` `[1, C, T, F]` and `is_longer` `[1, 1]`."""
        if clip.ndim != 1 or not len(clip) or clip.dtype.kind != "f" or not np.isfinite(clip).all():
            raise ValueError(
                f"clip {number} must be mono, [samples], of finite floats in [-1, 1] and not empty, got "
                f"{list(clip.shape)} of {clip.dtype}"
            )
        extractor = self.feature_extractor
        state = np.random.get_state()
        np.random.seed([self.seed, zlib.crc32(clip.tobytes())])
        try:
            inputs = extractor([clip], sampling_rate=extractor.sampling_rate, return_tensors="np")
        finally:
            np.random.set_state(state)
        self.clips_over_window += len(clip) > extractor.nb_max_samples
        longer = np.array(inputs["is_longer"])
        if extractor.truncation == "fusion":  # the extractor compares frames, of which a clip has one more than hops
            longer[:] = len(clip) // extractor.hop_length > extractor.nb_max_samples // extractor.hop_length
        return {"input_features": inputs["input_features"], "is_longer": longer}


def load_for_evaluation(
    name: str, device: str | torch.device = "cpu", revision: str | None = None, local_files_only: bool = False
):
    """A model, in fp32 and eval mode on `device`, and its processor, which `evaluation` cannot tell from a WavLink's.

    Args:
        name: a folder or Hub id of a WavLink or of a CLAP of transformers, with or without fusion; or
            `random:NAME@SEED`, one of these with new weights (see `random_control`), `random:NAME` with seed 0. A
            number after the last `@` is always the seed. No code that lies beside the weights is run.
        revision: of a Hub id, a branch, tag or commit (default: its main branch).
        local_files_only: of a Hub id, what has been downloaded before, and nothing is asked of the Hub.

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
    """The same architecture, in eval mode, with new weights as its own initialisation draws them from `seed`.

    What such a model scores is owed to nothing that was learned. torch's generator is put back afterwards.

    Args:
        name_or_model: a folder or Hub id, of which only the config is read, or a model of either kind, which stays as
            it is; the control is then on the CPU.
        revision, local_files_only: of a Hub id.
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


def describe(model: PreTrainedModel, processor) -> dict:
    """What was scored and how it heard and read, for the record. Ask after the scoring: a CLAP's counts are in it.

    Returns:
        `kind` (`"wavlink"`, `"clap"` or `"random control"`, this one with its `seed`), `model_type`, `parameters`,
        `dims`, `sampling_rate` in Hz, `revision` (see there), `note`, and for a CLAP `clips_over_window` and
        `texts_truncated`, which add up over all that its processor has heard and read.
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
    """The Hub's commit of weights that came from there, else `sha256:` and 16 digits over all weights and buffers."""
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
            return f"clips in windows of {extractor.max_length_s} s, evenly placed, their vectors averaged"
        if extractor.padding == "max_length":
            return f"clips padded to {extractor.chunk_length} s with silence, which is heard"
        return "clips heard whole, at their own length"
    window = f"{extractor.max_length_s} s"
    padding = "are repeated as often as they fit, then padded" if extractor.padding == "repeatpad" else "are padded"
    if extractor.truncation == "fusion":
        over = f"the whole shrunk to {window} and three crops, none marked as longer that is not"
    else:
        over = f"one crop of {window}"
    place = f"placed by the clip's samples and seed {processor.seed}, where ClapFeatureExtractor leaves it to chance"
    return f"clips under {window} {padding}; over {window}: {over}, {place}; texts up to {processor.text_limit} tokens"


def parse_name(name: str) -> tuple[str, int | None]:
    """The folder or Hub id, and the seed if it is to be a control.

    Raises:
        ValueError: a control of nothing.
    """
    if not name.startswith("random:"):
        return name, None
    found = _CONTROL.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} does not say which model: {ACCEPTED}")
    return found["source"], int(found["seed"] or 0)


def _look_up(source: str, revision: str | None, local_files_only: bool) -> tuple[str, str | None, bool]:
    """The model type, the commit if it is the Hub's, and whether only its cache answers, from the config alone."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        best = folder / "best"
        hint = f"did you mean {best}?" if (best / "config.json").is_file() else ACCEPTED
        raise ValueError(f"{source} has no config.json: {hint}")
    try:
        local_files_only = local_files_only or needs_cache(source, revision=revision)
    except ValueError as error:
        raise ValueError(f"{error}: {ACCEPTED}") from error
    try:
        path = cached_file(source, "config.json", revision=revision, local_files_only=local_files_only)
    except OSError as error:
        raise ValueError(
            f"{source!r} is neither a folder here nor to be had from the Hub{near_folder(source)}: {ACCEPTED} "
            f"({error})"
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
    """Four spectrograms a clip are for a model that fuses them; transformers would fail at the first batch."""
    if processor.feature_extractor.truncation == "fusion" and not model.config.audio_config.enable_fusion:
        raise ValueError(
            f"{source} is a CLAP without fusion whose feature extractor has truncation='fusion': save it with "
            "truncation='rand_trunc'"
        )
