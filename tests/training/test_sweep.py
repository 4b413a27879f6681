"""The sweep: configurations and seeds, resumption, and its table and figure."""

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from tests.tone_runs import folder  # noqa: F401
from wavlink import train_options
from wavlink.training import sweep
from wavlink.training.recipes import Recipe

SMALL = ["--batch_size", "4", "--max_steps", "2", "--num_workers", "0", "--mixed_precision", "no", "--seeds", "3"]
PROJECTOR = ["--only", "clip-info_nce-projector-*"]


def parse(*arguments) -> dict:
    return train_options.parse(sweep.sweep_parser(train.recipe_parser()), arguments)


@pytest.fixture(scope="module")
def small(folder, whisper_folder, clip_folder, modernbert_folder):  # noqa: F811
    """A sweep's options for tiny towers and steps."""
    towers = ["--clip", clip_folder, "--modernbert", modernbert_folder, "--audio_model", whisper_folder]
    data = ["--data", folder, "--validation_data", folder, "--padding", "longest", "--gradient_checkpointing", "false"]
    return [*map(str, [*towers, *data]), *SMALL]


@pytest.fixture
def count(monkeypatch) -> list[str]:
    """The folders of the runs that were started."""
    started, run = [], train.train

    def counted(recipe: Recipe) -> Path:
        started.append(Path(recipe.output_dir).name)
        return run(recipe)

    monkeypatch.setattr("wavlink.training.command.train", counted)
    return started


@pytest.fixture(scope="module")
def swept(small, tmp_path_factory):
    """Both scopes of projector-only, and ModernBERT with LoRA under SigLIP's loss, by the command line."""
    root = tmp_path_factory.mktemp("sweep") / "runs"
    only = ["--only", "clip-info_nce-projector-*,modernbert-sigmoid-lora-both"]
    train.main(["sweep", *small, *only, "--projection_dim", "16", "--output_dir", str(root)])
    return root


def again(swept, small, *options) -> list[str]:
    return ["sweep", *small, "--projection_dim", "16", "--output_dir", str(swept), *options]


@pytest.mark.slow
def test_a_sweep_runs_the_selected_configurations(swept):
    runs = {path.name for path in swept.iterdir() if path.is_dir()}
    names = ["clip-info_nce-projector-audio", "clip-info_nce-projector-both", "modernbert-sigmoid-lora-both"]
    assert runs == {f"{name}-seed3" for name in names}
    assert not list(swept.glob("*/checkpoints")) and len(list(swept.glob("*/best/model.safetensors"))) == 3
    rows = json.loads((swept / "sweep.json").read_text())
    assert [(row["name"], row["seed"], row["step"]) for row in rows] == [(name, 3, 2) for name in names]
    assert set(rows[0]["validation"]["text_to_audio"]) == {"16", "8", "4", "2"}
    recipes = {name: json.loads((swept / f"{name}-seed3/recipe.json").read_text()) for name in names}
    assert recipes[names[2]]["loss_type"] == "sigmoid" and recipes[names[2]]["regime"] == "lora"
    assert (swept / f"{names[2]}-seed3/last/adapter/adapter_model.safetensors").is_file()
    assert len((swept / "sweep.md").read_text().splitlines()) == 2 + 3
    with Image.open(swept / "figure1.png") as figure:
        assert figure.format == "PNG" and min(figure.size) > 200


@pytest.mark.slow
def test_projector_only_is_the_same_in_both_scopes(swept):
    audio, both = (swept / f"clip-info_nce-projector-{scope}-seed3" for scope in ("audio", "both"))
    first, second = (load_file(run / "last/model.safetensors") for run in (audio, both))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (audio / "metrics.jsonl").read_text() == (both / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_same_command_trains_nothing_and_draws_again(swept, small, count):
    before = (swept / "sweep.json").read_text(), (swept / "sweep.md").read_text()
    for name in ("sweep.json", "sweep.md", "figure1.png"):
        (swept / name).unlink()
    train.main(again(swept, small, "--only", "clip-info_nce-projector-*,modernbert-sigmoid-lora-both"))
    assert not count and (swept / "figure1.png").is_file()
    assert ((swept / "sweep.json").read_text(), (swept / "sweep.md").read_text()) == before


@pytest.mark.slow
def test_another_command_on_finished_runs_is_refused(swept, small, count):
    with pytest.raises(
        SystemExit, match=r"holds another run: max_steps was 2 and is now 5; give another --output_dir"
    ):
        train.main(again(swept, small, *PROJECTOR, "--max_steps", "5"))
    train.main(again(swept, small, *PROJECTOR, "--save_steps", "5"))  # without effect on the result
    assert not count


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(swept, small, tmp_path, monkeypatch, count):
    """Killed in the second step of the second run, it ends as the unbroken sweep did."""
    learn, steps = train.Run.learn, []

    def die(self, *arguments):
        steps.append(self.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    command = again(tmp_path, small, *PROJECTOR, "--save_steps", "1")
    with pytest.raises(KeyboardInterrupt):
        train.main(command)
    assert [row["name"] for row in json.loads((tmp_path / "sweep.json").read_text())] == [
        "clip-info_nce-projector-audio"
    ]
    train.main(command)
    runs = [f"clip-info_nce-projector-{scope}-seed3" for scope in ("audio", "both")]
    assert count == [*runs, runs[1]] and steps == [0, 1, 0, 1, 1]
    for run in runs:
        assert (tmp_path / run / "metrics.jsonl").read_text() == (swept / run / "metrics.jsonl").read_text()
    assert not list(tmp_path.glob("*/checkpoints"))


@pytest.mark.slow
def test_other_processes_write_nothing(swept, small, monkeypatch):
    """Eight processes that write one file at once lose it."""
    monkeypatch.setattr(sweep, "PartialState", lambda: type("State", (), {"is_main_process": False}))
    before = {name: (swept / name).stat().st_mtime_ns for name in ("sweep.json", "sweep.md", "figure1.png")}
    sweep.sweep(parse(*again(swept, small, *PROJECTOR)[1:]), lambda _: pytest.fail("trained"))
    assert {name: (swept / name).stat().st_mtime_ns for name in before} == before


def test_seeds_and_patterns_choose_the_runs(tmp_path):
    options = parse(
        "--only", "*-full-both", "--seeds", "0,7,07", "--clip", "a", "--modernbert", "b", "--lora_rank", "2"
    )
    results = sweep.configurations(options | {"output_dir": "out"})
    names = [f"{text}-{loss}-full-both" for text in ("clip", "modernbert") for loss in ("info_nce", "sigmoid")]
    assert [recipe.output_dir for recipe in results] == [f"out/{name}-seed{seed}" for seed in (0, 7) for name in names]
    assert [recipe.seed for recipe in results] == [0] * 4 + [7] * 4
    assert [recipe.text_model for recipe in results] == ["a", "a", "b", "b"] * 2
    assert {recipe.lora_rank for recipe in results} == {2}
    assert len(sweep.configurations(parse())) == 24
    assert sweep.configurations(parse())[0].output_dir == "runs/sweep/clip-info_nce-projector-audio-seed0"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--only", "clip-*,bert-*"], r"--only bert-\* asks for nothing; there are clip-info_nce-projector-audio, "),
        (["--seeds", "0,one"], "--seeds must be whole numbers"),
        (["--seeds", "-1"], "--seeds must be whole numbers"),
        (["--regime", "full"], "the sweep varies regime itself: choose with --only"),
        (["--text_model", "a", "--seed", "1"], "varies text_model, seed itself"),
        (["--init", "runs/a"], "varies init itself"),
        (["--batch_size", "1"], "batch_size must be at least 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(SystemExit, match=message):
        train.main(["sweep", *options])


def test_an_unknown_option_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        train.main(["sweep", "--batchsize", "8"])
    assert "did you mean --batch_size?" in capsys.readouterr().err


def test_a_configuration_that_cannot_work_is_refused_before_the_first_trains(small, tmp_path, count):
    """CLIP has q_proj, ModernBERT has not."""
    options = ["--only", "*-lora-both", "--lora_targets", "fc1,q_proj,out_proj,Wqkv", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="LoRA targets Wqkv match nothing"):
        train.main(["sweep", *small, *options])
    assert not count and not list(tmp_path.iterdir())


def row(name: str, seed: int, first: float) -> dict:
    """R@1 of `first` from text to audio and twice that back; R@10 is three times R@1, and a tenth less at 4 dims."""

    def figures(value):
        return {f"R@{k}": {"value": value * (3 if k == 10 else 1)} for k in (1, 10)}

    ways = {"text_to_audio": first, "audio_to_text": 2 * first}
    scores = {way: {"16": figures(value), "4": figures(0.9 * value)} for way, value in ways.items()}
    return {"name": name, "seed": seed, "step": 2, "validation": scores}


def test_the_table_is_sorted_and_shows_means_and_ranges():
    rows = [row("low", 0, 0.10), row("high", 0, 0.20), row("high", 1, 0.30), row("middle", 0, 0.22)]
    assert sweep.table(rows).splitlines() == [
        "| configuration | seeds | text → audio R@1 | text → audio R@10 | audio → text R@1 | audio → text R@10 "
        "| R@10 at 1/8 dims |",
        "|---|---|---|---|---|---|---|",
        "| high | 2 | 25.0 (20.0 to 30.0) | 75.0 (60.0 to 90.0) | 50.0 (40.0 to 60.0) | 150.0 (120.0 to 180.0) "
        "| 101.2 (81.0 to 121.5) |",
        "| middle | 1 | 22.0 | 66.0 | 44.0 | 132.0 | 89.1 |",
        "| low | 1 | 10.0 | 30.0 | 20.0 | 60.0 | 40.5 |",
    ]
    assert list(sweep.by_name(rows)) == ["high", "middle", "low"]


def test_the_last_validation_is_the_result(tmp_path):
    lines = [{"step": 2, "validation": {"a": 1}}, {"step": 4, "validation": {"a": 2}}, {"step": 5, "loss": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = sweep.result(Recipe("x", init="y", seed=4, output_dir=str(tmp_path)))
    assert results == {"name": "x", "seed": 4, "step": 4, "validation": {"a": 2}}


def test_a_finished_run_leaves_the_memory_before_the_next_begins(small, tmp_path):
    """A run and its Accelerator hold each other, so nothing but the collector frees a model."""
    runs = []

    class Held:
        def __init__(self):
            self.itself = self

    def fake(recipe: Recipe) -> Path:
        assert all(run() is None for run in runs)
        runs.append(weakref.ref(Held()))
        output = Path(recipe.output_dir)
        (output / "last").mkdir(parents=True)
        (output / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
        (output / "metrics.jsonl").write_text(json.dumps(row("x", 0, 0.1)) + "\n")
        return output

    gc.disable()
    try:
        sweep.sweep(parse(*small, *PROJECTOR, "--output_dir", str(tmp_path)), fake)
    finally:
        gc.enable()
    assert len(runs) == 2
