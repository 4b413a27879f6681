"""Vectors of a recording's steps of 0.2 s, made of a Whisper encoder's frames by a small trained head.

A clip's vector says what is in the clip, and the encoder's frames before pooling say when. The head turns them into
vectors of the same space as texts. It is trained on mixtures of clips at known times (`wavlink train-frames`); the
model's weights, and so its clip vectors, stay as they are. Frames are compared with texts as in FineLAP (arXiv
2604.01155) and PE-A-Frame (arXiv 2512.19687).
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BatchFeature

from processing.audio import AudioSource
from processing.windows import stream_windows

from .atomic_files import atomic_file
from .backends.torch_model import own_dtype
from .defaults import FRAME_HEAD
from .embedder import Embedder, mean_direction
from .loading import revision as revision_of
from .long_recordings import Recording
from .probability import Logistic

STEP = 0.2  # seconds of a vector
CONTEXT, CONTEXT_HOP = 10.0, 8.0  # seconds that are encoded at once, and from one start to the next
LAYERS = 3  # of the encoder, the last ones, whose states the head takes
_STEPS_A_WINDOW = 3  # neighbouring vectors that are averaged
_CONTEXTS_A_BATCH = 8
_FITTED = ("slope", "intercept", "prior")


class FrameHead(nn.Module):
    """Layer norm, a projection, a depthwise convolution over time, and a projection to the model's space.

    Args:
        states: width of the encoder's states of a step, `LAYERS * D`.
        dims: of the model's vectors.
        hidden: width between the projections.
        kernel: steps that the convolution sees, odd.
        dropout: of the states and of the hidden ones, in training.
    """

    def __init__(self, states: int, dims: int, hidden: int = 256, kernel: int = 9, dropout: float = 0.2):
        super().__init__()
        self.norm = nn.LayerNorm(states)
        self.inner = nn.Linear(states, hidden)
        self.inner_norm = nn.LayerNorm(hidden)
        self.convolution = nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.mixing = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, dims, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """Turn states of steps into vectors, `[B, S, LAYERS * D] -> [B, S, dims]`, L2-normalised."""
        hidden = self.inner(self.dropout(self.norm(states)))
        over_time = self.convolution(self.inner_norm(hidden).transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self.mixing(F.gelu(over_time))
        return F.normalize(self.outer(self.dropout(F.gelu(hidden))), dim=-1)


class Fitted(NamedTuple):
    """A trained head, and the logistic of its cosines: the probability that a text matches a step."""

    head: FrameHead
    calibration: Logistic


def has_frames(embedder: Embedder) -> bool:
    """Whether a head can be trained for a model: a WavLink with a Whisper, in torch."""
    config = embedder.model.config
    whisper = getattr(config, "model_type", "") == "wavlink" and config.audio_config.model_type == "whisper"
    return whisper and embedder.backend == "torch"


def step_states(embedder: Embedder, clips: Sequence[np.ndarray]) -> Tensor:
    """Encode clips and average the last `LAYERS` layers' frames over steps.

    Args:
        clips: mono `[samples]`, all of one length.

    Returns:
        fp32 `[B, S, LAYERS * D]` on the CPU, S the clips' length in steps, rounded, 1 or more.
    """
    model, rate = embedder.model, embedder.sampling_rate
    inputs = embedder.processor(audio=list(clips), sampling_rate=rate, return_tensors="pt")
    inputs = BatchFeature(dict(inputs)).to(model.device, dtype=model.dtype)
    with torch.no_grad(), own_dtype(model):
        layers = model.get_audio_features(**inputs, output_hidden_states=True).hidden_states[-LAYERS:]
    own = len(clips[0]) / rate / (inputs["input_features"].shape[-1] / 100)  # the rest is padding up to 30 s
    steps = max(1, round(len(clips[0]) / rate / STEP))
    pooled = []
    for states in layers:
        frames = states.shape[1] - (model.config.pooling != "mean")  # without the token
        states = states[:, : max(1, min(frames, round(frames * own)))].float().cpu()
        pooled.append(F.adaptive_avg_pool1d(states.transpose(1, 2), steps).transpose(1, 2))
    return torch.cat(pooled, dim=-1)


def encode_steps(embedder: Embedder, head: FrameHead, source: AudioSource) -> Recording:
    """Encode a recording while it is decoded; its windows are `_STEPS_A_WINDOW` steps long, one at each step.

    It is encoded in parts of `CONTEXT` seconds; where they overlap, steps near the middle of their part weigh more.
    The vectors of an hour take 28 MB at 384 dims.

    Raises:
        ValueError: the recording cannot be read, or the model gives NaN or infinite values.
    """
    parts, seconds = [], 0.0
    for start, end, vectors in _encoded_parts(embedder, head, source):
        parts.append((round(start / STEP), vectors))
        seconds = end
    count = max(first + len(vectors) for first, vectors in parts)
    sums = np.zeros((count, embedder.dims), np.float32)
    for first, vectors in parts:
        sums[first : first + len(vectors)] += vectors * _weights(len(vectors))
    width = min(_STEPS_A_WINDOW, count)
    windows = sum(_unit(sums)[offset : count - width + 1 + offset] for offset in range(width))
    if not np.isfinite(windows).all():
        raise ValueError("the model gives this recording a vector with NaN or infinite values")
    starts = STEP * np.arange(len(windows))
    ends = starts + width * STEP
    ends[-1] = seconds
    return Recording(_unit(windows), starts, ends, mean_direction(list(windows)), STEP)


def _encoded_parts(
    embedder: Embedder, head: FrameHead, source: AudioSource
) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yield the start and the end of each part in seconds, and the vectors of its steps `[S, dims]`."""
    windows = stream_windows(source, CONTEXT, CONTEXT_HOP, embedder.sampling_rate)
    while batch := list(itertools.islice(windows, _CONTEXTS_A_BATCH)):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            vectors = head(step_states(embedder, [window.samples for window in batch])).numpy()
        for window, of_steps in zip(batch, vectors, strict=True):
            yield window.start, window.end, of_steps


def _weights(steps: int) -> np.ndarray:
    """Weights `[steps, 1]` that fall from the middle of a part to its ends."""
    index = np.arange(steps, dtype=np.float32)
    return np.minimum(index + 1, index[::-1] + 1)[:, None]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def write_frame_head(folder: Path, fitted: Fitted, revision: str, about: str = "") -> Path:
    """Write a head beside its model, in fp16, atomically.

    Args:
        folder: of the model.
        revision: of the model's weights (see `wavlink.loading.revision`), which alone the head fits.
        about: what it was trained on.
    """
    path = folder / FRAME_HEAD
    tensors = {name: value.half().contiguous() for name, value in fitted.head.state_dict().items()}
    metadata = {"revision": revision, "about": about}
    metadata |= {name: f"{getattr(fitted.calibration, name):.8g}" for name in _FITTED}
    with atomic_file(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)
    return path


def read_frame_head(folder: Path, embedder: Embedder) -> Fitted:
    """Read the head that lies beside a model.

    Raises:
        ValueError: the file cannot be read, or is of other weights than the model's.
    """
    path = folder / FRAME_HEAD
    again = f"`wavlink train-frames {folder}` makes one for these weights; without the file windows are searched"
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name).float() for name in file.keys()}
        calibration = Logistic(*(float(metadata[name]) for name in _FITTED))
        states, (dims, hidden) = len(tensors["norm.weight"]), tensors["outer.weight"].shape
        head = FrameHead(states, dims, hidden, tensors["convolution.weight"].shape[-1])
        head.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no frame head ({error}): {again}") from error
    if metadata.get("revision") != revision_of(embedder.model):
        raise ValueError(f"{path} belongs to other weights than those of {embedder.name}: {again}")
    return Fitted(head.eval(), calibration)
