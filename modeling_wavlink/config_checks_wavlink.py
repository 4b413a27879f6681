"""Checks of a WavLink's configuration: its numbers, its poolings, and which audio and text towers it can have."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

AUDIO_TOWERS = ("whisper", "clap_audio_model", "passt")
LOSS_TYPES = ("info_nce", "sigmoid")
POOLINGS = ("token", "mean", "token_mean")
TEXT_POOLINGS = ("eos", "cls", "mean")
MOST_LAYERS = 1000  # of a tower; building more takes hours, and only then do the weights turn out not to fit
_MOST_SPEC_SIZE = 4096  # of HTS-AT's, which has 256
_TEXT_TOWERS = ("clip_text_model", "bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert")  # tested

# The model types of audio towers that are saved without a WavLink.
_SAVED_ALONE = {"wavlink_audio_model": "whisper", "wavlink_clap_audio_model": "clap_audio_model"}

# Audio towers that pool a clip themselves, by model type.
_POOLED_ALREADY = {"clap_audio_model": "HTS-AT", "passt": "PaSST"}

# RoBERTa's family numbers positions from pad_token_id + 1, so that many of its position embeddings are never used.
_POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text")


def check_numbers(config: "PretrainedConfig") -> None:
    """Check the types and ranges of a `WavLinkConfig`'s numbers.

    Raises:
        ValueError: names the field.
    """
    if not isinstance(config.matryoshka_dims, list | tuple):
        raise ValueError(f"matryoshka_dims must be a list of whole numbers, got {config.matryoshka_dims!r}")
    for value in (config.projection_dim, *config.matryoshka_dims):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"projection_dim and matryoshka_dims must be whole numbers, got {value!r}")
    for name in ("logit_scale_init_value", "logit_bias_init_value", "logit_scale_max", "initializer_range"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    if config.logit_scale_max <= 0 or config.initializer_range < 0:
        raise ValueError(
            "logit_scale_max must be above 0 and initializer_range 0 or more, got "
            f"{config.logit_scale_max} and {config.initializer_range}"
        )
    dims = config.matryoshka_dims
    if not dims or any(not 1 <= dim <= config.projection_dim for dim in dims) or len(set(dims)) != len(dims):
        raise ValueError(
            f"matryoshka_dims must be distinct and between 1 and projection_dim={config.projection_dim}, got {dims}"
        )


def check_loss(config: "PretrainedConfig") -> None:
    """Check a `WavLinkConfig`'s loss and its label smoothing.

    Raises:
        ValueError: an unknown loss, or a smoothing that it cannot have.
    """
    smoothing = config.label_smoothing
    if isinstance(smoothing, bool) or not isinstance(smoothing, int | float):
        raise ValueError(f"label_smoothing must be a number, got {smoothing!r}")
    _check_choice("loss_type", config.loss_type, LOSS_TYPES)
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {smoothing}")
    if smoothing and config.loss_type == "sigmoid":
        raise ValueError(
            f"label_smoothing={smoothing} needs loss_type='info_nce': the sigmoid loss has no softmax, so leave it "
            "at 0"
        )


def check_optional(config: "PretrainedConfig") -> None:
    """Check a `WavLinkConfig`'s `label_prompts` and `match_calibration`, each of which may be None.

    Raises:
        ValueError: names the field.
    """
    _check_label_prompts(config)
    _check_match_calibration(config)


def _check_label_prompts(config: "PretrainedConfig") -> None:
    """Check a list of different texts with one `{}` for the label."""
    prompts = config.label_prompts
    if prompts is None:
        return
    if not isinstance(prompts, list | tuple) or not prompts:
        raise ValueError(f"label_prompts must be a list of one text or more, or None, got {prompts!r}")
    for prompt in prompts:
        valid = isinstance(prompt, str) and prompt.count("{}") == 1
        if not valid or set("{}") & set(prompt.replace("{}", "")):
            raise ValueError(
                f"each of label_prompts has one {{}}, where the label goes, and no other braces, got {prompt!r}"
            )
    if len(set(prompts)) < len(prompts):
        raise ValueError(f"label_prompts must differ from each other, got {list(prompts)}")


def _check_match_calibration(config: "PretrainedConfig") -> None:
    """Check a prior, what the calibration was fit to, and the logistic of each nested dim."""
    calibration, name = config.match_calibration, "match_calibration"
    if calibration is None:
        return
    if not isinstance(calibration, dict):
        raise ValueError(f"{name} must be an object or None, got {calibration!r}")
    prior, pairs, dims = (calibration.get(key) for key in ("prior", "pairs", "dims"))
    if not _is_number(prior) or not 0 < prior < 1:
        raise ValueError(f"{name}: prior must be a number between 0 and 1, got {prior!r}")
    if not isinstance(calibration.get("data", ""), str):
        raise ValueError(f"{name}: data must be a text, got {calibration['data']!r}")
    if pairs is not None and (isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1):
        raise ValueError(f"{name}: pairs must be a whole number, 1 or more, got {pairs!r}")
    if not isinstance(dims, dict) or not dims:
        raise ValueError(f"{name}: dims must be an object with a slope and an intercept for each dim, got {dims!r}")
    known = {str(dim) for dim in (config.projection_dim, *config.matryoshka_dims)}
    for dim, fit in dims.items():
        if dim not in known:
            raise ValueError(
                f"{name}: dims has {dim!r}, which is none of the nested dims {', '.join(sorted(known, key=int))}: "
                f"of a model with other dims set {name} to None, and calibrate it again"
            )
        valid = isinstance(fit, dict) and all(_is_number(fit.get(part)) for part in ("slope", "intercept"))
        if not valid or fit["slope"] <= 0:
            raise ValueError(
                f"{name}: dims[{dim!r}] must have a slope above 0 and an intercept, both finite numbers, got {fit!r}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def check_poolings(config: "PretrainedConfig") -> None:
    """Check that a `WavLinkConfig`'s poolings are known, and that its towers allow them.

    Raises:
        ValueError: names the pooling.
    """
    _check_choice("pooling", config.pooling, POOLINGS)
    tower = _POOLED_ALREADY.get(config.audio_config.model_type)
    if tower and config.pooling != "token":
        raise ValueError(f"{tower} pools its patches itself: leave pooling out, got {config.pooling!r}")
    text = config.text_config
    _check_choice("text_pooling", config.text_pooling, TEXT_POOLINGS)
    if config.text_pooling == "cls" and _is_causal(text):
        raise ValueError(
            f"text_pooling='cls' is the first token's state, which in this {text.model_type!r} knows nothing of the "
            "text after it: use 'eos' or 'mean'"
        )
    if config.text_pooling == "eos" and text.eos_token_id is None:
        raise ValueError(
            f"text_pooling='eos' needs an eos_token_id, which this {text.model_type!r} config lacks: use 'cls' or "
            "'mean'"
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_audio_config(config: "PretrainedConfig") -> None:
    """Check that a config is one of an audio tower that a WavLink can have.

    Raises:
        ValueError: another model, or fields that do not fit together.
    """
    model_type = _SAVED_ALONE.get(config.model_type, config.model_type)
    if model_type not in AUDIO_TOWERS:
        known = ", ".join(AUDIO_TOWERS[:-1])
        raise ValueError(f"audio_config must be a {known} or {AUDIO_TOWERS[-1]} config, got {config.model_type!r}")
    if model_type == "passt":
        _check_passt(config)
    _check_tower(config)
    _check_frame_pooling(config, model_type)
    if model_type == "clap_audio_model":
        _check_htsat(config)


def check_text_config(config: "PretrainedConfig") -> None:
    """Check that a config is one of a text encoder that `AutoModel` can build.

    Raises:
        ValueError: a model with a decoder, of several modalities, or that transformers does not have.
    """
    from transformers import MODEL_MAPPING

    is_text_model = all(isinstance(getattr(config, name, None), int) for name in ("vocab_size", "hidden_size"))
    # the class attribute is that of a T5EncoderModel's config too
    has_decoder = config.is_encoder_decoder or getattr(type(config), "is_encoder_decoder", False)
    has_decoder = has_decoder or getattr(config, "add_cross_attention", False)
    if type(config) not in MODEL_MAPPING or has_decoder or not is_text_model:
        raise ValueError(
            f"a {config.model_type!r} cannot be the text tower, which is an encoder of text alone: "
            f"{', '.join(_TEXT_TOWERS)}, or another that AutoModel builds and that has no decoder"
        )
    _check_tower(config)
    _check_tokens(config)


def _is_causal(config: "PretrainedConfig") -> bool:
    """Whether a text tower is a decoder such as GPT-2, whose tokens attend to earlier tokens only."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_decoder", False):
        return True
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return causal and config.model_type != "xlnet" and not getattr(config, "use_bidirectional_attention", False)


def _check_tower(config: "PretrainedConfig") -> None:
    """Check what a tower finds out only when it is built or embeds, by an error without the field."""
    kind = config.model_type
    depths = getattr(config, "depths", None) or []
    layers = [getattr(config, name, None) for name in ("num_hidden_layers", "encoder_layers")]
    if max([len(depths), *depths, *(count for count in layers if isinstance(count, int))]) > MOST_LAYERS:
        raise ValueError(f"a {kind!r} tower of more than {MOST_LAYERS} layers cannot be meant")
    if kind in ("whisper", *_TEXT_TOWERS):
        width, heads = config.hidden_size, config.num_attention_heads
        if heads < 1 or width % heads:
            raise ValueError(f"the width of a {kind!r} tower, {width}, must be a multiple of its heads, {heads}")
    for name, value in vars(config).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and ("drop" in name or name.endswith("_prob")) and not 0 <= value <= 1:
            raise ValueError(f"{name} of a {kind!r} tower must be a probability, between 0 and 1, got {value!r}")
        if name in ("output_hidden_states", "output_attentions") and not isinstance(value, bool | None):
            raise ValueError(f"{name} of a {kind!r} tower must be true or false, got {value!r}")
        if name == "layer_norm_eps" and not is_number:
            raise ValueError(f"{name} of a {kind!r} tower must be a number, got {value!r}")
    if (chunk := getattr(config, "chunk_size_feed_forward", 0)) not in (0, 1):
        raise ValueError(
            f"chunk_size_feed_forward of a {kind!r} tower must be 0, got {chunk!r}: texts have any number of tokens"
        )


def _check_tokens(config: "PretrainedConfig") -> None:
    """Check the tokens by which a text tower finds the end or the padding of a text, and how long one may be."""
    kind, name = config.model_type, "eos_token_id" if config.model_type == "clip_text_model" else "pad_token_id"
    if kind in ("clip_text_model", *_POSITIONS_START_AFTER_PADDING) and not isinstance(getattr(config, name), int):
        raise ValueError(f"{name} of a {kind!r} tower must be a token's number, got {getattr(config, name)!r}")
    if (limit := text_max_length(config)) is not None and limit < 1:
        raise ValueError(
            f"max_position_embeddings={config.max_position_embeddings} of a {kind!r} tower leaves no room for a token"
        )


def frame_pooling(owner: object) -> tuple[int, tuple[int, ...]]:
    """Return how many neighbouring frames become one, and after how many layers they do, once or several times.

    Args:
        owner: an audio config or a `Recipe`. A factor of 1 keeps every frame, as the paper does.
    """
    factor, layers = getattr(owner, "frame_pooling", 1), getattr(owner, "frame_pooling_layer", 1)
    return factor, tuple(layers) if isinstance(layers, list | tuple) else (layers,)


def _check_frame_pooling(config: "PretrainedConfig", model_type: str) -> None:
    factor, layers = frame_pooling(config)
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(f"frame_pooling must be a whole number of frames, 1 or more, got {factor!r}")
    if factor == 1:
        return
    if model_type != "whisper":
        tower = _POOLED_ALREADY[model_type]
        raise ValueError(f"frame_pooling={factor} is for a Whisper: {tower} pools its patches itself, so leave it out")
    valid = layers and all(isinstance(layer, int) and layer in range(config.encoder_layers) for layer in layers)
    if not valid or list(layers) != sorted(set(layers)):
        raise ValueError(
            f"frame_pooling_layer must be one of 0 to {config.encoder_layers - 1}, the number of layers before frames "
            f"are pooled, or several of them in rising order, got {list(layers)}"
        )


def _check_htsat(config: "PretrainedConfig") -> None:
    if config.enable_fusion:
        raise ValueError(
            "this HTS-AT has enable_fusion=True: its vectors depend on random crops, so take a checkpoint without "
            "fusion, such as laion/clap-htsat-unfused"
        )
    stages = len(config.depths)
    width = config.patch_embeds_hidden_size * 2 ** (stages - 1)
    if config.hidden_size != width:
        raise ValueError(
            f"hidden_size must be the last stage's width, {width} (patch_embeds_hidden_size="
            f"{config.patch_embeds_hidden_size} doubled {stages - 1} times), got {config.hidden_size}"
        )
    widths = [config.patch_embeds_hidden_size * 2**stage for stage in range(stages)]
    heads = list(config.num_attention_heads)
    if len(heads) != stages or any(head < 1 or width % head for width, head in zip(widths, heads, strict=True)):
        raise ValueError(f"num_attention_heads must be a divisor of each stage's width, of {widths}, got {heads}")
    if not config.flatten_patch_embeds:
        raise ValueError("flatten_patch_embeds must be true: a stage takes patches in a row")
    patch, stride = (x if isinstance(x, int) else x[0] for x in (config.patch_size, config.patch_stride))
    patches = config.spec_size // stride if 1 <= stride <= patch else 0
    fits = patches == (config.spec_size + (patch - stride) // 2 * 2 - patch) // max(stride, 1) + 1
    if not 1 <= config.spec_size <= _MOST_SPEC_SIZE or not fits or patches % 2 ** (stages - 1):
        raise ValueError(
            f"spec_size={config.spec_size}, at most {_MOST_SPEC_SIZE}, must be so many patches (patch_size="
            f"{config.patch_size}, patch_stride={config.patch_stride}) that {stages - 1} stages can halve them"
        )
    grid = patches >> stages - 1
    if grid < config.window_size:
        raise ValueError(
            f"the last stage has {grid} x {grid} patches (spec_size / patch_stride, halved {stages - 1} times), fewer "
            f"than an attention window of {config.window_size} x {config.window_size}: lower window_size or depths"
        )


def _check_passt(config: "PretrainedConfig") -> None:
    from transformers.activations import ACT2FN

    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_mel_bins")
    sizes += ("window_frames", "patch_size", "frequency_stride", "time_stride")
    least = dict.fromkeys(sizes, 1) | {"time_patchout": 0, "frequency_patchout": 0}
    if config.time_positions is not None:
        least["time_positions"] = 1
    for name, minimum in least.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name} of a PaSST must be a whole number, {minimum} or more, got {value!r}")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} must be a multiple of num_attention_heads={config.num_attention_heads}"
        )
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACT2FN:
        raise ValueError(
            f"hidden_act must be an activation of transformers, such as 'gelu', got {config.hidden_act!r}"
        )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    for name in ("layer_norm_eps", "initializer_range"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} of a PaSST must be a number above 0, got {value!r}")
    for name, stride, patchout in (
        ("num_mel_bins", config.frequency_stride, "frequency_patchout"),
        ("window_frames", config.time_stride, "time_patchout"),
    ):
        length, patch = getattr(config, name), config.patch_size
        if length < patch:
            raise ValueError(f"{name}={length} is less than one patch, patch_size={patch}: raise it")
        count = (length - patch) // stride + 1
        if getattr(config, patchout) >= count:
            raise ValueError(f"{patchout}={getattr(config, patchout)} leaves no patches: {name} has {count} of them")
        if name == "window_frames" and config.time_positions is not None and config.time_positions < count:
            raise ValueError(
                f"window_frames={length} needs {count} columns of the time embedding, and time_positions is "
                f"{config.time_positions}: lower window_frames to {(config.time_positions - 1) * stride + patch} or so"
            )


def text_max_length(text_config: "PretrainedConfig") -> int | None:
    """Return how many tokens the text tower takes, special ones included; None where it has no limit."""
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit == -1:  # XLNet's, which has none
        return None
    if limit and text_config.model_type in _POSITIONS_START_AFTER_PADDING:
        limit -= text_config.pad_token_id + 1
    return limit


def nested_dims(projection_dim: int, levels: int = 4) -> list[int]:
    """Return `projection_dim` and its halves, largest first: 512 -> [512, 256, 128, 64] (the paper's K = 4)."""
    return [projection_dim >> level for level in range(levels)]


def one_line(error: Exception) -> str:
    """Return an error's text for a message about a file: one short line without control characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in line[:300])
