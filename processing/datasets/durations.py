"""How long the sounds of a data set last, and which of them cannot be read."""

import os

import numpy as np

from .youtube_ids import in_threads, seconds_in, seconds_of

_ROWS_AT_ONCE = 4096


def header_seconds(dataset) -> np.ndarray:
    """float64 `[n]`: seconds of each row's sound, NaN where it cannot be read.

    The `duration` column is believed; where it is missing or empty the file's header is read, and the whole file only
    where that names no frames or is none that libsndfile knows.
    """
    seconds = np.full(len(dataset), np.nan)
    named = getattr(dataset, "column_names", None)
    if named is None:  # a list of rows
        seconds[:] = [np.nan if row.get("duration") is None else _number(row["duration"]) for row in dataset]
    elif "duration" in named:
        seconds[:] = [np.nan if value is None else _number(value) for value in dataset["duration"]]
    unknown = np.flatnonzero(np.isnan(seconds))
    rows = dataset if named is None else dataset.select_columns("audio")
    paths: dict[int, str] = {}
    for start in range(0, len(unknown), _ROWS_AT_ONCE):
        places = unknown[start : start + _ROWS_AT_ONCE]
        held = [rows[int(place)]["audio"] for place in places] if named is None else rows[places]["audio"]
        paths |= {place: path for place, audio in zip(places, held, strict=True) if (path := _path(audio))}
        others = [(place, audio) for place, audio in zip(places, held, strict=True) if not _path(audio)]
        seconds[[place for place, _ in others]] = in_threads(_held_seconds, [audio for _, audio in others])
    seconds[list(paths)] = seconds_of(paths.values())
    return seconds


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column 'duration' holds {str(value)[:40]!r}, which is no number of seconds") from error


def _path(audio) -> str | None:
    """The file of a row that holds nothing but its path."""
    if isinstance(audio, dict):
        audio = audio.get("path") if audio.get("bytes") is None and audio.get("array") is None else None
    return os.fspath(audio) if audio and isinstance(audio, str | os.PathLike) else None


def _held_seconds(audio) -> float:
    """Of a row that holds its sound, a decoder of it, or nothing."""
    if not isinstance(audio, dict):
        known = getattr(getattr(audio, "metadata", None), "duration_seconds", None)
        return seconds_in(audio) if isinstance(audio, bytes) else np.nan if audio is None else float(known or 0)
    if audio.get("array") is not None:
        return len(audio["array"]) / audio["sampling_rate"]
    return np.nan if audio.get("bytes") is None else seconds_in(audio["bytes"])
