"""What a clip's vector costs to keep and what is lost by it: every nested dim in every storage.

    python benchmarks/storage.py MODEL FOLDER [--record]

MODEL is what `wavlink eval --model` takes, FOLDER an audiofolder with captions, whose test split is used.

Clips are kept in a storage, texts are not. Differences are to all dims in fp32, on the same draws of clips. How large
indexes are searched is measured by index_scale.py.
"""

import argparse
import dataclasses

import numpy as np
import records
import tables
from tqdm import tqdm

from processing.datasets.load import caption_columns, load_split
from wavlink.defaults import STORAGES
from wavlink.evaluation.embed_split import embed_dataset, fingerprint
from wavlink.evaluation.metrics import Correspondence, figure
from wavlink.evaluation.retrieval import DIRECTIONS
from wavlink.loading import load_for_evaluation, revision
from wavlink.search.scoring import truncated, unit

KS = (1, 10)
DTYPES = dict(zip(STORAGES, (np.float32, np.float16), strict=True))


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
            record = {"dim": dim, "storage": storage, "bytes": dim * np.dtype(DTYPES[storage]).itemsize}
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
    sounds = truncated(split.audio, dim).astype(DTYPES[storage]).astype(np.float32)
    texts = truncated(split.text, dim)
    return {"text_to_audio": _nearest(texts, unit(sounds)), "audio_to_text": _nearest(unit(sounds[asking]), texts)}


def _nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, : max(KS)]


def _hits(rows: np.ndarray, answers: Correspondence) -> dict[int, np.ndarray]:
    """Of each query whether an answer is among the first k."""
    candidates = answers.shape[1]
    pairs = answers.queries * candidates + answers.indices
    right = np.isin(np.arange(len(rows))[:, None] * candidates + rows, pairs) & (rows >= 0)
    return {k: right[:, :k].any(1) for k in KS}


def as_values(recall: list[dict]) -> dict:
    """The tables of a record."""
    return {"recall": _recall_table(recall, "R@10"), "recall_at_1": _recall_table(recall, "R@1")}


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
    records.add_option(parser, "storage")
    options = parser.parse_args()
    split, about = embedded(options.model, options.folder)
    about |= {"clips": len(split.audio), "texts": len(split.text)}
    recall = recall_by_storage(split)
    values = as_values(recall)
    for name, table in values.items():
        print(f"{name}\n\n{tables.markdown(table)}\n")
    records.write(
        options.record,
        title="Recall by dims and storage",
        seed=0,
        note=f"{about['clips']:,} clips, {about['texts']:,} captions. Percent, with 95 % bootstrap intervals over "
        "clips; differences are to all dims in fp32 on the same draws.",
        values=values,
        raw={**about, "recall": recall},
    )


if __name__ == "__main__":
    main()
