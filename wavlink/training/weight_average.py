"""An exponential moving average of the weights that learn (`Recipe.ema_decay`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_FILE = "weight_average.safetensors"


class WeightAverage:
    """The moving average of a model's trainable weights, which starts as these weights.

    After step t, from 0, it is `d * average + (1 - d) * weights` with `d = min(decay, (1 + t) / (10 + t))`, the
    warm-up of TensorFlow's `ExponentialMovingAverage`.

    Args:
        model: not wrapped for several processes, on its device.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self._learned.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after step `step`, from 0, into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._learned.items():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model has the average's weights; afterwards it has its own again."""
        own = {name: p.detach().clone() for name, p in self._learned.items()}
        self._set(self.weights)
        try:
            yield
        finally:
            self._set(own)

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint."""
        save_file({name: weight.contiguous() for name, weight in self.weights.items()}, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            ValueError: the checkpoint has no average, or one of other weights.
        """
        saved = load_file(folder / _FILE) if (folder / _FILE).is_file() else {}
        if saved.keys() != self.weights.keys():
            raise ValueError(f"{folder} has no average of these weights: start anew in another --output_dir")
        for name, weight in self.weights.items():
            weight.copy_(saved[name])

    @torch.no_grad()
    def _set(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._learned.items():
            parameter.copy_(weights[name])
