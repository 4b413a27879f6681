"""Shards of numbered clips, and a collator that tells which clip is which."""

import io
import tarfile

import numpy as np
import soundfile
import torch

from .conftest import RATE


def sound(number: int, samples: int | None = None) -> bytes:
    """A wav whose samples tell who it is: `number`, then a ramp, over 2^15; the length is drawn by the number."""
    samples = samples or 100 + number * 37 % 50
    ramp = np.arange(samples) % 3000
    ramp[0] = number
    file = io.BytesIO()
    soundfile.write(file, ramp.astype(np.int16), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def write_tar(path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(files))


def collate(rows) -> dict[str, torch.Tensor]:
    """Who is in a batch, by caption and by sound, and how long."""
    arrays = [row["audio"]["array"] for row in rows]
    return {
        "id": torch.tensor([int(row["captions"][0]) for row in rows]),
        "first": torch.tensor([round(float(array[0]) * 2**15) for array in arrays]),
        "length": torch.tensor([len(array) for array in arrays]),
    }
