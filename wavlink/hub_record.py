"""The record of earlier pushes in a repository of the Hub, and the edits that people have made there since.

Each push writes a record, `.wavlink/push.json`: the names of its files, and the sha256 of those that people edit. A
later push deletes only files of the record, and replaces a file that people edit only if its sha256 is that of the
record. On the card, text below a marked line is kept.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, SpaceInfo

RECORD = ".wavlink/push.json"
CARD = "README.md"
LINE = "<!-- What stands below this line is yours: pushes of WavLink keep it. -->"
EDITED = (CARD, "app.py", "requirements.txt", "index.html", "style.css")  # by people, on the Hub
_SIGNED = re.compile(r"<!-- The text above was pushed with the sha256 ([0-9a-f]{64}) -->")
_OURS = ("wavlink", "# An index of sounds", "modeling_wavlink")  # in the cards of versions that left no record
_FRONT_MATTER = re.compile(r"\A\s*---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_MADE_BY_THE_HUB = "https://huggingface.co/docs/hub/spaces-config-reference"


@dataclass(frozen=True)
class Earlier:
    """The state of a repository before a push.

    Attributes:
        commit: the newest one.
        names: of all files.
        made: names of the files of earlier pushes; None without a record.
        sha256: of files as the last push made them.
        texts: the current text of the files of `EDITED`.
    """

    commit: str
    names: frozenset[str]
    made: frozenset[str] | None
    sha256: dict[str, str]
    texts: dict[str, str]


def read_earlier(api: HfApi, repo_id: str, kind: str, revision: str) -> Earlier:
    """Read the state of a repository, on `revision` or, if that branch does not exist yet, on main."""
    try:
        head = api.repo_info(repo_id, revision=revision, repo_type=kind)
    except RevisionNotFoundError:
        head = api.repo_info(repo_id, repo_type=kind)
    names = _names(head)
    texts = {name: _read(api, repo_id, kind, head.sha, name) for name in (RECORD, *EDITED) if name in names}
    made, sha256 = _parse(texts.pop(RECORD, ""))
    if CARD not in sha256 and (signature := _SIGNED.search(texts.get(CARD, ""))):
        sha256[CARD] = signature[1]
    return Earlier(head.sha, names, made, sha256, texts)


def _names(head: ModelInfo | DatasetInfo | SpaceInfo) -> frozenset[str]:
    return frozenset(file.rfilename for file in head.siblings or ())


def _read(api: HfApi, repo_id: str, kind: str, commit: str, name: str) -> str:
    try:
        path = api.hf_hub_download(repo_id, name, repo_type=kind, revision=commit)
    except EntryNotFoundError:
        return ""
    return Path(path).read_bytes().decode("utf-8", "surrogateescape")


def _parse(text: str) -> tuple[frozenset[str] | None, dict[str, str]]:
    """Return the names and sha256 of a record; None and {} if it cannot be parsed."""
    try:
        record = json.loads(text)
        files, sha256 = record["files"], record["sha256"]
        if all(isinstance(name, str) for name in (*files, *sha256, *sha256.values())):
            return frozenset(files), dict(sha256)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None, {}


def refuse_edited(
    earlier: Earlier, repo_id: str, written: Iterable[str] = EDITED, option: str = "give --overwrite_card"
) -> None:
    """Refuse to replace files that people have edited on the Hub.

    Args:
        written: names of the files that a push replaces.
        option: what the message says to do.

    Raises:
        ValueError: names the file and what to do.
    """
    for name in sorted({*written} & {*earlier.texts}):
        ours, _ = _divided(earlier.texts[name]) if name == CARD else (earlier.texts[name], "")
        if name in earlier.sha256:
            edited = _sha256(_SIGNED.sub("", ours)) != earlier.sha256[name]
        else:
            edited = _is_edited_without_record(name, ours)
        if edited:
            below = f"; in {CARD} words below the line {LINE!r} are kept" if name == CARD else ""
            raise ValueError(
                f"{name} of {repo_id} was edited on the Hub, or comes from elsewhere: save your words, and {option} "
                f"to have it replaced{below}"
            )


def _is_edited_without_record(name: str, text: str) -> bool:
    """Return whether a file without a record may hold edits. A card without metadata is kept below the line."""
    if name == "app.py":
        return "hub_cards.space" not in text
    if name != CARD or _MADE_BY_THE_HUB in text:
        return False
    return bool(_FRONT_MATTER.match(text) or any(word in text.lower() for word in _OURS))


def card_with_kept(earlier: Earlier, card: str) -> str:
    """Return a new card with the text below the line of the former one."""
    before = earlier.texts.get(CARD, "")
    _, kept = _divided(before)
    unknown = LINE not in before and CARD not in earlier.sha256 and not _is_edited_without_record(CARD, before)
    if unknown and before.strip() and _MADE_BY_THE_HUB not in before:
        kept = f"\n{before.strip()}\n"
    return f"{_divided(card)[0].rstrip()}\n\n{LINE}\n{kept}"


def signed(card: str) -> str:
    """Return a card that holds its own sha256, for a repository without a record."""
    return f"{card.rstrip()}\n\n<!-- The text above was pushed with the sha256 {_sha256(card)} -->\n"


def record_of(files: Iterable[str], texts: dict[str, str]) -> bytes:
    """Return the record of a push.

    Args:
        files: the names of all its files.
        texts: of its files that people may edit, by name.
    """
    sha256 = {name: _sha256(_divided(text)[0] if name == CARD else text) for name, text in texts.items()}
    return json.dumps({"files": sorted({*files, RECORD}), "sha256": sha256}, indent=1).encode()


def _divided(card: str) -> tuple[str, str]:
    """Split a card into the text above the line, which pushes write, and the text below it."""
    ours, _, kept = card.partition(LINE)
    return ours, kept.removeprefix("\r").removeprefix("\n")


def _sha256(text: str) -> str:
    """Return the sha256 of a text's lines, independent of line endings."""
    lines = text.strip().splitlines()
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
