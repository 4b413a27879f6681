"""The options of the commands that make, search and share an index."""

import argparse

from wavlink.defaults import HOP, STORAGE, STORAGES, WEIGHT, WINDOW
from wavlink.parsing import Parser

from . import shared
from .values import positive_int, seconds


def index(parser: Parser) -> None:
    add = parser.add_argument
    shared.json_option(parser)
    text = "folders, files, @list.txt (a path a line), or one data set (a Hub id)"
    add("sounds", nargs="*", metavar="SOUNDS", help=text)
    add("--out", required=True, metavar="INDEX", help="folder of the index, new or not, or an address such as s3://")
    new_index_options(parser)
    text = "keep the index up to date until SIGINT or SIGTERM: look for changes every so many seconds (default: 1)"
    add("--watch", type=seconds, nargs="?", const=1.0, metavar="SECONDS", help=text)
    text = "embed the sounds of the index by another model while it answers, then switch (default: none)"
    add("--migrate", default="", metavar="MODEL", help=text)
    add("--split", default="train", help="of a data set")
    shared.model_options(parser)
    shared.backend_options(parser)
    shared.storage_options(parser)
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


def ray(parser: Parser) -> None:
    add = parser.add_argument
    add("sounds", nargs="+", metavar="SOUNDS", help="folders, files or @list.txt, the same on all machines")
    add("--out", required=True, metavar="INDEX", help="a folder that all machines share, or an address such as s3://")
    new_index_options(parser)
    add("--revision", help=shared.REVISION)
    add("--actors", type=positive_int, default=2, help="models in the cluster")
    add("--batch_size", type=positive_int, default=64, help="files that an actor takes at a time")
    add("--address", help="of the cluster, or auto (default: RAY_ADDRESS, else one is started on this machine)")
    shared.model_options(parser)
    shared.backend_options(parser)
    shared.storage_options(parser)


def new_index_options(parser: Parser) -> None:
    """Add what a new index is made by, and how an old one is brought up to date."""
    add = parser.add_argument
    text = f"{shared.MODEL} (default: the index's own; of a new index the bundled wavlink-tiny)"
    add("--model", default="", help=text)
    add("--dim", type=int, help="one of the nested dims (default: the least from 48 on)")
    add("--storage", choices=STORAGES, help=f"number format of a new index (default: {STORAGE})")
    add("--rescore_dim", type=int, help="keep so many dims too, and order the candidates by them (default: none)")
    add("--window", type=float, help=f"seconds embedded at once, of a new index (default: {WINDOW:g})")
    add("--hop", type=float, help=f"seconds from window to window, of a new index (default: {HOP:g})")
    add("--root", default="", help="folder that paths are relative to, or where the sounds have moved to")
    add("--retry", action="store_true", help="retry files skipped by earlier runs")
    text = "CSV, JSON lines or parquet with a column file_name; the others become columns of the index (repeatable)"
    add("--metadata", action="append", default=[], metavar="FILE", help=text)
    add("--tags", action="store_true", help="keep title, artist and other tags of the sound files as columns")
    add("--commit_seconds", type=seconds, default=30.0, help="seconds of work that an interruption loses at most")


def query(parser: Parser) -> None:
    parser.intermixed = True
    add = parser.add_argument
    index_folder(parser)
    add("text", nargs="*", metavar="TEXT", help="what to find, in words")
    add("--by_sound", action="append", default=[], metavar="FILE", help="find sounds similar to FILE (repeatable)")
    add("--without", action="append", default=[], metavar="TEXT", help="what is not wanted (repeatable)")
    text = "a sound similar to what is not wanted (repeatable)"
    add("--without_sound", action="append", default=[], metavar="FILE", help=text)
    text = "more like a sound of the index, named as in the results; needs no model (repeatable)"
    add("--like", action="append", default=[], metavar="PATH", help=text)
    add("--weight", type=float, default=WEIGHT, help="of what is not wanted")
    add("--top_k", type=int, default=10, help="results")
    shared.min_probability_option(parser, "results")
    add("--windows", action="store_true", help="rank every window, not each file's best one alone")
    add("--where", metavar="SQL", help="condition that results meet, such as \"path like 'dog%%' and duration < 5\"")
    add("--exact", action="store_true", help="compare every window, also of a large index")
    text = "write the results to a file too: .m3u, .m3u8, .csv or .json"
    add("--playlist", metavar="FILE", help=text)
    add("--model", default="", help=shared.INDEX_MODEL)
    add("--dim", type=int, help="fewer of the nested dims than the index has (default: all that it has)")
    shared.model_options(parser)
    shared.backend_options(parser)


def duplicates(parser: Parser) -> None:
    add = parser.add_argument
    index_folder(parser)
    add("--min_score", type=float, default=0.98, help="least cosine of two sounds that are nearly the same")
    add("--any_duration", action="store_true", help="compare also sounds whose durations differ by more than 10 %%")


def info(parser: Parser) -> None:
    shared.json_option(parser)
    text = "folder of an index or of a model, or a bundled model's name (default: all bundled models)"
    parser.add_argument("folder", nargs="?", metavar="INDEX", help=text)
    shared.storage_options(parser)


def verify(parser: Parser) -> None:
    index_folder(parser)
    text = "forget damaged parts; the next `index` embeds their sounds again"
    parser.add_argument("--drop", action="store_true", help=text)


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
    shared.json_option(parser)
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
    text = "labels that the model chooses from; without both, a sound's folder is its label"
    either.add_argument("--labels_from_text", nargs="+", default=[], metavar="LABEL", help=text)
    add("--label_column", default="label", help="of --labels")
    text = "put sounds of up to so many bytes (200000) inside, at most 100000000 in all (default: 0, links alone)"
    add("--embed_audio", nargs="?", type=int, const=200_000, default=0, metavar="BYTES", help=text)
    add("--most", type=int, default=20_000, help="sounds; of more, a random sample is drawn")
    add("--seed", type=int, default=0, help="of the sample and of t-SNE")
    add("--model", default="", help=shared.INDEX_MODEL)
    shared.model_options(parser)
    shared.backend_options(parser)


def index_folder(parser: Parser) -> None:
    """Add --json, INDEX and --storage_options."""
    shared.json_option(parser)
    parser.add_argument("folder", metavar="INDEX", help="folder of an index, or its address in object storage")
    shared.storage_options(parser)
