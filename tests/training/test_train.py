"""The loop: its command line, its outputs, and resumption after a kill."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

import train
from modeling_wavlink import WavLinkModel
from tests import tone_runs
from tests.conftest import RATE, tone
from tests.tone_runs import recipe
from wavlink.training.recipes import RECIPES, Recipe, get_recipe

folder = tone_runs.folder

OPTIONS = """
data mixture audio_folder streaming train_split validation_data validation_split caption_columns label_prompt init
audio_model text_model audio_config text_config projection_dim matryoshka_dims pooling frame_pooling
frame_pooling_layer token_start regime scope lora_rank lora_alpha lora_targets loss_type label_smoothing
all_captions padding max_seconds mask_false_negatives batch_size micro_batch_size epochs max_steps learning_rate
warmup_ratio weight_decay max_grad_norm mixed_precision attn_implementation gradient_checkpointing compile
num_workers save_steps checkpoints_kept trackers seed output_dir label_prompts label_share caption_bank
ema_decay cache_features head_learning_rate text_learning_rate spec_augment equalization degraded_share
""".split()


def test_the_command_line_is_frozen():
    assert sorted(OPTIONS) == sorted(field.name for field in dataclasses.fields(Recipe) if field.name != "name")


def test_every_option_is_parsed_as_its_field():
    parsed = train.parse_recipe(
        ["sounds", "--matryoshka_dims", "8,4", "--caption_columns", "a,b", "--mask_false_negatives", "false"]
        + ["--audio_config", '{"d_model": 8}', "--learning_rate", "2e-4", "--max_steps", "7"]
    )
    assert parsed.matryoshka_dims == (8, 4) and parsed.caption_columns == ("a", "b")
    assert parsed.mask_false_negatives is False and parsed.audio_config == {"d_model": 8}
    assert parsed.learning_rate == 2e-4 and parsed.max_steps == 7 and parsed.output_dir == "runs/sounds"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["quickstart", "--learning_rat", "1"], "did you mean --learning_rate?"),
        (["quickstart", "--bach_size=3"], "did you mean --batch_size?"),
        (["quickstrat"], "the recipes are quickstart, sounds"),
        (["quickstart", "--gradient_checkpointing", "maybe"], "true or false"),
        (["quickstart", "--loss_type", "triplet"], "loss_type must be one of info_nce, sigmoid"),
        (["quickstart", "--regime", "frozen"], "regime must be one of projector, lora, full"),
        (["quickstart", "--batch_size", "1"], "batch_size must be at least 2"),
        (["quickstart", "--matryoshka_dims", "256,64"], "between 1 and projection_dim=128"),
        (["quickstart", "--loss_type", "sigmoid", "--label_smoothing", "0.1"], "no softmax to smooth"),
        (["quickstart", "--mixture", '{"a": 0}'], "a weight above 0"),
        (["base_stage2", "--init", "", "--audio_model", ""], "a second stage starts from its first"),
    ],
)
def test_wrong_command_lines_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_recipe(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_frozen(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe(name).seed = 1


@pytest.mark.parametrize("loss_type", ["info_nce", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_a_run_writes_models_metrics_and_plots(folder, tmp_path, plots, loss_type):
    output = train.train(recipe(folder, tmp_path / "run", "--loss_type", loss_type))
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    validations = [record["validation"] for record in records if "validation" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]  # 14 clips, batches of 4, 2 epochs
    assert steps[0]["learning_rate"] == 0.0 and steps[1]["learning_rate"] == 1e-3  # one step of warm-up
    assert len(validations) == 2
    for way in ("text_to_audio", "audio_to_text"):
        assert set(validations[0][way]) == {"128", "64", "32", "16"}
        assert set(validations[0][way]["16"]) == {"R@1", "R@5", "R@10", "mAP@10", "median_rank"}
    assert (output / "loss.png").stat().st_size > 1000
    assert json.loads((output / "recipe.json").read_text())["batch_size"] == 4
    for name in ("best", "last"):
        model = AutoModel.from_pretrained(output / name, trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(output / name, trust_remote_code=True)
        inputs = processor(audio=tone(), text="tone number 1", sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            assert model(**inputs).audio_embeds.shape == (1, 128)
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_best_is_calibrated_and_last_is_not(folder, tmp_path, monkeypatch, plots):
    given = []
    fit = {"prior": 0.01, "data": "d", "pairs": 98, "dims": {"128": {"slope": 3.0, "intercept": -1.0}}}

    def fit_to(model, embedded, data, split):
        given.append((len(embedded.rows), len(embedded.texts), data, split))
        return fit

    monkeypatch.setattr("wavlink.training.loop.fit_to", fit_to)
    output = train.train(recipe(folder, tmp_path / "run", "--epochs", "1"))
    saved = {name: WavLinkModel.from_pretrained(output / name) for name in ("best", "last")}
    assert saved["best"].config.match_calibration == fit and saved["last"].config.match_calibration is None
    assert given == [(14, 14, str(folder), "validation")]

    def refuse(*_):
        raise ValueError("no match is nearer")

    monkeypatch.setattr("wavlink.training.loop.fit_to", refuse)
    start = ["--init", str(output / "best"), "--max_steps", "1"]
    output = train.train(recipe(folder, tmp_path / "more", *start))
    for name in ("best", "last"):
        assert WavLinkModel.from_pretrained(output / name).config.match_calibration is None  # not that of the start


@pytest.mark.slow
def test_training_learns(folder, tmp_path, monkeypatch):
    for name in ("draw_loss", "draw_recall", "draw_similarities"):  # of 40 validations
        monkeypatch.setattr(f"wavlink.training.log.{name}", lambda *_: None)
    options = ["--max_steps", "80", "--batch_size", "7", "--warmup_ratio", "0.1"]
    output = train.train(recipe(folder, tmp_path / "run", *options))
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    last = [record["validation"] for record in records if "validation" in record][-1]
    assert last["audio_to_text"]["128"]["R@1"]["value"] > 0.4  # chance level 2 of 14
    calibration = WavLinkModel.from_pretrained(output / "best").config.match_calibration
    assert set(calibration["dims"]) == {"128", "64", "32", "16"} and calibration["pairs"] == 14 * 14
    assert calibration["data"] == f"{folder.name}, validation"


@pytest.mark.parametrize("dropped_at", [2, 5])
def test_a_killed_run_resumes_to_the_same_weights_and_metrics(folder, tmp_path, monkeypatch, dropped_at):
    options = ["--save_steps", "2", "--max_seconds", "0.4"]
    whole = train.train(recipe(folder, tmp_path / "whole", *options))
    killed = recipe(folder, tmp_path / "killed", *options)
    learn = train.Run.learn

    def die(self, *arguments):
        if self.step == dropped_at:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(killed)
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = train.train(killed)
    expected, got = (load_file(run / "last/model.safetensors") for run in (whole, resumed))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()


def test_a_finished_run_is_not_run_again(folder, tmp_path, monkeypatch):
    train.train(recipe(folder, tmp_path / "run"))
    monkeypatch.setattr(train.Run, "learn", lambda *_: pytest.fail("trained on"))
    train.train(recipe(folder, tmp_path / "run"))


def test_masking_false_negatives_is_a_choice(folder, tmp_path):
    """Tones 0 and 1 and so on share their captions, so without the mask the loss is higher."""
    losses = []
    for masked in ("true", "false"):
        options = ["--mask_false_negatives", masked, "--batch_size", "14", "--max_steps", "1"]
        output = train.train(recipe(folder, tmp_path / masked, *options))
        losses.append(json.loads((output / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[1] > losses[0] + 0.01


def test_a_folder_goes_on_only_as_the_run_it_is(folder, tmp_path):
    train.train(recipe(folder, tmp_path / "run", "--max_steps", "1"))
    with pytest.raises(ValueError, match="holds another run: learning_rate was 0.001 and is now 0.5; .*--output_dir"):
        train.train(recipe(folder, tmp_path / "run", "--max_steps", "1", "--learning_rate", "0.5"))
    train.train(recipe(folder, tmp_path / "run", "--max_steps", "1", "--save_steps", "3"))
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(ValueError, match="holds another run: max_steps was 1 and is now 2; .*--output_dir"):
        train.train(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    (tmp_path / "empty/best").mkdir(parents=True)
    train.train(recipe(folder, tmp_path / "empty", "--max_steps", "1"))


def test_only_the_newest_checkpoints_are_kept(folder, tmp_path):
    output = train.train(recipe(folder, tmp_path / "run", "--save_steps", "1"))
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_clips(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        WavLinkModel, "loss", lambda self, audio, text, *_, **__: (audio.sum() + text.sum()) * float("nan")
    )
    with pytest.raises(ValueError, match=r"the loss is nan at step 0; its clips: .*\.wav"):
        train.train(recipe(folder, tmp_path / "run"))


@pytest.mark.slow
def test_training_starts_from_towers_or_from_a_wavlink(folder, tmp_path, whisper_folder, bert_folder, wavlink_folder):
    towers = ["--audio_model", str(whisper_folder), "--text_model", str(bert_folder), "--projection_dim", "16"]
    first = train.train(recipe(folder, tmp_path / "towers", *towers, "--max_steps", "1", "--padding", "max_length"))
    assert AutoModel.from_pretrained(first / "last", trust_remote_code=True).config.matryoshka_dims == [16, 8, 4, 2]
    processor = AutoProcessor.from_pretrained(first / "last", trust_remote_code=True)
    assert processor.feature_extractor.padding == "max_length"
    second = train.train(recipe(folder, tmp_path / "init", "--init", str(first / "last"), "--learning_rate", "0"))
    weights = (load_file(run / "last/model.safetensors") for run in (first, second))
    before, after = weights
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--caption_columns", "title"], "no column title; the columns are .*caption_2"),
        (["--data", ""], "name the data set: .*--data"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_recipes_fail_before_anything_is_written(folder, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.train(recipe(folder, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()
