"""Write the model card from one template. Each figure has its JSON beside it."""

import json
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import FeatureExtractionMixin, PreTrainedTokenizerBase

from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing.file_names import stays_below
from wavlink.evaluation.metrics import percent
from wavlink.evaluation.report import CALIBRATION_TITLES, Table
from wavlink.evaluation.retrieval import DIRECTIONS, RANKED
from wavlink.installing import install_hint
from wavlink.plots import draw_confusion, draw_dims, draw_loss, draw_recall
from wavlink.sanitize import escape, last_part, without_paths

from . import training
from .exports import exports_section
from .limits import robustness_limits, vocabulary_limits
from .metadata import card_data, data_name, hub_data, write_eval_results
from .origin import Origin, expression
from .published_facts import DATA, PAPER_COLUMNS, PAPER_RETRIEVAL, PAPER_ZERO_SHOT, SIZES, TOWER_LICENCES
from .result_rows import calibration_rows, group_rows, other_rows, retrieval_rows, robustness_rows, widths
from .sources import Counts, licence_limit, licence_rows, write_counts

TEMPLATE = Path(__file__).with_name("model_card.md")
_CALIBRATIONS = {"model": "by the model's calibration", "index": "by the clips' own cosines, without a calibration"}
_CONFUSED_LABELS = 20  # more do not fit a card's width


def write_card(
    folder: Path,
    model: WavLinkModel,
    extractor: FeatureExtractionMixin,
    repo_id: str,
    *,
    scores: Sequence[dict] = (),
    run: Path | None = None,
    licence: str | None = None,
    untrained: str | None = None,
    score_files: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    notes: Iterable[str] = (),
    sources: Sequence[tuple[str, str]] = (),
    origin: Origin | None = None,
    exports: Sequence[dict] = (),
) -> None:
    """Write `folder/README.md`, and beside it the scores, results, recipes and plots that it shows or links.

    Args:
        model: its config and number of parameters are shown; its weights are not read.
        extractor: the checkpoint's feature extractor.
        repo_id: of the model on the Hub; or the bare name of a bundled model, which is on no Hub.
        scores: of these weights, as `wavlink eval` writes them.
        run: the folder of the training run, if it exists.
        licence: of the weights, as the Hub names it.
        untrained: the paper's size, `"base"`, `"small"` or `"large"`, of pretrained towers with new projections.
        score_files: the file names of `scores`.
        tokenizer: of the checkpoint, whose vocabulary is described (default: it is not).
        notes: further limits, a sentence or two each.
        sources: rows `(what, licence)` of the licences, after those of towers and data.
        origin: the bundled model that these weights are, or started from, whose sources are stated and shipped.
        exports: as `write_exports` returns them.

    Raises:
        ValueError: no such size, another number of file names than scores, or matplotlib is missing.
    """
    _refuse(untrained, scores, score_files, run)
    folder, scores = Path(folder), [without_paths(score) for score in scores]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    stages = training.stages(None if run is None else Path(run))
    files = _ship_scores(folder, scores, score_files, repo_id)
    shipped = training.ship(stages, folder)
    if "/" in repo_id:
        write_eval_results(folder, scores, files, repo_id)
    counts = origin.counts() if origin else Counts()
    write_counts(counts, folder)
    call, imports = expression(repo_id)
    ModelCard.from_template(
        card_data(repo_id, scores, stages, licence, untrained, origin.base_models() if origin else ()),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        model=call,
        imports=imports,
        exports=exports_section(exports, call),
        not_on_record=origin.sentence() if origin else "The recipe of these weights is not on record here.",
        rate=extractor.sampling_rate,
        longest=extractor.chunk_length,
        untrained=untrained,
        architecture=_architecture(model, extractor),
        dims=_dims(model.config),
        nested=_nested(model.config, scores, files),
        calibration=_calibration(model.config),
        results=[_result(folder, score, file) for score, file in zip(scores, files, strict=True)],
        stages=_stages(folder, stages, shipped, origin.title if origin and not origin.same_weights else ""),
        paper=_paper(untrained or paper_size(model.config)),
        limits=[
            *(vocabulary_limits(tokenizer, scores) if tokenizer else ()),
            *robustness_limits(scores),
            *notes,
            *(licence_limit(counts, f"the training clips of {origin.name}") if origin else ()),
        ],
        licences=_licences(licence, untrained, stages, [*sources, *licence_rows(counts)], origin),
    ).save(folder / "README.md")
    if not any((folder / "pictures").iterdir()):
        (folder / "pictures").rmdir()


def _refuse(untrained: str | None, scores: Sequence[dict], names: Sequence[str], run: Path | None) -> None:
    if untrained not in (None, *SIZES):
        raise ValueError(f"untrained must be one of {', '.join(SIZES)}, got {untrained!r}")
    if names and len(names) != len(scores):
        raise ValueError(f"{len(scores)} scores need as many file names, got {len(names)}")
    if (scores or run) and find_spec("matplotlib") is None:
        raise ValueError(f"the card's plots need {install_hint('matplotlib', 'push')}")


def _ship_scores(folder: Path, scores: Sequence[dict], names: Sequence[str], repo_id: str) -> list[str]:
    """Write `scores/NAME.json` of each, with the public names of model and data; return the names of the files."""
    files = []
    for number, score in enumerate(scores):
        name = Path(names[number]).stem if names else last_part(data_name(score))
        stem = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "scores"
        if not stays_below(stem, windows=True):  # the name of a device
            stem = f"scores-{stem}"
        file = f"scores/{stem}.json"
        if file in files:
            file = f"scores/{stem}-{number + 1}.json"
        public = score | {"model": repo_id, "benchmark": data_name(score)}
        if "data" in score:
            public["data"] = score["data"] | {"source": data_name(score)}
        (folder / "scores").mkdir(parents=True, exist_ok=True)
        text = json.dumps(public, indent=2)  # in ASCII: nothing in it is invisible
        (folder / file).write_text(text + "\n", encoding="utf-8")
        files.append(file)
    return files


def _dims(config) -> list[int]:
    return sorted({config.projection_dim, *config.matryoshka_dims}, reverse=True)


def _architecture(model: WavLinkModel, extractor) -> list[list[str]]:
    config = model.config
    if config.audio_config.model_type == "clap_audio_model":
        audio = f"HTS-AT of CLAP, width {config.audio_config.hidden_size}, without a global token"
        length = f"in windows of {extractor.max_length_s} s, whose vectors are averaged"
    elif config.audio_config.model_type == "passt":
        sizes = f"width {config.audio_config.hidden_size}, {config.audio_config.num_hidden_layers} layers"
        audio = f"PaSST, {sizes}, the mean of its class and its distillation token"
        window = f"{extractor.window_seconds:g} s"
        length = f"at its own length, over {window} in windows of {window}, whose vectors are averaged"
    else:
        pooled = {
            "token": "one learned global token",
            "mean": "the mean of its frames",
            "token_mean": "one learned global token plus the mean of its frames",
        }
        sizes = f"width {config.audio_config.d_model}, {config.audio_config.encoder_layers} layers"
        audio = f"Whisper encoder, {sizes}, {pooled[config.pooling]}"
        length = "at its own length" if extractor.padding == "longest" else "padded to 30 s, the silence included"
    text = f"{escape(config.text_config.model_type)}, width {config.text_config.hidden_size}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        ["audio tower", audio],
        ["text tower", text],
        ["parameters", f"{parameters / 1e6:.1f}M"],
        ["loss", f"{config.loss_type}, the mean over the nested dims"],
        [
            "a clip is encoded",
            f"{length}; {extractor.sampling_rate // 1000} kHz mono, up to {extractor.chunk_length} s",
        ],
    ]


def _result(folder: Path, score: dict, file: str) -> dict:
    """Return the section of a benchmark."""
    retrieval, others, groups = retrieval_rows(score), other_rows(score), group_rows(score)
    calibrated, changed = calibration_rows(score), robustness_rows(score)
    both = [f"{words} R@10" for words in DIRECTIONS.values()]
    changes = [column for title in both for column in (title, "difference")]
    tables = [
        Table(["direction", "dims", *RANKED, "median rank"], retrieval).markdown() if retrieval else "",
        Table(["task", "dims", "accuracy", "chance"], others).markdown() if others else "",
        Table(["group", *both, "zero-shot"], groups).markdown() if groups else "",
        Table(["dims", *CALIBRATION_TITLES.values()], calibrated).markdown() if calibrated else "",
        Table(["changed sounds or queries", *changes], changed).markdown() if changed else "",
    ]
    known = hub_data(score)
    name = escape(data_name(score))
    return {
        "title": f"{name}, {escape(score['split'])}",
        "facts": _facts(score),
        "data": f"[{name}](https://huggingface.co/datasets/{known})" if known else f"{name} (local data)",
        "file": file,
        "tables": [part for part in tables if part],
        "plots": _draw_scores(folder, score, Path(file).stem),
    }


def _facts(score: dict) -> str:
    facts = [f"{score['clips']:d} clips, {score['captions']:d} captions"]
    if unreadable := score.get("unreadable", {}).get("count"):
        facts.append(f"unreadable and left out: {unreadable:d}")
    if windowed := score.get("windowed"):
        facts.append(f"longer than one input, so encoded in windows: {windowed:d}")
    if prompt := score.get("zero_shot", {}).get("prompt"):
        facts.append(f"prompt of the labels: “{escape(prompt)}”")
    if prompts := score.get("zero_shot", {}).get("prompts"):
        facts.append("prompts of the labels, averaged: " + ", ".join(f"“{escape(prompt)}”" for prompt in prompts))
    if kind := score.get("calibration", {}).get("calibration"):
        facts.append(f"probabilities of matches: {_CALIBRATIONS[kind]}")
    return "; ".join(facts)


def _draw_scores(folder: Path, score: dict, stem: str) -> list[list[str]]:
    plots = []
    if all(widths(score.get(way, {})) for way in DIRECTIONS):
        ways = {way: {dim: score[way][dim] for dim in widths(score[way])} for way in DIRECTIONS}
        draw_dims({data_name(score).replace("$", r"\$"): ways}, folder / f"pictures/{stem}.recall.png")
        plots.append(["Recall by the dims kept", f"pictures/{stem}.recall.png"])
    if confusion := score.get("zero_shot", {}).get("confusion"):
        draw_confusion(confusion, folder / f"pictures/{stem}.confusion.png", most=_CONFUSED_LABELS)
        plots.append(["Which labels are taken for which", f"pictures/{stem}.confusion.png"])
    return plots


def _nested(config, scores: Sequence[dict], files: Sequence[str]) -> dict:
    """Return the table of bytes of each nested dim; if recall was measured, of two dims with the change in recall.

    The recall itself is in the results alone.
    """
    header, dims = ["dims", "bytes a vector (fp32)"], _dims(config)
    measured = ((score, file) for score, file in zip(scores, files, strict=True) if "difference" in score)
    score, file = next(measured, (None, ""))
    if score is None:
        return {"table": Table(header, [[str(dim), str(4 * dim)] for dim in dims]).markdown(), "file": ""}
    difference = score["difference"]
    smallest, largest = difference["dims"]
    changes = {
        f"{words} {name}, change": percent(difference[way][name], signed=True)
        for way, words in DIRECTIONS.items()
        for name in ("R@1", "R@10")
    }
    rows = [[str(largest), str(4 * largest), *("" for _ in changes)]]
    rows.append([str(smallest), str(4 * smallest), *changes.values()])
    header += changes
    return {"table": Table(header, rows).markdown(), "file": file, "data": escape(data_name(score)), "from": largest}


def _calibration(config) -> dict | None:
    """Return what the card says of the model's calibration."""
    saved = config.match_calibration
    if saved is None:
        return None
    fits = sorted(saved["dims"].items(), key=lambda item: -int(item[0]))
    rows = [[dim, f"{fit['slope']:g}", f"{fit['intercept']:g}"] for dim, fit in fits]
    data = escape(without_paths(saved.get("data", ""))) or "data that is not on record"
    return {
        "table": Table(["dims", "slope", "intercept"], rows).markdown(),
        "prior": f"{saved['prior']:g}",
        "data": data,
    }


def _stages(folder: Path, stages: list[training.Stage], shipped: list[str], start: str = "") -> list[dict]:
    """Return the section of each training stage: its recipe, plots and files. `start` names a bundled model."""
    sections = []
    for number, stage in enumerate(stages):
        before = stages[number - 1] if number else None
        files = [name for name in shipped if len(stages) == 1 or f"/stage{number + 1}/" in name]
        stem = f"stage{number + 1}." if len(stages) > 1 else ""
        sections.append(
            {
                "table": Table(["", ""], training.rows(stage, before, start)).markdown(),
                "files": files,
                "plots": _draw_training(folder, stage, stem),
                "hours": escape(training.hours(stage)),
                "machine": escape(training.machine(stage)),
            }
        )
    return sections


def _draw_training(folder: Path, stage: training.Stage, stem: str) -> list[list[str]]:
    plots = []
    if any("loss" in line for line in stage.metrics):
        draw_loss(stage.metrics, folder / f"pictures/{stem}loss.png")
        plots.append(["Loss and scale by step", f"pictures/{stem}loss.png"])
    if any(line.get("validation", {}).get(way) for line in stage.metrics for way in DIRECTIONS):
        draw_recall(stage.metrics, folder / f"pictures/{stem}recall.png")
        plots.append(["Recall on the validation split by step", f"pictures/{stem}recall.png"])
    return plots


def paper_size(config: WavLinkConfig) -> str | None:
    """Return the paper's size with this architecture, if any."""
    if config.audio_config.model_type != "whisper" or config.text_config.model_type != "clip_text_model":
        return None
    shape = _shape(config)
    return next((size for size in SIZES if _shape(WavLinkConfig.for_size(size)) == shape), None)


def _shape(config) -> tuple:
    audio, text = config.audio_config, config.text_config
    return (audio.d_model, audio.encoder_layers, text.hidden_size, text.num_hidden_layers, config.pooling)


def _paper(size: str | None) -> dict | None:
    """Return the figures that the paper reports for a size."""
    if size is None:
        return None
    full, eighth = PAPER_RETRIEVAL[size]
    rows = [[str(full), *PAPER_RETRIEVAL[size][full]], [f"{eighth}, change", *PAPER_RETRIEVAL[size][eighth]]]
    zero_shot = dict(zip(("VGGSound", "UrbanSound8K", "ESC-50"), PAPER_ZERO_SHOT[size], strict=True))
    return {
        "size": size.capitalize(),
        "table": Table(["dims", *PAPER_COLUMNS], rows).markdown(),
        "zero_shot": ", ".join(f"{name} {value}" for name, value in zero_shot.items()),
    }


def _licences(
    licence: str | None,
    untrained: str | None,
    stages: list[training.Stage],
    sources: Sequence[tuple[str, str]],
    origin: Origin | None,
) -> str:
    """Return the table of licences: of the weights, of each tower and training set, and of further `sources`."""
    rows = [["these weights", escape(licence) if licence else "not stated: the rows below decide what is possible"]]
    data = card_data("", (), stages, None, untrained, origin.base_models() if origin else ())
    if origin:
        what = f"{'the weights of' if origin.same_weights else 'started from'} {escape(origin.title)}"
        rows.append([what, escape(origin.licence()) or "see its card"])
    rows += [[_model_link(name), TOWER_LICENCES.get(name, "see its card")] for name in data.base_model or ()]
    if stages and not (origin and stages[0].recipe.get("init")):
        local = [tower for tower in stages[0].towers() if not stages[0].hub_id(tower)]
        rows += [[f"started from {escape(stages[0].name(tower))}", "see where it was published"] for tower in local]
    data_sets = {source: stage for stage in stages for source in stage.data()}
    for source, stage in data_sets.items():
        name, known = escape(stage.name(source)), stage.hub_id(source)
        url = f"https://huggingface.co/datasets/{known}" if known else DATA[source].url if source in DATA else ""
        words = DATA[source].licence if source in DATA else "see its card" if known else "not published with this card"
        rows.append([f"data: [{name}]({url})" if url else f"data: {name}", words])
    rows += [[escape(what), escape(words)] for what, words in sources]
    return Table(["what", "licence"], rows).markdown()


def _model_link(name: str) -> str:
    return f"started from [{escape(name)}](https://huggingface.co/{name})"
