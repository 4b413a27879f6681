"""The card: every figure is in a JSON beside it, every snippet runs, nothing of the machine leaks."""

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from transformers import ClapFeatureExtractor

from hub_cards import card as card_module
from hub_cards.card import paper_size, write_card
from hub_cards.metadata import data_name, hub_data
from hub_cards.published_facts import BENCHMARK_IDS, DATA, PAPER_RETRIEVAL, SIZES, towers_of
from hub_cards.training import hours, stages
from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing import WavLinkProcessor
from processing.datasets import benchmarks as benchmark_data
from processing.datasets import paper as paper_data
from processing.datasets.air_bench import AIR_BENCH
from processing.datasets.caption_tables import CAPTION_FILES
from tests.conftest import RATE, tone
from tests.htsat_models import whole_clap
from tests.processes import run_process
from wavlink.sanitize import clean, escape, without_paths
from wavlink.training.recipes import RECIPES, get_recipe

REPO = "user/wavlink-test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "/home/jo doe/secret place"  # a user name and a space


def figure(value: float) -> dict:
    return {"value": value, "interval": [value - 0.0512, value + 0.0613]}


def score(**changes) -> dict:
    """What an evaluation writes, of three labels and two dims, each figure different from every other."""
    values = iter(np.linspace(0.0707, 0.9111, 61).tolist())
    names = ("R@1", "R@5", "R@10", "mAP@10")
    retrieval = {
        way: {dim: {name: figure(next(values)) for name in names} for dim in ("32", "4")}
        for way in ("text_to_audio", "audio_to_text")
    }
    for way in retrieval.values():
        for rank, dim in enumerate(way.values(), 3):
            dim["median_rank"] = {"value": rank, "interval": [2, 5]}
    groups = {"music": {way: {"R@10": figure(next(values))} for way in retrieval}}
    zero_shot = {"labels": 3, "chance": 1 / 3, "prompt": "This is a sound of {}."}
    zero_shot |= {
        d: {"accuracy": figure(next(values)), "groups": {"music": figure(next(values))}} for d in ("32", "4")
    }
    zero_shot["confusion"] = {"labels": ["dog", "cat", "$rain$"], "counts": [[0, 0, 3], [1, 2, 1], [2, 2, 2]]}
    return {
        "model": f"{SECRET}/best",
        "benchmark": f"{SECRET}/my_sounds",
        "split": "test",
        "data": {"source": f"{SECRET}/my_sounds", "revision": None},
        "clips": 7,
        "captions": 9,
        "unreadable": {"count": 1, "clips": {f"{SECRET}/x.wav": f"Error opening '{SECRET}/x.wav': no such file"}},
        **retrieval,
        "chance": {way: {f"R@{k}": k / 77 for k in (1, 5, 10)} for way in retrieval},
        "difference": {"dims": [4, 32], **{way: {n: figure(-next(values)) for n in names} for way in retrieval}},
        "groups": groups,
        "zero_shot": zero_shot,
        "multiple_choice": {"questions": 5, "chance": 0.25, "32": {"total": figure(next(values))}},
    } | changes


def write_run(folder: Path, recipe: dict, on_disk=None, seconds=(3600, 900)) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    start = {"step": 0, "command": ["train.py", SECRET], "python": "3.11.7", "packages": {"torch": "2.13.0"}}
    start |= {
        "platform": "jo-doe-laptop",
        "processor": "x86_64",
        "cpus": 4,
        "threads": 2,
        "devices": [],
        "processes": 1,
    }
    start |= {} if on_disk is None else {"on_disk": on_disk}
    lines = [line for spent in seconds for line in (start, {"step": 3, "seconds": spent})]
    (folder / "environment.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recalls = {
        way: {d: {f"R@{k}": figure(0.1) for k in (1, 5, 10)} for d in ("32", "4")}
        for way in ("text_to_audio", "audio_to_text")
    }
    unreadable = {"count": 1, "clips": {"x": f"{SECRET}/x.wav"}}
    metrics = [{"step": step, "loss": 1 / step, "scale": 14.0} for step in (1, 2, 3)]
    metrics.append({"step": 3, "validation": recalls | {"unreadable": unreadable}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def recipe_of(made_by: str, **changes) -> dict:
    return json.loads(json.dumps(vars(get_recipe(made_by)) | changes))


@pytest.fixture
def no_drawing(monkeypatch):
    """Empty files for pictures, which take longer than all else."""
    for name in ("draw_dims", "draw_confusion", "draw_loss", "draw_recall"):
        monkeypatch.setattr(card_module, name, lambda _, path, **options: path.touch())


@pytest.fixture
def write(model, processor, tmp_path, no_drawing):
    """Writes a card of the tiny model and returns it with its folder."""

    def write(**options) -> tuple[ModelCard, Path]:
        folder = tmp_path / "card"
        shutil.rmtree(folder, ignore_errors=True)
        write_card(folder, model, processor.feature_extractor, REPO, **options)
        return ModelCard.load(folder / "README.md"), folder

    return write


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}")[2].partition("\n## ")[0]


def figures_of(value, signed=False) -> set[str]:
    """Every number of a JSON as a card prints it."""
    if isinstance(value, dict | list):
        return set().union(*map(figures_of, value.values() if isinstance(value, dict) else value))
    if isinstance(value, bool | str) or value is None:
        return set()
    return {f"{100 * value:.1f}", f"{100 * value:+.1f}", f"{value:g}"}


def test_every_figure_of_results_and_dims_is_in_the_json_beside_it(write):
    card, folder = write(scores=[score()], score_files=["mine.json"])
    shipped = json.loads((folder / "scores/mine.json").read_text())
    allowed = figures_of(shipped) | {"32", "4", "95"}
    for title in ("Results", "Nested dims"):
        part = section(card.text, title)
        assert "[scores/mine.json](scores/mine.json)" in part
        rows = [line for line in part.splitlines() if line.startswith("|")]
        told = {x for row in rows for x in re.findall(r"(?<![@\w.])[+-]?\d+(?:\.\d+)?(?![\w@])", row)}
        told -= {"16", "8", "128", "64", "10"} if title == "Nested dims" else set()  # dims, bytes, R@10
        assert told <= allowed and len(told) > 10, told - allowed
    assert "| 4 | 16 | " in section(card.text, "Nested dims")
    assert "| 32 | 128 | " in section(card.text, "Nested dims")
    assert "7 clips, 9 captions; unreadable and left out: 1" in card.text


def test_probabilities_of_matches_are_those_of_the_config_and_of_the_json(write, model):
    text = write()[0].text
    assert "Does anything match?" not in text and "have not been calibrated" in text
    fit = {"slope": 31.25, "intercept": -11.5}
    model.config.match_calibration = {"prior": 0.02, "data": "my_sounds, validation", "pairs": 9, "dims": {"32": fit}}
    values = {name: figure(0.3 + n / 7) for n, name in enumerate(("auroc", "pairs_auroc", "false_alarm_rate", "ece"))}
    part = {"calibration": "model", "prior": 0.02, "texts": 9, "32": values, "16": values, "4": values}
    card, folder = write(scores=[score(calibration=part)], score_files=["mine.json"])
    matches, results = section(card.text, "Does anything match?"), section(card.text, "Results")
    assert (
        "| 32 | 31.25 | -11.5 |" in matches and "0.02 of all pairs" in matches and "my_sounds, validation" in matches
    )
    assert "probabilities of matches: by the model's calibration" in results
    cells = ["30.0 [24.9, 36.1]", "44.3 [39.2, 50.4]", "72.9 [67.7, 79.0]", "58.6 [53.5, 64.7]", ""]
    for dim in (32, 4):  # and not 16, which is in the file
        assert f"| {dim} | {' | '.join(cells)} |" in results
    assert results.count("30.0 [24.9, 36.1]") == 2
    assert "do not depend on the other texts" in card.text
    assert json.loads((folder / "scores/mine.json").read_text())["calibration"] == part


def robustness(**falls) -> dict:
    """What `wavlink eval --robustness` writes, of two changes."""
    values = iter(np.linspace(0.1234, 0.8765, 16).tolist())

    def row() -> dict:
        ways = ("text_to_audio", "audio_to_text")
        return {
            way: {"queries": 9, **{name: figure(next(values)) for name in ("unchanged", "changed", "difference")}}
            for way in ways
        }

    excluded = {"lower": figure(0.0321), "top": {name: figure(next(values)) for name in ("unchanged", "changed")}}
    changes = {"noise at 0 dB": row(), "X <b>without</b> Y": row() | {"excluded": excluded}}
    return {"dims": 32, "k": 10, "limit": 0.05, "seed": 0, "changes": changes, "falls": falls}


def test_changed_sounds_and_queries_are_in_results_and_falls_in_the_limits(write):
    falls = {"noise at 0 dB": {"text_to_audio": -0.2468, "audio_to_text": -0.1357}}
    part = robustness(**falls)
    card, folder = write(scores=[score(robustness=part)], score_files=["mine.json"])
    results, limits = section(card.text, "Results"), section(card.text, "Limits")
    row = part["changes"]["noise at 0 dB"]["text_to_audio"]
    low, high = (f"{100 * bound:+.1f}" for bound in row["difference"]["interval"])
    change = f"{100 * row['difference']['value']:+.1f} [{low}, {high}]"
    assert f"| noise at 0 dB | {100 * row['changed']['value']:.1f} | {change} |" in results
    assert "with: noise at 0 dB (text → audio -24.7, audio → text -13.6)." in limits
    assert "3.2 [-1.9, 9.3] % of the queries" in limits and "<b>" not in card.text
    assert json.loads((folder / "scores/mine.json").read_text())["robustness"] == part


def test_a_model_that_no_change_costs_recall_says_so_and_one_unmeasured_says_nothing(write):
    calm = write(scores=[score(robustness=robustness())], score_files=["mine.json"])[0].text
    assert "On my_sounds, R@10 falls by more than 5 points with none of the changed" in calm
    assert "falls by more than" not in write(scores=[score()], score_files=["mine.json"])[0].text


def test_a_nested_dim_costs_what_the_difference_says(write):
    mine = score()
    mine["difference"]["text_to_audio"]["R@10"] = {"value": -0.0123, "interval": [-0.02, 0.0314]}
    row = next(x for x in section(write(scores=[mine])[0].text, "Nested dims").splitlines() if x.startswith("| 4 |"))
    assert row.split(" | ")[3] == "-1.2 [-2.0, +3.1]"
    dims = section(write()[0].text, "Nested dims")
    assert "| 8 | 32 |" in dims and "%" not in dims and "has not been measured" in dims


def test_recall_is_in_one_table_and_at_the_full_and_smallest_dim_alone(write):
    mine = score()
    for way in ("text_to_audio", "audio_to_text"):
        mine[way]["16"] = {name: figure(0.5) for name in ("R@1", "R@5", "R@10", "mAP@10")}
        mine[way]["16"]["median_rank"] = {"value": 3, "interval": [2, 5]}
    mine["zero_shot"]["16"] = mine["zero_shot"]["4"]
    card, folder = write(scores=[mine], score_files=["mine.json"])
    results, nested = section(card.text, "Results"), section(card.text, "Nested dims")
    assert re.findall(r"\| text → audio \| (\w+)", results) == ["32", "4", "chance"]
    assert re.findall(r"\| zero-shot, 3 labels \| (\w+)", results) == ["32", "4"]
    assert re.findall(r"^\| (\d+) ", nested, re.MULTILINE) == ["32", "4"]
    for way in ("text_to_audio", "audio_to_text"):
        for dim in ("32", "4"):
            told = f"| {100 * mine[way][dim]['R@10']['value']:.1f} ["
            assert told in results and told not in nested
    assert "16" in json.loads((folder / "scores/mine.json").read_text())["text_to_audio"]  # and all dims in the file


def test_without_the_json_there_is_no_section_and_no_metadata(write):
    with_one, _ = write(scores=[score()], score_files=["mine.json"])
    without, folder = write()
    assert "## Results" in with_one.text and with_one.data.eval_results
    assert "## Results" not in without.text and without.data.eval_results is None
    assert not (folder / "scores").exists() and not (folder / "pictures").exists()
    assert not re.search(r"\d\.\d \[", without.text)


def test_nothing_of_this_machine_is_published(write, tmp_path):
    paths = dict.fromkeys(("data", "audio_folder", "validation_data", "init", "audio_model", "text_model"), SECRET)
    recipe = recipe_of("sounds", **paths, mixture={f"{SECRET}/a": 1.0, "~/b/c": 2.0, "C:\\Users\\jo doe\\d": 3.0})
    recipe |= {"output_dir": f"{SECRET}/runs", "label_prompt": f"{SECRET} {{}}", "train_split": f"{SECRET}/train"}
    run = write_run(tmp_path / "run", recipe, on_disk=[SECRET])
    card, folder = write(scores=[score()], run=run, score_files=[f"{SECRET}/mine.json"])
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert len(texts) == 5
    for text in texts:
        for leak in ("jo doe", "doe/", "/home", "Users", "laptop", "~/", str(tmp_path), "/secret"):
            assert leak not in text
    assert "my_sounds" in card.text and "a (local) × 1, c (local) × 2, d (local) × 3" in card.text
    assert json.loads((folder / "scores/mine.json").read_text())["model"] == REPO
    assert card.data.datasets is None and card.data.base_model is None and card.data.language is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/home/x/best", "best"),
        ("/home/jo doe/x.wav", "x.wav"),
        ("Error opening '/home/jo doe/x.wav': no", "Error opening 'x.wav': no"),
        ("cannot read /data/a/b.wav, nor ~/c/d.wav", "cannot read b.wav, nor d.wav"),
        ("C:\\Users\\jo\\x.wav", "x.wav"),
        ("../shared/sounds", "sounds"),
        ("/m/0dgw9r", "/m/0dgw9r"),
        ("rain and/or wind", "rain and/or wind"),
        ("OpenSound/AudioCaps", "OpenSound/AudioCaps"),
        ("https://zenodo.org/records/1", "https://zenodo.org/records/1"),
        ("This is a sound of {}.", "This is a sound of {}."),
    ],
)
def test_paths_become_their_last_names(text, expected):
    assert without_paths({"a": [text]}) == {"a": [expected]}


def test_two_paths_with_one_last_name_stay_two():
    assert without_paths({"/a/x/dog": 1, "/a/y/dog": 2}) == {"dog": 1, "dog (2)": 2}


EVIL = [
    "a|b",
    "x\n\n---\nlicense: mit",
    "<script>alert(1)</script>",
    "{{ repo_id }}{% raw %}",
    "`*[a](b)*`",
    "$\\frac$",
]
EVIL += ["\x1b[31mred\x00", "\u202egnp", "# head", "![x](http://e)", "__init__"]


def card_of(word: str, write, run: Path) -> ModelCard:
    """A card in which everything that others may name is named `word`."""
    mine = score(benchmark=word, split=word, data={"source": word})
    mine["groups"] = {word: mine["groups"]["music"]}
    mine["zero_shot"]["prompt"] = word + "{}"
    mine["zero_shot"]["confusion"]["labels"] = [word, "b", "c"]
    recipe = recipe_of("sounds", data=word, name=word, audio_model=word, text_model=word)
    return write(scores=[mine], run=write_run(run, recipe, on_disk=[]), score_files=[word], licence="mit")[0]


@pytest.mark.parametrize("text", EVIL)
def test_foreign_words_break_neither_tables_nor_yaml(text, write, tmp_path):
    card = card_of(text, write, tmp_path / "run")
    plain = card_of("plain", write, tmp_path / "plain")
    for mark in ("|", "\n#", "](", "![", "```", "\n"):
        assert card.text.count(mark) == plain.text.count(mark), mark
    assert card.data.license == "mit" and len(card.data.eval_results) == len(plain.data.eval_results)
    assert list(card.data.to_dict()) == list(plain.data.to_dict())
    names = {x.dataset_name for x in card.data.eval_results}
    assert all(name == clean(name) for name in names) and len(names) == 1
    assert not set(card.content) & set("\x1b\x00\u202e") and "<script" not in card.text and "{{" not in card.text


def test_words_without_markup_stay_as_they_are():
    assert escape("my_sounds, 3 dogs (loud); Größe “x” → 日本") == "my_sounds, 3 dogs (loud); Größe “x” → 日本"
    assert escape("a|<b>") == "a&#124;&#60;b&#62;" and escape("_x_") == "&#95;x&#95;"
    assert escape("a sound of {}, {x}") == "a sound of {}, {x}"
    for marks in ("{{ x }}", "{% x %}", "{# x #}", "{{{x}}}"):
        assert not re.search(r"{[{%#]|[%#}]}", escape(marks))


def test_the_card_shows_the_prompt_as_it_is(write):
    assert "prompt of the labels: “This is a sound of {}.”" in write(scores=[score()])[0].text


def test_model_index_comes_back_as_it_was_measured(write):
    first, second = score(), score(benchmark="audiocaps", data={"source": "audiocaps", "revision": COMMIT})
    other = score(benchmark="other", data={"source": "other"})
    card, folder = write(scores=[first, second, other])
    index = metadata_load(folder / "README.md")["model-index"]
    assert [entry["name"] for entry in index] == ["wavlink-test"]
    names = [result["dataset"]["name"] for result in index[0]["results"]]
    assert sorted(set(names)) == ["OpenSound/AudioCaps", "my_sounds", "other"] and len(names) == 9
    found = {(x.dataset_type, x.dataset_name, x.metric_type, x.metric_args["dims"]): x for x in card.data.eval_results}
    assert len(found) == len(card.data.eval_results) == 3 * 15
    result = found["audiofolder", "my_sounds", "text_to_audio_recall_at_10", 4]
    assert result.metric_value == round(100 * first["text_to_audio"]["4"]["R@10"]["value"], 1)
    assert result.metric_name == "text → audio R@10, 4 dims (%)" and result.dataset_split == "test"
    hub = found["OpenSound/AudioCaps", "OpenSound/AudioCaps", "zero_shot_accuracy", 32]
    assert hub.dataset_revision == COMMIT and hub.dataset_config is None
    assert yaml.safe_load(ModelCard(card.content).data.to_yaml())["model-index"] == index


def test_eval_results_are_of_hub_data_alone(write):
    hub = score(benchmark="esc50", data={"source": "esc50", "revision": COMMIT}, split="train")
    _, folder = write(scores=[score(), hub], score_files=["a.json", "b.json"])
    (path,) = (folder / ".eval_results").iterdir()
    assert path.name == "mteb--esc50.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert len(entries) == len({entry.task_id for entry in entries}) == 8
    entry = next(x for x in entries if x.task_id == "zero_shot_accuracy_train")
    accuracy = hub["zero_shot"]["32"]["accuracy"]
    assert entry.value == round(100 * accuracy["value"], 1) and entry.dataset_id == "mteb/esc50"
    assert entry.dataset_revision == COMMIT and "at 32 dims" in entry.notes and "percent" in entry.notes
    assert entry.source_url == f"https://huggingface.co/{REPO}/blob/main/scores/b.json"
    _, folder = write(scores=[score()])
    assert not (folder / ".eval_results").exists()


def test_an_earlier_cards_results_are_not_published_again(model, processor, tmp_path, no_drawing):
    hub = score(benchmark="esc50", data={"source": "esc50"})
    for scores in ([hub], []):
        write_card(tmp_path, model, processor.feature_extractor, REPO, scores=scores)
    assert not list((tmp_path / ".eval_results").iterdir())


@pytest.mark.parametrize(
    "benchmark, data, known, name",
    [
        ("audiocaps", {"source": "audiocaps"}, "OpenSound/AudioCaps", "OpenSound/AudioCaps"),
        ("audiocaps", {"source": "/copies/AudioCaps", "revision": None}, None, "audiocaps (a local copy)"),
        ("owner/name", {"source": "owner/name", "revision": COMMIT}, "owner/name", "owner/name"),
        ("owner/name", {"source": "owner/name", "revision": None}, None, "name"),
        ("synthetic", {"source": "synthetic", "revision": None}, None, "synthetic"),
    ],
)
def test_a_folder_is_no_data_set_of_the_hub(benchmark, data, known, name):
    mine = {"benchmark": benchmark, "data": data}
    assert (hub_data(mine), data_name(mine)) == (known, name)


def test_known_ids_are_those_the_loaders_use():
    labelled = {name: data.hub for name, data in benchmark_data._LABELLED.items()}
    captioned = {"audiocaps": paper_data._AUDIOCAPS, "clotho": paper_data._CLOTHO["test"]}
    assert BENCHMARK_IDS == {**captioned, **labelled, "airbench": AIR_BENCH}
    assert DATA["audiocaps"].hub == paper_data._AUDIOCAPS
    assert {name: DATA[name].hub for name in CAPTION_FILES} == {name: row[0] for name, row in CAPTION_FILES.items()}
    assert set(DATA) == {*paper_data.NAMES, "synthetic"}


def test_the_papers_figures_are_those_of_the_recipes():
    for size in SIZES:
        doc = re.sub(r"\s+", " ", RECIPES[f"{size}_stage2"].__doc__)
        (full, *_) = PAPER_RETRIEVAL[size].values()
        assert all(figures.replace(" ", "") in doc for figures in full)
        assert WavLinkConfig.for_size(size).matryoshka_dims[::3] == list(PAPER_RETRIEVAL[size])
        assert paper_size(WavLinkConfig.for_size(size)) == size


@pytest.mark.parametrize("size", SIZES)
def test_an_untrained_size_says_so_first_and_shows_only_the_papers_figures(size, processor, tmp_path):
    with torch.device("meta"):
        model = WavLinkModel(WavLinkConfig.for_size(size))
    write_card(tmp_path, model, processor.feature_extractor, REPO, untrained=size, licence="other")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.strip().splitlines()[2].startswith("**Not trained.**")
    assert card.data.base_model == list(towers_of(size)) and card.data.license == "other"
    own, _, rest = card.text.partition("## Reported by the paper (not measured here)")
    paper = rest.partition("\n## ")[0]
    assert PAPER_RETRIEVAL[size][WavLinkConfig.for_size(size).projection_dim][0] in paper
    assert not re.search(r"R@\d+ \d|\d\d\.\d \[|\d / \d", own) and not re.search(
        r"\d\d\.\d / ", rest.removeprefix(paper)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_both_stages_of_a_paper_run_are_told(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/base_stage1", recipe_of("base_stage1"), on_disk=[])
    run = write_run(tmp_path / "runs/base_stage2", recipe_of("base_stage2"), on_disk=["runs/base_stage1/best"])
    card, folder = write(run=run)
    assert card.data.base_model == list(towers_of("base")) and card.data.language == "en"
    assert card.data.datasets == ["Loie/Auto-ACD", "baijs/AudioSetCaps", "OpenSound/AudioCaps"]
    assert "### Stage 1" in card.text and "the stage before" in card.text
    assert "audiocaps" not in section(card.text, "Training").partition("### Stage 2")[0].lower().replace(
        "audiosetcaps", ""
    )
    assert (folder / "training/stage1/recipe.json").exists() and "stage2.loss.png" in card.text
    shutil.rmtree(tmp_path / "runs/base_stage1")
    card, _ = write(run=run)
    assert card.data.base_model is None and "whose own training is not known here" in card.text


def test_ids_are_believed_only_where_they_are_ids(write, tmp_path):
    ids = {"data": "me/data", "audio_model": "openai/whisper-tiny.en", "text_model": "me/text"}
    recipe = recipe_of("sounds", **ids)
    card, _ = write(run=write_run(tmp_path / "a", recipe, on_disk=[]))
    assert card.data.datasets == ["me/data"] and card.data.base_model == ["openai/whisper-tiny.en", "me/text"]
    card, _ = write(run=write_run(tmp_path / "b", recipe, on_disk=["me/data", "me/text"]))
    assert card.data.datasets is None and card.data.base_model == ["openai/whisper-tiny.en"]
    card, _ = write(run=write_run(tmp_path / "c", recipe))  # a run that noted nothing: only what is well known
    assert card.data.datasets is None and card.data.base_model == ["openai/whisper-tiny.en"]
    begun = recipe_of("sounds", **ids, init="me/wavlink")  # then the recipe's towers are not used
    card, _ = write(run=write_run(tmp_path / "d", begun, on_disk=[]))
    assert card.data.base_model == ["me/wavlink"]


@pytest.mark.parametrize("seconds, words", [((3600, 900), "1.25 hours"), ((), "the hours are not on record")])
def test_the_environment_is_told_where_it_is_known(seconds, words, write, tmp_path):
    card, _ = write(run=write_run(tmp_path / "run", recipe_of("sounds"), seconds=seconds))
    told = section(card.text, "Training").partition("### Environment")[2]
    assert words in told and "at least" not in told and ("4 CPU cores (x86_64), no GPU" in told) == bool(seconds)


def test_a_killed_start_makes_the_hours_a_lower_bound(tmp_path):
    run = write_run(tmp_path / "run", recipe_of("sounds"))
    lines = (run / "environment.jsonl").read_text().splitlines(keepends=True)
    (run / "environment.jsonl").write_text("".join([lines[0], *lines]))
    assert hours(stages(run)[0]) == "at least 1.25 hours"


def test_pictures_are_there_and_small(model, processor, tmp_path):
    labels = [f"a rather long label of some sound, number {i:04}" for i in range(309)]
    mine = score(benchmark="$\\frac$", data={"source": "$\\frac$"})
    mine["zero_shot"]["confusion"] = {"labels": labels, "counts": [[i, (i * 7) % 309, 3] for i in range(309)]}
    options = {"scores": [mine, score()], "run": write_run(tmp_path / "run", recipe_of("sounds"))}
    folder = tmp_path / "card"
    write_card(folder, model, processor.feature_extractor, REPO, **options)
    text = (folder / "README.md").read_text()
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(links) == 6 == len(set(links))
    for link in links:
        content = (folder / link).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 300_000
    linked = set(re.findall(r"\]\(((?:scores|training)/[^)]+)\)", text))
    written = {str(path.relative_to(folder)) for path in folder.rglob("*.json*")}
    assert linked == written and len(written) == 5


def test_an_htsat_is_described_as_one(bert_folder, tmp_path):
    torch.manual_seed(0)
    whole_clap().save_pretrained(tmp_path / "clap")
    rate = {"sampling_rate": 48000, "max_length_s": 2}
    ClapFeatureExtractor(16, **rate, truncation="rand_trunc").save_pretrained(tmp_path / "clap")
    towers = str(tmp_path / "clap"), str(bert_folder)
    model = WavLinkModel.from_audio_text_pretrained(*towers)
    extractor = WavLinkProcessor.from_audio_text_pretrained(*towers).feature_extractor
    write_card(tmp_path / "card", model, extractor, REPO)
    text = (tmp_path / "card/README.md").read_text()
    width = model.config.audio_config.hidden_size
    assert f"HTS-AT of CLAP, width {width}, without a global token" in text and "48 kHz mono" in text
    assert "in windows of 2 s" in text and "sampling_rate=48000" in text and "Reported by the paper" not in text


@pytest.mark.parametrize("options", [{"untrained": "huge"}, {"scores": [{}, {}], "score_files": ["one.json"]}])
def test_what_cannot_be_is_refused(options, write):
    with pytest.raises(ValueError, match="must be one of base|as many file names"):
        write(**options)


VALIDATE = """
import sys
from huggingface_hub import ModelCard
for path in sys.argv[1:] or {paths!r}:
    card = ModelCard.load(path)
    card.validate()
    assert ModelCard(card.content).data.to_dict() == card.data.to_dict()
try:
    ModelCard("no metadata").validate()
except Exception as error:
    print(type(error).__name__)
"""


def test_the_hubs_validation_takes_the_card(hub, write, tmp_path):
    _, folder = write(scores=[score()], run=write_run(tmp_path / "run", recipe_of("sounds")), licence="apache-2.0")
    code = VALIDATE.replace("{paths!r}", repr([str(folder / "README.md")]))
    hub.run(code, tmp_path / "home")
    assert hub.requests.count(("POST", "/api/validate-yaml")) >= 1


def test_shipped_code_does_what_the_card_says_of_it():
    """It could reach no network if it wanted to; files are opened by what reads a sound that the caller names, and by
    what starts from another's towers."""
    root = Path(__file__).parents[2]
    for path in [*(root / "modeling_wavlink").glob("*_wavlink.py"), *(root / "processing").glob("*_wavlink.py")]:
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        harmless = {
            "collections",
            "copy",
            "dataclasses",
            "functools",
            "inspect",
            "json",
            "math",
            "re",
            "sys",
            "typing",
            "weakref",
        }
        harmless |= {"io", "numbers", "os", "soundfile", "soxr"} if path.name == "audio_inputs_wavlink.py" else set()
        assert {name.split(".")[0] for name in names} <= harmless | {"numpy", "torch", "transformers"}
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            calls = {
                node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and hasattr(node.func, "id")
            }
            allowed = {"open"} if function.name in ("_json", "read_file") else set()
            assert not calls & {"open", "exec", "eval", "__import__"} - allowed


def snippets_of(folder: Path) -> list[str]:
    """The Python of the card in a folder."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_every_snippet_names_the_repository_and_imports_what_exists(write):
    _, folder = write()
    snippets = snippets_of(folder)
    assert snippets and all(f'"{REPO}"' in snippet for snippet in snippets)
    for statement in (node for snippet in snippets for node in ast.walk(ast.parse(snippet))):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            exec(ast.unparse(statement), {})


GUARD = """
import sys
sys.path = [path for path in sys.path if path]
sys.modules.update(dict.fromkeys(("modeling_wavlink", "processing", "hub_cards", "wavlink", "train")))
def refuse(event, arguments):
    if event == "socket.connect":
        raise RuntimeError(f"a connection to {arguments[1]}")
sys.addaudithook(refuse)
"""


@pytest.mark.slow
def test_every_snippet_runs_in_a_clean_environment(wavlink_folder, model, processor, tmp_path):
    write_card(wavlink_folder, model, processor.feature_extractor, REPO)
    snippets = snippets_of(wavlink_folder)
    for name, hertz in (("dog.wav", 300), ("bell.wav", 500)):
        soundfile.write(tmp_path / name, tone(hertz, 0.4), RATE)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment |= {"ACCELERATE_USE_CPU": "true", "DISABLE_MLFLOW_INTEGRATION": "true"}
    local = [snippet.replace(REPO, str(wavlink_folder)) for snippet in snippets]
    code = GUARD + "".join(f"exec({code!r}, {{'__name__': '__main__'}})\nprint('=== ran')\n" for code in local)
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 240}
    done = run_process([sys.executable, "-c", code], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    *printed, rest = done.stdout.split("=== ran\n")
    assert len(printed) == len(snippets) and not rest
    assert all(words or "print" not in snippet for words, snippet in zip(printed, snippets, strict=True))
