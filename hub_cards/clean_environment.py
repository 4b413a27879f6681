"""Run by `verify`, as a script: loads a folder with transformers and torch alone, and writes down its vectors.

What torch and transformers do not themselves require is not to be had here, this repository first of all.
"""

import gc
import re
import sys
from importlib import metadata

sys.path = [path for path in sys.path[1:] if path]  # neither this script's folder nor the working directory


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def required(names: list[str]) -> set[str]:
    """The packages and all that they require, extras left out."""
    found, todo = set(), list(names)
    while todo:
        name = name_of(todo.pop())
        if name in found:
            continue
        found.add(name)
        try:
            todo += [line for line in metadata.requires(name) or [] if "extra ==" not in line]
        except metadata.PackageNotFoundError:  # of another platform
            continue
    return found


kept = required(["torch", "transformers"])
installed = metadata.packages_distributions()
others = [name for name, owners in installed.items() if not kept & {name_of(owner) for owner in owners}]
for name in [*others, "modeling_wavlink", "processing", "hub_cards", "wavlink", "train"]:
    sys.modules.setdefault(name, None)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModel, AutoProcessor, pipeline  # noqa: E402


def refuse(*_, **__):
    raise ValueError("something in the folder is pickled, which can run any code where it is loaded")


def main(folder: str, probe: str, *texts: str) -> None:
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


main(*sys.argv[1:])
