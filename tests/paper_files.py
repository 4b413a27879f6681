"""The paper's caption tables, written small."""

import io
from pathlib import Path

import numpy as np
import soundfile

from .conftest import RATE, tone


def wav(seconds: float, hertz: float = 440, rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(hertz, seconds)[: round(seconds * rate)], rate, format=kind)
    return file.getvalue()


def long_wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(30010), 1000, format="WAV", subtype="PCM_U8")  # 30.01 s in 30 kB
    return file.getvalue()


SOUNDS = {
    "dog": wav(0.1),
    "bell": wav(0.2, 880, kind="FLAC"),
    "broken": b"RIFF, or not",
    "long": long_wav(),
    None: None,
}


def write(folder: Path, files: dict[str, bytes | str]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)
