"""The command `wavlink calibrate`: fit the probability of a match on a validation split and store it in the model.

wavlink calibrate runs/my/best --data my_sounds
"""

import argparse
import os
from collections.abc import Sequence

import datasets
import torch

from modeling_wavlink import WavLinkModel
from processing.datasets.load import caption_columns, load_split, with_captions
from wavlink.config_file import own_folder, write_field
from wavlink.console import stdout_for
from wavlink.defaults import PRIOR
from wavlink.loading import load_for_evaluation
from wavlink.probability import check_prior
from wavlink.sanitize import clean, last_part

from .calibration import fit_calibration
from .embed_split import Embedded, embed_dataset
from .protocol import refuse_unsearchable
from .report import Table


def fit_to(model: WavLinkModel, embedded: Embedded, data: str, split: str, prior: float = PRIOR) -> dict:
    """Fit the calibration of a model to an embedded split (see `fit_calibration`).

    Args:
        embedded: the split, by this model.
        data: a folder or Hub id, of which a folder's last name is stored.
        split: of the data.
        prior: the share of matching pairs that the probabilities are for.
    """
    dims = sorted({model.config.projection_dim, *model.config.matryoshka_dims})
    pairs = embedded.audio, embedded.text, embedded.correspondence
    return fit_calibration(*pairs, dims, prior, ", ".join(filter(None, [data_name(data), split])))


def data_name(data: str) -> str:
    """Return a Hub id, or the last name of a folder, so that no path of this machine is stored."""
    return clean(last_part(os.path.abspath(data)) if data and os.path.isdir(data) else data)


def validation_split(data: str, split: str, columns: Sequence[str] = ()) -> tuple[datasets.Dataset, list[str]]:
    """Load the rows of a split that have captions, and the columns of these.

    Raises:
        ValueError: no such split, or captions that do not allow retrieval.
    """
    dataset = load_split(data, split)
    columns = caption_columns(dataset, columns)
    dataset = with_captions(dataset, columns)
    refuse_unsearchable(dataset, columns, split)
    return dataset, columns


def run(options: argparse.Namespace) -> None:
    """Fit the calibration, write it into the model's config.json, and print it."""
    with stdout_for(options.as_json) as print_json:
        check_prior(options.prior)
        folder = own_folder(options.model)
        split = validation_split(options.data, options.split, options.caption_columns)
        model, processor = load_for_evaluation(str(folder), "cuda" if torch.cuda.is_available() else "cpu")
        embedded = embed_dataset(model, processor, *split, batch_size=options.batch_size)
        calibration = fit_to(model, embedded, options.data, options.split, options.prior)
        write_field(folder, "match_calibration", calibration)
        print(report(calibration))
        print(f"written to {folder / 'config.json'}")
        print_json(calibration)


def report(calibration: dict) -> str:
    """Render a calibration: the logistic of each dim, and the cosine at which half of the pairs match."""
    rows = [
        [f"{dim} dims", f"{fit['slope']:.2f}", f"{fit['intercept']:.2f}", _even(**fit)]
        for dim, fit in calibration["dims"].items()
    ]
    head = f"{calibration['pairs']} pairs of {calibration['data']}, of which {calibration['prior']:g} match"
    return f"{head}\n{Table(['', 'slope', 'intercept', 'cosine of P = 0.5'], rows)}"


def _even(slope: float, intercept: float) -> str:
    """Return the cosine at which half of the pairs match, if a cosine can be so high."""
    return f"{-intercept / slope:.3f}" if abs(intercept) <= slope else "none"
