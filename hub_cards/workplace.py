"""The temporary folder of a push."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary() -> Iterator[Path]:
    """An empty folder that this process alone may read; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="wavlink-push-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
