"""transformers' zero-shot audio pipeline for WavLink, with files as input and clips of any length in a batch."""

from collections.abc import Sequence

from torch.nn import functional as F
from transformers import ZeroShotAudioClassificationPipeline

_TEMPLATE = "This is a sound of {}."  # of the stock pipeline


class WavLinkZeroShotAudioClassificationPipeline(ZeroShotAudioClassificationPipeline):
    """Zero-shot classification of clips, one by one or in batches, with the same scores.

    The pipelines pad along axis 1, which is not the axis of time in Whisper's log-mels `[B, F, T]`. Here the axis of
    time comes first until the batch is made, so that clips of different lengths can be padded.

    Without a `hypothesis_template` the texts of labels are those that the model brings (`label_prompts` of its
    config); the vectors of several are averaged.

    ```python
    >>> from transformers import pipeline
    >>> classify = pipeline("zero-shot-audio-classification", model="your-name/wavlink-base", trust_remote_code=True)
    >>> classify(["dog.wav", "rain.flac"], candidate_labels=["a dog", "rain"], batch_size=2)
    ```
    """

    def preprocess(
        self,
        audio: object,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str | None = None,
    ) -> dict:
        """Compute the features of a clip and the tokens of the labels' texts.

        Args:
            audio: one mono clip `[samples]` at the model's rate, or another input of `WavLinkFeatureExtractor`: a path
                or bytes of a file, `{"array", "sampling_rate"}`, a decoder of `datasets`.
            candidate_labels: one label or more.
            hypothesis_template: the text of a label, with `{}` for the label (default: the model's `label_prompts`,
                else `"This is a sound of {}."`).

        Raises:
            ValueError: no labels.
        """
        if not candidate_labels or isinstance(candidate_labels, str):
            raise ValueError("candidate_labels must be a list of one label or more")
        rate = self.feature_extractor.sampling_rate
        inputs = self.feature_extractor([audio], sampling_rate=rate, return_tensors="pt").to(self.dtype)
        features = inputs.pop("input_features")
        inputs["time_first"] = features.transpose(1, 2) if features.ndim == 3 else features
        inputs["candidate_labels"] = candidate_labels
        if hypothesis_template is None:
            prompts = getattr(self.model.config, "label_prompts", None) or [_TEMPLATE]
            texts = [prompt.replace("{}", label) for label in candidate_labels for prompt in prompts]
        else:
            texts = [hypothesis_template.format(label) for label in candidate_labels]
        inputs["text_inputs"] = [self.tokenizer(texts, return_tensors="pt", padding=True)]
        return inputs

    def _forward(self, model_inputs: dict) -> dict:
        features = model_inputs.pop("time_first")
        model_inputs["input_features"] = features.transpose(1, 2) if features.ndim == 3 else features
        labels, texts = model_inputs.pop("candidate_labels"), model_inputs.pop("text_inputs")[0]
        if isinstance(texts, list):  # of a batch, where each clip brings the same
            texts = texts[0]
        outputs = self.model(**texts, **model_inputs, return_loss=False)
        return {"candidate_labels": labels, "logits": self._logits(outputs, labels)}

    def _logits(self, outputs, labels):
        """Return the logits `[B, labels]`, of the mean vector of each label's prompts."""
        labels = len(labels if isinstance(labels[0], str) else labels[0])
        text_embeds = outputs.text_embeds
        if len(text_embeds) == labels:
            return outputs.logits_per_audio
        text_embeds = F.normalize(text_embeds.float().unflatten(0, (labels, -1)).mean(1), dim=-1).to(text_embeds.dtype)
        model = self.model
        return model.scale.to(text_embeds.dtype) * outputs.audio_embeds @ text_embeds.T + model.logit_bias
