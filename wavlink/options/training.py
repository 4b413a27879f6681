"""The options of the commands that make sounds and train: `samples`, `distill` and `train-frames`."""

from wavlink.parsing import Parser

from . import shared
from .values import natural, numbers, positive, positive_int


def samples(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder to write, new or empty")
    parser.add_argument("--clips_per_kind", type=int, help="sounds of each of 56 kinds in each split (default: 2)")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="of sounds made by code (default: all)")
    parser.add_argument("--real", action="store_true", help="write twelve real clips with their credits instead")
    shared.json_option(parser)


def distill(parser: Parser) -> None:
    add = parser.add_argument
    text = "a folder or a Hub id of a sentence encoder, a BERT with WordPiece; with --translations a WavLink"
    add("teacher", metavar="TEACHER", help=text)
    add("--data", required=True, help="an audiofolder, or a Hub data set, with captions")
    text = "folder to write, new or empty: a text tower for --text_model of a recipe; with --translations a WavLink"
    add("--out", required=True, metavar="DIR", help=text)
    text = (
        "texts by language, a column each: CSV or TSV files, or Hub data sets; makes a multilingual WavLink, "
        "whose audio tower stays the teacher's"
    )
    add("--translations", nargs="+", default=[], metavar="TABLE", help=text)
    add("--language", default="en", metavar="COLUMN", help="of --translations: the texts that the teacher knows")
    text = (
        "with --translations: a folder or a Hub id of a multilingual sentence encoder (default: a new one, "
        "out of the teacher's layers)"
    )
    add("--student", default="", metavar="ENCODER", help=text)
    text = "of the teacher, from 0, such as 0,2,4,5 (default: every second one, and the last; with --translations all)"
    add("--layers", type=numbers, default=(), metavar="N,N", help=text)
    text = "tokens that are left; those of --data always are. With --translations, tokens of the new vocabulary"
    add("--vocabulary", type=int, default=10_600, help=text)
    add("--max_length", type=int, default=128, help="tokens of a text")
    add("--steps", type=int, default=3000, help="of the training")
    add("--batch_size", type=int, default=192, help="texts of a step")
    add("--learning_rate", type=float, default=3e-4, help="at its highest")
    add("--seed", type=int, default=0, help="of the sentences and the batches")
    add("--split", default="train", help="whose captions and labels are trained on")
    text = "splits whose captions measure the similarity to the teacher (default: validation)"
    add("--held_out", nargs="+", default=["validation"], metavar="SPLIT", help=text)
    shared.caption_columns_option(parser)
    shared.device_option(parser)
    shared.json_option(parser)


def train_frames(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a WavLink with a Whisper, which gets the trained head")
    add("--data", required=True, help="an audiofolder, or a Hub data set, with captions")
    add("--split", default="train", help="whose clips the mixtures are made of")
    shared.caption_columns_option(parser)
    add("--mixtures", type=positive_int, default=2400, help="of 10 s, encoded once")
    add("--epochs", type=positive_int, default=14, help="over the mixtures")
    add("--learning_rate", type=positive, default=2e-3, help="at its highest")
    add("--seed", type=natural, default=0, help="of the mixtures and the training")
    shared.json_option(parser)
