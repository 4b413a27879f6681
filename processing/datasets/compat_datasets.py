"""What this package uses of `datasets` that is private there, with a public way beside it."""

import datasets


def files_of(stream: datasets.IterableDataset) -> list[str]:
    """The files of a stream, as its builder holds them (datasets 4.0 to 5.2); none where that is unknown."""
    if not hasattr(stream, "_ex_iterable"):
        return []
    arguments = getattr(stream._ex_iterable, "kwargs", None) or {}
    return [str(file) for file in arguments.get("files") or arguments.get("paths") or []]
