"""The options of the commands that use or measure a model."""

from wavlink.defaults import BENCHMARKS, CHOICE_TEXT, HOP, PRIOR, QUESTION, SHORT, SHORT_HOP, SHORT_WINDOW, WINDOW
from wavlink.parsing import Parser

from . import shared
from .values import natural, positive_int


def classify(parser: Parser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="sound files, or folders of them")
    add("--model", default="", help=f"{shared.MODEL} ({shared.BUNDLED})")
    add("--labels", required=True, nargs="+", metavar="LABEL", help="labels to choose from, two or more")
    text = f"texts with {{}} for the label; several are averaged (default: {shared.PROMPTS})"
    add("--prompt", nargs="+", default=[], help=text)
    shared.clean_up_option(parser)
    add("--dim", type=int, help="one of the nested dims (default: all dims)")
    add("--top_k", type=int, default=5, help="labels printed for each sound")
    shared.prior_option(parser)
    shared.json_option(parser)
    add("--revision", help=shared.REVISION)
    shared.model_options(parser)
    shared.backend_options(parser)


def where(parser: Parser) -> None:
    add = parser.add_argument
    parser.intermixed = True
    add("model", nargs="?", default="", metavar="MODEL", help=f"{shared.MODEL} ({shared.BUNDLED})")
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
    shared.min_probability_option(parser, "spans")
    add("--dim", type=int, help="compare the first of the nested dims (default: all dims)")
    shared.json_option(parser)
    add("--picture", metavar="PNG", help="plot of the recording over time, with scores and spans (default: none)")
    add("--revision", help=shared.REVISION)
    shared.device_option(parser)
    shared.backend_options(parser)


def evaluate(parser: Parser) -> None:
    add = parser.add_argument
    text = f"folders, Hub ids, or random:FOLDER_OR_ID for new weights ({shared.BUNDLED})"
    add("--model", nargs="+", default=[""], help=text)
    add("--benchmark", required=True, help=f"{', '.join(BENCHMARKS)}, an audiofolder, or a Hub data set")
    add("--split", default="", help="default: what the benchmark is scored on; of a folder, test")
    add("--data", default="", help="a local folder or Hub id to read a benchmark by name from (default: its own)")
    shared.caption_columns_option(parser)
    text = f"texts with {{}} for a zero-shot label; several are averaged (default: {shared.PROMPTS})"
    add("--prompt", nargs="+", default=[], help=text)
    shared.clean_up_option(parser)
    add("--renames", metavar="JSON", help="a JSON file of {label: words}, for labels that read badly")
    add("--candidates", nargs="+", metavar="LABEL", help="labels to choose from (default: the split's own)")
    add("--group_column", default="group", help="column of groups that are scored separately as well")
    add("--choices", type=natural, default=4, help="choices of a question made from labels; 0: no questions")
    add("--question", default=QUESTION, help="question made from labels")
    add("--choice_text", default=CHOICE_TEXT, help="question and choice as one text")
    add("--seed", type=natural, default=0, help="of the choices that are drawn, and of what --robustness draws")
    add("--robustness", action="store_true", help="score also changed sounds and queries (about 15 times as long)")
    add("--batch_size", type=positive_int, default=32, help="clips and texts that are embedded at once")
    shared.backend_options(parser)
    add("--output", metavar="SCORES.json", help="a JSON file for the scores; plots go beside it (default: none)")
    shared.json_option(parser)


def calibrate(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a WavLink, whose config.json gets the calibration")
    add("--prior", type=float, default=PRIOR, help="share of the pairs of a sound and a sentence that match")
    validation_options(parser)


def prompts(parser: Parser) -> None:
    add = parser.add_argument
    text = "a folder or a Hub id of a WavLink or a CLAP; with --store the folder of a WavLink"
    add("model", metavar="MODEL", help=text)
    text = "texts with {} for the label, to choose from (default: 30 that come with the package)"
    add("--prompt", nargs="+", default=[], help=text)
    add("--most", type=int, default=7, help="prompts whose vectors are averaged")
    shared.clean_up_option(parser)
    add("--store", action="store_true", help="write the best ones into the model's config.json, as its default")
    validation_options(parser, captions=False)


def validation_options(parser: Parser, captions: bool = True) -> None:
    """Add the options of a validation split."""
    add = parser.add_argument
    add("--data", required=True, help="an audiofolder, or a Hub data set")
    add("--split", default="validation", help="one that is not tested on")
    if captions:
        shared.caption_columns_option(parser)
    add("--batch_size", type=positive_int, default=32, help="clips and texts that are embedded at once")
    shared.json_option(parser)
