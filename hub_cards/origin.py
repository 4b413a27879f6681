"""What a pushed model has of a bundled one: all files of an unchanged copy, else the licences of what it started from.

A bundled model is a folder that has its card, scores and sources already; these must not get lost where it, a copy of
it, or what was trained from it is pushed.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard

from modeling_wavlink.compat_wavlink import optional_file
from wavlink import bundled_models

from . import training
from .distilled import distillation_of
from .exports import exports_section, with_exports
from .metadata import write_eval_results
from .sources import SOURCES, Counts, read_counts

_WEIGHTS = "model.safetensors"
_CARD = "README.md"


def expression(repo_id: str) -> tuple[str, str]:
    """Return the model as the snippets of a card name it, and the import that they need.

    Args:
        repo_id: a Hub id, or the bare name of a bundled model.
    """
    if "/" in repo_id:
        return f'"{repo_id}"', ""
    return f'wavlink.bundled("{repo_id}")', "import wavlink\n"


def renamed(card: str, name: str, repo_id: str) -> str:
    """Return a bundled model's card as that of a repository."""
    (before, imports), (after, _) = expression(name), expression(repo_id)
    card = card.replace(before, after).replace(imports, "")
    card = card.replace(f"\nmodel-index:\n- name: {name}\n", f"\nmodel-index:\n- name: {repo_id.split('/')[-1]}\n", 1)
    return card.replace(f"\n# {name}\n", f"\n# {repo_id}\n", 1)


@dataclass(frozen=True)
class Origin:
    """The bundled model that a model is, or started from.

    Attributes:
        name: of the bundled model.
        folder: of the bundled model.
        same_weights: whether the model has its weights, and did not only start from them.
        unchanged: whether all files but the card are its files.
    """

    name: str
    folder: Path
    same_weights: bool = False
    unchanged: bool = False

    @property
    def title(self) -> str:
        """The name on a card."""
        return f"{self.name}, a model that comes with the Python package wavlink"

    def sentence(self) -> str:
        """Return what a card says of a training that is not on record."""
        if self.same_weights:
            return f"These are the weights of {self.title}."
        return f"The weights were trained from {self.title}; the recipe is not on record here."

    def licence(self) -> str:
        """Return the licence of its weights; "" if its card states none."""
        return str(self._metadata().get("license") or "")

    def base_models(self) -> list[str]:
        """Return the Hub ids that it started from."""
        known = self._metadata().get("base_model") or []
        return [known] if isinstance(known, str) else list(known)

    def _metadata(self) -> dict:
        card = self.folder / _CARD
        return ModelCard.load(card).data.to_dict() if card.is_file() else {}

    def counts(self) -> Counts:
        """Return the clips that it was trained on, by package and licence."""
        path = self.folder / SOURCES
        return read_counts(path) if path.is_file() else Counts()


def origin_of(source: str, run: Path | None) -> Origin | None:
    """Return the bundled model that a model is, or started from; None if there is none.

    Args:
        source: a folder or Hub id of a WavLink or an adapter.
        run: the folder of the training run, if it exists.
    """
    if same := _with_weights_of(source):
        return Origin(same, bundled_models.MODELS / same, True, _is_unchanged(source, same))
    starts = (_with_weights_of(start) for start in _starts(source, run) if start)
    name = next(filter(None, starts), "")
    return Origin(name, bundled_models.MODELS / name) if name else None


def _starts(source: str, run: Path | None) -> Iterator[str]:
    """Yield the folders, and names of bundled models, that a model was trained from."""
    if adapter := optional_file(source, "adapter_config.json"):
        yield json.loads(Path(adapter).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    if distilled := distillation_of(source):
        yield distilled.get("teacher") or ""
    for stage in training.stages(run)[:1]:
        yield stage.recipe.get("init") or ""


def _with_weights_of(source: str) -> str:
    """Return the name of the bundled model with these weights, "" without one. The Hub is not asked for others."""
    if bundled_models.stands_for_bundled(source):
        return source
    path = Path(source, _WEIGHTS) if Path(source).is_dir() else _downloaded(source, _WEIGHTS)
    if path is None or not path.is_file():
        return ""
    known = {sums[_WEIGHTS]: name for name, sums in bundled_models.known_sums().items() if _WEIGHTS in sums}
    return known.get(bundled_models.digest_of(path), "") if known else ""


def _downloaded(source: str, name: str) -> Path | None:
    """Return the path of a file of a Hub id in the cache, which holds it once the model has been loaded."""
    try:
        path = optional_file(source, name, local_files_only=True)
    except OSError:
        return None
    return Path(path) if path else None


def _is_unchanged(source: str, name: str) -> bool:
    """Whether each file of a bundled model but its card, in which a push writes another name, is in a source."""
    for file, digest in bundled_models.known_sums()[name].items():
        if file != _CARD:
            path = optional_file(source, file)
            if path is None or bundled_models.digest_of(path) != digest:
                return False
    return True


def write_copy(origin: Origin, folder: Path, repo_id: str, exports: Sequence[dict] = ()) -> None:
    """Write the files of a bundled model, with the card of a repository.

    Args:
        exports: as `write_exports` returns them.
    """
    bundled_models.bundled(origin.name)  # by its hashes
    for file in bundled_models.known_sums()[origin.name]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin.folder / file, folder / file)
    card = folder / _CARD
    text = renamed(card.read_text(encoding="utf-8"), origin.name, repo_id)
    card.write_text(with_exports(text, exports_section(exports, expression(repo_id)[0])), encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("scores/*.json"))
    scores = [json.loads((folder / file).read_text(encoding="utf-8")) for file in files]
    write_eval_results(folder, scores, files, repo_id)
