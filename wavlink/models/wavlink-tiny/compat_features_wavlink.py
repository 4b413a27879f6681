"""Private functions of transformers that the feature extractors use, each with a public fallback."""

import numpy as np
from transformers import ClapFeatureExtractor, WhisperFeatureExtractor


def whisper_log_mel(extractor: WhisperFeatureExtractor, samples: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Compute Whisper's log-mel without padding, `[samples]` of at most 30 s -> `[F, samples // hop]`.

    It calls Whisper's private method (seen in transformers 5.6 to 5.23), or else a plain extractor.
    """
    if getattr(extractor, "_torch_extract_fbank_features", None):
        return extractor._torch_extract_fbank_features(samples, device)
    plain = WhisperFeatureExtractor.from_dict(extractor.to_dict())
    options = {"sampling_rate": extractor.sampling_rate, "padding": "do_not_pad", "return_tensors": "np"}
    return plain(samples, device=device, **options)["input_features"][0]


def clap_log_mel(extractor: ClapFeatureExtractor, samples: np.ndarray) -> np.ndarray:
    """Compute CLAP's log-mel, `[samples]` of at most a window, repeated until it is full, -> `[1, T, F]`.

    It calls CLAP's private method (seen in transformers 5.6 to 5.23), or else a plain extractor.
    """
    if getattr(extractor, "_get_input_mel", None):
        return extractor._get_input_mel(samples, extractor.nb_max_samples, extractor.truncation, "repeatpad")[0]
    plain = ClapFeatureExtractor.from_dict(extractor.to_dict())
    options = {"sampling_rate": extractor.sampling_rate, "padding": "repeatpad", "return_tensors": "np"}
    return plain(samples, truncation="rand_trunc", **options)["input_features"][0]
