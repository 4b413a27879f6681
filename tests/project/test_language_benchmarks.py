"""The measures of benchmarks/audio_llm.py and benchmarks/multilingual.py, on cases worked out by hand."""

import csv

import datasets
import numpy as np
import pytest

from benchmarks import audio_llm, multilingual


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence_with_the_most_similar_caption():
    assert audio_llm.rouge_l("a dog barks at night", ["the dog at night"]) == pytest.approx(2 * 3 / 9)  # dog at night
    assert audio_llm.rouge_l("night at dog", ["Dog at night", "rain"]) == pytest.approx(1 / 3)  # the order counts
    assert audio_llm.rouge_l("a dog", ["rain", "A DOG"]) == 1 and audio_llm.rouge_l("", ["rain"]) == 0


def test_a_difference_of_captions_is_paired_by_seed_and_clip():
    rng = np.random.default_rng(1)
    text = rng.random((3, 40))
    scores = {way: {"ROUGE-L": text + gain} for way, gain in (("nothing", 0), ("text", 0.2), ("token", 0.1))}
    scores["text + token"] = {"ROUGE-L": text + 0.25}
    tables = audio_llm.tables(scores)
    (name, cell), *_ = tables["differences"]["rows"]
    assert name == "retrieval and token − retrieval" and cell["signed"]
    assert cell["value"] == pytest.approx(0.05) and np.ptp(cell["interval"]) < 1e-9  # no spread in the differences
    low, high = tables["scores"]["rows"][0][1]["interval"]
    assert low < text.mean() < high and high - low > 0.05


def test_translations_of_a_dictionary_lose_their_notes():
    assert multilingual.translations_of("1. bellen, blaffen, keffen") == ["bellen", "blaffen"]
    assert multilingual.translations_of("Bellen <neut>, Gebell [zool.] (laut)") == ["Bellen", "Gebell"]
    assert multilingual.translations_of("er/sie bellt") == ["bellt"]
    assert multilingual.translations_of(" see: {bark}") == []


def test_what_is_said_is_paired_with_what_it_means():
    columns = ["audio", "language", "caption", "caption_2"]
    cells = [
        ("a", "de", 'A man says in German: "Ein Hund."', 'A man says something in German that means "A dog."'),
        ("b", "xx", 'A man says in Other: "Hu."', 'A man says something in Other that means "A dog."'),
        ("c", "fr", "A man speaks French", 'A man says something in French that means "A cat."'),
    ]
    rows = datasets.Dataset.from_list([dict(zip(columns, row, strict=True)) for row in cells])
    assert list(multilingual.spoken(rows)) == [("A dog.", "de", "Ein Hund.")]


def test_the_test_split_has_the_captions_of_the_table_in_each_language(tmp_path):
    (tmp_path / "sounds/test").mkdir(parents=True)
    lines = ["file_name,caption,caption_2", "a.wav,A bark,A dog barks", "b.wav,Rain,"]
    (tmp_path / "sounds/test/metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = multilingual.write_test(str(tmp_path / "sounds"), tmp_path / "out")
    with open(tmp_path / "out/test/metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert columns == [f"caption_{name}" for name in ("en", "de", "es", "fr", "nl", "ru", "zh")]
    assert rows[0]["caption_en"] == "A dog barks" and rows[0]["caption_de"] == "Ein Hund bellt"
    assert not any(rows[1][name] for name in columns) and (tmp_path / "out/test/a.wav").is_symlink()


def test_the_table_has_each_caption_once_in_each_language():
    with open(multilingual.TABLE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for name in ("en", *multilingual.LANGUAGES):
        texts = [row[name] for row in rows]
        assert len({*texts}) == len(texts) == 110 and all(text.strip() == text for text in texts), name
