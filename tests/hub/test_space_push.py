"""A Space on the Hub: one commit that holds all it needs, and that has started before it is uploaded."""

import configparser
import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi, SpaceCard, constants
from huggingface_hub.errors import RepositoryNotFoundError
from packaging.requirements import Requirement

from hub_cards import push
from hub_cards.space import folder as space_folder
from hub_cards.space import static_folder
from tests.hub_faults import FaultyHub
from tests.hub_server import READ_TOKEN, TOKEN
from tests.processes import run_process
from tests.space_demo import write_all, write_index, write_sounds
from wavlink import hub_upload as upload
from wavlink.backends import onnx
from wavlink.search.index import Index

ROOT = Path(__file__).parents[2]
# A machine that has what the Space's requirements name, and no more; run in the Space's folder.
AS_ON_THE_HUB = """
import runpy, sys
for name in ("accelerate", "datasets", "evaluate", "peft", "mteb", "sentence_transformers", "torchmetrics"):
    sys.modules[name] = None
sys.argv = ["app.py", "--check"]
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture
def hub(tmp_path):
    hub = FaultyHub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory, whisper_folder, bert_folder):
    """`model`, `sounds` and `index`."""
    return write_all(tmp_path_factory.mktemp("space"), whisper_folder, bert_folder)


@pytest.fixture
def here(hub, monkeypatch):
    """A push in this process, without the processes that try what is pushed, which have tests of their own."""
    monkeypatch.setattr(push, "verify", lambda folder, expected: None)
    monkeypatch.setattr(push, "check_space", lambda folder: None)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def run(*words, token: str = TOKEN) -> None:
        monkeypatch.setattr(push, "HfApi", partial(HfApi, endpoint=hub.endpoint, token=token))
        push.main([str(word) for word in words])

    return run


def test_a_space_is_one_commit_with_code_model_index_and_sounds(hub, here, made, capsys):
    here(made / "model", "user/demo", "--space", "--index", made / "index", "--private", "--tag", "v1")
    history = hub.history("user/demo", "spaces")
    assert [commit["title"] for commit in history] == ["initial commit", "WavLink"]
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.endpoint}/spaces/user/demo/commit/{history[-1]['id']}"
    files = hub.files("user/demo", kind="spaces")
    expected = {"app.py", "README.md", "requirements.txt", "LICENSE", "model/model.safetensors", "model/README.md"}
    expected |= {f"wavlink/example_sounds/{name}" for name in ("metadata.csv", "CREDITS.md", "cow_moo.ogg")}
    expected |= {"sounds/200 hertz.wav", "hub_cards/space/app.py", "hub_cards/space/style.css"}
    expected |= {"wavlink/embedder.py", "processing/audio.py", "index/checksums.jsonl"}
    assert expected <= files
    assert not [name for name in files if "__pycache__" in name or name.endswith((".pyc", ".lock"))]
    _, place = hub.find("spaces", "user/demo", "main")
    card = SpaceCard.load(place / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("gradio", "app.py", "demo")
    published = [place / "app.py", *(path for path in (place / "index").rglob("*") if path.is_file())]
    assert len(published) > 3 and not any(str(made).encode() in path.read_bytes() for path in published)
    assert Index.open(place / "index", str(made / "model"))
    settings = json.loads((place.parent / "settings.json").read_text())
    assert settings == {"private": True, "sdk": "gradio"}


def test_later_push_of_a_space_deletes_only_files_of_older_pushes(hub, here, made, tmp_path):
    old = tmp_path / "old"
    for name in (
        "index/windows.lance/data/0.lance",
        "sounds/gone.wav",
        "processing/gone.py",
        "notes.txt",
        "a/b.png",
    ):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text("old")
    hub.add_repo("user/demo", old, "space")
    here(made / "model", "user/demo", "--space")
    files = hub.files("user/demo", kind="spaces")
    assert {"notes.txt", "a/b.png", "app.py"} <= files
    assert not [name for name in files if name.startswith(("index/", "sounds/")) or name == "processing/gone.py"]
    assert set(upload.SPACE_FOLDERS) == {"model", "index", "sounds", *space_folder.PACKAGES} - {"wavlink"}


def test_push_of_a_space_keeps_foreign_files(hub, here, made):
    here(made / "model", "user/demo", "--space", "--index", made / "index")
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)

    def put(name: str, content: bytes) -> None:
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="user/demo", repo_type="space")

    _, place = hub.find("spaces", "user/demo", "main")
    app = (place / "app.py").read_bytes()
    put("sounds/mine.wav", b"mine")
    put("README.md", (place / "README.md").read_bytes() + b"Mine.\n")
    here(made / "model", "user/demo", "--space")
    files = hub.files("user/demo", kind="spaces")
    assert "sounds/mine.wav" in files and not [name for name in files if name.startswith("index/")]
    assert (hub.find("spaces", "user/demo", "main")[1] / "README.md").read_text().endswith("Mine.\n")
    put("app.py", app + b"# mine\n")
    with pytest.raises(SystemExit, match="app.py of user/demo was edited on the Hub"):
        here(made / "model", "user/demo", "--space")
    here(made / "model", "user/demo", "--space", "--overwrite_card")


def test_the_licence_of_an_installed_package_is_among_its_distribution_s_files(tmp_path, monkeypatch):
    """Beside its packages there may be another one's."""
    about = tmp_path / "wavlink-0.1.0.dist-info"
    (about / "licenses").mkdir(parents=True)
    (tmp_path / "LICENSE").write_text("of another package")
    (about / "licenses/LICENSE").write_text("ours")
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: wavlink\nVersion: 0.1.0\n")
    (about / "RECORD").write_text(f"{about.name}/licenses/LICENSE,,\n{about.name}/METADATA,,\n")
    assert space_folder.licence_file() == space_folder.ROOT / "LICENSE"
    monkeypatch.setattr(space_folder, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert space_folder.licence_file().read_text() == "ours"
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match="lacks its LICENSE"):
        space_folder.licence_file()


def test_a_model_and_a_space_of_one_name_are_two_repositories(hub, here, made):
    here(made / "model", "user/demo", "--space")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.endpoint, token=TOKEN).model_info("user/demo")
    assert HfApi(endpoint=hub.endpoint, token=TOKEN).space_info("user/demo").id == "user/demo"
    with pytest.raises(SystemExit, match="may not write to user/demo"):
        here(made / "model", "user/demo", "--space", token=READ_TOKEN)


def test_failed_upload_leaves_no_partial_space(hub, here, made):
    hub.fail("POST", "/commit/", "broken")
    with pytest.raises(SystemExit, match="/spaces/user/demo failed: .* no commit was made, the new repository stays"):
        here(made / "model", "user/demo", "--space")
    assert not hub.files("user/demo", kind="spaces")


@pytest.fixture
def page(monkeypatch, tmp_path):
    """Without the parts of a page that take long: npm's packages, the export, and the comparison of its weights."""

    def export(model, processor, folder, progress):
        folder.mkdir()
        for name in ("audio.onnx", "text.onnx"):
            (folder / name).write_bytes(name.encode())
        (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
        return {"revision": "sha256:0", "precision": "fp32", "opset": 18}

    monkeypatch.setattr(onnx, "export_onnx", export)
    monkeypatch.setattr(static_folder, "write_packages", lambda folder, packages: folder.mkdir())
    monkeypatch.setattr(static_folder, "_halve", lambda path, processor: {"stored": "fp16", "distance": 0.0})


def test_a_static_space_is_one_commit_whose_page_is_not_overwritten(hub, here, made, page, capsys):
    here(made / "model", "user/page", "--static", "--private")
    history = hub.history("user/page", "spaces")
    assert [commit["title"] for commit in history] == ["initial commit", "WavLink"]
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.endpoint}/spaces/user/page/commit/{history[-1]['id']}"
    files = hub.files("user/page", kind="spaces")
    expected = {"index.html", "page.js", "wavlink.js", "style.css", "README.md", "LICENSE", "space.json"}
    expected |= {"model/audio.onnx", "model/text.onnx", "model/wavlink_onnx.json", "sounds/CREDITS.md"}
    assert expected <= files and not [name for name in files if name.endswith((".py", ".safetensors"))]
    _, place = hub.find("spaces", "user/page", "main")
    card = SpaceCard.load(place / "README.md")
    assert (card.data.sdk, card.data.title) == ("static", "page") and "{" not in card.text
    assert json.loads((place.parent / "settings.json").read_text()) == {"private": True, "sdk": "static"}
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    page = (place / "index.html").read_bytes() + b"<!-- mine -->"
    api.upload_file(path_or_fileobj=page, path_in_repo="index.html", repo_id="user/page", repo_type="space")
    with pytest.raises(SystemExit, match="index.html of user/page was edited on the Hub"):
        here(made / "model", "user/page", "--static")
    here(made / "model", "user/page", "--static", "--overwrite_card")
    assert b"mine" not in (hub.find("spaces", "user/page", "main")[1] / "index.html").read_bytes()


def test_a_page_that_cannot_be_written_is_not_uploaded(hub, here, made, page, monkeypatch):
    monkeypatch.setattr(space_folder, "LARGEST", 1e4)
    with pytest.raises(SystemExit, match="the Space would hold 0.* GB, and the Hub allows .*: take a smaller model"):
        here(made / "model", "user/page", "--static")
    with pytest.raises(SystemExit, match="neither a config.json nor an adapter_config.json"):
        here(made / "sounds", "user/page", "--static")
    assert not [path for method, path in hub.requests if method == "POST" and "/repos/create" in path]


@pytest.mark.slow
def test_a_page_names_its_model_of_the_hub_by_its_commit(hub, made, tmp_path):
    commit = hub.add_repo("user/model", made / "model", "model")
    words = ["user/model", "user/page", "--static", "--dry_run", "--output_dir", str(tmp_path / "out")]
    code = """
from hub_cards import push
from wavlink.loading import revision
def write(folder, model, processor, name, npm_packages, progress, title):
    print(name, revision(model), title)
push.write_static_space = write
"""
    output = hub.run(f"{code}push.main({words!r})", tmp_path / "home", TOKEN)
    assert output.splitlines()[0] == f"user/model {commit} page"


@pytest.mark.slow
def test_a_model_on_the_hub_is_named_by_its_commit_and_not_copied(hub, made, tmp_path):
    commit = hub.add_repo("user/model", made / "model", "model")
    words = ["user/model", "user/demo", "--space", "--dry_run", "--output_dir", str(tmp_path / "out")]
    code = f"from hub_cards import push\npush.check_space = lambda folder: None\npush.main({words!r})"
    hub.run(code, tmp_path / "home", TOKEN)
    assert not (tmp_path / "out/model").exists()
    app = (tmp_path / "out/app.py").read_text()
    assert '"--model=user/model"' in app and f'"--revision={commit}"' in app
    card = SpaceCard.load(tmp_path / "out/README.md")
    assert card.data.models == ["user/model"] and "https://huggingface.co/user/model" in card.text


@pytest.mark.slow
def test_pushed_space_starts_with_its_requirements_alone(made, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "verify", lambda folder, expected: None)
    out = tmp_path / "out"
    words = [made / "model", "user/demo", "--space", "--index", made / "index", "--dry_run", "--output_dir", out]
    push.main([str(word) for word in words])  # with the check that starts it
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": ""}
    done = run_process(
        [sys.executable, "-c", AS_ON_THE_HUB], cwd=out, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"model     {out}/model" in done.stdout and "windows   7\n" in done.stdout
    here, there = (Index.open(folder / "index", str(made / "model")) for folder in (made, out))
    answers = [[(hit.path, hit.score) for hit in index.query("a low bell", top_k=7)] for index in (here, there)]
    assert answers[0] == answers[1]
    assert sorted(path.name for path in (out / "sounds").iterdir()) == sorted(
        path.name for path in (made / "sounds").iterdir()
    )


@pytest.mark.slow
def test_a_space_that_does_not_start_is_not_uploaded(made, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "verify", lambda folder, expected: (folder / "config.json").unlink())
    with pytest.raises(SystemExit, match="the Space does not start: wavlink space: .*model has no config.json"):
        push.main([str(made / "model"), "user/demo", "--space", "--dry_run", "--output_dir", str(tmp_path / "out")])


def test_a_space_too_large_and_an_index_without_sounds_are_refused(made, tmp_path, monkeypatch):
    for name in ("verify", "check_space"):
        monkeypatch.setattr(push, name, lambda *_: None)

    def refused(out: str, said: str, *options) -> None:
        words = [made / "model", "user/demo", "--space", "--dry_run", "--output_dir", tmp_path / out, *options]
        with pytest.raises(SystemExit, match=said):
            push.main([str(word) for word in words])

    refused("b", "is no index", "--index", made)
    index = write_index(tmp_path / "index", made / "model", write_sounds(tmp_path / "sounds"))
    (tmp_path / "sounds/300 hertz.wav").unlink()
    refused("c", "1 of the index's sounds are not there, such as 300 hertz.wav", "--index", index)
    monkeypatch.setattr(space_folder, "LARGEST", 1e5)
    refused("d", "the Space would hold 0.* GB, and the Hub allows .*push the model by itself")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--space", "--scores", "a.json"], "--space"),
        (["--index", "x"], "--space"),
        (["--static", "--scores", "a.json"], "--static"),
        (["--static", "--space"], "--static"),
        (["--static", "--index", "x"], "--space"),
        (["--npm_packages", "x"], "--static"),
    ],
)
def test_options_that_do_not_go_together(words, named, capsys):
    with pytest.raises(SystemExit):
        push.main(["folder", "user/name", *words])
    assert named in capsys.readouterr().err


def test_versions_of_the_space_are_those_of_the_project():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    extras = {name: text.split("\n") for name, text in config["options.extras_require"].items()}
    lines = [line for group in extras.values() for line in group if line and not line.startswith("%")]
    always = {str(Requirement(line)) for line in config["options"]["install_requires"].split()}
    declared = always | {str(Requirement(line)) for line in lines}
    needed = {str(Requirement(line)) for line in (space_folder.HERE / "requirements.txt").read_text().split()}
    assert always <= needed
    assert {Requirement(line).name for line in needed - declared} == {"jinja2"}  # which comes with others here
    version = SpaceCard.load(space_folder.HERE / "README.md").data.sdk_version
    assert re.search(rf"^gradio=={re.escape(version)}$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
