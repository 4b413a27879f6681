"""Multiple-choice accuracy, from the similarity of a clip to each choice of its question."""

import datasets
import evaluate

from wavlink.evaluation.metrics import multiple_choice_accuracy  # From: -e .  (in a clone of WavLink)

_DESCRIPTION = """
The share of questions whose right choice is strictly the most similar to the clip; questions may differ in how many
choices they have. Ties count against the model.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): similarity of each question's clip to each of its choices.
    references (`list` of `int`): of each question, the index of its right choice, from 0.

Returns:
    accuracy (`float`): between 0 and 1.

Examples:
    >>> accuracy = evaluate.load("evaluate_modules/multiple_choice_accuracy")
    >>> accuracy.compute(predictions=[[0.1, 0.9], [0.2, 0.3, 0.1, 0.0]], references=[1, 0])
    {'accuracy': 0.5}
"""

_CITATION = """
@misc{kumar2026wavlink,
  title={WavLink: Compact Audio-Text Embeddings with a Global Whisper Token},
  author={G. K. Kumar and L. Lepauloux and H. Hacid},
  eprint={2601.15118},
  archivePrefix={arXiv}
}
"""


class MultipleChoiceAccuracy(evaluate.Metric):
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
        if not len(references):
            raise ValueError("there are no questions: give predictions and references of at least one")
        for question, (row, target) in enumerate(zip(predictions, references, strict=True)):
            if not 0 <= target < len(row):
                raise ValueError(
                    f"question {question} has {len(row)} choices, so its reference must be between 0 and "
                    f"{len(row) - 1}, got {target}"
                )
        return {"accuracy": multiple_choice_accuracy(predictions, references)}
