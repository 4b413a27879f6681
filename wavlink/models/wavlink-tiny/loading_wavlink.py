"""Loading of a WavLink: from its own checkpoint, or from the checkpoints of two pretrained towers."""

import re

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    ClapAudioModel,
    CLIPTextModelWithProjection,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

from .config_checks_wavlink import AUDIO_TOWERS, check_text_config
from .configuration_wavlink import WavLinkConfig
from .passt_audio_wavlink import NO_PASST, PASST_NAMES, WavLinkPasstModel
from .pooling_wavlink import sentence_transformers_pooling
from .pretrained_wavlink import CheckedWeights, from_safetensors, refuse_adapter, refuse_wrong_weights

logger = logging.get_logger(__name__)

# Options of `from_pretrained` that locate a file.
_FILE_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

# Weights of a pretrained text checkpoint that are left out: CLIP's vision tower and temperature, the pooler and the
# pretraining heads of a text encoder, and buffers that old checkpoints stored.
_NO_TEXT_TOWER = re.compile(
    r"^vision_model\.|^visual_projection\.|^logit_scale$|(^|\.)pooler\."
    r"|^(cls|lm_head|head|decoder|(pre_)?classifier|qa_outputs|predictions|sop_classifier)\."
    r"|^(vocab_(transform|layer_norm|projector)|(discriminator|generator|lm|mask)_predictions|generator_lm_head)\."
    r"|position_ids$"
)

_IN_FP32 = {"output_loading_info": True, "dtype": torch.float32}

# Weights of a complete model that are not its tower's; the classes below ignore them.
_NO_ENCODER = re.compile(r"^(model\.)?decoder\.|^proj_out\.")
_NO_HTSAT = re.compile(r"^text_model\.|^(text|audio)_projection\.|^logit_scale_[at]$")


class _WhisperEncoderAlone(WhisperEncoder):
    _keys_to_ignore_on_load_unexpected = [_NO_ENCODER.pattern]


class _ClapAudioAlone(ClapAudioModel):
    _keys_to_ignore_on_load_unexpected = [_NO_HTSAT.pattern]


class _PasstAlone(WavLinkPasstModel):
    left_out = NO_PASST
    _keys_to_ignore_on_load_unexpected = [NO_PASST.pattern]


class _CLIPTextAlone(CLIPTextModelWithProjection):
    _keys_to_ignore_on_load_unexpected = [_NO_TEXT_TOWER.pattern]


def load_whisper_encoder(source: str) -> WhisperEncoder:
    """Load the encoder of a Whisper, from a complete checkpoint or one of the encoder only.

    Raises:
        ValueError: see `refuse_adapter`, `from_safetensors` and `refuse_wrong_weights`; so for the loaders below.
    """
    refuse_adapter(source)
    mapping = {r"^(model\.)?encoder\.": ""}
    encoder, info = from_safetensors(_WhisperEncoderAlone.from_pretrained, source, key_mapping=mapping, **_IN_FP32)
    refuse_wrong_weights(source, info, _NO_ENCODER)
    return encoder


def load_htsat(source: str, config: PretrainedConfig) -> ClapAudioModel:
    """Load the audio tower of a CLAP with its batch norm's statistics, also from a checkpoint of this tower alone."""
    refuse_adapter(source)
    options = {"config": config, "key_mapping": {r"^audio_model\.": ""}, **_IN_FP32}
    tower, info = from_safetensors(_ClapAudioAlone.from_pretrained, source, **options)
    refuse_wrong_weights(source, info, _NO_HTSAT)
    return tower


def load_passt(source: str, config: PretrainedConfig) -> WavLinkPasstModel:
    """Load a PaSST, from its own checkpoint or from one with the names of the reference implementation."""
    refuse_adapter(source)
    tower, _ = _PasstAlone.from_pretrained(source, config=config, key_mapping=PASST_NAMES, **_IN_FP32)
    return tower


def load_text_tower(source: str, config: PretrainedConfig) -> tuple[PreTrainedModel, Tensor | None]:
    """Load a text encoder without its pooler, and the text projection `[projection_dim, hidden_size]` of a CLIP."""
    refuse_adapter(source)
    clip_text = config.model_type == "clip_text_model"
    loader = _CLIPTextAlone if clip_text else AutoModel
    options = {"config": config, "trust_remote_code": False, **_IN_FP32}
    tower, info = from_safetensors(loader.from_pretrained, source, **options)
    refuse_wrong_weights(source, info, _NO_TEXT_TOWER, new=("text_projection.", "pooler."))
    if not clip_text:
        if hasattr(tower, "pooler"):
            tower.pooler = None
        return tower, None
    has_projection = "text_projection.weight" not in info["missing_keys"]
    return tower.text_model, tower.text_projection.weight.data if has_projection else None


def _refuse_untrained_token(pooling: str, source: str | None, **options: object) -> None:
    """Refuse to pool the global token of a checkpoint that was trained with `pooling="mean"`: it never learned.

    Args:
        source: the checkpoint, None for none.
        options: of `get_config_dict`, such as `revision`.

    Raises:
        ValueError: it was.
    """
    if source is None or pooling == "mean":
        return
    saved, _ = WavLinkConfig.get_config_dict(source, **options)
    if saved.get("pooling") == "mean":
        raise ValueError(
            f"pooling={pooling!r} needs a trained global token, which {source} lacks: it was trained with "
            "pooling='mean', so leave pooling out"
        )


class PretrainedTowers(CheckedWeights):
    """The part of `WavLinkModel` that loads checkpoints."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | None,
        *args: object,
        output_loading_info: bool = False,
        **kwargs: object,
    ) -> PreTrainedModel:
        """Load a WavLink as transformers does, but only from safetensors.

        Missing or unexpected weights are an error, never a random start. With `output_loading_info` the result is a
        pair of the model and that information, as in transformers. Fields of `WavLinkConfig` given here are
        checked, and refused where they need other weights.

        Raises:
            ValueError: weights that do not fit, other than safetensors, or that hold NaN; a wrong config.
        """
        options = {name: kwargs[name] for name in _FILE_OPTIONS if name in kwargs}
        if hasattr(kwargs.get("config"), "check"):
            kwargs["config"].check()
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if {"pooling", "config"} & kwargs.keys():
            _refuse_untrained_token(model.config.pooling, pretrained_model_name_or_path, **options)
        model.freeze_constants()
        return (model, info) if output_loading_info else model

    @classmethod
    def config_from_audio_text(
        cls, audio: str, text: str, frame_pooling: int = 1, frame_pooling_layer: int | list[int] = 1, **config: object
    ) -> WavLinkConfig:
        """Make the config of `from_audio_text_pretrained` with the same arguments, from the towers' configs.

        Raises:
            ValueError: a tower that a WavLink cannot have.
        """
        audio_config = AutoConfig.from_pretrained(audio, trust_remote_code=False)
        if audio_config.model_type == "clap":
            audio_config = audio_config.audio_config
        if frame_pooling != 1:
            audio_config.frame_pooling, audio_config.frame_pooling_layer = frame_pooling, frame_pooling_layer
        if audio_config.model_type not in AUDIO_TOWERS:
            raise ValueError(
                f"{audio} is a {audio_config.model_type!r} model; the audio tower must be a Whisper, a CLAP or a PaSST"
            )
        text_config = AutoConfig.from_pretrained(text, trust_remote_code=False)
        if text_config.model_type == "clip":  # its towers' configs may have another projection_dim, which CLIP ignores
            text_config.text_config.projection_dim = text_config.projection_dim
            text_config = text_config.text_config
        check_text_config(text_config)
        clip_text = text_config.model_type == "clip_text_model"
        config.setdefault("projection_dim", text_config.projection_dim if clip_text else text_config.hidden_size)
        if not clip_text and config.get("text_pooling") is None:
            config["text_pooling"] = sentence_transformers_pooling(text)
        return WavLinkConfig(audio_config=audio_config, text_config=text_config, **config)

    @classmethod
    def from_audio_text_pretrained(cls, audio: str, text: str, **config: object) -> PreTrainedModel:
        """Build a WavLink from two pretrained towers; only the global token, projections, scale and bias are new.

        Args:
            audio: Hub id or folder of a Whisper, complete or encoder only (the decoder is left out), of a CLAP
                without fusion, complete or its audio half (its text tower and projections are left out), or of a PaSST
                (its classifiers are left out), with the names of its weights here or in the reference implementation.
            text: Hub id or folder of a CLIP (complete or its text half; its text projection is kept), a ModernBERT
                or a BERT-like encoder. The pooling of a sentence-transformers folder is kept.
            config: fields of `WavLinkConfig`, and `frame_pooling` and `frame_pooling_layer` of its audio config.
                `projection_dim` defaults to CLIP's or the text tower's width.
        """
        model = cls(cls.config_from_audio_text(audio, text, **config))
        audio_config = model.config.audio_config
        if audio_config.model_type == "whisper":
            model.audio_model.encoder.load_state_dict(load_whisper_encoder(audio).state_dict())
        else:
            load = load_htsat if audio_config.model_type == "clap_audio_model" else load_passt
            model.audio_model.load_state_dict(load(audio, audio_config).state_dict())
        tower, projection = load_text_tower(text, model.config.text_config)
        model.text_model.load_state_dict(tower.state_dict())
        if projection is not None and projection.shape == model.text_projection.weight.shape:
            model.text_projection.weight.data.copy_(projection)
        elif projection is not None:
            logger.warning(
                f"the text projection of {text} has {len(projection)} dims, not projection_dim="
                f"{model.config.projection_dim}, so it starts from new random weights"
            )
        return model
