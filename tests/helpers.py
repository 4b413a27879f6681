"""Small helpers that several test modules use."""

import io
import shutil
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from .conftest import RATE


def wav(clip: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, clip, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def by_sorting(similarities: np.ndarray, correspondence: np.ndarray, k: int) -> float:
    """Recall@k once more: the k best candidates of each query, and whether one of them is relevant."""
    hits = 0
    for row, relevant in zip(similarities, correspondence, strict=True):
        best = sorted(range(len(row)), key=lambda candidate: -row[candidate])[:k]
        hits += bool({*best} & {*np.flatnonzero(relevant)})
    return hits / len(similarities)


def is_picture(path) -> bool:
    """A PNG at least 300 pixels wide and high, and not of one colour."""
    with Image.open(path) as picture:
        return (
            picture.format == "PNG" and min(picture.size) >= 300 and len(picture.convert("RGB").getcolors(10**6)) > 9
        )


ROOT = Path(__file__).parents[1]


SHIPPED = sorted([*(ROOT / "modeling_wavlink").glob("*_wavlink.py"), *(ROOT / "processing").glob("*_wavlink.py")])


# A process whose lock of tqdm is held by a child that was killed: no other bar of tqdm can be made in it.
LOCK_HELD_BY_THE_DEAD = """
import os, signal
from tqdm import tqdm
tqdm(total=1, file=open(os.devnull, "w")).close()
if not (child := os.fork()):
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
assert not tqdm.get_lock().locks[0].acquire(False)
"""


def put_into_hub_cache(folder: Path, home: Path) -> None:
    """Put a model into the Hub's cache of an HF_HOME, where it is `user/model` at the commit of 40 zeros."""
    kept, commit = home / "hub/models--user--model", "0" * 40
    shutil.copytree(folder, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text(commit)
