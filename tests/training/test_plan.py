"""Plans: what is counted equals what a training does, and nothing is downloaded or written."""

import dataclasses
import functools
import json
import os
import re
import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

import train
from benchmarks import plan as benchmark
from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.passt_audio_wavlink import WavLinkPasstLayer
from processing.datasets.loaders import Epochs
from tests.htsat_models import AUDIO as HTSAT
from tests.passt_models import AUDIO as PASST_FIELDS
from tests.tone_runs import folder  # noqa: F401
from wavlink import load_recipe
from wavlink.cli import main as wavlink
from wavlink.planning.data import training_data
from wavlink.planning.facts import CARDS, SOURCES
from wavlink.planning.model import Shapes, count_flops, count_kept, parameters, planned_config, shapes_of
from wavlink.planning.plan import plan, table
from wavlink.planning.towers import TOWERS
from wavlink.training.factory import prepared
from wavlink.training.finetuning import parameter_groups
from wavlink.training.grad_cache import backward
from wavlink.training.recipes import Recipe

WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
}
TEXT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 100,
}


# A clip of 0.9 s for the Whisper, one window of 2 s for the HTS-AT and two windows for the PaSST, with 11 tokens.
SHAPES = {
    "whisper": Shapes((80, 90), (90,), 11),
    "clap_audio_model": Shapes((1, 201, 16), (1,), 11),
    "passt": Shapes((128, 150), (150,), 11),
}
CLAP = {"model_type": "clap_audio_model", **HTSAT}
PASST = {"model_type": "passt", **PASST_FIELDS, "num_hidden_layers": 4}


def tiny(**changes) -> Recipe:
    fields = {"audio_config": WHISPER, "text_config": TEXT, "mixed_precision": "no", "batch_size": 12} | changes
    return Recipe("tiny", **fields)


def real_flops(recipe: Recipe, config: WavLinkConfig, shapes: Shapes) -> int:
    """The operations of a real step, as training takes it."""
    model = prepared(WavLinkModel(config), dataclasses.replace(recipe, attn_implementation="eager")).train()
    with FlopCounterMode(display=False) as counter:
        backward(Accelerator(cpu=True), model, shapes.batch(recipe.batch_size, "cpu"), recipe.micro_batch_size)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_size": 4},
        {"micro_batch_size": 4, "frame_pooling": 2},
        {"micro_batch_size": 4, "regime": "lora"},
        {"regime": "projector"},
        {"scope": "audio"},
        {"gradient_checkpointing": True},
        {"audio_config": CLAP},
        {"audio_config": PASST, "micro_batch_size": 4},
        {"audio_config": PASST, "regime": "lora", "gradient_checkpointing": True},
    ],
    ids=lambda changes: "-".join([changes.get("audio_config", WHISPER).get("model_type", "whisper"), *changes]),
)
def test_flops_of_a_step_are_those_of_a_real_step(changes):
    recipe = tiny(projection_dim=16, **changes)
    config = planned_config(recipe)
    shapes = SHAPES[config.audio_config.model_type]
    counted = count_flops(config, recipe, shapes).step(12, recipe.micro_batch_size or 12)
    assert counted == pytest.approx(real_flops(recipe, config, shapes), rel=0.02)


def test_flops_of_a_clip_follow_the_formula():
    """L (8 d^2 + 4 d f) + 4 L^2 d for each layer; the last one computes the token's state alone."""
    recipe = tiny(projection_dim=16)
    config = planned_config(recipe)
    frames, d, f = 100, 32, 64

    def layer(queries: int, keys: int, d: int, f: int) -> int:
        return 2 * (queries * 2 * d * d + keys * 2 * d * d + 2 * queries * keys * d + queries * 2 * d * f)

    audio = 2 * (2 * frames * 80 * 3 * d + frames * d * 3 * d)  # the convolutions, the second with a stride of 2
    audio += 2 * layer(frames + 1, frames + 1, d, f) + layer(1, frames + 1, d, f)
    text = 2 * layer(11, 11, 16, 48)
    projections = 2 * (d * 16 + 16 * 16)
    flops = count_flops(config, recipe, shapes_of(config, recipe, 2.0, 11))
    assert flops.forward == pytest.approx(audio + text + projections, rel=0.005)
    first = 2 * 2 * frames * 80 * 3 * d  # the log-mel needs no gradient
    assert flops.backward == pytest.approx(2 * flops.forward - first, rel=0.005)


def kept_by_a_real_pass(recipe: Recipe, config: WavLinkConfig, batch: dict) -> int:
    """Bytes that autograd saves in a forward pass with real tensors, one storage once, without the parameters'."""
    model = prepared(WavLinkModel(config), recipe).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=recipe.mixed_precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), bf16:
        output = model(**batch, return_loss=False)  # noqa: F841
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("audio", [WHISPER, CLAP, PASST], ids=["whisper", "htsat", "passt"])
def test_kept_bytes_are_those_of_a_real_pass(audio, attention, precision):
    recipe = tiny(audio_config=audio, attn_implementation=attention, mixed_precision=precision, projection_dim=16)
    config = planned_config(recipe)
    shapes = SHAPES[config.audio_config.model_type]
    batch = shapes.batch(6, "cpu")
    batch["attention_mask"][0, -3:] = 0  # padding: without it no mask is kept
    if audio is not CLAP:
        batch["input_features_mask"][0, -20:] = 0
    expected = kept_by_a_real_pass(recipe, config, batch)
    assert count_kept(config, recipe, shapes).of(6) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("audio, positions", [(WHISPER, 3 * 250), (PASST, 4 * 5 * (2 + 12 * 9))])
def test_checkpointing_keeps_less_than_all_and_more_than_the_layers_inputs(audio, positions):
    whole, less = (
        count_kept(planned_config(recipe), recipe, shapes_of(planned_config(recipe), recipe, 5.0, 11)).clip
        for recipe in (
            tiny(projection_dim=16, audio_config=audio),
            tiny(projection_dim=16, audio_config=audio, gradient_checkpointing=True),
        )
    )
    assert 4 * positions * 32 < less < whole


def test_plan_of_a_deep_passt_runs_two_of_its_layers(monkeypatch):
    layers, forward = [], WavLinkPasstLayer.forward

    def counted(layer: WavLinkPasstLayer, *arguments, **options) -> torch.Tensor:
        layers.append(layer)
        return forward(layer, *arguments, **options)

    monkeypatch.setattr(WavLinkPasstLayer, "forward", counted)
    recipe = tiny(projection_dim=16, audio_config=PASST | {"num_hidden_layers": 12}, data="audiocaps")
    assert plan(recipe, ["l4"], 1000, 0.5)["parameters"]["total"] > 12 * 8000
    assert 0 < len(layers) <= 3 * (1 + 2)  # a pass for the operations, two for the memory


@pytest.mark.parametrize("regime", ["full", "lora", "projector"])
def test_parameters_are_those_of_the_model(regime):
    recipe = tiny(projection_dim=16, regime=regime)
    config = planned_config(recipe)
    model = prepared(WavLinkModel(config), recipe)
    trained = sum(p.numel() for group in parameter_groups(model, 0.0) for p in group["params"])
    assert parameters(config, recipe) == {"total": sum(p.numel() for p in model.parameters()), "trained": trained}


@pytest.mark.parametrize("name", ["base_stage1", "small_stage1", "large_stage1"])
def test_paper_models_have_the_papers_sizes(name):
    recipe = load_recipe(name)
    size = name.partition("_")[0]
    with torch.device("meta"):
        expected = sum(p.numel() for p in WavLinkModel(WavLinkConfig.for_size(size)).parameters())
    assert parameters(planned_config(recipe), recipe)["total"] == expected


@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["openai/whisper-tiny.en", "openai/whisper-base", "sentence-transformers/all-MiniLM-L6-v2"]
)
def test_built_in_towers_are_those_of_the_real_configs(name):
    path = Path(os.environ.get("WAVLINK_WEIGHTS", "")) / name.partition("/")[2] / "config.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    config = json.loads(path.read_text(encoding="utf-8"))
    assert {field: config[field] for field in TOWERS[name]} == TOWERS[name]


def test_steps_and_clips_are_those_of_the_training(folder):  # noqa: F811
    recipe = load_recipe("quickstart", data=str(folder), batch_size=8, epochs=3, mixed_precision="no")
    result, feed = plan(recipe, ["l4"]), Epochs(recipe, 0, 1)
    assert result["steps"] == feed.steps and result["clips"] == 8 * feed.steps
    assert result["data"]["clips"] == len(feed.data)
    assert result["data"]["seconds"] == pytest.approx(float(feed.plan.lengths.mean()), rel=0.01)


def test_mixture_counts_clips_as_training_does():
    data = training_data(load_recipe("base_one_gpu"))
    audiocaps, clotho = SOURCES["audiocaps"], SOURCES["clotho"]
    assert data.clips == audiocaps.clips + 5 * clotho.clips and data.longest == 30
    seconds = (audiocaps.clips * audiocaps.seconds + 5 * clotho.clips * clotho.seconds) / data.clips
    assert data.seconds == pytest.approx(seconds)
    halved = training_data(load_recipe("base_one_gpu", mixture={"audiocaps": 0.5, "clotho": 1.0}))
    assert halved.clips == audiocaps.clips + 2 * clotho.clips


def test_given_seconds_above_those_of_the_data_are_the_longest():
    data = training_data(tiny(data="audiocaps", max_seconds=30.0), seconds=25)
    assert (data.seconds, data.longest) == (25, 25)


@functools.cache
def planned(name: str, device: str, **changes) -> dict:
    return plan(load_recipe(name, **changes), [device])


@pytest.mark.parametrize("name", ["tiny_one_gpu", "base_one_gpu"])
def test_recipes_for_one_gpu_need_at_most_24_gb(name):
    memory, (row,) = (planned(name, "rtx4090")[key] for key in ("memory", "devices"))
    assert memory["total"] < 24 and row["fits"]
    assert memory["total"] == pytest.approx(sum(gb for part, gb in memory.items() if part != "total"))


def test_hours_follow_from_flops_and_the_vendors_peak():
    recipe = tiny(projection_dim=16, data="audiocaps", mixed_precision="bf16")
    result = plan(recipe, ["a100"], 1000, 0.5, utilization=0.5)
    (row,) = result["devices"]
    assert row["hours"] == pytest.approx(result["flops"]["total"] / (0.5 * CARDS["a100"].bf16 * 1e12) / 3600)
    assert row["step_seconds"] * result["steps"] / 3600 == pytest.approx(row["hours"])
    (slower,) = plan(dataclasses.replace(recipe, mixed_precision="no"), ["a100"], 1000, 0.5)["devices"]
    assert slower["peak_tflops"] == CARDS["a100"].fp32


@pytest.mark.slow
def test_what_does_not_fit_is_planned_in_smaller_pieces():
    result = planned("tiny_one_gpu", "rtx4090", micro_batch_size=0)
    (row,) = result["devices"]
    largest = row["largest_micro_batch_size"]
    assert not row["fits"] and 128 < largest < 768 and f"with --micro_batch_size {largest}" in table(result)
    (smaller,) = planned("tiny_one_gpu", "rtx4090", micro_batch_size=largest)["devices"]
    assert smaller["fits"] and smaller["hours"] == pytest.approx(row["hours"])
    (larger,) = planned("tiny_one_gpu", "rtx4090", micro_batch_size=largest + 1)["devices"]
    assert not larger["fits"]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty working folder, a network whose use fails the test, and built-in towers of two layers."""

    def refused(*_, **__):
        raise AssertionError("the network was used")

    shallow = {"encoder_layers": 2, "num_hidden_layers": 2}
    towers = {name: {k: shallow.get(k, value) for k, value in fields.items()} for name, fields in TOWERS.items()}
    monkeypatch.setattr("wavlink.planning.model.TOWERS", towers)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_downloads_and_writes_nothing(alone, capsys):
    assert wavlink(["train", "base_stage2", "--plan", "--json", "--plan_device", "h200,l4"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)["results"]
    assert [row["device"] for row in result["devices"]] == ["h200", "l4"]
    assert "plan of base_stage2: nothing is downloaded" in printed.err
    assert list(alone.iterdir()) == []


def test_train_py_plans_as_well(alone, capsys):
    train.main(["base_one_gpu", "--plan", "--plan_clips", "1000", "--plan_seconds", "5"])
    printed = capsys.readouterr().out
    assert "1 steps" not in printed and "10 steps of 768 clips" in printed and "1,000 clips of 5 s as given" in printed
    assert all(f"\n{name}" in printed for name in CARDS) and list(alone.iterdir()) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["sounds"], "name the data set"),
        (["sounds", "--data", "you/sounds"], "not known without reading it: give --plan_clips and --plan_seconds"),
        (
            ["sounds", "--data", "audiocaps", "--text_model", "you/text"],
            "the config of you/text is not here: .*--text",
        ),
        (
            ["sounds", "--data", "audiocaps", "--init", "you/model", "--audio_model", ""],
            "you/model is not here: .*--in",
        ),
        (["base_one_gpu", "--plan_device", "h2000"], "no device 'h2000' is known; the devices are h200, h100"),
        (["base_one_gpu", "--plan_utilization", "1.5"], "must be above 0 and at most 1, got 1.5"),
        (["base_one_gpu", "--plan_seconds", "-1"], "must be above 0, got 0 and -1"),
        (["base_one_gpu", "--plan_clips", "1"], "at least two clips in a batch"),
        (["sweep"], "--plan is for one training: name a configuration"),
    ],
)
def test_command_says_what_a_plan_lacks(alone, capsys, options, message):
    assert wavlink(["train", *options, "--plan"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_options_of_a_plan_need_it(alone, capsys):
    assert wavlink(["train", "base_one_gpu", "--plan_clips", "9"]) == 2
    assert "--plan_clips is for --plan: add that" in capsys.readouterr().err


def test_local_folders_are_planned_from_their_configs(alone, whisper_folder, clip_folder, folder, capsys):  # noqa: F811
    towers = ["--audio_model", str(whisper_folder), "--text_model", str(clip_folder)]
    assert wavlink(["train", "sounds", "--plan", "--data", str(folder), *towers]) == 0
    assert str(whisper_folder) in capsys.readouterr().out


def test_a_plan_is_of_the_model_that_training_starts_from(alone, tiny_bundle, folder, capsys):  # noqa: F811
    for init in ("wavlink-tiny", str(tiny_bundle)):
        assert wavlink(["train", "sounds", "--plan", "--data", str(folder), "--init", init]) == 0
        out = capsys.readouterr().out
        assert f"model      {init}, 32 dims" in out and "whisper" not in out
        assert all(len(line.split()) >= 7 for line in out.splitlines() if line.startswith(("h200 ", "l4 ")))
    assert wavlink(["train", "sounds", "--plan", "--data", str(folder), "--init", "wavlink-tin"]) == 2
    assert "did you mean wavlink-tiny?" in capsys.readouterr().err


def test_measured_device_needs_no_assumption():
    result = plan(tiny(projection_dim=16, data="audiocaps"), ["cpu"], 100, 0.5)
    (row,) = result["devices"]
    assert row["measured"] and row["tflops"] > 0 and row["hours"] > 0 and "utilization" not in row
    assert "measured on 12 clips at once" in table(result)


@pytest.fixture
def threads():
    """Compute on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("case", benchmark.CASES)
@pytest.mark.usefixtures("threads")
def test_planned_seconds_are_those_of_real_steps(case):
    """By the processor's time and the shortest of some turns, since other tests run beside this one."""
    seconds = benchmark.compare(case, repeats=3)
    assert min(seconds["planned"]) == pytest.approx(min(seconds["measured"]), rel=0.15)
