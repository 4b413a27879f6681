"""Make a bundled model of a training run: weights in fp16, code, processor, card, scores, sources and hashes.

    python -m hub_cards.bundle runs/my/best --name wavlink-tiny --sounds my_sounds
    wavlink eval --model wavlink-tiny --benchmark my_sounds --output scores.json      # of the weights in fp16
    python -m hub_cards.bundle runs/my/best --name wavlink-tiny --sounds my_sounds --scores scores.json --replace

The folder goes to `wavlink/models/NAME`, its hashes to `wavlink/models/SHA256SUMS.json`. `wavlink push NAME REPO_ID`
uploads its files, and a card that names the repository. Before the folder is renamed to its place, it is loaded in a
process with transformers and torch alone, and its vectors are compared with those of the run.

    python -m hub_cards.bundle --frame_head my_copy --name wavlink-tiny

adds the frame head that `wavlink train-frames my_copy` has trained on a copy of a bundled model.

    python -m hub_cards.bundle --code --name wavlink-tiny

gives a bundled model the shipped code as it is now.
"""

import argparse
import copy
import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modeling_wavlink import WavLinkModel
from wavlink import bundled_models
from wavlink.atomic_files import new_folder, replaced_folder, write_bytes, write_text
from wavlink.console import run_command
from wavlink.defaults import FRAME_HEAD
from wavlink.embedder import Embedder
from wavlink.frame_head import read_frame_head
from wavlink.temporary_paths import temporary_folder

from .card import write_card
from .push import own_lines_alone
from .scores import read_scores, scores_of
from .source import merged, open_checkpoint, run_of
from .sources import Counts, licence_limit, licence_rows, write_counts
from .verify import TEXTS, probe, vectors, verify

LARGEST = 40_000_000  # bytes of the weights
_COMPARED = 64  # clips and captions of each split


class Sources(NamedTuple):
    """Clips of folders of sounds by package and licence; some of its files and captions, to compare vectors on."""

    counts: Counts
    files: list[str]
    captions: list[str]


def bundle(
    source: str,
    name: str,
    *,
    models: Path = bundled_models.MODELS,
    sounds: Sequence[str] = (),
    scores: Sequence[str] = (),
    licence: str | None = None,
    notes: Sequence[str] = (),
    replace: bool = False,
) -> dict:
    """Write `models/name` and its hashes.

    Args:
        source: folder of the trained model, such as `runs/my/best`, or of an adapter of one.
        name: of the bundled model.
        models: folder of all bundled models.
        sounds: folders of the training data, whose `SPLIT/metadata.csv` have the columns `source_package` and
            `licence`.
        scores: files of `wavlink eval --model NAME --output`, of a bundle without scores: of the weights in fp16.
        licence: of the weights, as the Hub names it.
        notes: what the card says of the model besides, a sentence or two each.
        replace: whether a model of that name is replaced.

    Returns:
        `folder`, `bytes` of the weights, and `cosine_distance`, the largest of `clips` and `texts` between the vectors
        of the run and those of the bundled model.

    Raises:
        ValueError: weights over 40 MB, a name that is taken or cannot be, scores of other weights, or a folder that
            does not load.
    """
    folder = _destination(Path(models), name, replace)
    known = bundled_models.known_sums(Path(models))
    sources, read = read_sources(sounds), read_scores(scores)
    model, processor = open_checkpoint(source)
    original = merged(model)
    rounded = in_half_precision(original)
    expected = vectors(rounded, processor)
    pair = (Embedder(each, processor, fast_kernels=False) for each in (original, rounded))
    distance = _largest_distance(*pair, sources)
    with (replaced_folder if folder.exists() else new_folder)(folder) as unfinished:
        size = _write_weights(rounded, unfinished)
        processor.save_pretrained(unfinished)
        write_card(
            unfinished,
            rounded,
            processor.feature_extractor,
            name,
            scores=scores_of(rounded, name, read),
            run=run_of(source),
            licence=licence,
            score_files=list(scores),
            tokenizer=processor.tokenizer,
            notes=dict.fromkeys([*notes, *licence_limit(sources.counts), _rounding_note(sources, distance)]),
            sources=licence_rows(sources.counts),
        )
        write_counts(sources.counts, unfinished)
        verify(unfinished, expected)
        sums = bundled_models.sums_of(unfinished)
    write_text(Path(models) / bundled_models.SUMS, json.dumps(known | {name: sums}, indent=2, sort_keys=True) + "\n")
    return {"folder": str(folder), "bytes": size, "cosine_distance": distance}


def add_frame_head(source: str, name: str, models: Path = bundled_models.MODELS) -> Path:
    """Add the frame head in a copy of a bundled model to `models/name`, and its hash.

    Raises:
        ValueError: there is no such bundled model, or no head in the copy, or one of other weights.
    """
    known, folder = bundled_models.known_sums(models), models / name
    if name not in known:
        raise ValueError(f"{name} is no bundled model: bundle it first")
    if not (Path(source) / FRAME_HEAD).is_file():
        raise ValueError(f"{source} has no {FRAME_HEAD}: `wavlink train-frames {source} --data SOUNDS` makes one")
    read_frame_head(Path(source), Embedder(*open_checkpoint(str(folder))))
    write_bytes(folder / FRAME_HEAD, (Path(source) / FRAME_HEAD).read_bytes())
    sums = known | {name: bundled_models.sums_of(folder)}
    write_text(models / bundled_models.SUMS, json.dumps(sums, indent=2, sort_keys=True) + "\n")
    return folder / FRAME_HEAD


def refresh_code(name: str, models: Path = bundled_models.MODELS) -> Path:
    """Replace the code in `models/name` by what ships now, and its hashes; its vectors stay as they are.

    Raises:
        ValueError: there is no such bundled model, or it does not load or has other vectors with this code.
    """
    known, folder = bundled_models.known_sums(models), models / name
    if name not in known:
        raise ValueError(f"{name} is no bundled model: bundle it first")
    model, processor = open_checkpoint(str(folder))
    with temporary_folder() as saved, replaced_folder(folder) as unfinished:
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
        shutil.copytree(folder, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        for path in saved.glob("*.py"):
            shutil.copy(path, unfinished)
        verify(unfinished, vectors(model, processor))
        sums = bundled_models.sums_of(unfinished)
    write_text(models / bundled_models.SUMS, json.dumps(known | {name: sums}, indent=2, sort_keys=True) + "\n")
    return folder


def _destination(models: Path, name: str, replace: bool) -> Path:
    """Return the folder of a model of that name; a bad name, or one that is taken, is refused."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name must be of letters, digits, '.', '-' and '_' alone, got {name!r}")
    folder = models / name
    if folder.exists() and not replace:
        raise ValueError(f"{folder} is there already: give --replace to write it anew")
    return folder


def _rounding_note(sources: Sources, distance: float) -> str:
    """Return the sentence of the card on what fp16 changes."""
    return (
        f"The weights are stored in fp16 and computed in fp32. Against the run's fp32 weights no vector of "
        f"{len(sources.files) or 1} clips and {len(sources.captions) or len(TEXTS)} texts is further than a cosine "
        f"distance of {distance:.1e}."
    )


def in_half_precision(model: WavLinkModel) -> WavLinkModel:
    """Return an fp32 copy of a model whose weights are rounded to fp16.

    Raises:
        ValueError: a weight that fp16 cannot hold.
    """
    rounded = copy.deepcopy(model).float()
    for name, value in rounded.state_dict().items():
        if value.is_floating_point():
            value.copy_(value.half().float())
            if not value.isfinite().all():
                raise ValueError(f"{name} holds a number that fp16 cannot: at most 65504")
    return rounded


def read_sources(sounds: Sequence[str]) -> Sources:
    """Read the packages and licences of folders of sounds.

    Raises:
        ValueError: no `metadata.csv` in a folder of a split, or one without these columns.
    """
    counts, files, captions = Counter(), [], []
    tables = []
    for folder in sounds:
        tables += (found := sorted(Path(folder).glob("*/metadata.csv")))
        if not found:
            raise ValueError(f"{folder} holds no SPLIT/metadata.csv: give the folder that the model was trained on")
    for path in tables:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lacking = {"file_name", "caption", "source_package", "licence"} - set(rows[0] if rows else ())
        if lacking:
            raise ValueError(f"{path} lacks the columns {', '.join(sorted(lacking))}")
        counts.update((row["source_package"], row["licence"]) for row in rows)
        files += [str(path.parent / row["file_name"]) for row in rows[:_COMPARED]]
        captions += [row["caption"] for row in rows[:_COMPARED]]
    return Sources(counts, files, captions)


def _write_weights(model: WavLinkModel, folder: Path) -> int:
    """Write the weights in fp16 and a config by which they are computed in fp32; return the bytes of the weights."""
    copy.deepcopy(model).half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size > LARGEST:
        raise ValueError(
            f"the weights have {size / 1e6:.1f} MB in fp16, over {LARGEST / 1e6:g}: make its towers smaller"
        )
    return size


def _largest_distance(first: Embedder, second: Embedder, sources: Sources) -> float:
    """Return the largest cosine distance between the vectors of two models, of clips and texts."""
    clips = sources.files or [{"array": probe(), "sampling_rate": first.sampling_rate}]
    texts = sources.captions or list(TEXTS)
    pairs = [*zip(first.embed_files(clips), second.embed_files(clips), strict=True)]
    pairs += zip(first.embed_text(texts), second.embed_text(texts), strict=True)
    for one, _ in pairs:
        if isinstance(one, ValueError):
            raise one
    return max(0.0, *(float(1 - np.dot(one.astype(np.float64), other)) for one, other in pairs))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the bundled model, and print its size and how far its vectors are from the run's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="folder of the trained model, such as runs/my/best")
    parser.add_argument("--name", default=bundled_models.DEFAULT)
    parser.add_argument("--models", type=Path, default=bundled_models.MODELS, help="folder of all bundled models")
    parser.add_argument(
        "--sounds", nargs="+", default=[], help="folders of the training data, for their packages and licences"
    )
    parser.add_argument("--scores", nargs="+", default=[], metavar="JSON", help="of `wavlink eval --output`")
    parser.add_argument("--license", dest="licence", help="of the weights, as the Hub names it")
    parser.add_argument(
        "--note", dest="notes", nargs="+", default=[], metavar="TEXT", help="further sentences for the card's limits"
    )
    parser.add_argument("--replace", action="store_true", help="replace a model of that name")
    parser.add_argument("--frame_head", metavar="FOLDER", help="copy of a bundled model with a head to add to it")
    parser.add_argument("--code", action="store_true", help="give a bundled model the shipped code as it is now")
    options = vars(parser.parse_args(argv))
    frame_head, code = options.pop("frame_head"), options.pop("code")
    if [options["source"] is not None, frame_head is not None, code].count(True) != 1:
        parser.error("give either the folder of a trained model, or --frame_head, or --code")
    if frame_head is not None:
        print(add_frame_head(frame_head, options["name"], options["models"]))
        return 0
    if code:
        with own_lines_alone():
            folder = refresh_code(options["name"], options["models"])
        print(folder)
        return 0

    with own_lines_alone():
        made = bundle(**options)
    size, distance = made["bytes"] / 1e6, made["cosine_distance"]
    print(f"{made['folder']}: {size:.1f} MB, cosine distance to the run's vectors at most {distance:.2e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command("hub_cards.bundle", main))
