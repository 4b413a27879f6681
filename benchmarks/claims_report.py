"""claims.py's runs as hits of each query, and as the tables and the verdicts of a record."""

import base64
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import records
from torch.nn import functional as F

from wavlink.evaluation.embed_split import Embedded
from wavlink.evaluation.metrics import Correspondence, Similarities, bootstrap, ranked
from wavlink.evaluation.retrieval import DIRECTIONS

KS = (1, 10)
SMALLEST = 8  # the share of the dims that is scored too, whether it was trained or not
Hits = dict[str, dict[str, np.ndarray]]  # direction -> "R@10" or "R@10 small" -> bool [queries]


def hits(embedded: Embedded) -> Hits:
    """Which queries find one of their answers, at full width and at an eighth of it."""
    correspondence, width = embedded.correspondence, embedded.audio.shape[1]
    found = {way: {} for way in DIRECTIONS}
    for dims, words in ((width, ""), (width // SMALLEST, " small")):
        audio, text = (F.normalize(x[:, :dims].float(), dim=-1) for x in (embedded.audio, embedded.text))
        first = {
            "text_to_audio": ranked(Similarities(text, audio), correspondence.T).first,
            "audio_to_text": ranked(Similarities(audio, text), correspondence).first,
        }
        for way in DIRECTIONS:
            found[way] |= {f"R@{k}{words}": first[way] <= k for k in KS}
    return found


def mean_recall(embedded: Embedded) -> float:
    """R@10 at full width, the mean of both directions: by which a learning rate is chosen."""
    return float(np.mean([found["R@10"].mean() for found in hits(embedded).values()]))


def line(found: Hits) -> str:
    """A run's R@10, for the terminal."""
    return ", ".join(f"{words} R@10 {100 * found[way]['R@10'].mean():.1f}" for way, words in DIRECTIONS.items())


def packed(found: Hits) -> dict:
    """Hits as texts of JSON: a bit a query, in base64."""
    return {
        way: {name: base64.b64encode(np.packbits(bits)).decode() for name, bits in names.items()}
        for way, names in found.items()
    }


def unpacked(found: dict, answers: Correspondence) -> Hits:
    """What `packed` has packed."""
    queries = {"text_to_audio": answers.shape[1], "audio_to_text": answers.shape[0]}
    return {
        way: {
            name: np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=queries[way]).astype(bool)
            for name, text in names.items()
        }
        for way, names in found.items()
    }


def as_text(answers: Correspondence) -> str:
    """The texts of each clip as one text: `0 4;2;...`."""
    rows = np.split(answers.indices, answers.offsets[1:-1])
    return ";".join(" ".join(map(str, row)) for row in rows)


def from_text(text: str) -> Correspondence:
    """What `as_text` has written, `[clips, texts]`."""
    rows = [[int(index) for index in row.split()] for row in text.split(";")]
    return Correspondence(rows, 1 + max(map(max, rows)))


def difference(arms: Sequence[Mapping[int, Hits]], name: str, answers: Correspondence) -> dict:
    """How far the first arm is ahead of the second, the mean of both directions, over the seeds that both have.

    Returns:
        `value` and its 95 % `interval`, by bootstrap over clips, of the mean over seeds; `seeds`, that of each.
    """
    seeds = sorted({*arms[0]} & {*arms[1]})
    gaps = [
        {way: arms[0][seed][way][name].astype(float) - arms[1][seed][way][name] for way in DIRECTIONS}
        for seed in seeds
    ]
    mean = {way: np.mean([gap[way] for gap in gaps], axis=0) for way in DIRECTIONS}
    each = [float(np.mean([gap[way].mean() for way in DIRECTIONS])) for gap in gaps]
    clips = answers.shape[0]
    statistic = _both_ways(mean, answers)
    interval = bootstrap(statistic, np.arange(clips), clips)["interval"]
    return {"value": float(np.mean(each)), "interval": interval, "seeds": each}


def _both_ways(values: Mapping[str, np.ndarray], answers: Correspondence) -> Callable[[np.ndarray], np.ndarray]:
    """A function of `[draws, clips]`, how often each is drawn, to the mean of both directions `[draws]`.

    A text of several clips counts in as many parts, as in `wavlink.evaluation.metrics.figure`.
    """
    clips = np.repeat(np.arange(answers.shape[0]), answers.counts)  # of each pair of a clip and a text
    parts = 1 / answers.sum(0)[answers.indices]
    weights = np.bincount(clips, parts, answers.shape[0])
    of_texts = np.bincount(clips, parts * values["text_to_audio"][answers.indices], answers.shape[0])
    columns = np.stack([of_texts, weights, values["audio_to_text"], np.ones(len(weights))])

    def statistic(drawn: np.ndarray) -> np.ndarray:
        texts, of_weight, sounds, count = columns @ drawn.T.astype(float)
        return (texts / of_weight + sounds / count) / 2

    return statistic


def verdict(found: dict) -> str:
    """Ahead or behind only where the interval over clips excludes 0 and every one of several seeds agrees."""
    low, high = found["interval"]
    if len(found["seeds"]) < 2:
        return "one seed"
    if low > 0 and min(found["seeds"]) > 0:
        return "ahead"
    return "behind" if high < 0 and max(found["seeds"]) < 0 else "not told apart"


def pairs(arms: Mapping, scored: Mapping[str, Mapping[int, Hits]], answers: Correspondence) -> dict[str, dict]:
    """Arm -> how far it is ahead of the arm that it is compared with, at full width and at an eighth of it."""
    return {
        arm: {name: difference((seeds, scored[arms[arm].against]), name, answers) for name in ("R@10", "R@10 small")}
        for arm, seeds in scored.items()
        if {*scored.get(arms[arm].against, ())} & {*seeds}
    }


def as_table(arms: Mapping, runs, scored: Mapping[str, Mapping[int, Hits]], found: Mapping[str, dict]) -> dict:
    """The arms that have been scored, each with its learning rates; `runs` is a `claims.Runs`."""
    columns = ["arm", "compared with", "learning rate (R@10 on validation)", "seeds"]
    columns += [*(f"{words} R@10" for words in DIRECTIONS.values()), "R@1", "R@10 at 1/8 of the dims"]
    columns += ["ahead in R@10 [over clips]", "ahead (over seeds)", "ahead at 1/8 of the dims [over clips]"]
    columns += ["so it is", "in the paper"]
    rows = []
    for arm, seeds in scored.items():
        tried = runs.searched(arm)
        rates = ", ".join(f"{rate:g}: {100 * tried[rate]:.1f}" for rate in sorted(tried))
        row = [arms[arm].words, arms[arm].instead_of]
        row += [f"{next(iter(runs.tested(arm).values()))['rate']:g} ({rates})", len(seeds)]
        row += [_spread([hits[way]["R@10"].mean() for hits in seeds.values()]) for way in DIRECTIONS]
        for name in ("R@1", "R@10 small"):
            row.append(_spread([np.mean([hits[way][name].mean() for way in DIRECTIONS]) for hits in seeds.values()]))
        if arm in found:
            full, small = found[arm]["R@10"], found[arm]["R@10 small"]
            row += [records.percent(full, signed=True), _spread(full["seeds"], signed=True)]
            row += [records.percent(small, signed=True), verdict(full), arms[arm].paper]
        rows.append([*row, *[None] * (len(columns) - len(row))])
    return records.table(columns, rows)


def _spread(shares: Sequence[float], signed: bool = False) -> dict:
    """The mean of seeds and their range, in percent."""
    values = [100 * float(share) for share in shares]
    cell = {"value": float(np.mean(values)), "range": [min(values), max(values)], "digits": 1}
    return cell | ({"signed": True} if signed else {})


def note(arms: Mapping, found: Mapping[str, dict], answers: Correspondence, settings: Mapping) -> str:
    """The verdicts in words, each with its difference and interval, and how they were reached."""
    kinds = {
        "ahead": "Ahead are",
        "behind": "Behind are",
        "not told apart": "Not told apart are",
        "one seed": "Under one seed so far are",
    }
    words = {kind: [] for kind in kinds}
    smaller = []  # whose verdict the first eighth of the dims changes
    for arm, gaps in found.items():
        full, small = gaps["R@10"], gaps["R@10 small"]
        pair = f"{arms[arm].words} against {arms[arm].instead_of}"
        words[verdict(full)].append(f"{pair} ({_figures(full)})")
        if verdict(small) != verdict(full):
            smaller.append(f"{pair} is {verdict(small)} ({_figures(small)})")
    verdicts = "".join(f"{kinds[kind]} {', '.join(those)}. " for kind, those in words.items() if those)
    verdicts += f"At an eighth of the dims {', '.join(smaller)}. " if smaller else ""
    return (
        f"{verdicts}Points of R@10, the mean of both directions, on {answers.shape[0]} clips of at most "
        f"{settings['max_seconds']:g} s and their {answers.shape[1]} texts, after {settings['steps']} steps of "
        f"{settings['batch_size']} clips{_other_budgets(arms)}. In brackets 95 % intervals by bootstrap over clips of "
        "the mean of the seeds; in parentheses the range of the seeds, under each of which both arms of a pair take "
        "the same clips in the same order. Ahead or behind is what the interval and every seed agree on."
    )


def _figures(gap: Mapping) -> str:
    value, low, high = (f"{100 * figure:+.1f}" for figure in (gap["value"], *gap["interval"]))
    return f"{value} [{low}, {high}]"


def _other_budgets(arms: Mapping) -> str:
    budgets = {
        (arm.changes["max_steps"], arm.changes["batch_size"]) for arm in arms.values() if "max_steps" in arm.changes
    }
    return "".join(f", from random weights {steps} of {clips}" for steps, clips in budgets)
