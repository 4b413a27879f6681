"""Durations of a data set's sounds, and which of them cannot be read."""

import os
from typing import Any

import numpy as np

from .youtube_ids import in_threads, seconds_in, seconds_of

_ROWS_AT_ONCE = 4096


def header_seconds(dataset: Any) -> np.ndarray:
    """Return the seconds of each row's sound, float64 `[n]`, NaN where it cannot be read.

    They come from the `duration` column. Where it is missing or empty the file's header is read, and the complete file
    only if the header states no length or libsndfile does not know it.

    Args:
        dataset: a `datasets.Dataset`, or a list of rows.

    Raises:
        ValueError: a duration that is no number.
    """
    seconds = np.full(len(dataset), np.nan)
    columns = getattr(dataset, "column_names", None)
    if columns is None:  # a list of rows
        seconds[:] = [np.nan if row.get("duration") is None else _number(row["duration"]) for row in dataset]
    elif "duration" in columns:
        seconds[:] = [np.nan if value is None else _number(value) for value in dataset["duration"]]
    unknown = np.flatnonzero(np.isnan(seconds))
    rows = dataset if columns is None else dataset.select_columns("audio")
    paths: dict[int, str] = {}
    for start in range(0, len(unknown), _ROWS_AT_ONCE):
        indices = unknown[start : start + _ROWS_AT_ONCE]
        sounds = [rows[int(index)]["audio"] for index in indices] if columns is None else rows[indices]["audio"]
        paths |= {index: path for index, audio in zip(indices, sounds, strict=True) if (path := _path(audio))}
        others = [(index, audio) for index, audio in zip(indices, sounds, strict=True) if not _path(audio)]
        seconds[[index for index, _ in others]] = in_threads(_embedded_seconds, [audio for _, audio in others])
    seconds[list(paths)] = seconds_of(paths.values())
    return seconds


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column 'duration' holds {str(value)[:40]!r}, which is no number of seconds") from error


def _path(audio) -> str | None:
    """Return the file of a row that holds only its path."""
    if isinstance(audio, dict):
        audio = audio.get("path") if audio.get("bytes") is None and audio.get("array") is None else None
    return os.fspath(audio) if audio and isinstance(audio, str | os.PathLike) else None


def _embedded_seconds(audio) -> float:
    """Return the seconds of a row that holds its sound, a decoder, or nothing."""
    if not isinstance(audio, dict):
        known = getattr(getattr(audio, "metadata", None), "duration_seconds", None)
        return seconds_in(audio) if isinstance(audio, bytes) else np.nan if audio is None else float(known or 0)
    if audio.get("array") is not None:
        return len(audio["array"]) / audio["sampling_rate"]
    return np.nan if audio.get("bytes") is None else seconds_in(audio["bytes"])
