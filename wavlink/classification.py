"""Zero-shot classification: the function `classify`, and the command `wavlink classify`.

wavlink classify dog.wav rain.flac --model your-name/wavlink-base --labels dog "church bell" rain
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from processing.audio import AudioSource, clip_name, sounds_of
from processing.audio_inputs_wavlink import as_list, is_source
from processing.prompts import prompts_of
from processing.sound_files import with_folders_listed

from .console import stdout_for
from .embedder import Embedder, embedder_for
from .labels import checked_prompts, embed_prompted, ensemble, label_texts
from .options import models as of
from .parsing import main_of
from .probability import Logistic, calibration_of, described
from .sanitize import clean, path_text
from .vectors import softmax, truncated

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

# Of models without a learned factor of cosines; what sentence-transformers trains its ranking losses with.
COSINE_SCALE = 20.0


def classify(
    model: "str | os.PathLike[str] | PreTrainedModel | Embedder | None",
    sounds: AudioSource | Iterable[AudioSource],
    labels: Sequence[str],
    *,
    processor: "ProcessorMixin | None" = None,
    prompts: str | Sequence[str] | None = None,
    clean_up: str = "spaces",
    dim: int | None = None,
    top_k: int | None = None,
    prior: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, Any]]:
    """Classify sounds of any length by labels the model was not trained for.

    A label's score is its share, the softmax of its logits among the labels. Its probability of a match does not
    depend on the other labels: none may have a high one, or several. A sound longer than the model's 30 s is encoded
    in windows, whose vectors are averaged.

    Args:
        model: a folder or Hub id (see `Embedder`; None: the bundled `wavlink-tiny`), a loaded model (with `processor`)
            or an `Embedder`, which saves loading the model at each call.
        sounds: one or several: a file's path, a folder (all sound files below it), bytes,
            `{"array": samples, "sampling_rate": hertz}` with mono floats `[samples]` in [-1, 1], or a decoder of
            `datasets`.
        labels: two or more, all different.
        processor: of a loaded model.
        prompts: texts with `{}` in place of the label; the vectors of several are averaged (default: those that the
            model brings, else `"This is a sound of {}."`).
        clean_up: `"spaces"` (underscores in labels are read as spaces) or `"none"`.
        dim: compare the first `dim` numbers of the vectors, one of the nested dims (default: all).
        top_k: how many labels of each sound are returned (default: all).
        prior: the share of sounds that a label matches, for the probabilities (default: the one that the model was
            calibrated at).
        device: such as `"cuda"` (default: the CPU, or where a loaded model is).
        dtype: `"float32"` (default), `"bfloat16"` or `"float16"`.

    Returns:
        For each sound, in order, `{"path": str, "labels": [{"label": str, "score": float, "cosine": float,
        "probability": float}, ...]}`, best label first; for a sound that cannot be read `{"path": str, "error": str}`.
        The path of a sound without one is its row. The probability is None where the model has no calibration
        (`wavlink calibrate`).

    Raises:
        ValueError: no sounds, samples without a sampling rate, fewer than two different labels, a prompt without one
            `{}`, no such `dim`, a `prior` out of range or for a model without a calibration, or a model that cannot be
            loaded.

    Example:

    ```python
    >>> import wavlink
    >>> results = wavlink.classify(model_folder, sounds_folder / "low.wav", ["a low sound", "a high sound"])
    >>> sorted(answer["label"] for answer in results[0]["labels"])
    ['a high sound', 'a low sound']
    >>> round(sum(answer["score"] for answer in results[0]["labels"]), 3)
    1.0

    ```
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 label or more, got {top_k}")
    files = _checked_sounds(sounds)
    labels, templates = _checked_labels(labels), None
    if prompts is not None:
        templates = checked_prompts([prompts] if isinstance(prompts, str) else list(prompts))
    embedder = embedder_for(model, processor, device, dtype)
    if dim not in (None, embedder.dims, *embedder.matryoshka_dims):
        raise ValueError(f"dim must be one of the nested dims {embedder.matryoshka_dims}, got {dim}")
    calibration = calibration_of(embedder, dim, prior)
    files = with_folders_listed(files)
    templates = templates or prompts_of(embedder.model.config)
    texts = label_texts(labels, clean_up)
    vectors = embed_prompted(texts, templates, embedder.embed_text)
    text_embeds = ensemble(vectors, dim or embedder.dims)
    scale = logit_scale(embedder.model)
    rank = partial(_ranked, text_embeds=text_embeds, scale=scale, labels=labels, calibration=calibration)
    return [
        {"path": clip_name(file, number), "error": str(vector)}
        if isinstance(vector, ValueError)
        else {"path": clip_name(file, number), "labels": rank(vector)[:top_k]}
        for number, (file, vector) in enumerate(zip(files, embedder.embed_files(files), strict=True))
    ]


def _checked_labels(labels: Iterable[str]) -> list[str]:
    names: list[Any] = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [None]
    if not all(isinstance(label, str) for label in names):
        raise ValueError(f"labels must be a list of strings, such as ['dog', 'rain'], got {labels!r}")
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(f"give two labels or more, each once, got {', '.join(map(repr, names)) or 'none'}")
    return names


def _checked_sounds(sounds: AudioSource | Iterable[AudioSource]) -> list[AudioSource]:
    sources: list[AudioSource] = as_list(list(sounds_of(sounds)))
    for number, sound in enumerate(sources):
        if not is_source(sound):
            raise ValueError(
                f"sound {number} is a {type(sound).__name__}: give a path, bytes, or samples as "
                "{'array': samples, 'sampling_rate': hertz}"
            )
    return sources


def _ranked(
    vector: "np.ndarray[Any, Any]",
    text_embeds: "np.ndarray[Any, Any]",
    scale: float,
    labels: Sequence[str],
    calibration: Logistic | None,
) -> list[dict[str, Any]]:
    """Rank the labels, `text_embeds` `[labels, dim]`, for one sound `[dims]`."""
    cosines = text_embeds @ truncated(vector, text_embeds.shape[1])  # (labels)
    scores = softmax(scale * cosines).tolist()
    order = np.argsort(-cosines, kind="stable").tolist()
    matches = [None] * len(labels) if calibration is None else calibration.probability(cosines).tolist()
    return [
        {"label": labels[n], "score": scores[n], "cosine": float(cosines[n]), "probability": matches[n]} for n in order
    ]


def logit_scale(model: Any) -> float:
    """Return the factor of the logits: a WavLink's or a CLAP's own, else `COSINE_SCALE`.

    SigLIP's bias changes no softmax. PE-Audio has a factor for vectors that are not normalised, which is no factor of
    cosines.
    """
    clap = getattr(model, "logit_scale_a", None)
    scale = getattr(model, "scale", COSINE_SCALE if clap is None else clap.exp())
    return float(scale.detach() if hasattr(scale, "detach") else scale)


def run(options: argparse.Namespace) -> int:
    """Print the labels of each sound; return 2 if a sound could not be read."""
    with stdout_for(options.as_json) as print_json:
        embedder = Embedder(
            options.model,
            revision=options.revision,
            backend=options.backend,
            precision=options.precision,
            device=options.device,
            dtype=options.dtype,
        )
        prompts = options.prompt or prompts_of(embedder.model.config)
        settings = {"prompts": prompts, "clean_up": options.clean_up, "dim": options.dim, "prior": options.prior}
        results = classify(embedder, options.files, options.labels, top_k=options.top_k, **settings)
        for row in results:
            row.setdefault("labels", [])
            print(f"{path_text(row['path'])}{': ' + clean(row['error'], 1000) if 'error' in row else ''}")
            for label in row["labels"]:
                print(_line(label))
        about = {"model": embedder.name, "revision": embedder.revision, "prompts": prompts}
        about |= described(calibration_of(embedder, options.dim, options.prior))
        print_json({**about, "sounds": results})
    return 2 if any("error" in row for row in results) else 0


def _line(label: dict[str, Any]) -> str:
    """Return a label's share, its probability if there is one, and its cosine."""
    match = "" if label["probability"] is None else f"  match {100 * label['probability']:5.1f} %"
    return f"  {100 * label['score']:5.1f} %{match}  {label['cosine']:6.3f}  {clean(label['label'])}"


main = main_of("wavlink classify", of.classify, run)
