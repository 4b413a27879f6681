"""Streaming of data sets: parquet files or tar shards of a folder or the Hub, read one after another."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import has_magic
from itertools import islice
from pathlib import Path

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
from transformers.utils import logging

from processing.sound_files import CONTAINERS, SUFFIXES, is_hidden

from .cells import kind_of
from .folder_form import files_below, hub_parquet, parquet_files

logger = logging.get_logger(__name__)

SOUNDS = tuple(suffix[1:] for suffix in SUFFIXES)
_TEXTS = re.compile(r"captions?(_?\d+)?|text")  # a value of this name in a KEY.json must be text
_SPLIT = re.compile(r"(?<![a-z0-9])(train|training|valid|validation|val|dev|test|eval|evaluation)(?![a-z])")
_MOST_BYTES = {
    "json": 1 << 24,
    "txt": 1 << 24,
}  # of a file in a tar; a compressed tar can expand to far more than its size
_MOST_SOUND = 1 << 29
_CLIPS_INSPECTED = 5  # of the first tar, to find the columns


def load_stream(data: str, split: str) -> datasets.IterableDataset:
    """Load a split as a stream whose `audio` column holds undecoded bytes or a path.

    A shard that cannot be read to its end is an error when it is read; here only if no shard can be read.

    Args:
        data: a Hub id or a folder with parquet files; or WebDataset `.tar` shards: a folder, or a glob such as
            `shards/train-*.tar`, also on other file systems of fsspec (`hf://datasets/USER/NAME/train-*.tar`).
            A clip's files in a tar follow each other: `KEY.wav` (or another of `sound_files`), `KEY.json`, whose texts
            and lists of texts become columns, `KEY.txt`, whose lines become the column `text`; `__key__` is its key.
        split: such as `"train"`. Of a folder of tars: those in `split/`, else those with the split in their names,
            else all if none names another split; a glob is used unchanged.

    Raises:
        ValueError: no shards, or no sounds in them.
    """
    if not data:
        raise ValueError("name the data set: a Hub id, or a folder or glob of parquet files or tar shards")
    folder = Path(data)
    if folder.is_dir() and not _is_parquet(folder, split):
        return _stream_tars(_of_split(folder, split))
    if not folder.is_dir() and ("://" in data or has_magic(data) or data.endswith(".tar")):
        return _stream_tars(_glob(data))
    dataset = _stream_parquet(data, split)
    names = dataset.column_names or []
    if "audio" not in names:
        raise ValueError(
            f"{data} has no column 'audio', only {', '.join(names)}"
            + (f"; read its tars as hf://datasets/{data}/**/*.tar" if "__key__" in names else "")
        )
    return dataset.cast_column("audio", datasets.Audio(decode=False))


def _stream_parquet(data: str, split: str) -> datasets.IterableDataset:
    """Stream parquet files with the columns of the first one, or of the first one of a folder that can be read."""
    try:
        return datasets.load_dataset(data, split=split, streaming=True)
    except pyarrow.ArrowInvalid as error:
        for path in parquet_files(Path(data)) if Path(data).is_dir() else ():
            with suppress(pyarrow.ArrowInvalid, OSError):
                features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
                return datasets.load_dataset(data, split=split, streaming=True, features=features)
        raise ValueError(f"cannot read the parquet files of {data}: {error}; write them again") from error


def _is_parquet(folder: Path, split: str) -> bool:
    """Whether to read parquet files; if there are tars too, only parquet files where a Hub repository has them."""
    files = parquet_files(folder)
    return bool(files) and (not files_below(folder, ".tar") or hub_parquet(folder, split, files))


def _glob(pattern: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(pattern)
    tars = sorted(filesystem.unstrip_protocol(name) for name in filesystem.glob(path) if name.endswith(".tar"))
    if not tars:
        raise ValueError(f"no .tar file matches {pattern}")
    return tars


def _of_split(folder: Path, split: str) -> list[str]:
    paths = files_below(folder, ".tar")
    if not paths:
        raise ValueError(f"{folder} holds neither parquet files nor .tar shards; an audiofolder needs no stream")
    inside = [path for path in paths if split in path.relative_to(folder).parts[:-1]]
    named = [path for path in paths if re.search(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z])", path.name)]
    if not inside and not named:
        other = [name for name in map(str, (path.relative_to(folder) for path in paths)) if _SPLIT.search(name)]
        if other:
            raise ValueError(f"{folder} has no shards named {split}, but others, such as {other[0]}; give a glob")
        logger.warning(f"{folder} has no shards named {split}: all of its tars are taken as {split!r}")
    return [str(path) for path in inside or named or paths]


def _stream_tars(paths: list[str]) -> datasets.IterableDataset:
    path, first = _first_clips(paths)
    if not any(_sound(files) for _, files in first):
        raise ValueError(
            f"{path} holds no sound in its first {_CLIPS_INSPECTED} clips: write each as KEY.wav (or "
            f"{', '.join(SOUNDS[1:])}) beside KEY.json or KEY.txt"
        )
    for key, files in first:
        _refuse_other_texts(path, key, files)
    names = tuple(dict.fromkeys(name for _, files in first for name in _texts(files)))
    text = datasets.Value("string")
    features = {"__key__": text, "audio": {"bytes": datasets.Value("binary"), "path": text}}
    features |= {name: [text] for name in names}
    return datasets.IterableDataset.from_generator(
        _read_tars, features=datasets.Features(features), gen_kwargs={"paths": paths, "names": names}
    )


def _first_clips(paths: list[str]) -> tuple[str, list[tuple[str, dict[str, bytes]]]]:
    """Return the path and first clips of the first tar of which a clip can be read."""
    reason = None
    for path in paths:
        clips, first = _clips(path), []
        try:
            first.extend(islice(clips, _CLIPS_INSPECTED))
        except ValueError as error:
            reason = reason or error
        if first or reason is None:
            return path, first
    raise ValueError(f"{reason}; none of {len(paths)} shards can be read" if paths[1:] else str(reason)) from reason


class _Header(tarfile.TarInfo):
    """A tar header that raises an error where it is cut or damaged, or where the final zeros are missing.

    `tarfile` takes such a header for the end of the tar unless it is the first one.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        """Parse a header of 512 bytes."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not buf.strip(b"\0"):  # the end
                raise
            raise tarfile.ReadError(f"unexpected end of data ({error})" if len(buf) < 512 else str(error)) from error


def _read_tars(paths: Sequence[str], names: tuple[str, ...]) -> Iterator[dict]:
    """Yield rows of tars.

    `datasets` pickles this function for worker processes and divides its list of paths.
    """
    for path in paths:
        has_sound = False
        for key, files in _clips(path):
            sound, texts = _sound(files), _texts(files)
            has_sound = has_sound or sound is not None
            audio = {"bytes": files[sound] if sound else None, "path": f"{key}.{sound}" if sound else None}
            yield {"__key__": key, "audio": audio, **{name: texts.get(name) for name in names}}
        if not has_sound:
            raise ValueError(f"{path} holds no sound ({', '.join(SOUNDS)}): take it out of the shards")


def _clips(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield each clip's key and files by suffix. A key ends at the first dot of the file's name, as in WebDataset."""
    filesystem, name = fsspec.core.url_to_fs(path)
    current, files = None, {}
    try:
        with filesystem.open(name, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as tar:
            for member in tar:
                tar.members = []  # else the list of all members grows in memory
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffixes = base.partition(".")
                suffix = suffixes.rpartition(".")[2].lower()
                hidden = any(map(is_hidden, [*folder.split("/"), base]))
                if not member.isfile() or hidden or not stem or suffix not in (*SOUNDS, "json", "txt"):
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if key != current and files:
                    yield current, files
                    files = {}
                if suffix in files:
                    raise ValueError(f"{path} holds two {suffix} files of key {key}; a key ends at its first dot")
                most = _MOST_BYTES.get(suffix, _MOST_SOUND)
                if member.size > most:
                    raise ValueError(f"{path} holds {member.name[:80]!r}, of more than {most >> 20} MB: take it out")
                current, files[suffix] = key, tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}; write this shard again or take it out") from error
    if files:
        yield current, files


def _sound(files: dict[str, bytes]) -> str | None:
    """Return the suffix of the clip's sound; of several a format that needs no PyAV."""
    return min((suffix for suffix in files if suffix in SOUNDS), key=lambda x: f".{x}" in CONTAINERS, default=None)


def _values(files: dict[str, bytes]) -> dict:
    """Parse a clip's JSON to values by name; an error is a ValueError or RecursionError."""
    content = json.loads(files["json"]) if "json" in files else {}
    return content if isinstance(content, dict) else {"text": content}


def _refuse_other_texts(path: str, key: str, files: dict[str, bytes]) -> None:
    try:
        values = _values(files)
    except (ValueError, RecursionError):  # the clip counts as one without caption
        return
    for name, value in values.items():
        kind = kind_of(value)
        if _TEXTS.fullmatch(name) and kind not in ("", "text", "a list of text", "an empty list"):
            raise ValueError(
                f"{path} holds {kind} as {name!r} in {key}.json: {str(value)[:60]!r}; a caption is a text or a "
                "list of texts: write the shards so"
            )


def _texts(files: dict[str, bytes]) -> dict[str, list[str]]:
    """Return a clip's texts by name, none where a file cannot be read: the clip then counts as one without caption."""
    texts = {}
    try:
        for name, value in _values(files).items():
            value = [value] if isinstance(value, str) else value
            if name not in ("__key__", "audio") and isinstance(value, list) and all(isinstance(x, str) for x in value):
                texts[name] = value
        if "txt" in files:
            texts["text"] = [*texts.get("text", []), *files["txt"].decode().splitlines()]
    except (ValueError, RecursionError):  # of JSON or UTF-8
        return {}
    return texts
