"""An index that is open: the latest version of its table, and the model that it was made with."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from wavlink.embedder import Embedder

from .index_model import embedder_of
from .information import facts_of
from .manifest import Manifest
from .removal import remove_sounds
from .table import Table

_READS = 20  # attempts at an index that another process changes meanwhile
_Result = TypeVar("_Result")


class OpenIndex:
    """What `wavlink.Index` keeps open, and what it does without a query.

    Args:
        table: of any version.
        dim: that is searched, of the nested dims (default: all that the table has).
        options: of `embedder_of`.
        root: the folder that holds the sounds (default: the one in the table).
    """

    def __init__(self, table: Table, dim: int | None, options: dict, root: str = ""):
        self.table, self._nested, self._options, self._root = table, dim, options, root
        self._revision = table.manifest.revision  # of the model that queries' vectors are of
        self._embedder: Embedder | None = None
        self._windows: tuple[int, int] | None = None  # of a version of the table
        self._unmixed: tuple[Table, int] | None = None  # the version whose rows are known to be of one model
        self.skipped: dict[str, str] = {}

    @property
    def manifest(self) -> Manifest:
        """How the index was made."""
        return self.table.manifest

    def __len__(self) -> int:
        """The number of windows."""
        return self._reading(self._windows_of)

    def _windows_of(self, table: Table) -> int:
        version, known = table.dataset.version, self._windows
        if known is None or known[0] != version:
            known = self._windows = version, table.windows()
        return known[1]

    @property
    def embedder(self) -> Embedder:
        """The model that the index was made with, loaded when it is first needed."""
        return self._embedder_of(self.manifest)

    def _embedder_of(self, manifest: Manifest) -> Embedder:
        if self._embedder is None or self._revision != manifest.revision:
            self._embedder = embedder_of(manifest, **self._options)
            self._revision = manifest.revision
        return self._embedder

    def _reading(self, read: Callable[[Table], _Result]) -> _Result:
        """Return `read` of the latest version; once more where another process has replaced that version meanwhile."""
        for _ in range(_READS):
            table = self.table = self.table.newest()
            try:
                return read(table)
            except (ValueError, OSError):
                self.table = table.reopened()
                if self.table is table:
                    raise
        raise ValueError(f"{table.index} is changed faster than it can be read: wait until `index` has ended")

    def remove(self, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
        """Remove sounds, or folders of them, in the way of `wavlink remove`. Their files stay where they are.

        Args:
            paths: as the hits of a query name them.

        Returns:
            The paths that were removed. The next `build` adds them again if their files are still there.

        Raises:
            ValueError: the index has no such sound or folder, or another process writes to it.

        Example:

        ```python
        >>> from wavlink import Index
        >>> index = Index.build(sounds_folder, output_folder / "removed_from", model_folder, progress=False)
        >>> index.remove("test")
        ['test/bell.wav', 'test/high.wav', 'test/low.wav', 'test/rain.wav']
        >>> any(hit.path.startswith("test/") for hit in index.query("a bell", top_k=100))
        False

        ```
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
        with Table.open(self.table.index, self.table.storage_options).writing() as table:
            return remove_sounds(table, paths)

    def info(self) -> dict[str, Any]:
        """Return what the index holds and how it was made, as `wavlink info --json` prints it.

        Returns:
            By name the number of `sounds`, `windows` and `bytes`; why files were `skipped`, by path; the `columns`
            that describe sounds; the `model` with its `revision`, the `dim` that is searched, and other facts of the
            manifest; of a large index the `probes` of a query, and the `recall` measured with them.

        Example:

        ```python
        >>> from wavlink import Index
        >>> index = Index.build(sounds_folder, output_folder / "described", model_folder, progress=False)
        >>> facts = index.info()
        >>> facts["sounds"], facts["windows"] == len(index), facts["skipped"]
        (14, True, {})

        ```
        """
        return self._reading(facts_of)

    def _dim_of(self, table: Table) -> int:
        return dim_of(table.manifest, self._nested)


def dim_of(manifest: Manifest, dim: int | None) -> int:
    """Return the dims that are compared.

    Raises:
        ValueError: the index cannot be searched at `dim`.
    """
    nested = [nested for nested in manifest.matryoshka_dims if nested <= manifest.dim]
    if dim not in (None, *nested):
        raise ValueError(f"dim={dim}: the index can be searched at {', '.join(map(str, nested))}")
    return dim or manifest.dim
