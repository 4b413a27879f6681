"""Every snippet of the README runs, in a folder that looks like a user's."""

import argparse
import importlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import soundfile

import train
from tests.conftest import RATE, tone
from tests.processes import run_process
from wavlink import options as of
from wavlink.evaluation import command as evaluation
from wavlink.train_options import parse
from wavlink.training.sweep import configurations, sweep_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A quickstart model of two steps, two sound files and an audiofolder."""
    root = tmp_path_factory.mktemp("readme")
    (root / "evaluate_modules").symlink_to(ROOT / "evaluate_modules")  # a clone has it beside the reader
    for name in ("dog.wav", "bell.flac"):
        soundfile.write(root / name, tone(300, 0.7), RATE)
    for split in ("train", "validation"):
        (root / "my_sounds" / split).mkdir(parents=True)
        rows = [(f"{hertz}.wav", f"a tone of {hertz} hertz") for hertz in range(200, 1200, 100)]
        for name, _ in rows:
            soundfile.write(root / "my_sounds" / split / name, tone(int(name[:-4]), 0.3), RATE)
        lines = ["file_name,caption", *(",".join(row) for row in rows)]
        (root / "my_sounds" / split / "metadata.csv").write_text("\n".join(lines))
    options = ["--data", str(root / "my_sounds"), "--label_prompt", "", "--max_steps", "2", "--num_workers", "0"]
    options += ["--mixed_precision", "no"]
    train.train(train.parse_recipe(["quickstart", *options, "--output_dir", str(root / "runs/quickstart")]))
    lora = ["--init", str(root / "runs/quickstart/best"), "--regime", "lora", "--output_dir", str(root / "runs/lora")]
    train.train(train.parse_recipe(["quickstart", *options, *lora]))
    return root


real = argparse.ArgumentParser.parse_args


def run(command: list[str], cwd: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), "PYTHONPATH": str(ROOT)}
    environment |= {"ACCELERATE_USE_CPU": "true", "DISABLE_MLFLOW_INTEGRATION": "true"}
    done = run_process(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_there_are_snippets_and_both_commands():
    assert PYTHON and any("python train.py" in block for block in BASH)
    assert any(block.startswith("make demo") for block in BASH) and any(
        block.startswith("make test") for block in BASH
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_snippets_run(number, workplace):
    assert run([sys.executable, "-c", PYTHON[number]], workplace) or "print" not in PYTHON[number]


@pytest.mark.slow
def test_the_training_and_publishing_commands_run(workplace, whisper_folder, bert_folder):
    command = next(block for block in BASH if "python train.py" in block).replace("\\\n", " ").split()
    towers = {"openai/whisper-tiny.en": whisper_folder, "sentence-transformers/all-MiniLM-L6-v2": bert_folder}
    command = [str(towers.get(word, word)) for word in command[2:]]
    run([sys.executable, str(ROOT / "train.py"), *command, "--max_steps", "1"], workplace)
    score = ["--model", "runs/sounds/best", "--benchmark", "my_sounds", "--split", "validation"]
    run([sys.executable, "-m", "wavlink.evaluation.command", *score, "--output", "scores.json"], workplace)
    publish = next(block for block in BASH if "hub_cards.push" in block).split()
    run([sys.executable, *publish[1:], "--dry_run", "--output_dir", "published"], workplace)
    assert "your-name/wavlink-sounds" in (workplace / "published/README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["search", "long"])
def test_the_commands_that_search_run(module, workplace):
    block = next(block for block in BASH if block.startswith(f"python -m modeling_wavlink.{module} "))
    for line in block.splitlines():
        out = run([sys.executable, *shlex.split(line)[1:]], workplace)
    assert json.loads(out) if module == "search" else (workplace / "timeline.png").stat().st_size


@pytest.mark.parametrize("command", re.findall(r"^accelerate launch .*|^python train.py .*", README, re.MULTILINE))
def test_training_commands_are_understood(command):
    launcher, arguments = command.rstrip("\\").split("train.py ")
    if config := re.search(r"--config_file (\S+)", launcher):
        assert (ROOT / config[1]).exists()
    name, *options = shlex.split(arguments)
    if name == "sweep":
        assert configurations(parse(sweep_parser(train.recipe_parser()), options))
    else:
        assert train.parse_recipe([name, *options]).name == name


@pytest.mark.parametrize(
    "command", re.findall(r"^python -m wavlink.evaluation.command .*", README.replace("\\\n", " "), re.MULTILINE)
)
def test_scoring_commands_are_understood(command):
    options = evaluation._parser().parse_args(shlex.split(command)[3:])
    assert options.model and options.benchmark


@pytest.mark.parametrize(
    "command",
    re.findall(r"^python -m modeling_wavlink.(?:ray_embedding|vector_database|onnx_export) .*", README, re.M),
)
def test_other_commands_are_understood(command, monkeypatch):
    module = importlib.import_module(shlex.split(command)[2])
    parsed = []
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, argv: parsed.append(real(self, argv)) or sys.exit()
    )
    with pytest.raises(SystemExit):
        module.main(shlex.split(command)[3:])
    assert parsed


@pytest.mark.parametrize("command", re.findall(r"^python -m hub_cards.push .*", README, re.MULTILINE))
def test_publishing_commands_are_understood(command):
    assert of.parser_of(of.push, "wavlink push").parse_args(shlex.split(command)[3:]).repo_id.startswith("your-name/")


def test_the_index_names_files_that_exist():
    index = README.partition("## Where things are")[2]
    names = [
        name for row in re.findall(r"^\| (`.*?) \|", index, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    ]
    assert len(names) > 30
    for name in names:
        assert (ROOT / name).exists(), name
    folders = [ROOT / name for name in ("modeling_wavlink", "processing", "hub_cards", "wavlink")]
    modules = {str(path.relative_to(ROOT)) for folder in folders for path in folder.glob("*.py")}
    assert {name for name in modules if "__" not in name} <= set(names)
