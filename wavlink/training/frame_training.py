"""The command `wavlink train-frames`: train the head that finds a text in a recording's frames.

wavlink train-frames runs/my/best --data my_sounds

Mixtures of clips at known times (`frame_mixtures`) are encoded once. The encoder and the text tower stay as they are.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from processing.datasets.load import caption_columns, durations, load_split, with_captions
from wavlink.config_file import own_folder
from wavlink.console import stdout_for
from wavlink.embedder import Embedder
from wavlink.evaluation.calibrate import data_name
from wavlink.frame_head import Fitted, FrameHead, has_frames, step_states, write_frame_head
from wavlink.options import training as of
from wavlink.parsing import main_of
from wavlink.probability import Logistic
from wavlink.progress import Bar

from .frame_mixtures import Clips, compose

_BATCH = 32  # mixtures of a training step
_ENCODED = 16  # mixtures encoded at once
_LABELS = 0.3  # share of the queries that are a label instead of a caption
_NOISE = 0.02  # standard deviation added to states
_START_SCALE, _START_BIAS = 15.0, -4.0
_WARM_UP = 100  # steps


@dataclass(frozen=True)
class Training:
    """What `train_frames` is given; see the options of `wavlink train-frames`."""

    data: str
    split: str = "train"
    caption_columns: tuple[str, ...] = ()
    mixtures: int = 2400
    epochs: int = 14
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Encoded:
    """Encoded mixtures: `states` fp16 `[M, S, D]`, and the clips at their steps, `loud` and `quiet` `[M, S]`."""

    states: Tensor
    loud: np.ndarray
    quiet: np.ndarray


class Targets:
    """The queries of a batch of mixtures and the steps that they match.

    Every clip that is audible is a query: the loud ones, and those of the background where no loud
    one covers them for two steps or more. A step that holds another clip with the query's label or caption is ignored,
    and so is one without any clip.

    Args:
        loud, quiet: `[B, S]`, clips at the steps, -1 for none.

    Attributes:
        queries: `[Q]` clips.
        matches, ignored: bool `[Q, B, S]`.
    """

    def __init__(self, clips: Clips, loud: np.ndarray, quiet: np.ndarray):
        present = np.where(loud >= 0, loud, quiet)
        pairs = [
            (number, clip)
            for number in range(len(loud))
            for clip in dict.fromkeys(present[number].tolist())
            if clip in loud[number] or (clip >= 0 and (present[number] == clip).sum() >= 2)
        ]
        pairs = [(number, clip) for number, clip in pairs if clip >= 0]
        self.queries = np.array([clip for _, clip in pairs])
        matches = np.zeros((len(pairs), *loud.shape), dtype=bool)
        for query, (number, clip) in enumerate(pairs):
            matches[query, number] = present[number] == clip
        alike = _alike(clips, self.queries, present)
        ignored = (alike & ~matches) | (_alike(clips, self.queries, quiet) & ~alike) | (present < 0)
        self.matches, self.ignored = torch.from_numpy(matches), torch.from_numpy(ignored)


def _alike(clips: Clips, queries: np.ndarray, at: np.ndarray) -> np.ndarray:
    """bool `[Q, B, S]`: whether the clip at a step has the label or the caption of a query."""
    same = [kind[queries][:, None, None] == kind[at] for kind in (clips.same_label, clips.same_caption)]
    return (same[0] | same[1]) & (at >= 0)


def frame_loss(scores: Tensor, bias: Tensor, matches: Tensor, ignored: Tensor) -> Tensor:
    """Compute the loss of a batch: the sum of three, each a mean.

    - of the steps with a match, the cross-entropy over the queries: which of the texts is at this step?
    - of the queries, the cross-entropy over all steps of the batch, against equal shares of its own steps, less the
      entropy of these: at which steps is this text?
    - the binary cross-entropy of all pairs, over the number of matches; it makes `sigmoid(scores + bias)` a
      probability.

    Args:
        scores: `[Q, B, S]`, scaled cosines.
        bias: `[]`, of the binary cross-entropy alone.
        matches, ignored: bool `[Q, B, S]`; every query has a match.
    """
    least = torch.finfo(scores.dtype).min / 2
    of_steps = scores.masked_fill(ignored, least)
    right = scores.masked_fill(~matches, least)
    present = matches.any(0)
    which = (of_steps.logsumexp(0) - right.logsumexp(0))[present].mean()
    flat, shares = of_steps.flatten(1), matches.flatten(1).to(scores.dtype)
    count = shares.sum(1)
    where = (flat.logsumexp(1) - (scores.flatten(1) * shares).sum(1) / count - count.log()).mean()
    pairs = F.binary_cross_entropy_with_logits(scores + bias, matches.to(scores.dtype), reduction="none")
    return which + where + pairs[~ignored].sum() / matches.sum()


def encode_mixtures(embedder: Embedder, clips: Clips, count: int, seed: int = 0, progress: bool = True) -> Encoded:
    """Make and encode mixtures."""
    rng = np.random.default_rng(seed)
    states, loud, quiet = [], [], []
    with Bar(total=count, desc="mixtures", unit="mixture", disable=not progress) as bar:
        for first in range(0, count, _ENCODED):
            mixtures = [compose(clips, rng) for _ in range(min(_ENCODED, count - first))]
            states.append(step_states(embedder, [mixture.samples for mixture in mixtures]).half())
            loud += [mixture.loud for mixture in mixtures]
            quiet += [mixture.quiet for mixture in mixtures]
            bar.update(len(mixtures))
    return Encoded(torch.cat(states), np.stack(loud), np.stack(quiet))


class _Texts:
    """The vectors of the clips' texts; a query is drawn from a clip's captions, or from its label's texts."""

    def __init__(self, embedder: Embedder, clips: Clips):
        self.clips = clips
        distinct = sorted({text for texts in [*clips.captions, *clips.prompts] for text in texts})
        self.index = {text: number for number, text in enumerate(distinct)}
        self.vectors = torch.from_numpy(embedder.embed_text(distinct))

    def draw(self, queries: np.ndarray, rng: np.random.Generator) -> Tensor:
        """`[Q, dims]`."""
        texts = []
        for clip in queries:
            of_label = self.clips.prompts[clip] if rng.random() < _LABELS else []
            choices = of_label or self.clips.captions[clip]
            texts.append(self.index[choices[rng.integers(len(choices))]])
        return self.vectors[texts]


class _Objective(nn.Module):
    """A head with the scale and the bias of its cosines, which learn with it."""

    def __init__(self, states: int, dims: int):
        super().__init__()
        self.head = FrameHead(states, dims)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_START_SCALE)))
        self.bias = nn.Parameter(torch.tensor(_START_BIAS))

    def forward(self, states: Tensor, texts: Tensor, targets: Targets) -> Tensor:
        """Compute the loss of a batch: `[B, S, D]`, `[Q, dims]` -> `[]`."""
        vectors = self.head(states + _NOISE * torch.randn_like(states))
        scores = self.log_scale.exp() * torch.einsum("qd,bsd->qbs", texts, vectors)
        return frame_loss(scores, self.bias, targets.matches, targets.ignored)

    def calibration(self, prior: float) -> Logistic:
        """Return the logistic that the binary cross-entropy has fitted, at its share of matches."""
        return Logistic(float(self.log_scale.detach().exp()), float(self.bias.detach()), prior)


def fit(
    embedder: Embedder, clips: Clips, encoded: Encoded, epochs: int, rate: float, seed: int, progress: bool = True
) -> tuple[Fitted, list[float]]:
    """Train a head on encoded mixtures; return it with the mean loss of each epoch."""
    torch.manual_seed(seed)
    rng, texts = np.random.default_rng(seed), _Texts(embedder, clips)
    objective = _Objective(encoded.states.shape[-1], embedder.dims)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    batch = min(_BATCH, len(encoded.loud))
    total = epochs * (len(encoded.loud) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, total))
    losses, matching, pairs = [], 0, 0
    with Bar(total=total, desc="training", unit="step", disable=not progress) as bar:
        for _ in range(epochs):
            order, of_epoch = rng.permutation(len(encoded.loud)), []
            for start in range(0, len(order) - batch + 1, batch):
                rows = np.sort(order[start : start + batch])
                targets = Targets(clips, encoded.loud[rows], encoded.quiet[rows])
                loss = objective(encoded.states[rows].float(), texts.draw(targets.queries, rng), targets)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                of_epoch.append(float(loss.detach()))
                matching, pairs = matching + int(targets.matches.sum()), pairs + int((~targets.ignored).sum())
                bar.update(1)
            losses.append(float(np.mean(of_epoch)))
    return Fitted(objective.head.eval(), objective.calibration(matching / pairs)), losses


def _share(step: int, total: int) -> float:
    """Share of the learning rate: it rises over `_WARM_UP` steps and falls as a half cosine."""
    warm_up = min(_WARM_UP, max(1, total // 10))
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def train_frames(model: str, training: Training, progress: bool = True) -> dict:
    """Train a head for the model of a folder, and write it there.

    Returns:
        What was done, for JSON.

    Raises:
        ValueError: a folder that is none or a bundled model's, a model without frames, or clips that do not do.
    """
    folder = own_folder(model)
    embedder = Embedder(str(folder), backend="torch")
    if not has_frames(embedder):
        raise ValueError(f"{model} has no frames that a head could be trained on: give a WavLink with a Whisper")
    dataset = load_split(training.data, training.split)
    columns = caption_columns(dataset, training.caption_columns)
    dataset = with_captions(dataset, columns)
    if "duration" not in dataset.column_names:
        dataset = dataset.add_column("duration", durations(dataset))
    clips = Clips(dataset, columns, embedder.sampling_rate)
    encoded = encode_mixtures(embedder, clips, training.mixtures, training.seed, progress)
    fitted, losses = fit(embedder, clips, encoded, training.epochs, training.learning_rate, training.seed, progress)
    about = f"{data_name(training.data)}, {training.split}"
    path = write_frame_head(folder, fitted, embedder.revision, about)
    return {
        "file": path.name,
        "model": embedder.name,
        "revision": embedder.revision,
        "data": about,
        "clips": len(clips),
        "mixtures": training.mixtures,
        "epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "seed": training.seed,
        "parameters": sum(parameter.numel() for parameter in fitted.head.parameters()),
        "losses": losses,
    }


def run(options: argparse.Namespace) -> None:
    """Train with parsed options, and print what was done."""
    given = dict(vars(options))
    model = given.pop("model")
    with stdout_for(given.pop("as_json", False)) as print_json:
        given["caption_columns"] = tuple(given["caption_columns"])
        record = train_frames(model, Training(**given))
        print(f"loss {record['losses'][0]:.2f} in the first epoch, {record['losses'][-1]:.2f} in the last")
        print(f"written to {Path(model) / record['file']}")
        print_json(record)


main = main_of("wavlink train-frames", of.train_frames, run)
