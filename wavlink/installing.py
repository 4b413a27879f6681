"""Hints at what to install for a missing module."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The extra of setup.cfg that brings a module; other modules come with every installation.
EXTRA_OF = {
    **dict.fromkeys(("datasets", "fsspec", "filelock", "matplotlib", "pandas", "pyarrow"), "data"),
    **dict.fromkeys(("accelerate", "peft"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    **dict.fromkeys(("openvino", "nncf"), "fast"),
    **dict.fromkeys(("ray",), "cluster"),
    **dict.fromkeys(("fastapi", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn"), "serve"),
    **dict.fromkeys(("plotly", "sklearn", "threadpoolctl"), "map"),
    **{"av": "formats", "evaluate": "eval", "lance": "search", "gradio": "space", "shtab": "completion"},
    "mteb": "maeb",
    "sentence_transformers": "models",
}
# The extras that an extra brings along.
BRINGS = {
    "data": (),
    "train": ("data",),
    "eval": ("data",),
    "maeb": ("data",),
    "search": ("data",),
    "onnx": ("data",),
    "fast": ("data",),
    "push": ("data", "search", "train"),
    "cluster": ("data", "search"),
    "serve": ("data", "formats", "search"),
    "space": ("data", "formats", "search"),
    "map": ("data", "search"),
}


def extra_of(module: str, wanted: str = "") -> str:
    """Return the extra that brings a module: `wanted` if it does, so that the command then works, else the smallest.

    Args:
        module: as it is imported.
        wanted: the extra of the command that needs it.
    """
    extra = EXTRA_OF.get(module.partition(".")[0], "")
    return wanted if extra and extra in BRINGS.get(wanted, ()) else extra


def install_command(extra: str = "") -> str:
    """Return the pip command for this installation: of a checkout from its folder, else by the package's name."""
    if not (ROOT / "setup.cfg").is_file():
        return f"pip install 'wavlink[{extra}]'" if extra else "pip install wavlink"
    folder = "." if os.path.realpath(os.curdir) == os.path.realpath(ROOT) else str(ROOT)
    return f"pip install -e '{folder}[{extra}]'" if extra else f"pip install -e '{folder}'"


def install_hint(module: str, wanted: str = "") -> str:
    """Return one line that names the missing module and the command that installs it.

    Args:
        module: as it is imported, such as `sklearn`.
        wanted: the extra of the command that needs it.
    """
    top = module.partition(".")[0]
    return f"{top} is not installed: {install_command(extra_of(top, wanted))}"
