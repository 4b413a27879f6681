"""Publishes a WavLink: one merged checkpoint, flat code and a card from measured scores, verified, in one commit.

    python -m hub_cards.push FOLDER REPO_ID [--scores SCORES.json ...] [--private] [--revision BRANCH | --create_pr]
    python -m hub_cards.push FOLDER REPO_ID --dry_run --output_dir DIR
    python -m hub_cards.push --init base|small|large REPO_ID
    python -m hub_cards.push FOLDER SPACE_REPO_ID --space [--index INDEX]

FOLDER is a WavLink (RUN/best) or a LoRA adapter of one (RUN/best/adapter), or the Hub id of either. --init builds the
paper's model of a size from pretrained towers, ready for its first stage of training. The token and its right to write
are asked first; nothing changes on the Hub before the folder works in a process with transformers and torch alone.
--space pushes a demo of the model (hub_cards/space) instead: a Hub id is named there by its commit, a folder goes
along, and so do an index and its sounds. Before the upload it has started in a process of its own.
"""

import argparse
import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from hub_cards.space.folder import check_space, write_space
from wavlink import options as of
from wavlink.atomic_files import new_folder
from wavlink.console import code_of, run_command, signals_as_interrupts, stdout_for, step
from wavlink.hub_upload import Target, check_access, upload, without_token

from .card import write_card
from .measured import read_scores, scores_of
from .source import commit_of, merged, open_checkpoint, open_paper_model, run_of
from .verify import vectors, verify
from .workplace import temporary

SHARD_SIZE = "5GB"


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of one that went well or was stopped; what went wrong is said by SystemExit."""
    options = _options(argv)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        failure = str(error)
    except KeyboardInterrupt as stopped:
        print(f"hub_cards.push: {stopped.args[1]}", file=sys.stderr)
        return code_of(stopped)
    sys.exit(f"hub_cards.push: {failure}")


def run(options: argparse.Namespace) -> int:
    """Push what the options say.

    Raises:
        ValueError, OSError: in one line, without the token.
        KeyboardInterrupt: stopped by a signal, with its number and what to say.
    """
    try:
        with signals_as_interrupts(), stdout_for(options.as_json) as print_json:
            where = push(options)
            print(f"verified, not uploaded: {where}" if options.dry_run else where)
            print_json({"repo_id": options.repo_id, "uploaded": not options.dry_run, "where": where})
        return 0
    except (ValueError, OSError) as error:
        kind, line = ValueError if isinstance(error, ValueError) else OSError, " ".join(str(error).split())
        raise kind(without_token(line)) from error
    except KeyboardInterrupt as stopped:
        line = "stopped; the Hub has all of its commit or none, and the same command starts again"
        raise KeyboardInterrupt(code_of(stopped) - 128, line) from stopped
    finally:
        gc.collect()  # an upload that fails leaves its progress bar open, which would have the last word


def push(options: argparse.Namespace) -> str:
    """Checks, prepares, verifies and uploads; returns the address of the commit, or with --dry_run the folder."""
    kind = "space" if options.space else "model"
    names = ("repo_id", "private", "revision", "create_pr", "tag", "overwrite_card")
    target = Target(kind=kind, **{name: getattr(options, name) for name in names})
    scores = read_scores(options.scores)
    api = HfApi()
    if not options.dry_run:
        step("asking the Hub who may write")
        check_access(api, target)
    with own_lines_alone(), _workplace(options.output_dir) as folder:
        if options.space:
            prepare_space(options, folder, scores)
        else:
            _verify(folder, prepare(options, folder, scores))
        if options.dry_run:
            return options.output_dir
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        step(f"uploading {size:.1f} MB to {options.repo_id}")
        return upload(api, folder, target)


def _verify(folder: Path, expected: dict[str, np.ndarray]) -> None:
    step("loading it in a clean process with transformers and torch alone")
    verify(folder, expected)


@contextmanager
def own_lines_alone() -> Iterator[None]:
    """Without the progress bars of transformers and huggingface_hub, and without the warnings of other libraries."""
    bars, hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()
        if hub_bars:
            disable_progress_bars()
        try:
            yield
        finally:
            if bars:
                logging.enable_progress_bar()
            if hub_bars:
                enable_progress_bars()


def prepare(options: argparse.Namespace, folder: Path, scores: dict[str, list[dict]]) -> dict[str, np.ndarray]:
    """Writes everything that is to be on the Hub into `folder`; returns the vectors that it must give."""
    source = options.folder or f"the untrained {options.init} model"
    step(f"loading {source}")
    model, processor = open_paper_model(options.init) if options.init else open_checkpoint(options.folder)
    expected = vectors(model, processor)
    model = merged(model)
    measured = scores_of(model, source, scores)
    step("writing the model and its card")
    try:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        processor.save_pretrained(folder)
        write_card(
            folder,
            model,
            processor.feature_extractor,
            options.repo_id,
            scores=measured,
            run=run_of(source),
            licence=options.license,
            untrained=options.init,
            score_files=options.scores,
        )
    except ValueError:
        raise
    except Exception as error:  # safetensors, tokenizers and the system each have their own for a full disk
        raise OSError(
            f"could not write {options.output_dir or folder}: {error}; nothing was uploaded: free space on its disk, "
            "or give --output_dir on another"
        ) from error
    return expected


def prepare_space(options: argparse.Namespace, folder: Path, scores: dict[str, list[dict]]) -> None:
    """Writes a Space into `folder`, with the model in it unless that is a whole one on the Hub; and starts it once."""
    commit = commit_of(options.folder)
    if not commit:
        _verify(folder / "model", prepare(options, folder / "model", scores))
    name = options.folder if commit else Path(options.folder).resolve().name
    step("writing the Space")
    try:
        write_space(folder, options.repo_id, name, commit, options.index)
    except OSError as error:
        raise OSError(f"could not write {folder}: {error}; nothing was uploaded") from error
    step("starting the Space once in a clean process")
    check_space(folder)


@contextmanager
def _workplace(output_dir: str | None) -> Iterator[Path]:
    """An empty folder, so that nothing is pushed that was not written here: a temporary one, or one that takes the
    name `output_dir` once all went well."""
    if not output_dir:
        with temporary() as folder:
            yield folder
        return
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} is not an empty folder: all in it would be pushed, so name a new one")
    with new_folder(folder) as unfinished:
        yield unfinished


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = of.parser_of(of.push, "wavlink push", __doc__)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command("hub_cards.push", main))
