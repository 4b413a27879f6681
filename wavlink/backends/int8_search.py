"""Find an int8 version of a model that retrieves as well as fp32: calibrate, measure, and leave layers out."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from processing.audio import clip_name, load_column
from processing.datasets.load import captions_of
from wavlink.batching import cover
from wavlink.evaluation.calibrate import data_name, validation_split
from wavlink.evaluation.embed_split import Embedded, embed_dataset, fingerprint
from wavlink.evaluation.retrieval import DIRECTIONS, retrieval_scores

from .compiled_model import CompiledModel
from .exported import graph_path
from .graphs import Tower
from .int8 import quantize, rank_layers
from .sessions import INPUTS, open_tower

logger = logging.getLogger(__name__)

MAX_LOSS = 0.5  # points of R@10 that int8 may lose
_RANKED = 16  # clips and texts by which layers are ranked
_NAMED = 5  # layers that an error names
_ROUNDING = 1e-6  # of percent
_LEAST = 11  # clips and texts: of ten, R@10 is always 100 %


@dataclass
class Split:
    """A split of clips with captions.

    Args:
        data: an audiofolder or a Hub data set.
        split: its name.
        caption_columns: default: every column named like a caption.
    """

    data: str
    split: str
    caption_columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.rows, self.columns = validation_split(self.data, self.split, self.caption_columns)

    def spread(self, most: int) -> datasets.Dataset:
        """Return at most so many rows, evenly spaced."""
        return self.rows.select(_spread(len(self.rows), most))

    def describe(self, rows: datasets.Dataset | None = None) -> dict[str, Any]:
        """Return the name and the fingerprint of the split, or of some of its rows."""
        rows = self.rows if rows is None else rows
        about = {"data": data_name(self.data), "split": self.split}
        return about | {"clips": len(rows), "fingerprint": fingerprint(rows)}


def calibration_inputs(
    rows: datasets.Dataset, columns: Sequence[str], processor: ProcessorMixin
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return the inputs of both towers in batches of one: of each row the clip, its first window, and a caption."""
    extractor = processor.feature_extractor
    rate = extractor.sampling_rate
    inputs: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in INPUTS}
    for index, row in enumerate(rows):
        try:
            clip = cover(load_column(row["audio"], rate), extractor.n_samples)[0]
        except ValueError as error:
            logger.warning(f"{clip_name(row['audio'], index)} is left out of the calibration: {error}")
            continue
        inputs["audio"].append(_arrays("audio", processor(audio=[clip], sampling_rate=rate, return_tensors="np")))
        inputs["text"].append(_arrays("text", processor(text=captions_of(row, columns)[:1], return_tensors="np")))
    if not inputs["audio"]:
        raise ValueError("none of the calibration clips can be read: give other ones")
    return inputs


def _arrays(name: str, inputs: Any) -> dict[str, np.ndarray]:
    values, mask = (inputs.get(key) for key in INPUTS[name])
    values = np.asarray(values)
    mask = np.ones(values.shape[::2]) if mask is None else np.asarray(mask)
    return dict(zip(INPUTS[name], (values, mask.astype(np.int64)), strict=True))


class Int8Search:
    """Quantize both towers, and leave out layers until R@10 on a validation split is that of fp32.

    Args:
        model: as `exportable` returns it.
        processor: of the model.
        backend: `"openvino"` or `"onnx"`.
        source: the folder with both graphs in fp32.
        target: the folder that the graphs in int8 are written to.
        calibration, validation: what scales are computed from, and what is measured.
        clips: that are calibrated by.
        progress: called with a description of each step before it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        backend: str,
        source: Path,
        target: Path,
        calibration: Split,
        validation: Split,
        clips: int,
        progress: Callable[[str], None],
    ):
        self.model, self.processor, self.backend, self.progress = model, processor, backend, progress
        self.graphs = {name: graph_path(source, backend, name, "fp32") for name in INPUTS}
        self.targets = {name: graph_path(target, backend, name, "int8") for name in INPUTS}
        self.dims = sorted({model.config.projection_dim, *model.config.matryoshka_dims})
        self.validation, rows = validation, calibration.spread(clips)
        self.about = {"calibration": calibration.describe(rows), "validation": validation.describe()}
        split = validation.rows.remove_columns("audio")
        texts = {text for row in split for text in captions_of(row, validation.columns)}
        _refuse_few(len(split), len(texts))  # before the work; once more without what cannot be read
        progress("reading the calibration clips")
        self.inputs = calibration_inputs(rows, calibration.columns, processor)
        self.about["calibration"]["clips"] = len(self.inputs["audio"])
        progress("embedding the validation split in fp32")
        self.exact = self._embed(self.graphs, "fp32")
        self.layers: dict[str, list[str]] = {}  # of each tower
        self.in_fp32: dict[str, list[str]] = {}

    def run(self, in_fp32: Sequence[str] = (), most: int = 0) -> dict[str, Any]:
        """Write both graphs, and return how: for the record of the export.

        Args:
            in_fp32: layers that stay in fp32.
            most: how many more may, the most harmful first.

        Raises:
            ValueError: a layer that the model does not have, or int8 that loses more than `MAX_LOSS`.
        """
        vectors, figures = self._try(in_fp32)
        known = [name for names in self.layers.values() for name in names]
        if unknown := [name for name in in_fp32 if name not in known]:
            raise ValueError(f"the model has no linear layer {unknown[0]!r}: take some of {', '.join(known)}")
        ranked: list[tuple[str, float]] = []
        more = 0
        while _largest_loss(figures)[0] > MAX_LOSS + _ROUNDING:
            ranked = ranked or [item for item in self._rank() if item[0] not in in_fp32]
            if more >= min(most, len(ranked)):
                raise ValueError(_refusal(figures, ranked, more))
            more = min(2 * more or 1, most, len(ranked))
            vectors, figures = self._try([*in_fp32, *(name for name, _ in ranked[:more])])
        left_out = {name for names in self.in_fp32.values() for name in names}
        cosines = {
            "audio": (vectors.audio * self.exact.audio).sum(-1),
            "text": (vectors.text * self.exact.text).sum(-1),
        }
        return self.about | {
            "smooth_quant": True,
            "layers_in_int8": [name for name in known if name not in left_out],
            "layers_in_fp32": [name for name in known if name in left_out],
            "max_loss": MAX_LOSS,
            "R@10": figures,
            "cosine": {name: {"mean": x.mean().item(), "min": x.min().item()} for name, x in cosines.items()},
        }

    def _try(self, in_fp32: Sequence[str]) -> tuple[Embedded, dict[str, dict]]:
        """Quantize with some layers in fp32; return the vectors, and R@10 by direction, dim and precision."""
        self.progress(f"quantizing both towers{f' but {len(in_fp32)} layers' if in_fp32 else ''}")
        for name, path in self.targets.items():
            chosen = [layer for layer in in_fp32 if layer.startswith(f"{name}_")]
            if self.in_fp32.get(name) != chosen:
                for older in path.parent.glob(f"{path.stem}.*"):
                    older.unlink()
                self.layers[name] = quantize(self.backend, self.graphs[name], path, self.inputs[name], chosen)
                self.in_fp32[name] = chosen
        self.progress("embedding the validation split in int8")
        vectors = self._embed(self.targets, "int8")
        full, small = self._recall(self.exact), self._recall(vectors)
        figures = {
            way: {str(dim): {"fp32": full[way][dim], "int8": small[way][dim]} for dim in self.dims}
            for way in DIRECTIONS
        }
        return vectors, figures

    def _embed(self, graphs: dict[str, Path], precision: str) -> Embedded:
        towers = {name: open_tower(self.backend, path, precision) for name, path in graphs.items()}
        model = CompiledModel(self.model, towers, self.backend, precision)
        split = self.validation
        embedded = embed_dataset(model, self.processor, split.rows, split.columns, progress=False)  # type: ignore[arg-type]
        _refuse_few(len(embedded.audio), len(embedded.texts))
        self.about["validation"]["clips"] = len(embedded.audio)
        return embedded

    def _recall(self, embedded: Embedded) -> dict[str, dict[int, float]]:
        """Return R@10 in percent, by direction and dim."""
        scores = retrieval_scores(embedded.audio, embedded.text, embedded.correspondence, self.dims)
        return {way: {dim: 100 * scores[way][str(dim)]["R@10"]["value"] for dim in self.dims} for way in DIRECTIONS}

    def _rank(self) -> list[tuple[str, float]]:
        """Rank the layers of both towers, the most harmful first."""
        self.progress("ranking the layers by what int8 in each alone does to the vectors")
        ranked = []
        for name, inputs in self.inputs.items():
            sample = [inputs[index] for index in _spread(len(inputs), _RANKED)]
            ranked += rank_layers(Tower(self.model, name).eval(), sample)
        known = {name for names in self.layers.values() for name in names}
        return sorted((item for item in ranked if item[0] in known), key=lambda item: item[1])


def _refuse_few(clips: int, texts: int) -> None:
    if min(clips, texts) < _LEAST:
        raise ValueError(
            f"the validation split has {clips} readable clips and {texts} captions, and R@10 of ten is always 100 %: "
            f"give {_LEAST} or more of each, better some hundreds"
        )


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` indices of `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _largest_loss(figures: dict[str, dict]) -> tuple[float, str, str]:
    """Return the largest loss of R@10 in points, with its direction and dim."""
    return max((x["fp32"] - x["int8"], way, dim) for way, dims in figures.items() for dim, x in dims.items())


def _refusal(figures: dict[str, dict], ranked: list[tuple[str, float]], more: int) -> str:
    loss, way, dim = _largest_loss(figures)
    harmful = ", ".join(f"{name} (cosine {cosine:.4f})" for name, cosine in ranked[more : more + _NAMED])
    tried = f", also with the {more} most harmful layers in fp32" if more else ""
    names = " ".join(name for name, _ in ranked[: more + _NAMED])
    return (
        f"int8 loses {loss:.2f} points of R@10 ({DIRECTIONS[way]}, {dim} dims) on the validation split{tried}, and "
        f"{MAX_LOSS:g} is the most: nothing is written; the layers that harm most{' next' if more else ''} are "
        f"{harmful}; leave them out by --layers_in_fp32 {names}, or raise --max_layers_in_fp32"
    )
