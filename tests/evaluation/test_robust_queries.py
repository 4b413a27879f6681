"""Each rule changes queries as its name says."""

from collections import Counter

import numpy as np
import pytest

from wavlink.evaluation.robust_queries import (
    ASKED,
    LANGUAGES,
    asked,
    changed_queries,
    keywords,
    mistyped,
    reordered,
    translated_names,
    with_synonyms,
    words_of,
)

TEXTS = [
    'A man says in Dutch: "een grote hond"',
    "Someone plays a slow song on a violin",
    "A violin and a piano",
    "Дверь громко скрипит",
    "Rain",
]


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def distance(first: str, second: str) -> int:
    """The least number of letters inserted, left out, replaced, or swapped with the next one."""
    rows = [list(range(len(second) + 1))]
    for i, a in enumerate(first, 1):
        rows.append([i])
        for j, b in enumerate(second, 1):
            best = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a != b))
            if i > 1 and j > 1 and (a, first[i - 2]) == (second[j - 2], b):
                best = min(best, rows[i - 2][j - 2] + 1)
            rows[i].append(best)
    return rows[-1][-1]


def test_words_are_without_what_is_said():
    assert words_of(TEXTS[0]) == ["a", "man", "says", "in", "dutch"]
    assert words_of("A man’s high-pitched voice: “no”") == ["a", "man’s", "high-pitched", "voice"]


def test_keywords_are_the_rarest_words_in_their_order():
    frequency = Counter(violin=2, plays=1, slow=3, song=1)
    assert keywords(TEXTS[1], 1, frequency) == "plays"
    assert keywords(TEXTS[1], 2, frequency) == "plays song"
    assert keywords(TEXTS[1], 3, frequency) == "plays song violin"
    assert keywords(TEXTS[1], 5, frequency) == TEXTS[1]  # it has four


def test_keywords_are_no_words_of_grammar():
    assert keywords("The sound of something in there", 1, Counter()) == "The sound of something in there"


def test_synonyms_replace_words_and_no_quotations():
    assert with_synonyms('A man speaks: "a man"') == 'A guy speaks: "a man"'.replace("speaks", "talks")
    assert with_synonyms("Explosion of a carpet") == "Blast of a carpet"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat meows in the rain.", "In the rain, a cat meows"),
        ("Bach played on a harp with care", "On a harp with care, Bach played"),
        ('Someone says "stay with me" in English', 'In English, someone says "stay with me"'),
        ('Someone says "stay with me"', 'Someone says "stay with me"'),
        ("Rain", "Rain"),
    ],
)
def test_what_follows_a_preposition_comes_first(text, expected):
    assert reordered(text) == expected


def test_a_request_holds_the_text():
    requests = {asked("Rain", draws(seed)) for seed in range(40)}
    assert requests == {form.format("Rain") for form in ASKED}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(10))
def test_one_typing_error_is_one_edit_of_one_word(text, seed):
    wrong = mistyped(text, draws(seed), most=1)
    assert distance(text, wrong) == 1


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(5))
def test_errors_in_all_words_are_one_in_each_of_four_letters_or_more(text, seed):
    for before, after in zip(text.split(), mistyped(text, draws(seed)).split(), strict=True):
        letters = sum(map(str.isalpha, before))
        assert distance(before, after) == (letters >= 4) and before[0] == after[0]


def test_wrong_keys_are_neighbours():
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    place = {letter: (x + y / 2, y) for y, row in enumerate(rows) for x, letter in enumerate(row)}
    replaced = set()
    for word in ("aqwertyuiopa", "aasdfghjkla", "azxcvbnma"):
        for seed in range(500):
            wrong = mistyped(word, draws(seed))
            differing = [(a, b) for a, b in zip(word, wrong, strict=False) if a != b]
            if len(wrong) == len(word) and len(differing) == 1:
                replaced |= {*differing}
    assert len(replaced) > 60
    assert all(np.hypot(*np.subtract(place[a], place[b])) < 1.2 for a, b in replaced)


def test_forms_depend_on_seed_and_position_alone():
    forms = changed_queries(TEXTS, 0)
    assert list(forms) == [
        "1 keyword",
        "2 keywords",
        "3 keywords",
        "in a request",
        "synonyms",
        "other word order",
        "one typing error",
        "errors in all words",
    ]
    assert changed_queries(TEXTS, 0) == forms
    other = changed_queries(TEXTS, 1)
    assert {name for name in forms if other[name] != forms[name]} <= {*list(forms)[3:4], *list(forms)[6:]}
    assert other["errors in all words"] != forms["errors in all words"]
    longer = changed_queries([*TEXTS, "A dog"], 0)
    assert longer["errors in all words"][:-1] == forms["errors in all words"]


def test_every_name_has_a_translation_into_every_language_in_its_script():
    table = translated_names()
    assert len(table) >= 60 and "dog bark" in table
    for name, words in table.items():
        assert name == name.lower() and set(words) == set(LANGUAGES) and all(words.values())
        assert any("а" <= letter <= "я" for letter in words["ru"]) and any(letter >= "一" for letter in words["zh"])
    for language in LANGUAGES:
        assert len({words[language] for words in table.values()}) == len(table)
