"""Copy an index atomically: to the Hub as a data set, from the Hub, or with smaller vectors."""

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress

import pyarrow
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from wavlink.atomic_files import new_folder, write_text
from wavlink.hub_errors import reason
from wavlink.hub_record import CARD as CARD_NAME
from wavlink.hub_record import Earlier, card_with_kept, read_earlier, refuse_edited, signed
from wavlink.sanitize import escape

from .listing import file_of

MANIFEST_FILE = "index.json"
_PATTERNS = [MANIFEST_FILE, "data/part-*.parquet"]
_ROWS = 1 << 16  # converted at once

_TEXT = """
# An index of sounds

{rows} windows of {window:g} s, one every {hop:g} s, with the vectors of {model} at `{revision}`: {dim} of {dims} dims
as {storage}. `default` has a row per window (`path`, `start` and `end` in seconds, `embedding`), `files` one per
file.

```python
from datasets import load_dataset

windows = load_dataset("{repo_id}", split="train")
```

```
wavlink pull {repo_id} --out INDEX --model {model}
wavlink query INDEX "a dog barks far away"
```
"""


def reindex(
    folder: str | os.PathLike, out: str | os.PathLike, *, dim: int | None = None, storage: str | None = None
) -> None:
    """Copy an index with fewer dims or another storage, made from its vectors.

    Args:
        dim: one of the nested dims, up to the index's (default: the index's).
        storage: see `quantization.STORAGES`; a finer one than the index's adds no precision.

    Raises:
        ValueError: no such dim or storage, `out` exists, or the index is damaged.
    """
    IndexFolder.reading(folder, lambda source: _reindexed(source, out, dim, storage))


def _reindexed(source, out: str | os.PathLike, dim: int | None, storage: str | None) -> None:
    old = source.manifest
    new = dataclasses.replace(old, dim=dim or old.dim, storage=storage or old.storage, parts=[], next_part=0)
    if new.dim != old.dim and (new.dim not in old.matryoshka_dims or new.dim > old.dim):
        nested = ", ".join(str(dim) for dim in old.matryoshka_dims if dim <= old.dim)
        raise ValueError(f"dim={dim} is none of the index's nested dims: {nested}")
    with new_folder(out) as unfinished, IndexFolder.create(unfinished, new) as made:
        for part in old.parts:
            made.append(_converted(source.read(part, "embeddings"), old, new), source.read(part, "files"))


def _converted(windows: pyarrow.Table, old, new) -> Iterator:
    """Yield the windows with codes of the new index, some at a time: they may be 32 times as large."""
    for start in range(0, len(windows), _ROWS):
        some = windows.slice(start, _ROWS)
        codes = encode(decode(old.codes(some), old.dim, old.storage), new.dim, new.storage)
        yield new.windows(some["path"], some["start"], some["end"], codes)


def push(folder: str | os.PathLike, repo_id: str, private: bool = False) -> str:
    """Push an index to the Hub in one commit, which replaces an earlier push; return the commit's URL.

    The paths of its sounds are pushed, but neither the root nor the local path of the model. Text that people have
    added to the card, and files that no push has made, stay (see `wavlink.hub_record`).

    Raises:
        ValueError: a damaged index, an invalid name, a public repository although `private` is set, a card that was
            edited on the Hub above the line that it names, or files of others under an index's names.
        OSError: the Hub refuses, or does not answer.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"the repository must be user/name or organisation/name, got {repo_id!r}")
    api = HfApi()
    with IndexFolder.open(folder).writing() as index:
        refuse_damaged(index)
        contents = _contents(index, repo_id)
        try:
            api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
            if private and not api.dataset_info(repo_id).private:
                raise ValueError(f"{repo_id} exists and is public: make it private in its settings, then push")
            earlier = read_earlier(api, repo_id, "dataset", "main")
            refuse_edited(earlier, repo_id, [CARD_NAME], option="delete it there")
            contents[CARD_NAME] = card_with_kept(earlier, signed(contents[CARD_NAME].decode())).encode()
            made = _made(api, repo_id, earlier)
            if foreign := sorted((earlier.names & {*contents}) - made - {CARD_NAME}):
                raise ValueError(f"{foreign[0]} of {repo_id} is of no earlier push: name another repository")
            stale = sorted(made - {*contents})
            added = [CommitOperationAdd(name, content) for name, content in contents.items()]
            # not upload_folder: it may make several commits, and an interrupted upload would leave half an index
            options = {"repo_type": "dataset", "commit_message": "An index of sounds", "parent_commit": earlier.commit}
            return api.create_commit(repo_id, [*added, *map(CommitOperationDelete, stale)], **options).commit_url
        except ValueError:
            raise
        except Exception as error:  # huggingface_hub's own and its HTTP library's
            raise OSError(f"the push to {api.endpoint}/datasets/{repo_id} failed: {reason(error)}") from error


def _made(api: HfApi, repo_id: str, earlier: Earlier) -> set[str]:
    """Return the files of an earlier push, by its manifest: people may have pushed such files too."""
    if MANIFEST_FILE not in earlier.names:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        api.hf_hub_download(repo_id, MANIFEST_FILE, repo_type="dataset", revision=earlier.commit, local_dir=folder)
        try:
            manifest = IndexFolder.open(folder).manifest
        except ValueError as error:
            raise ValueError(
                f"{MANIFEST_FILE} of {repo_id} is of no earlier push, or was edited: name another repository, or "
                "delete it there with its parts"
            ) from error
    return _files_of(manifest) & earlier.names


def _files_of(manifest) -> set[str]:
    return {MANIFEST_FILE, *(f"{kind}/{part.name}" for part in manifest.parts for kind in part.sha256)}


def pull(
    repo_id: str, out: str | os.PathLike, *, model: str = "", root: str = "", revision: str | None = None
) -> None:
    """Download an index from the Hub, and verify it.

    Args:
        model: the model it was made with. Without it each query needs it, unless the index names a Hub id that has
            been downloaded before.
        root: the local folder that holds the sounds, if there is one. A file of the same size is taken as unchanged,
            as copies seldom keep the modification time.
        revision: a branch, tag or commit.

    Raises:
        ValueError: there is no index, it is damaged, `out` exists, or `root` is no folder.
        OSError: the Hub refuses, or does not answer.
    """
    if root and not os.path.isdir(root):
        raise ValueError(f"{root} is not a folder: name the one that holds the sounds")
    with new_folder(out) as unfinished:
        options = {"repo_type": "dataset", "revision": revision, "allow_patterns": _PATTERNS}
        try:
            snapshot_download(repo_id, local_dir=unfinished, **options)
        except Exception as error:
            raise OSError(f"{repo_id} cannot be downloaded from the Hub: {reason(error)}") from error
        shutil.rmtree(unfinished / ".cache", ignore_errors=True)
        with IndexFolder.open(unfinished).writing() as index:
            index.divide_large()
            refuse_damaged(index)
            write_text(unfinished / "README.md", CARD)
            index.change(model=model or index.manifest.model, root=root and os.path.abspath(root))
            if root:
                _use_local_times(index)


def _use_local_times(index) -> None:
    """Replace each file's modification time by the one on this machine."""

    def parts():
        for part in index.manifest.parts:
            files = index.read(part, "files").to_pylist()
            for row in files:
                with suppress(OSError, TypeError):  # no such file
                    status = os.stat(file_of(index.manifest.root, row["path"]))
                    row["version"] = status.st_mtime_ns if status.st_size == row["size"] else row["version"]
            yield index.read(part, "embeddings"), pyarrow.Table.from_pylist(files, schema=FILES)

    index.replace(parts())


def without_local_paths(manifest):
    """Return a manifest to publish, without the local paths of the model and the sounds."""
    model = os.path.basename(manifest.model) if os.path.isabs(manifest.model) else manifest.model
    return dataclasses.replace(manifest, model=model, root="")


def _contents(index, repo_id: str) -> dict[str, bytes | str]:
    """Return what is pushed, by name: bytes, or the path of a file."""
    manifest = without_local_paths(index.manifest)
    return {
        MANIFEST_FILE: manifest.to_json().encode(),
        "README.md": _card(manifest, repo_id).encode(),
        **{name: str(index.folder / name) for name in sorted(_files_of(manifest) - {MANIFEST_FILE})},
    }


def _card(manifest, repo_id: str) -> str:
    facts = dataclasses.asdict(manifest) | {"rows": manifest.rows, "model": escape(manifest.model), "repo_id": repo_id}
    return CARD.replace("configs:", "tags:\n- audio\n- wavlink\nconfigs:") + _TEXT.format(**facts)


def refuse_damaged(index) -> None:
    """Raise a ValueError that names the damaged parts of an index, if there are any."""
    damaged = index.damaged()
    if damaged:
        raise ValueError("; ".join(damaged.values()))
