"""Sound files by the YouTube id in their names, and their durations by their headers."""

import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.compute as pc
import soundfile

from processing.audio import load_audio
from processing.sound_files import SUFFIXES, SoundFiles, is_utf8, such_as

from .folder_form import files_below
from .kept_durations import KeptSeconds

logger = logging.getLogger(__name__)

KEPT_FROM = 1000  # files from which on durations are cached on disk; fewer are opened each time

_FILES_A_TASK = 256
_RATE = 16000  # Hz, for decoding a file whose header does not state its length
_LONGEST = 1e9  # s; for a FLAC without a stated length libsndfile returns the largest number
_ID = "[A-Za-z0-9_-]{11}"
_SECONDS = r"\d{1,6}(?:\.\d+)?"
# No name fits both alternatives: where the first ends after 11 characters, the second has its twelfth.
_NAME = f"^(?:(?P<video>{_ID})|Y(?P<prefixed>{_ID}))(?:_(?P<start>{_SECONDS})(?:_{_SECONDS})?)?$"


def clip_keys(names: pyarrow.Array) -> pyarrow.Table:
    """Normalise the names of clips from different data sets and downloaders.

    A clip is a YouTube id and, where the name holds it, its start in seconds. Known forms of `mAJAqzo-Y_Y`:

    | form | source |
    |---|---|
    | `mAJAqzo-Y_Y` | AudioCaps |
    | `YmAJAqzo-Y_Y` | Auto-ACD, AudioSetCaps and WavCaps for clips of AudioSet |
    | `mAJAqzo-Y_Y_000030` | Auto-ACD, AudioSetCaps and VGGSound |
    | `mAJAqzo-Y_Y_30.000` | downloaders of AudioSet |
    | `mAJAqzo-Y_Y_84_10`, `mAJAqzo-Y_Y_84_94` | AudioSetCaps for YouTube-8M; start and duration or end |

    and `Y` before any of the last three. A start in milliseconds is not recognised: it is another clip.

    Args:
        names: `[n]` strings, without a file's extension.

    Returns:
        `[n]` rows of `key` (`mAJAqzo-Y_Y` or `mAJAqzo-Y_Y_30`), `video` (`mAJAqzo-Y_Y`) and `has_start`. A name of
        no known form is its own key and video.
    """
    names = names.cast("string")
    parts = pc.extract_regex(names, _NAME)
    video, prefixed, start = (pc.struct_field(parts, name) for name in ("video", "prefixed", "start"))
    video = pc.if_else(pc.equal(video, ""), prefixed, video)  # of the alternatives one is empty
    start = pc.replace_substring_regex(start, r"^0+(\d)", r"\1")
    start = pc.replace_substring_regex(start, r"\.0+$|(\.\d*[1-9])0+$", r"\1")
    has_start = pc.fill_null(pc.not_equal(start, ""), False)
    key = pc.if_else(has_start, pc.binary_join_element_wise(video, start, "_"), video)
    columns = {"key": pc.coalesce(key, names), "video": pc.coalesce(video, names), "has_start": has_start}
    return pyarrow.table(columns)


def clip_key(name: str) -> str:
    """Return the key of one clip, see `clip_keys`: `"Yxs-9cT9sHTs"` has the key `"xs-9cT9sHTs"`."""
    return clip_keys(pyarrow.array([name], pyarrow.string()))["key"][0].as_py()


def index_folder(folder: str | os.PathLike) -> pyarrow.Table:
    """List all sound files below a folder (`SoundFiles`), sorted by path.

    Columns are `stem`, `name` (with extension) and `path`.

    Raises:
        ValueError: there is no such folder, or it holds no sound files, maybe tars.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is not a folder: name the folder that holds the sound files")
    files = SoundFiles(folder)
    listed = list(files)
    paths = [path for path in listed if is_utf8(path)]
    if len(paths) < len(listed):
        others = such_as(ascii(path) for path in listed if not is_utf8(path))
        logger.warning(f"{len(listed) - len(paths)} sounds have names that are not UTF-8 and are left out: {others}")
    if not paths and files_below(folder, ".tar"):
        raise ValueError(f"{folder} holds tar shards: stream them, or unpack them to load clips by their names")
    if not paths:
        raise ValueError(f"{folder} holds no sound files ({', '.join(SUFFIXES)})")
    if warning := files.warning():
        logger.warning(warning)
    paths = pyarrow.array(sorted(paths), pyarrow.large_string())
    names = pc.replace_substring_regex(paths, f"(?s)^.*{re.escape(os.sep)}", "")
    stems = pc.replace_substring_regex(names, r"\.[^.]*$", "")
    columns = {"stem": stems.cast("string"), "name": names.cast("string"), "path": paths}
    return pyarrow.table(columns)


def find_clips(clips: pyarrow.Table, files: pyarrow.Table) -> np.ndarray:
    """Return for each clip the row of its file, -1 where there is none.

    Both are tables of `clip_keys`, `clips` without duplicates. A file belongs to the clip of the same key (the first
    of several files). Where only one of the two has a start, they match if no other clip and no other file has that
    id.
    """
    clips, files = clips.to_pandas(), files.to_pandas()
    rows = np.arange(len(files))
    first = ~files["key"].duplicated().to_numpy()
    matches = _rows(pandas.Index(files["key"][first]), rows[first], clips["key"])
    lone_file = first & ~files["video"].where(first).duplicated(keep=False).to_numpy()
    lone_clip = ~clips["video"].duplicated(keep=False).to_numpy()
    by_video = _rows(pandas.Index(files["video"][lone_file]), rows[lone_file], clips["video"])
    one_start = clips["has_start"].to_numpy() != files["has_start"].to_numpy()[by_video]
    matches = np.where((matches < 0) & (by_video >= 0) & lone_clip & one_start, by_video, matches)
    return np.where(matches < 0, _same_letters(clips["key"], files["key"]), matches)


def _same_letters(clips: pandas.Series, files: pandas.Series) -> np.ndarray:
    """Return for each clip the row of the only file with its name in Unicode NFC or NFD, else -1."""
    clips, files = (names.str.normalize("NFC") for names in (clips, files))
    rows = np.flatnonzero(~files.duplicated(keep=False))
    matches = _rows(pandas.Index(files.iloc[rows]), rows, clips)
    return np.where(clips.duplicated(keep=False), -1, matches)


def _rows(index: pandas.Index, rows: np.ndarray, wanted: pandas.Series) -> np.ndarray:
    """Return the row of each wanted value, -1 where it is not in the index."""
    positions = index.get_indexer(wanted)
    return np.append(rows, -1)[positions]


def seconds_of(sounds: Iterable, workers: int = 16) -> np.ndarray:
    """Return the duration of each sound by its header, float64 `[n]` seconds; NaN where it cannot be read.

    Durations of `KEPT_FROM` paths and more are cached (`HF_HOME/wavlink/durations`) by path, size and time of change:
    one process opens the files while the others of the machine wait for it, and the next run opens only new ones.

    Args:
        sounds: paths, or files open for reading.
        workers: threads; reading many small headers waits for the disk or the network.
    """
    sounds = list(sounds)
    if len(sounds) < KEPT_FROM or not all(isinstance(sound, str) for sound in sounds):
        return in_threads(seconds_in, sounds, workers)
    paths = [os.path.abspath(sound) for sound in sounds]
    try:
        return KeptSeconds(paths).read(lambda new: in_threads(seconds_in, new, workers))
    except (OSError, NotImplementedError, pyarrow.ArrowException) as error:  # no room, no rights, no locks
        logger.warning(f"durations are not kept on disk, and read anew each time: {error}")
        return in_threads(seconds_in, sounds, workers)


def in_threads(function: Callable[[Any], float], items: Sequence, workers: int = 16) -> np.ndarray:
    """Call a function for each item in threads, and return the results, float64 `[n]`."""
    tasks = [items[start : start + _FILES_A_TASK] for start in range(0, len(items), _FILES_A_TASK)]
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda task: [function(item) for item in task], tasks)
        return np.fromiter(chain.from_iterable(results), np.float64, len(items))


def seconds_in(sound: Any) -> float:
    """Return the duration of a sound in seconds, NaN where it cannot be read.

    Args:
        sound: a path, bytes, or an open file, which is decoded only where the header states no duration.
    """
    if sound is None or (isinstance(sound, str) and not os.path.isfile(sound)):  # a pipe would wait for its writer
        return np.nan
    try:
        info = soundfile.info(io.BytesIO(sound) if isinstance(sound, bytes) else sound)
        seconds = info.frames / info.samplerate
    except (soundfile.SoundFileError, OSError, TypeError):
        seconds = 0.0
    if 0 < seconds < _LONGEST:
        return seconds
    if not isinstance(sound, str | bytes):
        sound.seek(0)
        sound = sound.read()
    try:
        return len(load_audio(sound, _RATE)) / _RATE
    except ValueError:
        return np.nan
