"""Options that several commands have."""

import argparse
from typing import Any

from wavlink.defaults import BACKENDS, CLEAN_UPS, DTYPES, PRECISIONS, PROMPT
from wavlink.parsing import Parser

from .values import KeyValues

MODEL = "a folder or a Hub id of a WavLink, CLAP, PE-Audio, EmbeddingGemma 2 or SentenceTransformer"
PROMPTS = f'those the model brings, else "{PROMPT}"'
INDEX_MODEL = "the index's own model, if it is elsewhere now (default: where the index says)"
BUNDLED = "default: the bundled wavlink-tiny"
REVISION = "of a Hub id: a branch, tag or commit (default: its main branch)"
NPM_PACKAGES = "with --static, holds what `npm pack` has written (default: npm downloads onnxruntime-web)"


def json_option(parser: Parser, text: str = "one JSON document on stdout, all else on stderr", **options: Any) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", dest="as_json", help=text, **options)


def backend_options(parser: Parser) -> None:
    """Add --backend and --precision."""
    text = "what runs the model on a CPU (default: torch, unless the model's folder carries an export)"
    parser.add_argument("--backend", choices=BACKENDS, help=text)
    text = "number format of products (default: fp32); int8 needs an export, `wavlink export`"
    parser.add_argument("--precision", choices=PRECISIONS, help=text)


def device_option(parser: Parser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda")


def model_options(parser: Parser) -> None:
    """Add --device and --dtype."""
    device_option(parser)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="number format of the model's weights")


def prior_option(parser: Parser) -> None:
    """Add --prior."""
    text = "share of the sounds that a sentence matches, for probabilities (default: the model's, most often 0.01)"
    parser.add_argument("--prior", type=float, help=text)


def min_probability_option(parser: Parser, hits: str) -> None:
    """Add --min_probability and --prior."""
    text = f"drop {hits} that match with a lower probability, from 0 to 1 (default: none are dropped)"
    parser.add_argument("--min_probability", type=float, metavar="P", help=text)
    prior_option(parser)


def storage_options(parser: Parser) -> None:
    """Add --storage_options."""
    text = "of an index in object storage, such as region=eu-west-1 (default: the environment's, as AWS_REGION)"
    parser.add_argument("--storage_options", nargs="+", action=KeyValues, metavar="KEY=VALUE", help=text)


def check_storage(options: argparse.Namespace, parser: Parser) -> argparse.Namespace:
    """Refuse --storage_options without --index."""
    if options.storage_options and not options.index:
        parser.error("--storage_options goes with --index")
    return options


def caption_columns_option(parser: Parser) -> None:
    """Add --caption_columns."""
    text = "default: every column named like a caption"
    parser.add_argument("--caption_columns", nargs="*", default=[], metavar="COLUMN", help=text)


def clean_up_option(parser: Parser) -> None:
    """Add --clean_up."""
    text = "spaces: underscores in labels become spaces"
    parser.add_argument("--clean_up", default="spaces", choices=CLEAN_UPS, help=text)
