"""What int8 costs a model: the exports for OpenVINO and ONNX with their gate, and scores on the test split.

    python benchmarks/int8_export.py MODEL FOLDER [--record]

MODEL is the folder of a WavLink with a Whisper, which is copied and not changed. FOLDER is an audiofolder with
captions: int8 is calibrated on its train split and compared with fp32 on its validation split, as `wavlink export`
does it. About 5 minutes for wavlink-tiny and 900 validation clips on 2 cores.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import records
import tables

import wavlink
from wavlink.backends.export import export
from wavlink.backends.int8_search import Split
from wavlink.evaluation.retrieval import DIRECTIONS


def measure(model: Path, folder: str, backend: str) -> tuple[dict, dict, dict]:
    """Export a copy of the model; return the export's record and the test scores in fp32 and int8."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / model.name
        shutil.copytree(model, copy, ignore=shutil.ignore_patterns("onnx", "openvino"))
        splits = {"calibration": Split(folder, "train", ()), "validation": Split(folder, "validation", ())}
        record = export(copy, backend, "int8", **splits, progress=print)
        scores = [
            wavlink.evaluate(copy, folder, split="test", backend=backend, precision=precision, choices=0)
            for precision in ("fp32", "int8")
        ]
    return record, *scores


def gate(found: dict[str, dict]) -> dict:
    """R@10 on the validation split, fp32 beside the backends' int8."""
    columns = ["R@10", "dims", "fp32", *(f"int8, {backend}" for backend in found)]
    first = next(iter(found.values()))["R@10"]
    rows = []
    for way, name in DIRECTIONS.items():
        for dim in sorted(first[way], key=int, reverse=True):
            int8 = [records.number(record["R@10"][way][dim]["int8"], 1) for record in found.values()]
            rows.append([name, int(dim), records.number(first[way][dim]["fp32"], 1), *int8])
    return records.table(columns, rows)


def towers(found: dict[str, dict]) -> dict:
    """Layers and cosines to fp32 of each export."""
    columns = ["int8", "linear layers in int8", "in fp32", "MB"]
    columns += [f"{tower} cosine, {what}" for tower in ("audio", "text") for what in ("mean", "least")]
    rows = []
    for backend, record in found.items():
        size = records.number(sum(record["files"].values()) / 1e6, 1)
        cosines = [
            records.number(record["cosine"][tower][what], 3) for tower in ("audio", "text") for what in ("mean", "min")
        ]
        rows.append([backend, len(record["layers_in_int8"]), len(record["layers_in_fp32"]), size, *cosines])
    return records.table(columns, rows)


def scored(scores: dict[str, tuple[dict, dict]]) -> dict:
    """Retrieval and zero-shot of all dims on the test split."""
    rows = []
    for backend, pair in scores.items():
        for precision, found in zip(("fp32", "int8"), pair, strict=True):
            dim = str(max(map(int, found["text_to_audio"])))
            cells = [records.percent(found[way][dim]["R@10"]) for way in DIRECTIONS]
            rows.append([f"{backend}, {precision}", *cells, records.percent(found["zero_shot"][dim]["accuracy"])])
    return records.table(["", *(f"{name} R@10" for name in DIRECTIONS.values()), "zero-shot"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=records.folder, help="folder of a WavLink with a Whisper")
    parser.add_argument("folder", type=records.folder, help="audiofolder with captions and labels")
    parser.add_argument("--backends", nargs="+", default=["openvino", "onnx"])
    records.add_option(parser, "int8")
    options = parser.parse_args()
    found, scores = {}, {}
    for backend in options.backends:
        found[backend], *pair = measure(options.model, str(options.folder), backend)
        scores[backend] = tuple(pair)
    values = {"gate": gate(found), "towers": towers(found), "test": scored(scores)}
    for table in values.values():
        print(tables.markdown(table), end="\n\n")
    note = "An export is kept if no R@10 of the validation split falls by more than 0.5 points."
    title = f"{options.model.name} in int8"
    records.write(options.record, title=title, values=values, seed=None, note=note, raw={"exports": found})


if __name__ == "__main__":
    main()
