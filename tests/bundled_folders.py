"""Folders of bundled models, as a wheel holds them."""

import json
import shutil
from pathlib import Path

from wavlink.bundled_models import SUMS, sums_of


def write_bundle(models: Path, folder: Path, name: str = "wavlink-tiny") -> Path:
    """Copy a model into a folder of bundled models, with its hashes."""
    shutil.copytree(folder, models / name)
    sums = models / SUMS
    known = json.loads(sums.read_text()) if sums.exists() else {}
    sums.write_text(json.dumps(known | {name: sums_of(models / name)}))
    return models / name
