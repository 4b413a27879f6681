"""The recipes for one GPU: from two pretrained towers on copies of the Hub's repositories, scaled down to seconds."""

import re
from pathlib import Path

import datasets
import pytest

import train
from modeling_wavlink import WavLinkModel
from tests.paper_files import wav
from wavlink.training import recipes
from wavlink.training.recipes import Recipe, get_recipe, load_recipe

ROOT = Path(__file__).parents[2]
NAMES = ("tiny_one_gpu", "base_one_gpu")
SECONDS = {"audiocaps": (0.2, 0.3), "clotho": (0.4, 0.6)}


def rows_of(source: str, split: str, count: int) -> list[dict]:
    """Rows with the columns of `OpenSound/AudioCaps`, or of `mteb/Clotho` and `CLAPv2/Clotho`."""
    shortest, longest = SECONDS[source]
    sounds = [wav(shortest + (longest - shortest) * i / count, 300 + 100 * i) for i in range(count)]
    if source == "audiocaps":
        return [
            {"audiocap_id": i, "youtube_id": f"{split}{i:04}", "start_time": 30, "caption": f"tone {i} in {split}",
             "audio_length": 3200, "audio": {"bytes": sound, "path": f"{i}.wav"}}
            for i, sound in enumerate(sounds)
        ]  # fmt: skip
    return [
        {"index": f"{split}_{i}", "datasetname": "Clotho", "audio": {"bytes": sound, "path": None}, "audio_len": 0.5,
         "text": " ".join(f"The {i} tone is number {j}." for j in range(5)), "raw_text": [""]}
        for i, sound in enumerate(sounds)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    """A folder with copies of both repositories: parquet files with the sounds in them."""
    root = tmp_path_factory.mktemp("repositories")
    for source, split, count in (("audiocaps", "train", 8), ("audiocaps", "validation", 3), ("clotho", "train", 4)):
        folder = root / source / "data"
        folder.mkdir(parents=True, exist_ok=True)
        dataset = datasets.Dataset.from_list(rows_of(source, split, count))
        dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_recipe_states_its_command_and_settings(name):
    made_by = getattr(recipes, f"_{name}")
    command = re.search(r"^ *(accelerate launch .*)$", made_by.__doc__, re.MULTILINE)[1].split()
    assert command[2] == "--config_file" and command[4:] == ["train.py", name]
    assert "num_processes: 1\n" in (ROOT / command[3]).read_text()
    recipe = train.parse_recipe([name])
    assert recipe == load_recipe(name) and recipe.output_dir == f"runs/{name}"
    assert (recipe.batch_size, recipe.mixed_precision, recipe.padding, recipe.frame_pooling) == (
        *(768, "bf16"),
        *("longest", 2),
    )
    assert 0 < recipe.micro_batch_size < recipe.batch_size and recipe.batch_size % recipe.micro_batch_size == 0
    assert recipe.mixture == {"audiocaps": 1.0, "clotho": 5.0} and not recipe.init


def test_recipes_differ_in_towers_alone():
    tiny, base = (vars(get_recipe(name)) for name in NAMES)
    assert {name for name in tiny if tiny[name] != base[name]} == {
        *("name", "audio_model", "text_model"),
        "micro_batch_size",
    }
    assert (base["audio_model"], base["text_model"]) == ("openai/whisper-base.en", "openai/clip-vit-base-patch32")
    assert tiny["audio_model"] == get_recipe("sounds").audio_model
    assert tiny["text_model"] == get_recipe("sounds").text_model


def tiny(name: str, repositories: Path, whisper: Path, text: Path, output: Path) -> Recipe:
    return load_recipe(
        name,
        audio_folder=str(repositories),
        audio_model=str(whisper),
        text_model=str(text),
        batch_size=12,
        micro_batch_size=4,
        epochs=2,
        mixed_precision="no",
        num_workers=0,
        output_dir=str(output),
    )


@pytest.mark.parametrize("name, text", [("tiny_one_gpu", "bert"), ("base_one_gpu", "clip")])
def test_recipe_trains_on_copies_of_the_repositories(name, text, repositories, whisper_folder, request, tmp_path):
    text_folder = request.getfixturevalue(f"{text}_folder")
    recipe = tiny(name, repositories, whisper_folder, text_folder, tmp_path / "run")
    folder = train.train(recipe)
    model = WavLinkModel.from_pretrained(folder / "best")
    assert model.config.audio_config.frame_pooling == 2
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert sum('"loss"' in line for line in lines) == 4  # 8 + 5 * 4 clips are two batches of 12, twice
