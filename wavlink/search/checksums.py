"""SHA-256 checksums of a table's files, which are never changed once they are written."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from wavlink.atomic_files import write_text
from wavlink.bundled_models import digest_of

from .location import TABLE
from .table_errors import REPAIR

_FILE = "checksums.jsonl"


class Checksums:
    """The checksums of an index on a local disk, in `INDEX/checksums.jsonl`."""

    def __init__(self, folder: Path):
        self.folder, self.table = folder, folder / TABLE

    def read(self) -> dict[str, str]:
        """Return the checksums by name.

        Raises:
            ValueError: the file is damaged, or cannot be read.
        """
        path = self.folder / _FILE
        try:
            *lines, last = path.read_bytes().splitlines(keepends=True)
            if json.loads(last) != _own(b"".join(lines)):
                raise ValueError("its checksum is not the one written")
            rows = [json.loads(line) for line in lines]
            return {str(row["file"]): str(row["sha256"]) for row in rows}
        except FileNotFoundError:
            return {}
        except OSError as error:  # a folder, a link to itself, no right to read
            message = f"{path} cannot be read ({error.strerror}): it must be a file that this user may read"
            raise ValueError(message) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}): {REPAIR}") from error

    def update(self, names: Sequence[str]) -> None:
        """Note the checksums of new files, and forget those of files that are gone."""
        known = self.read()
        kept = {name: known.get(name) or _digest_or_none(self.table / name) for name in names}
        kept = {name: digest for name, digest in kept.items() if digest}
        if kept != known:
            rows = [{"file": name, "sha256": digest} for name, digest in kept.items()]
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
            write_text(self.folder / _FILE, f"{text}{json.dumps(_own(text.encode()))}\n")

    def forget(self) -> None:
        """Forget all checksums; `update` notes them anew."""
        (self.folder / _FILE).unlink(missing_ok=True)

    def damaged_versions(self) -> dict[str, str]:
        """Return by name why a list of the table's rows, which Lance reads first, is not as it was written."""
        names = [name for name in self.read() if name.startswith("_versions/")]
        damaged = self.damaged([name for name in names if (self.table / name).exists()])
        return {name: error.removesuffix(f": {REPAIR}") for name, error in damaged.items()}  # which repairs no list

    def damaged(self, names: Sequence[str]) -> dict[str, str]:
        """Return by name why a file is not as it was written."""
        known, errors = self.read(), {}
        for name in names:
            path = self.table / name
            try:
                digest = digest_of(path)
            except FileNotFoundError:
                errors[name] = f"{path} is missing from the index: {REPAIR}"
            except OSError as error:
                errors[name] = f"{path} cannot be read ({error.strerror}): {REPAIR}"
            else:
                if digest != known.get(name, digest):
                    errors[name] = f"{path} is damaged, its checksum is not the one written: {REPAIR}"
        return errors


def _own(lines: bytes) -> dict[str, str]:
    """Return the last row of a list of checksums, which is of the rows above."""
    return {"file": _FILE, "sha256": hashlib.sha256(lines).hexdigest()}


def _digest_or_none(path: Path) -> str | None:
    try:
        return digest_of(path)
    except FileNotFoundError:  # `damaged` names it
        return None
