"""SHA-256 checksums of a table's files, which are never changed once they are written."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from wavlink.atomic_files import write_text

from .table_errors import REPAIR

_FILE = "checksums.jsonl"
_READ = 1 << 20


class Checksums:
    """The checksums of an index on a local disk, in `INDEX/checksums.jsonl`."""

    def __init__(self, folder: Path):
        self.folder, self.table = folder, folder / "windows.lance"

    def read(self) -> dict[str, str]:
        """Return the checksums by name.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / _FILE
        if not path.exists():
            return {}
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return {str(row["file"]): str(row["sha256"]) for row in rows}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}): {REPAIR}") from error

    def update(self, names: Sequence[str]) -> None:
        """Note the checksums of new files, and forget those of files that are gone."""
        known = self.read()
        kept = {name: known.get(name) or sha256_of(self.table / name) for name in names}
        if kept != known:
            lines = [json.dumps({"file": name, "sha256": digest}) for name, digest in kept.items()]
            write_text(self.folder / _FILE, "".join(f"{line}\n" for line in lines))

    def forget(self) -> None:
        """Forget all checksums; `update` notes them anew."""
        (self.folder / _FILE).unlink(missing_ok=True)

    def damaged(self, names: Sequence[str]) -> dict[str, str]:
        """Return by name why a file is not as it was written."""
        known, errors = self.read(), {}
        for name in names:
            path = self.table / name
            try:
                digest = sha256_of(path)
            except FileNotFoundError:
                errors[name] = f"{path} is missing from the index: {REPAIR}"
            except OSError as error:
                errors[name] = f"{path} cannot be read ({error.strerror}): {REPAIR}"
            else:
                if digest != known.get(name, digest):
                    errors[name] = f"{path} is damaged, its checksum is not the one written: {REPAIR}"
        return errors


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ):
            digest.update(block)
    return digest.hexdigest()
