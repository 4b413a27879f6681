"""Name sounds: which of the labels, each put into a prompt, is most like a sound.

    wavlink classify dog.wav rain.flac --model your-name/wavlink-base --labels dog "church bell" rain

Sounds of any length; one over the model's 30 s is heard in windows and has their mean. A label's share is the softmax
of its logits among the labels, as in transformers' zero-shot pipeline; several prompts are averaged as vectors.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from modeling_wavlink.losses_wavlink import truncate_embeddings
from processing.audio import clip_name
from processing.audio_inputs_wavlink import as_list
from processing.sound_files import with_folders_listed
from wavlink.evaluation.zero_shot import PROMPT, checked_prompts, embed_prompted, ensemble, label_texts

from . import options as of
from .console import stdout_for
from .embedder import Embedder
from .sanitize import clean


def classify(
    embedder: Embedder,
    files: Sequence,
    labels: Sequence[str],
    prompts: Sequence[str] = (PROMPT,),
    clean_up: str = "spaces",
    dim: int | None = None,
) -> list[dict]:
    """Of each file `path` and `labels`, from the likeliest on `{"label", "score", "cosine"}`, or `path` and `error`.

    Args:
        files: paths, or what else `Embedder.embed_files` takes; a folder stands for all sound files below it, and what
            has no path is named by its number.
        labels: two or more, no two with the same words.
        prompts: texts with `{}` where the label goes.
        clean_up: what becomes of labels before they go there, see `zero_shot.label_texts`.
        dim: of the nested dims (default: all).

    Raises:
        ValueError: a prompt without one `{}`, a label given twice or only one, a folder without sounds, or a dim that
            is none.
    """
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels must be a list of strings, such as ['dog', 'rain'], got {labels!r}")
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"give two labels or more, each once, got {', '.join(map(repr, labels)) or 'none'}")
    prompts = checked_prompts(list(prompts))
    if dim not in (None, embedder.dims, *embedder.matryoshka_dims):
        raise ValueError(f"dim must be one of the nested dims {embedder.matryoshka_dims}, got {dim}")
    dim, files = dim or embedder.dims, with_folders_listed(as_list(files))
    said = embed_prompted(
        label_texts(labels, clean_up), prompts, lambda texts: torch.from_numpy(embedder.embed_text(texts))
    )
    said, scale = ensemble(said, dim), _scale(embedder.model)
    return [
        {"path": clip_name(file, number), "error": str(vector)}
        if isinstance(vector, ValueError)
        else {"path": clip_name(file, number), "labels": _ranked(vector, said, scale, labels)}
        for number, (file, vector) in enumerate(zip(files, embedder.embed_files(files), strict=True))
    ]


def _ranked(vector: np.ndarray, said: torch.Tensor, scale: torch.Tensor, labels: Sequence[str]) -> list[dict]:
    cosines = said @ truncate_embeddings(torch.from_numpy(vector[None]), said.shape[1])[0]  # (labels)
    scores = (scale * cosines).softmax(0)
    order = torch.argsort(cosines, descending=True, stable=True).tolist()
    return [{"label": labels[n], "score": scores[n].item(), "cosine": cosines[n].item()} for n in order]


def _scale(model: torch.nn.Module) -> torch.Tensor:
    """The factor of the logits, of a WavLink or a CLAP; SigLIP's bias changes no softmax."""
    return (model.scale if hasattr(model, "scale") else model.logit_scale_a.exp()).detach().float().cpu()


def main(argv: Sequence[str] | None = None) -> int:
    return run(_parser().parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """Return 2 where a sound could not be read; the others are printed all the same."""
    with stdout_for(options.as_json) as print_json:
        embedder = Embedder(options.model, revision=options.revision, device=options.device, dtype=options.dtype)
        found = classify(embedder, options.files, options.labels, options.prompt, options.clean_up, options.dim)
        for row in found:
            row["labels"] = row.get("labels", [])[: options.top_k]
            print(f"{clean(row['path'], 1000)}{': ' + clean(row['error'], 1000) if 'error' in row else ''}")
            for one in row["labels"]:
                print(f"  {100 * one['score']:5.1f} %  {one['cosine']:6.3f}  {clean(one['label'])}")
        print_json({"model": embedder.name, "revision": embedder.revision, "prompts": options.prompt, "sounds": found})
    return 2 if any("error" in row for row in found) else 0


def _parser() -> argparse.ArgumentParser:
    return of.parser_of(of.classify, "wavlink classify", __doc__)
