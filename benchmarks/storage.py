"""What a clip's vector costs to keep and what is lost by it: every nested dim in every storage, and a million of them.

    python benchmarks/storage.py MODEL FOLDER [--million 1000000] [--record]

MODEL is what `wavlink eval --model` takes, FOLDER an audiofolder with captions, whose test split is used.

Clips are kept as codes, texts are not: text → audio asks codes by the fp32 vector of a text, audio → text asks the
fp32 vectors of the texts by what a clip's code stands for. Differences are to all dims in fp32, on the same draws of
clips. Time is that of the processor for one query alone, from its fp32 vector to scores and rows.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import records
import tables
from tqdm import tqdm

from processing.datasets.load import caption_columns, load_split
from wavlink.evaluation.embed_split import embed_dataset, fingerprint
from wavlink.evaluation.metrics import Correspondence, figure
from wavlink.evaluation.retrieval import DIRECTIONS
from wavlink.loading import load_for_evaluation, revision
from wavlink.search.quantization import STORAGES, FlatIndex, bytes_per_vector, decode, encode

KS = (1, 10)
NEIGHBOURS = 10  # of a clip, whose differences to it are the directions of its jitter
QUERIES = 200
_CHUNK = 1 << 14


@dataclasses.dataclass
class Split:
    """`audio [clips, D]`, `text [texts, D]`, fp32, whose they are, and the dims that the model was trained for."""

    audio: np.ndarray
    text: np.ndarray
    correspondence: Correspondence  # [clips, texts]
    dims: list[int]  # the largest first


def embedded(name: str, folder: str) -> tuple[Split, dict]:
    """The split, and what to record of it and of the model."""
    model, processor = load_for_evaluation(name)
    dataset = load_split(folder, "test")
    about = {"model": name, "revision": revision(model), "data": folder, "fingerprint": fingerprint(dataset)}
    dims = sorted({model.config.projection_dim, *model.config.matryoshka_dims}, reverse=True)
    results = embed_dataset(model, processor, dataset, caption_columns(dataset))
    return Split(results.audio.numpy(), results.text.numpy(), results.correspondence, dims), about


def recall_by_storage(split: Split) -> list[dict]:
    """A record for each dim and storage: bytes, and of both directions R@1 and R@10 with what they lose."""
    asking = np.flatnonzero(split.correspondence.counts)
    answers = {"text_to_audio": split.correspondence.T, "audio_to_text": split.correspondence.select(asking)}
    clips = {
        "text_to_audio": split.correspondence.T,
        "audio_to_text": Correspondence(asking[:, None], len(split.audio)),
    }  # of each query, as in wavlink.evaluation.retrieval
    found, whole = [], {}
    for dim in tqdm(split.dims, desc="dims"):
        for storage in STORAGES:
            record = {"dim": dim, "storage": storage, "bytes": bytes_per_vector(dim, storage)}
            for way, rows in _found(split, asking, dim, storage).items():
                hits = _hits(rows, answers[way])
                whole.setdefault(way, hits)  # the first: all dims, fp32
                record[way] = {
                    f"R@{k}": {
                        **figure(hits[k], clips[way]),
                        "difference": figure(hits[k].astype(float) - whole[way][k], clips[way]),
                    }
                    for k in KS
                }
            found.append(record)
    return found


def _found(split: Split, asking: np.ndarray, dim: int, storage: str) -> dict[str, np.ndarray]:
    """`[queries, 10]` rows of each direction."""
    codes = encode(split.audio, dim, storage)
    sounds, texts = FlatIndex(dim, storage), FlatIndex(dim, "fp32")
    sounds.add(codes)
    texts.add(encode(split.text, dim, "fp32"))
    return {
        "text_to_audio": sounds.search(split.text, max(KS))[1],
        "audio_to_text": texts.search(decode(codes[asking], dim, storage), max(KS))[1],
    }


def _hits(rows: np.ndarray, answers: Correspondence) -> dict[int, np.ndarray]:
    """Of each query whether an answer is among the first k."""
    candidates = answers.shape[1]
    pairs = answers.queries * candidates + answers.indices
    right = np.isin(np.arange(len(rows))[:, None] * candidates + rows, pairs) & (rows >= 0)
    return {k: right[:, :k].any(1) for k in KS}


def jittered(vectors: np.ndarray, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """`count` vectors made from real ones, in chunks `[n, D]`: each clip in turn, moved towards and away from its ten
    nearest, `x + sum(g * (neighbour - x)) / sqrt(10)` with g ~ N(0, 1), and normalised.

    So a made vector is about as far from its clip as the clip's nearest are (the root of their mean squared distance),
    and in the directions in which real clips differ there. Noise of all directions alike would not do: what nested
    dims keep of it has nothing to do with what they keep of the difference between two sounds.
    """
    unit = encode(vectors, vectors.shape[1], "fp32")
    near = np.argsort(-unit @ unit.T, axis=1)[:, 1 : NEIGHBOURS + 1]
    rng = np.random.default_rng(seed)
    for start in range(0, count, _CHUNK):
        clips = np.arange(start, min(start + _CHUNK, count)) % len(unit)
        steps = rng.normal(size=(len(clips), near.shape[1])).astype(np.float32) / near.shape[1] ** 0.5
        made = unit[clips] * (1 - steps.sum(1, keepdims=True))
        for place in range(near.shape[1]):
            made += steps[:, place : place + 1] * unit[near[clips, place]]
        yield made


def large_search(split: Split, count: int) -> dict:
    """Of `count` made vectors the latency of a query, and beside all dims in fp32 recall@10 and what cosine is lost.

    Hundreds of them are made from one clip and about as near to a query, so that other ten need be no worse than the
    nearest: `lost` is how much less the ten found are like the query than the ten nearest, by all dims in fp32.
    """
    dims, texts = split.dims, split.text
    pairs = [(dims[0], "fp32"), (dims[0], "fp16"), *((dim, storage) for dim in dims for storage in ("int8", "binary"))]
    indexes = {pair: FlatIndex(*pair) for pair in pairs}
    for chunk in tqdm(jittered(split.audio, count), desc="made vectors", total=-(-count // _CHUNK), unit="chunk"):
        for pair, index in indexes.items():
            index.add(encode(chunk, *pair))
    chosen = np.random.default_rng(0).permutation(len(texts))[:QUERIES]
    whole, rows_found, truth = indexes[pairs[0]], [], None
    for (dim, storage), index in indexes.items():
        cpu_ms, rows = _timed(index, texts[chosen])
        truth = rows if truth is None else truth
        overlap = np.mean([np.isin(found, right).mean() for found, right in zip(rows, truth, strict=True)])
        size = bytes_per_vector(dim, storage)
        sizes = {"bytes": size, "megabytes": size * count / 1e6}
        lost = _likeness(whole, texts[chosen], truth) - _likeness(whole, texts[chosen], rows)
        kept = {"recall@10": float(overlap), "lost": lost}
        rows_found.append({"dim": dim, "storage": storage, **sizes, **kept, "cpu_ms": cpu_ms})
    return {"vectors": count, "queries": len(chosen), "jitter": _jitter(split.audio), "rows": rows_found}


def _likeness(index: FlatIndex, queries: np.ndarray, rows: np.ndarray) -> float:
    """The mean cosine of queries `[Q, D]` and the vectors of `rows` `[Q, k]` in an index of all dims in fp32."""
    found = index.vectors(rows.ravel()).reshape(*rows.shape, -1)
    return float((found * encode(queries, index.dim, "fp32")[:, None]).sum(-1).mean())


def _timed(index: FlatIndex, queries: np.ndarray) -> tuple[float, np.ndarray]:
    """Milliseconds of the processor for one query alone, the median, and the rows that are nearest to each."""
    index.search(queries[:1], 10)
    times, rows = [], []
    for query in queries:
        began = time.thread_time()
        rows.append(index.search(query[None], 10)[1][0])
        times.append(1000 * (time.thread_time() - began))
    return float(np.median(times)), np.stack(rows)


def _jitter(audio: np.ndarray) -> dict[str, float]:
    """The median cosine of a made vector to its clip, and of a clip to its nearest and its tenth."""
    unit = encode(audio, audio.shape[1], "fp32")
    made = encode(next(jittered(audio, min(len(audio), _CHUNK))), audio.shape[1], "fp32")
    cosines = -np.sort(-unit @ unit.T, axis=1)[:, [1, min(NEIGHBOURS, len(unit) - 1)]]
    return {
        "made to its clip": float(np.median((made * unit[: len(made)]).sum(1))),
        "clip to its nearest": float(np.median(cosines[:, 0])),
        "clip to its tenth": float(np.median(cosines[:, 1])),
    }


def int8_range(split: Split) -> dict[int, dict[str, float]]:
    """Of each dim the largest component in standard deviations, 1 / sqrt(dim), and the share that is over six."""
    found = {}
    for dim in split.dims:
        components = np.abs(encode(split.audio, dim, "fp32")) * dim**0.5
        found[dim] = {"largest": float(components.max()), "clipped": float((components > max(6, dim**0.5)).mean())}
    return found


def as_values(recall: list[dict], large: dict | None) -> dict:
    """The tables of a record: a recall each, and the search in made vectors."""
    values = {"recall": _recall_table(recall, "R@10"), "recall_at_1": _recall_table(recall, "R@1")}
    if large:
        rows = [
            [
                *(row["dim"], row["storage"], records.number(row["megabytes"], 0)),
                *(records.number(100 * row["recall@10"], 1, "%"), records.number(row["lost"], 3)),
                records.number(row["cpu_ms"], 1, "ms"),
            ]
            for row in large["rows"]
        ]
        size = f"MB for {large['vectors']:,}"
        columns = ["dims", "storage", size, "of the true ten", "cosine lost", "processor time"]
        values["million"] = records.table(columns, rows)
    return values


def _recall_table(recall: list[dict], name: str) -> dict:
    columns = ["dims", "storage", "bytes"]
    for words in DIRECTIONS.values():
        columns += [f"{words} {name}", "difference"]
    rows = []
    for row in recall:
        cells = []
        for way in DIRECTIONS:
            cells += [records.percent(row[way][name]), records.percent(row[way][name]["difference"], signed=True)]
        rows.append([row["dim"], row["storage"], row["bytes"], *cells])
    return records.table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--million", type=int, default=1_000_000, help="made vectors to search; 0: none (%(default)s)")
    records.add_option(parser, "storage")
    options = parser.parse_args()
    split, about = embedded(options.model, options.folder)
    about |= {"clips": len(split.audio), "texts": len(split.text), "int8_range": int8_range(split)}
    recall = recall_by_storage(split)
    large = large_search(split, options.million) if options.million else None
    values = as_values(recall, large)
    for name, table in values.items():
        print(f"{name}\n\n{tables.markdown(table)}\n")
    records.write(
        options.record,
        title="Recall by dims and storage, and search in vectors made from the split's own",
        seed=0,
        note=f"{about['clips']:,} clips, {about['texts']:,} captions. Percent, with 95 % bootstrap intervals over "
        "clips; differences are to all dims in fp32 on the same draws.",
        values=values,
        raw={**about, "recall": recall, "large": large},
        packages=("faiss-cpu",),
    )


if __name__ == "__main__":
    main()
