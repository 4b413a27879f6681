"""The demo without its page: labels for a sound, sounds for a sentence, and spans of a recording.

Bad input of a visitor is a ValueError of one line for the visitor, without a path of this machine.
"""

import dataclasses
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from huggingface_hub import ModelCard
from transformers.utils import cached_file

from processing.audio import at_rate, limited, opened, resampled
from processing.downmix_wavlink import mono_blocks
from processing.prompts import PROMPT, prompted, prompts_of
from wavlink.classification import logit_scale
from wavlink.embedder import Embedder
from wavlink.labels import ensemble
from wavlink.long_recordings import (
    ProbableSpan,
    Recording,
    Span,
    encode_recording,
    envelope,
    locate,
    noise_score,
    timeline,
    windows_for,
)
from wavlink.probability import Logistic, calibration_of
from wavlink.sanitize import clean, last_part
from wavlink.vectors import softmax, truncated
from wavlink.vocabulary import unknown_words

if TYPE_CHECKING:
    from wavlink.search.index import Hit, Index

SILENCE = 1e-4  # of full scale: 80 dB below it
MOST_LABELS, MOST_LETTERS = 50, 500
TOP_K = 5


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one visitor: the size of a file, the length of its sound, and the wait for earlier visitors in s."""

    megabytes: float = 25
    seconds: float = 600
    wait: float = 60


@dataclasses.dataclass(frozen=True)
class ClassifiedSound:
    """A sound and its labels.

    Attributes:
        labels: L names.
        sound: its vector `[D]`, L2-normalised.
        text_embeds: of each label in each of P prompts, `[L * P, D]`, L2-normalised.
        scale: of the model's logits.
        prompts: the P texts with `{}` for a label.
        calibrations: by nested dim, the model's calibration; none if it has no calibration.
        unknown: words of the labels that the model's vocabulary lacks.
    """

    labels: list[str]
    sound: np.ndarray
    text_embeds: np.ndarray
    scale: float
    prompts: Sequence[str] = (PROMPT,)
    calibrations: Mapping[int, Logistic] = dataclasses.field(default_factory=dict)
    unknown: Sequence[str] = ()

    def at(self, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosines `[L]` of the first `dim` numbers, and the scores `[L]`, softmax(scale * cosine)."""
        texts = self.text_embeds.reshape(len(self.labels), -1, self.text_embeds.shape[-1])
        cosines = ensemble(texts, dim) @ _cut(self.sound[None], dim)[0]
        return cosines, softmax(self.scale * cosines)


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence, its vector `[D]`, and its words that the model's vocabulary lacks."""

    text: str
    vector: np.ndarray
    unknown: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class SearchedRecording:
    """A recording and what is searched for in it.

    Attributes:
        path: of its file.
        recording: its windows.
        peaks: its outline (see `long_recordings.envelope`).
        query: the sentence.
        min_scores: by nested dim, the score from which the query stands out (see `long_recordings.noise_score`).
        calibrations: by nested dim, the model's calibration; none if it has no calibration.
    """

    path: str
    recording: Recording
    peaks: np.ndarray
    query: Sentence
    min_scores: dict[int, float]
    calibrations: Mapping[int, Logistic] = dataclasses.field(default_factory=dict)

    @property
    def unknown(self) -> Sequence[str]:
        """Words of the query that the model's vocabulary lacks."""
        return self.query.unknown

    def at(self, dim: int) -> tuple[np.ndarray, np.ndarray, list[Span]]:
        """Return `edges` `[S + 1]`, `scores` `[S]` and the best spans (see `long_recordings`)."""
        query = self.recording, self.query.vector
        return *timeline(*query, dim), [self._probable(span, dim) for span in locate(*query, TOP_K, dim)]

    def _probable(self, span: Span, dim: int) -> Span:
        fit = self.calibrations.get(dim)
        if fit is None:
            return span
        return ProbableSpan(**dataclasses.asdict(span), probability=float(fit.probability(span.score)))


class Demo:
    """A model, an index of sounds if there is one, and the limits. Requests are processed one at a time.

    Args:
        embedder: of any model that `Embedder` takes.
        index: a folder that the same model has made, or its address in object storage (see `wavlink.search.command`).
        sounds: the folder with the index's sounds (default: the one the index names).
        limits: of one visitor.
        trained: what the model was trained on, in words (see `trained_on`).
        storage_options: of an index in object storage, see Lance's `storage_options`.

    Raises:
        ValueError: the index is none, is damaged or was made by another model.
    """

    def __init__(
        self,
        embedder: Embedder,
        index: str = "",
        sounds: str = "",
        limits: Limits | None = None,
        trained: str = "",
        storage_options: dict[str, str] | None = None,
    ):
        self.embedder, self.limits, self.trained = embedder, limits or Limits(), trained
        self.dims = sorted({*embedder.matryoshka_dims, embedder.dims})
        self.indexes = _opened(index, embedder, {"root": sounds, "storage_options": storage_options}) if index else {}
        self.prompts = prompts_of(embedder.model.config)
        fits = {dim: calibration_of(embedder, dim) for dim in self.dims}
        self.calibrations = {dim: fit for dim, fit in fits.items() if fit is not None}
        self._turn = threading.Semaphore()

    def classify(self, path: str | None, labels: str) -> ClassifiedSound:
        """Embed a sound and its labels, which commas, semicolons or lines separate."""
        names = labels_in(labels)
        with self.turn():
            clip = self.sound(path)
            rate = self.embedder.sampling_rate
            (vector,) = self.embedder.embed_files([{"array": clip, "sampling_rate": rate, "path": "the sound"}])
            if isinstance(vector, ValueError):
                raise vector
            texts = [prompted(prompt, name) for name in names for prompt in self.prompts]
            text_embeds = self.embedder.embed_text(texts)
            unknown = unknown_words(getattr(self.embedder.processor, "tokenizer", None), names)
        scale = float(logit_scale(self.embedder.model))
        return ClassifiedSound(names, vector, text_embeds, scale, self.prompts, self.calibrations, unknown)

    def embed_sentence(self, text: str) -> Sentence:
        """Embed a sentence."""
        text = sentence_in(text)
        with self.turn():
            return self._sentence(text)

    def _sentence(self, text: str) -> Sentence:
        unknown = unknown_words(getattr(self.embedder.processor, "tokenizer", None), [text])
        return Sentence(text, self.embedder.embed_text([text])[0], unknown)

    def closest(self, query: Sentence, dim: int) -> "tuple[list[Hit], list[Hit]]":
        """Return the nearest sounds at `dim`, or at the index's dims if it has fewer, and those at all its dims."""
        if not self.indexes:
            raise ValueError("This demo has no index of sounds.")
        with self.turn():
            used = self.indexes[self.kept(dim)], self.indexes[max(self.indexes)]
            return tuple(x.with_probabilities(x.nearest(query.vector, TOP_K), query.vector) for x in used)

    def kept(self, dim: int) -> int:
        """Return the dims of the index that are compared if `dim` are wanted."""
        return max((known for known in self.indexes if known <= dim), default=min(self.indexes))

    def locate(self, path: str | None, text: str) -> SearchedRecording:
        """Encode a recording and the sentence that is searched for in it."""
        text = sentence_in(text)
        with self.turn():
            self.sound(path)
            query = self._sentence(text)
            recording = encode_recording(self.embedder, path, *windows_for(path, self.embedder.max_seconds))
            least = {dim: noise_score(self.embedder, recording, dim) for dim in self.dims}
            peaks = envelope(path, recording.duration)
            return SearchedRecording(path, recording, peaks, query, least, self.calibrations)

    def sound(self, path: str | None) -> np.ndarray:
        """Decode a file to float32 mono `[samples]` at the model's rate.

        Call it within `turn`: it takes twice the memory of `limits.seconds` at the model's rate, 38 MB, whatever the
        file's rate and channels are.

        Raises:
            ValueError: no file, one over the limits, or silence.
        """
        if not path or not os.path.isfile(path):
            raise ValueError("Drop or record a sound first.")
        name = clean(os.path.basename(path), 60)
        if os.path.getsize(path) > self.limits.megabytes * 1e6:
            raise ValueError(f"{name} is larger than {self.limits.megabytes:g} MB: cut it, or save it as mp3 or ogg.")
        clip = self._decoded(path, name)
        if np.abs(clip).max() < SILENCE:
            raise ValueError(f"{name} is silent: nothing in it is louder than -80 dB of full scale.")
        return clip

    def _decoded(self, path: str, name: str) -> np.ndarray:
        rate, blocks = self.embedder.sampling_rate, []
        most = self.limits.seconds * rate
        try:
            with opened(path, name) as sound:
                for block in resampled(limited(sound), sound.samplerate, rate, name):
                    most -= len(block)
                    if most < 0:  # the length in the header may be wrong
                        break
                    blocks.append(block)
        except ValueError as error:
            raise ValueError(f"{clean(error, 200).rstrip('.')}. Try wav, flac, ogg or mp3.") from error
        if most < 0:
            raise ValueError(f"{name} is longer than {self.limits.seconds:g} s: cut it.")
        return np.concatenate(blocks)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other request is processed.

        Raises:
            ValueError: that took longer than `limits.wait`.
        """
        if not self._turn.acquire(timeout=self.limits.wait):
            raise ValueError(f"The server has been busy for {self.limits.wait:g} s: try again in a minute.")
        try:
            yield
        finally:
            self._turn.release()


def sentence_in(text: str | None) -> str:
    """Return a sentence in one line, or raise a ValueError if it is empty or too long."""
    text = clean(text or "", MOST_LETTERS + 1)
    if not text:
        raise ValueError("Type a sentence first, such as: a dog barks far away.")
    if len(text) > MOST_LETTERS:
        raise ValueError(f"The sentence is longer than {MOST_LETTERS} letters: shorten it.")
    return text


def labels_in(text: str | None) -> list[str]:
    """Split labels that commas, semicolons or lines separate; each is kept once."""
    labels = [clean(label, MOST_LETTERS) for label in re.split(r"[,;\n]", text or "")]
    labels = list(dict.fromkeys(label for label in labels if label))
    if not labels:
        raise ValueError("Type the labels first, separated by commas, such as: dog, church bell, rain.")
    if len(labels) > MOST_LABELS:
        raise ValueError(f"These are {len(labels)} labels: up to {MOST_LABELS} are compared at once.")
    return labels


def part_of(path: str, start: float, end: float, rate: int) -> np.ndarray | None:
    """Decode mono `[samples]` at `rate` from `start` to `end` seconds of a file; None if it cannot be read."""
    try:
        with open(path, "rb") as file, soundfile.SoundFile(file) as sound:
            if end * sound.samplerate <= sound.frames:
                sound.seek(round(start * sound.samplerate))
                taken = sound.read(round((end - start) * sound.samplerate), dtype="float32", always_2d=True)
                mono = np.concatenate(list(mono_blocks([taken], sound.samplerate)))
                return at_rate(mono, sound.samplerate, rate, path)
        return _decoded_part(path, start, end, rate)
    except soundfile.SoundFileError:
        return _decoded_part(path, start, end, rate)
    except (OSError, ValueError):
        return None


def _decoded_part(path: str, start: float, end: float, rate: int) -> np.ndarray | None:
    """Do the same for a file that libsndfile cannot seek in, by decoding it from its start."""
    first, last, position, blocks = round(start * rate), round(end * rate), 0, []
    try:
        with opened(path) as sound:
            for block in resampled(limited(sound), sound.samplerate, rate, path):
                blocks.append(block[max(0, first - position) : max(0, last - position)])
                position += len(block)
                if position >= last:
                    break
    except ValueError:
        return None
    return np.concatenate(blocks) if position > first else None


def trained_on(model: str, revision: str | None = None) -> str:
    """Read from a model's run, or else from its card, what it was trained on.

    Args:
        model: a folder or Hub id.
        revision: of a Hub id.
    """
    if model.startswith("random:"):
        return "nothing: its weights are random"
    run = Path(model).resolve().parent / "recipe.json"
    shipped = (_file(model, name, revision) for name in ("training/recipe.json", "training/stage2/recipe.json"))
    recipes = [path for path in (run if os.path.isdir(model) else None, *shipped) if path and os.path.isfile(path)]
    if recipes:
        recipe = json.loads(Path(recipes[0]).read_text(encoding="utf-8"))
        names = [str(name) for name in _sources(recipe)]
        if names:
            return clean(", ".join(last_part(x) if x.startswith(("/", ".", "~")) else x for x in names))
    card = _file(model, "README.md", revision)
    text = Path(card).read_text(encoding="utf-8") if card else ""
    if "**Not trained.**" in text:
        return "nothing yet: its towers are pretrained, its projections are new"
    data = ModelCard(text, ignore_metadata_errors=True).data.get("datasets") if text else None
    return clean(", ".join([data] if isinstance(data, str) else map(str, data))) if data else "data it does not name"


def _sources(recipe: dict) -> list:
    """Return a recipe's data; a mixture is a mapping in a run's folder, and a list of pairs in a published recipe."""
    mixture = recipe.get("mixture") or ([[recipe["data"], 1]] if recipe.get("data") else [])
    return list(mixture) if isinstance(mixture, dict) else [name for name, _ in mixture]


def _file(model: str, name: str, revision: str | None) -> str | None:
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(model, name, revision=revision, **missing)


def _opened(index: str, embedder: Embedder, where: dict[str, Any]) -> "dict[int, Index]":
    """Open an index at each of its nested dims."""
    from wavlink.search.index import Index  # needs the extra `search`

    full = Index.open(index, embedder, **where)
    full.embedder  # noqa: B018 - refuses another model's index now, not at the first query
    if not len(full):
        raise ValueError(f"{index} holds no sounds yet: index some")
    nested = [dim for dim in full.manifest.matryoshka_dims if dim < full.manifest.dim]
    return {dim: Index.open(index, embedder, dim=dim, **where) for dim in nested} | {full.manifest.dim: full}


def _cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    return truncated(vectors, dim)
