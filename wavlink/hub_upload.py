"""Upload a folder to the Hub: check the right to write before the work, then make one commit."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, SpaceInfo

from .hub_errors import reason
from .hub_record import CARD, EDITED, RECORD, Earlier, card_with_kept, read_earlier, record_of, refuse_edited

# Files of pushes by versions that left no record. A loader or a reader of the card would still take them as valid.
REPLACED = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.jinja", "*.index.json"),
    *("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("*_wavlink.py", "vocab.txt", "merges.txt", "*.model", ".eval_results/*.yaml"),
)
SPACE_FOLDERS = ("model", "index", "sounds", "modeling_wavlink", "processing", "hub_cards")  # of such a Space
# Older clients check the right to read only; a missing right to write then shows at the upload.
_WRITE = {"write": True} if "write" in inspect.signature(HfApi.auth_check).parameters else {}


@dataclass(frozen=True)
class Target:
    """The repository that a folder is uploaded to.

    Attributes:
        repo_id: user/name or organisation/name.
        private: whether a new repository is private.
        revision: a branch, made from main if it does not exist, or refs/pr/N; "": main.
        create_pr: open a pull request instead of writing to main.
        tag: of the new commit; "": none.
        kind: "model" or "space".
        sdk: of a new Space, "gradio" or "static".
        overwrite_card: replace a card even if it was edited on the Hub.
    """

    repo_id: str
    private: bool = False
    revision: str = ""
    create_pr: bool = False
    tag: str = ""
    kind: str = "model"
    sdk: str = "gradio"
    overwrite_card: bool = False

    def __post_init__(self):
        if self.repo_id.count("/") != 1:
            raise ValueError(f"the repository must be user/name or organisation/name, got {self.repo_id!r}")
        if self.create_pr and (self.revision or self.tag):
            raise ValueError(
                "--create_pr goes to main and is tagged once it is merged: leave --revision and --tag out"
            )

    @property
    def branch(self) -> str:
        """The branch that is written to."""
        return self.revision or constants.DEFAULT_REVISION

    @property
    def address(self) -> str:
        """The path below the Hub's own address."""
        return f"{'' if self.kind == 'model' else f'{self.kind}s/'}{self.repo_id}"


def check_access(api: HfApi, target: Target) -> None:
    """Check, before the work, that the upload will be allowed. Nothing is changed on the Hub.

    Raises:
        ValueError: no token, one that may not write there, an edited card, or a tag that exists.
        OSError: the Hub does not answer.
    """
    if get_token() is None and not api.token:
        raise ValueError("there is no Hub token here: hf auth login, or set HF_TOKEN to one that may write")
    with _explained("cannot ask the Hub who may write"):
        try:
            user = api.whoami()
        except HfHubHTTPError as error:
            if error.response.status_code != 401:
                raise
            raise ValueError(
                "the Hub does not know this token: hf auth login, or set HF_TOKEN to another (HF_TOKEN goes first)"
            ) from error
        existing = _existing(api, target, user)
        if existing is None:
            _refuse_foreign_namespace(target, user)
        elif target.private and not existing.private:
            raise ValueError(f"{target.repo_id} exists and is public: make it private in its settings, then push")
        if existing is not None:
            _earlier(api, target)
        refs = api.list_repo_refs(target.repo_id, repo_type=target.kind) if existing and target.tag else None
        if refs and target.tag in [tag.name for tag in refs.tags]:
            raise ValueError(f"{target.repo_id} has a tag {target.tag} already, which stays where it is: give another")


def _earlier(api: HfApi, target: Target) -> Earlier:
    """Read what is in the repository before the push, and refuse to replace what was edited there."""
    earlier = read_earlier(api, target.repo_id, target.kind, target.branch)
    if not target.overwrite_card:
        refuse_edited(earlier, target.repo_id, EDITED if target.kind == "space" else [CARD])
    return earlier


def _existing(api: HfApi, target: Target, user: dict) -> ModelInfo | SpaceInfo | None:
    try:
        api.auth_check(target.repo_id, repo_type=target.kind, **({} if target.create_pr else _WRITE))
        return api.repo_info(target.repo_id, repo_type=target.kind)
    except RepositoryNotFoundError:
        return None
    except HfHubHTTPError as error:
        if error.response.status_code != 403:
            raise
        raise ValueError(
            f"this token, of {user['name']}, may not write to {target.repo_id}: take one that may, another "
            "repository, or --create_pr"
        ) from error


def _refuse_foreign_namespace(target: Target, user: dict) -> None:
    if target.create_pr:
        raise ValueError(f"{target.repo_id} is not there to open a pull request on: leave --create_pr out")
    namespaces = [user["name"], *(team["name"] for team in user.get("orgs", []))]
    if target.repo_id.split("/")[0] not in namespaces:
        raise ValueError(
            f"this token, of {user['name']}, may not create {target.repo_id}: it may write below "
            f"{', '.join(namespaces)}"
        )
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"this token, of {user['name']}, may only read: take one that may write")


def upload(api: HfApi, folder: Path, target: Target) -> str:
    """Upload a folder in one atomic commit and return the commit's address.

    The commit deletes files that only an earlier push has made, and keeps what people have written into the card (see
    `hub_record`). It is refused if somebody else commits meanwhile. `upload_folder` would not do: with hf_xet it may
    make several commits, so that an interrupted upload leaves half a model.

    Raises:
        ValueError, OSError: the upload failed; the message says what is on the Hub now.
    """
    head = None
    existed = True
    of_kind = {"repo_type": target.kind}
    try:
        existed = api.repo_exists(target.repo_id, **of_kind)
        if not existed:
            sdk = {"space_sdk": target.sdk} if target.kind == "space" else {}
            api.create_repo(target.repo_id, private=target.private or None, exist_ok=True, **of_kind, **sdk)
        if not target.branch.startswith("refs/") and target.branch != constants.DEFAULT_REVISION:
            api.create_branch(target.repo_id, branch=target.branch, exist_ok=True, **of_kind)
        head = _earlier(api, target)
        commit = api.create_commit(
            target.repo_id,
            _operations(folder, head, target.kind),
            commit_message="WavLink",
            revision=target.branch,
            parent_commit=head.commit,
            create_pr=target.create_pr,
            **of_kind,
        )
    except Exception as error:  # huggingface_hub's own, its HTTP library's (not the same in all versions), the disk's
        left = _left_behind(api, target, head, existed)
        raise OSError(f"the upload to {api.endpoint}/{target.address} failed: {reason(error)}; {left}") from error
    if target.tag:
        with _explained(f"the commit was made, {commit.commit_url}, but not its tag {target.tag}"):
            api.create_tag(target.repo_id, tag=target.tag, revision=commit.oid, **of_kind)
    return commit.pr_url or commit.commit_url


def _operations(folder: Path, earlier: Earlier, kind: str) -> list[CommitOperationAdd | CommitOperationDelete]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    texts = {name: paths[name].read_text(encoding="utf-8") for name in EDITED if name in paths}
    contents = {CARD: card_with_kept(earlier, texts[CARD]).encode("utf-8", "surrogateescape")} if CARD in texts else {}
    contents[RECORD] = record_of(paths, texts)
    additions = [CommitOperationAdd(name, str(path)) for name, path in paths.items() if name not in contents]
    additions += [CommitOperationAdd(name, content) for name, content in contents.items()]
    stale = sorted(name for name in earlier.names - {*paths, *contents} if _made(earlier, kind, name))
    return [*additions, *(CommitOperationDelete(name) for name in stale)]


def _made(earlier: Earlier, kind: str, name: str) -> bool:
    """Return whether an earlier push has made this file: by its record, or by the names that older versions used."""
    if earlier.made is not None:
        return name in earlier.made
    if kind == "space":
        code = ("modeling_wavlink/", "processing/", "hub_cards/")
        return name.split("/")[0] in SPACE_FOLDERS and "/" in name and any(x.startswith(code) for x in earlier.names)
    ours = any(x.endswith("_wavlink.py") and "/" not in x for x in earlier.names)
    return ours and any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in REPLACED)


def _left_behind(api: HfApi, target: Target, head: Earlier | None, existed: bool) -> str:
    """Ask the Hub what a failed upload has changed: the answer to a commit can be lost on the way back."""
    try:
        if head is None:
            created = not existed and api.repo_exists(target.repo_id, repo_type=target.kind)
        elif api.repo_info(target.repo_id, repo_type=target.kind, revision=target.branch).sha != head.commit:
            return f"but {target.branch} has a new commit, see there whether it is this one"
        else:
            created = not existed
    except Exception:
        return "the Hub does not answer: see there whether the commit was made; it is complete or not there at all"
    rest = "the new repository stays, empty" if created else "the repository is as it was"
    return f"no commit was made, {rest}; the same command starts again"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an error of the client into an OSError that begins with `what`."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # as in `upload`
        raise OSError(f"{what}: {reason(error)}") from error
