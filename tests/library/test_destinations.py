"""What commands write and replace: only what they made, decided before the work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import train
from hub_cards import push
from hub_cards.card import _ship_scores
from tests.captioned_folders import folder as five  # noqa: F401
from tests.tone_runs import folder, recipe  # noqa: F401
from wavlink.atomic_files import only_writer
from wavlink.evaluation import command as evaluation
from wavlink.search import hub as index_copies
from wavlink.search import map as sound_map

ROOT = Path(__file__).parents[2]


def names(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


def test_run_keeps_foreign_files_in_its_folders(folder, tmp_path):  # noqa: F811
    run = train.train(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    for name in ("best/NOTES.md", "last/onnx/audio.onnx", "notes.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "best/model-00001-of-00002.safetensors").write_text("of more shards")
    again = train.train(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    assert (again / "last/onnx/audio.onnx").read_text() == (again / "notes.txt").read_text() == "mine"
    whole = train.Run(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    whole.save_model("best")
    assert (run / "best/NOTES.md").read_text() == "mine"
    assert not (run / "best/model-00001-of-00002.safetensors").exists()
    assert not [name for name in names(run) if "unfinished" in name or "replaced" in name or name.endswith(".lock")]


def test_model_not_written_by_a_run_is_not_replaced(folder, tmp_path):  # noqa: F811
    (tmp_path / "run/best").mkdir(parents=True)
    (tmp_path / "run/best/model.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="holds best/, but no run has written it: give another --output_dir"):
        train.train(recipe(folder, tmp_path / "run", "--max_steps", "2"))
    assert names(tmp_path / "run") == ["best", "best/model.safetensors"]


def test_run_folder_is_locked_by_one_process(folder, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "run").mkdir()
    code = "import sys\nfrom pathlib import Path\nfrom wavlink.atomic_files import only_writer\n"
    code += "with only_writer(Path(sys.argv[1])): print('held', flush=True), sys.stdin.read()"
    line = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr("wavlink.training.loop.Run", lambda recipe: pytest.fail("another process trains there"))
        with pytest.raises(ValueError, match="another process is writing to"):
            train.train(recipe(folder, tmp_path / "run", "--max_steps", "2"))
        other.communicate()


def refused(command, said: str) -> None:
    with pytest.raises((ValueError, SystemExit), match=said):
        command()


def test_outputs_of_an_evaluation_are_refused_before_the_work(five, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(evaluation, "load", lambda *_: pytest.fail("the data was loaded first"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()

    def score(output: Path):
        return lambda: evaluation.main(["--model", "x", "--benchmark", str(five), "--output", str(output)])

    refused(score(tmp_path / "folder"), "is a folder: name a file")
    refused(score(tmp_path / "file/scores.json"), "cannot be written")
    refused(score(Path("/dev/null")), "not a regular file")
    (tmp_path / "scores.json.parts").mkdir()
    with only_writer(tmp_path / "scores.json.parts"):
        monkeypatch.setattr("filelock.FileLock.acquire", _taken)
        refused(score(tmp_path / "scores.json"), "another process is writing to")
    assert names(tmp_path) == ["file", "folder", "scores.json.parts"]


def _taken(lock, *arguments, **options):
    import filelock

    raise filelock.Timeout(str(lock.lock_file))


def test_an_evaluation_follows_a_link_and_leaves_a_folder_named_like_its_parts(
    wavlink_folder,
    five,  # noqa: F811
    tmp_path,
):
    (tmp_path / "disk").mkdir()
    (tmp_path / "scores.json").symlink_to("disk/scores.json")
    command = ["--model", str(wavlink_folder), "--benchmark", str(five), "--output", str(tmp_path / "scores.json")]
    (tmp_path / "scores.json.parts/0").mkdir(parents=True)
    (tmp_path / "scores.json.parts/0/mine").write_text("")
    with pytest.raises(ValueError, match="holds something else than parts of an evaluation"):
        evaluation.main(command)
    (tmp_path / "scores.json.parts/0/mine").rename(tmp_path / "scores.json.parts/mine")
    evaluation.main(command)
    assert (tmp_path / "scores.json").is_symlink() and json.loads((tmp_path / "disk/scores.json").read_text())
    assert names(tmp_path / "scores.json.parts") == ["mine"]


def test_destinations_of_the_other_commands_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "full/inside").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    below = tmp_path / "file/below"
    refused(lambda: sound_map.draw_map(tmp_path / "index", below), "cannot be written")
    refused(lambda: index_copies.pull("user/index", tmp_path / "full"), "is there already")
    refused(lambda: index_copies.pull("user/index", below), "cannot be written")
    monkeypatch.setattr(push, "prepare", lambda *_: pytest.fail("prepared first"))

    def dry(output: str):
        return lambda: push.main(["folder", "user/name", "--dry_run", "--output_dir", output])

    refused(dry(str(tmp_path / "full")), "is not an empty folder")
    refused(dry(str(below)), "cannot be written|is not an empty folder")
    monkeypatch.chdir(tmp_path / "empty")
    refused(dry("."), "the folder you are in.*name a new folder in it")
    refused(lambda: index_copies.pull("user/index", "."), "the folder you are in")
    assert names(tmp_path) == ["empty", "file", "full", "full/inside"]


def test_files_of_a_card_have_no_names_of_devices(tmp_path):
    score = {"benchmark": "con", "data": {"source": "con"}}
    assert _ship_scores(tmp_path, [score, score], ["nul.json", "esc50.json"], "user/name") == [
        "scores/scores-nul.json",
        "scores/esc50.json",
    ]
