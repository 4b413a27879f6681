"""Recipes: the paper's training, with its command and results; wrong values are refused in seconds."""

import dataclasses
import json
import re
import shutil
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from transformers import PreTrainedModel

import train
from modeling_wavlink import WavLinkModel
from tests.conftest import RATE, tone
from tests.htsat_models import AUDIO as HTSAT
from tests.tone_runs import folder  # noqa: F401
from wavlink.training import loop, recipes
from wavlink.training.factory import refuse_bad_start
from wavlink.training.recipes import Recipe, computes_in_bf16, design_sweep, get_recipe, load_recipe

ROOT = Path(__file__).parents[2]
PRECISION = ["--mixed_precision", "no"]  # Accelerate takes one a process, which all tests share
# From arXiv 2601.15118: the towers, and R@1/5/10 of AudioCaps T2A, A2T, Clotho T2A, A2T after stage 2.
PAPER = {
    "base": (
        ("openai/whisper-base.en", "openai/clip-vit-base-patch32"),
        "39.7/74.5/85.3 50.5/79.4/90.3 17.6/41.3/56.0 21.1/45.8/58.8",
    ),
    "small": (
        ("openai/whisper-small.en", "openai/clip-vit-base-patch32"),
        "44.5/79.0/88.0 54.3/84.1/92.3 21.2/46.8/60.1 25.3/49.4/64.0",
    ),
    "large": (
        ("openai/whisper-large-v3", "openai/clip-vit-large-patch14"),
        "46.7/80.2/89.5 60.0/85.3/92.6 22.4/48.7/62.6 27.4/52.3/66.0",
    ),
}
SETTINGS = {
    "regime": "full",
    "scope": "both",
    "loss_type": "info_nce",
    "padding": "max_length",
    "learning_rate": 1e-4,
    "warmup_ratio": 0.05,
    "mixed_precision": "bf16",
    "matryoshka_dims": (),  # the full width and its three halves: K = 4
    "projection_dim": 0,  # CLIP's own
    "label_smoothing": 0.0,
    "all_captions": False,
    "max_steps": 0,
}
DATA = {1: {"auto_acd": 1.0, "audiosetcaps": 1.0}, 2: {"audiocaps": 1.0, "clotho": 5.0}}


def values(recipe: Recipe, names) -> dict:
    return {name: getattr(recipe, name) for name in names}


@pytest.mark.parametrize("size", PAPER)
@pytest.mark.parametrize("stage", [1, 2])
def test_both_stages_are_the_papers(size, stage):
    recipe = get_recipe(f"{size}_stage{stage}")
    assert values(recipe, SETTINGS) == SETTINGS
    assert (recipe.audio_model, recipe.text_model) == PAPER[size][0]
    assert (recipe.batch_size, recipe.epochs) == (768, 3)
    assert (recipe.data, recipe.mixture, recipe.validation_data) == ("", DATA[stage], "audiocaps")
    assert recipe.init == ("" if stage == 1 else f"runs/{size}_stage1/best")  # where stage 1 leaves it


def made_by(name: str):
    return design_sweep if name == "sweep" else getattr(recipes, f"_{name}")


@pytest.mark.parametrize("name", [*(f"{size}_stage{stage}" for size in PAPER for stage in (1, 2)), "sweep"])
def test_a_recipe_is_headed_by_its_command(name):
    command = re.search(r"^ *(accelerate launch .*)$", made_by(name).__doc__, re.MULTILINE)[1].split()
    assert command[2] == "--config_file" and (ROOT / command[3]).is_file() and command[3].startswith("accelerate_conf")
    assert command[4:6] == ["train.py", name]
    processes = int(re.search(r"num_processes: (\d+)", (ROOT / command[3]).read_text())[1])
    assert processes == (8 if name == "sweep" else 64)
    if name != "sweep":
        recipe = train.parse_recipe(command[5:])
        assert recipe == dataclasses.replace(get_recipe(name), audio_folder="SOUNDS", output_dir=f"runs/{name}")
        assert recipe.batch_size % processes == 0


@pytest.mark.parametrize("size", PAPER)
def test_a_recipe_says_what_the_paper_reports(size):
    reported = made_by(f"{size}_stage2").__doc__
    assert "The paper reports" in reported and "AudioCaps T2A" in reported
    assert " ".join(re.findall(r"\d+\.\d/\d+\.\d/\d+\.\d", reported)) == PAPER[size][1]
    assert "only after stage 2" in made_by(f"{size}_stage1").__doc__


def test_the_sweep_is_the_papers_24():
    towers = {"clip": "openai/clip-vit-large-patch14", "modernbert": "answerdotai/ModernBERT-large"}
    results = design_sweep()
    axes = [
        (text, loss, regime, scope)
        for text in ("clip", "modernbert")
        for loss in ("info_nce", "sigmoid")
        for regime in ("projector", "lora", "full")
        for scope in ("audio", "both")
    ]
    assert [recipe.name for recipe in results] == ["-".join(names) for names in axes]
    for recipe, (text, loss, regime, scope) in zip(results, axes, strict=True):
        wanted = SETTINGS | {"loss_type": loss, "regime": regime, "scope": scope, "text_model": towers[text]}
        wanted |= {"projection_dim": 768} if text == "modernbert" else {}
        wanted |= {"audio_model": "openai/whisper-large-v3", "data": "auto_acd", "validation_data": "audiocaps"}
        wanted |= {"batch_size": 80, "epochs": 10, "lora_rank": 8, "lora_targets": (), "init": "", "mixture": {}}
        assert values(recipe, wanted) == wanted
        assert get_recipe(recipe.name) == recipe


def test_a_configuration_states_only_its_difference():
    first, *others = [dataclasses.asdict(recipe) for recipe in design_sweep()]
    changed = {name for other in others for name in other if other[name] != first[name]}
    assert changed == {"name", "text_model", "loss_type", "regime", "scope", "projection_dim"}


def test_differences_of_a_run_begun_name_both_values_and_know_defaults():
    recipe = get_recipe("quickstart")
    begun = json.loads(json.dumps(dataclasses.asdict(recipe)))
    del begun["compile"]  # by a version that had no such field
    assert recipes.differences(begun, recipe) == ""
    changed = dataclasses.replace(recipe, num_workers=7, output_dir="elsewhere", seed=5, compile=True)
    expected = "compile was False and is now True, seed was 0 and is now 5"
    assert recipes.differences(begun, changed) == expected


@pytest.mark.parametrize("streaming, expected", [(False, ""), (True, "save_steps was 0 and is now 5")])
def test_only_a_stream_is_validated_at_other_steps_by_save_steps(streaming, expected):
    recipe = load_recipe("quickstart", streaming=streaming)
    begun = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert recipes.differences(begun, dataclasses.replace(recipe, save_steps=5, checkpoints_kept=1)) == expected


@pytest.fixture
def no_weights(monkeypatch):
    """Loading any weights fails the test, even where a ValueError is awaited."""

    def loaded(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", loaded)
    monkeypatch.setattr("wavlink.training.loop.build", loaded)


def quick(data, output, *options) -> Recipe:
    start = ["quickstart", "--data", str(data), "--output_dir", str(output), *PRECISION]
    return train.parse_recipe([*start, *options])


def clips(root: Path, count: int) -> Path:
    """An audiofolder of `count` training clips and two for validation."""
    for split, number in (("train", count), ("validation", 2)):
        (root / split).mkdir(parents=True)
        for i in range(number):
            soundfile.write(root / split / f"{i}.wav", tone(seconds=0.2), RATE)
        rows = [f"{i}.wav,tone,a tone" for i in range(number)]
        (root / split / "metadata.csv").write_text("\n".join(["file_name,label,caption", *rows]))
    return root


def refused(recipe: Recipe, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        train.train(recipe)
    assert not Path(recipe.output_dir).exists()


def test_loading_weights_fails_in_these_tests(no_weights, folder, tmp_path):  # noqa: F811
    with pytest.raises(AssertionError, match="weights were loaded"):
        train.train(quick(folder, tmp_path / "run"))


@pytest.mark.parametrize("name", ["base_stage2", "small_stage2", "large_stage2"])
def test_stage_2_needs_its_stage_1(no_weights, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = train.parse_recipe([name, "--audio_folder", "sounds", *PRECISION])
    refused(recipe, f"{name} starts from runs/{name[:-1]}1/best, .*: train its first stage, or give --init")


@pytest.fixture(scope="module")
def wavlink_config(tmp_path_factory, whisper_folder, bert_folder):
    """A WavLink's folder without weights."""
    root = tmp_path_factory.mktemp("wavlink")
    WavLinkModel.config_from_audio_text(str(whisper_folder), str(bert_folder)).save_pretrained(root)
    return root


def test_stage_2_starts_from_a_folder(no_weights, wavlink_config):
    refuse_bad_start(train.parse_recipe(["base_stage2", "--init", str(wavlink_config)]))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--init", "WHISPER"], "the checkpoint of a 'whisper' model, not of a WavLink"),
        (["--init", "WAVLINK", "--loss_type", "sigmoid"], "has learned with info_nce: give --loss_type info_nce"),
        (["--init", "WAVLINK", "--matryoshka_dims", "64,8"], r"its nested dims, \[32, 16, 8, 4\], not \[64, 8\]"),
        (["--init", "WAVLINK", "--regime", "lora", "--lora_targets", "q"], "targets q match nothing; .* fc1, fc2"),
        (["--init", "WAVLINK", "--regime", "lora", "--scope", "audio", "--lora_targets", "query"], "query match"),
        (["--regime", "lora", "--lora_targets", "q_proj,Wqkv"], "LoRA targets Wqkv match nothing; .*--lora_targets"),
        (["--audio_model", "WHISPER", "--text_model", "BERT", "--matryoshka_dims", "128,16"], "between 1 and proj"),
        (["--audio_model", "BERT", "--text_model", "WHISPER"], "is a 'bert' model; the audio tower must be a Whisper"),
        (["--attn_implementation", "flash_attention_2"], "--attn_implementation flash_attention_2: .*installed"),
        (["--data", ""], "name the data set: .*--data"),
        (["--validation_split", "dev"], "holds neither dev/metadata.csv"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(
    no_weights,
    folder,  # noqa: F811
    tmp_path,
    whisper_folder,
    bert_folder,
    wavlink_config,
    options,
    message,
):
    paths = {"WHISPER": whisper_folder, "BERT": bert_folder, "WAVLINK": wavlink_config}
    options = [str(paths.get(word, word)) for word in options]
    free = [] if "--matryoshka_dims" not in options or "--init" in options else ["--projection_dim", "0"]
    refused(quick(folder, tmp_path / "run", *free, *options), message)


def test_htsat_has_no_checkpointing(no_weights, folder, tmp_path):  # noqa: F811
    options = ["--audio_config", json.dumps({"model_type": "clap_audio_model", **HTSAT})]
    refused(
        quick(folder, tmp_path / "run", *options, "--gradient_checkpointing", "true"), "HTS-AT has no gradient_che"
    )


@pytest.mark.parametrize("count, message", [(0, "metadata.csv has no rows for train"), (1, "a data set of 1")])
def test_data_without_pairs_is_refused(no_weights, tmp_path, count, message):
    refused(quick(clips(tmp_path / "data", count), tmp_path / "run"), message)


def test_a_batch_smaller_than_the_processes_is_refused(no_weights, folder, tmp_path, monkeypatch):  # noqa: F811
    accelerator = SimpleNamespace(num_processes=64, device=torch.device("cpu"))
    monkeypatch.setattr("wavlink.training.distributed.start", lambda *_: accelerator)
    message = "batch_size=32 is over all 64 processes and leaves nothing for some: raise it, or use fewer"
    refused(quick(folder, tmp_path / "run", "--batch_size", "32"), message)


def test_fewer_clips_than_processes_are_refused(no_weights, tmp_path, monkeypatch):
    accelerator = SimpleNamespace(num_processes=8, device=torch.device("cpu"), process_index=0, is_fsdp2=False)
    monkeypatch.setattr("wavlink.training.distributed.start", lambda *_: accelerator)
    message = "batch_size=16 and a data set of 5 leave nothing for some of the 8 processes: use fewer"
    refused(quick(clips(tmp_path / "data", 5), tmp_path / "run", "--batch_size", "16"), message)


def test_sharded_processes_need_equally_many_chunks_of_a_small_data_set_too(no_weights, tmp_path, monkeypatch):
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), process_index=0, is_fsdp2=True)
    monkeypatch.setattr("wavlink.training.distributed.start", lambda *_: accelerator)
    message = "a batch of 5 clips over 2 processes is 1 chunks of micro_batch_size=2 on some and 2 on others"
    options = ["--batch_size", "8", "--micro_batch_size", "2"]
    refused(quick(clips(tmp_path / "data", 5), tmp_path / "run", *options), message)


@pytest.mark.parametrize(
    "options", [["--matryoshka_dims", "256"], ["--mixture", '{"clotho": -1}'], ["--lora_rank", "0"]]
)
def test_a_recipe_refuses_wrong_values(options, capsys):
    with pytest.raises(SystemExit):
        train.parse_recipe(["quickstart", *options])
    assert options[0].strip("-") in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        *(({"learning_rate": value}, "learning_rate must be at least 0, got") for value in (-1e-4, nan, inf)),
        *(({"weight_decay": value}, "weight_decay must be at least 0, got") for value in (-1e-4, nan)),
        *(({"warmup_ratio": value}, "warmup_ratio must be between 0 and 1, got") for value in (-0.1, 1.1, nan)),
        *(({"max_seconds": value}, "max_seconds must be above 0, got") for value in (0, -1.0, nan, inf)),
        *(({"max_grad_norm": value}, "above 0, .*: 0 would leave nothing of the") for value in (0, -1.0, nan)),
        ({"lora_alpha": 0}, "lora_alpha must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**32}, "seed must be at most 4294967295, got 4294967296"),
    ],
)  # fmt: skip
def test_numbers_that_would_train_nothing_or_backwards_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("quickstart", **changes)


def test_crops_longer_than_the_tower_takes_are_refused_before_a_step(folder, tmp_path):  # noqa: F811
    assert loop.Run(quick(folder, tmp_path / "run", "--max_seconds", "60")).feed.longest < 1  # by the clips
    shutil.copytree(folder, tmp_path / "long")
    table = tmp_path / "long/train/metadata.csv"
    table.write_text(table.read_text().replace("0.wav,0.2,", "0.wav,40,", 1))
    recipe = quick(tmp_path / "long", tmp_path / "run", "--max_seconds", "60")
    refused(recipe, "crops of 40 s are longer than the 30 s that the audio tower takes at once")


def test_numbers_at_their_limits_are_taken():
    limits = {"learning_rate": 0, "warmup_ratio": 1, "weight_decay": 0, "max_grad_norm": inf, "seed": 2**32 - 1}
    assert {name: getattr(load_recipe("quickstart", **limits), name) for name in limits} == limits


def test_a_start_brings_its_towers_and_dims(no_weights, wavlink_config):
    init = str(wavlink_config)
    assert load_recipe("quickstart", init=init, matryoshka_dims=[512]).projection_dim == 0
    assert load_recipe("sounds", init="").frame_pooling == 2
    with pytest.raises(ValueError, match="brings its projection_dim, 32, not 64: leave --projection_dim out"):
        refuse_bad_start(load_recipe("quickstart", init=init, projection_dim=64))
    refuse_bad_start(load_recipe("quickstart", init=init, projection_dim=32))
    towers = {"audio_model": "openai/whisper-tiny", "text_config": {"model_type": "bert"}}
    with pytest.raises(ValueError, match="brings its towers: leave audio_model and text_config out, or init"):
        load_recipe("quickstart", init=init, **towers)


@pytest.mark.parametrize("changes", [{"degraded_share": 0.5}, {"spec_augment": True}, {"equalization": 1.6}])
def test_what_changes_log_mels_needs_clips_of_their_own_length(changes):
    with pytest.raises(ValueError, match="degraded_share change a clip, .*give --padding longest"):
        load_recipe("base_stage1", **changes)
    assert load_recipe("base_stage1", padding="longest", **changes).augmented


def test_main_says_why_in_one_line(no_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train.main(["base_stage2", *PRECISION])
    assert re.fullmatch(r"train.py: base_stage2 starts from [^\n]*, or give --init", stopped.value.code)


@pytest.mark.parametrize("native, precision", [(True, "bf16"), (False, "no")])
def test_auto_is_bf16_only_where_the_device_computes_in_it(monkeypatch, native, precision):
    monkeypatch.setattr("wavlink.training.recipe_fields.computes_in_bf16", lambda: native)
    assert get_recipe("quickstart").mixed_precision == precision  # a recipe never holds "auto", so a run records it
    assert get_recipe("base_stage1").mixed_precision == "bf16"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of CPUs")
def test_bf16_on_a_cpu_needs_its_kernels(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        assert computes_in_bf16() == native
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_in_bf16()
