"""WavLinkProcessor, which makes a model's inputs out of clips and sentences."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    BatchFeature,
    ClapFeatureExtractor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SequenceFeatureExtractor,
)
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, TextKwargs, Unpack
from transformers.utils import logging

from .audio_inputs_wavlink import as_list, is_source

# The older transformers 5 copy only the files that this one imports itself.
from .checked_clips_wavlink import CheckedClips as CheckedClips
from .compat_features_wavlink import whisper_log_mel as whisper_log_mel
from .downmix_wavlink import mono_blocks as mono_blocks
from .feature_extraction_wavlink import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from .log_mel_wavlink import log_mel as log_mel
from .passt_features_wavlink import WavLinkPasstFeatureExtractor
from .text_inputs_wavlink import TextInputs
from .whisper_features_wavlink import WhisperFeatures as WhisperFeatures

logger = logging.get_logger(__name__)

# By the type in a saved file; the settings of Whisper's extractor fit ours.
_EXTRACTORS = {
    "WavLinkFeatureExtractor": WavLinkFeatureExtractor,
    "WavLinkClapFeatureExtractor": WavLinkClapFeatureExtractor,
    "WavLinkPasstFeatureExtractor": WavLinkPasstFeatureExtractor,
    "WhisperFeatureExtractor": WavLinkFeatureExtractor,
}

# A copy of the names in config_checks_wavlink.py, which a shipped file of this folder cannot import.
_POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text")

_OPTIONS = {
    "text_kwargs": frozenset(TextKwargs.__annotations__),
    "audio_kwargs": frozenset(AudioKwargs.__annotations__) - {"max_length"},
}
_OTHER_MODALITIES = ("images_kwargs", "videos_kwargs")


class WavLinkProcessor(ProcessorMixin, TextInputs):
    """Feature extractor for sounds and tokenizer for texts of a `WavLinkModel`.

    Args:
        feature_extractor: a `WavLinkFeatureExtractor`, a `WavLinkClapFeatureExtractor` for HTS-AT, or a
            `WavLinkPasstFeatureExtractor` for PaSST.
        tokenizer: of the text tower.

    Raises:
        ValueError: when called: samples that are not mono floats `[samples]`, are longer than the model takes (30 s),
            or have another sampling rate than the model's 16000 Hz, or no sampling rate.

    Example:

    ```python
    >>> from wavlink import WavLinkProcessor, load_audio
    >>> processor = WavLinkProcessor.from_pretrained(model_folder)
    >>> samples = load_audio(sounds_folder / "low.wav")
    >>> inputs = processor(text=["a dog barks"], audio=samples, sampling_rate=16000, return_tensors="pt")
    >>> sorted(inputs)
    ['attention_mask', 'input_features', 'input_features_mask', 'input_ids']

    ```
    """

    def __init__(self, feature_extractor: SequenceFeatureExtractor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(feature_extractor, tokenizer)
        # Names of foreign code are not passed on to the folder where this processor is saved.
        vars(feature_extractor).pop("auto_map", None)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, *, trust_remote_code: bool = False, **kwargs: object
    ) -> "WavLinkProcessor":
        """Load a saved processor: its feature extractor with this package's classes, and its tokenizer.

        Args:
            pretrained_model_name_or_path: folder or Hub id of a WavLink.
            trust_remote_code: allows a *tokenizer* with custom code. No other custom code is ever run.
            kwargs: as for transformers' processors, such as `revision`.

        Raises:
            OSError: there is no such folder or repository, or it lacks a file.
            ValueError: the feature extractor is another model's, or the tokenizer needs custom code.
        """
        source, trusted = pretrained_model_name_or_path, bool(trust_remote_code)
        saved, _ = WavLinkFeatureExtractor.get_feature_extractor_dict(source, **kwargs)
        kind = saved.get("feature_extractor_type", "WavLinkFeatureExtractor")
        if kind not in _EXTRACTORS:
            raise ValueError(
                f"{source} has a feature extractor of type {kind!r}, a WavLink's is one of {', '.join(_EXTRACTORS)}"
            )
        feature_extractor = _EXTRACTORS[kind].from_pretrained(source, **kwargs)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted, **kwargs)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise ValueError(
                f"the tokenizer of {source} needs code of its own, which is not run: save a tokenizer there that "
                "transformers has, or, if you trust that code, call WavLinkProcessor.from_pretrained with "
                "trust_remote_code=True"
            ) from error
        if not trusted:
            tokenizer.init_kwargs.pop("auto_map", None)
        return cls(feature_extractor, tokenizer)

    @classmethod
    def from_audio_text_pretrained(cls, audio: str, text: str, **kwargs: object) -> "WavLinkProcessor":
        """Make the processor for `WavLinkModel.from_audio_text_pretrained(audio, text)`.

        Args:
            audio: Hub id or folder of a Whisper, whose number of mel bins is kept, or of a CLAP without fusion or a
                PaSST, whose log-mel is kept.
            text: Hub id or folder with the text tower's tokenizer.
            kwargs: of `WavLinkFeatureExtractor`, such as `padding="max_length"`, or of the other towers' extractors.
        """
        feature_extractor = _extractor_of(audio, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=False)
        tokenizer.init_kwargs.pop("auto_map", None)
        text_config = AutoConfig.from_pretrained(text, trust_remote_code=False)
        text_config = getattr(text_config, "text_config", text_config)
        positions = getattr(text_config, "max_position_embeddings", None)
        if positions is not None and text_config.model_type in _POSITIONS_START_AFTER_PADDING:
            positions -= text_config.pad_token_id + 1
        if positions is not None and tokenizer.model_max_length > positions:
            tokenizer.model_max_length = positions
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(feature_extractor, tokenizer)

    def __call__(
        self, text: str | list[str] | None = None, audio: object = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """Tokenize texts and compute the features of clips.

        Options are given for both modalities at once or for each in its dict, as for every processor of transformers.
        An option given in both ways is an error; an option that neither modality has is ignored with a warning.

        Args:
            text: a sentence or a list. Texts over the tower's limit are truncated, with one warning.
            audio: one mono clip `[samples]`, a file's path or bytes, a value of an `audio` column of `datasets`, or a
                list of these, see `WavLinkFeatureExtractor`.
            sampling_rate: of bare arrays, in Hz; required with them.
            padding: by default texts to the longest of the batch, and audio as the checkpoint was trained;
                `"longest"`, `"max_length"` (30 s, and texts to `max_length` tokens or the tower's limit), or False for
                lists.
            max_length, truncation: of texts, in tokens; default and maximum: the tower's limit. Audio is never
                truncated; its `max_length`, in samples, is one of `audio_kwargs`.
            return_tensors: `"pt"` or `"np"`; None gives lists.
            return_attention_mask: False leaves out the mask of texts, and of audio where no clip is padded.
            text_kwargs, audio_kwargs, common_kwargs: options of one modality, and of both.
            kwargs: further options of the tokenizer and of the feature extractor.

        Returns:
            A `BatchFeature` of `input_ids`, `attention_mask` `[B_text, L]` and/or `input_features` `[B_audio, F, T]`,
            `input_features_mask` `[B_audio, T]` (native length only); for HTS-AT `[B_audio, W, T, F]` and
            `[B_audio, W]`.

        Raises:
            ValueError: neither text nor audio, an option given twice, or inputs that tokenizer or feature extractor
                refuse.
        """
        if text is None and audio is None:
            renamed = ": `audios` is now called `audio`" if "audios" in kwargs else ""
            raise ValueError(f"give text, audio or both{renamed}")
        bare = kwargs.get("audio_kwargs") is not None and not all(map(is_source, as_list(audio)))
        text_options, audio_options = self._options(kwargs)
        data = {}
        if text is not None:
            data.update(self._tokenize(text, **text_options))
        if audio is not None:
            if bare and audio_options.get("sampling_rate") is None:
                audio_options["sampling_rate"] = self._assumed_sampling_rate()
            data.update(self.feature_extractor(audio, **audio_options))
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs that this processor makes."""
        return [*self.tokenizer.model_input_names, *self.feature_extractor.model_input_names]

    def save_pretrained(self, save_directory: str, *args: object, **kwargs: object) -> list[str]:
        """Save as transformers does, but keep the file's `auto_map` off these objects."""
        files = super().save_pretrained(save_directory, *args, **kwargs)
        for saved in (self, self.feature_extractor):
            vars(saved).pop("auto_map", None)
        return files

    def _options(self, kwargs: dict) -> tuple[dict, dict]:
        """Split options into those of the tokenizer and those of the feature extractor.

        `ProcessorMixin._merge_kwargs` is not used: transformers 5.6 drops common options where a modality has its own
        dict, and in every version `max_length`, which is in tokens here, would be applied to audio too.
        """
        flat = dict(kwargs)
        common = flat.pop("common_kwargs", None) or {}
        options = []
        for modality, valid in _OPTIONS.items():
            specific = flat.pop(modality, None) or {}
            twice = [name for name in specific if name in valid and name in flat]
            if twice:
                raise ValueError(f"{', '.join(twice)} was given twice: in {modality} and beside it")
            shared = {name: value for name, value in {**common, **flat}.items() if name in valid}
            options.append(shared | specific)
        for name, value in {**common, **flat}.items():
            if not any(name in valid for valid in _OPTIONS.values()) and not (name in _OTHER_MODALITIES and not value):
                logger.warning_once(
                    f"Keyword argument `{name}` is not a valid argument for this processor and will be ignored."
                )
        return options[0], options[1]

    def _assumed_sampling_rate(self) -> int:
        """Return the model's rate, with a warning: SentenceTransformer passes bare arrays without their rate."""
        rate = self.feature_extractor.sampling_rate
        logger.warning_once(
            f"no sampling rate came with the audio: {rate} Hz is assumed. Give {{'array': clip, 'sampling_rate': "
            "rate} instead of a bare array to have it checked."
        )
        return rate

    def _note_once(self, message: str) -> None:
        logger.warning_once(message)


def _extractor_of(audio: str, **kwargs: object) -> SequenceFeatureExtractor:
    """Make the feature extractor of a pretrained audio tower."""
    saved, _ = PretrainedConfig.get_config_dict(audio)  # {} in a folder of a feature extractor alone
    if saved.get("model_type") == "passt":
        config = AutoConfig.from_pretrained(audio, trust_remote_code=False)
        return WavLinkPasstFeatureExtractor.from_passt(config, audio, **kwargs)
    pretrained = AutoFeatureExtractor.from_pretrained(audio, trust_remote_code=False)
    if isinstance(pretrained, ClapFeatureExtractor):
        return WavLinkClapFeatureExtractor.from_clap(pretrained, **kwargs)
    return WavLinkFeatureExtractor(feature_size=pretrained.feature_size, **kwargs)


WavLinkProcessor.register_for_auto_class("AutoProcessor")
