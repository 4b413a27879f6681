"""Build a recipe's model and processor: from pretrained towers, a trained WavLink, or small new towers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from modeling_wavlink.configuration_wavlink import WavLinkConfig, frame_pooling
from modeling_wavlink.modeling_wavlink import WavLinkModel
from modeling_wavlink.pretrained_wavlink import refuse_adapter
from processing import (
    WavLinkClapFeatureExtractor,
    WavLinkFeatureExtractor,
    WavLinkPasstFeatureExtractor,
    WavLinkProcessor,
)
from processing.hub_names import needs_cache
from wavlink.bundled_models import resolve
from wavlink.compat import enable_checkpointing

from .finetuning import lora_config, set_trainable
from .memory import learns, use_no_cache
from .recipes import Recipe

VOCABULARY = 4096  # tokens at most of a tokenizer that is trained on captions


def refuse_bad_start(recipe: Recipe) -> None:
    """Refuse a model that cannot be built, or LoRA targets that match nothing, from configs alone, in seconds."""
    if not (recipe.data or recipe.mixture):
        raise ValueError("name the data set: an audiofolder, a Hub id, or 'synthetic' (train.py --data)")
    config = config_of(recipe)
    try:
        with torch.device("meta"):
            model = _set_up(WavLinkModel(config), recipe)
    except ImportError as error:
        raise ValueError(f"--attn_implementation {recipe.attn_implementation}: {error}") from error
    if recipe.regime == "lora":
        lora_config(model, recipe.scope, targets=recipe.lora_targets)


def config_of(recipe: Recipe) -> WavLinkConfig:
    """Return the config of a recipe's model; that of a new text tower still lacks its vocabulary."""
    if recipe.init:
        return _config_to_start_from(recipe)
    if recipe.audio_model:
        towers = recipe.audio_model, recipe.text_model
        for tower in filter(None, towers):
            needs_cache(tower)
        return WavLinkModel.config_from_audio_text(*towers, **_frames(recipe), **_fields(recipe))
    audio_config = {**recipe.audio_config, **_frames(recipe)}
    return WavLinkConfig(audio_config, recipe.text_config, text_pooling="mean", **_fields(recipe))


class FirstStageMissing(ValueError):
    """The model that a recipe starts from is the result of a first stage, which has not been trained yet."""


def start_of(recipe: Recipe) -> str:
    """Return the folder or the Hub id of the model that a recipe starts from.

    Raises:
        FirstStageMissing: a path that does not exist.
        ValueError: a bare name that is neither a bundled model nor a local path.
    """
    try:
        return resolve(recipe.init)
    except ValueError as error:
        if "/" not in recipe.init:
            raise
        raise FirstStageMissing(
            f"{recipe.name} starts from {recipe.init}, and {error}: train its first stage, or give --init"
        ) from error


def _config_to_start_from(recipe: Recipe) -> WavLinkConfig:
    init = start_of(recipe)
    needs_cache(init)
    config = WavLinkConfig.from_pretrained(init)
    refuse_adapter(init)
    if config.loss_type != recipe.loss_type:
        raise ValueError(f"{recipe.init} has learned with {config.loss_type}: give --loss_type {config.loss_type}")
    if recipe.pooling and recipe.pooling != config.pooling:
        raise ValueError(f"{recipe.init} brings its pooling, {config.pooling}: leave --pooling out")
    factor, layers = frame_pooling(config.audio_config)
    if recipe.frame_pooling and frame_pooling(recipe) != (factor, layers):
        after = ", ".join(map(str, layers))
        raise ValueError(f"{recipe.init} brings its frame_pooling, {factor} after layer {after}: leave it out")
    if recipe.projection_dim and recipe.projection_dim != config.projection_dim:
        raise ValueError(
            f"{recipe.init} brings its projection_dim, {config.projection_dim}, not {recipe.projection_dim}: leave "
            "--projection_dim out"
        )
    if recipe.matryoshka_dims and list(recipe.matryoshka_dims) != config.matryoshka_dims:
        raise ValueError(
            f"{recipe.init} brings its nested dims, {config.matryoshka_dims}, not {list(recipe.matryoshka_dims)}: "
            "leave --matryoshka_dims out"
        )
    return config


def _fields(recipe: Recipe) -> dict:
    """The config fields that the recipe sets; the others are the towers'."""
    fields = {"loss_type": recipe.loss_type, "label_smoothing": recipe.label_smoothing}
    if recipe.pooling:
        fields["pooling"] = recipe.pooling
    if recipe.projection_dim:
        fields["projection_dim"] = recipe.projection_dim
    if recipe.matryoshka_dims:
        fields["matryoshka_dims"] = list(recipe.matryoshka_dims)
    return fields


def _frames(recipe: Recipe) -> dict:
    """The fields of a Whisper's config that the recipe sets; HTS-AT and PaSST pool their patches themselves."""
    if not recipe.frame_pooling:
        return {}
    if (
        recipe.audio_model
        and AutoConfig.from_pretrained(recipe.audio_model, trust_remote_code=False).model_type != "whisper"
    ):
        return {}
    factor, layers = frame_pooling(recipe)
    return {"frame_pooling": factor, "frame_pooling_layer": list(layers)}


def refuse_long_crops(longest: float, extractor: Any) -> None:
    """Raise a ValueError if crops of `longest` seconds are longer than a feature extractor takes."""
    most = extractor.n_samples / extractor.sampling_rate
    if longest > most:
        raise ValueError(
            f"crops of {longest:g} s are longer than the {most:g} s that the audio tower takes at once: lower "
            "max_seconds to that"
        )


def build(recipe: Recipe, captions: Callable[[], Iterable[str]]) -> tuple[WavLinkModel, WavLinkProcessor]:
    """Build the model, in fp32 and with the recipe's parameters trainable, and the processor.

    Args:
        captions: returns every training caption, whose words the tokenizer of a new text tower needs.
    """
    if recipe.init:
        init = resolve(recipe.init)
        model = WavLinkModel.from_pretrained(init, dtype=torch.float32)  # this code, not the code beside the weights
        processor = WavLinkProcessor.from_pretrained(init)
        processor.feature_extractor.padding = recipe.padding
        model.config.label_smoothing = recipe.label_smoothing
    elif recipe.audio_model:
        towers = recipe.audio_model, recipe.text_model
        processor = WavLinkProcessor.from_audio_text_pretrained(*towers, padding=recipe.padding)
        model = WavLinkModel.from_audio_text_pretrained(*towers, **_frames(recipe), **_fields(recipe))
    else:
        tokenizer = subword_tokenizer(captions(), recipe.text_config["max_position_embeddings"])
        text_config = {**recipe.text_config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        audio_config = {**recipe.audio_config, **_frames(recipe)}
        config = WavLinkConfig(audio_config, text_config, text_pooling="mean", **_fields(recipe))
        processor = WavLinkProcessor(new_extractor(config.audio_config, recipe.padding), tokenizer)
        model = WavLinkModel(config)
    return prepared(model, recipe), processor


def new_extractor(
    config: PretrainedConfig, padding: str
) -> WavLinkFeatureExtractor | WavLinkClapFeatureExtractor | WavLinkPasstFeatureExtractor:
    """Make the feature extractor of a new audio tower."""
    if config.model_type == "passt":
        return WavLinkPasstFeatureExtractor.from_passt(config, padding=padding)
    kind = WavLinkClapFeatureExtractor if config.model_type == "clap_audio_model" else WavLinkFeatureExtractor
    return kind(config.num_mel_bins, padding=padding)


def _set_up(model: WavLinkModel, recipe: Recipe) -> WavLinkModel:
    model.set_attn_implementation(recipe.attn_implementation)
    if recipe.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ValueError("HTS-AT has no gradient_checkpointing: leave it out, or lower --micro_batch_size")
    return model


def prepared(model: WavLinkModel, recipe: Recipe) -> WavLinkModel:
    """Set a model's attention, which of its parameters learn, and checkpointing, in place, and return it."""
    lora = recipe.lora_rank, recipe.lora_alpha, recipe.lora_targets
    model = set_trainable(_set_up(model, recipe), recipe.regime, recipe.scope, *lora)
    if recipe.gradient_checkpointing:
        for tower in filter(learns, (model.audio_model, model.text_model)):
            enable_checkpointing(tower)
        use_no_cache(model.text_model)
    return model


def subword_tokenizer(captions: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of lower-cased text, which replaces no word by an unknown token.

    Words that the captions hold twice or more become one token each, up to `VOCABULARY` tokens; all other text is made
    of their parts, in the end of its bytes. Equal captions give an equal tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=["[PAD]", "[CLS]", "[SEP]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
