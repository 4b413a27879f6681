"""transformers' zero-shot pipeline for WavLink: clips of different lengths may share a batch, and may be files."""

from transformers import ZeroShotAudioClassificationPipeline


class WavLinkZeroShotAudioClassificationPipeline(ZeroShotAudioClassificationPipeline):
    """Scores labels by their texts' similarity to a clip, one by one or in batches, with the same scores.

    The pipelines' own padding only fits clips of one length: it pads along axis 1, which is time neither in Whisper's
    log-mels `[B, F, T]` nor, in its eyes, in CLAP's `[B, W, T, F]`. Here time comes first until the batch is made.

    ```python
    >>> from transformers import pipeline
    >>> classify = pipeline("zero-shot-audio-classification", model="your-name/wavlink-base", trust_remote_code=True)
    >>> classify(["dog.wav", "rain.flac"], candidate_labels=["a dog", "rain"], batch_size=2)
    ```
    """

    def preprocess(self, audio, candidate_labels=None, hypothesis_template="This is a sound of {}."):
        """
        Args:
            audio: one mono clip `[samples]` at the model's rate, or what else `WavLinkFeatureExtractor` takes: a path
                or bytes of a file, `{"array", "sampling_rate"}`, a decoder of `datasets`.
            candidate_labels: one label or more.
            hypothesis_template: the text of a label, `{}` in its place.
        """
        if not candidate_labels or isinstance(candidate_labels, str):
            raise ValueError("candidate_labels must be a list of one label or more")
        rate = self.feature_extractor.sampling_rate
        inputs = self.feature_extractor([audio], sampling_rate=rate, return_tensors="pt").to(self.dtype)
        features = inputs.pop("input_features")
        inputs["time_first"] = features.transpose(1, 2) if features.ndim == 3 else features
        inputs["candidate_labels"] = candidate_labels
        texts = [hypothesis_template.format(label) for label in candidate_labels]
        inputs["text_inputs"] = [self.tokenizer(texts, return_tensors="pt", padding=True)]
        return inputs

    def _forward(self, model_inputs):
        features = model_inputs.pop("time_first")
        model_inputs["input_features"] = features.transpose(1, 2) if features.ndim == 3 else features
        return super()._forward(model_inputs)
