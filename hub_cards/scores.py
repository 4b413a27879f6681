"""Scores of exactly the weights that are pushed, from the evaluation's JSON files."""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi

from modeling_wavlink import WavLinkModel
from wavlink.bundled_models import digest_of
from wavlink.defaults import FRAME_HEAD
from wavlink.loading import revision

from .source import commit_of

_COMMIT = re.compile("[0-9a-f]{40}")


def read_scores(paths: Sequence[str]) -> dict[str, list[dict]]:
    """Read score files.

    Returns:
        By path, the scores of each model that was scored.

    Raises:
        ValueError: a file that the evaluation has not written.
    """
    read = {}
    for path in paths:
        try:
            scores = json.loads(Path(path).read_text(encoding="utf-8"))
            read[path] = scores.get("models") or [scores]
            [(row["model"], row["about"]["revision"]) for row in read[path]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not what wavlink eval --output writes "
                f"({type(error).__name__}: {error}): without the weights it was measured on it shows nothing"
            ) from error
    return read


def scores_of(model: WavLinkModel, source: str, read: dict[str, list[dict]]) -> list[dict]:
    """Select from each file the scores of a model's weights.

    Args:
        model: as it is pushed.
        source: the folder or Hub id that it comes from.
        read: the result of `read_scores`.

    Raises:
        ValueError: a file without scores of these weights in fp32.
    """
    digest = fingerprint(model) if read else ""
    selected = []
    for path, rows in read.items():
        same = [row for row in rows if _is_of(row, digest, source)]
        if not same:
            others = ", ".join(f"{row['model']} ({row['about']['revision']})" for row in rows)
            raise ValueError(
                f"{path} was measured on other weights, {others}, than those of {source} ({digest}): measure these "
                f"with wavlink eval --model {source}"
            )
        exact = [row for row in same if row["about"].get("precision", "fp32") == "fp32"]
        if not exact:
            raise ValueError(
                f"{path} was measured in {same[0]['about']['precision']}, and the card is of the weights in fp32: "
                f"measure these with wavlink eval --model {source}"
            )
        selected.append(exact[0])
    return selected


def fingerprint(model: WavLinkModel) -> str:
    """Return the digest of the weights in fp32, in which the evaluation scores them."""
    if any(value.is_floating_point() and value.dtype != torch.float32 for value in model.state_dict().values()):
        model = copy.deepcopy(model).float()
    return revision(model)


def _is_of(row: dict, digest: str, source: str) -> bool:
    measured = row["about"]["revision"]
    if not _COMMIT.fullmatch(measured):
        return measured == digest
    if row["about"].get("seed") is not None:  # a random baseline: the architecture of that commit with new weights
        return False
    if Path(source).is_dir():
        return _weights_in(Path(source)) == _weights_on_hub(row["model"], measured)
    commit = commit_of(source)
    # A commit that changed the card alone has the same weights.
    return bool(commit) and (
        commit == measured or _weights_on_hub(source, commit) == _weights_on_hub(row["model"], measured)
    )


def _weights_on_hub(repo_id: str, commit: str | None) -> dict[str, str]:
    """Return the sha256 of the weights' files in a commit, without a download."""
    files = HfApi().list_repo_tree(repo_id, revision=commit)
    return {file.path: file.lfs.sha256 for file in files if _are_weights(file.path) and file.lfs}


def _weights_in(folder: Path) -> dict[str, str]:
    return {path.name: digest_of(path) for path in folder.iterdir() if _are_weights(path.name)}


def _are_weights(name: str) -> bool:
    """Whether a file decides a clip's and a text's vector; a frame head does not."""
    return name.endswith(".safetensors") and name != FRAME_HEAD
