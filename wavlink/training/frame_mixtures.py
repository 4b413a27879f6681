"""Mixtures of clips at known times, for training on frames: loud clips over a quieter background of other clips."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np

from processing.audio import load_column
from processing.collator import caption_key
from processing.datasets.load import captions_of, label_names
from processing.prompts import PROMPT, prompted
from wavlink.frame_head import CONTEXT, STEP
from wavlink.labels import words_of_labels

SHORTEST, LONGEST = 0.4, 12.0  # seconds of a clip
QUIETER = 3.0, 18.0  # dB by which the background is below the loud clips
STEPS = round(CONTEXT / STEP)
_BY_LABEL = 0.6  # share of the loud clips whose label is drawn first, so that rare labels occur
_SECOND = 0.5  # share of the mixtures with a second loud clip
_LOUDNESS = 0.1  # RMS of a loud clip, before the mixture is brought to a peak of 0.5
_DECODED = 4096  # clips that are kept decoded


class Mixture(NamedTuple):
    """`samples` `[n]` of `CONTEXT` seconds, and which clip is at each of its `STEPS`, -1 for none: loud, and quiet."""

    samples: np.ndarray
    loud: np.ndarray
    quiet: np.ndarray


class Clips:
    """The clips of a split that mixtures are made of: their texts, and which of them are alike.

    Args:
        dataset: with `audio` and `duration` in seconds; clips of `SHORTEST` to `LONGEST` with a text are used.
        columns: with captions. The column `label`, if there is one, gives two more texts.

    Attributes:
        captions, prompts: of each clip, its captions, and the texts of its label.
        same_label, same_caption: `[clips]`, equal numbers for clips that are no negatives of each other.

    Raises:
        ValueError: fewer than two clips can be used.
    """

    def __init__(self, dataset: datasets.Dataset, columns: Sequence[str], sampling_rate: int):
        self.sampling_rate = sampling_rate
        names, seconds = label_names(dataset), np.array(dataset["duration"], dtype=np.float64)
        captions = [captions_of(row, columns) for row in dataset.select_columns(list(columns))]
        fits = (seconds >= SHORTEST) & (seconds <= LONGEST)
        kept = [row for row in np.flatnonzero(fits) if captions[row]]
        if len(kept) < 2:
            raise ValueError(
                f"{len(kept)} of {len(dataset)} clips have a caption and {SHORTEST:g} to {LONGEST:g} s: two or more "
                "are needed to make mixtures of"
            )
        self._audio, self._samples = dataset.select(kept).select_columns(["audio"]), OrderedDict()
        labels = [names[row] for row in kept]
        self.captions = [captions[row] for row in kept]
        self.prompts = _prompts(labels)
        self.same_label = _numbers([label or row for row, label in enumerate(labels)])
        self.same_caption = _numbers([caption_key(texts[0]) for texts in self.captions])
        self.of_label = [np.flatnonzero(np.array(labels) == label) for label in sorted({*filter(None, labels)})]

    def __len__(self) -> int:
        return len(self.captions)

    def samples(self, clip: int) -> np.ndarray:
        """Decode a clip, `[samples]` at an RMS of `_LOUDNESS`; the last ones stay decoded."""
        if clip not in self._samples:
            samples = load_column(self._audio[int(clip)]["audio"], self.sampling_rate)
            self._samples[clip] = samples * np.float32(_LOUDNESS / max(np.sqrt(np.mean(samples**2)), 1e-6))
            if len(self._samples) > _DECODED:
                self._samples.popitem(last=False)
        return self._samples[clip]


def _prompts(labels: Sequence[str | None]) -> list[list[str]]:
    return [[words, prompted(PROMPT, words)] if words else [] for words in words_of_labels(labels)]


def _numbers(values: Sequence) -> np.ndarray:
    known: dict = {}
    return np.array([known.setdefault(value, len(known)) for value in values])


def compose(clips: Clips, rng: np.random.Generator) -> Mixture:
    """Make a mixture: a background of clips end to end, and one loud clip, or one in each half, at a random time."""
    length = round(CONTEXT * clips.sampling_rate)
    samples, quiet = _background(clips, length, rng)
    loud = np.full(STEPS, -1)
    count = 1 + int(rng.random() < _SECOND)
    room = length // count
    for part in range(count):
        clip = _draw(clips, rng)
        sound = clips.samples(clip)
        cut = int(rng.integers(max(1, len(sound) - room + 1)))
        sound = sound[cut : cut + room]
        start = part * room + int(rng.integers(room - len(sound) + 1))
        samples[start : start + len(sound)] += sound
        _mark(loud, clip, start, start + len(sound), length)
    return Mixture(0.5 * samples / max(np.abs(samples).max(), 1e-6), loud, quiet)


def _draw(clips: Clips, rng: np.random.Generator) -> int:
    if clips.of_label and rng.random() < _BY_LABEL:
        return int(rng.choice(clips.of_label[rng.integers(len(clips.of_label))]))
    return int(rng.integers(len(clips)))


def _background(clips: Clips, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    samples, quiet = np.zeros(length, np.float32), np.full(STEPS, -1)
    level = np.float32(10 ** (-rng.uniform(*QUIETER) / 20))
    start = -int(rng.integers(clips.sampling_rate))
    while start < length:
        clip = int(rng.integers(len(clips)))
        sound = clips.samples(clip)
        first, last = max(start, 0), min(start + len(sound), length)
        if first < last:
            samples[first:last] += level * sound[first - start : last - start]
            _mark(quiet, clip, first, last, length)
        start += len(sound)
    return samples, quiet


def _mark(steps: np.ndarray, clip: int, start: int, end: int, length: int) -> None:
    """Enter a clip at the steps whose middle it covers, at one step at least."""
    middles = (np.arange(STEPS) + 0.5) * length / STEPS
    covered = (middles >= start) & (middles < end)
    if not covered.any():
        covered[min(STEPS - 1, int((start + end) / 2 * STEPS / length))] = True
    steps[covered] = clip
