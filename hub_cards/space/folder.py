"""Write the folder of a Space: the app, its code, its model unless that is on the Hub, an index, and sounds to try.

A Space installs its requirements from a package index, and WavLink is on none. So the code is part of the Space, and
stays the version that was tried here.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import SpaceCard

from wavlink.bundled_models import MODELS
from wavlink.samples import REAL_SAMPLES, write_real_samples
from wavlink.sanitize import clean, escape
from wavlink.search.listing import file_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGES = ("modeling_wavlink", "processing", "hub_cards", "wavlink")
_LEFT_OUT = {"__pycache__", MODELS.name, REAL_SAMPLES}
LARGEST = 1e9  # bytes that the Hub lets a Space's repository hold

_APP = '''"""Start the demo, which is in hub_cards/space/app.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hub_cards.space.app import main

HERE = Path(__file__).resolve().parent
OPTIONS = [
{options}
]

if __name__ == "__main__":
    sys.exit(main([*OPTIONS, *sys.argv[1:]]))
'''


def write_space(
    folder: Path,
    repo_id: str,
    model: str,
    revision: str = "",
    index: str = "",
    storage_options: dict[str, str] | None = None,
) -> None:
    """Write a Space without `folder/model`, which must exist already if the model is not on the Hub.

    Args:
        repo_id: of the Space.
        model: named on its card: a Hub id, or the name of a folder.
        revision: the commit of a Hub id; "": the model is `folder/model`.
        index: a folder that this model has made, or its address in object storage; its sounds are published with it.
        storage_options: of an index in object storage, see Lance's `storage_options`.

    Raises:
        ValueError: an index that is none, is damaged, or without its sounds; more than a Space holds.
    """
    options = [f'"--model={model}"', f'"--revision={revision}"'] if revision else ['f"--model={HERE}/model"']
    if index:
        _ship_index(index, folder, storage_options)
        options += ['f"--index={HERE}/index"', 'f"--sounds={HERE}/sounds"']
    for package in PACKAGES:
        _ship_package(package, folder)
    write_real_samples(folder / "wavlink" / REAL_SAMPLES)
    shutil.copyfile(HERE / "requirements.txt", folder / "requirements.txt")
    shutil.copyfile(licence_file(), folder / "LICENSE")
    (folder / "app.py").write_text(
        _APP.replace("{options}", "\n".join(f"    {option}," for option in options)), encoding="utf-8"
    )
    _card(repo_id, model, revision).save(folder / "README.md")
    refuse_too_large(folder)


def check_space(folder: Path) -> None:
    """Start the Space's app in a clean process without a token, which loads all, computes a result and serves nothing.

    Raises:
        ValueError: it does not start.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    environment = kept | {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    command = [sys.executable, "app.py", "--check"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it was killed: is there memory for the model?"]
        raise ValueError(f"the Space does not start: {lines[-1]}")


def licence_file() -> Path:
    """Find LICENSE: beside the setup.cfg of a checkout, or among the files of an installed package.

    Raises:
        ValueError: an installation without it.
    """
    if (ROOT / "setup.cfg").is_file():
        return ROOT / "LICENSE"
    try:
        files = importlib.metadata.files("wavlink") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "LICENSE" and file.locate().is_file():
            return Path(file.locate())
    raise ValueError("this installation of wavlink lacks its LICENSE, which a Space must have: install it again")


def _ship_package(package: str, folder: Path) -> None:
    """Copy a package's code and texts, without bundled models and clips."""
    for path in sorted((ROOT / package).rglob("*")):
        if path.suffix in (".py", ".md", ".css", ".txt") and not _LEFT_OUT & {*path.relative_to(ROOT).parts}:
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _ship_index(source: str, folder: Path, storage_options: dict[str, str] | None) -> None:
    """Copy an index without local paths, and its sounds to `sounds/`, by their paths in the index."""
    from wavlink.search.copies import publish  # needs the extra `search`

    root, paths = publish(source, folder / "index", storage_options)
    (folder / "sounds").mkdir()
    _ship_sounds(root, paths, folder / "sounds")


def _ship_sounds(root: str, paths: Sequence[str], folder: Path) -> None:
    missing = []
    for path in paths:
        source, target = file_of(root, path), file_of(str(folder.resolve()), path)
        if not source or not target or not os.path.isfile(source):
            missing.append(path)
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(source, target)
    if missing:
        raise ValueError(
            f"{len(missing)} of the index's sounds are not there, such as {clean(missing[0])}: a Space plays them, so "
            "index a folder that has them"
        )


def _card(repo_id: str, model: str, revision: str) -> SpaceCard:
    card = SpaceCard.load(HERE / "README.md")
    card.data.title = repo_id.split("/")[1]
    if revision:
        card.data.models = [model]
    on_hub = f"[{escape(model)}](https://huggingface.co/{model})"
    card.text = card.text.replace("{model}", on_hub if revision else "[the model in this repository](model/README.md)")
    return card


def refuse_too_large(
    folder: Path, advice: str = "push the model by itself and give its Hub id, or index fewer sounds"
) -> None:
    """Raise a ValueError for a folder that holds more than a Space may."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST:
        raise ValueError(f"the Space would hold {size / 1e9:.1f} GB, and the Hub allows {LARGEST / 1e9:g}: {advice}")
