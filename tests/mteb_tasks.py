"""Tasks of mteb whose data sets, in the schema that they have on the Hub, are parquet folders here."""

import importlib.util
import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, config

from tests.conftest import RATE


@pytest.fixture
def surroundings(monkeypatch, tmp_path):
    """A data set cache of the test's own, and torchaudio.

    mteb imports torchaudio before it looks whether there is anything to resample. Here there is not, so where it is
    not installed an empty module does.
    """
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    if importlib.util.find_spec("torchaudio") is None:
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))


def sound(clip: np.ndarray) -> dict:
    """What `datasets.Audio` decodes to, so that no decoder is needed."""
    return {"array": clip, "sampling_rate": RATE}


def file(clip: np.ndarray, rate: int = RATE) -> dict:
    """A sound as a parquet file of the Hub holds it; a row that is read as it is would need torchcodec."""
    content = io.BytesIO()
    soundfile.write(content, clip, rate, format="WAV", subtype="FLOAT")
    return {"bytes": content.getvalue(), "path": "clip.wav"}


def pointed(name: str, folder: Path, *, hf_subsets: list[str] | None = None, **configs: dict[str, list[dict]]):
    """mteb's task, its data from `folder` rather than the Hub: of each configuration the rows of its splits."""
    import mteb

    lines = []
    for config_name, splits in configs.items():
        (folder / config_name).mkdir(parents=True)
        lines.append(f"- config_name: {config_name}\n  data_files:")
        for split, rows in splits.items():
            dataset = Dataset.from_list(rows)
            for column, value in rows[0].items():
                if isinstance(value, dict) and "bytes" in value:
                    dataset = dataset.cast_column(column, Audio())
            dataset.to_parquet(folder / config_name / f"{split}.parquet")
            lines.append(f"  - split: {split}\n    path: {config_name}/{split}.parquet")
    (folder / "README.md").write_text("\n".join(["---", "configs:", *lines, "---"]) + "\n")
    task = mteb.get_task(name, hf_subsets=hf_subsets)
    task.metadata = task.metadata.model_copy(update={"dataset": {"path": str(folder), "revision": "main"}})
    return task
