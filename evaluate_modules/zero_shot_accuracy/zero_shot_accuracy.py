"""Zero-shot accuracy, from the similarity of clips to labels."""

import datasets
import evaluate
import numpy as np

from wavlink.evaluation.metrics import zero_shot_accuracy  # From: -e .  (in a clone of WavLink)

_DESCRIPTION = """
The share of clips whose right label is the most similar one, and among the five most similar ones. Ties count against
the model: a model that finds all labels equally similar has accuracy 0.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`, or `[clips, labels]`): similarity of each clip to each label, such as
        cosines or the model's `logits_per_audio`.
    references (`list` of `int`): of each clip, the index of its right label, from 0.

Returns:
    accuracy (`float`): top-1, between 0 and 1.
    top_5_accuracy (`float`): between 0 and 1; with five labels or fewer always 1.

Examples:
    >>> accuracy = evaluate.load("evaluate_modules/zero_shot_accuracy")
    >>> accuracy.compute(predictions=[[0.9, 0.1], [0.6, 0.4]], references=[0, 1])
    {'accuracy': 0.5, 'top_5_accuracy': 1.0}
"""

_CITATION = """
@misc{kumar2026wavlink,
  title={WavLink: Compact Audio-Text Embeddings with a Global Whisper Token},
  author={G. K. Kumar and L. Lepauloux and H. Hacid},
  eprint={2601.15118},
  archivePrefix={arXiv}
}
"""


class ZeroShotAccuracy(evaluate.Metric):
    __doc__ = _DESCRIPTION + _KWARGS_DESCRIPTION

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2601.15118"],
        )

    def _compute(self, predictions, references):
        widths = {len(row) for row in predictions}
        if len(widths) != 1 or not min(widths):
            raise ValueError(
                f"predictions must be [clips, labels], all over the same labels, got widths {sorted(widths)}: for "
                "questions with different choices take multiple_choice_accuracy"
            )
        similarities = np.array(predictions)
        return {
            "accuracy": zero_shot_accuracy(similarities, references, k=1),
            "top_5_accuracy": zero_shot_accuracy(similarities, references, k=5),
        }
