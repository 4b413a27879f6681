"""What the demo answers, without a page: labels for a sound, sounds for a sentence, places in a recording.

Whatever a visitor does wrong is a ValueError of one line for the visitor, without a path of this machine.
"""

import dataclasses
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from huggingface_hub import ModelCard
from transformers.utils import cached_file

from modeling_wavlink.losses_wavlink import truncate_embeddings
from processing.audio import at_rate, limited, opened, resampled
from processing.downmix_wavlink import mono_blocks
from wavlink.embedder import Embedder
from wavlink.evaluation.zero_shot import PROMPT
from wavlink.long_recordings import Recording, Span, envelope, hear, locate, noise_score, timeline, windows_for
from wavlink.sanitize import clean, last_part
from wavlink.search.index import Hit, Index

SILENCE = 1e-4  # of full scale: 80 dB below it
MOST_LABELS, MOST_LETTERS = 50, 500
TOP_K = 5


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one visitor: the size of a file, the sound in it, and the wait for the visitors before."""

    megabytes: float = 25
    seconds: float = 600
    wait: float = 60


@dataclasses.dataclass(frozen=True)
class Named:
    """A sound `[D]` and what its labels say, `[L, D]`; both L2-normalised."""

    labels: list[str]
    sound: np.ndarray
    said: np.ndarray
    scale: float

    def at(self, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """The cosines `[L]` of the first `dim` numbers, and the labels' shares `[L]`, softmax(scale * cosine)."""
        cosines = _cut(self.said, dim) @ _cut(self.sound[None], dim)[0]
        return cosines, torch.from_numpy(self.scale * cosines.astype(np.float64)).softmax(0).numpy()


@dataclasses.dataclass(frozen=True)
class Asked:
    """A sentence and its vector `[D]`."""

    text: str
    vector: np.ndarray


@dataclasses.dataclass(frozen=True)
class Heard:
    """A recording's windows, its outline (see `long.envelope`), what is looked for in it, and from which score on it
    stands out at each of the nested dims (see `long.noise_score`)."""

    path: str
    recording: Recording
    peaks: np.ndarray
    query: Asked
    min_scores: dict[int, float]

    def min_score(self, dim: int) -> float:
        return self.min_scores[dim]

    def at(self, dim: int) -> tuple[np.ndarray, np.ndarray, list[Span]]:
        """`edges` `[S + 1]`, `scores` `[S]` and the best spans (see `long`)."""
        asked = self.recording, self.query.vector
        return *timeline(*asked, dim), locate(*asked, TOP_K, dim)


class Demo:
    """A model, an index of sounds if there is one, and its limits. Visitors' work is done one at a time.

    Args:
        trained: what the model was trained on, in words (see `trained_on`).
        index: of the same model (see `wavlink.search.command`).
        sounds: the folder that holds the index's sounds now; default: the one the index knows.

    Raises:
        ValueError: the model is no WavLink, or the index is none, is damaged or was made by another model.
    """

    def __init__(
        self, embedder: Embedder, index: str = "", sounds: str = "", limits: Limits | None = None, trained: str = ""
    ):
        if embedder.model.config.model_type != "wavlink":
            raise ValueError(f"{embedder.name} is no WavLink: the demo shows nested dims and shares of labels")
        self.embedder, self.limits, self.trained = embedder, limits or Limits(), trained
        self.dims = sorted({*embedder.matryoshka_dims, embedder.dims})
        self.indexes = _opened(index, embedder, sounds) if index else {}
        self._turn = threading.Semaphore()

    def name(self, path: str | None, labels: str) -> Named:
        names = labels_in(labels)
        with self.turn():
            clip = self.sound(path)
            rate = self.embedder.sampling_rate
            (vector,) = self.embedder.embed_files([{"array": clip, "sampling_rate": rate, "path": "the sound"}])
            if isinstance(vector, ValueError):
                raise vector
            said = self.embedder.embed_text([PROMPT.replace("{}", name) for name in names])
        return Named(names, vector, said, float(self.embedder.model.scale.detach()))

    def ask(self, text: str) -> Asked:
        text = sentence_in(text)
        with self.turn():
            return Asked(text, self.embedder.embed_text([text])[0])

    def closest(self, asked: Asked, dim: int) -> tuple[list[Hit], list[Hit]]:
        """The nearest sounds at `dim`, or at the index's dims if it has fewer, and those at all dims of the index."""
        if not self.indexes:
            raise ValueError("This demo has no index of sounds.")
        with self.turn():
            return tuple(
                self.indexes[place].nearest(asked.vector, TOP_K) for place in (self.kept(dim), max(self.indexes))
            )

    def kept(self, dim: int) -> int:
        """The dims that the index is compared at when `dim` are asked for."""
        return max((known for known in self.indexes if known <= dim), default=min(self.indexes))

    def listen(self, path: str | None, text: str) -> Heard:
        text = sentence_in(text)
        with self.turn():
            self.sound(path)
            asked = Asked(text, self.embedder.embed_text([text])[0])
            recording = hear(self.embedder, path, *windows_for(path, self.embedder.max_seconds))
            least = {dim: noise_score(self.embedder, recording, dim) for dim in self.dims}
            return Heard(path, recording, envelope(path, recording.duration), asked, least)

    def sound(self, path: str | None) -> np.ndarray:
        """float32 mono `[samples]` at the model's rate, within the limits and not silent.

        To be called in turn: of `limits.seconds` at the model's rate, 38 MB, it takes the memory twice, whatever the
        file's own rate and channels are.
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
                    if most < 0:  # the header's length is not believed
                        break
                    blocks.append(block)
        except ValueError as error:
            raise ValueError(f"{clean(error, 200).rstrip('.')}. Try wav, flac, ogg or mp3.") from error
        if most < 0:
            raise ValueError(f"{name} is longer than {self.limits.seconds:g} s: cut it.")
        return np.concatenate(blocks)

    @contextmanager
    def turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=self.limits.wait):
            raise ValueError(f"The server has been busy for {self.limits.wait:g} s: try again in a minute.")
        try:
            yield
        finally:
            self._turn.release()


def sentence_in(text: str | None) -> str:
    text = clean(text or "", MOST_LETTERS + 1)
    if not text:
        raise ValueError("Type a sentence first, such as: a dog barks far away.")
    if len(text) > MOST_LETTERS:
        raise ValueError(f"The sentence is longer than {MOST_LETTERS} letters: shorten it.")
    return text


def labels_in(text: str) -> list[str]:
    """Labels that are separated by commas, semicolons or lines, each once."""
    labels = [clean(label, MOST_LETTERS) for label in re.split(r"[,;\n]", text or "")]
    labels = list(dict.fromkeys(label for label in labels if label))
    if not labels:
        raise ValueError("Type the labels first, separated by commas, such as: dog, church bell, rain.")
    if len(labels) > MOST_LABELS:
        raise ValueError(f"These are {len(labels)} labels: up to {MOST_LABELS} are compared at once.")
    return labels


def part_of(path: str, start: float, end: float, rate: int) -> np.ndarray | None:
    """Mono `[samples]` at `rate` from `start` to `end` seconds of a file; None if there is no such sound any more."""
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
    """The same of what libsndfile alone does not read so far, by decoding all that is before."""
    first, last, place, blocks = round(start * rate), round(end * rate), 0, []
    try:
        with opened(path) as sound:
            for block in resampled(limited(sound), sound.samplerate, rate, path):
                blocks.append(block[max(0, first - place) : max(0, last - place)])
                place += len(block)
                if place >= last:
                    break
    except ValueError:
        return None
    return np.concatenate(blocks) if place > first else None


def trained_on(model: str, revision: str | None = None) -> str:
    """What a model's run, or else its card, says it was trained on.

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
    """A recipe's data; a mixture is a mapping in a run's folder, and pairs in what a card ships."""
    mixture = recipe.get("mixture") or ([[recipe["data"], 1]] if recipe.get("data") else [])
    return list(mixture) if isinstance(mixture, dict) else [name for name, _ in mixture]


def _file(model: str, name: str, revision: str | None) -> str | None:
    found = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(model, name, revision=revision, **found)


def _opened(index: str, embedder: Embedder, sounds: str) -> dict[int, Index]:
    """The index at each of its nested dims."""
    own = Index.open(index, embedder)
    own.embedder  # noqa: B018 - refuses another model's index now, not at the first question
    if not len(own):
        raise ValueError(f"{index} holds no sounds yet: index some")
    nested = [dim for dim in own.manifest.matryoshka_dims if dim < own.manifest.dim]
    found = {dim: Index.open(index, embedder, dim=dim) for dim in nested} | {own.manifest.dim: own}
    if sounds:
        for each in found.values():
            each.manifest = dataclasses.replace(each.manifest, root=os.path.abspath(sounds))
    return found


def _cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    return truncate_embeddings(torch.from_numpy(vectors), dim).numpy()
