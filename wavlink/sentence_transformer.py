"""A SentenceTransformer that encodes audio and text, used like a WavLink."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import FeatureExtractionMixin, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_wavlink.compat_wavlink import optional_file
from modeling_wavlink.configuration_wavlink import one_line
from modeling_wavlink.pretrained_wavlink import from_safetensors

from .adapted_processor import AdaptedProcessor, seeded_by

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_OWN_MODULE = re.compile(r"sentence_transformers\.(models|modules|([a-z_]+\.)+modules)(\.[a-z_]+)*\.[A-Z]\w*")
_WINDOW_SECONDS = (30, 20, 10, 5, 2, 1)  # where a feature extractor states no limit: the longest that it does not cut
_SETTINGS = "config_sentence_transformers.json"


class SentenceTransformerEmbedder(nn.Module):
    """A SentenceTransformer with the methods of a WavLink. Its vectors are those of `encode`, L2-normalised.

    Clips and texts are encoded one at a time: what padding does depends on the modules, which may be any.

    Args:
        model: encodes audio and text.
        name: the folder or Hub id that it came from.
    """

    def __init__(self, model: "SentenceTransformer", name: str):
        super().__init__()
        self.model, self.name_or_path = model, name
        dims = model.get_embedding_dimension()
        self.config = SimpleNamespace(
            model_type="sentence_transformer", projection_dim=dims, matryoshka_dims=[dims], name_or_path=name
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    def get_audio_features(self, features: list[dict[str, Any]]) -> BaseModelOutputWithPooling:
        """Embed clips that `SentenceTransformer.preprocess` prepared: `pooler_output` `[B, D]`, L2-normalised."""
        return self._embed(features)

    def get_text_features(self, features: list[dict[str, Any]]) -> BaseModelOutputWithPooling:
        """Embed texts that `SentenceTransformer.preprocess` prepared: `pooler_output` `[B, D]`, L2-normalised."""
        return self._embed(features)

    def _embed(self, features: list[dict[str, Any]]) -> BaseModelOutputWithPooling:
        embeds = [self.model({name: self._placed(value) for name, value in row.items()}) for row in features]
        rows = torch.cat([row["sentence_embedding"] for row in embeds])[:, : self.config.projection_dim]
        return BaseModelOutputWithPooling(pooler_output=F.normalize(rows, dim=-1))

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)


class SentenceTransformerProcessor(AdaptedProcessor):
    """Prepares clips and texts one at a time, with a SentenceTransformer's `preprocess`.

    Args:
        model: encodes audio and text.
    """

    kind = "SentenceTransformer"
    seed = 0
    batches = False
    seeded = True  # its extractor may be any

    def __init__(self, model: "SentenceTransformer"):
        extractor, tokenizer = _parts(model)
        self.model = model
        self.prompt = model.prompts.get(model.default_prompt_name or "") or None
        super().__init__(extractor, tokenizer, model.max_seq_length or tokenizer.model_max_length)
        self.max_samples = _most_samples(extractor)

    def note(self) -> str:
        """Describe in one line what becomes of clips and texts."""
        prompt = f"with its default prompt {self.prompt!r}" if self.prompt else "without a prompt"
        seconds = self.max_samples / self.feature_extractor.sampling_rate
        return (
            f"clips and texts one at a time, {prompt}; clips over {seconds:g} s: windows, evenly spaced, their "
            f"vectors averaged; texts up to {self.text_limit} tokens"
        )

    def _tokenize(self, texts: list[str]) -> dict[str, Any]:
        super()._tokenize(texts)  # counts what is truncated
        return {
            "features": [self._prepared({"text": text}) for text in texts]
        }  # a bare string may be a path or an URL

    def _extract(self, clips: list[np.ndarray]) -> dict[str, Any]:
        rate, features = self.feature_extractor.sampling_rate, []
        for clip in clips:
            with seeded_by(clip, self.seed):
                features.append(self._prepared({"audio": {"array": clip, "sampling_rate": rate}}))
        return {"features": features}

    def _prepared(self, value: dict[str, Any]) -> dict[str, Any]:
        return dict(self.model.preprocess([value], prompt=self.prompt))


def modules_of(source: str, **hub: Any) -> list[dict[str, Any]] | None:
    """Read the modules of a SentenceTransformer, None if a folder or repository is of another kind.

    Args:
        source: folder or Hub id.
        hub: `revision` and `local_files_only`.

    Raises:
        ValueError: a class that is not one of sentence-transformers' modules, which would be code that a file names.
    """
    modules = _json(source, "modules.json", **hub)
    if modules is None:
        return None
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"modules.json of {source} is not a list of modules")
    for module in modules:
        _refuse_other_class(source, module.get("type"))
        router = _json(source, _within(module, "router_config.json"), **hub) if _kind(module) == "Router" else None
        for path, name in _routes(source, router):
            _refuse_other_class(source, name)
            _refuse_unsafe(source, _within(module, path), **hub)
        _refuse_unsafe(source, str(module.get("path") or ""), **hub)
    return modules


def is_plain(source: str, modules: list[dict[str, Any]], pooled: bool, **hub: Any) -> bool:
    """Whether a SentenceTransformer does no more than the model in its root folder, mean pooling and normalisation.

    Args:
        source: folder or Hub id.
        modules: see `modules_of`.
        pooled: whether the vectors are the mean of the model's states; else they are the model's own.
        hub: `revision` and `local_files_only`.
    """
    kinds = [_kind(module) for module in modules]
    steps = ["Transformer", "Pooling"] if pooled else ["Transformer"]
    if kinds not in (steps, [*steps, "Normalize"]) or modules[0].get("path"):
        return False
    if pooled:
        pooling = _json(source, _within(modules[1], "config.json"), **hub) or {}
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
        mean = pooling.get("pooling_mode") in ("mean", ["mean"]) or modes == ["pooling_mode_mean_tokens"]
        if not mean or pooling.get("include_prompt") is False:
            return False
    settings, transformer = _json(source, _SETTINGS, **hub) or {}, _json(source, "sentence_bert_config.json", **hub)
    return not settings.get("default_prompt_name") and not (transformer or {}).get("do_lower_case")


def load(source: str, **hub: Any) -> tuple[SentenceTransformerEmbedder, SentenceTransformerProcessor]:
    """Load a SentenceTransformer in fp32, and its processor. No code beside the weights is run.

    Args:
        source: folder or Hub id whose modules `modules_of` has read.
        hub: `revision` and `local_files_only`.

    Raises:
        ValueError: it encodes no audio, or no text, or needs code of its repository.
    """
    kind = (_json(source, _SETTINGS, **hub) or {}).get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ValueError(f"{source} is a {kind} of sentence-transformers: it gives no vectors to compare")
    loaded = from_safetensors(_opened, source, **hub)
    for modality in ("audio", "text"):
        if not loaded.supports(modality):
            known = ", ".join(map(str, loaded.modalities))
            raise ValueError(f"{source} is a SentenceTransformer that encodes {known}, and not {modality}")
    return SentenceTransformerEmbedder(loaded, source).eval(), SentenceTransformerProcessor(loaded)


def _opened(source: str, use_safetensors: bool, **hub: Any) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    weights = {"dtype": torch.float32, "use_safetensors": use_safetensors}
    try:
        return SentenceTransformer(source, device="cpu", trust_remote_code=False, model_kwargs=weights, **hub)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{source} needs code of its own repository, which is not run here") from error
    except ImportError as error:
        raise ValueError(f"{source} needs a package that is not installed: {one_line(error)}") from error


def _parts(model: "SentenceTransformer") -> tuple[Any, Any]:
    """Return the feature extractor and the tokenizer, of whichever modules have them."""
    processors = [module.processor for module in model.modules() if getattr(module, "processor", None) is not None]
    whole = (p if isinstance(p, FeatureExtractionMixin) else getattr(p, "feature_extractor", None) for p in processors)
    extractor = next((part for part in whole if part is not None), None)
    words = (p if isinstance(p, PreTrainedTokenizerBase) else getattr(p, "tokenizer", None) for p in processors)
    tokenizer = next((part for part in words if part is not None), None)
    if extractor is None or tokenizer is None:
        missing = "feature extractor" if extractor is None else "tokenizer"
        raise ValueError(f"this SentenceTransformer has no {missing} of transformers")
    return extractor, tokenizer


def _most_samples(extractor: Any) -> int:
    """Return how many samples of a clip an extractor takes before it crops or truncates."""
    stated = getattr(extractor, "n_samples", None) or getattr(extractor, "nb_max_samples", None)
    if stated:
        return stated
    lengths = [seconds * extractor.sampling_rate for seconds in _WINDOW_SECONDS]
    return next((length for length in lengths if _is_whole(extractor, length)), lengths[-1])


def _is_whole(extractor: Any, samples: int) -> bool:
    """Whether the end of a clip of a length changes what an extractor makes of it."""
    clip = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
    ending = np.where(np.arange(samples) < 0.95 * samples, clip, -clip / 2).astype(np.float32)
    name = extractor.model_input_names[0]
    features = []
    for each in (clip, ending):
        with seeded_by(clip, 0):
            features.append(np.asarray(extractor(each, sampling_rate=extractor.sampling_rate)[name][0]))
    return features[0].shape != features[1].shape or not np.array_equal(*features)


def _json(source: str, name: str, **hub: Any) -> Any:
    path = optional_file(source, name, **hub)
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the {name} of {source} is broken: {error}") from error


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type")).rsplit(".", 1)[-1]


def _within(module: dict[str, Any], name: str) -> str:
    return "/".join(filter(None, (str(module.get("path") or ""), name)))


def _routes(source: str, router: Any) -> list[tuple[str, Any]]:
    """Return the path and class of each of a Router's modules."""
    types = router.get("types") if isinstance(router, dict) else {}
    if not isinstance(types, dict):
        raise ValueError(f"the router_config.json of {source} does not name its modules")
    return list(types.items())


def _refuse_other_class(source: str, name: Any) -> None:
    if not _OWN_MODULE.fullmatch(str(name)):
        raise ValueError(f"{source} has a module {name!r}, which is not of sentence-transformers: its code is not run")


def _refuse_unsafe(source: str, folder: str, **hub: Any) -> None:
    """Refuse weights that only a pickled file holds, and an adapter, whose base would be loaded too."""
    pickled, safe, adapter = (
        "/".join(filter(None, (folder, name)))
        for name in ("pytorch_model.bin", "model.safetensors", "adapter_config.json")
    )
    if optional_file(source, adapter, **hub):
        raise ValueError(f"{source} holds an {adapter}: give a model whose adapter is merged")
    if folder and optional_file(source, pickled, **hub) and not optional_file(source, safe, **hub):
        raise ValueError(
            f"{source} offers {pickled} and no safetensors, and WavLink reads no pickled file, which can run code: "
            "where you trust it, load it with SentenceTransformer, and give the folder that save_pretrained writes"
        )
