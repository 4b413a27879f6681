"""Sounds in requests: base64, data URLs and uploads, decoded within a length."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np

from processing.audio import limited, opened, resampled

from .errors import RequestError

_PARAMETER = r';\s*[\w.+-]+=(?:"[^"]*"\s*|[^;"]*)'  # recorders of browsers write `; codecs=vp8,opus`
_DATA_URL = re.compile(rf"data:[\w.+/-]*\s*(?:{_PARAMETER})*;\s*base64\s*,", re.IGNORECASE)
_PLAIN_URL = re.compile(r"data:(audio|video|application)/[^,]*,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MOST_HEAD = 300  # characters of a data URL before its content


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL, such as `data:audio/wav;base64,...`; a sound may have any type."""
    return bool(_DATA_URL.match(text[:_MOST_HEAD]) or _PLAIN_URL.match(text[:_MOST_HEAD]))


def from_data_url(url: str, name: str) -> bytes:
    """Return the content of a data URL; other addresses are refused, since nothing is fetched.

    Args:
        name: of the field, in errors.
    """
    head = url[:_MOST_HEAD]
    if found := _DATA_URL.match(head):
        content = url[found.end() :]
        return from_base64(unquote(content) if "%" in content else content, name)
    if _PLAIN_URL.match(head):
        raise RequestError(400, f"{name} is a data URL that is not in base64: data:audio/wav;base64,...", param=name)
    if _URL.match(head):
        raise RequestError(400, f"{name} is an address, and nothing is fetched: send the sound itself", param=name)
    raise RequestError(400, f"{name} must be a data URL, such as data:audio/wav;base64,...", param=name)


def from_base64(text: str, name: str) -> bytes:
    """Return what a text in base64 holds, with or without line breaks; a data URL's content as well.

    Args:
        name: of the field, in errors.
    """
    if text[:5].lower() == "data:":
        return from_data_url(text, name)
    try:
        # Spaces within a line stay, and are refused: a form makes them of each +.
        return base64.b64decode("".join(map(str.strip, text.splitlines())), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"{name} is not valid base64: {error}", param=name) from error


def decode(
    contents: Sequence[tuple[str, bytes]], sampling_rate: int, max_seconds: float
) -> tuple[list[dict[str, Any]], float]:
    """Decode the sounds of a request, and stop where they last too long together.

    A file of a few kB can hold hours of silence, so no more than `max_seconds` are decoded whatever its header states.

    Args:
        contents: names of fields, for errors, and the files' contents.
        sampling_rate: of the result, in Hz.

    Returns:
        The sounds as `{"array", "sampling_rate", "path"}`, which all functions take, and their seconds.

    Raises:
        RequestError: a sound is empty, cannot be read, or lasts too long.
    """
    sounds, left = [], max_seconds
    for name, content in contents:
        if not content:
            raise RequestError(400, f"{name} is empty: send a sound file", param=name)
        clip = _decode(content, name, sampling_rate, left, max_seconds)
        left -= len(clip) / sampling_rate
        sounds.append({"array": clip, "sampling_rate": sampling_rate, "path": name})
    return sounds, max_seconds - left


def _decode(content: bytes, name: str, sampling_rate: int, left: float, max_seconds: float) -> np.ndarray:
    together = "" if left == max_seconds else "the sounds before it and "
    problem = f"lasts too long: {together}it may have {max_seconds:g} s; cut it into parts"
    try:
        with opened(content, name) as sound:
            blocks = limited(sound, (left + 1e-3) * sound.samplerate, problem)
            return np.concatenate(list(resampled(blocks, sound.samplerate, sampling_rate, name)))
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(413 if problem in str(error) else 400, str(error), param=name) from error
