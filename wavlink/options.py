"""The options of every command but `train`: each function adds those of the command of its name.

Nothing heavy is imported, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .defaults import (
    BACKENDS,
    BENCHMARKS,
    CHOICE_TEXT,
    CLEAN_UPS,
    DTYPES,
    HOP,
    PRECISIONS,
    PRIOR,
    PROMPT,
    QUESTION,
    SHORT,
    SHORT_HOP,
    SHORT_WINDOW,
    SIZES,
    STORAGE,
    STORAGES,
    WEIGHT,
    WINDOW,
)
from .parsing import Parser

MODEL = "a folder or a Hub id of a WavLink, CLAP, PE-Audio, EmbeddingGemma 2 or SentenceTransformer"
PROMPTS = f'those the model brings, else "{PROMPT}"'
INDEX_MODEL = "the index's own model, if it is elsewhere now (default: where the index says)"
BUNDLED = "default: the bundled wavlink-tiny"
REVISION = "of a Hub id: a branch, tag or commit (default: its main branch)"
NPM_PACKAGES = "with --static, holds what `npm pack` has written (default: npm downloads onnxruntime-web)"


def parser_of(add_options: Callable[[Parser], None], prog: str, description: str | None = None) -> Parser:
    """Return a parser of one command's options.

    Args:
        prog: its name in usage and errors.
        description: the text above its options.
    """
    parser = Parser(prog=prog, description=description)
    add_options(parser)
    return parser


def main_of(
    prog: str, add_options: Callable[[Parser], None], run: Callable[[argparse.Namespace], int | None]
) -> Callable[[Sequence[str] | None], int]:
    """Return the `main` of a command's module: it parses `argv`, by default this process's, and runs the command."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run(parser_of(add_options, prog, sys.modules[run.__module__].__doc__).parse_args(argv)) or 0

    return main


def samples(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder to write, new or empty")
    parser.add_argument("--clips_per_kind", type=int, help="sounds of each of 56 kinds in each split (default: 2)")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="of sounds made by code (default: all)")
    parser.add_argument("--real", action="store_true", help="write twelve real clips with their credits instead")
    json_option(parser)


def classify(parser: Parser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="sound files, or folders of them")
    add("--model", default="", help=f"{MODEL} ({BUNDLED})")
    add("--labels", required=True, nargs="+", metavar="LABEL", help="labels to choose from, two or more")
    add(
        "--prompt",
        nargs="+",
        default=[],
        help=f"texts with {{}} for the label; several are averaged (default: {PROMPTS})",
    )
    add("--clean_up", default="spaces", choices=CLEAN_UPS, help="spaces: underscores in labels become spaces")
    add("--dim", type=int, help="one of the nested dims (default: all dims)")
    add("--top_k", type=int, default=5, help="labels printed for each sound")
    prior_option(parser)
    json_option(parser)
    add("--revision", help=REVISION)
    model_options(parser)
    backend_options(parser)


def evaluate(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=[""],
        help=f"folders, Hub ids, or random:FOLDER_OR_ID for new weights ({BUNDLED})",
    )
    add("--benchmark", required=True, help=f"{', '.join(BENCHMARKS)}, an audiofolder, or a Hub data set")
    add("--split", default="", help="default: what the benchmark is scored on; of a folder, test")
    add("--data", default="", help="a local folder or Hub id to read a benchmark by name from (default: its own)")
    add(
        "--caption_columns", nargs="*", default=[], metavar="COLUMN", help="default: every column named like a caption"
    )
    add(
        "--prompt",
        nargs="+",
        default=[],
        help=f"texts with {{}} for a zero-shot label; several are averaged (default: {PROMPTS})",
    )
    add("--clean_up", default="spaces", choices=CLEAN_UPS, help="spaces: underscores in labels become spaces")
    add("--renames", metavar="JSON", help="a JSON file of {label: words}, for labels that read badly")
    add("--candidates", nargs="+", metavar="LABEL", help="labels to choose from (default: the split's own)")
    add("--group_column", default="group", help="column of groups that are scored separately as well")
    add("--choices", type=natural, default=4, help="choices of a question made from labels; 0: no questions")
    add("--question", default=QUESTION, help="question made from labels")
    add("--choice_text", default=CHOICE_TEXT, help="question and choice as one text")
    add("--seed", type=natural, default=0, help="of the choices that are drawn, and of what --robustness draws")
    add("--robustness", action="store_true", help="score also changed sounds and queries (about 15 times as long)")
    add("--batch_size", type=positive_int, default=32, help="clips and texts that are embedded at once")
    backend_options(parser)
    add("--output", metavar="SCORES.json", help="a JSON file for the scores; plots go beside it (default: none)")
    json_option(parser)


def calibrate(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a WavLink, whose config.json gets the calibration")
    add("--prior", type=float, default=PRIOR, help="share of the pairs of a sound and a sentence that match")
    validation_options(parser)


def prompts(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a folder or a Hub id of a WavLink or a CLAP; with --store the folder of a WavLink",
    )
    add(
        "--prompt",
        nargs="+",
        default=[],
        help="texts with {} for the label, to choose from (default: 30 that come with the package)",
    )
    add("--most", type=int, default=7, help="prompts whose vectors are averaged")
    add("--clean_up", default="spaces", choices=CLEAN_UPS, help="spaces: underscores in labels become spaces")
    add("--store", action="store_true", help="write the best ones into the model's config.json, as its default")
    validation_options(parser, captions=False)


def distill(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "teacher",
        metavar="TEACHER",
        help="a folder or a Hub id of a sentence encoder, a BERT with WordPiece; with --translations a WavLink",
    )
    add("--data", required=True, help="an audiofolder, or a Hub data set, with captions")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder to write, new or empty: a text tower for --text_model of a recipe; with --translations a WavLink",
    )
    add(
        "--translations",
        nargs="+",
        default=[],
        metavar="TABLE",
        help="texts by language, a column each: CSV or TSV files, or Hub data sets; makes a multilingual WavLink, "
        "whose audio tower stays the teacher's",
    )
    add("--language", default="en", metavar="COLUMN", help="of --translations: the texts that the teacher knows")
    add(
        "--student",
        default="",
        metavar="ENCODER",
        help="with --translations: a folder or a Hub id of a multilingual sentence encoder (default: a new one, "
        "out of the teacher's layers)",
    )
    add(
        "--layers",
        type=numbers,
        default=(),
        metavar="N,N",
        help="of the teacher, from 0, such as 0,2,4,5 (default: every second one, and the last; with --translations "
        "all)",
    )
    add(
        "--vocabulary",
        type=int,
        default=10_600,
        help="tokens that are left; those of --data always are. With --translations, tokens of the new vocabulary",
    )
    add("--max_length", type=int, default=128, help="tokens of a text")
    add("--steps", type=int, default=3000, help="of the training")
    add("--batch_size", type=int, default=192, help="texts of a step")
    add("--learning_rate", type=float, default=3e-4, help="at its highest")
    add("--seed", type=int, default=0, help="of the sentences and the batches")
    add("--split", default="train", help="whose captions and labels are trained on")
    add(
        "--held_out",
        nargs="+",
        default=["validation"],
        metavar="SPLIT",
        help="splits whose captions measure the similarity to the teacher (default: validation)",
    )
    add(
        "--caption_columns", nargs="*", default=[], metavar="COLUMN", help="default: every column named like a caption"
    )
    device_option(parser)
    json_option(parser)


def train_frames(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a WavLink with a Whisper, which gets the trained head")
    add("--data", required=True, help="an audiofolder, or a Hub data set, with captions")
    add("--split", default="train", help="whose clips the mixtures are made of")
    add(
        "--caption_columns", nargs="*", default=[], metavar="COLUMN", help="default: every column named like a caption"
    )
    add("--mixtures", type=positive_int, default=2400, help="of 10 s, encoded once")
    add("--epochs", type=positive_int, default=14, help="over the mixtures")
    add("--learning_rate", type=positive, default=2e-3, help="at its highest")
    add("--seed", type=natural, default=0, help="of the mixtures and the training")
    json_option(parser)


def _number(kind: Callable, words: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Return a parser of numbers for `add_argument`, whose errors name the option and say what it takes."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")
        return value

    return parse


positive = _number(float, "a number above 0", lambda value: 0 < value < float("inf"))
seconds = _number(float, "a number of seconds, 0 or more", lambda value: 0 <= value < float("inf"))
natural = _number(int, "a whole number, 0 or more", lambda value: value >= 0)
positive_int = _number(int, "a whole number, 1 or more", lambda value: value >= 1)
port_number = _number(int, "a whole number from 0 to 65535", lambda value: 0 <= value <= 65535)


def numbers(text: str) -> tuple[int, ...]:
    """Parse `0,2,4`."""
    return tuple(map(int, text.split(",")))


def validation_options(parser: Parser, captions: bool = True) -> None:
    """Add the options of a validation split."""
    add = parser.add_argument
    add("--data", required=True, help="an audiofolder, or a Hub data set")
    add("--split", default="validation", help="one that is not tested on")
    if captions:
        add(
            "--caption_columns",
            nargs="*",
            default=[],
            metavar="COLUMN",
            help="default: every column named like a caption",
        )
    add("--batch_size", type=positive_int, default=32, help="clips and texts that are embedded at once")
    json_option(parser)


def index(parser: Parser) -> None:
    add = parser.add_argument
    json_option(parser)
    text = "folders, files, @list.txt (a path a line), or one data set (a Hub id)"
    add("sounds", nargs="*", metavar="SOUNDS", help=text)
    add("--out", required=True, metavar="INDEX", help="folder of the index, new or not, or an address such as s3://")
    new_index_options(parser)
    text = "keep the index up to date until SIGINT or SIGTERM: look for changes every so many seconds (default: 1)"
    add("--watch", type=seconds, nargs="?", const=1.0, metavar="SECONDS", help=text)
    text = "embed the sounds of the index by another model while it answers, then switch (default: none)"
    add("--migrate", default="", metavar="MODEL", help=text)
    add("--split", default="train", help="of a data set")
    model_options(parser)
    backend_options(parser)
    storage_options(parser)
    parser.check = check_index


def check_index(options: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """Refuse options of `index` that do not fit together."""
    if not options.sounds and not options.migrate:
        parser.error("the following arguments are required: SOUNDS")
    if options.watch is not None and options.split != "train":
        parser.error("--split does not go with --watch, which follows folders and files")
    if options.migrate:
        others = {"--model": options.model, "--metadata": options.metadata, "--tags": options.tags}
        others |= {"--retry": options.retry, "--watch": options.watch is not None}
        if unfit := [name for name, value in others.items() if value]:
            parser.error(f"{unfit[0]} does not go with --migrate: give it in another run")
    return options


def query(parser: Parser) -> None:
    parser.intermixed = True
    add = parser.add_argument
    index_folder(parser)
    add("text", nargs="*", metavar="TEXT", help="what to find, in words")
    add("--by_sound", action="append", default=[], metavar="FILE", help="find sounds similar to FILE (repeatable)")
    add("--without", action="append", default=[], metavar="TEXT", help="what is not wanted (repeatable)")
    add(
        "--without_sound",
        action="append",
        default=[],
        metavar="FILE",
        help="a sound similar to what is not wanted (repeatable)",
    )
    text = "more like a sound of the index, named as in the results; needs no model (repeatable)"
    add("--like", action="append", default=[], metavar="PATH", help=text)
    add("--weight", type=float, default=WEIGHT, help="of what is not wanted")
    add("--top_k", type=int, default=10, help="results")
    min_probability_option(parser, "results")
    add("--windows", action="store_true", help="rank every window, not each file's best one alone")
    add("--where", metavar="SQL", help="condition that results meet, such as \"path like 'dog%%' and duration < 5\"")
    add("--exact", action="store_true", help="compare every window, also of a large index")
    text = "write the results to a file too: .m3u, .m3u8, .csv or .json"
    add("--playlist", metavar="FILE", help=text)
    add("--model", default="", help=INDEX_MODEL)
    add("--dim", type=int, help="fewer of the nested dims than the index has (default: all that it has)")
    model_options(parser)
    backend_options(parser)


def duplicates(parser: Parser) -> None:
    add = parser.add_argument
    index_folder(parser)
    add("--min_score", type=float, default=0.98, help="least cosine of two sounds that are nearly the same")
    add("--any_duration", action="store_true", help="compare also sounds whose durations differ by more than 10 %%")


def info(parser: Parser) -> None:
    json_option(parser)
    text = "folder of an index or of a model, or a bundled model's name (default: all bundled models)"
    parser.add_argument("folder", nargs="?", metavar="INDEX", help=text)
    storage_options(parser)


def verify(parser: Parser) -> None:
    index_folder(parser)
    parser.add_argument(
        "--drop", action="store_true", help="forget damaged parts; the next `index` embeds their sounds again"
    )


def remove(parser: Parser) -> None:
    index_folder(parser)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="as `query` prints them, or a folder of them")


def reindex(parser: Parser) -> None:
    index_folder(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="OTHER", help="folder of the new index")
    add("--dim", type=int, help="one of the nested dims, no more than the index has (default: as many)")
    add("--storage", choices=STORAGES, help="number format (default: the index's own)")
    text = "dims of a second vector that orders the candidates (default: the index's own, but none with a new --dim)"
    add("--rescore_dim", type=int, help=text)


def push_index(parser: Parser) -> None:
    index_folder(parser)
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name or organisation/name")
    parser.add_argument("--private", action="store_true", help="a new repository is visible to its owners alone")


def pull(parser: Parser) -> None:
    add = parser.add_argument
    json_option(parser)
    text = "user/name or organisation/name; or a folder: an index of an earlier version, or a download"
    add("repo_id", metavar="REPO_ID", help=text)
    add("--out", required=True, metavar="INDEX", help="folder of the index, new")
    add("--model", default="", help="the model it was made by, a folder or Hub id that you trust")
    add("--root", default="", help="folder that holds the sounds here")
    add("--revision", help="a branch, tag or commit (default: main)")


def draw_map(parser: Parser) -> None:
    add = parser.add_argument
    index_folder(parser)
    add("--out", required=True, metavar="HTML", help="file to write")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--labels", default="", metavar="CSV", help="metadata with file_name and label")
    either.add_argument(
        "--labels_from_text",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="labels that the model chooses from; without both, a sound's folder is its label",
    )
    add("--label_column", default="label", help="of --labels")
    add(
        "--embed_audio",
        nargs="?",
        type=int,
        const=200_000,
        default=0,
        metavar="BYTES",
        help="put sounds of up to so many bytes (200000) inside, at most 100000000 in all (default: 0, links alone)",
    )
    add("--most", type=int, default=20_000, help="sounds; of more, a random sample is drawn")
    add("--seed", type=int, default=0, help="of the sample and of t-SNE")
    add("--model", default="", help=INDEX_MODEL)
    model_options(parser)
    backend_options(parser)


def where(parser: Parser) -> None:
    add = parser.add_argument
    parser.intermixed = True
    add("model", nargs="?", default="", metavar="MODEL", help=f"{MODEL} ({BUNDLED})")
    add("file", metavar="FILE", help="the recording: wav, flac, ogg, opus, mp3, ... of any length")
    add("--query", nargs="+", default=[], metavar="TEXT", help="texts to look for")
    add("--by_sound", nargs="+", default=[], metavar="FILE", help="sounds to look for")
    short = f"of recordings of up to {SHORT:g} s"
    add("--window", type=float, help=f"seconds embedded at once (default: {WINDOW:g}; {short} {SHORT_WINDOW:g})")
    hops = f"half of --window, without it {HOP:g}; {short} {SHORT_HOP:g}"
    add("--hop", type=float, help=f"seconds from one window's start to the next one's (default: {hops})")
    add("--top_k", type=int, default=5, help="spans of each query")
    least = "what nine of ten common sounds do not reach in this recording"
    add("--min_score", type=float, help=f"cosine of a span; -1 marks the best, whatever they score (default: {least})")
    min_probability_option(parser, "spans")
    add("--dim", type=int, help="compare the first of the nested dims (default: all dims)")
    json_option(parser)
    add("--picture", metavar="PNG", help="plot of the recording over time, with scores and spans (default: none)")
    add("--revision", help=REVISION)
    device_option(parser)
    backend_options(parser)


def export(parser: Parser) -> None:
    parser.check = check_export
    add = parser.add_argument
    add("model", metavar="MODEL", help="a WavLink: a folder; with DIR also a Hub id")
    text = "folder to write ONNX files to that are served without torch (default: --backend, in MODEL's folder)"
    add("folder", nargs="?", default="", metavar="DIR", help=text)
    add("--backend", choices=BACKENDS[1:], help="whose export MODEL's folder gets, for Embedder")
    add("--precision", default="fp32", choices=("fp32", "int8"), help="of the export; bf16 runs that of fp32")
    add("--calibration", default="", metavar="DATA", help="of int8: an audiofolder or Hub data set with captions")
    add("--calibration_split", default="train", metavar="SPLIT", help="of --calibration")
    add("--calibration_clips", type=int, default=512, metavar="N", help="of the split, evenly spaced")
    text = "on which int8 must find what fp32 finds (default: --calibration)"
    add("--validation", default="", metavar="DATA", help=text)
    add("--validation_split", default="validation", metavar="SPLIT", help="of --validation")
    add(
        "--caption_columns", nargs="*", default=[], metavar="COLUMN", help="default: every column named like a caption"
    )
    add("--layers_in_fp32", nargs="+", default=[], metavar="LAYER", help="linear layers that int8 leaves out")
    text = "how many more int8 may leave out, the most harmful first, until it finds what fp32 finds"
    add("--max_layers_in_fp32", type=int, default=8, metavar="N", help=text)
    add("--int8", action="store_true", help="with DIR, 8-bit weights; what that costs is measured")
    add("--opset", type=positive_int, help="of ONNX (default: torch's own)")
    json_option(parser)


def check_export(options: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """Refuse options of `export` that do not go together."""
    if bool(options.folder) == bool(options.backend):
        parser.error("give either --backend, for an export in MODEL's folder, or DIR, for ONNX files to serve")
    if options.folder and options.precision != "fp32":
        parser.error("--precision goes with --backend; the ONNX files of DIR have --int8")
    if options.backend and options.int8:
        parser.error("--int8 is of DIR: give --precision int8 --calibration DATA")
    if options.backend == "openvino" and options.opset:
        parser.error("--opset is of ONNX")
    if (options.precision == "int8") != bool(options.calibration):
        parser.error("--precision int8 and --calibration DATA need each other")
    if options.calibration_clips < 1 or options.max_layers_in_fp32 < 0:
        parser.error("--calibration_clips must be 1 or more, --max_layers_in_fp32 0 or more")
    same = options.validation in ("", options.calibration)
    if options.calibration and same and options.calibration_split == options.validation_split:
        parser.error("calibrate by another split than the one that is validated on")
    return options


def push(parser: Parser) -> None:
    parser.intermixed, parser.check = True, check_push
    add = parser.add_argument
    add("folder", nargs="?", metavar="FOLDER", help="a WavLink or a LoRA adapter, a folder or a Hub id")
    add("repo_id", metavar="REPO_ID", help="user/name")
    add("--init", choices=SIZES, help="instead of FOLDER, the paper's model of this size before its training")
    add(
        "--scores",
        nargs="+",
        default=[],
        metavar="JSON",
        help="what `wavlink eval --output` has written of these very weights",
    )
    add("--license", help="of the weights, as the Hub names it (default: what towers and data allow)")
    add("--output_dir", metavar="DIR", help="an empty or new folder for what is pushed (default: a temporary one)")
    json_option(parser)
    add("--dry_run", action="store_true", help="write and verify, upload nothing")
    add("--private", action="store_true", help="a new repository is visible to its owners alone")
    add("--revision", default="", metavar="BRANCH", help="a new branch starts at main (default: main)")
    add("--create_pr", action="store_true", help="open a pull request instead of writing to main")
    add("--tag", default="", help="of the new commit")
    add("--overwrite_card", action="store_true", help="also where the card was edited on the Hub, above its line")
    add("--space", action="store_true", help="push a demo of the model, not the model; REPO_ID is the Space's")
    add("--index", default="", help="with --space, an index whose sounds everyone may play")
    storage_options(parser)
    text = "push a page that runs the model in the visitor's browser, not the model; REPO_ID is the Space's"
    add("--static", action="store_true", help=text)
    add("--npm_packages", default="", metavar="FOLDER", help=NPM_PACKAGES)


def check_push(options: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """Refuse options of `push` that do not go together."""
    if bool(options.folder) == bool(options.init):
        parser.error("give either FOLDER and REPO_ID, or --init and REPO_ID")
    if options.space and (options.init or options.scores):
        parser.error("--space shows a trained model: leave --init and --scores out")
    if options.static and (options.init or options.scores or options.space or options.license):
        parser.error("--static shows a trained model: leave --init, --scores, --space and --license out")
    if options.npm_packages and not options.static:
        parser.error("--npm_packages goes with --static")
    if options.index and not options.space:
        parser.error("--index goes with --space; alone it is pushed by `wavlink push-index`")
    _check_storage(options, parser)
    if options.dry_run and not options.output_dir:
        parser.error("--dry_run needs --output_dir, or nothing would be left to look at")
    return options


def space(parser: Parser) -> None:
    parser.check = check_space
    add = parser.add_argument
    add("--model", default="", help=f"a WavLink, a folder or a Hub id ({BUNDLED})")
    add("--revision", help=REVISION)
    add(
        "--index",
        default="",
        help="an index of sounds; or `synthetic` or `real`, of sounds written at the start",
    )
    storage_options(parser)
    add("--sounds", default="", metavar="FOLDER", help="holds the index's sounds now (default: where they were)")
    add("--port", type=port_number, help="default: the first that is free from 7860 on, or GRADIO_SERVER_PORT")
    device_option(parser)
    backend_options(parser)
    add("--max_mb", type=positive, default=25, help="of a visitor's file")
    add("--max_seconds", type=positive, default=600, help="of a visitor's sound")
    add("--max_wait", type=positive, default=60, help="seconds that a visitor waits for earlier ones")
    json_option(parser, "one JSON document on stdout, with the address once it serves")
    add("--check", action="store_true", help="load all, answer one sentence, serve nothing")
    text = "serve nothing: write a page that runs the model in the visitor's browser, for a static Space"
    add("--static", action="store_true", help=text)
    add("--out", default="", metavar="FOLDER", help="with --static, the folder to write, new or empty")
    add("--npm_packages", default="", metavar="FOLDER", help=NPM_PACKAGES)


def check_space(options: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """Refuse options of `space` that do not go together."""
    if options.static != bool(options.out):
        parser.error("--static and --out FOLDER need each other")
    _check_storage(options, parser)
    if options.npm_packages and not options.static:
        parser.error("--npm_packages goes with --static")
    served = [name for name in ("index", "sounds", "port", "check", "backend", "precision") if getattr(options, name)]
    if options.static and served:
        parser.error(f"--{served[0]} is of the page that is served: leave it or --static out")
    return options


def serve(parser: Parser) -> None:
    parser.check = _check_storage
    add = parser.add_argument
    add("model", nargs="?", default="", metavar="MODEL", help=f"{MODEL} (default: the index's own, else wavlink-tiny)")
    add("--revision", help=REVISION)
    add("--index", default="", help="an index of sounds that /v1/search finds")
    storage_options(parser)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every one of this machine")
    add("--port", type=port_number, default=8000, help="0: any that is free")
    add("--name", default="", help="the model's id in requests (default: its Hub id or the last part of its path)")
    text = "a file that holds the key that clients must give (default: WAVLINK_API_KEY of the environment, else none)"
    add("--api_key_file", default="", metavar="FILE", help=text)
    model_options(parser)
    backend_options(parser)
    add("--max_mb", type=positive, default=32, help="of a request")
    add("--max_seconds", type=positive, default=600, help="of the sounds of a request")
    add("--max_queue", type=positive_int, default=256, help="requests at once; others are answered with 429")
    add("--max_wait", type=positive, default=60, help="seconds from a request to its answer")
    add("--max_connections", type=positive_int, default=1000, help="open at once; those that wait longest are closed")
    json_option(parser, "one JSON document on stdout, with the address once it serves")


def ray(parser: Parser) -> None:
    add = parser.add_argument
    add("sounds", nargs="+", metavar="SOUNDS", help="folders, files or @list.txt, the same on all machines")
    add("--out", required=True, metavar="INDEX", help="a folder that all machines share, or an address such as s3://")
    new_index_options(parser)
    add("--revision", help=REVISION)
    add("--actors", type=positive_int, default=2, help="models in the cluster")
    add("--batch_size", type=positive_int, default=64, help="files that an actor takes at a time")
    add("--address", help="of the cluster, or auto (default: RAY_ADDRESS, else one is started on this machine)")
    model_options(parser)
    backend_options(parser)
    storage_options(parser)


def new_index_options(parser: Parser) -> None:
    """Add what a new index is made by, and how an old one is brought up to date."""
    add = parser.add_argument
    add("--model", default="", help=f"{MODEL} (default: the index's own; of a new index the bundled wavlink-tiny)")
    add("--dim", type=int, help="one of the nested dims (default: the least from 48 on)")
    add("--storage", choices=STORAGES, help=f"number format of a new index (default: {STORAGE})")
    add("--rescore_dim", type=int, help="keep so many dims too, and order the candidates by them (default: none)")
    add("--window", type=float, help=f"seconds embedded at once, of a new index (default: {WINDOW:g})")
    add("--hop", type=float, help=f"seconds from window to window, of a new index (default: {HOP:g})")
    add("--root", default="", help="folder that paths are relative to, or where the sounds have moved to")
    add("--retry", action="store_true", help="retry files skipped by earlier runs")
    text = "CSV or JSON lines with a column file_name; the others become columns of the index (repeatable)"
    add("--metadata", action="append", default=[], metavar="FILE", help=text)
    add("--tags", action="store_true", help="keep title, artist and other tags of the sound files as columns")
    add("--commit_seconds", type=seconds, default=30.0, help="seconds of work that an interruption loses at most")


def index_folder(parser: Parser) -> None:
    """Add --json, INDEX and --storage_options."""
    json_option(parser)
    parser.add_argument("folder", metavar="INDEX", help="folder of an index, or its address in object storage")
    storage_options(parser)


def json_option(parser: Parser, text: str = "one JSON document on stdout, all else on stderr", **options: Any) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", dest="as_json", help=text, **options)


def min_probability_option(parser: Parser, hits: str) -> None:
    """Add --min_probability and --prior."""
    text = f"drop {hits} that match with a lower probability, from 0 to 1 (default: none are dropped)"
    parser.add_argument("--min_probability", type=float, metavar="P", help=text)
    prior_option(parser)


def prior_option(parser: Parser) -> None:
    """Add --prior."""
    text = "share of the sounds that a sentence matches, for probabilities (default: the model's, most often 0.01)"
    parser.add_argument("--prior", type=float, help=text)


def backend_options(parser: Parser) -> None:
    """Add --backend and --precision."""
    text = "what runs the model on a CPU (default: torch, unless the model's folder carries an export)"
    parser.add_argument("--backend", choices=BACKENDS, help=text)
    text = "number format of products (default: fp32); int8 needs an export, `wavlink export`"
    parser.add_argument("--precision", choices=PRECISIONS, help=text)


class _Pairs(argparse.Action):
    """Collect KEY=VALUE in a dict."""

    def __call__(self, parser, namespace, values, option_string=None):
        if wrong := [each for each in values if not all(each.partition("=")[::2])]:
            parser.error(f"{option_string} takes KEY=VALUE, got {wrong[0].partition('=')[0]!r}")
        pairs = dict(each.split("=", 1) for each in values)
        setattr(namespace, self.dest, (getattr(namespace, self.dest) or {}) | pairs)


def _check_storage(options: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """Refuse --storage_options without --index."""
    if options.storage_options and not options.index:
        parser.error("--storage_options goes with --index")
    return options


def storage_options(parser: Parser) -> None:
    """Add --storage_options."""
    text = "of an index in object storage, such as region=eu-west-1 (default: the environment's, as AWS_REGION)"
    parser.add_argument("--storage_options", nargs="+", action=_Pairs, metavar="KEY=VALUE", help=text)


def device_option(parser: Parser) -> None:
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda")


def model_options(parser: Parser) -> None:
    device_option(parser)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="number format of the model's weights")
