"""The options of the commands that export, publish and serve a model."""

import argparse

from wavlink.defaults import BACKENDS, SIZES
from wavlink.parsing import Parser

from . import shared
from .values import port_number, positive, positive_int


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
    shared.caption_columns_option(parser)
    add("--layers_in_fp32", nargs="+", default=[], metavar="LAYER", help="linear layers that int8 leaves out")
    text = "how many more int8 may leave out, the most harmful first, until it finds what fp32 finds"
    add("--max_layers_in_fp32", type=int, default=16, metavar="N", help=text)
    add("--int8", action="store_true", help="with DIR, 8-bit weights; what that costs is measured")
    add("--opset", type=positive_int, help="of ONNX (default: torch's own)")
    shared.json_option(parser)


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
    text = "what `wavlink eval --output` has written of these very weights"
    add("--scores", nargs="+", default=[], metavar="JSON", help=text)
    add("--license", help="of the weights, as the Hub names it (default: what towers and data allow)")
    add("--output_dir", metavar="DIR", help="an empty or new folder for what is pushed (default: a temporary one)")
    shared.json_option(parser)
    add("--dry_run", action="store_true", help="write and verify, upload nothing")
    add("--private", action="store_true", help="a new repository is visible to its owners alone")
    add("--revision", default="", metavar="BRANCH", help="a new branch starts at main (default: main)")
    add("--create_pr", action="store_true", help="open a pull request instead of writing to main")
    add("--tag", default="", help="of the new commit")
    add("--overwrite_card", action="store_true", help="also where the card was edited on the Hub, above its line")
    add("--space", action="store_true", help="push a demo of the model, not the model; REPO_ID is the Space's")
    add("--index", default="", help="with --space, an index whose sounds everyone may play")
    shared.storage_options(parser)
    text = "push a page that runs the model in the visitor's browser, not the model; REPO_ID is the Space's"
    add("--static", action="store_true", help=text)
    add("--npm_packages", default="", metavar="FOLDER", help=shared.NPM_PACKAGES)


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
    shared.check_storage(options, parser)
    if options.dry_run and not options.output_dir:
        parser.error("--dry_run needs --output_dir, or nothing would be left to look at")
    return options


def space(parser: Parser) -> None:
    parser.check = check_space
    add = parser.add_argument
    add("--model", default="", help=f"a WavLink, a folder or a Hub id ({shared.BUNDLED})")
    add("--revision", help=shared.REVISION)
    add("--index", default="", help="an index of sounds; or `synthetic` or `real`, of sounds written at the start")
    shared.storage_options(parser)
    add("--sounds", default="", metavar="FOLDER", help="holds the index's sounds now (default: where they were)")
    add("--port", type=port_number, help="default: the first that is free from 7860 on, or GRADIO_SERVER_PORT")
    shared.device_option(parser)
    shared.backend_options(parser)
    add("--max_mb", type=positive, default=25, help="of a visitor's file")
    add("--max_seconds", type=positive, default=600, help="of a visitor's sound")
    add("--max_wait", type=positive, default=60, help="seconds that a visitor waits for earlier ones")
    shared.json_option(parser, "one JSON document on stdout, with the address once it serves")
    add("--check", action="store_true", help="load all, answer one sentence, serve nothing")
    text = "serve nothing: write a page that runs the model in the visitor's browser, for a static Space"
    add("--static", action="store_true", help=text)
    add("--out", default="", metavar="FOLDER", help="with --static, the folder to write, new or empty")
    add("--npm_packages", default="", metavar="FOLDER", help=shared.NPM_PACKAGES)


def check_space(options: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """Refuse options of `space` that do not go together."""
    if options.static != bool(options.out):
        parser.error("--static and --out FOLDER need each other")
    shared.check_storage(options, parser)
    if options.npm_packages and not options.static:
        parser.error("--npm_packages goes with --static")
    served = [name for name in ("index", "sounds", "port", "check", "backend", "precision") if getattr(options, name)]
    if options.static and served:
        parser.error(f"--{served[0]} is of the page that is served: leave it or --static out")
    return options


def serve(parser: Parser) -> None:
    parser.check = shared.check_storage
    add = parser.add_argument
    text = f"{shared.MODEL} (default: the index's own, else wavlink-tiny)"
    add("model", nargs="?", default="", metavar="MODEL", help=text)
    add("--revision", help=shared.REVISION)
    add("--index", default="", help="an index of sounds that /v1/search finds")
    shared.storage_options(parser)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every one of this machine")
    add("--port", type=port_number, default=8000, help="0: any that is free")
    add("--name", default="", help="the model's id in requests (default: its Hub id or the last part of its path)")
    text = "a file that holds the key that clients must give (default: WAVLINK_API_KEY of the environment, else none)"
    add("--api_key_file", default="", metavar="FILE", help=text)
    shared.model_options(parser)
    shared.backend_options(parser)
    add("--max_mb", type=positive, default=32, help="of a request")
    add("--max_seconds", type=positive, default=600, help="of the sounds of a request")
    add("--max_queue", type=positive_int, default=256, help="requests at once; others are answered with 429")
    add("--max_wait", type=positive, default=60, help="seconds from a request to its answer")
    add("--max_connections", type=positive_int, default=1000, help="open at once; those that wait longest are closed")
    shared.json_option(parser, "one JSON document on stdout, with the address once it serves")
