"""What a multilingual text tower finds in each language, taught by translations alone, against its English teacher.

    apt-get download tuxpaint-stamps-default dict-freedict-eng-{deu,spa,fra,nld,rus}; npm pack cldr-annotations-full
    for name in *.deb; do dpkg-deb -x $name packages; done; tar -xzf cldr-annotations-full-*.tgz -C packages
    python benchmarks/multilingual.py SOUNDS --packages packages --out runs/multilingual --record

SOUNDS is an audiofolder with English captions. The translations to learn from are no captions: names of stamps of Tux
Paint, names and keywords of emoji, words of FreeDict that the captions have, and what is said in a clip beside what it
means, where a caption tells both. `translated_captions.tsv` has captions of the test split in six languages, which
none of these are. Both models search the same clips with the same captions.
"""

import argparse
import csv
import gzip
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

import wavlink
from processing.datasets.load import caption_columns, captions_of, label_names, load_split
from wavlink.training.multilingual_distillation import distill_multilingual
from wavlink.training.text_distillation import Distillation

try:
    from benchmarks import records
except ModuleNotFoundError:  # run as a script
    import records

TEACHER = "wavlink-tiny"
TABLE = Path(__file__).with_name("translated_captions.tsv")
LANGUAGES = {"de": "deu", "es": "spa", "fr": "fra", "nl": "nld", "ru": "rus", "zh": "zho"}  # and FreeDict's codes
AND = {"de": "und", "es": "y", "fr": "et", "nl": "en", "ru": "и"}
STAMPS = {"zh": "zh_CN"}  # Tux Paint's codes, where they differ
SPOKEN = re.compile(r'(?:in|speaking) [A-Z][^:"]*: "(.+)"$')
MEANT = re.compile(r'that means "(.+)"$')
Pair = tuple[str, str, str]  # the English text, a language, the text in it


def stamps(packages: Path) -> Iterator[Pair]:
    """Names of Tux Paint's stamps, and two of them joined by "and"."""
    names: dict[str, dict[str, str]] = {}
    for path in sorted(packages.rglob("stamps/**/*.txt")):
        english, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
        found = dict(line.split(".utf8=", 1) for line in lines if ".utf8=" in line)
        names[english.strip(" .")] = {
            name: text.strip(" .。") for name in LANGUAGES if (text := found.get(STAMPS.get(name, name), ""))
        }
    rng = np.random.default_rng(0)
    for english, row in names.items():
        yield from ((english, name, text) for name, text in row.items())
        other = list(names)[rng.integers(len(names))]
        for name in AND.keys() & row & names[other].keys():
            joined = f"{row[name]} {AND[name]} {names[other][name][:1].lower()}{names[other][name][1:]}"
            yield f"{english} and {other[:1].lower()}{other[1:]}", name, joined


def emoji(packages: Path) -> Iterator[Pair]:
    """Names of emoji, of Unicode's CLDR."""

    def read(language: str) -> dict:
        path = packages / f"package/annotations/{language}/annotations.json"
        return json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]

    english = read("en")
    for name in LANGUAGES:
        rows = read(name)
        yield from (
            (english[key]["tts"][0], name, rows[key]["tts"][0]) for key in english.keys() & rows if "tts" in rows[key]
        )


def dictionary(packages: Path, words: set[str]) -> Iterator[Pair]:
    """FreeDict's first translations of words."""
    for name, code in LANGUAGES.items():
        for path in packages.rglob(f"freedict-eng-{code}.dict.dz"):
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
            for head, line in zip(lines[:-1], lines[1:], strict=True):
                english = re.sub(r"\s+(/|<).*$", "", head).removeprefix("he/she ").strip()
                if english != head and english.lower() in words:
                    yield from ((english, name, text) for text in translations_of(line))


def translations_of(line: str) -> list[str]:
    """The first two translations of a line of FreeDict, without its notes."""
    line = re.sub(r"<[^>]*>|\[[^\]]*\]|\([^)]*\)|^\s*\d+\.", "", line)
    texts = [part.strip().removeprefix("er/sie ") for part in re.split("[,;]", line)[:2]]
    return [text for text in texts if text and not re.search(r'["{/]', text)]


def spoken(rows) -> Iterator[Pair]:
    """What is said in a clip, beside what it means."""
    columns = caption_columns(rows)
    for row in rows.remove_columns("audio"):
        captions = captions_of(row, columns)
        said, meant = ([m[1] for text in captions if (m := kind.search(text))] for kind in (SPOKEN, MEANT))
        if row["language"] in LANGUAGES:
            yield from ((one, row["language"], other) for one, other in product(meant[:1], said[:1]))


def write_pairs(sounds: str, packages: Path, path: Path) -> dict[str, int]:
    """Write the translations without those of the test captions; return their number by source."""
    rows = load_split(sounds, "train")
    columns = caption_columns(rows)
    captions = [text for row in rows.remove_columns("audio") for text in captions_of(row, columns)]
    words = {*re.findall("[a-z]+", " ".join([*captions, *filter(None, label_names(rows))]).lower())}
    with open(TABLE, newline="", encoding="utf-8") as file:
        measured = {text.casefold() for row in csv.DictReader(file, delimiter="\t") for text in row.values()}
    sources = {
        "stamps": stamps(packages),
        "emoji": emoji(packages),
        "dictionary": dictionary(packages, words),
        "spoken": spoken(rows),
    }
    counts, seen = {}, set()
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["en", *LANGUAGES], delimiter="\t")
        writer.writeheader()
        for source, pairs in sources.items():
            new = sorted({*pairs} - seen)
            new = [pair for pair in new if not {pair[0].casefold(), pair[2].casefold()} & measured]
            seen |= {*new}
            counts[source] = len(new)
            writer.writerows({"en": english, name: text} for english, name, text in new)
    return counts


def write_test(sounds: str, folder: Path) -> list[str]:
    """Write the test split with the captions of the table in each language; return their columns."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        table = {row["en"]: row for row in csv.DictReader(file, delimiter="\t")}
    (folder / "test").mkdir(parents=True, exist_ok=True)
    columns, rows = [f"caption_{name}" for name in ("en", *LANGUAGES)], []
    with open(Path(sounds) / "test/metadata.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            english = next(
                (row[name] for name in ("caption", "caption_2", "caption_3") if row.get(name) in table), None
            )
            link = folder / "test" / row["file_name"]
            if not link.exists():
                link.symlink_to((Path(sounds) / "test" / row["file_name"]).resolve())
            texts = table.get(english, {})
            rows.append({"file_name": row["file_name"]} | {name: texts.get(name[8:], "") for name in columns})
    with open(folder / "test/metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return columns


def tables(scores: dict[str, dict], distilled: dict) -> dict:
    """The record's tables."""
    models = list(scores)
    head = [f"{words} R@10, {name}" for words in ("text → audio", "audio → text") for name in models]
    rows = [
        [
            language,
            *(
                records.percent(scores[model]["by_language"][language][way]["R@10"])
                for way in WAYS
                for model in models
            ),
        ]
        for language in ("en", *LANGUAGES)
    ]
    chance = scores[models[0]]["by_language"]["en"]["chance"]
    rows.append(["chance level", *(records.number(100 * chance[way]["R@10"], 1) for way in WAYS for _ in models)])
    held_out = [
        [name, row["texts"], *(records.percent(row[kind]) for kind in ("teacher_accuracy", "accuracy")), mean(row)]
        for name, row in distilled["similarity"]["by_language"].items()
    ]
    found = ["source found, teacher", "source found, student", "cosine to the source"]
    return {
        "retrieval": records.table(["captions in", *head], rows),
        "held_out": records.table(["language", "texts", *found], held_out),
    }


WAYS = ("text_to_audio", "audio_to_text")


def mean(row: dict) -> dict:
    """A cell of the mean cosine."""
    return {**row["mean"], "digits": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds")
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/multilingual"))
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    records.add_option(parser, "multilingual")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pairs, student = options.out / "pairs.tsv", options.out / "wavlink"
    counts = write_pairs(options.sounds, options.packages, pairs)
    print(counts)
    if not student.exists():
        chosen = {
            "steps": options.steps,
            "vocabulary": options.vocabulary,
            "seed": options.seed,
            "learning_rate": 5e-4,
        }
        task = Distillation(TEACHER, options.sounds, str(student), translations=[str(pairs)], batch_size=128, **chosen)
        distill_multilingual(task)
    distilled = json.loads((student / "distillation.json").read_text(encoding="utf-8"))
    columns = write_test(options.sounds, options.out / "test")
    scores = {
        name: wavlink.evaluate(model, options.out / "test", caption_columns=columns)
        for name, model in (("English tower", TEACHER), ("multilingual tower", str(student)))
    }
    result = tables(scores, distilled)
    for table in result.values():
        print(json.dumps(table, ensure_ascii=False))
    texts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    english = scores["English tower"]["by_language"]["en"]
    records.write(
        options.record,
        title="Retrieval in seven languages with a text tower taught by translations",
        seed=options.seed,
        values=result,
        note=f"Translations by source: {texts}. {options.steps} steps of 128 texts. {english['clips']} of "
        f"{scores['English tower']['clips']} clips have one of {english['captions']} captions, which were "
        "translated for this test. 95 % bootstrap intervals over clips and over texts.",
        raw={"distillation": distilled, "by_language": {name: score["by_language"] for name, score in scores.items()}},
    )


if __name__ == "__main__":
    main()
