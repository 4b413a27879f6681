"""Files of a table that are shorter than what was written to them.

Lance (seen in pylance 14.0.2, on a local disk) does not report an error of the last write of a file, as that of a disk
that is full: the commit then names a file that cannot be read.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from lance.fragment import FragmentMetadata


def short_files(table: Path, fragments: Iterable[FragmentMetadata]) -> list[str]:
    """Return the names, relative to the table, of files that are shorter than their fragments say."""
    sizes = {f"data/{file.path}": file.file_size_bytes or 0 for each in fragments for file in each.files}
    return [name for name, size in sizes.items() if (table / name).exists() and (table / name).stat().st_size < size]


def refuse_short_files(table: Path, fragments: Iterable[FragmentMetadata]) -> None:
    """Raise an OSError if a file is shorter than its fragment says."""
    if short := short_files(table, fragments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(table / short[0]))
