"""A script that `verify` runs: load a folder with transformers and torch alone, and save its vectors.

Modules that torch and transformers do not require cannot be imported here, first of all those of this repository.
"""

import gc
import re
import sys
from importlib import metadata
from typing import NoReturn

OWN = ("modeling_wavlink", "processing", "hub_cards", "wavlink", "train")


def name_of(requirement: str) -> str:
    """Return the normalised name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def required(names: list[str]) -> set[str]:
    """Return the packages and all that they require, without extras."""
    packages, todo = set(), list(names)
    while todo:
        name = name_of(todo.pop())
        if name in packages:
            continue
        packages.add(name)
        try:
            todo += [line for line in metadata.requires(name) or [] if "extra ==" not in line]
        except metadata.PackageNotFoundError:  # of another platform
            continue
    return packages


def hide_other_modules() -> None:
    """Make all modules unimportable that torch and transformers do not require."""
    sys.path = [path for path in sys.path[1:] if path]  # neither this script's folder nor the working directory
    kept = required(["torch", "transformers"])
    installed = metadata.packages_distributions()
    others = [name for name, owners in installed.items() if not kept & {name_of(owner) for owner in owners}]
    for name in [*others, *OWN]:
        sys.modules.setdefault(name, None)


def refuse(*_: object, **__: object) -> NoReturn:
    """Raise a ValueError instead of loading a pickle."""
    raise ValueError("something in the folder is pickled, which can run any code where it is loaded")


def main(folder: str, probe: str, *texts: str) -> None:
    """Save the vectors of `probe/clip.npy` and of the texts as `probe/vectors.npz`."""
    hide_other_modules()
    import numpy as np
    import torch
    from transformers import AutoModel, AutoProcessor, pipeline

    torch.load = refuse
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    clip = np.load(f"{probe}/clip.npy")
    rate = processor.feature_extractor.sampling_rate
    inputs = processor(text=list(texts), audio=clip, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    audio, text = (embeds.float().numpy() for embeds in (output.audio_embeds, output.text_embeds))
    np.savez(f"{probe}/vectors.npz", audio=audio, text=text)
    del model, output
    gc.collect()  # the pipeline loads the weights again
    classify = pipeline("zero-shot-audio-classification", model=folder, trust_remote_code=True)
    answers = classify(clip, candidate_labels=["a", "b"])
    if sorted(answer["label"] for answer in answers) != ["a", "b"]:
        raise ValueError(f"the pipeline answers {answers}")


if __name__ == "__main__":
    main(*sys.argv[1:])
