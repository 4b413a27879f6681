"""The loopback Hub answers huggingface_hub's own client: files, revisions, errors, and a push that reads back."""

import json

from tests.hub_server import TOKEN

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
