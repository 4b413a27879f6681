"""A push against a Hub: one atomic commit, also on errors, and a token that is never shown."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from hub_cards import push
from tests.hub_faults import FaultyHub
from tests.hub_server import OTHER_TOKEN, READ_TOKEN, TOKEN
from tests.processes import run_process
from wavlink.hub_record import LINE, RECORD

ROOT = Path(__file__).parents[2]
FILES = {"model.safetensors", "config.json", "README.md", "modeling_wavlink.py", "tokenizer.json"}
# The command without the check in a clean environment, which has its own tests, and without waits before retries.
QUICK = """
import sys, time
from hub_cards import push
from wavlink.hub_record import LINE, RECORD
from wavlink.console import run_command
time.sleep = lambda seconds: None
push.verify = lambda folder, expected: None
sys.exit(run_command("wavlink push", push.main, sys.argv[1:]))
"""


@pytest.fixture
def hub(tmp_path):
    hub = FaultyHub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def here(hub, monkeypatch):
    """Push in this process, without the check in a clean environment, with a token."""
    monkeypatch.setattr(push, "verify", lambda folder, expected: None)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def run(*words, token: str = TOKEN) -> None:
        monkeypatch.setattr(push, "HfApi", partial(HfApi, endpoint=hub.endpoint, token=token))
        push.main([str(word) for word in words])

    return run


def command(
    hub, tmp_path, *words, token=TOKEN, start=("-c", QUICK), limit=None, **more
) -> subprocess.CompletedProcess:
    """A push in a process with its own HF_HOME. Wherever a token could have got to, it is looked for."""
    home, temporary = (tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}" for name in ("home", "temporary"))
    temporary.mkdir()
    environment = hub.environment(home, token, TMPDIR=str(temporary), OMP_NUM_THREADS="1", **more)
    line = [sys.executable, *start, *map(str, words)]
    if limit is not None:  # a file may not grow beyond so many kB: what a full disk does, without one
        line = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "limited", *line]
    done = run_process(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not list(temporary.iterdir()), "the prepared folder was left in the temporary one"
    refuse_leaks(token or TOKEN, [done.stdout, done.stderr, *hub.storage_log], [home, hub.root])
    return done


def refuse_leaks(token: str, texts: list[str], folders: list[Path]) -> None:
    assert not [text for text in texts if token in text]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if token.encode() in path.read_bytes()]


def message(done: subprocess.CompletedProcess) -> str:
    """The one line a failed push ends with."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def titles(hub, repo_id: str = "user/name") -> list[str]:
    return [commit["title"] for commit in hub.history(repo_id)]


def put_and_asked(hub) -> list[str]:
    return [path for method, path in hub.requests if method in ("PUT", "POST") and "validate-yaml" not in path]


@pytest.mark.slow
def test_the_whole_command_makes_one_private_verified_tagged_commit(hub, wavlink_folder, tmp_path):
    loud = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "TRANSFORMERS_VERBOSITY": "debug"}
    words = [wavlink_folder, "user/name", "--private", "--tag", "v1"]
    done = command(hub, tmp_path, *words, start=("-m", "hub_cards.push"), **loud)
    assert done.returncode == 0, done.stderr
    *_, commit = hub.history("user/name")
    assert done.stdout.splitlines()[-1] == f"{hub.endpoint}/user/name/commit/{commit['id']}"
    assert titles(hub) == ["initial commit", "WavLink"] and FILES <= hub.files("user/name")
    assert hub.refs(hub.root / "models/user/name") == {"main": commit["id"], "refs/tags/v1": commit["id"]}
    assert any("PUT /lfs/" in text for text in hub.storage_log)
    with pytest.raises(RepositoryNotFoundError):  # private
        HfApi(endpoint=hub.endpoint, token=False).model_info("user/name")


@pytest.mark.slow
def test_a_model_goes_by_xet_in_one_commit_and_comes_back(hub, wavlink_folder, tmp_path):
    """As clients do by default: the weights go to the other storage, which never sees the Hub's token."""
    pytest.importorskip("hf_xet")
    before = len(hub.requests)
    done = command(hub, tmp_path, wavlink_folder, "user/by-xet", HF_HUB_DISABLE_XET="0")
    assert done.returncode == 0, done.stderr
    asked = {path.split("/")[3] for _, path in hub.requests[before:] if path.startswith("/xet/")}
    assert {"xorbs", "shards"} <= asked and not any("PUT /lfs/" in text for text in hub.storage_log)
    assert titles(hub, "user/by-xet") == ["initial commit", "WavLink"] and FILES <= hub.files("user/by-xet")
    code = "from huggingface_hub import hf_hub_download as get; print(get('user/by-xet', 'model.safetensors'))"
    path = hub.run(code, tmp_path / "reader", TOKEN, HF_HUB_DISABLE_XET="0").strip()
    assert Path(path).read_bytes() == (wavlink_folder / "model.safetensors").read_bytes()
    assert any(path.startswith("/xet/v1/data") for _, path in hub.requests[before:])


def test_push_to_an_existing_repository_removes_files_of_older_pushes(hub, here, wavlink_folder, tmp_path):
    old = tmp_path / "old"
    leavings = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    leavings += ["adapter_config.json", "gone_wavlink.py", "vocab.txt", ".eval_results/esc50.yaml"]
    kept = ["LICENSE", "notes.txt", "figure.png", "onnx/model.onnx", "onnx/config.json", "examples/demo.py"]
    for name in [*leavings, *kept, "README.md"]:
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text("old")
    hub.add_repo("user/name", old, "model")
    here(wavlink_folder, "user/name")
    files = hub.files("user/name")
    assert titles(hub) == ["initial commit", "", "WavLink"]
    assert FILES | set(kept) <= files and not files & set(leavings)
    assert (hub.find("models", "user/name", "main")[1] / "README.md").read_text() != "old"
    here(wavlink_folder, "user/name")
    assert len(titles(hub)) == 3  # nothing new, so no commit


def put(hub, name: str, content: bytes, repo_id: str = "user/name", kind: str = "model") -> None:
    """As somebody does on the Hub's own pages."""
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id, repo_type=kind)


def text(hub, name: str = "README.md", repo_id: str = "user/name", kind: str = "models") -> str:
    return (hub.find(kind, repo_id, "main")[1] / name).read_text(encoding="utf-8")


def test_text_below_the_line_and_foreign_files_are_kept(hub, here, wavlink_folder, tmp_path):
    here(wavlink_folder, "user/name")
    made = text(hub)
    own = "\n## Known to us\n\nIt takes the neighbour's pump for rain. \u2603\n"
    put(hub, "README.md", (made + own).encode())
    for name in ("examples.json", "vocab.txt", "mine_wavlink.py", "scores/mine.json", "extra.safetensors"):
        put(hub, name, b"{}")
    again = tmp_path / "again"
    shutil.copytree(wavlink_folder, again)
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps({**config, "note": 1}))
    here(again, "user/name")
    assert text(hub) == made + own and titles(hub)[-1] == "WavLink" and '"note": 1' in text(hub, "config.json")
    expected = {"examples.json", "vocab.txt", "mine_wavlink.py", "scores/mine.json", "extra.safetensors"}
    assert expected <= hub.files("user/name")
    here(again, "user/name")
    assert text(hub) == made + own


def test_only_files_of_earlier_pushes_are_deleted(hub, here, wavlink_folder):
    here(wavlink_folder, "user/name")
    record = json.loads(text(hub, RECORD))
    assert set(record["files"]) == hub.files("user/name")
    record["files"] += ["model-00001-of-00002.safetensors", "gone.json"]
    for name in ("model-00001-of-00002.safetensors", "gone.json", "stays.json"):
        put(hub, name, b"old")
    put(hub, RECORD, json.dumps(record).encode())
    here(wavlink_folder, "user/name")
    files = hub.files("user/name")
    assert "stays.json" in files and not files & {"model-00001-of-00002.safetensors", "gone.json"}


def test_a_card_edited_above_the_line_stops_the_push_before_the_work(hub, here, wavlink_folder, monkeypatch):
    here(wavlink_folder, "user/name")
    made = text(hub)
    below = "Mine.\n"
    put(hub, "README.md", (made.replace("## Use", "## Use it") + below).encode())
    with monkeypatch.context() as patch:
        patch.setattr(push, "prepare", lambda *_: pytest.fail("prepared before the card was looked at"))
        with pytest.raises(SystemExit, match="README.md of user/name was edited on the Hub.*--overwrite_card"):
            here(wavlink_folder, "user/name")
    assert "## Use it" in text(hub)
    here(wavlink_folder, "user/name", "--overwrite_card")
    assert text(hub) == made + below


@pytest.mark.parametrize("line_ends", ["\r\n", "\n\n"], ids=["windows", "one more at the end"])
def test_a_card_saved_without_other_words_is_not_edited(hub, here, wavlink_folder, line_ends):
    here(wavlink_folder, "user/name")
    made = text(hub)
    changed = made.replace("\n", "\r\n") if line_ends == "\r\n" else made + "\n"
    hub.commit(hub.root / "models/user/name", "main", {"README.md": changed.encode()})
    here(wavlink_folder, "user/name")
    assert LINE in text(hub)


def test_card_not_made_by_a_push(hub, here, wavlink_folder, tmp_path):
    """Words stay, below the line; metadata cannot, and a version without records may have been edited."""
    for repo_id, words in {
        "user/words": "# Ours\n\nWords.\n",
        "user/licence": "---\nlicense: mit\n---\n",
        "user/older": "# user/older\n\nWavLink puts a sound and a sentence into one vector. And mine.\n",
    }.items():
        (tmp_path / repo_id).mkdir(parents=True)
        (tmp_path / repo_id / "README.md").write_text(words)
        hub.add_repo(repo_id, tmp_path / repo_id, "model")
    here(wavlink_folder, "user/words")
    assert text(hub, repo_id="user/words").endswith(f"{LINE}\n\n# Ours\n\nWords.\n")
    for repo_id in ("user/licence", "user/older"):
        with pytest.raises(SystemExit, match="was edited on the Hub, or comes from elsewhere"):
            here(wavlink_folder, repo_id)
        here(wavlink_folder, repo_id, "--overwrite_card")
        assert text(hub, repo_id=repo_id).endswith(f"{LINE}\n")


def test_branch_pull_request_and_tag(hub, here, wavlink_folder, tmp_path, capsys):
    repo = hub.create("user/name")
    here(wavlink_folder, "user/name", "--revision", "epoch-2", "--tag", "v2")
    refs = hub.refs(repo)
    assert refs["epoch-2"] == refs["refs/tags/v2"] != refs["main"] and not hub.files("user/name")
    here(wavlink_folder, "user/name", "--create_pr", token=OTHER_TOKEN)  # who may not write there
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.endpoint}/user/name/discussions/1"
    assert hub.refs(repo)["main"] == refs["main"] and FILES <= hub.files("user/name", "refs/pr/1")
    with pytest.raises(SystemExit, match="has a tag v2 already"):
        here(wavlink_folder, "user/name", "--tag", "v2")
    with pytest.raises(SystemExit, match="user/other is not there to open a pull request on"):
        here(wavlink_folder, "user/other", "--create_pr")
    with pytest.raises(SystemExit, match="user/name exists and is public"):
        here(wavlink_folder, "user/name", "--private")


EARLY = """
import json, os, sys
from hub_cards import push
from wavlink.hub_record import LINE, RECORD
def no_work(*_):
    raise AssertionError("prepared before the right to write was known")
push.prepare, said = no_work, []
for token, repo_id in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        push.main(["folder", repo_id])
    except SystemExit as stopped:
        said.append(str(stopped))
print(json.dumps(said))
"""


@pytest.mark.slow
def test_missing_token_and_rights_are_reported_before_the_work(hub, tmp_path):
    hub.create("somebody/there")
    hub.create("user/mine")
    asked = [("", "user/a"), ("hf_wrong", "user/a"), (TOKEN, "somebody/new"), (TOKEN, "somebody/there")]
    asked += [(READ_TOKEN, "user/mine"), (READ_TOKEN, "user/new")]
    done = command(hub, tmp_path, json.dumps(asked), token="hf_wrong", start=("-c", EARLY.replace("hf_wrong", "")))
    said = json.loads(done.stdout.splitlines()[-1])
    expected = [
        "there is no Hub token here: hf auth login",
        "the Hub does not know this token: hf auth login",
        "this token, of user, may not create somebody/new: it may write below user, team",
        "this token, of user, may not write to somebody/there: take one that may",
        "this token, of user, may not write to user/mine: take one that may",
        "this token, of user, may only read",
    ]
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(f"wavlink push: {start}")
    assert not put_and_asked(hub)  # nothing was created
    refuse_leaks(TOKEN, [done.stdout, done.stderr], [hub.root])


@pytest.mark.slow
def test_upload_resumes_after_an_interruption(hub, wavlink_folder, tmp_path):
    hub.fail("PUT", "/lfs/", "broken", times=3)
    hub.fail("PUT", "/lfs/", "cut", times=2)
    done = command(hub, tmp_path, wavlink_folder, "user/name")
    assert done.returncode == 0, done.stderr
    assert titles(hub) == ["initial commit", "WavLink"] and FILES <= hub.files("user/name")
    assert sum(method == "PUT" for method, _ in hub.requests) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "path, how, said",
    [
        ("PUT /lfs/", "broken", "HTTP 500 from http://localhost:.*/lfs/[0-9a-f]+: Internal Error"),
        ("PUT /lfs/", "cut", "(Write|Read|RemoteProtocol)Error"),
        ("PUT /lfs/", "flipped", "HTTP 400 .*: the content is not what its sha256 says"),
        ("POST /commit/", "broken", "HTTP 500 from .*/api/models/user/name/commit/main"),
        ("POST /commit/", "cut", "(Write|Read|RemoteProtocol)Error"),
        ("POST /preupload/", "broken", "HTTP 500 from .*/preupload/main"),
    ],
)
def test_failed_upload_leaves_no_partial_commit(hub, here, wavlink_folder, tmp_path, path, how, said):
    hub.fail(*path.split(), how)
    done = command(hub, tmp_path, wavlink_folder, "user/name")
    line = message(done)
    assert re.search(said, line), line
    assert f"the upload to {hub.endpoint}/user/name failed" in line
    assert "no commit was made, the new repository stays, empty; the same command starts again" in line
    assert titles(hub) == ["initial commit"] and not hub.files("user/name")
    hub.faults.clear()
    here(wavlink_folder, "user/name")
    assert titles(hub) == ["initial commit", "WavLink"] and FILES <= hub.files("user/name")


def test_lost_answer_to_a_commit_is_reported(hub, here, wavlink_folder):
    hub.fail("POST", "/commit/", "lost", times=1)
    with pytest.raises(SystemExit, match="main has a new commit, see there whether it is this one"):
        here(wavlink_folder, "user/name")
    assert FILES <= hub.files("user/name")
    hub.fail("GET", "", "cut")
    hub.fail("POST", "/create", "lost")
    with pytest.raises(SystemExit, match="cannot ask the Hub who may write: "):
        here(wavlink_folder, "user/name")


def test_concurrent_commit_is_not_overwritten(hub, here, wavlink_folder):
    repo = hub.create("user/name")
    hub.fail("POST", "/commit/", lambda: hub.commit(repo, "main", {"config.json": b"theirs"}, title="theirs"), times=1)
    with pytest.raises(SystemExit, match="HTTP 412 .*A commit has happened since"):
        here(wavlink_folder, "user/name")
    assert titles(hub) == ["initial commit", "theirs"] and hub.files("user/name") == {"config.json"}


def test_a_tag_that_fails_does_not_hide_the_commit(hub, here, wavlink_folder):
    hub.fail("POST", "/tag/", "broken")
    with pytest.raises(SystemExit, match="the commit was made, .*/commit/[0-9a-f]+, but not its tag v1: HTTP 500"):
        here(wavlink_folder, "user/name", "--tag", "v1")
    assert titles(hub) == ["initial commit", "WavLink"]


@pytest.mark.slow
def test_full_disk_is_reported_and_nothing_is_uploaded(hub, wavlink_folder, tmp_path):
    out = tmp_path / "out"
    line = message(command(hub, tmp_path, wavlink_folder, "user/name", "--output_dir", out, limit=50))
    assert f"could not write {out}: " in line and "nothing was uploaded: free space on its disk" in line
    assert not out.exists() and not put_and_asked(hub)


def test_messages_hold_no_token(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def fail(options):
        raise OSError("Illegal header value b'Bearer hf_secret'")

    monkeypatch.setattr(push, "push", fail)
    with pytest.raises(SystemExit, match=r"Bearer \*\*\*'"):
        push.main(["folder", "user/name"])
