"""Reports of the clips that a data set lacks."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

MAX_SECONDS = 30.0  # what Whisper encodes at once
MAX_EXAMPLES = 10  # names of each fault in a report


@dataclass
class Report:
    """Numbers and names of the clips of a split that are missing or broken.

    Args:
        source: name of the data set.
        split: name of the split.
        rows: rows that were read.
        clips: clips in the data set.
        missing: clips without sound.
        broken: clips whose sound can be read neither by its header nor completely.
        too_long: clips over 30 s, or over `max_seconds` of a `ClipReport`.
        examples: up to ten names of each fault.
    """

    source: str = ""
    split: str = ""
    rows: int = 0
    clips: int = 0
    missing: int = 0
    broken: int = 0
    too_long: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, fault: str, name: str, cases: int = 1) -> None:
        """Count one more case (or several) of a fault, a field of this report, and keep its name among the first."""
        setattr(self, fault, getattr(self, fault) + cases)
        self.add_examples(fault, [name])

    def add_examples(self, fault: str, names: Iterable[str]) -> None:
        """Keep names of cases of a fault, as far as there is room."""
        self.examples[fault] = [*self.examples.get(fault, []), *names][:MAX_EXAMPLES]

    def counts(self) -> dict[str, int]:
        """Return all numbers, for JSON."""
        return {name: value for name, value in asdict(self).items() if type(value) is int}

    def faults(self) -> str:
        """Return all counts of faults that are not zero, with their first names, and that of missing clips."""
        counts = {name: count for name, count in self.counts().items() if count} | {"missing": self.missing}
        kept = ("rows", "questions", "queries", "clips")
        named = {name: count for name, count in counts.items() if name not in kept}
        return "; ".join(f"{count} {name.replace('_', ' ')}{self.such_as(name)}" for name, count in named.items())

    def such_as(self, fault: str) -> str:
        """Return the first names of a fault for a message, or ""."""
        names = self.examples.get(fault, [])[:3]
        return f", such as {', '.join(names)}" if names else ""


@dataclass
class ClipReport(Report):
    """A `Report` of clips with captions. `rows` are captions, or rows of several.

    Args:
        empty: rows without an id or without words.
        max_seconds: longer clips are left out unless `kept_too_long`.
        kept_too_long: whether they stay in.
    """

    empty: int = 0
    max_seconds: float = MAX_SECONDS
    kept_too_long: bool = False

    def __str__(self) -> str:
        too_long = f"over {self.max_seconds:g} s" + (" but kept" if self.kept_too_long else "")
        expected = self.clips + self.missing + self.broken + (0 if self.kept_too_long else self.too_long)
        descriptions = {"missing": "missing", "broken": "broken", "too_long": too_long}
        faults = [f"{getattr(self, name)} {words}{self.such_as(name)}" for name, words in descriptions.items()]
        return f"{self.source} {self.split}: {self.clips} of {expected} clips, {'; '.join(faults)} ({self._rows()})"

    def _rows(self) -> str:
        return f"{self.rows} rows" + (f", {self.empty} without id or caption" if self.empty else "")


@dataclass
class LabelReport(ClipReport):
    """A `ClipReport` of clips with a label each; `empty` are rows without one.

    Args:
        labels: distinct labels of the split, the choices of zero-shot classification; also of clips without sound.
    """

    labels: list[str] = field(default_factory=list)

    def _rows(self) -> str:
        empty = f", {self.empty} without label" if self.empty else ""
        return f"{self.rows} rows{empty}, {len(self.labels)} labels"


@dataclass
class AirBenchReport(Report):
    """A `Report` of questions on clips. Questions that are `incomplete`, `unmatched` or `without_sound` are left out.

    Args:
        questions: questions in the data set.
        incomplete: rows that lack a path, a question, a first or second choice, an answer, a task or a data set.
        unmatched: rows whose answer is none of the choices, regardless of case and outer space.
        without_sound: questions on files that are missing or broken.
        loose_answers: kept questions whose answer differs from a choice in case or space.
        duplicate_choices: kept questions with two equal choices.
        no_third_choice, no_fourth_choice: kept questions with fewer choices.
    """

    source: str = "airbench"
    split: str = "Foundation"
    questions: int = 0
    incomplete: int = 0
    unmatched: int = 0
    without_sound: int = 0
    loose_answers: int = 0
    duplicate_choices: int = 0
    no_third_choice: int = 0
    no_fourth_choice: int = 0

    def __str__(self) -> str:
        kept = f"{self.questions} of {self.rows} questions on {self.clips} clips"
        return f"{self.source} {self.split}: {kept}; {self.faults()}"


@dataclass
class MomentReport(Report):
    """A `Report` of sentences about windows of recordings. `rows` are the sentences that were read.

    Args:
        queries: sentences in the data set.
        malformed: rows without an id, a sentence or windows of two numbers.
        repeated: rows whose id an earlier one has.
        bad_windows: windows that are empty or end over a second after their recording; the others of a row stay.
        without_windows: rows with no window left.
        without_sound: sentences on recordings that are missing or broken.
        other_length: recordings whose sound is over a second shorter or longer than annotated; they stay.
    """

    queries: int = 0
    malformed: int = 0
    repeated: int = 0
    bad_windows: int = 0
    without_windows: int = 0
    without_sound: int = 0
    other_length: int = 0

    def __str__(self) -> str:
        kept = f"{self.queries} of {self.rows} queries on {self.clips} recordings"
        return f"{self.source} {self.split}: {kept}; {self.faults()}"
