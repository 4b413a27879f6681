"""The files of an index's table: their size, their damage, and those that no version names."""

import datetime
from collections.abc import Iterable
from pathlib import Path

import lance
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata

from processing.file_names import stays_below

from .checksums import Checksums
from .location import is_remote
from .short_files import refuse_short_files, short_files
from .table_errors import REPAIR, explained
from .table_place import uri_of

LOST = "what rows the table has is lost: put a copy of the index back, or index the sounds into another folder"
_OTHERS_READ = datetime.timedelta(days=1)  # an earlier version, in object storage
_FOLDERS = ("data", "_deletions", "_indices", "_transactions", "_versions")  # that Lance writes
_HINT = "latest_version_hint.json"


class TableFiles:
    """What `wavlink.search.table.Table` knows of its files."""

    index: str
    dataset: lance.LanceDataset
    checksums: Checksums | None  # None in object storage

    @property
    def uri(self) -> str:
        """The address of the table."""
        return uri_of(self.index)

    def bytes(self) -> int:
        """Return the bytes of the table's files; in object storage those of its rows alone."""
        if is_remote(self.index):
            fragments = [fragment.metadata for fragment in self.dataset.get_fragments()]
            return sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.files)
        return sum(path.stat().st_size for path in Path(self.uri).rglob("*") if path.is_file())

    def refuse_short(self, fragments: Iterable[FragmentMetadata]) -> None:
        """Raise an OSError for fragments whose files do not fit on the disk."""
        if self.checksums:
            refuse_short_files(Path(self.uri), fragments)

    def damaged(self) -> dict[str, str]:
        """Return by name why a file of the table is not as it was written."""
        if not self.checksums:
            return {}
        table = Path(self.uri)
        with explained(self.index):
            short = short_files(table, (fragment.metadata for fragment in self.dataset.get_fragments()))
        damaged = {name: f"{table / name} is damaged, it is shorter than what was written: {REPAIR}" for name in short}
        return damaged | self.checksums.damaged(self.file_names())

    def without_checksum(self) -> list[str]:
        """Return the files, of a table on a local disk, of which no checksum is noted: their damage is not seen."""
        known = self.checksums.read() if self.checksums else {}
        return [name for name in self.file_names() if name not in known] if self.checksums else []

    def file_names(self) -> list[str]:
        """Return the files of the current version, relative to the table, without those of its version log."""
        with explained(self.index):
            rows = self.dataset.tracked_files().read_all()
        names = sorted(rows.filter(pc.equal(rows["version"], self.dataset.version))["path"].to_pylist())
        if wrong := next((name for name in names if not stays_below(name)), None):
            raise ValueError(f"{self.index} names a file that is none of its own, {wrong!r:.200}: {LOST}")
        return names

    def tidy(self) -> None:
        """Remove files that no version names and older versions, and note checksums of new files."""
        if self.checksums is None:  # others may be about to name their files: Lance keeps them for seven days
            self.dataset.cleanup_old_versions(older_than=_OTHERS_READ)
        else:
            self.dataset.cleanup_old_versions(older_than=datetime.timedelta(0), delete_unverified=True)
            names = self.file_names()
            self._remove_others({*names})
            self.checksums.update(names)

    def _remove_others(self, names: set[str]) -> None:
        """Remove temporary files of processes that were killed, which Lance does not clean up."""
        table = Path(self.uri)
        for folder in _FOLDERS:
            for path in (table / folder).rglob("*"):
                if path.is_file() and path.relative_to(table).as_posix() not in names and path.name != _HINT:
                    path.unlink(missing_ok=True)
