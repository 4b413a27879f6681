"""Searching a folder by text, by an example, and without something: how many of the first hits are what was meant.

    python benchmarks/search_by.py runs/sounds/best FOLDER --index sounds.index

FOLDER is an audiofolder with a `label`; its test split is indexed. Each clip of a label with `--least` clips or more
asks, and a hit is right if it has the clip's label. `without` takes away the wrong label that is most frequent among
the hits of the clip itself (`This is a sound of {}.`), and, for control, a random label that is not among them.
"""

import argparse
import os
from collections import Counter

import numpy as np
import records

from processing.datasets.load import label_names, load_split
from wavlink.evaluation.metrics import figure, percent
from wavlink.evaluation.zero_shot import PROMPT
from wavlink.search.build import index_sounds
from wavlink.search.index import Index


class Asked:
    """What a clip's searches found, as labels of the first `top_k` hits, the clip itself left out."""

    def __init__(self, index: Index, labels: dict[str, str], top_k: int):
        self.index, self.labels, self.top_k = index, labels, top_k

    def found(self, own: str, **query) -> list[str]:
        hits = self.index.query(**query, top_k=self.top_k + 1)
        return [self.labels.get(hit.file, "") for hit in hits if hit.file != own][: self.top_k]


def measure(asked: Asked, clips: list[str], rng: np.random.Generator) -> dict[str, np.ndarray]:
    names = sorted({*asked.labels.values()})
    shares: dict[str, list[float]] = {}
    for clip in clips:
        label = asked.labels[clip]
        like = asked.found(clip, sound=clip)
        row = {"text: right": asked.found(clip, text=PROMPT.format(label)).count(label)}
        row["like: right"] = like.count(label)
        wrong = Counter(name for name in like if name not in ("", label))
        if wrong:
            unwanted = wrong.most_common(1)[0][0]
            other = rng.choice([name for name in names if name not in like])
            for words, text in (("without it", unwanted), ("without another", other)):
                hits = asked.found(clip, sound=clip, without=PROMPT.format(text))
                row |= {f"{words}: right": hits.count(label), f"{words}: unwanted": hits.count(unwanted)}
            row |= {"as it was: right": like.count(label), "as it was: unwanted": like.count(unwanted)}
        for name, count in row.items():
            shares.setdefault(name, []).append(count / asked.top_k)
    return {name: np.array(values) for name, values in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--index", default="sounds.index")
    parser.add_argument("--least", type=int, default=6, help="clips of a label that asks")
    parser.add_argument("--top_k", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    records.add_option(parser, "search_by")
    options = parser.parse_args()
    rows = load_split(options.folder, "test")
    files = [os.path.abspath(audio["path"]) for audio in rows["audio"]]
    labels = {file: label for file, label in zip(files, label_names(rows), strict=True) if label}
    print(index_sounds(files, options.index, options.model))
    counts = Counter(labels.values())
    clips = [file for file, label in labels.items() if counts[label] >= options.least]
    random = np.mean([(counts[labels[clip]] - 1) / (len(files) - 1) for clip in clips])
    asked = Asked(Index.open(options.index), labels, options.top_k)
    print(f"{len(clips)} clips ask, {100 * random:.1f} are right at random; % of the first {options.top_k}:")
    shares = measure(asked, clips, np.random.default_rng(options.seed))
    for name, values in shares.items():
        print(f"  {name:28}{percent(figure(values))} of {len(values)}")
    rows = [[name, records.percent(figure(values)), len(values)] for name, values in shares.items()]
    records.write(
        options.record,
        title="Searches by text, by example and without something",
        seed=options.seed,
        note=f"Percent of the first {options.top_k} results; {100 * random:.1f} would be right at random.",
        values={"shares": records.table(["search", "results", "queries"], rows)},
    )


if __name__ == "__main__":
    main()
