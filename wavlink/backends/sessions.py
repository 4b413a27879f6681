"""Exported towers in OpenVINO and onnxruntime: numpy arrays in, vectors out, without torch."""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .choice import has_bf16
from .signal_stack import kept_signal_stack

INPUTS = {"audio": ("input_features", "input_features_mask"), "text": ("input_ids", "attention_mask")}
STEP = 20  # frames of 10 ms
MAX_FRAMES = 3000


class Tower:
    """An exported tower on the CPU.

    Args:
        path: of its graph.
        precision: `"fp32"`, `"bf16"` or `"int8"`.
        threads: default: `OMP_NUM_THREADS`, else what the library takes.
    """

    def __init__(self, path: str | os.PathLike[str], precision: str = "fp32", threads: int | None = None):
        self._arguments = os.fspath(path), precision, threads
        self.precision = precision

    def __call__(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Embed a batch, `[B, dims]` fp32, L2-normalised.

        Args:
            inputs: what a processor returns: `input_features` float32 `[B, F, T]` or `input_ids` int64 `[B, L]`, and
                its mask; without a mask every frame or token is attended to.
        """
        names = INPUTS["text" if "input_ids" in inputs else "audio"]
        values = np.asarray(inputs[names[0]])
        mask = inputs.get(names[1])
        mask = np.ones((len(values), values.shape[-1]), np.int64) if mask is None else np.asarray(mask, np.int64)
        values = values.astype(np.float32 if values.dtype.kind == "f" else np.int64, copy=False)
        parts = [(np.arange(len(values)), values, mask)]
        if self.precision != "fp32":
            parts = _by_own_length(values, mask)
        vectors = [self._run(dict(zip(names, map(np.ascontiguousarray, part[1:]), strict=True))) for part in parts]
        order = np.argsort(np.concatenate([part[0] for part in parts]))
        return np.concatenate(vectors)[order]

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), self._arguments


class OpenVinoTower(Tower):
    """A tower in OpenVINO. What an int8 graph does not quantize runs in bf16 where the processor has it.

    It is compiled for its first batch: whoever embeds only sounds needs neither time nor memory for the text tower.
    """

    def __init__(self, path: str | os.PathLike[str], precision: str = "fp32", threads: int | None = None):
        super().__init__(path, precision, threads)
        in_bf16 = precision == "bf16" or precision == "int8" and has_bf16()
        self._options = {
            "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads or default_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several processes would share the first cores
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # scales of a batch make a vector depend on it
        }
        self._lock = threading.Lock()  # of its one request
        self._compiled = None
        with self._explained():  # maps the weights, which stay those of this file
            self._graph = import_openvino().Core().read_model(os.fspath(path))

    def compiled(self) -> Any:
        """Return OpenVINO's compiled model."""
        with self._lock:
            return self._compile()

    def _compile(self) -> Any:
        if self._compiled is None:
            with self._explained():
                self._compiled = import_openvino().Core().compile_model(self._graph, "CPU", self._options)
            self._graph = None
        return self._compiled

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with kept_signal_stack():
                yield
        except RuntimeError as error:
            path = self._arguments[0]
            raise ValueError(f"{path} cannot be opened: {error}; export the model again") from error

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        with self._lock:
            return np.array(self._compile()(inputs)[0])


class OnnxTower(Tower):
    """A tower in onnxruntime."""

    def __init__(self, path: str | os.PathLike[str], precision: str = "fp32", threads: int | None = None):
        import onnxruntime

        super().__init__(path, precision, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes, which it does not export
            raise ValueError(f"{path} cannot be opened: {error}; export the model again") from error

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._session.run(None, inputs)[0]


TOWERS: dict[str, type[Tower]] = {"openvino": OpenVinoTower, "onnx": OnnxTower}


def _by_own_length(values: np.ndarray, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Divide a batch, so that every clip or text is padded to a length that depends on itself alone.

    Other padding changes sums in fp32 by their last bit. In fp32 that is all; but where an int8 or bf16 value is near
    the middle of two, it is rounded the other way, and a vector changes by 1e-3.

    Returns:
        The rows of each part, its values and its mask. Clips have a multiple of `STEP` frames, texts no padding.
    """
    lengths = mask.sum(1)
    if not (mask == (np.arange(mask.shape[1]) < lengths[:, None])).all():  # padded on the left
        return [(np.array([row]), values[row : row + 1], mask[row : row + 1]) for row in range(len(values))]
    own = np.minimum(-(-lengths // STEP) * STEP, MAX_FRAMES) if values.ndim == 3 else lengths
    parts = []
    for length in np.unique(own):
        rows = np.flatnonzero(own == length)
        parts.append((rows, _of_length(values[rows], length), _of_length(mask[rows], length)))
    return parts


def _of_length(values: np.ndarray, length: int) -> np.ndarray:
    """Cut or pad the last axis with zeros."""
    values = values[..., :length]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])


def open_tower(backend: str, path: Path, precision: str, threads: int | None = None) -> Tower:
    """Open an exported tower.

    Raises:
        ValueError: the graph is missing or damaged.
    """
    return TOWERS[backend](path, precision, threads)


def default_threads() -> int:
    """Return `OMP_NUM_THREADS`, which torch follows too; 0, the library's own choice, without one."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() else 0


def without_telemetry() -> None:
    """Keep OpenVINO and NNCF, before they are imported, from reporting conversions to their vendor."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry."""
    without_telemetry()
    import openvino

    return openvino
