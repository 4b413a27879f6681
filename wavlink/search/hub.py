"""Publish an index on the Hub as a data set of parquet files, and make an index of such files."""

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from wavlink.atomic_files import new_folder
from wavlink.hub_errors import reason
from wavlink.hub_record import CARD, Earlier, card_with_kept, read_earlier, refuse_edited, signed
from wavlink.sanitize import clean, escape
from wavlink.temporary_paths import temporary_folder

from . import former
from .copies import fill, unsearched, without_local_paths
from .file_facts import FILE_FACTS, doubled
from .listing import size_and_time
from .location import refuse_remote
from .manifest import Manifest
from .parquet import MANIFEST_FILE, Copy, Part, export, export_manifest, parts_of, read_export, read_fields
from .repair import refuse_damaged
from .table import Table
from .table_place import Storage, has_table

_PATTERNS = [MANIFEST_FILE, "data/part-*.parquet", *(f"{kind}/part-*.parquet" for kind in former.KINDS)]
_DOWNLOAD = ".download"
_CARD = """---
tags:
- audio
- wavlink
configs:
- config_name: default
  data_files: data/*.parquet
---

# An index of sounds

{rows} windows of {window:g} s, one every {hop:g} s, with the vectors of {model} at `{revision}`: {dim} of {dims} dims
as {storage}. A row is a window: `path` of its file, `start` and `end` in seconds, `embedding`.

```python
from datasets import load_dataset

windows = load_dataset("{repo_id}", split="train")
```

```
wavlink pull {repo_id} --out INDEX --model {model}
wavlink query INDEX "a dog barks far away"
```
"""


def push(index: str | os.PathLike, repo_id: str, private: bool = False, storage_options: Storage = None) -> str:
    """Push an index to the Hub in one commit, which replaces an earlier push; return the commit's URL.

    The paths of its sounds are pushed, but neither the root nor the local path of the model. Text that people have
    added to the card, and files that no push has made, stay (see `wavlink.hub_record`).

    Raises:
        ValueError: a damaged or empty index, an invalid name, a public repository although `private` is set, a card
            that was edited on the Hub above the line that it names, or files of others under an index's names.
        OSError: the Hub refuses, or does not answer.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"the repository must be user/name or organisation/name, got {repo_id!r}")
    with temporary_folder("wavlink-push-") as scratch:
        with Table.unverified(index, storage_options).writing() as table:
            refuse_damaged(table)
            manifest, parts = without_local_paths(table.manifest), export(table, scratch)
        contents: dict[str, bytes | str] = {
            MANIFEST_FILE: export_manifest(manifest, parts).encode(),
            CARD: _card(manifest, parts, repo_id).encode(),
            **{f"data/{part.name}": str(scratch / part.name) for part in parts},
        }
        api = HfApi()
        try:
            return _commit(api, repo_id, private, contents)
        except ValueError:
            raise
        except Exception as error:  # huggingface_hub's own and its HTTP library's
            raise OSError(f"the push to {api.endpoint}/datasets/{repo_id} failed: {reason(error)}") from error


def _commit(api: HfApi, repo_id: str, private: bool, contents: dict[str, bytes | str]) -> str:
    """Commit what is pushed, by name: bytes, or the path of a file."""
    api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
    if private and not api.dataset_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, then push")
    earlier = read_earlier(api, repo_id, "dataset", "main")
    refuse_edited(earlier, repo_id, [CARD], option="delete it there")
    contents = contents | {CARD: card_with_kept(earlier, signed(contents[CARD].decode())).encode()}
    made = _made(api, repo_id, earlier)
    if foreign := sorted((earlier.names & {*contents}) - made - {CARD}):
        raise ValueError(f"{foreign[0]} of {repo_id} is of no earlier push: name another repository")
    added = [CommitOperationAdd(name, content) for name, content in contents.items()]
    deleted = map(CommitOperationDelete, sorted(made - {*contents}))
    # not upload_folder: it may make several commits, and an interrupted upload would leave half an index
    options = {"repo_type": "dataset", "commit_message": "An index of sounds", "parent_commit": earlier.commit}
    return api.create_commit(repo_id, [*added, *deleted], **options).commit_url


def _made(api: HfApi, repo_id: str, earlier: Earlier) -> set[str]:
    """Return the files of an earlier push, by its manifest: people may have pushed such files too."""
    if MANIFEST_FILE not in earlier.names:
        return set()
    path = api.hf_hub_download(repo_id, MANIFEST_FILE, repo_type="dataset", revision=earlier.commit)
    try:
        fields = read_fields(Path(path).parent)
        names = former.file_names(fields) if fields["format"] == 1 else _names(parts_of(fields)[1])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{MANIFEST_FILE} of {repo_id} is of no earlier push, or was edited: name another repository, or "
            "delete it there with its parts"
        ) from error
    return {MANIFEST_FILE, *names} & earlier.names


def _names(parts: list[Part]) -> set[str]:
    return {f"data/{part.name}" for part in parts}


def pull(
    repo_id: str, out: str | os.PathLike, *, model: str = "", root: str = "", revision: str | None = None
) -> None:
    """Make an index of one that was pushed to the Hub; or of a folder: an index of an earlier version, or a download.

    Args:
        repo_id: user/name, or the folder.
        model: the model it was made with. Without it each query needs it, unless the index names a Hub id that has
            been downloaded before.
        root: the local folder that holds the sounds, if there is one. A file of the same size is taken as unchanged,
            as copies seldom keep the modification time.
        revision: a branch, tag or commit.

    Raises:
        ValueError: there is no index, it is damaged, `out` exists, or `root` is no folder.
        OSError: the Hub refuses, or does not answer.
    """
    refuse_remote(out)
    if root and not os.path.isdir(root):
        raise ValueError(f"{root} is not a folder: name the one that holds the sounds")
    local = os.path.isdir(repo_id)
    if local and has_table(repo_id):
        raise ValueError(f"{repo_id} is an index of this version: `wavlink reindex {repo_id} --out {out}` copies it")
    if local and revision:
        raise ValueError(f"{repo_id} is a folder, which has no revision {revision!r}: leave it out")
    with new_folder(out) as unfinished:
        source = Path(repo_id) if local else _downloaded(repo_id, unfinished / _DOWNLOAD, revision)
        with _named(source, repo_id, local):
            fields = read_fields(source)
            copy = (former.read_former if fields["format"] == 1 else read_export)(source, fields)
            kept = copy.manifest.root if local and fields["format"] == 1 else ""  # whoever published it has another
            changes = {"model": model or copy.manifest.model, "root": os.path.abspath(root) if root else kept}
            manifest = dataclasses.replace(unsearched(copy.manifest), **changes)
            tables = _with_local_times(copy, manifest.root) if root else copy.tables
            fill(unfinished, manifest, copy.columns, tables)
            _refuse_doubled(unfinished, source)
        shutil.rmtree(unfinished / _DOWNLOAD, ignore_errors=True)


def _refuse_doubled(made: Path, source: Path) -> None:
    """Raise a ValueError for files of which a copy holds a window twice."""
    if paths := doubled(Table.open(made).scan(FILE_FACTS)):
        raise ValueError(f"{source} holds windows of {clean(paths[0], 300)} twice: take another copy of the index")


def _downloaded(repo_id: str, folder: Path, revision: str | None) -> Path:
    options = {"repo_type": "dataset", "revision": revision, "allow_patterns": _PATTERNS}
    try:
        snapshot_download(repo_id, local_dir=folder, **options)
    except Exception as error:
        raise OSError(f"{repo_id} cannot be downloaded from the Hub: {reason(error)}") from error
    return folder


@contextmanager
def _named(source: Path, repo_id: str, local: bool) -> Iterator[None]:
    """Name the repository in errors, not the temporary folder of its download."""
    try:
        yield
    except ValueError as error:
        if local:
            raise
        raise ValueError(str(error).replace(str(source), repo_id)) from error


def _with_local_times(copy: Copy, root: str) -> Iterator[pyarrow.Table]:
    """Yield the rows with each file's modification time on this machine, if its size is the same."""
    for table in copy.tables:
        files = table["path"].combine_chunks().dictionary_encode()
        status = [size_and_time(root, path) for path in files.dictionary.to_pylist()]
        size, time = np.array(status, np.int64).reshape(-1, 2)[files.indices.to_numpy()].T
        version = np.where(size == table["size"].to_numpy(), time, table["version"].to_numpy())
        number = table.column_names.index("version")
        yield table.set_column(number, table.schema.field(number), pyarrow.array(version))


def _card(manifest: Manifest, parts: list[Part], repo_id: str) -> str:
    rows = sum(part.rows for part in parts)
    facts = dataclasses.asdict(manifest) | {"rows": rows, "model": escape(manifest.model), "repo_id": repo_id}
    return _CARD.format(**facts)
