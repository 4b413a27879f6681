"""Private parts of `datasets` that this package uses, with a public fallback."""

import datasets


def files_of(stream: datasets.IterableDataset) -> list[str]:
    """Return the files of a stream from its builder (seen in datasets 4.0 to 5.2), none where they are unknown."""
    if not hasattr(stream, "_ex_iterable"):
        return []
    arguments = getattr(stream._ex_iterable, "kwargs", None) or {}
    return [str(file) for file in arguments.get("files") or arguments.get("paths") or []]
