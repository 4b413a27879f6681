"""The command `wavlink distill`: a smaller text tower, or one of more languages.

    wavlink distill sentence-transformers/all-MiniLM-L6-v2 --data my_sounds --out runs/text
    wavlink distill wavlink-tiny --translations pairs.tsv --data my_sounds --out runs/multilingual

The first one makes a sentence encoder for `--text_model` of a recipe, the second one a WavLink.
"""

import argparse

from wavlink.console import stdout_for

from .multilingual_distillation import distill_multilingual, multilingual_report
from .text_distillation import Distillation, distill, report


def run(options: argparse.Namespace) -> None:
    """Distill with parsed options, and print the similarity to the teacher."""
    given = dict(vars(options))
    with stdout_for(given.pop("as_json", False)) as print_json:
        task = Distillation(**given)
        record = distill_multilingual(task) if task.translations else distill(task)
        print(report(record))
        if task.translations:
            print(multilingual_report(record))
        print(f"written to {options.out}")
        print_json(record)
