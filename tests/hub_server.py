"""A Hub on loopback: what huggingface_hub asks of it to download and to push, with the standard library alone.

`ROOT/<models|datasets|spaces>/<owner>/<name>/<commit>/` holds the files of each commit, `refs.json` beside them the
commit of each branch, `ROOT/lfs/<sha256>` the large files. Those are handed out, as on the Hub, by another origin.
Clients read their settings at import: run them as processes, with `Hub.environment`.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin", ".wav", ".flac", ".mp3", ".ogg", ".tar")
TOKEN = "hf_loopback"
TYPES = ("models", "datasets", "spaces")
_ID = r"(?P<id>[^/]+/[^/]+)"
_RESOLVE = re.compile(rf"/(?:(?P<type>datasets|spaces)/)?{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
_LFS_BATCH = re.compile(rf"/(?:(?P<type>datasets|spaces)/)?{_ID}\.git/info/lfs/objects/batch")
_API = re.compile(
    rf"/api/(?P<type>models|datasets|spaces)/{_ID}(?:/(?P<call>[a-z-]+)(?:/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?)?"
)


class Missing(Exception):
    """Answered with a status and the `X-Error-Code` that the client's exceptions are made from."""

    def __init__(self, code: str, commit: str = "", status: int = 404):
        self.code, self.commit, self.status = code, commit, status


class Hub:
    """The server and the repositories in its folder."""

    def __init__(self, root: Path):
        self.root = Path(root)
        (self.root / "lfs").mkdir(parents=True, exist_ok=True)
        self.requests = []  # (method, path) of all that was asked
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.other_origin = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str = "", **more: str) -> dict[str, str]:
        """The variables of a client process with its own caches below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
        return kept | ours | {"NO_PROXY": "127.0.0.1,localhost"} | more

    def run(self, code: str, home: Path, token: str = "", **more: str) -> str:
        """What a client process prints that runs `code` in the repository's root."""
        environment = self.environment(home, token, **more)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def add_repo(self, repo_id: str, folder: Path, repo_type: str = "dataset") -> str:
        """Puts a folder's files into a repository as a new commit of main; returns the commit."""
        files = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.is_file()}
        repo = self.root / f"{repo_type}s" / repo_id
        return self.commit(repo if repo.exists() else self.create(repo_id, repo.parts[-3]), "main", files, clean=True)

    def create(self, repo_id: str, kind: str = "models") -> Path:
        repo = self.root / kind / repo_id
        if (repo / "refs.json").exists():
            raise Missing("RepoExists", status=409)
        repo.mkdir(parents=True)
        (repo / "refs.json").write_text("{}")
        self.commit(repo, "main", {})
        return repo

    def commit(self, repo: Path, branch: str, files: dict[str, Path | bytes], deleted=(), clean=False) -> str:
        """A new commit: the branch's files (none if `clean`) with `files` put over them and `deleted` taken away."""
        with self.lock:
            refs = json.loads((repo / "refs.json").read_text())
            parent = refs.get(branch, "")
            commit = hashlib.sha1(f"{parent}{repo}{len(list(repo.iterdir()))}".encode()).hexdigest()
            folder = repo / commit
            if parent and not clean:
                shutil.copytree(repo / parent, folder, copy_function=os.link)
            folder.mkdir(exist_ok=True)
            for name in [*deleted, *files]:
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)  # a link: never written through
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            (repo / "refs.json").write_text(json.dumps(refs | {branch: commit}))
            return commit

    def find(self, kind: str, repo_id: str, revision: str) -> tuple[str, Path]:
        """The commit a revision means and the folder of its files."""
        repo = self.root / kind / repo_id
        if not (repo / "refs.json").exists():
            raise Missing("RepoNotFound")
        revision = unquote(revision)
        commit = json.loads((repo / "refs.json").read_text()).get(revision, revision)
        if not (repo / commit).is_dir():
            raise Missing("RevisionNotFound")
        return commit, repo / commit


def describe(folder: Path, path: Path) -> dict:
    """A tree's line about a file or folder. Files have git's id, large ones the sha256 of their content too."""
    if path.is_dir():
        return {"type": "directory", "path": str(path.relative_to(folder)), "size": 0, "oid": "0" * 40}
    content = path.read_bytes()
    line = {"type": "file", "path": str(path.relative_to(folder)), "size": len(content)}
    line["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.suffix in LARGE:
        line["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return line


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.hub.requests.append((self.command, self.url.path))
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self.chunks()
        try:
            self.route()
        except Missing as missing:
            more = {"X-Error-Code": missing.code, "X-Repo-Commit": missing.commit}
            self.send(missing.status, {"error": missing.code}, {name: value for name, value in more.items() if value})

    do_HEAD = do_POST = do_PUT = do_GET

    def chunks(self) -> bytes:
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def send(self, status: int, content, headers: dict | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(content)} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_file(self, content: bytes, headers: dict) -> None:
        """All of it, or the part the client asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
        if not asked:
            return self.send(200, content, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(206, content[first : last + 1], headers)

    def route(self) -> None:
        path = self.url.path
        simple = {"/api/whoami-v2": self.whoami, "/api/repos/create": self.create, "/api/validate-yaml": self.yaml}
        if path in simple:
            simple[path]()
        elif path.startswith("/lfs/"):
            self.large(self.hub.root / path.removeprefix("/"))
        elif found := _LFS_BATCH.fullmatch(path):
            self.authorized()
            self.lfs_batch()
        elif found := _RESOLVE.fullmatch(path):
            self.resolve(found["type"] or "models", found["id"], found["rev"], unquote(found["path"]))
        elif found := _API.fullmatch(path):
            calls = {None: self.info, "revision": self.info, "tree": self.tree, "paths-info": self.paths_info}
            calls |= {"refs": self.refs, "preupload": self.preupload, "commit": self.commit}
            if found["call"] not in calls:
                raise Missing("EntryNotFound")
            calls[found["call"]](found["type"], found["id"], found["rev"] or "main", unquote(found["path"] or ""))
        else:
            raise Missing("EntryNotFound")

    def authorized(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Missing("", status=401)

    def whoami(self) -> None:
        self.authorized()
        self.send(200, {"type": "user", "name": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def yaml(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self) -> None:
        self.authorized()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        address = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        try:
            self.hub.create(repo_id, kind)
        except Missing as exists:
            return self.send(exists.status, {"error": "You already created this repo", "url": address})
        self.send(200, {"url": address, "name": repo_id, "id": repo_id})

    def info(self, kind: str, repo_id: str, revision: str, _) -> None:
        commit, folder = self.hub.find(kind, repo_id, revision)
        files = [{"rfilename": line["path"]} for line in self.lines(folder) if line["type"] == "file"]
        answer = {"_id": commit[:24], "id": repo_id, "sha": commit, "siblings": files, "private": False, "tags": []}
        self.send(200, answer | {"gated": False, "disabled": False, "downloads": 0, "likes": 0})

    def lines(self, folder: Path, below: str = "", recursive: bool = True) -> list[dict]:
        top = folder / below
        paths = top.rglob("*") if recursive else top.iterdir()
        return [describe(folder, path) for path in sorted(paths)]

    def tree(self, kind: str, repo_id: str, revision: str, below: str) -> None:
        commit, folder = self.hub.find(kind, repo_id, revision)
        if not (folder / below).is_dir():
            raise Missing("EntryNotFound", commit)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        self.send(200, self.lines(folder, below, recursive), {"X-Repo-Commit": commit})

    def paths_info(self, kind: str, repo_id: str, revision: str, _) -> None:
        _, folder = self.hub.find(kind, repo_id, revision)
        asked = self.form("paths")
        self.send(200, [describe(folder, folder / path) for path in asked if (folder / path).exists()])

    def form(self, name: str) -> list[str]:
        if "json" in (self.headers.get("Content-Type") or ""):
            return json.loads(self.body)[name]
        return parse_qs(self.body.decode()).get(name, [])

    def refs(self, kind: str, repo_id: str, *_) -> None:
        commit, _ = self.hub.find(kind, repo_id, "main")
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
        self.send(200, {"branches": [branch], "tags": [], "converts": []})

    def resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        commit, folder = self.hub.find(kind, repo_id, revision)
        if not (folder / name).is_file():
            raise Missing("EntryNotFound", commit)
        line = describe(folder, folder / name)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{line["oid"]}"'}
        if "lfs" not in line:
            return self.send_file((folder / name).read_bytes(), headers)
        oid = line["lfs"]["oid"]
        with self.hub.lock:
            if not (self.hub.root / "lfs" / oid).exists():
                os.link(folder / name, self.hub.root / "lfs" / oid)
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": line["size"]}
        self.send(302, b"", headers | {"Location": f"{self.hub.other_origin}/lfs/{oid}"})

    def large(self, path: Path) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != path.name:
                return self.send(400, {"error": "the content is not what its name says"})
            path.write_bytes(self.body)
            return self.send(200, b"")
        if self.headers.get("Authorization"):  # the other origin must not learn the token
            return self.send(400, {"error": "a token was sent to another origin"})
        if not path.is_file():
            raise Missing("EntryNotFound")
        self.send_file(path.read_bytes(), {"ETag": f'"{path.name}"'})

    def lfs_batch(self) -> None:
        objects = json.loads(self.body)["objects"]
        for thing in objects:
            if not (self.hub.root / "lfs" / thing["oid"]).exists():
                thing["actions"] = {"upload": {"href": f"{self.hub.other_origin}/lfs/{thing['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def preupload(self, kind: str, repo_id: str, revision: str, _) -> None:
        self.authorized()
        self.hub.find(kind, repo_id, revision)
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
        self.send(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def commit(self, kind: str, repo_id: str, revision: str, _) -> None:
        self.authorized()
        self.hub.find(kind, repo_id, revision)
        files, deleted = {}, []
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.root / "lfs" / value["oid"]
            elif line["key"] in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"].rstrip("/"))
        commit = self.hub.commit(self.hub.root / kind / repo_id, revision, files, deleted)
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.hub.endpoint}/{prefix}{repo_id}/commit/{commit}"
        self.send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
