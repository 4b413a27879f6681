"""The encoder that mteb's tasks ask for vectors, an `Embedder` behind mteb's protocol, and the meta that loads it."""

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Audio
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from processing.audio import load_column
from wavlink.embedder import Embedder
from wavlink.progress import Bar
from wavlink.vectors import normalized, truncated

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput, PromptType
    from torch.utils.data import DataLoader

LONG_CLIPS = ("windows", "first")
_DIGEST = "sha256-"  # of weights that are not the Hub's


class WavLinkEncoder(AbsEncoder):
    """Encode the sounds and texts of mteb's tasks.

    A task's sounds are decoded and resampled as everywhere in this package, not by torchcodec and torchaudio, and its
    batch size is not used: an `Embedder` makes its own batches, which change no vector.

    Args:
        name: the model's name in mteb.
        revision: of the weights, as `register_mteb` states it; other weights are refused.
        device: default: a GPU where there is one.
        source: what `Embedder` takes as a model.
        embed_dim: one of the nested dims (default: all dims).
        long_clips: `"windows"`, the mean of as few evenly spaced windows as cover a clip over the model's limit, or
            `"first"`, its beginning alone, as mteb's own wrappers take it.
        model_prompts: by the name of a task, the type of tasks, `"query"` or `"document"`: what stands before a text.
            Sounds have no prompts.
        options: of `Embedder`, such as `backend`.

    Attributes:
        model: the `Embedder`.
        kept: vectors of sounds in memory, so that what several tasks have is encoded once; None, the default, keeps
            those of one call only.

    Raises:
        ValueError: `Embedder`'s, another value of an option, or weights of another revision.
        KeyError: a prompt for something that mteb does not know.
    """

    kept: dict[bytes, np.ndarray] | None = None

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        source: str | os.PathLike[str] | None = None,
        embed_dim: int | None = None,
        long_clips: str = "windows",
        model_prompts: dict[str, str] | None = None,
        **options: Any,
    ):
        if long_clips not in LONG_CLIPS:
            raise ValueError(f"long_clips must be one of {', '.join(LONG_CLIPS)}, got {long_clips!r}")
        self.model_prompts = self.validate_task_to_prompt_name(model_prompts)
        source = os.fspath(source or "") or name
        hub = {"revision": revision} if revision and not revision.startswith(_DIGEST) else {}
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Embedder(source, device=device, **hub, **options)
        if revision not in (None, revision_name(self.model)):
            raise ValueError(
                f"{source} holds revision {revision_name(self.model)}, not {revision}: call register_mteb again"
            )
        if embed_dim not in (None, self.model.dims, *self.model.matryoshka_dims):
            raise ValueError(f"embed_dim must be one of the nested dims {self.model.matryoshka_dims}, got {embed_dim}")
        self.embed_dim, self.long_clips = embed_dim or self.model.dims, long_clips

    def encode(
        self,
        inputs: "DataLoader[BatchedInput]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: "PromptType | None" = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Encode a data set's sounds or texts, `[rows, embed_dim]` fp32, L2-normalised; of both in a row, their sum.

        Raises:
            ValueError: a sound that cannot be read, by its row, or inputs that are neither sounds nor texts.
        """
        dataset: Dataset = inputs.dataset  # type: ignore[assignment]
        where, parts = f"{task_metadata.name}, {hf_subset}/{hf_split}", []
        if "text" in dataset.features:
            name = self.get_prompt_name(task_metadata, prompt_type)
            prompt = (self.model_prompts or {}).get(name or "", "")
            parts.append(self.model.embed_text([prompt + text for text in dataset["text"]]))
        if "audio" in dataset.features:
            parts.append(self._sounds(dataset, where, kwargs.get("show_progress_bar", True)))
        if not parts:
            raise ValueError(f"{where} has neither sounds nor texts, but {', '.join(dataset.features) or 'nothing'}")
        return truncated(parts[0] if len(parts) == 1 else normalized(sum(parts)), self.embed_dim)

    def _sounds(self, dataset: "Dataset", where: str, progress: bool) -> np.ndarray:
        """Return the vector of each row's sound, `[rows, D]`."""
        dataset = dataset.select_columns("audio")
        if isinstance(dataset.features["audio"], Audio):
            dataset = dataset.cast_column("audio", Audio(decode=False))
        known = {} if self.kept is None else self.kept
        keys = [_key_of(row["audio"]) for row in dataset]
        first = {key: row for row, key in reversed([*enumerate(keys)]) if key not in known}
        rows = sorted(first.values())
        clips = (
            self._clip(row["audio"], where, number) for number, row in zip(rows, dataset.select(rows), strict=True)
        )
        with Bar(total=len(rows), desc=where, disable=not progress) as bar:
            for number, vector in zip(rows, self.model.embed_files(clips) if rows else (), strict=True):
                if isinstance(vector, ValueError):
                    raise ValueError(f"{where}: the sound of row {number}: {vector}") from vector
                known[keys[number]] = vector
                bar.update()
        return np.stack([known[key] for key in keys])

    def _clip(self, value: Any, where: str, row: int) -> Any:
        """Return a sound as `Embedder` takes it."""
        if isinstance(value, dict) and isinstance(value.get("array"), list):
            value = {**value, "array": np.asarray(value["array"], np.float32)}
        if self.long_clips == "windows" or self.model.max_seconds is None:
            return value
        rate = self.model.sampling_rate
        try:
            samples = load_column(value, rate)
        except ValueError as error:
            raise ValueError(f"{where}: the sound of row {row}: {error}") from error
        return {"array": samples[: round(self.model.max_seconds * rate)], "sampling_rate": rate}


class WavLinkMeta(ModelMeta):
    """What mteb states of a model, which loads without torchaudio and torchcodec: `WavLinkEncoder` needs neither."""

    def load_model(self, device: str | None = None, *, embed_dim: int | None = None, **options: Any) -> WavLinkEncoder:
        """Load the model's encoder; results with options other than the default are kept apart.

        Args:
            device, embed_dim, options: of `WavLinkEncoder`.
        """
        given = {"embed_dim": embed_dim, **options}
        changed = {name: value for name, value in given.items() if value not in (None, self.loader_kwargs.get(name))}
        loader_kwargs = {**self.loader_kwargs, **changed}
        encoder = self.loader(self.name, revision=self.revision, device=device, **loader_kwargs)
        facts: dict[str, Any] = {"loader_kwargs": loader_kwargs, "experiment_kwargs": changed or None}
        facts |= {"embed_dim": embed_dim} if embed_dim else {}
        encoder.mteb_model_meta = self.model_copy(update=facts)
        return encoder


def _key_of(value: Any) -> bytes:
    """Return what tells a sound from others: a digest of its content, or of its path where that is all there is."""
    if isinstance(value, dict) and value.get("array") is not None:
        content = np.asarray(value["array"], np.float32).tobytes() + str(value.get("sampling_rate")).encode()
    elif isinstance(value, dict):
        content = value.get("bytes") or str(value.get("path")).encode()
    else:
        content = value if isinstance(value, bytes) else str(value).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def revision_name(embedder: Embedder) -> str:
    """Return a model's revision as the name of a folder, which mteb makes of it: a commit, or a digest."""
    return str(embedder.revision).replace("sha256:", _DIGEST)
