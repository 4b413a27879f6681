"""benchmarks/spoken_words.py: which texts are read, how often, by which voice, and what the captions say of them."""

import argparse
import collections
import csv
import itertools
import json
import random

import numpy as np
import pytest
import soundfile as sf

from benchmarks import spoken_words
from benchmarks.spoken_words import Clip, Text
from processing.datasets.load import load_split

COLUMNS = ["file_name", "group", "label", "caption", "caption_2", "caption_3", "language", "source_package"]


def annotations(folder, **languages):
    for language, names in languages.items():
        entries = {key: {"default": [name], "tts": [name]} for key, name in names.items()}
        path = folder / language.replace("_", "-") / "annotations.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"annotations": {"annotations": entries}}), encoding="utf-8")
    return folder


def sounds(folder, split, rows):
    (folder / split).mkdir(parents=True)
    with open(folder / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *rows])
    return folder


def czech(caption, caption_3=""):
    return ["a.ogg", "speech", "Czech speech", caption, "A man speaks Czech", caption_3, "cs", "stamps"]


def text(words="čajník", meaning="teapot", source="names", language="cs", name="Czech"):
    return Text(language, name, words, meaning, source, "CC0")


def clip(words_read, rate=170, gender="f", index=0):
    return Clip(index, words_read, gender, gender + "1", rate, 50, 0.0)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("teapot", "A teapot."),
        ("orange book", "An orange book."),
        ("unicorn", "A unicorn."),
        ("grapes", "Grapes."),
        ("cactus", "A cactus."),
        ("glass of milk", "A glass of milk."),
        ("cat with tears of joy", "A cat with tears of joy."),
        ("Statue of Liberty", "Statue of Liberty."),
        ("bread", "Bread."),
        ("four o’clock", "Four o’clock."),
        ("alarm clock", "An alarm clock."),
        ("no smoking", "No smoking."),
    ],
)
def test_an_english_name_becomes_a_meaning_as_captions_write_it(name, meaning):
    assert spoken_words.with_article(name) == meaning


def test_a_text_has_a_capital_and_one_mark_at_its_end():
    assert spoken_words.sentence("čajník") == "Čajník." and spoken_words.sentence("ano!") == "Ano!"
    assert spoken_words.sentence("чайник", stop=False) == "Чайник" and spoken_words.sentence("ვეშაპი") == "ვეშაპი."


def test_transcripts_are_what_is_said_in_a_language_each_once_with_its_meaning():
    said, means = 'A man says in Czech: "Čajník."', 'A man says something in Czech that means "A teapot."'
    word = ["b.ogg", "speech", "Czech speech", 'Someone says the word for "pot" in Czech', "", "", "cs", "potato"]
    rows = [czech(said, means), czech(said), czech('A woman speaking Czech: "Hrad \\"A\\""'), word]
    found = spoken_words.transcripts([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    assert [(text.name, text.words, text.meaning) for text in found] == [
        ("Czech", "Čajník.", "A teapot."),
        ("Czech", 'Hrad \\"A\\"', ""),
    ]
    assert found[0].licence == "GPL-3+ (program); text from stamps"


def test_names_are_those_of_emoji_and_a_variety_of_a_language_has_its_own(tmp_path):
    folder = annotations(tmp_path, pt={"🚂": "locomotiva", "🚌": "ônibus", "{": "chave"}, pt_PT={"🚌": "autocarro"})
    assert spoken_words.emoji_names(folder, "pt_BR") == {"🚂": "locomotiva", "🚌": "ônibus"}
    assert spoken_words.emoji_names(folder, "pt") == {"🚂": "locomotiva", "🚌": "autocarro"}
    assert spoken_words.emoji_names(folder, "eo") == {}


def test_only_the_train_split_is_read_and_only_its_languages(tmp_path):
    folder = sounds(tmp_path / "sounds", "train", [czech('A man says in Czech: "Ano."')])
    sounds(folder, "test", [czech('A man says in Czech: "Tajné."')])
    czech_names = {"🫖": "čajník", "☕": "čajník"}
    names = annotations(tmp_path / "names", cs=czech_names, en={"🫖": "teapot"}, de={"🫖": "Kanne"})
    texts, counts = spoken_words.all_texts(names, folder)
    assert [(text.language, text.words, text.meaning) for text in texts] == [
        ("cs", "Ano.", ""),
        ("cs", "čajník", "teapot"),
    ]
    assert counts == {"cs": 1}


def test_sentences_are_messages_that_are_read_as_they_are_written_with_the_english_as_meaning():
    translated = [
        ("django", "cs", "Enter a valid value.", "Zadejte platnou hodnotu."),
        ("plone", "cs", "Enter a valid value.", "Zadejte platnou hodnotu."),  # known
        ("plone", "cs", "Add %(name)s now", "Přidat %(name)s nyní"),  # filled in by a program
        ("plone", "cs", "Yes", "Ano"),  # one word
        ("plone", "cs", "Add <b>more</b> now", "Přidat více nyní"),
        ("plone", "cs", "Plone is here", "Plone is here"),  # not translated
        ("django", "zh_Hans", "Enter a number.", "输入数字。"),  # no spaces
        ("django", "de", "Enter a number.", "Bitte eine Zahl eingeben."),  # of no language asked for
    ]
    found = spoken_words.sentences(translated, {"cs": "Czech", "zh": "Mandarin", "en": "English"})
    assert [(text.language, text.words, text.meaning) for text in found] == [
        ("en", "Enter a valid value.", ""),
        ("cs", "Zadejte platnou hodnotu.", "Enter a valid value."),
        ("en", "Enter a number.", ""),
        ("zh", "输入数字。", "Enter a number."),
    ]
    assert {text.source for text in found} == {"sentences"}
    assert found[1].licence == "GPL-3+ (program); text from django"


def test_messages_are_read_from_the_catalogs_of_packages(tmp_path):
    polib = pytest.importorskip("polib")
    path = tmp_path / "django/conf/locale/cs/LC_MESSAGES/django.mo"
    path.parent.mkdir(parents=True)
    catalog = polib.POFile()
    catalog.append(polib.POEntry(msgid="Enter a number.", msgstr="Zadejte číslo."))
    catalog.save_as_mofile(str(path))
    assert list(spoken_words.messages(tmp_path)) == [("django", "cs", "Enter a number.", "Zadejte číslo.")]
    with pytest.raises(ValueError, match="unpack packages with translations"):
        next(spoken_words.messages(tmp_path / "django/conf/locale/cs/LC_MESSAGES/none"))


def test_texts_that_are_spelled_or_read_in_another_language_are_found():
    phonemes = {"hrad": "hrˈat", "les": "lˈes", "kočka": "kˈotʃka", "VW": "vˈeːdvˌojveː", "абв": "(en)a(cs)"}
    assert spoken_words.spelled_out(phonemes) == {"VW", "абв"}
    assert spoken_words.spelled_out({}) == set()


def test_languages_have_the_root_of_their_counts_and_no_text_twice_before_all_once():
    texts = [text(f"{language}{n}", language=language) for language in ("cs", "de") for n in range(50)]
    clips = list(itertools.islice(spoken_words.plan(texts, {"cs": 900, "de": 100}, seed=0), 4000))
    counts = collections.Counter(clip.text.language for clip in clips)
    assert counts["cs"] / counts["de"] == pytest.approx(3, rel=0.15)  # 5 standard deviations
    for language in counts:
        heard = [clip.text.words for clip in clips if clip.text.language == language]
        assert len(set(heard[:50])) == len(set(heard[50:100])) == 50
    assert clips == list(itertools.islice(spoken_words.plan(texts, {"cs": 900, "de": 100}, seed=0), 4000))
    assert {clip.variant[0] for clip in clips if clip.gender == "f"} == {"f", "w"}


@pytest.mark.parametrize(
    ("sources", "names"), [(["names", "transcripts"], 0.6), (["names", "transcripts", "sentences"], 0.3)]
)
def test_names_transcripts_and_sentences_are_mixed(sources, names):
    texts = [text(f"a{n}", source=source) for source in sources for n in range(9)]
    clips = itertools.islice(spoken_words.plan(texts, {"cs": 1}, seed=1), 2000)
    shares = collections.Counter(clip.text.source for clip in clips)
    assert shares["names"] / 2000 == pytest.approx(names, abs=0.055)  # 5 standard deviations
    assert set(shares) == set(sources)


@pytest.mark.parametrize(("rate", "pace"), [(120, "slowly"), (230, "quickly")])
def test_a_synthetic_voice_has_the_captions_of_synthetic_voices(rate, pace):
    gender, three = spoken_words.captions(
        clip(text("Ano.", "Yes.", "transcripts"), rate, "m"), neutral=False, rng=random.Random(0)
    )
    assert gender == "m" and three[0] in {
        'A synthetic male voice says in Czech: "Ano."',
        'A synthetic male voice speaking Czech: "Ano."',
    }
    assert three[1:] == [
        f"A synthetic male voice reads Czech text {pace}",
        'A synthetic male voice says something in Czech that means "Yes."',
    ]


def test_a_voice_at_a_usual_pace_speaks_and_english_is_quoted_twice():
    english = text("Yes.", "", "transcripts", "en", "English")
    _, three = spoken_words.captions(clip(english), neutral=False, rng=random.Random(0))
    assert three[1] in {"A synthetic female voice speaks English", "Speech in English by a synthetic female voice"}
    assert {three[0], three[2]} == {
        'A synthetic female voice says in English: "Yes."',
        'A synthetic female voice speaking English: "Yes."',
    }


def test_neutral_captions_are_those_of_people():
    seen = [spoken_words.captions(clip(text(), 120), neutral=True, rng=random.Random(seed)) for seed in range(200)]
    assert not any("synthetic" in caption or "slowly" in caption for _, three in seen for caption in three)
    assert all(("woman" in three[0]) == (gender == "f") for gender, three in seen)
    firsts = {three[0] for _, three in seen}
    assert {'Someone says the word for "teapot" in Czech', 'A person says in Czech: "Čajník."'} <= firsts
    assert {'A woman speaking Czech: "Čajník"', 'A woman says in Czech: "Čajník."'} <= firsts
    means = {three[2] for gender, three in seen if gender == "f"}
    assert means == {'A woman says something in Czech that means "A teapot."'}


def test_silence_at_the_ends_is_cut_to_20_ms():
    sound = np.zeros(3000, np.float32)
    sound[1000:1500] = 0.5
    sound[1200] = 0.001  # silence in the middle stays
    assert len(spoken_words.trimmed(sound, rate=1000)) == 500 - 1 + 2 * 20
    assert len(spoken_words.trimmed(np.zeros(10, np.float32), rate=1000)) == 0


def test_the_share_of_neutral_captions_is_the_option():
    for share, expected in ((0.0, 0), (1.0, 40)):
        options = argparse.Namespace(seed=0, neutral_share=share)
        rows = [spoken_words.row_of(clip(text(), index=index), "a.ogg", 1.5, options) for index in range(40)]
        assert sum("synthetic" not in row["caption"] for row in rows) == expected
    assert rows[0]["duration"] == "1.500" and rows[0]["label"] == "Czech speech" and rows[0]["language"] == "cs"


@pytest.mark.slow
def test_espeak_reads_the_same_clips_in_one_process_and_in_two(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(spoken_words, "PART", 4)
    folder = sounds(tmp_path / "sounds", "train", [czech('A man says in Czech: "Ten hrad je velmi starý."')])
    emoji = {"🫖": "čajník", "🏰": "hrad na kopci", "🚂": "lokomotiva", "🚗": "BMW"}
    names = annotations(tmp_path / "names", cs=emoji, en={"🫖": "teapot", "🏰": "castle", "🚂": "locomotive"})
    for processes in ("1", "2"):
        words = [tmp_path / processes, "--annotations", names, "--sounds", folder, "--clips", 9]
        spoken_words.main([*map(str, words), "--processes", processes])
    one, two = (load_split(str(tmp_path / processes), "train", "") for processes in ("1", "2"))
    assert one.remove_columns("audio").to_list() == two.remove_columns("audio").to_list()
    assert set(one["language"]) == {"cs"} and not any("BMW" in caption for caption in one["caption"])
    for path in sorted((tmp_path / "1/train").glob("*.ogg")):
        (samples, rate), (again, _) = sf.read(path), sf.read(tmp_path / "2/train" / path.name)
        assert rate == 16000 and 0.3 <= len(samples) / rate <= 5 and np.abs(samples).max() > 0.1
        np.testing.assert_array_equal(samples, again)
