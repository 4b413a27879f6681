"""The loopback Hub answers huggingface_hub's own client: files, revisions, errors, and a push that reads back."""

import hashlib
import http.client
import json
import struct

import huggingface_hub
import numpy as np
import pytest

from tests.hub_server import READ_TOKEN, TOKEN
from tests.hub_xet import XET_TOKEN

READ = """
import json
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
def content(*path, **options):
    return open(hf_hub_download("user/data", *path, repo_type="dataset", **options)).read()
def error(repo, name, revision="main"):
    try:
        hf_hub_download(repo, name, repo_type="dataset", revision=revision)
    except Exception as failure:
        return type(failure).__name__
first, second = {commits}
print(json.dumps([
    content("list.csv"), content("list.csv", revision=first), content("deep/large.bin", revision=second),
    sorted(HfApi().list_repo_files("user/data", repo_type="dataset")),
    error("user/data", "none.csv"), error("user/none", "list.csv"), error("user/data", "list.csv", "v2"),
]))
"""

PUSH = """
import json
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
api.create_repo("user/model")
api.create_repo("user/model", exist_ok=True)
first = api.upload_folder(repo_id="user/model", folder_path={folder!r}).oid
api.upload_file(repo_id="user/model", path_or_fileobj=b"changed", path_in_repo="deep/large.bin")
api.delete_file("list.csv", "user/model")
print(json.dumps([
    api.whoami()["name"],
    sorted(api.list_repo_files("user/model")),
    sorted(api.list_repo_files("user/model", revision=first)),
    open(hf_hub_download("user/model", "deep/large.bin")).read(),
    open(hf_hub_download("user/model", "deep/large.bin", revision=first)).read(),
]))
"""


def write(folder, text: str):
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "list.csv").write_text(text)
    (folder / "deep" / "large.bin").write_text("large " + text)
    return folder


def test_files_revisions_and_errors(hub, tmp_path):
    first = hub.add_repo("user/data", write(tmp_path / "data", "one"))
    second = hub.add_repo("user/data", write(tmp_path / "data", "two"))
    read = json.loads(hub.run(READ.replace("{commits}", repr((first, second))), tmp_path / "home"))
    assert read[:4] == ["two", "one", "large two", ["deep/large.bin", "list.csv"]]
    assert read[4:] == ["RemoteEntryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"]
    assert any(path.startswith("/lfs/") for _, path in hub.requests)


def test_what_is_pushed_reads_back_and_old_commits_stay(hub, tmp_path):
    code = PUSH.replace("{folder!r}", repr(str(write(tmp_path / "model", "one"))))
    name, now, before, large, large_before = json.loads(hub.run(code, tmp_path / "home", TOKEN))
    assert name == "user" and now == ["deep/large.bin"] and before == ["deep/large.bin", "list.csv"]
    assert (large, large_before) == ("changed", "large one")


BY_XET = """
import json
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
api = HfApi()
api.create_repo("user/xet", exist_ok=True)
files = {files!r}
api.create_commit("user/xet", [CommitOperationAdd(name, path) for name, path in files.items()], commit_message="all")
def content(path):
    return open(path, "rb").read()
same = [content(hf_hub_download("user/xet", name)) == content(path) for name, path in files.items()]
print(json.dumps(same))
"""


@pytest.mark.slow
def test_files_go_by_xet_and_come_back(hub, tmp_path):
    """Random bytes, which are stored as they are; others, in LZ4; numbers, in LZ4 after their bytes were grouped."""
    pytest.importorskip("hf_xet")
    if int(huggingface_hub.__version__.split(".")[0]) < 2:
        pytest.skip("clients before 2.0 choose Xet by other answers of the Hub than the loopback one gives")
    random = np.random.default_rng(0)
    numbers = np.cumsum(random.standard_normal(100_000)).astype(np.float32).tobytes()
    contents = {
        "random.bin": random.bytes(200_000),
        "same.bin": b"abc" * 100_000,
        "numbers.bin": numbers,
        "x.bin": b"x",
    }
    contents["all.bin"] = b"".join(contents.values())
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files, before = {name: str(tmp_path / name) for name in contents}, len(hub.requests)
    code = BY_XET.replace("{files!r}", repr(files))
    assert json.loads(hub.run(code, tmp_path / "home", TOKEN, HF_HUB_DISABLE_XET="0")) == [True] * len(contents)
    asked = {path.split("/")[3] for _, path in hub.requests[before:] if path.startswith("/xet/")}
    assert {"xorbs", "shards", "reconstructions", "data"} <= asked
    assert not any(path.startswith("/lfs/") or path.endswith("/objects/batch") for _, path in hub.requests[before:])
    refused = code.replace("api.create_repo", "#").replace("\napi.create_commit", "\ntry: api.create_commit")
    refused = refused.replace("\ndef", "\nexcept Exception as error: print(type(error).__name__)\ndef")
    assert "HfHubHTTPError" in hub.run(refused, tmp_path / "home", READ_TOKEN, HF_HUB_DISABLE_XET="0")


def test_xet_storage_refuses_content_of_another_sha256_and_a_token_of_the_hub(hub):
    (hub.root / "xet").mkdir(exist_ok=True)
    xorb = b"\0\x03\0\0\0\x03\0\0abc"
    name, digest = "01" * 32, bytes.fromhex("01" * 32)
    zeros, end = bytes(48), b"\xff" * 32 + bytes(16)
    entry = digest + struct.pack("<4I", 0, 3, 0, 1)
    shard = zeros + digest + struct.pack("<2I", 1 << 30, 1) + bytes(8) + entry + b"\2" * 32 + bytes(16) + end

    def post(path: str, content: bytes, token: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", hub.server.server_port)
        connection.request("POST", path, content, {"Authorization": f"Bearer {token}"})
        return connection.getresponse().status

    assert post(f"/xet/v1/xorbs/default/{name}", xorb, TOKEN) == 401
    assert post(f"/xet/v1/xorbs/default/{name}", xorb[:-1], XET_TOKEN) == 400
    assert post(f"/xet/v1/xorbs/default/{name}", xorb, XET_TOKEN) == 200
    assert post("/xet/v1/shards", shard, XET_TOKEN) == 400 and not (hub.root / "xet" / f"{name}.json").exists()
    sha256 = struct.pack(">4Q", *struct.unpack("<4Q", hashlib.sha256(b"abc").digest()))
    assert post("/xet/v1/shards", shard.replace(b"\2" * 32, sha256), XET_TOKEN) == 200
