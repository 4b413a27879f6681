"""Names of models, and which models are accepted."""

import os
import re

ACCEPTED = (
    "give a WavLink or a transformers CLAP (such as laion/clap-htsat-unfused), PE-Audio (facebook/pe-av-base) or "
    "EmbeddingGemma 2 (google/embeddinggemma-2), or a SentenceTransformer that encodes audio and text, each a folder "
    "or a Hub id, or random:NAME or random:NAME@SEED for one of these with new weights"
)
_CONTROL = re.compile(r"random:(?P<source>.+?)(?:@(?P<seed>\d+))?")


class OtherArchitecture(ValueError):
    """A model of an architecture that is not known here."""


def parse_name(name: str) -> tuple[str, int | None]:
    """Split a name into a folder or Hub id, and the seed of a random baseline, if it is one.

    Raises:
        ValueError: `random:` without a model.
    """
    if not name.startswith("random:"):
        return name, None
    match = _CONTROL.fullmatch(name)
    if not match:
        raise ValueError(f"{name!r} does not say which model: {ACCEPTED}")
    return match["source"], int(match["seed"] or 0)


def is_on_hub(name: str) -> bool:
    """Return whether a model's name, as `bundled_models.resolve` returns it, is a Hub id."""
    return bool(name) and not os.path.isdir(name) and parse_name(name)[1] is None
