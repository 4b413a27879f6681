"""Write the folder of a static Space: a page that runs a model in the visitor's browser, with every file it loads.

wavlink space --static --model runs/quickstart/best --out my_space

`wavlink push runs/quickstart/best your-name/my-space --static` writes and uploads it.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from huggingface_hub import SpaceCard
from transformers import PreTrainedModel, ProcessorMixin

from processing.audio import load_audio
from wavlink.atomic_files import new_folder
from wavlink.backends.export import refuse_missing
from wavlink.console import signals_as_interrupts, stdout_for, step
from wavlink.destinations import folder_destination
from wavlink.loading import load_for_evaluation
from wavlink.samples import real_samples
from wavlink.sanitize import clean, escape

from .folder import licence_file
from .npm import write_packages

PAGE = Path(__file__).with_name("static")
MAX_DISTANCE = 1e-4  # cosine distance that storing weights in fp16 may cost
_TOWERS = ("audio", "text")
_TOKENIZERS = ("WordPiece", "BPE")


def write_static_space(
    folder: str | os.PathLike[str],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    name: str,
    npm_packages: str = "",
    progress: Callable[[str], None] = lambda line: None,
    title: str = "",
) -> dict[str, Any]:
    """Write a static Space, atomically.

    Args:
        folder: new or empty.
        model: a WavLink with a Whisper.
        processor: of the model.
        name: of the model on the page, a Hub id or a folder's.
        npm_packages: a folder of the tarballs that `npm pack` writes (default: npm downloads them).
        progress: called with a description of each step before it.
        title: of the Space (default: that of its README.md, WavLink).

    Returns:
        `space.json`, which the page reads: `model`, `revision`, `precision`, `opset`, `weights` (by tower,
        the format that they are stored in and `distance`, the largest cosine distance to the exported ones),
        `examples`, and `bytes`, the size of what the page loads to answer.

    Raises:
        ValueError: a model that cannot be exported, a tokenizer that the page cannot read, or packages of npm that
            cannot be had. Nothing is then written.
    """
    from wavlink.backends.onnx import CONFIG, export_onnx

    folder_destination(folder)
    with new_folder(folder) as unfinished:
        progress("taking the runtime of the page from npm")
        write_packages(unfinished / "npm", npm_packages)
        about = export_onnx(model, processor, unfinished / "model", progress=progress)
        _check_tokenizer(unfinished / "model")
        progress("storing the weights in fp16")
        graphs = {tower: unfinished / "model" / f"{tower}.onnx" for tower in _TOWERS}
        weights = {tower: _halve(path, processor) for tower, path in graphs.items()}
        about |= {"weights": weights, "bytes": {tower: path.stat().st_size for tower, path in graphs.items()}}
        (unfinished / "model" / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for file in ("index.html", "page.js", "wavlink.js", "style.css"):
            shutil.copyfile(PAGE / file, unfinished / file)
        shutil.copyfile(licence_file(), unfinished / "LICENSE")
        examples = _write_examples(unfinished / "sounds")
        space = {
            "model": name,
            "revision": about["revision"],
            "precision": about["precision"],
            "opset": about["opset"],
            "weights": weights,
            "examples": examples,
            "bytes": sum(path.stat().st_size for part in ("npm", "model") for path in (unfinished / part).iterdir()),
        }
        (unfinished / "space.json").write_text(json.dumps(space, indent=2) + "\n", encoding="utf-8")
        _card(space, model, title).save(unfinished / "README.md")
    return space


def _check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer of a kind whose ids in the page have not been compared with those here."""
    kind = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"]
    if kind not in _TOKENIZERS:
        raise ValueError(f"the page reads tokenizers of the kinds {', '.join(_TOKENIZERS)}, and this one is {kind}")


def _halve(path: Path, processor: ProcessorMixin) -> dict[str, Any]:
    """Store a graph's weights in fp16 if its vectors stay the same; return the format and the cosine distance."""
    from wavlink.backends.half_weights import store_in_fp16
    from wavlink.backends.onnx import load, measured, run

    smaller = path.with_name("half.onnx")
    store_in_fp16(path, smaller)
    inputs = measured(path.stem, processor)
    full, half = (np.concatenate([run(load(file), one) for one in inputs]) for file in (path, smaller))
    distance = float(1 - (full.astype(np.float64) * half).sum(-1).min())
    if distance > MAX_DISTANCE:
        smaller.unlink()
        return {"stored": "fp32", "distance": 0.0}
    os.replace(smaller, path)
    return {"stored": "fp16", "distance": max(distance, 0.0)}


def _write_examples(folder: Path) -> list[str]:
    """Write the real clips as FLAC, which every browser decodes alike, and their credits; return the files' names."""
    folder.mkdir()
    clips = real_samples()
    for row in clips:
        soundfile.write(folder / f"{row['label']}.flac", load_audio(row["path"]), 16000, format="FLAC")
    for row in clips[:1]:
        shutil.copyfile(Path(row["path"]).with_name("CREDITS.md"), folder / "CREDITS.md")
    return [f"{row['label']}.flac" for row in clips]


def _card(space: dict[str, Any], model: PreTrainedModel, title: str) -> SpaceCard:
    card, on_hub = SpaceCard.load(PAGE / "README.md"), bool(getattr(model, "hub_commit", None))
    card.data.title = title or card.data.title
    name, stored = space["model"], sorted({weights["stored"] for weights in space["weights"].values()})
    if on_hub:
        card.data.models = [name]
    facts = {
        "model": f"[{escape(name)}](https://huggingface.co/{name})" if on_hub else escape(name),
        "revision": space["revision"],
        "opset": str(space["opset"]),
        "weights": " and ".join(stored),
        "megabytes": f"{space['bytes'] / 1e6:.1f}",
    }
    for field, value in facts.items():
        card.text = card.text.replace(f"{{{field}}}", value)
    return card


def run_static(options: argparse.Namespace) -> int:
    """Run `wavlink space --static` with parsed options."""
    with signals_as_interrupts(), stdout_for(options.as_json) as print_json:
        refuse_missing("onnx", "fp32")
        folder_destination(options.out)
        step(f"loading {options.model or 'wavlink-tiny'}")
        model, processor = load_for_evaluation(options.model, revision=options.revision)
        name = options.model or "wavlink-tiny"
        name = Path(name).resolve().name if os.path.isdir(name) else name
        space = write_static_space(options.out, model, processor, name, options.npm_packages, step)
        print(f"{clean(options.out, 1000)}: {space['model']}, a download of {space['bytes'] / 1e6:.1f} MB")
        for tower, weights in space["weights"].items():
            print(f"  {tower}: weights in {weights['stored']}, cosine distance at most {weights['distance']:.1e}")
        print_json({"folder": options.out} | space)
    return 0
