"""Export a WavLink for a faster backend, into its own folder, or as ONNX files that are served without torch.

```
wavlink export runs/sounds/best --backend openvino
wavlink export runs/sounds/best --backend openvino --precision int8 --calibration my_sounds
wavlink export runs/sounds/best onnx/sounds
```

An int8 export is kept only if it finds as much as fp32: R@10 on a validation split, both ways and at every nested dim.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wavlink.atomic_files import added_files
from wavlink.config_file import own_folder
from wavlink.console import stdout_for, step
from wavlink.evaluation.report import Table
from wavlink.evaluation.retrieval import DIRECTIONS
from wavlink.installing import install_hint
from wavlink.loading import load_for_evaluation
from wavlink.options import publishing as of
from wavlink.parsing import main_of
from wavlink.temporary_paths import temporary_folder

from .choice import read_record, record_name
from .exported import (
    graph_path,
    measured_agreement,
    missing_packages,
    model_identity,
    standalone_facts,
    write_graphs,
    write_record,
)
from .graphs import exportable
from .int8_search import Int8Search, Split
from .standalone import KEY as STANDALONE


def export(
    model: str | os.PathLike[str],
    backend: str,
    precision: str = "fp32",
    calibration: Split | None = None,
    validation: Split | None = None,
    calibration_clips: int = 512,
    layers_in_fp32: Sequence[str] = (),
    max_layers_in_fp32: int = 16,
    opset: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Export a WavLink into `openvino/` or `onnx/` of its folder, where `Embedder` looks for it.

    The folder gets `audio_model` and `text_model` (in int8 with `_int8`), as transformers.js names them, and
    `wavlink_fp32.json` or `wavlink_int8.json`: the hash of the weights, versions, files, and what was measured. An
    earlier export in this precision is replaced; other files stay.

    Args:
        model: the folder of a WavLink with a Whisper.
        backend: `"openvino"` or `"onnx"`.
        precision: `"fp32"` or `"int8"`.
        calibration: clips and captions by which int8 scales activations.
        validation: on which int8 is compared with fp32.
        calibration_clips: at most so many, evenly spaced over the split.
        layers_in_fp32: linear layers that are not made int8, such as `audio_model.encoder.layers.0.fc1`.
        max_layers_in_fp32: how many more may be left out, the most harmful first, until int8 is as good as fp32.
        opset: of ONNX, 18 or later; default: torch's.
        progress: called with a description of each step before it.

    Returns:
        The content of the JSON file.

    Raises:
        ValueError: a model that cannot be exported, a missing package, or int8 that loses more than half a point of
            R@10. Nothing is then written.
    """
    folder = own_folder(model)
    refuse_missing(backend, precision)
    if (calibration is None or validation is None) and precision == "int8":
        raise ValueError("int8 needs data to calibrate by and to validate on")
    progress(f"loading {folder}")
    loaded, processor = load_for_evaluation(str(folder))
    loaded = exportable(loaded)
    target = folder / backend
    older = _files_of_earlier(target, precision)
    with (
        temporary_folder() as scratch,
        added_files(target, record_name(precision), lambda _: older) as unfinished,
    ):
        fp32 = scratch if precision == "int8" else unfinished
        progress(f"converting both towers for {backend}")
        towers = write_graphs(fp32, loaded, backend, opset)
        progress("comparing them with torch")
        about: dict[str, Any] = {"agreement": measured_agreement(fp32, loaded, processor, backend, towers)}
        about[STANDALONE] = standalone_facts(folder, loaded, processor)
        if calibration is not None and validation is not None and precision == "int8":
            data = calibration, validation, calibration_clips
            search = Int8Search(loaded, processor, backend, fp32, unfinished, *data, progress)
            about |= search.run(layers_in_fp32, max_layers_in_fp32)
            for name, tower in towers.items():
                tower["file"] = graph_path(unfinished, backend, name, "int8").name
        return write_record(unfinished, model_identity(loaded), backend, precision, towers, **about)


def refuse_missing(backend: str, precision: str) -> None:
    """Raise a ValueError if a package that an export needs is not installed."""
    missing = missing_packages(backend)
    if precision == "int8" and importlib.util.find_spec("nncf") is None:
        missing.append("nncf")
    if missing:
        raise ValueError(f"an export for {backend} in {precision}: {install_hint(missing[0])}")


def _files_of_earlier(folder: Path, precision: str) -> list[str]:
    """Return the files of an earlier export; a damaged record names none."""
    try:
        names = list(read_record(folder / record_name(precision))["files"])
    except (ValueError, KeyError, TypeError):
        return []
    return [name for name in names if name == os.path.basename(name)]


def run(options: argparse.Namespace) -> int | None:
    """Run the command with parsed options."""
    if not options.backend:
        from .onnx import run_export

        return run_export(options)
    with stdout_for(options.as_json) as print_json:
        splits: dict[str, Split] = {}
        own_folder(options.model)
        refuse_missing(options.backend, options.precision)
        if options.precision == "int8":
            data = options.validation or options.calibration
            splits["calibration"] = Split(options.calibration, options.calibration_split, options.caption_columns)
            splits["validation"] = Split(data, options.validation_split, options.caption_columns)
        record = export(
            options.model,
            options.backend,
            options.precision,
            **splits,
            calibration_clips=options.calibration_clips,
            layers_in_fp32=options.layers_in_fp32,
            max_layers_in_fp32=options.max_layers_in_fp32,
            opset=options.opset,
            progress=step,
        )
        folder = Path(options.model) / options.backend
        print(report(folder, record))
        print_json({"folder": str(folder)} | record)
    return None


def report(folder: Path, record: dict[str, Any]) -> str:
    """Render what was exported: sizes, the agreement with torch, and what int8 costs."""
    lines = [f"{folder}: {record['backend']}, {record['precision']}"]
    for name, tower in record["towers"].items():
        stem = Path(tower["file"]).stem
        size = sum(size for file, size in record["files"].items() if Path(file.removesuffix(".data")).stem == stem)
        opset = f", opset {tower['opset']}" if "opset" in tower else ""
        cosine = record.get("cosine", {}).get(name)
        cost = f"; int8's cosine to it: mean {cosine['mean']:.4f}, min {cosine['min']:.4f}" if cosine else ""
        agreement = record["agreement"][name]
        lines.append(f"  {name}: {size / 1e6:.1f} MB{opset}, fp32 within {agreement:.1e} of torch{cost}")
    why = record[STANDALONE].get("error")
    lines.append(f"  needs torch: {why}" if why else "  runs without torch")
    if "R@10" not in record:
        return "\n".join(lines)
    rows = [
        [f"{title}, {dim} dims", f"{x['fp32']:.1f}", f"{x['int8']:.1f}", f"{x['int8'] - x['fp32']:+.1f}"]
        for way, title in DIRECTIONS.items()
        for dim, x in record["R@10"][way].items()
    ]
    split, left_out = record["validation"], record["layers_in_fp32"]
    lines += [
        f"  {len(record['layers_in_int8'])} linear layers in int8; in fp32: {', '.join(left_out) or 'none'}",
        f"R@10 on {split['clips']} clips of {split['data']}, {split['split']}",
        str(Table(["", "fp32", "int8", "change"], rows)),
    ]
    return "\n".join(lines)


main = main_of("wavlink export", of.export, run)
