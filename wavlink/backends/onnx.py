"""Export both towers to ONNX, verified in onnxruntime, into a folder that is served without torch.

```
wavlink export runs/sounds/best onnx/sounds
wavlink export runs/sounds/best onnx/sounds-int8 --int8
python examples/onnx_without_torch.py onnx/sounds dog.wav --text "a dog barks" "rain"
```
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from modeling_wavlink.configuration_wavlink import text_max_length
from processing.datasets.synthetic import KINDS, render
from wavlink.atomic_files import added_files, interrupted
from wavlink.console import stdout_for, step, without_foreign_output
from wavlink.loading import load_for_evaluation, revision
from wavlink.options import publishing as of
from wavlink.parsing import main_of

from .graphs import Tower, agreement, batches, exportable, sentence, write_onnx
from .sessions import INPUTS

CONFIG, MEL_FILTERS = "wavlink_onnx.json", "mel_filters.npy"
_MEASURED = 32  # clips and texts, by which int8 is compared with fp32


def export_onnx(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: str | os.PathLike,
    int8: bool = False,
    opset: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Write a folder that `examples/onnx_without_torch.py` reads, once its vectors are verified.

    `audio.onnx` takes `input_features` float32 `[B, F, T]` and `input_features_mask` int64 `[B, T]` (ones where the
    checkpoint pads to 30 s) and returns `audio_embeds` `[B, projection_dim]`; `text.onnx` takes `input_ids` and
    `attention_mask` int64 `[B, L]` and returns `text_embeds`. B, T and L are dynamic; the vectors are float32 and
    L2-normalised. Weights over 2 GB are beside their graph, in `audio.onnx.data`. The folder also has the tokenizer's
    files, `preprocessor_config.json`, the mel filters `[n_fft / 2 + 1, F]` and `wavlink_onnx.json`.

    Args:
        model: a WavLink with a Whisper; a copy of it in fp32 is exported.
        processor: of the model.
        folder: new, or of an earlier export, whose files are replaced; other files in it stay.
        int8: store the weights of matrix products and embeddings in 8 bits, by onnxruntime's dynamic quantization. The
            activations are then scaled by batch, so a clip's vector depends on its batch unless that has one clip.
        opset: of ONNX, 18 or later; default: torch's.
        progress: called with a description of each step before it.

    Returns:
        The content of `wavlink_onnx.json`: settings of the feature extractor and the tokenizer, `logit_scale` (a log)
        and `logit_bias`, `agreement` (the largest difference of a value to torch, in fp32), with int8 `int8_cosine`
        (`mean` and `min` of the cosines to fp32, of `measured` synthetic clips and their captions, in batches of one),
        `opset`, `bytes` (the size of each tower) and `files`, the names of all files written.

    Raises:
        ValueError: a model that cannot be exported, a tokenizer that needs transformers, or vectors that differ in
            onnxruntime. Nothing is then written.
    """
    _refuse_other_folder(Path(folder))
    model = exportable(copy.deepcopy(model))
    with added_files(folder, CONFIG, _files_of_earlier) as unfinished, without_foreign_output():
        about = _write_processor(model, processor, unfinished)
        _refuse_to_overwrite(Path(folder), unfinished)
        about["agreement"] = {}
        for name in INPUTS:
            tower, path = Tower(model, name).eval(), unfinished / f"{name}.onnx"
            examples = batches(name, processor)
            progress(f"exporting the {name} tower")
            about["opset"] = _write_graph(tower, path, examples[0], opset)
            progress(f"comparing the {name} tower in onnxruntime with torch")
            about["agreement"][name] = agreement(tower, partial(run, load(path)), examples, "onnxruntime")
        if int8:
            about["precision"] = "int8"
            progress("converting both towers to int8, and measuring what that costs")
            about["int8_cosine"] = {name: _to_int8(unfinished / f"{name}.onnx", processor) for name in INPUTS}
        about["bytes"] = {name: _size(unfinished, name) for name in INPUTS}
        about["files"] = sorted([CONFIG, *(path.name for path in unfinished.iterdir())])
        (unfinished / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray | Tensor]) -> np.ndarray:
    """Embed a processor's outputs: `[B, projection_dim]`; without a mask every frame or token is attended to."""
    names = INPUTS["text" if "input_ids" in inputs else "audio"]
    values = np.asarray(inputs[names[0]])
    mask = np.asarray(inputs[names[1]]) if names[1] in inputs else np.ones(values.shape[::2], dtype=np.int64)
    return session.run(None, dict(zip(names, (values, mask), strict=True)))[0]


def load(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph in onnxruntime, on the CPU."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def measured(name: str, processor: ProcessorMixin) -> list[dict]:
    """Return the seeded synthetic clips, or their captions, on which int8 is measured, as batches of one."""
    rendered = [render(kind, np.random.default_rng(seed)) for seed, kind in enumerate(list(KINDS)[:_MEASURED])]
    if name == "text":
        return [processor(text=captions[0], return_tensors="np") for _, captions in rendered]
    rate = processor.feature_extractor.sampling_rate
    return [processor(audio=clip, sampling_rate=rate, return_tensors="np") for clip, _ in rendered]


def _refuse_other_folder(folder: Path) -> None:
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if shown and not _record(folder):
        raise ValueError(f"{folder} holds something else than an export: give a new folder")


def _record(folder: Path) -> Path | None:
    """The file that lists the files of an earlier export, also of one that was killed while it moved them."""
    return next((path for path in (folder / CONFIG, interrupted(folder, CONFIG)) if path.is_file()), None)


def _files_of_earlier(folder: Path) -> list[str]:
    """The files of an earlier export, by its record; earlier versions wrote no list."""
    try:
        names = json.loads(_record(folder).read_text(encoding="utf-8"))["files"]
        return [name for name in names if name == os.path.basename(name)]
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return [CONFIG, MEL_FILTERS, *(f"{name}.onnx{ending}" for name in INPUTS for ending in ("", ".data"))]


def _refuse_to_overwrite(folder: Path, unfinished: Path) -> None:
    """Refuse to overwrite files that no export has written."""
    record = _record(folder)
    if not record or '"files"' not in record.read_text(encoding="utf-8", errors="replace"):
        return
    names = {CONFIG, *(f"{name}.onnx" for name in INPUTS), *(path.name for path in unfinished.iterdir())}
    if foreign := sorted(name for name in names - {*_files_of_earlier(folder)} if os.path.lexists(folder / name)):
        raise ValueError(f"{folder} holds {foreign[0]}, which no export has written: move it, or give a new folder")


def _write_processor(model, processor, folder: Path) -> dict:
    """Write the files of the feature extractor and the tokenizer, and return their settings."""
    extractor, tokenizer, config = processor.feature_extractor, processor.tokenizer, model.config
    settings = {name: value for name, value in extractor.to_dict().items() if name != "auto_map"}  # which names code
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    np.save(folder / MEL_FILTERS, extractor.mel_filters.astype(np.float32))
    tokenizer.save_pretrained(folder)
    limit = min(tokenizer.model_max_length, text_max_length(config.text_config) or sys.maxsize)
    about = {
        "sampling_rate": extractor.sampling_rate,
        "n_fft": extractor.n_fft,
        "hop_length": extractor.hop_length,
        "max_samples": extractor.n_samples,
        "padding": extractor.padding,
        "text_max_length": limit if limit < sys.maxsize else None,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": config.projection_dim,
        "matryoshka_dims": config.matryoshka_dims,
        "loss_type": config.loss_type,
        "logit_scale": model.scale.log().item(),
        "logit_bias": model.logit_bias.item(),
        "revision": revision(model),
        "precision": "fp32",
        "label_prompts": config.label_prompts,
        "match_calibration": config.match_calibration,
    }
    _check_tokenizer(processor, folder, about["text_max_length"])
    return about


def _check_tokenizer(processor, folder: Path, limit: int | None) -> None:
    """Refuse a tokenizer whose ids differ without transformers."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError("the tokenizer has no tokenizer.json, which reading without transformers needs")
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.no_padding()
    if limit:
        alone.enable_truncation(limit)
    for text in (sentence(1), sentence(12), sentence(500), "A dog's bark, déjà vu!"):
        if alone.encode(text).ids != processor(text=text)["input_ids"][0]:
            raise ValueError(f"tokenizer.json reads {text[:40]!r} otherwise than the processor: its class does more")


def _write_graph(tower: Tower, path: Path, batch: dict, opset: int | None) -> int:
    names = INPUTS[tower.name]
    return write_onnx(tower, path, (batch[names[0]], batch[names[1]]), opset)


def _size(folder: Path, name: str) -> int:
    """Return the bytes of a tower, with weights beside its graph."""
    return sum(path.stat().st_size for path in folder.glob(f"{name}.onnx*"))


def _to_int8(path: Path, processor) -> dict[str, float]:
    """Replace a graph's weights by 8-bit ones, and return the cosines of their vectors to those of fp32."""
    smaller = path.parent / "int8" / path.name  # of the same name, by which external data is found
    smaller.parent.mkdir()
    quantize_dynamic(
        path,
        smaller,
        op_types_to_quantize=["MatMul", "Gather"],  # in 8 bits Whisper's two convolutions take three times as long
        per_channel=True,
        reduce_range=True,  # sums of products fit into 16 bits: the vectors are the same with and without VNNI
        weight_type=QuantType.QInt8,
    )
    inputs = measured(path.stem, processor)
    full, small = (np.concatenate([run(load(file), one) for one in inputs]) for file in (path, smaller))
    cosines = (full * small).sum(-1)
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    os.replace(smaller, path)
    smaller.parent.rmdir()
    return {"mean": float(cosines.mean()), "min": float(cosines.min()), "measured": len(cosines)}


def run_export(options: argparse.Namespace) -> None:
    """Run the command with parsed options."""
    with stdout_for(options.as_json) as print_json:
        step(f"loading {options.model}")
        loaded = load_for_evaluation(options.model)
        about = export_onnx(*loaded, options.folder, options.int8, options.opset, progress=step)
        size = sum(about["bytes"].values()) / 1e6
        print(f"{options.folder}: {about['precision']}, {size:.1f} MB, opset {about['opset']}")
        for name, difference in about["agreement"].items():
            cosine = about.get("int8_cosine", {}).get(name)
            cost = f"; int8's cosine to it: mean {cosine['mean']:.4f}, min {cosine['min']:.4f}" if cosine else ""
            print(f"  {name}: {about['bytes'][name] / 1e6:.1f} MB, fp32 within {difference:.1e} of torch{cost}")
        print_json({"folder": options.folder} | about)


main = main_of("wavlink export", of.export, run_export)
