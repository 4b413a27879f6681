"""The exports of a model for OpenVINO and ONNX, as they are pushed beside its weights."""

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from modeling_wavlink import WavLinkModel
from modeling_wavlink.compat_wavlink import optional_file
from wavlink.backends.choice import PACKAGES, read_record, record_name
from wavlink.backends.exported import exported_folder, model_identity
from wavlink.backends.graphs import exportable
from wavlink.evaluation.report import Table
from wavlink.sanitize import without_paths

PRECISIONS = ("fp32", "int8")  # of a graph
_BEFORE = "\n## Nested dims\n"
_TEXT = """## Exports

Both towers as graphs, made of these weights by `wavlink export`. With the Python package `wavlink` they run on a CPU:

```python
import wavlink

embedder = wavlink.Embedder({model}, backend="{backend}", precision="{precision}")
```

{table}
"""


def write_exports(source: str, model: WavLinkModel, folder: Path) -> list[dict]:
    """Write the exports that a model's folder or repository carries, and return their descriptions.

    Args:
        source: the folder or Hub id that the model comes from.
        model: as it is pushed.

    Raises:
        ValueError: an export of other weights, or one that is damaged; its folder is named.
    """
    carried = [
        (backend, precision)
        for backend in PACKAGES
        for precision in PRECISIONS
        if optional_file(source, f"{backend}/{record_name(precision)}")
    ]
    if not carried:
        return []
    identity, records = model_identity(exportable(copy.deepcopy(model))), []
    for backend, precision in carried:
        start = exported_folder(source, backend, precision, identity)
        assert start is not None
        target, record = folder / backend, without_paths(read_record(start / record_name(precision)))
        target.mkdir(parents=True, exist_ok=True)
        for name in record["files"]:
            shutil.copyfile(start / name, target / name)
        text = json.dumps(record, indent=2) + "\n"
        (target / record_name(precision)).write_text(text, encoding="utf-8")
        records.append({"backend": backend, "precision": precision, "bytes": sum(record["files"].values())})
    return records


def exports_section(records: Sequence[dict], model: str) -> str:
    """Return the section of a card; "" without exports.

    Args:
        model: the expression that names the model.
    """
    if not records:
        return ""
    rows = []
    for record in records:
        file = f"{record['backend']}/{record_name(record['precision'])}"
        rows.append([record["backend"], record["precision"], f"{record['bytes'] / 1e6:.1f}", f"[{file}]({file})"])
    first = {name: records[-1][name] for name in ("backend", "precision")}
    table = Table(["backend", "precision", "MB", "how it was made"], rows).markdown()
    return _TEXT.format(model=model, table=table, **first)


def with_exports(card: str, section: str) -> str:
    """Return a card with the section of its exports; one that has such a section stays as it is."""
    if not section or "\n## Exports\n" in card:
        return card
    return card.replace(_BEFORE, f"\n{section}{_BEFORE}", 1)


def export_files(folder: Path) -> set[str]:
    """Return the paths below a pushed folder of graphs and their weights, which no loader unpickles."""
    names = set()
    for path in (folder / backend / record_name(p) for backend in PACKAGES for p in PRECISIONS):
        if path.is_file():
            names |= {f"{path.parent.name}/{name}" for name in read_record(path)["files"]}
    return {name for name in names if name.endswith((".xml", ".bin", ".onnx", ".onnx.data"))}
