"""Results as a file: a playlist (M3U), a table (CSV) or JSON."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from wavlink.atomic_files import write_bytes
from wavlink.destinations import file_destination
from wavlink.sanitize import clean, path_text

from .hits import Hit, as_dict

SUFFIXES = (".m3u", ".m3u8", ".csv", ".json")


def check_playlist(path: str | os.PathLike) -> Path:
    """Return the path of a playlist that can be written.

    Raises:
        ValueError: its suffix is none of `SUFFIXES`, it is a folder, or there is no right to write it.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no playlist: name a file that ends in {', '.join(SUFFIXES)}")
    file_destination(path)
    return path


def write_playlist(path: str | os.PathLike, hits: Sequence[Hit]) -> None:
    """Write results to a file, in the format that its suffix names; an earlier file is replaced.

    An M3U names each file once, by its full path; sounds without a file on this machine are left out with a warning.
    CSV and JSON hold all facts of every result.
    """
    path = check_playlist(path)
    if path.suffix.lower() == ".csv":
        content = _csv(hits).encode("utf-8", "backslashreplace")
    elif path.suffix.lower() == ".json":
        content = (json.dumps([as_dict(hit) for hit in hits], indent=2) + "\n").encode()
    else:
        content = _m3u(hits)
    write_bytes(path, content)


def _m3u(hits: Sequence[Hit]) -> bytes:
    lines, files, left_out = [b"#EXTM3U"], set(), {}
    for hit in hits:
        if hit.file is None or hit.missing or "\n" in hit.file or "\r" in hit.file:
            left_out[hit.path] = None
        elif hit.file not in files:
            files.add(hit.file)
            seconds = -1 if hit.duration is None else round(hit.duration)  # -1: not known
            lines += [f"#EXTINF:{seconds},{path_text(hit.path)}".encode(), os.fsencode(hit.file)]
    if left_out:
        names = clean(", ".join([*left_out][:3]), 1000)
        print(f"{len(left_out)} results have no file here that a playlist can name: {names}", file=sys.stderr)
    return b"\n".join([*lines, b""])


def _csv(hits: Sequence[Hit]) -> str:
    names = [field.name for field in fields(Hit) if field.name != "metadata"]
    columns = dict.fromkeys(name for hit in hits for name in hit.metadata)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*names, *columns])
    for hit in hits:
        table.writerow([*(getattr(hit, name) for name in names), *(hit.metadata.get(name) for name in columns)])
    return text.getvalue()
