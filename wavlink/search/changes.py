"""Compare sounds with what earlier runs have embedded, and report on a run; for an index and for Ray's rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from wavlink.sanitize import clean, counted, path_text

from .listing import Listing, Sound

_NAMED = 10  # rows of a metadata file without a sound, in a report as text


@dataclass
class Described:
    """What a metadata file, or the tags in sound files, say of the sounds of a run.

    Attributes:
        source: the file, or "tags".
        columns: of the index, that it sets.
        sounds: how many it describes.
        rows: that it has; of tags the sounds that they were read of.
        unmatched: the names in its rows that are of none of the run's sounds.
    """

    source: str
    columns: list[str]
    sounds: int
    rows: int
    unmatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        names = clean(", ".join(self.columns), 1000)
        if self.source == "tags":
            return f"tags ({names}) of {self.sounds} of the {self.rows} sounds that were read for them"
        line = f"{clean(self.source, 1000)}: {names} of {counted(self.sounds, 'sound')}"
        if self.unmatched:
            shown = path_text(", ".join(self.unmatched[:_NAMED]))
            more = f" and {len(self.unmatched) - _NAMED} more" * (len(self.unmatched) > _NAMED)
            line += f"; {len(self.unmatched)} of its {self.rows} rows name no sound of this run: {shown}{more}"
        return line


@dataclass
class Report:
    """Counts of files, and why some have no vectors.

    Attributes:
        added: files that have vectors now and that no earlier run had taken.
        changed: files of earlier runs that were embedded anew, or lost their vectors, because they changed or were
            retried; none that was skipped before and is skipped again.
        removed: files of earlier runs that have gone.
        unchanged: files of earlier runs whose vectors stay.
        sounds: files with vectors, in the whole output.
        windows: their vectors.
        skipped: why a file or folder has no vectors, by path; of all runs.
        stopped: the run was stopped before its end.
        described: what metadata files and tags say of the sounds.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    sounds: int = 0
    windows: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    described: list[Described] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.added} added, {self.changed} changed, {self.removed} removed, {self.unchanged} as they were"
        held = f"{counted(self.sounds, 'sound')} in {counted(self.windows, 'window')}"
        line = f"{counts}; {held}, {len(self.skipped)} skipped"
        return "\n".join([line, *map(str, self.described)])


class KnownFile(NamedTuple):
    """What earlier runs have written of a file."""

    size: int
    version: int | None  # see `Sound`; None where it was not recorded
    rows: int
    windows: int  # rows that the file has in all, -1 until that is known
    error: str

    def is_of(self, sound: Sound) -> bool:
        """True if the file has not changed since."""
        same = (self.size, self.version) == (sound.size, sound.version) and sound.version >= 0
        return self.version is None or same


class Task(NamedTuple):
    """A file to embed."""

    sound: Sound
    first: int = 0  # the first window that is not written yet


@dataclass
class Changes:
    """What a listing has that earlier runs have not written, and the reverse.

    Attributes:
        tasks: files to embed.
        new: paths of those that no earlier run has taken.
        changed, removed: paths of earlier runs whose rows must go.
        failed: those of the changed ones that earlier runs have skipped.
        unchanged: files of earlier runs whose vectors stay.
    """

    tasks: list[Task]
    new: set[str]
    changed: list[str]
    removed: list[str]
    failed: set[str]
    unchanged: int

    def report(self, known: Mapping[str, KnownFile], unreadable: Mapping[str, str], windows: int) -> Report:
        """Report on a run.

        Args:
            known: what is written at its end, by path.
            unreadable: why a folder could not be listed, by path.
            windows: vectors in the whole output.
        """
        skipped = {path: file.error for path, file in known.items() if file.error}
        return Report(
            added=sum(path in known and path not in skipped for path in self.new),
            changed=sum(path not in self.failed or path not in skipped for path in self.changed),
            removed=len(self.removed),
            unchanged=self.unchanged,
            sounds=len(known) - len(skipped),
            windows=windows,
            skipped=skipped | dict(unreadable),
        )


def compare(listing: Listing, known: Mapping[str, KnownFile], retry: bool) -> Changes:
    """Compare the sounds that exist with what earlier runs have written.

    Args:
        known: by path.
        retry: embed again what earlier runs have skipped and what has not changed since.
    """
    tasks, changed, unchanged = [], [], 0
    for sound in listing.sounds:
        file = known.get(sound.path)
        if file is None or not file.is_of(sound) or (file.error and retry):
            tasks.append(Task(sound))
            changed += [sound.path] if file else []
        elif file.error or file.rows == file.windows:
            unchanged += not file.error
        else:
            tasks.append(Task(sound, file.rows))
    listed = {sound.path for sound in listing.sounds}
    removed = [path for path in known if path not in listed and listing.covers(path)]
    new = {task.sound.path for task in tasks} - set(changed)
    failed = {path for path in changed if known[path].error}
    return Changes(tasks, new, changed, removed, failed, unchanged)
