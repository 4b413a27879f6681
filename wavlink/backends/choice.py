"""Choose the backend and the precision of an `Embedder`: by what is named, installed and exported, not by a timing.

The rule:

1. What is named is used, or refused with the reason.
2. Without a `precision` it is that of `dtype`, fp32 by default. So no default changes a vector by more than rounding.
3. Without a `backend` it is torch, unless the model's folder carries an export in the precision: then the first of
   OpenVINO and ONNX whose export is there and whose package is installed. Another device than the CPU means torch.
"""

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wavlink import bundled_models
from wavlink.bundled_models import name_of
from wavlink.defaults import BACKENDS, PRECISIONS
from wavlink.installing import install_hint

HAS = {"torch": ("fp32", "bf16"), "openvino": ("fp32", "bf16", "int8"), "onnx": ("fp32", "int8")}
OF_DTYPE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DTYPE_OF = {precision: dtype for dtype, precision in OF_DTYPE.items()}
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
FORMAT = 2  # of an export's record
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and, last, of ARM
_CPUINFO = Path("/proc/cpuinfo")


class UnavailableBackend(ValueError):
    """A backend or precision that a model, an installation or a machine does not have; the model itself is there."""


class UnavailableDevice(ValueError):
    """A device that torch cannot compute on here; the model itself may be there."""


@contextmanager
def as_unavailable() -> Iterator[None]:
    """Raise each ValueError of choosing a backend, or of running a model in it, as an `UnavailableBackend`."""
    try:
        yield
    except ValueError as error:
        raise UnavailableBackend(str(error)) from error


def how_to_export(backend: str, folder: Path | None = None) -> str:
    """Return the command that makes an int8 export.

    Args:
        folder: of the model, if it is one on this machine.
    """
    where = str(folder)
    if not folder or not is_model(folder) or name_of(str(folder)) != str(folder):
        where = "a folder with the model, or a copy of it: name that folder"
    command = f"`wavlink export MODEL --backend {backend} --precision int8 --calibration DATA`"
    return f"make one with {command}, where MODEL is {where}"


def choose(
    backend: str | None = None,
    precision: str | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> tuple[str, str]:
    """Return the backend and the precision, by the rule above.

    Args:
        backend: `"torch"`, `"openvino"` or `"onnx"`.
        precision: `"fp32"`, `"bf16"` or `"int8"`.
        folder: of the model, if it is one on this machine.
        device, dtype: of `Embedder`; torch's alone.

    Raises:
        ValueError: an unknown name, what a backend does not have, or what this machine lacks.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if dtype != "float32" and (backend not in (None, "torch") or precision not in (None, OF_DTYPE[dtype])):
        raise ValueError(f"dtype={dtype!r} is torch's, and there it is the precision: leave dtype out")
    on_cpu = device.partition(":")[0] == "cpu"
    if backend not in (None, "torch") and not on_cpu:
        raise ValueError(f"backend={backend!r} runs on the CPU: leave device={device!r} out, or take backend='torch'")
    if dtype != "float32":
        return "torch", OF_DTYPE[dtype]
    precision = precision or "fp32"
    if backend is None:
        backend = _by_export(folder, precision) if on_cpu else "torch"
        if precision == "int8" and backend == "torch" and on_cpu:
            raise ValueError(f"{_name(folder)} carries no int8 export: {how_to_export('openvino', folder)}")
    if precision not in HAS[backend]:
        raise ValueError(f"backend={backend!r} has no {precision}: {_who_has(precision)}")
    if backend == "torch" and not installed(backend):
        raise ValueError(without_torch(folder, precision))
    if not installed(backend):
        raise ValueError(f"backend={backend!r}: {install_hint(PACKAGES[backend])}")
    if precision == "bf16" and on_cpu and not has_bf16():
        raise ValueError(
            "this processor has no bf16 (avx512_bf16 or amx_bf16), which would be slow: take fp32 or int8"
        )
    return backend, precision


def _by_export(folder: Path | None, precision: str) -> str:
    exported = [name for name in PACKAGES if precision in HAS[name] and has_export(folder, name, precision)]
    return next(filter(installed, exported), exported[0] if precision == "int8" and exported else "torch")


def _name(folder: Path | None) -> str:
    """Return a model's name in an error: its folder, its Hub id, or that of a bundled model."""
    return name_of(os.fspath(folder)) if folder else "the model"


def _who_has(precision: str) -> str:
    backends = [name for name in BACKENDS if precision in HAS[name]]
    command = "`wavlink export MODEL --backend ... --precision int8 --calibration DATA`"
    how = f", after {command}" if precision == "int8" else ""
    return f"take backend={' or '.join(map(repr, backends))}{how}"


def installed(backend: str) -> bool:
    """Return whether the package of a backend is installed."""
    return importlib.util.find_spec(PACKAGES.get(backend, backend)) is not None


def without_torch(folder: Path | None, precision: str = "fp32", backend: str = "onnx") -> str:
    """Return what to do where torch is not installed, and a model's folder carries no export that runs without it.

    Args:
        folder: of the model, or its Hub id.
        precision, backend: that is wanted.
    """
    if folder is not None and not is_wavlink(folder):
        return (
            f"{install_hint('torch')}; without torch only a WavLink runs, by the export that its folder carries "
            "(`wavlink export`)"
        )
    others = [name for name in ("fp32", "int8") if any(has_export(folder, each, name) for each in PACKAGES)]
    hint = f"take precision={others[0]!r}, or " if others and precision not in others else ""
    name, copy_first = folder or "MODEL", ""
    if folder is not None and folder.parent == bundled_models.MODELS:
        name, copy_first = f"my-{folder.name}", f"`cp -r {folder} my-{folder.name}` and "
    options = f"--backend {backend}" + " --precision int8 --calibration FOLDER" * (precision == "int8")
    return (
        f"{install_hint('torch')}; without torch a model runs by the export that its folder carries: {hint}run "
        f"{copy_first}`wavlink export {name} {options}` where torch is, and bring the folder here"
    )


def graph_precision(precision: str) -> str:
    """Return the precision of the graph; bf16 is computed from that of fp32."""
    return "int8" if precision == "int8" else "fp32"


def record_name(precision: str) -> str:
    """Return the name of the JSON file that describes an export."""
    return f"wavlink_{graph_precision(precision)}.json"


def has_export(folder: Path | None, backend: str, precision: str) -> bool:
    """Return whether a model's folder carries an export; bf16 runs that of fp32."""
    return folder is not None and (folder / backend / record_name(precision)).is_file()


def is_index(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds an index."""
    return any((Path(folder) / name).exists() for name in ("windows.lance", "index.json"))


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a model rather than an index."""
    return (Path(folder) / "config.json").is_file() and not is_index(folder)


def is_wavlink(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder has a WavLink's config.json."""
    try:
        return bool(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["model_type"] == "wavlink")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def describe_folder(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the exports that a model's folder carries, and what an `Embedder` runs it in by default.

    Raises:
        ValueError: a damaged export.
    """
    exports = []
    for backend, precision in ((backend, precision) for backend in PACKAGES for precision in ("fp32", "int8")):
        if has_export(Path(folder), backend, precision):
            record = read_record(Path(folder) / backend / record_name(precision))
            size = sum(record["files"].values())
            exports.append({"backend": backend, "precision": precision, "bytes": size, "model": record["model"]})
    ready = [name for name in BACKENDS if installed(name)]
    backend, precision = _by_export(Path(folder), "fp32"), "fp32"
    run = {"backend": backend, "precision": precision, "installed": ready, "bf16": has_bf16()}
    return {"path": os.fspath(folder), **run, "exports": exports}


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the description of an export.

    Raises:
        ValueError: it is damaged, has another precision's name, or a newer version of the package wrote it.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        record.setdefault("sha256", {})
        if not isinstance(record["model"]["weights"], str):
            raise TypeError("fields of another type")
        if not all(isinstance(record[field], dict) for field in ("towers", "sha256")):
            raise TypeError("fields of another type")
        if not all(isinstance(size, int) for size in record["files"].values()):
            raise TypeError("fields of another type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} does not describe an export ({error}): export the model again") from error
    if record.get("format", FORMAT) not in range(FORMAT + 1):
        raise ValueError(f"a newer version of wavlink wrote {path}: update the package, or export the model again")
    precision = record.get("precision")
    if precision is not None and Path(path).name != record_name(precision):
        raise ValueError(f"{path} describes an export in {precision}, whose file has another name: export it again")
    return record


def has_bf16() -> bool:
    """Return whether this processor computes in bf16; where the system does not list its features, what torch says."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        from wavlink.compat import has_bf16_kernels

        return installed("torch") and has_bf16_kernels()
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return bool(flags & _BF16_FLAGS)


def precision_of(model: Any) -> str:
    """Return `"fp32"`, `"bf16"`, `"fp16"` or `"int8"`."""
    dtype = str(getattr(model, "dtype", None)).removeprefix("torch.")
    return getattr(model, "precision", None) or OF_DTYPE.get(dtype, dtype)
