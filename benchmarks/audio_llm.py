"""What the global token gives a small language model beside retrieved captions, under equal budgets and several seeds.

    python benchmarks/audio_llm.py wavlink-tiny SOUNDS --steps 250 --clips 3000 --record

The captioner is that of examples/audio_rag.py. Each seed trains all ways anew: the language model's first weights, the
batches and the captions drawn are those of the seed, for every way the same. The captions of the test split are scored
by words, and by sentence vectors of `--sentences`, if it is given: an encoder that none of the models has seen.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

try:
    from benchmarks import records
except ModuleNotFoundError:  # run as a script
    import records

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import audio_rag

import wavlink
from wavlink.training.sentence_encoder import load_teacher

NAMES = {"nothing": "no input", "text": "retrieval", "token": "token", "text + token": "retrieval and token"}
DIFFERENCES = (("text + token", "text"), ("text + token", "token"), ("text", "nothing"), ("token", "text"))


def rouge_l(written: str, captions: list[str]) -> float:
    """ROUGE-L, the F1 of the longest common subsequence of words (Lin 2004), with the most similar caption."""
    words = written.lower().split()
    return max(_rouge_l(words, caption.lower().split()) for caption in captions)


def _rouge_l(one: list[str], other: list[str]) -> float:
    row = [0] * (len(other) + 1)  # the length for all of `one` so far, and each beginning of `other`
    for word in one:
        above, row = row, [0]
        for place, known in enumerate(other):
            row.append(above[place] + 1 if word == known else max(row[-1], above[place + 1]))
    return 2 * row[-1] / (len(one) + len(other)) if one or other else 0.0


def similarities(encoder, written: list[str], captions: list[list[str]]) -> list[float]:
    """The cosine of each generated caption to the most similar of the clip's own."""
    texts = sorted({*written, *(caption for row in captions for caption in row)})
    vectors = dict(zip(texts, encoder.embed(encoder.tokenize(texts)), strict=True))
    return [max(float(vectors[text] @ vectors[x]) for x in row) for text, row in zip(written, captions, strict=True)]


def scored(results: dict, captions: list[list[str]], encoder) -> dict[str, np.ndarray]:
    """The figures of one way and seed, `[clips]` each."""
    written = results["written"]
    scores = {"loss": results["loss"], "word F1": results["word F1"]}
    scores["ROUGE-L"] = [rouge_l(text, row) for text, row in zip(written, captions, strict=True)]
    if encoder:
        scores["sentence similarity"] = similarities(encoder, written, captions)
    return {name: np.array(values, dtype=float) for name, values in scores.items()}


def figure(values: np.ndarray) -> dict:
    """The mean of `[seeds, clips]`, and its 95 % interval by bootstrap over seeds and clips."""
    rng = np.random.default_rng(0)
    seeds, clips = values.shape
    draws = [values[rng.integers(seeds, size=seeds)][:, rng.integers(clips, size=clips)].mean() for _ in range(2000)]
    return {"value": float(values.mean()), "interval": [float(x) for x in np.percentile(draws, [2.5, 97.5])]}


def tables(scores: dict[str, dict[str, np.ndarray]]) -> dict:
    """The record's tables: each way, and the differences, of `[seeds, clips]` of each figure."""
    kinds = list(scores["text"])
    rows = [[NAMES[way], *({**figure(row[kind]), "digits": 3} for kind in kinds)] for way, row in scores.items()]
    changes = [
        [
            f"{NAMES[more]} − {NAMES[less]}",
            *({**figure(scores[more][kind] - scores[less][kind]), "digits": 3, "signed": True} for kind in kinds),
        ]
        for more, less in DIFFERENCES
    ]
    return {
        "scores": records.table(["input", *kinds], rows),
        "differences": records.table(["difference", *kinds], changes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("sounds", type=records.folder)
    parser.add_argument("--sentences", help="a folder or Hub id of a sentence encoder, such as all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--clips", type=int, default=3000, help="of the training split")
    parser.add_argument("--seeds", type=int, default=3)
    records.add_option(parser, "audio_llm")
    options = parser.parse_args()
    audio_rag.WAYS = {name: audio_rag.WAYS[name] for name in NAMES}
    model = wavlink.bundled(options.model) if "/" not in options.model else options.model
    clips, tokenizer = audio_rag.encode(model, str(options.sounds), options.clips)
    encoder = load_teacher(options.sentences) if options.sentences else None
    captions, by_way, written = clips["test"].captions, {name: [] for name in NAMES}, {}
    for seed in range(options.seeds):
        for name, results in audio_rag.compare(clips, tokenizer, options.steps, seed).items():
            by_way[name].append(scored(results, captions, encoder))
            written.setdefault(name, results["written"][:20])
    scores = {name: {kind: np.stack([one[kind] for one in runs]) for kind in runs[0]} for name, runs in by_way.items()}
    result = tables(scores)
    for table in result.values():
        print(json.dumps(table, ensure_ascii=False))
    captioner = audio_rag.Captioner(tokenizer, clips["test"].states["token"][0].shape[-1], "token", True)
    size = sum(weight.numel() for weight in captioner.lm.parameters())
    records.write(
        options.record,
        title="Captions by a small language model from retrieval, the global token, or both",
        seed=0,
        values=result,
        note=f"Seeds 0 to {options.seeds - 1}; a GPT-2 of {size / 1e6:.1f}M parameters from random weights, "
        f"{options.steps} steps of 32 captions of {len(clips['train'].captions):,} training clips; "
        f"{len(captions):,} test clips. Loss in nats a token of a clip's first caption; the other figures of the "
        "generated caption, with the most similar of the clip's own. 95 % bootstrap intervals over seeds and clips.",
        raw={"written": written, "captions": captions[:20]},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
