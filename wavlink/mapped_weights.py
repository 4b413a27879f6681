"""Memory of weights that are mapped from their file: what was read of them once does not have to stay."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_wavlink.compat_wavlink import optional_file
from modeling_wavlink.pretrained_wavlink import own_file


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file with a model's weights.

    transformers maps it, so that weights which are never used take no memory. But loading reads all of them, to check
    and to hash them, and what is read of a mapping counts as memory of the process until the mapping is dropped.

    Args:
        path: None if there is no such file.
        state: by which a file that was replaced is recognised.
    """

    path: Path | None
    state: tuple[int, ...] = ()

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> "WeightsFile":
        """Return the file of a model's folder, before it is loaded; a Hub id or "" has none."""
        path = Path(folder).absolute() / SAFE_WEIGHTS_NAME  # which stays right in another working directory
        return cls(path, _state(path)) if folder and path.is_file() else cls(None)

    @classmethod
    def downloaded(cls, name: str, commit: str) -> "WeightsFile":
        """Return the file of a model that was loaded from the Hub.

        Args:
            name: the model's Hub id.
            commit: that it was loaded from, whose files do not change.
        """
        path = optional_file(name, SAFE_WEIGHTS_NAME, revision=commit, local_files_only=True)
        return cls.of(Path(path).parent) if path else cls(None)

    def path_for(self, model: torch.nn.Module) -> str | None:
        """Return the path for a WavLink that was just loaded, and whose weights are those of this file; else None."""
        return own_file(model, str(self.path)) if self._is_of(model) else None

    def map_again(self, model: torch.nn.Module) -> None:
        """Let a WavLink that was loaded from this file, and not changed since, read its weights from a new mapping.

        Weights of another name, shape, dtype or device stay as they are, and so do all where the file is gone or was
        replaced. Layers may have been packed since `path_for` has compared the names.
        """
        if not self._is_of(model):
            return
        with safe_open(self.path, "pt") as file:
            names = set(file.keys())
            if not self._is_unchanged():  # since it was opened
                return
            for name, weight in model.state_dict(keep_vars=True).items():
                if name in names and weight.device.type == "cpu":
                    mapped = file.get_tensor(name)
                    if (mapped.shape, mapped.dtype) == (weight.shape, weight.dtype):
                        weight.data = mapped

    def _is_of(self, model: torch.nn.Module) -> bool:
        own = model.config.model_type == "wavlink" and getattr(model, "control_seed", None) is None
        return own and self._is_unchanged()

    def _is_unchanged(self) -> bool:
        try:
            return self.path is not None and _state(self.path) == self.state
        except OSError:
            return False


def _state(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns
