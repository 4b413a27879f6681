"""Tags inside sound files: title, artist and the like, as libsndfile reads them, or PyAV where that is installed."""

import io
import os

import soundfile

from .audio_inputs_wavlink import local_source
from .video import video_tags

TAGS = ("title", "artist", "album", "genre", "date", "comment")
_LONGEST = 10_000  # characters


def read_tags(path_or_bytes: str | os.PathLike | bytes) -> dict[str, str]:
    """Return the tags of a sound file, by those of `TAGS` that it has; none of a file that cannot be read.

    Args:
        path_or_bytes: a file's path, or its content.
    """
    try:
        source = local_source(path_or_bytes)
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            try:
                with soundfile.SoundFile(file) as sound:
                    found = sound.copy_metadata()
            except (soundfile.SoundFileError, TypeError) as error:
                file.seek(0)
                found = video_tags(file, "the file", error)
    except (OSError, ValueError, RuntimeError):
        return {}
    texts = {str(name).lower(): _text(value) for name, value in found.items()}
    return {name: texts[name] for name in TAGS if texts.get(name)}


def _text(value: object) -> str:
    """Return a tag without what no text holds: NULs that end it, and halves of surrogate pairs."""
    return str(value).partition("\0")[0].encode("utf-8", "replace").decode().strip()[:_LONGEST]
