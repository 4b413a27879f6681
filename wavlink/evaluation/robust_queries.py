"""Changes of queries as people write them, by rules: keywords, paraphrases, typing errors, exclusions, languages.

The rules know words, not grammar: what they write is understood, and is not always what a person would write.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ASKED = (
    "I am looking for this sound: {}",
    "find me a recording of the following: {}",
    "do you have something like this? {}",
    "what I need: {}",
)
EXCLUDED = ("{} without {}", "{}, no {}")
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "ru": "Russian", "zh": "Chinese"}

_NAMES = Path(__file__).with_name("sound_names.csv")  # of common sounds, in English and in `LANGUAGES`
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»")
_PLACE = re.compile(r" (?=(?:with|by|on|in|for|from|through|near|at|during|while|when) )")
_STOP_WORDS = frozenset(
    """a an and are as at be being by can do does for from has have he her his i in into is it its of on one or
    she some somebody someone something sound sounds that the their them there these they this those through to up was
    were when where which while who with""".split()
)
_SYNONYMS = dict(
    pair.strip().split("=")
    for line in """
    man=guy, woman=lady, person=human, child=kid, someone=somebody, says=utters, speaks=talks, speaking=talking
    speech=talk, spoken=uttered, pronounces=utters, reads=recites, word=term, utterance=remark, short=brief
    long=lengthy, music=tune, song=melody, note=tone, tone=note, plays=performs, played=performed, calm=quiet
    cheerful=merry, playful=lighthearted, upbeat=lively, slow=unhurried, fast=quick, slowly=unhurriedly, loud=noisy
    quiet=soft, soft=gentle, softly=gently, big=large, large=big, small=little, deep=low, explosion=blast, bang=boom
    gun=firearm, gunshot=shot, strikes=hits, hits=strikes, struck=hit, falls=drops, walks=strides, engine=motor
    car=automobile, bell=chime, rings=chimes, dog=hound, barks=woofs, cat=kitty, splash=splatter, wind=breeze
    thunder=thunderclap, rain=rainfall, laughs=chuckles, laugh=chuckle, laughter=chuckling, screams=shrieks
    scream=shriek, cries=wails, grunts=groans, grunt=groan, growl=snarl, growls=snarls, creature=beast, monster=beast
    food=meal, high-pitched=shrill, telephone=phone, phone=telephone, machine=device, buzz=hum, buzzes=hums
    click=tick, clicks=ticks, door=gate, closes=shuts, knock=rap, knocks=raps, footsteps=footfalls, crowd=throng
    applause=clapping, baby=infant, synthesizer=synth, noise=racket, repeatedly=again and again
    """.strip().splitlines()
    for pair in line.split(",")
)
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # each row begins half a key further to the right
_NEIGHBOURS = {
    letter: "".join(
        keys[at]
        for row, keys in enumerate(_KEYS)
        for at in {0: (column - 1, column + 1), 1: (column - 1, column), -1: (column, column + 1)}.get(row - own, ())
        if 0 <= at < len(keys)
    )
    for own, letters in enumerate(_KEYS)
    for column, letter in enumerate(letters)
}
_LEAST = 4  # letters of a word that is mistyped


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without its quotations: what is heard, not what is said in it."""
    return [word.lower() for word in _WORD.findall(_QUOTED.sub(" ", text))]


def keywords(text: str, count: int, frequency: Mapping[str, int]) -> str:
    """Return the rarest words of a text, in its order; the text itself if it has fewer than `count`.

    Args:
        frequency: how many texts hold each word. Words of grammar do not count.
    """
    words = list(dict.fromkeys(word for word in words_of(text) if word not in _STOP_WORDS))
    if len(words) < count:
        return text
    kept = sorted(words, key=lambda word: frequency[word])[:count]
    return " ".join(word for word in words if word in kept)


def with_synonyms(text: str) -> str:
    """Replace each word that has a synonym in a small table; quotations stay."""
    quoted = [(found.start(), found.end()) for found in _QUOTED.finditer(text)]

    def synonym(found: re.Match) -> str:
        word = found[0]
        if any(start <= found.start() < end for start, end in quoted) or word.lower() not in _SYNONYMS:
            return word
        other = _SYNONYMS[word.lower()]
        return other.capitalize() if word[0].isupper() else other

    return _WORD.sub(synonym, text)


def reordered(text: str) -> str:
    """Put what follows the first preposition, such as "in" or "with", before the rest; quotations stay."""
    place = _PLACE.search(_QUOTED.sub(lambda found: "_" * len(found[0]), text))
    if place is None:
        return text
    head, rest = text[: place.start()], text[place.end() :].rstrip(" .")
    first = head.split()[0] if head.split() else ""
    head = head[:1].lower() + head[1:] if first.lower() in _STOP_WORDS else head
    return f"{rest[:1].upper()}{rest[1:]}, {head}"


def asked(text: str, generator: np.random.Generator) -> str:
    """Put a text into one of the sentences of `ASKED`."""
    return ASKED[generator.integers(len(ASKED))].format(text)


def mistyped(text: str, generator: np.random.Generator, most: int | None = None) -> str:
    """Make a typing error in each word of four letters or more, or in `most` of them.

    An error is two letters swapped, a letter doubled or left out, or a neighbouring key of a keyboard. The first
    letter is right.
    """
    places = [found.span() for found in _WORD.finditer(text) if len(found[0]) >= _LEAST]
    if most is not None:
        places = [places[index] for index in generator.permutation(len(places))[:most]]
    for start, end in sorted(places, reverse=True):
        text = text[:start] + _slip(text[start:end], generator) + text[end:]
    return text


def _slip(word: str, generator: np.random.Generator) -> str:
    kind, at = generator.integers(4), int(generator.integers(1, len(word) - 1))
    before, letter, after = word[:at], word[at], word[at + 1 :]
    keys = _NEIGHBOURS.get(letter.lower(), "")
    if kind == 0 and after[0] != letter:
        return f"{before}{after[0]}{letter}{after[1:]}"
    if kind == 1 and keys:
        return f"{before}{keys[generator.integers(len(keys))]}{after}"
    return f"{before}{letter}{letter}{after}" if kind == 2 else f"{before}{after}"


def changed_queries(texts: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Return the texts in each changed form, by its name; a text that a rule cannot change stays as it is.

    What is random depends on the seed and the text's position.
    """
    frequency = Counter(word for text in texts for word in set(words_of(text)))
    draws = [np.random.default_rng((seed, row)).spawn(3) for row in range(len(texts))]
    names = {1: "1 keyword", 2: "2 keywords", 3: "3 keywords"}
    forms = {name: [keywords(text, count, frequency) for text in texts] for count, name in names.items()}
    return forms | {
        "in a request": [asked(text, draw[0]) for text, draw in zip(texts, draws, strict=True)],
        "synonyms": [with_synonyms(text) for text in texts],
        "other word order": [reordered(text) for text in texts],
        "one typing error": [mistyped(text, draw[1], most=1) for text, draw in zip(texts, draws, strict=True)],
        "errors in all words": [mistyped(text, draw[2]) for text, draw in zip(texts, draws, strict=True)],
    }


def translated_names() -> dict[str, dict[str, str]]:
    """Read the names of common sounds: by their English name, those in `LANGUAGES`."""
    with _NAMES.open(encoding="utf-8", newline="") as file:
        return {row.pop("name"): row for row in csv.DictReader(file)}
