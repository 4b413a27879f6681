"""Wav files of 16 bits that are a header and its sound, read without libsndfile, which takes longer to open them.

Most wav files are of this form. All others, with further chunks, sizes that are wrong or other encodings, are left to
`processing.containers` and libsndfile, which gives the same samples for these.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from .audio_inputs_wavlink import RATES, from_int16
from .downmix_wavlink import block_length

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_MOST_BYTES = 1 << 30  # far from the sizes that programs write which do not know the size yet


def plain_wav(file: BinaryIO) -> tuple[int, int] | None:
    """Return the rate in Hz and the number of channels (1 or 2), or None if a file is not of this form.

    Args:
        file: open for reading.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or size > _MOST_BYTES:
        return None
    channels, rate = _HEADER.unpack(header)[6:8]
    if channels not in (1, 2) or not RATES[0] <= rate <= RATES[1]:
        return None
    frame, sound = 2 * channels, size - len(header)
    riff, form = (b"RIFF", size - 8, b"WAVE"), (b"fmt ", 16, 1, channels, rate, rate * frame, frame, 16)
    expected = _HEADER.pack(*riff, *form, b"data", sound)
    return (rate, channels) if header == expected and sound and not sound % frame else None


def plain_blocks(file: io.BytesIO | io.BufferedReader, rate: int, channels: int) -> Iterator[np.ndarray]:
    """Yield the sound of a file that `plain_wav` knows, float32 `[samples, channels]`, a second at a time."""
    block = np.empty((block_length(rate, channels), channels), "<i2")
    file.seek(_HEADER.size)
    while count := file.readinto(block) // (2 * channels):
        yield from_int16(block[:count])
