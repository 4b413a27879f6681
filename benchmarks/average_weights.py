"""Average the weights of models that were trained from one start, and save the mean as a model.

    python benchmarks/average_weights.py runs/tiny-0/best runs/tiny-1/best runs/tiny-2/best --out runs/tiny

The mean of fine-tunings of one model is often better than each of them (model soups, arXiv 2203.05482). Models that
were not trained from the same weights have no useful mean.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from wavlink import WavLinkConfig, WavLinkModel, WavLinkProcessor
from wavlink.atomic_files import new_folder
from wavlink.destinations import folder_destination


def mean_weights(folders: list[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of the weights in `model.safetensors` of each folder, computed in fp32.

    Raises:
        ValueError: the folders have weights of different names or shapes.
    """
    total: dict[str, torch.Tensor] = {}
    for folder in folders:
        weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
        if total and {n: w.shape for n, w in total.items()} != {n: w.shape for n, w in weights.items()}:
            raise ValueError(f"{folder} has other weights than {folders[0]}: average models of one architecture")
        total = {name: total[name] + weight for name, weight in weights.items()} if total else weights
    return {name: weight / len(folders) for name, weight in total.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="folders of models")
    parser.add_argument("--fitted", metavar="MODEL", help="its label prompts and calibration are taken")
    parser.add_argument("--out", required=True, type=folder_destination, help="folder to write, new or empty")
    args = parser.parse_args()
    if len(args.models) < 2:
        parser.error("give two models or more")
    try:
        weights = mean_weights(args.models)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    model = WavLinkModel.from_pretrained(args.models[0])
    model.config.match_calibration = None  # of the first model's cosines
    if args.fitted:
        fitted = WavLinkConfig.from_pretrained(args.fitted)
        model.config.match_calibration, model.config.label_prompts = fitted.match_calibration, fitted.label_prompts
    with new_folder(args.out) as folder:
        model.save_pretrained(folder, state_dict=weights)
        WavLinkProcessor.from_pretrained(args.models[0]).save_pretrained(folder)
    print(f"the mean of {len(args.models)} models is in {args.out}")


if __name__ == "__main__":
    main()
