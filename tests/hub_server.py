"""A Hub on loopback: what huggingface_hub asks of it to download and to push, with the standard library alone.

Large files are handed in and out, as on the Hub, by another origin, which refuses tokens. Clients read their settings
at import: run them as processes, with `Hub.environment`, where `HF_HUB_DISABLE_XET="0"` has them use Xet.
"""

import base64
import hashlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_repositories import LARGE, PIECE, Refused, Repositories, describe, digests
from .hub_xet import XetHandler
from .processes import SECONDS, run_process

TOKEN = "hf_loopback"  # of `user`, who may write to user/ and team/ and read the private repositories there
READ_TOKEN = "hf_readonly"  # of the same user
OTHER_TOKEN = "hf_stranger"  # of `stranger`
_USERS = {TOKEN: ("user", "write"), READ_TOKEN: ("user", "read"), OTHER_TOKEN: ("stranger", "write")}
_TEAMS = {"user": ["team"], "stranger": []}
_ID = r"(?P<id>[^/]+/[^/]+)"
_RESOLVE = re.compile(rf"/(?:(?P<type>datasets|spaces)/)?{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
_LFS_BATCH = re.compile(rf"/(?:(?P<type>datasets|spaces)/)?{_ID}\.git/info/lfs/objects/batch")
_API = re.compile(
    rf"/api/(?P<type>models|datasets|spaces)/{_ID}(?:/(?P<call>[a-z-]+)(?:/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?)?"
)
_OF_A_CARD = re.compile(r"^(pipeline_tag|library_name): (\S+)$", re.MULTILINE)  # what a pipeline wants to know


class Hub(Repositories):
    """The server of the repositories in a folder."""

    def __init__(self, root: Path, handler: type | None = None):
        super().__init__(root)
        self.requests = []  # (method, path) of all that was asked
        self.storage_log = []  # all that the storage's origin was told: request lines and headers
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler or Handler,), {"hub": self}))
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

    def run(self, code: str, home: Path, token: str = "", timeout: float = SECONDS, **more: str) -> str:
        """What a client process prints that runs `code` in the repository's root."""
        environment = self.environment(home, token, **more)
        command = [sys.executable, "-c", code]
        options = {"env": environment, "cwd": Path(__file__).parents[1], "capture_output": True, "text": True}
        done = run_process(command, timeout=timeout, **options)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


class Handler(XetHandler, BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.hub.requests.append((self.command, self.url.path))
        try:
            if self.url.path.startswith("/lfs/"):
                self.hub.storage_log.append(f"{self.requestline}\n{self.headers}")
                return self.large(self.hub.root / self.url.path.removeprefix("/"))
            if self.url.path.startswith("/xet/"):
                return self.xet()
            self.body = b"".join(self.pieces())
            self.route()
        except Refused as refused:
            more = {"X-Error-Code": refused.code, "X-Repo-Commit": refused.commit, "X-Error-Message": refused.message}
            more = {name: value for name, value in more.items() if value}
            self.send(refused.status, {"error": refused.message or refused.code}, more)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def pieces(self):
        """The body, piece by piece."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length") or 0)
        while left and (piece := self.rfile.read(min(left, PIECE))):
            left -= len(piece)
            yield piece
        if left:
            raise ConnectionError(f"the client went away {left} bytes before the end")

    def send(self, status: int, content, headers: dict | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(content)} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_file(self, path: Path, headers: dict) -> None:
        """All of it, or the part the client asks for."""
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
        headers |= {"Content-Range": f"bytes {first}-{last}/{size}"} if asked else {}
        self.send(206 if asked else 200, b"", headers | {"Content-Length": last + 1 - first})
        if self.command == "HEAD":
            return
        with open(path, "rb") as file:
            file.seek(first)
            for start in range(first, last + 1, PIECE):
                self.wfile.write(file.read(min(PIECE, last + 1 - start)))

    def route(self) -> None:
        path = self.url.path
        simple = {"/api/whoami-v2": self.whoami, "/api/repos/create": self.create, "/api/validate-yaml": self.yaml}
        self.user, self.role = self.who()
        if path in simple:
            simple[path]()
        elif found := _LFS_BATCH.fullmatch(path):
            self.lfs_batch(found["type"] or "models", found["id"])
        elif found := _RESOLVE.fullmatch(path):
            self.readable(found["type"] or "models", found["id"])
            self.resolve(found["type"] or "models", found["id"], found["rev"], unquote(found["path"]))
        elif found := _API.fullmatch(path):
            calls = {None: self.info, "revision": self.info, "tree": self.tree, "paths-info": self.paths_info}
            calls |= {"refs": self.refs, "preupload": self.preupload, "commit": self.commit, "branch": self.branch}
            calls |= {"tag": self.tag, "auth-check": self.auth_check}
            calls |= {f"xet-{what}-token": self.xet_token for what in ("read", "write")}
            if found["call"] not in calls:
                raise Refused("EntryNotFound")
            self.readable(found["type"], found["id"])
            calls[found["call"]](found["type"], found["id"], found["rev"] or "main", unquote(found["path"] or ""))
        else:
            raise Refused("EntryNotFound")

    def who(self) -> tuple[str, str]:
        """The user and the role of the request's token; without one, nobody."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in _USERS:
            raise Refused("", status=401, message="Invalid credentials in Authorization header")
        return _USERS.get(token, ("", ""))

    def owns(self, repo_id: str) -> bool:
        return bool(self.user) and repo_id.split("/")[0] in (self.user, *_TEAMS[self.user])

    def readable(self, kind: str, repo_id: str) -> None:
        settings = self.hub.root / kind / repo_id / "settings.json"
        if not settings.exists() or (json.loads(settings.read_text())["private"] and not self.owns(repo_id)):
            raise Refused("RepoNotFound", status=404 if self.user else 401)  # a private one does not show that it is

    def writable(self, repo_id: str, create_pr: bool = False) -> None:
        """A pull request needs no right to write, but somebody."""
        if not self.user:
            raise Refused("", status=401, message="Invalid username or password.")
        if not create_pr and not (self.owns(repo_id) and self.role == "write"):
            raise Refused("", status=403, message=f"You don't have the rights to write to {repo_id}")

    def whoami(self) -> None:
        if not self.user:
            raise Refused("", status=401, message="Invalid username or password.")
        teams = [{"type": "org", "name": name, "roleInOrg": "write"} for name in _TEAMS[self.user]]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}}
        self.send(200, {"type": "user", "name": self.user, "auth": auth, "orgs": teams})

    def auth_check(self, kind: str, repo_id: str, level: str, _) -> None:
        if level == "write":
            self.writable(repo_id)
        self.send(200, {})

    def yaml(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
        self.writable(repo_id)
        kind = f"{asked.get('type') or 'model'}s"
        address = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if kind == "spaces" and not asked.get("sdk"):
            raise Refused("", status=400, message="a Space needs its sdk")
        more = {"sdk": asked["sdk"]} if kind == "spaces" else {}
        try:
            self.hub.create(repo_id, kind, asked.get("visibility") == "private" or bool(asked.get("private")), **more)
        except Refused as exists:
            return self.send(exists.status, {"error": exists.message, "url": address})
        self.send(200, {"url": address, "name": repo_id, "id": repo_id})

    def info(self, kind: str, repo_id: str, revision: str, _) -> None:
        commit, folder = self.hub.find(kind, repo_id, revision)
        files = [{"rfilename": str(x.relative_to(folder))} for x in sorted(folder.rglob("*")) if x.is_file()]
        card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
        answer = json.loads((folder.parent / "settings.json").read_text()) | {"_id": commit[:24], "id": repo_id}
        answer |= {"sha": commit, "siblings": files, "tags": [], "gated": False, "disabled": False}
        self.send(200, answer | dict(_OF_A_CARD.findall(card)) | {"downloads": 0, "likes": 0})

    def tree(self, kind: str, repo_id: str, revision: str, below: str) -> None:
        commit, folder = self.hub.find(kind, repo_id, revision)
        if not (folder / below).is_dir():
            raise Refused("EntryNotFound", commit)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        paths = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
        self.send(200, [describe(folder, path) for path in sorted(paths)], {"X-Repo-Commit": commit})

    def paths_info(self, kind: str, repo_id: str, revision: str, _) -> None:
        _, folder = self.hub.find(kind, repo_id, revision)
        json_body = "json" in (self.headers.get("Content-Type") or "")
        asked = json.loads(self.body)["paths"] if json_body else parse_qs(self.body.decode()).get("paths", [])
        self.send(200, [describe(folder, folder / path) for path in asked if (folder / path).exists()])

    def refs(self, kind: str, repo_id: str, *_) -> None:
        answer = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref, commit in self.hub.refs(self.hub.root / kind / repo_id).items():
            group = {"refs/tags": "tags", "refs/pr": "pullRequests"}.get(ref.rpartition("/")[0], "branches")
            name = ref.removeprefix("refs/").removeprefix("tags/")
            full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
            answer[group].append({"name": name, "ref": full, "targetCommit": commit})
        self.send(200, answer)

    def branch(self, kind: str, repo_id: str, name: str, _) -> None:
        self.writable(repo_id)
        start, folder = self.hub.find(kind, repo_id, (json.loads(self.body or b"{}")).get("startingPoint") or "main")
        self.hub.new_ref(folder.parent, unquote(name), start)
        self.send(200, {})

    def tag(self, kind: str, repo_id: str, revision: str, _) -> None:
        self.writable(repo_id)
        commit, folder = self.hub.find(kind, repo_id, revision)
        self.hub.new_ref(folder.parent, f"refs/tags/{json.loads(self.body)['tag']}", commit)
        self.send(200, {})

    def resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        commit, folder = self.hub.find(kind, repo_id, revision)
        if not (folder / name).is_file():
            raise Refused("EntryNotFound", commit)
        line = describe(folder, folder / name)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{line["oid"]}"'}
        if "lfs" not in line:
            return self.send_file(folder / name, headers)
        oid = line["lfs"]["oid"]
        with self.hub.lock:
            if not (self.hub.root / "lfs" / oid).exists():
                os.link(folder / name, self.hub.root / "lfs" / oid)
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": line["size"]}
        headers |= self.xet_headers(kind, repo_id, commit, oid)
        self.send(302, b"", headers | {"Location": f"{self.hub.other_origin}/lfs/{oid}"})

    def large(self, path: Path) -> None:
        """The storage: another origin, which must not learn the token."""
        if self.headers.get("Authorization"):
            raise Refused("", status=400, message="a token was sent to another origin")
        if self.command == "PUT":
            return self.store(path)
        if not path.is_file():
            raise Refused("EntryNotFound")
        self.send_file(path, {"ETag": f'"{path.name}"'})

    def store(self, path: Path) -> None:
        sha256, unfinished = hashlib.sha256(), path.with_name(f"{path.name}.{threading.get_ident()}")
        with open(unfinished, "wb") as file:
            for piece in self.pieces():
                sha256.update(piece)
                file.write(piece)
        if sha256.hexdigest() != path.name:
            unfinished.unlink()
            raise Refused("", status=400, message="the content is not what its sha256 says")
        os.replace(unfinished, path)
        self.send(200, b"")

    def lfs_batch(self, kind: str, repo_id: str) -> None:
        self.readable(kind, repo_id)
        self.writable(repo_id, create_pr=True)  # the client does not say for what
        objects = json.loads(self.body)["objects"]
        for thing in objects:
            if not (self.hub.root / "lfs" / thing["oid"]).exists():
                thing["actions"] = {"upload": {"href": f"{self.hub.other_origin}/lfs/{thing['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def preupload(self, kind: str, repo_id: str, revision: str, _) -> None:
        self.writable(repo_id, "create_pr" in self.query)
        _, folder = self.hub.find(kind, repo_id, revision)
        answer = []
        for name in (file["path"] for file in json.loads(self.body)["files"]):
            large = name.endswith(LARGE)
            known = digests(folder / name)[large] if (folder / name).is_file() else None
            answer.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            answer[-1]["oid"] = known
        self.send(200, {"files": answer})

    def commit(self, kind: str, repo_id: str, revision: str, _) -> None:
        """All of it or nothing."""
        asks_pr = "create_pr" in self.query
        self.writable(repo_id, asks_pr)
        head, folder = self.hub.find(kind, repo_id, revision)
        repo, ref = folder.parent, unquote(revision)
        files, deleted, header = {}, [], {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.root / "lfs" / value["oid"]
            elif line["key"] in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"].rstrip("/"))
        missing = [name for name, content in files.items() if isinstance(content, Path) and not content.exists()]
        if missing:
            raise Refused("", status=400, message=f"LFS objects were not uploaded: {', '.join(missing)}")
        if not asks_pr and header.get("parentCommit", head) != head:
            raise Refused("", status=412, message="A commit has happened since. Please refresh and try again.")
        prefix = "" if kind == "models" else f"{kind}/"
        answer = {"success": True, "hookOutput": ""}
        if asks_pr:
            number = 1 + sum(name.startswith("refs/pr/") for name in self.hub.refs(repo))
            ref, answer["pullRequestUrl"] = (
                f"refs/pr/{number}",
                f"{self.hub.endpoint}/{prefix}{repo_id}/discussions/{number}",
            )
        commit = self.hub.commit(repo, ref, files, deleted, title=header.get("summary", ""), parent=head)
        answer |= {"commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{prefix}{repo_id}/commit/{commit}"}
        self.send(200, answer)
