"""Publish a WavLink in one commit: a merged checkpoint, its code, and a card with measured scores.

    wavlink push FOLDER REPO_ID [--scores SCORES.json ...] [--private] [--revision BRANCH | --create_pr]
    wavlink push FOLDER REPO_ID --dry_run --output_dir DIR
    wavlink push --init base|small|large REPO_ID
    wavlink push FOLDER SPACE_REPO_ID --space [--index INDEX]
    wavlink push FOLDER SPACE_REPO_ID --static

FOLDER is a WavLink (RUN/best) or a LoRA adapter of one (RUN/best/adapter), or the Hub id of either. --init builds the
paper's model of a size from pretrained towers, ready for its first stage of training. The token's right to write is
checked first. Nothing changes on the Hub before the folder has been loaded in a process with transformers and torch
alone. --space pushes a demo of the model (hub_cards/space) instead, which has been started in a clean process before.
It names a model of the Hub by its commit, and holds any other model, and an index with its sounds. --static pushes a
page that runs the model in the visitor's browser (hub_cards/space/static), as a Space that needs no server.
"""

import argparse
import gc
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi

from hub_cards.space.folder import check_space, refuse_too_large, write_space
from hub_cards.space.static_folder import write_static_space
from wavlink.atomic_files import new_folder
from wavlink.backends.export import refuse_missing
from wavlink.bundled_models import digest_of, resolve
from wavlink.console import code_of, run_command, signals_as_interrupts, stdout_for, step
from wavlink.hub_errors import without_token
from wavlink.hub_upload import Target, check_access, upload
from wavlink.loading import load_for_evaluation
from wavlink.options import publishing as of
from wavlink.parsing import parser_of
from wavlink.progress import loading_bars_hidden
from wavlink.system_errors import explained
from wavlink.temporary_paths import temporary_folder

from .card import write_card
from .distilled import RECORD, distillation_of, language_limit
from .exports import write_exports
from .origin import Origin, origin_of, write_copy
from .scores import read_scores, scores_of
from .source import commit_of, merged, open_checkpoint, open_paper_model, run_of, stored_state
from .verify import vectors, verify

SHARD_SIZE = "5GB"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, by default this process's, and push; return the exit code.

    Raises:
        SystemExit: with the line of an error.
    """
    options = parser_of(of.push, "wavlink push", __doc__).parse_args(argv)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        failure = str(error)
    except KeyboardInterrupt as stopped:
        print(f"wavlink push: {stopped.args[1]}", file=sys.stderr)
        return code_of(stopped)
    sys.exit(f"wavlink push: {failure}")


def run(options: argparse.Namespace) -> int:
    """Push a model or a Space, and print its address.

    Raises:
        ValueError, OSError: in one line, without the token.
        KeyboardInterrupt: stopped by a signal; it holds the signal's number and a line to print.
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
        gc.collect()  # closes the progress bar of a failed upload, which would be printed after the error


def push(options: argparse.Namespace) -> str:
    """Check, prepare, verify and upload; return the address of the commit, or with --dry_run the folder."""
    kind = "space" if options.space or options.static else "model"
    names = ("repo_id", "private", "revision", "create_pr", "tag", "overwrite_card")
    sdk = "static" if options.static else "gradio"
    target = Target(kind=kind, sdk=sdk, **{name: getattr(options, name) for name in names})
    scores = read_scores(options.scores)
    api = HfApi()
    if not options.dry_run:
        step("asking the Hub who may write")
        check_access(api, target)
    with own_lines_alone(), working_folder(options.output_dir) as folder:
        options.folder = options.folder and resolve(options.folder)
        if options.static:
            prepare_static(options, folder)
        elif options.space:
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
    """Hide the progress bars of transformers and huggingface_hub, and the warnings of other libraries."""
    with warnings.catch_warnings(), loading_bars_hidden(downloads=True):
        warnings.simplefilter("ignore")
        yield


def prepare(options: argparse.Namespace, folder: Path, scores: dict[str, list[dict]]) -> dict[str, np.ndarray]:
    """Write all files that are pushed into `folder`; return the vectors that the model must give."""
    source = options.folder or f"the untrained {options.init} model"
    step(f"loading {source}")
    model, processor = open_paper_model(options.init) if options.init else open_checkpoint(options.folder)
    expected = vectors(model, processor)
    model = merged(model)
    origin = None if options.init else origin_of(options.folder, run_of(source))
    distilled = None if options.init else distillation_of(options.folder)
    if origin and origin.unchanged:
        _refuse_other_card(options, origin)
    measured = scores_of(model, source, scores)
    step("writing the model and its card")
    try:
        exports = [] if options.init else write_exports(options.folder, model, folder)
        if origin and origin.unchanged:
            write_copy(origin, folder, options.repo_id, exports)
            return expected
        state = None if options.init else stored_state(model, options.folder)
        model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_SIZE)
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
            tokenizer=processor.tokenizer,
            origin=origin,
            exports=exports,
            notes=[language_limit(distilled)] if distilled else (),
        )
        if distilled:
            (folder / RECORD).write_text(json.dumps(distilled, indent=2) + "\n", encoding="utf-8")
    except ValueError:
        raise
    except Exception as error:  # for a full disk safetensors, tokenizers and the system each have another
        what, advice = explained(error)
        raise OSError(
            f"could not write {options.output_dir or folder}: {what}; nothing was uploaded: {advice}, or give "
            "--output_dir on another disk"
        ) from error
    return expected


def _refuse_other_card(options: argparse.Namespace, origin: Origin) -> None:
    """Refuse options that would change the card of a bundled model, which is pushed as it is."""
    shipped = {digest_of(path) for path in origin.folder.glob("scores/*.json")}
    given = ["scores"] if any(digest_of(path) not in shipped for path in options.scores) else []
    given += ["license"] if options.license not in (None, origin.licence()) else []
    if given:
        raise ValueError(
            f"{options.folder} is the bundled model {origin.name}, which is pushed with the card, scores and licences "
            f"that it comes with: leave --{' and --'.join(given)} out"
        )


def prepare_space(options: argparse.Namespace, folder: Path, scores: dict[str, list[dict]]) -> None:
    """Write a Space into `folder`, with its model unless that is on the Hub, and start it once."""
    commit = commit_of(options.folder)
    if not commit:
        _verify(folder / "model", prepare(options, folder / "model", scores))
    name = options.folder if commit else Path(options.folder).resolve().name
    step("writing the Space")
    try:
        write_space(folder, options.repo_id, name, commit, options.index, options.storage_options)
    except OSError as error:
        raise OSError(f"could not write {folder}: {': '.join(explained(error))}; nothing was uploaded") from error
    step("starting the Space once in a clean process")
    check_space(folder)


def prepare_static(options: argparse.Namespace, folder: Path) -> None:
    """Write a static Space into `folder`, with the model's towers, whose vectors have been compared with torch's."""
    refuse_missing("onnx", "fp32")
    step(f"loading {options.folder}")
    commit = commit_of(options.folder)
    loaded = load_for_evaluation(options.folder, revision=commit) if commit else open_checkpoint(options.folder)
    name = options.folder if commit else Path(options.folder).resolve().name
    title = options.repo_id.split("/")[1]
    try:
        write_static_space(folder, merged(loaded[0]), loaded[1], name, options.npm_packages, step, title)
    except OSError as error:
        raise OSError(f"could not write {folder}: {': '.join(explained(error))}; nothing was uploaded") from error
    refuse_too_large(folder, "take a smaller model")


@contextmanager
def working_folder(output_dir: str | None) -> Iterator[Path]:
    """Yield an empty folder: a temporary one, or one that is renamed to `output_dir` once all is done."""
    if not output_dir:
        with temporary_folder("wavlink-push-") as folder:
            yield folder
        return
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} is not an empty folder: all in it would be pushed, so name a new one")
    with new_folder(folder) as unfinished:
        yield unfinished


if __name__ == "__main__":
    sys.exit(run_command("wavlink push", main, extra="push"))
