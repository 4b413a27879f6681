"""The loopback Hub's repositories: a folder of hard links for each commit.

`ROOT/<models|datasets|spaces>/<owner>/<name>/<commit>/` holds the files of each commit, `refs.json` beside them the
commit of each branch, tag (`refs/tags/...`) and pull request (`refs/pr/...`), `history.json` all commits in order and
`settings.json` whether it is private; `ROOT/lfs/<sha256>` the large files, which are never in memory as a whole.
"""

import hashlib
import json
import os
import shutil
import threading
import uuid
from pathlib import Path
from urllib.parse import unquote

LARGE = (".safetensors", ".parquet", ".bin", ".wav", ".flac", ".mp3", ".ogg", ".tar")
PIECE = 1 << 20  # bytes of a file in memory at once


class Refused(Exception):
    """Answered with a status, and the code and message that the client's exceptions are made from."""

    def __init__(self, code: str, commit: str = "", status: int = 404, message: str = ""):
        self.code, self.commit, self.status, self.message = code, commit, status, message


_DIGESTS: dict[tuple, tuple[str, str]] = {}


def digests(path: Path) -> tuple[str, str]:
    """git's id of a file's content, and its sha256."""
    stat = path.stat()
    key = stat.st_ino, stat.st_mtime_ns, stat.st_size
    if key not in _DIGESTS:
        git, sha256 = hashlib.sha1(b"blob %d\0" % stat.st_size), hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                git.update(piece)
                sha256.update(piece)
        _DIGESTS[key] = git.hexdigest(), sha256.hexdigest()
    return _DIGESTS[key]


def describe(folder: Path, path: Path) -> dict:
    """A tree's line about a file or folder. Files have git's id, large ones the sha256 of their content too."""
    if path.is_dir():
        return {"type": "directory", "path": str(path.relative_to(folder)), "size": 0, "oid": "0" * 40}
    git, sha256 = digests(path)
    line = {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": git}
    if path.suffix in LARGE:
        line["lfs"] = {"oid": sha256, "size": line["size"], "pointerSize": 130}
    return line


class Repositories:
    """What a Hub holds; refuses what a Hub refuses, but knows no users."""

    def __init__(self, root: Path):
        self.root = Path(root)
        (self.root / "lfs").mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()

    def add_repo(self, repo_id: str, folder: Path, repo_type: str = "dataset", private: bool = False) -> str:
        """Puts a folder's files into a repository as a new commit of main; returns the commit."""
        files = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.is_file()}
        repo = self.root / f"{repo_type}s" / repo_id
        repo = repo if repo.exists() else self.create(repo_id, repo.parts[-3], private)
        return self.commit(repo, "main", files, clean=True)

    def create(self, repo_id: str, kind: str = "models", private: bool = False, **settings: str) -> Path:
        repo = self.root / kind / repo_id
        if (repo / "refs.json").exists():
            raise Refused("", status=409, message="You already created this repo")
        repo.mkdir(parents=True)
        for name, content in (("refs", {}), ("history", []), ("settings", {"private": private} | settings)):
            (repo / f"{name}.json").write_text(json.dumps(content))
        self.commit(repo, "main", {}, title="initial commit")
        return repo

    def commit(
        self, repo: Path, ref: str, files: dict[str, Path | bytes], deleted=(), clean=False, title="", parent=None
    ) -> str:
        """A new commit on `ref`: the files of its last one (none if `clean`) with `files` put over them and `deleted`
        taken away; `parent` is the commit to start from where it is not the last one of `ref`."""
        with self.lock:
            refs, history = (json.loads((repo / f"{name}.json").read_text()) for name in ("refs", "history"))
            parent = parent or refs.get(ref, "")
            commit = hashlib.sha1(uuid.uuid4().bytes).hexdigest()  # as on the Hub, no commit has the id of another
            folder = repo / commit
            if parent and not clean:
                shutil.copytree(repo / parent, folder, copy_function=os.link)
            folder.mkdir(exist_ok=True)
            for name in [*deleted, *files]:
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)  # a link: never written through
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    (folder / name).write_bytes(content)
                else:  # what lies in the storage never changes, what a test hands in may
                    copy = os.link if content.parent == self.root / "lfs" else shutil.copyfile
                    copy(content, folder / name)
            (repo / "history.json").write_text(json.dumps([*history, {"id": commit, "ref": ref, "title": title}]))
            self._set_ref(repo, ref, commit)
            return commit

    def _set_ref(self, repo: Path, ref: str, commit: str) -> None:
        refs = json.loads((repo / "refs.json").read_text())
        (repo / "refs.json").write_text(json.dumps(refs | {ref: commit}))

    def new_ref(self, repo: Path, ref: str, commit: str) -> None:
        with self.lock:
            if ref in self.refs(repo):
                raise Refused("", status=409, message=f"Reference already exists: {ref}")
            self._set_ref(repo, ref, commit)

    def refs(self, repo: Path) -> dict[str, str]:
        """The commit of each branch (by its name), tag (`refs/tags/NAME`) and pull request (`refs/pr/NUMBER`)."""
        return json.loads((repo / "refs.json").read_text())

    def history(self, repo_id: str, kind: str = "models") -> list[dict]:
        """All commits of a repository in order: `id`, `ref` and `title`; the first one is empty."""
        return json.loads((self.root / kind / repo_id / "history.json").read_text())

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> set[str]:
        _, folder = self.find(kind, repo_id, revision)
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    def find(self, kind: str, repo_id: str, revision: str) -> tuple[str, Path]:
        """The commit a revision means and the folder of its files."""
        repo = self.root / kind / repo_id
        if not (repo / "refs.json").exists():
            raise Refused("RepoNotFound")
        refs, revision = self.refs(repo), unquote(revision)
        commit = refs.get(revision) or refs.get(f"refs/tags/{revision}") or revision
        if not (repo / commit).is_dir():
            raise Refused("RevisionNotFound")
        return commit, repo / commit
