"""Exports of a model: folders with both towers as graphs and a JSON file that says of which weights, and how.

An export stands in `openvino/` or `onnx/` of the model's folder, what is converted on first use in a cache (see
`conversions`).
"""

import hashlib
import json
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from modeling_wavlink.compat_wavlink import optional_file
from modeling_wavlink.config_checks_wavlink import one_line
from processing.whisper_features_wavlink import PADDINGS
from wavlink.atomic_files import could_not_write, new_folder, replaced_folder
from wavlink.bundled_models import digest_of
from wavlink.console import without_foreign_output
from wavlink.loading import parameter_count, weights_digest

from .choice import FORMAT, read_record, record_name
from .conversions import PACKAGES, cache_of, conversion_key, is_intact, version_of
from .export_checks import CONFIG_FIELDS, TOWER_FIELDS, refuse_damaged, refuse_other
from .graphs import Tower, agreement, batches, example, noises, sentence, write_onnx
from .openvino_graphs import write_openvino
from .sessions import INPUTS, open_tower
from .standalone import StandaloneProcessor, describe

LIBRARIES = {"openvino": "OpenVINO", "onnx": "onnxruntime"}
_ENDINGS = {"openvino": ".xml", "onnx": ".onnx"}
_LOG_MEL_TOLERANCE = 1e-4  # of a number, between numpy and torch
_MOST_TOKENS = 2000  # of a tokenizer's added ones, which are compared
_ODD_TEXT = "A dog's bark, déjà vu! \u72d7 \U0001f415 <|endoftext|> [SEP]"


def model_identity(model: PreTrainedModel) -> dict[str, str]:
    """Return the hashes of a model's weights, as they are exported (in fp32), and of the settings of its graph."""
    config = model.config
    settings = [{name: _plain(config, name) for name in CONFIG_FIELDS}]
    settings += [
        {name: _plain(part, name) for name in TOWER_FIELDS} for part in (config.audio_config, config.text_config)
    ]
    return {"weights": weights_digest(model), "settings": _hash(settings)}


def _hash(settings: list[dict[str, Any]]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(config: PretrainedConfig, name: str) -> Any:
    value = getattr(config, name, None)
    return list(value) if isinstance(value, tuple) else value


def graph_path(folder: Path, backend: str, name: str, precision: str) -> Path:
    """Return the path of a tower's graph, such as `audio_model.xml` or `text_model_int8.onnx`."""
    return folder / f"{name}_model{'_int8' if precision == 'int8' else ''}{_ENDINGS[backend]}"


def write_graphs(folder: Path, model: PreTrainedModel, backend: str, opset: int | None = None) -> dict[str, Any]:
    """Write both towers in fp32, and return their description.

    Args:
        model: as `exportable` returns it.
        opset: of ONNX; default: torch's.

    Raises:
        ValueError: a tower that cannot be converted.
    """
    towers: dict[str, dict] = {}
    for name in INPUTS:
        tower, path = Tower(model, name).eval(), graph_path(folder, backend, name, "fp32")
        towers[name] = {"file": path.name, "inputs": list(INPUTS[name])}
        with without_foreign_output():
            if backend == "openvino":
                write_openvino(tower, path)
            else:
                towers[name]["opset"] = write_onnx(tower, path, example(name, model.config), opset)
    return towers


def measured_agreement(
    folder: Path, model: PreTrainedModel, processor: Any, backend: str, towers: dict[str, dict]
) -> dict[str, float]:
    """Return the largest difference of each tower's numbers to torch's.

    Raises:
        ValueError: it is over `graphs.TOLERANCE`.
    """
    return {
        name: agreement(
            Tower(model, name).eval(),
            open_tower(backend, folder / about["file"], "fp32"),
            batches(name, processor),
            LIBRARIES[backend],
        )
        for name, about in towers.items()
    }


def standalone_facts(folder: Path, model: PreTrainedModel, processor: Any) -> dict[str, Any]:
    """Describe a model for `standalone`, or say in `error` why its exports do not run without torch.

    Args:
        folder: of the model.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        alone = StandaloneProcessor(folder)
        _refuse_incomplete(config)
        with without_foreign_output():
            _refuse_other_tokens(alone, processor)
            _refuse_other_features(alone, processor)
    except (ValueError, KeyError) as error:
        return {"error": one_line(error)}
    return describe(folder, config, parameter_count(model), model.logit_scale.item(), model.logit_bias.item())


def _refuse_incomplete(config: dict[str, Any]) -> None:
    """Refuse a config.json without what bounds the inputs of a graph, whose default transformers alone knows."""
    needed = {"audio_config": ("num_mel_bins", "max_source_positions"), "text_config": ("vocab_size",)}
    for tower, names in needed.items():
        if missing := [name for name in names if name not in (config.get(tower) or {})]:
            raise ValueError(f"{tower} in config.json lacks {', '.join(missing)}")
    if config.get("transformers_weights"):
        raise ValueError("config.json names another file of weights (transformers_weights)")


def _refuse_other_tokens(alone: StandaloneProcessor, processor: Any) -> None:
    tokenizer = processor.tokenizer
    special = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})[:_MOST_TOKENS]
    probes = [[f"{token} a {token}s hot{token} {token.upper()}, {token.title()}"] for token in special]
    for texts in ([sentence(3), sentence(12)], [sentence(500), ""], [_ODD_TEXT], *probes):
        found, expected = alone(text=texts), processor(text=texts, return_tensors="np")
        if any(not np.array_equal(found[name], expected[name]) for name in INPUTS["text"]):
            raise ValueError(
                f"tokenizer.json reads {texts[0][:40]!r} otherwise than the processor: its class does more"
            )


def _refuse_other_features(alone: StandaloneProcessor, processor: Any) -> None:
    options = {"sampling_rate": processor.feature_extractor.sampling_rate}
    for clips in noises():
        for padding in PADDINGS:
            found = alone(audio=clips, padding=padding, **options)
            expected = processor(audio=clips, padding=padding, return_tensors="np", **options)
            same = found.keys() == expected.keys() and all(found[x].shape == expected[x].shape for x in found)
            if not same or max(np.abs(found[x] - expected[x]).max() for x in found) > _LOG_MEL_TOLERANCE:
                raise ValueError("the log-mels of its feature extractor differ in numpy")


def write_record(
    folder: Path, identity: dict[str, str], backend: str, precision: str, towers: dict[str, dict], **about: Any
) -> dict[str, Any]:
    """Write the JSON file that describes an export, and return its content."""
    packages = ("torch", "transformers", *PACKAGES[backend], *(("nncf",) if precision == "int8" else ()))
    record = {
        "format": FORMAT,
        "backend": backend,
        "precision": precision,
        "model": identity,
        "towers": towers,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "sha256": {path.name: digest_of(path) for path in sorted(folder.iterdir())},
        "versions": {name: version(name) for name in packages} | {"wavlink": version_of("wavlink")},
        "machine": platform.machine(),
        **about,
    }
    (folder / record_name(precision)).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def exported_folder(source: str, backend: str, precision: str, identity: dict[str, str], **hub: Any) -> Path | None:
    """Return the folder of the export that a model carries, None if it carries none in this precision.

    Args:
        source: a folder or Hub id.
        hub: `revision` and `local_files_only`.

    Raises:
        ValueError: the export was made for another model, is damaged or lacks files.
    """
    path = optional_file(source, f"{backend}/{record_name(precision)}", **hub)
    if path is None:
        return None
    record, differs = read_record(path), ""
    if record["model"] != identity:
        differs = "weights" if record["model"]["weights"] != identity["weights"] else "settings in config.json"
    refuse_other(path, source, differs)
    refuse_damaged(path, record, lambda name: optional_file(source, f"{backend}/{name}", **hub))
    return Path(path).parent


def converted_folder(model: PreTrainedModel, backend: str, identity: dict[str, str]) -> Path:
    """Return the folder of a model that is converted in fp32, which the first call writes to the cache.

    Args:
        model: as `exportable` returns it.

    Raises:
        ValueError: a tower that cannot be converted.
        OSError: the cache cannot be written.
    """
    towers = [part.to_dict() for part in (model.config.audio_config, model.config.text_config)]
    identity = identity | {"towers": _hash(towers)}  # with all fields: the cache is of one version of transformers
    folder = cache_of(backend) / conversion_key(identity, backend)
    if not is_intact(folder, backend):
        try:
            with (replaced_folder if folder.exists() else new_folder)(folder) as unfinished:
                write_record(unfinished, identity, backend, "fp32", write_graphs(unfinished, model, backend))
        except ValueError:
            if not is_intact(folder, backend):  # by another process meanwhile
                raise
        except OSError as error:
            raise could_not_write(folder, error) from error
    return folder


def missing_packages(backend: str) -> list[str]:
    """Return the packages that converting for a backend needs and that are not installed."""
    return [name for name in PACKAGES[backend] if find_spec(name) is None]
