"""The paper's data sets by name: captions joined with their sounds, and a report of missing clips.

| name | captions | sounds | splits |
|---|---|---|---|
| `auto_acd` | Hub `Loie/Auto-ACD`: `youtube_id`, `caption` in `train.csv`, `test.csv` | your folder | train, test |
| `audiosetcaps` | Hub `baijs/AudioSetCaps`: `id`, `caption` in three files | your folder | train |
| `audiocaps` | Hub `OpenSound/AudioCaps` (version 2): a row a caption | with them | train, validation, test |
| `clotho` | Hub `CLAPv2/Clotho`, test `mteb/Clotho`: captions joined in `text` | with them | train, validation, test |
| `clotho` | Zenodo 4783391: `caption_1` to `caption_5` in three files | beside them | train, validation, test |

Clotho's own names of its splits are development, validation and evaluation.
"""

import logging
import re
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.compute as pc

from processing.hub_names import needs_cache

from .caption_tables import CAPTION_FILES, group, read_captions, read_csv
from .cells import refuse_other_captions
from .folder_form import parquet_files
from .report import MAX_EXAMPLES, MAX_SECONDS, ClipReport
from .youtube_ids import clip_keys, find_clips, index_folder, seconds_of

logger = logging.getLogger(__name__)

NAMES = ("auto_acd", "audiosetcaps", "audiocaps", "clotho")
_AUDIOCAPS = "OpenSound/AudioCaps"
_CLOTHO = {"train": "CLAPv2/Clotho", "validation": "CLAPv2/Clotho", "test": "mteb/Clotho"}
_CLOTHO_SPLITS = {"train": "development", "validation": "validation", "test": "evaluation"}
_SPLITS = {name: list(files) for name, (_, _, files) in CAPTION_FILES.items()}
_SPLITS |= {"audiocaps": ["train", "validation", "test"], "clotho": list(_CLOTHO_SPLITS)}
_FEATURES = datasets.Features(
    {
        "audio": datasets.Audio(decode=False),
        "captions": datasets.List(datasets.Value("string")),
        "duration": datasets.Value("float64"),
        "source": datasets.Value("string"),
    }
)
_SENTENCE_END = re.compile(r"\.+(?:\s+|$|(?=[A-Z]))")
_CLIPS_A_CHUNK = 100_000  # Arrow's plain strings hold 2 GB a chunk, the captions of AudioSetCaps come near it


def load_paper_data(
    name: str, split: str, audio: str = "", max_seconds: float | None = MAX_SECONDS
) -> tuple[datasets.Dataset, ClipReport]:
    """Load a split with one row for each clip, and a report of missing clips.

    Columns are `audio` (undecoded: `bytes` or `path`), `captions` (all of the clip's), `duration` (seconds, by the
    file's header) and `source` (the name). A clip whose sound is missing or broken is left out and counted.

    Args:
        name: one of `NAMES`.
        split: `train`, `validation` or `test`, as far as the data set has it.
        audio: for `auto_acd` and `audiosetcaps` the folder of sound files (`SoundFiles`) named by YouTube id,
            in any of the forms of `clip_keys`, at any depth. For `clotho`, if given, the folder of the original files
            or a copy of a Hub repository. For `audiocaps`, if given, a copy of the Hub repository.
        max_seconds: longer clips are left out; None keeps them (training crops), and counts those over 30 s.

    Raises:
        ValueError: an unknown name or split, no folder of sounds where one is needed, or no clip left.
    """
    if name not in NAMES:
        raise ValueError(f"no data set of the paper is called {name!r}: {', '.join(NAMES)}")
    if split not in _SPLITS[name]:
        raise ValueError(f"{name} has no split {split!r}: {', '.join(_SPLITS[name])}")
    report = ClipReport(name, split, kept_too_long=max_seconds is None)
    report.max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
    if name in CAPTION_FILES:
        return _load_caption_only(report, audio), report
    tables = [f"clotho_captions_{split}.csv" for split in _CLOTHO_SPLITS.values()]
    if name == "clotho" and audio and (any((Path(audio) / x).is_file() for x in tables) or not parquet_files(audio)):
        return _load_clotho(report, Path(audio)), report
    return _load_parquet(report, audio), report


def _load_caption_only(report: ClipReport, folder: str) -> datasets.Dataset:
    if not folder:
        raise ValueError(f"{report.source} holds captions only: name the folder of its sounds (audio=)")
    files = index_folder(folder)
    rows, report.rows, report.empty = read_captions(report.source, report.split)
    clips = group(clip_keys(rows["id"])["key"], rows["caption"], rows["id"])
    return _join(report, folder, clips, files, find_clips(clip_keys(clips["name"]), clip_keys(files["stem"])))


def _load_clotho(report: ClipReport, folder: Path) -> datasets.Dataset:
    split = _CLOTHO_SPLITS[report.split]
    path = folder / f"clotho_captions_{split}.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no {path.name}: get Clotho from https://zenodo.org/records/4783391")
    numbered = [f"caption_{number}" for number in range(1, 6)]
    rows = read_csv(path, ["file_name", *numbered])
    report.rows = len(rows)
    texts = pandas.concat(
        [rows.select(["file_name", column]).to_pandas().set_axis(["id", "caption"], axis=1) for column in numbered]
    )
    texts["caption"] = texts["caption"].str.strip()
    texts = texts[(texts["id"] != "") & (texts["caption"] != "")]
    texts = pyarrow.Table.from_pandas(texts, preserve_index=False)
    clips = group(texts["id"], texts["caption"], texts["id"])
    report.empty = len(rows) - len(clips)
    roots = [root for root in (folder / split, folder / f"clotho_audio_{split}") if root.is_dir()]
    files = index_folder(roots[0] if roots else folder)  # two splits have a FREEZER_DOOR_OPEN_CLOSE.wav
    return _join(report, folder, clips, files, find_clips(_as_keys(clips["name"]), _as_keys(files["name"])))


def _as_keys(names: pyarrow.ChunkedArray) -> pyarrow.Table:
    return pyarrow.table({"key": names, "video": names, "has_start": pyarrow.repeat(False, len(names))})


def _join(
    report: ClipReport, folder, clips: pyarrow.Table, files: pyarrow.Table, rows: np.ndarray
) -> datasets.Dataset:
    """Join clips with their files: `rows` `[clips]` of `files`, -1 for none."""
    present = rows >= 0
    if not present.any():
        names = " or ".join(clips["name"][:2].to_pylist())
        raise ValueError(f"{folder} holds none of the {len(clips)} clips of {report.source}: no file like {names}")
    paths = files["path"].take(rows[present])
    seconds = np.full(len(clips), np.nan)
    seconds[present] = seconds_of(paths.to_pylist())
    kept = judge(report, clips["name"], present, seconds)
    chunks = [
        _from_paths(files["path"].take(rows[some]), clips["captions"].take(some), seconds[some], report.source)
        for some in np.split(kept, range(_CLIPS_A_CHUNK, len(kept), _CLIPS_A_CHUNK))
    ]
    return datasets.Dataset(pyarrow.concat_tables(chunks), info=datasets.DatasetInfo(features=_FEATURES))


def _from_paths(paths, captions, seconds: np.ndarray, source: str) -> pyarrow.Table:
    nothing = pyarrow.nulls(len(paths), pyarrow.binary())
    columns = {
        "audio": pyarrow.StructArray.from_arrays([nothing, paths.combine_chunks().cast("string")], ["bytes", "path"]),
        "captions": captions.combine_chunks().cast(pyarrow.list_(pyarrow.string())),
        "duration": seconds,
        "source": pyarrow.repeat(source, len(paths)),
    }
    return pyarrow.table(columns).cast(_FEATURES.arrow_schema)


def judge(report: ClipReport, names: pyarrow.ChunkedArray, present: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Fill the report's counts and examples, and return the rows of the clips to keep.

    Args:
        report: of the split.
        names: `[n]`, of the clips.
        present: `[n]` bool, whether a clip has a sound.
        seconds: `[n]`, NaN where the sound cannot be read.

    Raises:
        ValueError: no clip is left.
    """
    too_long = present & (seconds > report.max_seconds)
    left_out = np.isnan(seconds) | (too_long & (not report.kept_too_long))
    faults = {"missing": ~present, "broken": present & np.isnan(seconds), "too_long": too_long}
    for fault, mask in faults.items():
        setattr(report, fault, int(mask.sum()))
        report.add_examples(fault, names.take(np.flatnonzero(mask)[:MAX_EXAMPLES]).to_pylist())
    report.clips = int((~left_out).sum())
    if not report.clips:
        raise ValueError(f"no clip is left: {report}")
    return np.flatnonzero(~left_out)


def _load_parquet(report: ClipReport, folder: str) -> datasets.Dataset:
    """Load a data set that contains its sounds; they are not copied, and only their headers are read."""
    name, split = report.source, report.split
    source = folder or (_CLOTHO[split] if name == "clotho" else _AUDIOCAPS)
    needs_cache(source, "README.md", kind="dataset")
    rows = datasets.load_dataset(source, split=split)
    required = ["youtube_id", "caption"] if name == "audiocaps" else ["text"]
    if missing := [column for column in ["audio", *required] if column not in rows.column_names]:
        raise ValueError(f"{source} has no column {', '.join(missing)}, only {', '.join(rows.column_names)}")
    refuse_other_captions(rows, required[-1:])
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    present, seconds = sounds_of(rows.data.column("audio"))
    texts = _audiocaps_texts(rows) if name == "audiocaps" else _clotho_texts(rows)
    texts["caption"] = texts["caption"].fillna("").str.strip()
    texts = texts[texts["caption"] != ""]
    report.rows, report.empty = len(rows), len(rows) - texts["row"].nunique()
    best = texts.assign(fault=np.isnan(seconds[texts["row"]])).sort_values("fault", kind="stable")
    best = best.drop_duplicates("key").set_index("key")["row"]  # the first of a clip's rows that can be read
    table = pyarrow.Table.from_pandas(texts[["key", "name", "caption"]], preserve_index=False)
    clips = group(table["key"], table["caption"], table["name"])
    best = best[texts["key"].drop_duplicates()].to_numpy()  # in the clips' order
    kept = judge(report, clips["name"], present[best], seconds[best])
    captions = [None] * len(rows)
    for row, clip_captions in zip(best, clips["captions"].to_pylist(), strict=True):
        captions[row] = clip_captions
    rows = rows.select_columns("audio").add_column("captions", captions, feature=_FEATURES["captions"])
    rows = rows.add_column("duration", seconds, feature=_FEATURES["duration"])
    rows = rows.add_column("source", [name] * len(rows), feature=_FEATURES["source"])
    return rows.select(best[kept])


def sounds_of(column: pyarrow.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row of an `audio` column whether it has a sound, and its seconds by the header."""
    contents, paths = (pc.struct_field(column, name) for name in ("bytes", "path"))
    sounds = [
        pyarrow.BufferReader(content.as_buffer()) if content.is_valid else path.as_py()
        for content, path in zip(contents, paths, strict=True)
    ]
    present = np.array([bool(sound) and (not isinstance(sound, str) or Path(sound).is_file()) for sound in sounds])
    return present, seconds_of(sounds)


def _audiocaps_texts(rows: datasets.Dataset) -> pandas.DataFrame:
    """Return a line for each caption: its `row`, its clip's `key` and `name`, and the `caption`."""
    columns = [name for name in ("youtube_id", "start_time", "caption") if name in rows.column_names]
    texts = rows.select_columns(columns).to_pandas()
    key = texts["youtube_id"].astype(str)
    if "start_time" in columns:
        key = key + "_" + texts["start_time"].astype(str)
    return pandas.DataFrame(
        {"row": np.arange(len(texts)), "key": key, "name": texts["youtube_id"], "caption": texts["caption"]}
    )


def _clotho_texts(rows: datasets.Dataset) -> pandas.DataFrame:
    """Return the same as `_audiocaps_texts`.

    A caption ends before a full stop that is followed by a space, a capital or the end. A list holds them apart.
    """
    texts = [text if isinstance(text, list) else _SENTENCE_END.split(text or "") for text in rows["text"]]
    parts = [[part for part in captions if part and part.strip()] for captions in texts]
    if odd := sum(len(part) != 5 for part in parts):
        logger.warning(f"{odd} of {len(parts)} clips of Clotho have not five captions by their full stops")
    names = rows["index"] if "index" in rows.column_names else range(len(rows))
    texts = pandas.DataFrame({"row": range(len(rows)), "key": range(len(rows)), "name": names, "caption": parts})
    return texts.astype({"name": str}).explode("caption")
