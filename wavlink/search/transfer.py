"""An index elsewhere: on the Hub as a data set, from the Hub, or with smaller vectors; each written atomically."""

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress

import pyarrow
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from wavlink.atomic_files import new_folder
from wavlink.hub_errors import reason
from wavlink.hub_record import CARD as CARD_NAME
from wavlink.hub_record import Earlier, card_with_kept, read_earlier, refuse_edited, signed
from wavlink.sanitize import escape

from .listing import file_of
from .quantization import decode, encode
from .store import CARD, FILES, IndexFolder, Manifest, write_durably

_MANIFEST = "index.json"
_OURS = (_MANIFEST, "embeddings/part-*.parquet", "files/part-*.parquet")
_ROWS = 1 << 16  # converted at once

_TEXT = """
# An index of sounds

{rows} windows of {window:g} s, one every {hop:g} s, with the vectors of {model} at `{revision}`: {dim} of {dims} dims
as {storage}. `default` has a row a window (`path`, `start` and `end` in seconds, `embedding`), `files` a row a file.

```python
from datasets import load_dataset

windows = load_dataset("{repo_id}", split="train")
```

```
python -m wavlink.search.command pull {repo_id} --out INDEX --model {model}
python -m wavlink.search.command query INDEX "a dog barks far away"
```
"""


def reindex(folder: str | os.PathLike, out: str | os.PathLike, *, dim: int | None = None, storage: str | None = None):
    """The same index, from its own vectors, with fewer dims or another storage.

    Args:
        dim: of the nested dims, up to the index's; default: its own.
        storage: see `vectors.STORAGES`; one that is finer than the index's own adds no precision.

    Raises:
        ValueError: no such dim or storage, `out` is there already, or the index is damaged.
    """
    IndexFolder.reading(folder, lambda source: _reindexed(source, out, dim, storage))


def _reindexed(source: IndexFolder, out: str | os.PathLike, dim: int | None, storage: str | None) -> None:
    own = source.manifest
    new = dataclasses.replace(own, dim=dim or own.dim, storage=storage or own.storage, parts=[], next_part=0)
    if new.dim != own.dim and (new.dim not in own.matryoshka_dims or new.dim > own.dim):
        nested = ", ".join(str(dim) for dim in own.matryoshka_dims if dim <= own.dim)
        raise ValueError(f"dim={dim} is none of the index's nested dims: {nested}")
    with new_folder(out) as unfinished, IndexFolder.create(unfinished, new) as made:
        for part in own.parts:
            made.append(_converted(source.read(part, "embeddings"), own, new), source.read(part, "files"))


def _converted(windows: pyarrow.Table, own: Manifest, new: Manifest) -> Iterator[pyarrow.Table]:
    """The windows with codes of the new index, some at a time: they may be 32 times as large."""
    for start in range(0, len(windows), _ROWS):
        some = windows.slice(start, _ROWS)
        codes = encode(decode(own.codes(some), own.dim, own.storage), new.dim, new.storage)
        yield new.windows(some["path"], some["start"], some["end"], codes)


def push(folder: str | os.PathLike, repo_id: str, private: bool = False) -> str:
    """Puts an index on the Hub, in place of an older one there, in one commit; returns its address.

    Its sounds' paths below the root go with it, the root and where the model is do not. What people have written into
    the card, and files that no push has made, stay (see `wavlink.hub_record`).

    Raises:
        ValueError: a damaged index, a name that is none, a public repository where a private one is asked for, a
            card that was edited on the Hub above the line that it names, or files of others under an index's names.
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
            # not upload_folder, which may make several commits, so that a cut upload leaves half an index
            options = {"repo_type": "dataset", "commit_message": "An index of sounds", "parent_commit": earlier.commit}
            return api.create_commit(repo_id, [*added, *map(CommitOperationDelete, stale)], **options).commit_url
        except ValueError:
            raise
        except Exception as error:  # huggingface_hub's own and its HTTP library's
            raise OSError(f"the push to {api.endpoint}/datasets/{repo_id} failed: {reason(error)}") from error


def _made(api: HfApi, repo_id: str, earlier: Earlier) -> set[str]:
    """The files of an earlier push, by its manifest. Others may have put an index.json or parquet there too."""
    if _MANIFEST not in earlier.names:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        api.hf_hub_download(repo_id, _MANIFEST, repo_type="dataset", revision=earlier.commit, local_dir=folder)
        try:
            manifest = IndexFolder.open(folder).manifest
        except ValueError as error:
            raise ValueError(
                f"{_MANIFEST} of {repo_id} is of no earlier push, or was edited: name another repository, or delete "
                "it there with its parts"
            ) from error
    return _files_of(manifest) & earlier.names


def _files_of(manifest: Manifest) -> set[str]:
    return {_MANIFEST, *(f"{kind}/{part.name}" for part in manifest.parts for kind in part.sha256)}


def pull(
    repo_id: str, out: str | os.PathLike, *, model: str = "", root: str = "", revision: str | None = None
) -> None:
    """An index from the Hub, verified.

    Args:
        model: the one it was made by. Without it each query needs it, unless the index names a Hub id that has been
            downloaded before.
        root: the folder here that holds the sounds, if it does. A file in it that has the size it had is taken for the
            same, as its time of change seldom survives the way.
        revision: a branch, tag or commit.

    Raises:
        ValueError: there is no index, it is damaged, `out` is there already, or `root` is no folder.
        OSError: the Hub refuses, or does not answer.
    """
    if root and not os.path.isdir(root):
        raise ValueError(f"{root} is not a folder: name the one that holds the sounds")
    with new_folder(out) as unfinished:
        options = {"repo_type": "dataset", "revision": revision, "allow_patterns": list(_OURS)}
        try:
            snapshot_download(repo_id, local_dir=unfinished, **options)
        except Exception as error:
            raise OSError(f"{repo_id} cannot be had from the Hub: {reason(error)}") from error
        shutil.rmtree(unfinished / ".cache", ignore_errors=True)
        with IndexFolder.open(unfinished).writing() as index:
            index.divide_large()
            refuse_damaged(index)
            write_durably(unfinished / "README.md", CARD.encode())
            index.change(model=model or index.manifest.model, root=root and os.path.abspath(root))
            if root:
                _take_times(index)


def _take_times(index: IndexFolder) -> None:
    """Each file's time of change here."""

    def parts() -> Iterator[tuple[pyarrow.Table, pyarrow.Table]]:
        for part in index.manifest.parts:
            files = index.read(part, "files").to_pylist()
            for row in files:
                with suppress(OSError, TypeError):  # there is no such file
                    there = os.stat(file_of(index.manifest.root, row["path"]))
                    row["version"] = there.st_mtime_ns if there.st_size == row["size"] else row["version"]
            yield index.read(part, "embeddings"), pyarrow.Table.from_pylist(files, schema=FILES)

    index.replace(parts())


def away(manifest: Manifest) -> Manifest:
    """As it leaves this machine: without where the model and the sounds are on it."""
    model = os.path.basename(manifest.model) if os.path.isabs(manifest.model) else manifest.model
    return dataclasses.replace(manifest, model=model, root="")


def _contents(index: IndexFolder, repo_id: str) -> dict[str, bytes | str]:
    """What is pushed: bytes, or the path of a file."""
    manifest = away(index.manifest)
    return {
        _MANIFEST: manifest.to_json().encode(),
        "README.md": _card(manifest, repo_id).encode(),
        **{name: str(index.folder / name) for name in sorted(_files_of(manifest) - {_MANIFEST})},
    }


def _card(manifest: Manifest, repo_id: str) -> str:
    facts = dataclasses.asdict(manifest) | {"rows": manifest.rows, "model": escape(manifest.model), "repo_id": repo_id}
    return CARD.replace("configs:", "tags:\n- audio\n- wavlink\nconfigs:") + _TEXT.format(**facts)


def refuse_damaged(index: IndexFolder) -> None:
    damaged = index.damaged()
    if damaged:
        raise ValueError("; ".join(damaged.values()))
