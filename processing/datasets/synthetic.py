"""Synthetic captioned sounds: the data set of the package, for demos, tests and a first training.

A kind of sound is one `@sound`, `@music` or `@speech` line, "label | caption | caption | caption" and the constants of
that kind, above the function that synthesises it. The function draws its parameters from named ranges, and the names
are inserted in the captions, so that sound and caption always agree.
"""

import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import datasets
import numpy as np
import soundfile

from .synthesis import NUMBERS, SAMPLING_RATE, Draw, blow, clock, lay, noise, plucked, struck, tone

SPLITS = ("train", "validation", "test")
KEYPAD_ROWS, KEYPAD_COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)  # Hz (ITU-T Q.23)
MORSE = {"SOS": "... --- ...", "OK": "--- -.-", "CQ": "-.-. --.-", "HELP": ".... . .-.. .--."}
BELL, BAR, PLATE = (0.5, 1, 1.2, 1.5, 2, 2.67, 4), (1, 4), (1, 1.35, 1.73, 2.1, 2.7, 3.3)  # partials
# Blows: pitch of the body (Hz), decay time (s), share of noise and its centre (Hz)
KICK, SNARE, CLAP = (52, 0.1, 0.1, 1200), (190, 0.06, 0.7, 3500), (900, 0.015, 1, 1400)
KNOCK, STEP, BALL = (210, 0.025, 0.3, 700), (85, 0.035, 0.7, 900), (240, 0.025, 0.2, 1000)
TICK, KEY, HEART = (2600, 0.004, 0.5, 4500), (350, 0.02, 0.8, 3800), (42, 0.05, 0.1, 90)


class Kind(NamedTuple):
    """A kind of sound."""

    group: str  # "sound", "music" or "speech"
    captions: list[str]  # three templates; the first names every attribute
    synthesise: Callable[[Draw], np.ndarray]


KINDS: dict[str, Kind] = {}  # by label


def entry(group: str, text: str, *constants: Any) -> Callable:
    """Return a decorator that adds a kind of sound.

    Args:
        group: `"sound"`, `"music"` or `"speech"`.
        text: label and three captions, separated by ` | `.
        constants: arguments of the decorated function after its `Draw`.
    """
    label, *captions = text.split(" | ")

    def enter(function: Callable) -> Callable:
        KINDS[label] = Kind(group, captions, lambda draw: function(draw, *constants))
        return function

    return enter


sound, music, speech = (partial(entry, group) for group in ("sound", "music", "speech"))


# Sweeps and signals


@sound("rising chirp | A {loud} tone rises {speed} | A whistle glides up {speed} | A sweep from low to high", 1)
@sound("falling chirp | A {loud} tone falls {speed} | A whistle glides down {speed} | A sweep from high to low", -1)
def chirp(draw: Draw, step: int) -> np.ndarray:
    """Synthesise a rising (`step` 1) or falling (-1) chirp."""
    t = clock(draw.word("speed", quickly=(0.5, 0.8), slowly=(1.8, 2.8)))
    path = draw.between(150, 400) * draw.between(6, 12) ** (t / t[-1])  # [samples], Hz
    return tone(draw, t, path[::step])


@sound("police siren | A {loud} {speed} police siren | A {speed} siren wails up and down | A police car", 1, 0.4)
@sound("ambulance | A {loud} {speed} ambulance siren | A {speed} siren of two notes | Nee-naw, nee-naw", 50, 0.14)
def siren(draw: Draw, steepness: float, depth: float) -> np.ndarray:
    """Synthesise a siren that swings around a pitch."""
    t = clock(draw.between(2, 3))
    rate = draw.word("speed", slow=(0.45, 0.6), fast=(2.2, 3.5))  # Hz
    swing = np.clip(steepness * np.sin(2 * np.pi * (rate * t + draw.rng.random())), -1, 1)
    return tone(draw, t, draw.between(600, 800) * (1 + depth * swing), (1, 0.5, 0.3, 0.2))


@sound("telephone keypad | The digit {digit} dialled {number} times, {loud} | Someone dials {digit} | Touch tones")
def telephone_keypad(draw: Draw) -> np.ndarray:
    """Synthesise presses of a telephone key."""
    digit = int(draw.rng.integers(10))
    draw.words["digit"] = NUMBERS[digit]
    row, column = divmod(digit - 1, 3) if digit else (3, 1)
    t, gap, number = clock(draw.between(0.16, 0.26)), draw.between(0.08, 0.15), draw.count(2, 4)
    press = tone(draw, t, KEYPAD_ROWS[row]) + tone(draw, t, KEYPAD_COLUMNS[column])
    return lay((t[-1] + gap) * np.arange(number), [press] * number)


@sound("morse code | {loud} {speed} Morse code: {message} | Dots and dashes, {speed} | A telegraph sends {message}")
def morse_code(draw: Draw) -> np.ndarray:
    """Synthesise a message in Morse code."""
    message = draw.words["message"] = str(draw.rng.choice(list(MORSE)))
    keys = MORSE[message].replace(".", "10").replace("-", "1110").replace(" ", "00")
    dot = draw.word("speed", fast=(0.04, 0.05), slow=(0.08, 0.095))  # seconds
    down = np.repeat([key == "1" for key in keys], round(dot * SAMPLING_RATE))
    return down * tone(draw, np.arange(down.size), draw.between(550, 850))


# Pitches (Hz; North American call progress tones), seconds on, off, on, ... (fire alarm: ISO 8201), overtones
@sound("dial tone | A {loud} dial tone | A phone off the hook hums | The line is free to dial", (350, 440))
@sound("busy tone | A {loud} busy tone | The phone line is engaged | Slow phone beeps: busy", (480, 620), (0.5, 0.5))
@sound("ringing tone | A {loud} ringing tone | Waiting for an answer | A phone call rings out", (440, 480), (2, 4))
@sound("fire alarm | A {loud} fire alarm | A smoke detector shrieks | Piercing beeps", (3100,), (0.5,) * 5 + (1.5,))
@sound("alarm clock | A {loud} alarm clock | Quick beeps in fours | Time to wake up", (2048,), (0.06,) * 7 + (0.46,))
@sound("cricket | A {loud} cricket | An insect chirps | Night in a meadow", (4600,), (0.02, 0.015) * 3 + (0, 0.35))
@sound("car horn | A {loud} car horn | A driver honks and honks | A vehicle hoots", (405, 505), (0.35, 0.2), 0.85)
def signal(draw: Draw, pitches: Sequence[float], cadence: Sequence[float] = (1,), overtones: float = 0) -> np.ndarray:
    """Synthesise pitches (Hz) that are on and off in turn (`cadence`, s)."""
    t = clock(draw.between(2, 3))
    edges = np.cumsum(cadence) * draw.between(0.95, 1.05)
    on = np.searchsorted(edges, t % edges[-1], side="right") % 2 == 0
    amplitudes = overtones ** np.arange(12.0)
    return on * sum(tone(draw, t, hertz * draw.between(0.995, 1.005), amplitudes) for hertz in pitches)


# Noise


@sound("white noise | {length} {loud} white noise | A {length} burst of static | An untuned radio", 0)
@sound("pink noise | {length} {loud} pink noise | {length} warm static | Noise with equal power in every octave", -1)
@sound("brown noise | {length} {loud} brown noise | {length} low rumbling noise | A deep steady roar", -2)
@sound("blue noise | {length} {loud} blue noise | A {length} thin hiss | Noise with more treble than bass", 1)
def coloured_noise(draw: Draw, slope: float) -> np.ndarray:
    """Synthesise noise with power in proportion to frequency ** slope."""
    return noise(draw, clock(draw.word("length", short=(0.5, 0.9), long=(1.8, 2.8))).size, slope=slope)


# Grains a second and their decay time (s), noise from and to (Hz), and how much of it goes on between the grains
@sound("rain | {loud} {amount} rain | A {amount} shower | {amount} drops fall", 60, 0.003, 2000, 7000, 0.3)
@sound("fire | A {loud} fire, {amount} crackling | A campfire burns | {amount} crackling", 8, 0.004, 300, 6000, 0.1)
@sound("geiger counter | {loud} {amount} Geiger counter clicks | A dosimeter | Dry clicks", 6, 0.001, 2500, 5000, 0)
@sound("applause | {loud} {amount} applause | An audience claps | {amount} clapping", 20, 0.01, 700, 2200, 0)
def shower(draw: Draw, rate: float, life: float, low: float, high: float, bed: float) -> np.ndarray:
    """Synthesise grains of noise at random times."""
    t = clock(draw.between(1.4, 2.4))
    rate = draw.word("amount", light=(0.8 * rate, 1.2 * rate), heavy=(5 * rate, 8 * rate))
    grains = np.zeros(t.size)
    positions = draw.rng.integers(t.size, size=round(rate * t[-1]))
    grains[positions] = draw.rng.uniform(0.3, 1, size=positions.size)
    level = np.fft.irfft(np.fft.rfft(grains) * np.fft.rfft(np.exp(-t / life)), t.size)
    return noise(draw, t.size, low, high) * (level + bed * level.mean())


# Noise from and to (Hz) and its slope, swells a second and their sharpness
@sound("wind | A {loud} wind in {speed} gusts | {speed} gusts of wind howl | A storm moans", 250, 600, 0, 0.6, 1)
@sound("ocean waves | {loud} {speed} ocean waves | The {speed} surf rolls in | On a beach", 80, 5000, -1, 0.35, 3)
@sound("steam train | A {loud} {speed} steam train | A {speed} locomotive puffs | Chuffing", 500, 4000, 0, 2.2, 3)
@sound("helicopter | A {loud} {speed} helicopter rotor | {speed} rotor blades | A chopper hovers", 50, 900, -1, 8, 2)
def surging(draw: Draw, low: float, high: float, slope: float, rate: float, sharpness: float) -> np.ndarray:
    """Synthesise noise that swells and fades."""
    t = clock(draw.between(2, 3))
    turns = draw.word("speed", slow=(0.8 * rate, rate), fast=(1.9 * rate, 2.4 * rate)) * t + draw.rng.random()
    shift = draw.between(0.85, 1.18)
    swell = 0.04 + (0.5 + 0.5 * np.sin(2 * np.pi * turns)) ** sharpness
    return swell * noise(draw, t.size, low * shift, high * shift, slope)


@music("bass drum | {number} {loud} {speed} bass drum beats | {number} kick drum hits | A {speed} drum", 0.4, KICK)
@music("snare drum | {number} {loud} {speed} snare drum hits | {number} rattling hits | A {speed} snare", 0.35, SNARE)
@sound("hand claps | {number} {loud} {speed} hand claps | Someone claps {number} times | {speed} clapping", 0.4, CLAP)
@sound("door knock | {number} {loud} {speed} door knocks | {number} knocks on wood | A visitor knocks", 0.35, KNOCK)
@sound("footsteps | {number} {loud} {speed} footsteps | Someone takes {number} {speed} steps | Walking", 0.5, STEP)
@sound("clock ticking | {number} {loud} {speed} clock ticks | A {speed} tick-tock | A clock ticks", 0.5, TICK)
@sound("typewriter | {number} {loud} {speed} typewriter strokes | {speed} typing | {number} keys struck", 0.25, KEY)
@sound("heartbeat | {number} {loud} {speed} heartbeats | A {speed} pulse | A heart beats", 0.5, HEART, (0, 0.32))
def repeated(draw: Draw, gap: float, body: Sequence[float], beats: Sequence[float] = (0,)) -> np.ndarray:
    """Synthesise blows at a slow or fast multiple of `gap` (s), each made of beats at fractions of that time."""
    number = draw.count(2, 5)
    gap = draw.word("speed", slow=(1.25 * gap, 1.5 * gap), fast=(0.5 * gap, 0.62 * gap))
    starts = gap * np.add.outer(range(number) + draw.rng.uniform(0, 0.06, number), beats).ravel()
    return lay(starts, [draw.between(0.7, 1) * blow(draw, *body) for _ in starts])


@sound("bouncing ball | A {loud} ball bounces {speed} to rest | A ball is dropped | {speed} dwindling bounces")
def bouncing_ball(draw: Draw) -> np.ndarray:
    """Synthesise the bounces of a ball."""
    first = draw.word("speed", quickly=(0.25, 0.32), slowly=(0.55, 0.7))  # seconds to the second bounce
    heights = draw.between(0.68, 0.76) ** np.arange(9)
    bounces = [height * blow(draw, *BALL) for height in heights]
    return lay(first * (np.cumsum(heights) - heights), bounces)


# Notes, voices and pairs of events


# Partials, lowest pitch (Hz), decay time (s), echoes
@music("church bell | A {loud} {pitch} church bell | A {pitch} bell tolls | A tower bell", BELL, 200, 1.1)
@music("xylophone | A {loud} {pitch} xylophone note | A {pitch} wooden bar is hit | A mallet on wood", BAR, 330, 0.25)
@music("gong | A {loud} {pitch} gong | A {pitch} metal disc is struck | A temple gong", PLATE, 85, 1.5)
@sound("sonar ping | A {loud} {pitch} sonar ping | A {pitch} echoed ping | A submarine", (1,), 700, 0.2, (1, 0.4, 0.1))
def rung(draw: Draw, ratios: Sequence[float], base: float, life: float, echoes: Sequence[float] = (1,)) -> np.ndarray:
    """Synthesise a struck body with echoes."""
    hertz = draw.word("pitch", low=(base, 1.3 * base), high=(2.2 * base, 2.8 * base))
    strike = struck(draw, min(6 * life, 2.6), hertz, ratios, life * draw.between(0.8, 1.1))
    return lay(draw.between(0.3, 0.5) * np.arange(len(echoes)), [level * strike for level in echoes])


@music("plucked string | A {loud} {pitch} string is plucked | A {pitch} guitar note | A {pitch} harp note")
def plucked_string(draw: Draw) -> np.ndarray:
    """Synthesise a plucked string."""
    return plucked(draw, draw.between(1.2, 2.2), draw.word("pitch", low=(90, 160), high=(350, 600)))


@music("rising scale | A {loud} {speed} rising scale | Notes climb, {speed} | Up the scale, note by note", 1)
@music("falling scale | A {loud} {speed} falling scale | Notes descend, {speed} | Down the scale, note by note", -1)
def scale(draw: Draw, step: int) -> np.ndarray:
    """Synthesise a rising (`step` 1) or falling (-1) scale."""
    gap = draw.word("speed", slow=(0.3, 0.38), fast=(0.12, 0.16))  # seconds
    notes = draw.between(250, 500) * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12])[::step] / 12)  # Hz
    return lay(gap * np.arange(8), [struck(draw, 0.5, hertz, BAR, 0.15) for hertz in notes])


# Lowest pitch (Hz), overtones, semitones of the notes, share of breath, depth of vibrato
@sound("steady tone | A {loud} {pitch} steady tone | A {pitch} beep | One {pitch} tone held for a while", 220, 0)
@sound("warbling tone | A {loud} {pitch} warbling tone | A {pitch} wobble | A trembling tone", 500, 0, (0,), 0, 0.12)
@sound("car engine | A {loud} engine, {pitch} revs | A car runs at {pitch} revs | A motor", 28, 0.95, (0,), 0.3, 0.03)
@music("flute | A {loud} {pitch} flute note | A {pitch} note on a flute | A flutist", 300, 0.25, (0,), 0.08, 0.006)
@music("trumpet | A {loud} {pitch} trumpet note | A {pitch} brass note | A fanfare", 240, 0.8, (0,), 0.01, 0.004)
@music("major chord | A {loud} {pitch} major chord | A bright {pitch} chord | Happy harmony", 110, 0.6, (0, 4, 7))
@music("minor chord | A {loud} {pitch} minor chord | A dark {pitch} chord | Sad harmony", 110, 0.6, (0, 3, 7))
@music("diminished chord | A {loud} {pitch} diminished chord | A tense {pitch} chord | Suspense", 110, 0.6, (0, 3, 6))
def sustained(
    draw: Draw, base: float, overtones: float, semitones: Sequence[int] = (0,), breath: float = 0, vibrato: float = 0
) -> np.ndarray:
    """Synthesise sustained notes."""
    t = clock(draw.between(1, 2.2))
    pitch = draw.word("pitch", low=(base, 1.3 * base), high=(2.6 * base, 3.4 * base))
    path = pitch * (1 + vibrato * np.sin(2 * np.pi * draw.between(4.5, 6.5) * t))  # [samples], Hz
    amplitudes = overtones ** np.arange(40.0) * draw.rng.uniform(0.6, 1, 40)
    notes = sum(tone(draw, t, path * 2 ** (step / 12), amplitudes) for step in semitones)
    level = np.interp(t, [0, 0.06, t[-1] - 0.1, t[-1]], [0, 1, 1, 0])
    return level * (notes + breath * noise(draw, t.size, 300, 6000))


@speech("vowel ah | A {loud} {pitch} voice says ah | Ah, says a {pitch} voice | An open vowel", 730, 1090, 2440)
@speech("vowel ee | A {loud} {pitch} voice says ee | Ee, says a {pitch} voice | A bright vowel", 270, 2290, 3010)
@speech("vowel oo | A {loud} {pitch} voice says oo | Oo, says a {pitch} voice | A dark vowel", 300, 870, 2240)
def vowel(draw: Draw, *formants: float) -> np.ndarray:
    """Synthesise a vowel with formants (Hz)."""
    t = clock(draw.between(0.6, 1.6))
    pitch = draw.word("pitch", low=(90, 130), high=(190, 260))
    harmonics = np.arange(1, 36)
    formants = np.multiply(formants, draw.between(0.95, 1.15))  # Hz, men's to women's (Peterson and Barney, 1952)
    resonances = 1 / (1 + (np.subtract.outer(pitch * harmonics, formants) / 70) ** 2)  # [harmonics, formants]
    path = pitch * (1 + 0.015 * np.sin(2 * np.pi * 5 * t) - 0.08 * t)  # no voice keeps its pitch exactly
    return tone(draw, t, path, resonances @ (1, 0.6, 0.2) / harmonics) * np.hanning(t.size) ** 0.25


@sound("bell then drum | A {loud} bell, a {pause} pause, a drum | A bell, then a drum | A drum after a bell", 0, 1)
@sound("drum then bell | A {loud} drum, a {pause} pause, a bell | A drum, then a bell | A bell after a drum", 1, 0)
@sound("low then high beep | A {loud} low beep, a {pause} pause, a high beep | Beeps step up | Low, then high", 2, 3)
@sound("high then low beep | A {loud} high beep, a {pause} pause, a low beep | Beeps step down | High, then low", 3, 2)
def in_order(draw: Draw, first: int, second: int) -> np.ndarray:
    """Synthesise two events, one after the other."""
    t = clock(draw.between(0.25, 0.4))
    bell = struck(draw, 1, draw.between(600, 900), BELL, 0.3)
    low, high = tone(draw, t, draw.between(300, 420)), tone(draw, t, draw.between(900, 1300))
    events = [wave / np.abs(wave).max() for wave in (bell, blow(draw, *KICK), low, high)]
    return lay([0, 0.4 + draw.word("pause", short=(0.08, 0.15), long=(0.6, 0.9))], [events[first], events[second]])


# The data set


def render(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Synthesise a clip of a kind: a waveform float32 `[samples]` in [-1, 1], 0.5 to 4 s, and three captions.

    Raises:
        ValueError: there is no such kind.

    >>> waveform, captions = render("church bell", np.random.default_rng(0))
    """
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1, cutoff=0)[0]
        raise ValueError(f"No kind of sound is called {kind!r}; the nearest is {near!r}.")
    draw = Draw(rng)
    wave = KINDS[kind].synthesise(draw)
    fade = np.minimum(1, np.arange(wave.size) / (0.002 * SAMPLING_RATE))
    wave *= fade * fade[::-1] * draw.word("loud", quiet=(0.03, 0.08), loud=(0.45, 0.9)) / np.abs(wave).max()
    before, after = (rng.uniform(0.02, 0.2, size=2) * SAMPLING_RATE).astype(int)
    wave = np.pad(wave, (before, max(after, SAMPLING_RATE // 2 - wave.size)))
    wave += draw.between(1e-5, 1e-3) * rng.normal(size=wave.size)  # recordings always have some noise
    captions = [template.format(**draw.words) for template in KINDS[kind].captions]
    return wave.astype(np.float32), [caption[0].upper() + caption[1:] for caption in captions]


def clip(kind: str, split: str, index: int, seed: int) -> dict[str, Any]:
    """Return a row of the data set, which depends on these arguments only."""
    key = [seed, SPLITS.index(split), zlib.crc32(kind.encode()), index]
    wave, captions = render(kind, np.random.default_rng(np.random.SeedSequence(key)))
    flac = io.BytesIO()
    soundfile.write(flac, wave, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return {
        "audio": {"bytes": flac.getvalue(), "path": f"{split}_{kind.replace(' ', '_')}_{index:04d}.flac"},
        "duration": wave.size / SAMPLING_RATE,
        "group": KINDS[kind].group,
        "label": kind,
        **dict(zip(("caption", "caption_2", "caption_3"), captions, strict=True)),
    }


def synthetic_dataset(
    split: str, clips_per_kind: int = 60, seed: int = 0, kinds: Iterable[str] | None = None
) -> datasets.Dataset:
    """Make a data set of `clips_per_kind` clips of each of `kinds` (default: all), kind by kind.

    No two splits share a clip. `audio` holds undecoded 16-bit FLAC bytes, `duration` is in seconds.

    Raises:
        ValueError: an unknown split, or no clips.

    >>> synthetic_dataset("test", clips_per_kind=1)[0]["caption"]
    'A quiet tone falls slowly'
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
    if clips_per_kind < 1:
        raise ValueError(f"clips_per_kind must be at least 1, not {clips_per_kind}.")
    rows = [
        clip(kind, split, index, seed)
        for kind in dict.fromkeys(KINDS if kinds is None else kinds)
        for index in range(clips_per_kind)
    ]
    audio = datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False)
    # Cast afterwards: building the table with this feature would need torchcodec, even for encoded bytes.
    return datasets.Dataset.from_list(rows).cast_column("audio", audio)
