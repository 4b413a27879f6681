"""What a card says of a text tower that was taught by translations."""

import json
from pathlib import Path

from modeling_wavlink.compat_wavlink import optional_file
from wavlink.sanitize import escape
from wavlink.training.text_distillation import RECORD as RECORD


def distillation_of(source: str) -> dict | None:
    """Return the record of a model that was taught by translations, a folder or Hub id; None of any other."""
    path = optional_file(source, RECORD)
    record = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return record if record.get("languages") else None


def language_limit(record: dict) -> str:
    """Return which languages the model understands, and from whom it has learned them."""
    counts = ", ".join(f"{escape(name)} ({count:,})" for name, count in sorted(record["languages"].items()))
    return (
        f"The text tower was taught without sound, to give texts in {escape(record.get('language', ''))} and their "
        f"translations the vectors of {escape(record.get('teacher', ''))}. It was taught no other languages; "
        f"translations learned from: {counts}. What each language reaches on held-out translations is in {RECORD}."
    )
