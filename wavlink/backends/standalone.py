"""A WavLink by its export alone: vectors without torch and without transformers.

`wavlink export` writes into its record what this needs besides the graphs (see `describe`).
"""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from modeling_wavlink.config_checks_wavlink import check_numbers, check_optional, nested_dims, one_line
from processing.fast_tokenizer import FastTokenizer
from processing.log_mel_extractor import LogMelExtractor
from processing.text_inputs_wavlink import TextInputs
from wavlink.bundled_models import digest_of

from .choice import has_export, installed, read_record, record_name
from .export_checks import CONFIG_FIELDS, TOWER_FIELDS, refuse_damaged, refuse_other, refuse_unfit
from .sessions import INPUTS, Tower, default_threads, open_tower

logger = logging.getLogger(__name__)

KEY = "standalone"  # in the record of an export
_FACTS = {"weights": dict, "settings": str, "parameters": int, "logit_scale": float, "logit_bias": float}
_LARGEST = math.log(sys.float_info.max)  # of a factor's log; NaN is not below it either
_TOWERS = ("audio_config", "text_config")
_DEFAULTS = {
    "projection_dim": 512,
    "logit_scale_init_value": 0.0,
    "logit_bias_init_value": 0.0,
    "logit_scale_max": 100.0,
    "initializer_range": 0.02,
    "label_prompts": None,
    "match_calibration": None,
}


class StandaloneModel:
    """An exported model for inference on the CPU, which takes and returns numpy arrays, or tensors of torch.

    Args:
        folder: of the model.
        config: what its config.json holds.
        record: of the export.
        towers: `audio` and `text`.
        backend, precision: of the towers, see `Embedder`.

    Attributes:
        scale: factor of the logits, at most `logit_scale_max`.
        source_revision, source_parameters: of the model that the export was made from.
        hub_commit: of a model of the Hub.
    """

    hub_commit: str | None = None

    tensors = "np"
    training = False

    def __init__(
        self,
        folder: Path,
        config: SimpleNamespace,
        record: Mapping[str, Any],
        towers: dict[str, Tower],
        backend: str,
        precision: str,
    ):
        about = record[KEY]
        self.name_or_path, self.config = str(folder), config
        self.towers, self.backend, self.precision = towers, backend, precision
        self.scale = min(math.exp(about["logit_scale"]), config.logit_scale_max)
        self.logit_bias = about["logit_bias"]
        self.source_revision, self.source_parameters = record["model"]["weights"], about["parameters"]

    def get_audio_features(
        self, input_features: np.ndarray, input_features_mask: np.ndarray | None = None
    ) -> SimpleNamespace:
        """Embed clips; arguments and `pooler_output` are `WavLinkModel`'s."""
        return self._features("audio", input_features, input_features_mask)

    def get_text_features(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, **_: Any
    ) -> SimpleNamespace:
        """Embed texts; arguments and `pooler_output` are `WavLinkModel`'s."""
        return self._features("text", input_ids, attention_mask)

    def _features(self, name: str, values: np.ndarray, mask: np.ndarray | None) -> SimpleNamespace:
        inputs = dict(zip(INPUTS[name], (values, mask), strict=True))
        arrays = {key: _as_array(value) for key, value in inputs.items() if value is not None}
        refuse_unfit(name, arrays[INPUTS[name][0]], self.config)
        vectors = self.towers[name](arrays)
        if hasattr(values, "detach"):  # a tensor
            import torch

            return SimpleNamespace(pooler_output=torch.from_numpy(vectors))
        return SimpleNamespace(pooler_output=vectors)

    def eval(self) -> "StandaloneModel":
        """Return this model, which is never trained."""
        return self

    def train(self, mode: bool = True) -> "StandaloneModel":
        """Return this model.

        Raises:
            ValueError: it is to be trained.
        """
        if mode:
            raise ValueError("an export cannot be trained: load the model with backend='torch'")
        return self


class StandaloneProcessor(TextInputs):
    """The inputs that `WavLinkProcessor` makes, as numpy arrays.

    Args:
        folder: of the model, with `processor_config.json` (or `preprocessor_config.json`) and the tokenizer's files.

    Raises:
        ValueError: files that are missing or damaged, or a feature extractor that needs torch.
    """

    def __init__(self, folder: Path):
        self.feature_extractor = LogMelExtractor(_extractor_settings(folder))
        self.tokenizer = FastTokenizer(folder)
        self._noted: set[str] = set()

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: object = None,
        sampling_rate: int | None = None,
        padding: bool | str | None = None,
        return_tensors: str | None = "np",
        truncation: bool | str | None = None,
        max_length: int | None = None,
    ) -> Mapping[str, Any]:
        """Tokenize texts and compute the log-mels of clips; see `WavLinkProcessor`.

        Args:
            return_tensors: `"np"`; `"pt"` where torch is installed.
            truncation, max_length: of texts.

        Raises:
            ValueError: neither text nor audio, or inputs that the tokenizer or the feature extractor refuse.
        """
        if text is None and audio is None:
            raise ValueError("give text, audio or both")
        as_torch = return_tensors == "pt" and installed("torch")
        inputs: dict[str, Any] = {}
        if text is not None:
            kind = "np" if as_torch else return_tensors
            inputs |= self._tokenize(text, kind, padding, truncation, max_length)
        if audio is not None:
            inputs |= self.feature_extractor(audio, sampling_rate, padding)
        if not as_torch:
            return inputs
        from transformers import BatchFeature

        return BatchFeature(inputs, tensor_type="pt")

    def _note_once(self, message: str) -> None:
        if message not in self._noted:
            self._noted.add(message)
            logger.warning(message)


def _as_array(values: Any) -> np.ndarray:
    """Return an array, also of a tensor in bf16, which numpy does not have."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def describe(
    folder: Path, config: Mapping[str, Any], parameters: int, logit_scale: float, logit_bias: float
) -> dict[str, Any]:
    """Return what the record of an export holds for this module.

    It has the hashes of the files with the weights and of the settings in config.json, for which the export stands.

    Args:
        folder: of the model.
        config: what its config.json holds.
        parameters, logit_scale (a log), logit_bias: of the model.
    """
    weights = {path.name: digest_of(path) for path in sorted(folder.glob("model*.safetensors"))}
    numbers = {"parameters": parameters, "logit_scale": logit_scale, "logit_bias": logit_bias}
    return {"weights": weights, "settings": _settings_hash(config), **numbers}


def open_standalone(
    folder: str | Path, backend: str, precision: str
) -> tuple[StandaloneModel, StandaloneProcessor] | None:
    """Open a model by the export in its folder; None if that has none, or one that needs the model in torch.

    Raises:
        ValueError: an export of another model, a damaged one, or a config.json or processor that cannot be read.
    """
    folder = Path(folder)
    if not has_export(folder, backend, precision):
        return None
    path = folder / backend / record_name(precision)
    record = read_record(path)
    if needs_torch(folder, record):
        return None
    about = record[KEY]
    if wrong := [name for name, kind in _FACTS.items() if not _is_fact(about.get(name), kind)]:
        raise ValueError(f"{path} does not describe an export (by {wrong[0]!r}): export the model again")
    refuse_other(path, folder, _differs(folder, _read_config(folder)[1], about))
    refuse_damaged(path, record, lambda name: path.parent / name)
    return open_described(folder, path.parent, record, backend, precision)


def open_described(
    folder: Path, graphs: Path, record: Mapping[str, Any], backend: str, precision: str
) -> tuple[StandaloneModel, StandaloneProcessor]:
    """Open a model by graphs that were made of it.

    Args:
        folder: of the model.
        graphs: their folder.
        record: that describes them.

    Raises:
        ValueError: a config.json, a processor or a graph that cannot be read.
    """
    config, towers = _read_config(folder)[0], open_towers(graphs, backend, precision)
    return StandaloneModel(folder, config, record, towers, backend, precision), StandaloneProcessor(folder)


def _is_fact(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (kind is not float or abs(value) < _LARGEST)


def why_not(folder: Path, backend: str, precision: str) -> str:
    """Return why an export in a model's folder does not run without torch; "" if there is none."""
    if not has_export(folder, backend, precision):
        return ""
    why = needs_torch(folder, read_record(folder / backend / record_name(precision)))
    return f"the export in {folder / backend} does not run without torch ({why}); "


def needs_torch(folder: Path, record: Mapping[str, Any]) -> str:
    """Return why an export needs the model in torch; "" if it does not."""
    about = record.get(KEY)
    if not isinstance(about, dict):
        return "an earlier version made it"
    beside = {
        "adapter_config.json": "it has an adapter",
        "modules.json": "it has the modules of a SentenceTransformer",
    }
    others = [why for name, why in beside.items() if (folder / name).exists()]
    return str(about.get("error") or (others[0] if others else ""))


def open_towers(folder: Path, backend: str, precision: str) -> dict[str, Tower]:
    """Open both towers of an export, with as many threads as torch has where it is imported."""
    record = read_record(folder / record_name(precision))
    try:
        files = {name: record["towers"][name]["file"] for name in INPUTS}
        unknown = set(files.values()) - set(record["files"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} names no graphs ({error!r}): export the model again") from error
    if unknown:
        raise ValueError(f"{folder} names a graph that is none of its files, {min(unknown)!r}: export the model again")
    if record.get("backend", backend) != backend:
        raise ValueError(f"{folder} holds an export for {record['backend']}, not {backend}: export the model again")
    torch = sys.modules.get("torch")
    threads = default_threads() if torch is None else torch.get_num_threads()
    return {name: open_tower(backend, folder / file, precision, threads) for name, file in files.items()}


def stated_dims(folder: str | Path) -> tuple[int, list[int]] | None:
    """Return the dims and the nested dims that a WavLink's config.json states; None if the folder holds none."""
    if not (Path(folder) / "config.json").is_file():
        return None
    try:
        config, _ = _read_config(Path(folder))
    except ValueError:  # loading the model raises it
        return None
    return config.projection_dim, list(config.matryoshka_dims)


def _read_config(folder: Path) -> tuple[SimpleNamespace, dict[str, Any]]:
    """Return a WavLink's config with its defaults, and what the file holds."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("model_type") != "wavlink":
            raise ValueError(f"it is one of a {raw.get('model_type')!r} model")
        config = SimpleNamespace(**(_DEFAULTS | raw))
        config.audio_config, config.text_config = (SimpleNamespace(**(raw.get(name) or {})) for name in _TOWERS)
        if getattr(config, "matryoshka_dims", None) is None:
            config.matryoshka_dims = nested_dims(config.projection_dim)
        check_numbers(config)
        check_optional(config)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"the config of {folder} is not a WavLink's: {one_line(error)}") from error
    return config, raw


def _settings_hash(config: Mapping[str, Any]) -> str:
    """Hash the fields of a config.json that change a graph and that its weights do not show."""
    fields = [{name: config.get(name) for name in CONFIG_FIELDS}]
    fields += [{name: (config.get(tower) or {}).get(name) for name in TOWER_FIELDS} for tower in _TOWERS]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _differs(folder: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return what of a model is not as it was exported. Weights need not be there."""
    weights = {path.name: digest_of(path) for path in folder.glob("model*.safetensors")}
    if weights and weights != about["weights"]:
        return "weights"
    return "" if _settings_hash(config) == about["settings"] else "settings in config.json"


def _extractor_settings(folder: Path) -> dict[str, Any]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            return dict(settings["feature_extractor"] if name == "processor_config.json" else settings)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / name} cannot be read: {error!r}") from error
    raise ValueError(f"{folder} has no processor_config.json: bring it here with the export")
