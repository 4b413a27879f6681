"""A planted sound is found where it is, in recordings of any length, by the call and by the command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from processing.audio import load_audio
from tests.conftest import RATE, tone
from tests.helpers import is_picture
from tests.processes import run_process
from tests.sound_bytes import encoded
from wavlink import localization, plots, span_search
from wavlink.common_sounds import COMMON_SOUNDS
from wavlink.embedder import Embedder
from wavlink.long_recordings import (
    Recording,
    Span,
    clock,
    encode_recording,
    envelope,
    locate,
    noise_score,
    timeline,
    windows_for,
)
from wavlink.options import models as of
from wavlink.parsing import parser_of
from wavlink.sanitize import counted, printable

ROOT = Path(__file__).parents[2]


class Bands:
    """Stands in for an `Embedder`: a vector is the square root of a clip's power in each of 8 bands of 1 kHz."""

    sampling_rate, max_seconds, dims, matryoshka_dims = RATE, 30.0, 8, [8, 4]
    name, revision = "bands", "0" * 16

    def embed_clips(self, clips, lookahead=256):
        for clip in clips:
            power = np.abs(np.fft.rfft(clip)) ** 2
            bands = np.sqrt([part.sum() for part in np.array_split(power, self.dims)]).astype(np.float32)
            yield bands / np.linalg.norm(bands)

    def embed_text(self, texts):
        """`siren` is 2.5 kHz, `bell` is 6.5 kHz, any other text 4.5 kHz."""
        return np.stack([self.vector({"siren": 2500, "bell": 6500}.get(text, 4500)) for text in texts])

    def vector(self, hertz: float) -> np.ndarray:
        return next(self.embed_clips([tone(hertz)]))


def with_tones(seconds: float, *planted: tuple[float, float, float]) -> np.ndarray:
    """Noise with a tone of `hertz` from `start` to `end` s, of each (hertz, start, end)."""
    clip = 0.2 * tone(500, seconds)
    for hertz, start, end in planted:
        place = slice(round(start * RATE), round(end * RATE))
        clip[place] = tone(hertz, seconds)[place]
    return clip


def recording(scores, window: float = 2.0, hop: float = 1.0) -> Recording:
    """Windows whose cosines with [1, 0] are `scores`."""
    vectors = np.array([[x, np.sqrt(1 - x**2)] for x in scores], dtype=np.float32)
    starts = hop * np.arange(len(scores))
    return Recording(vectors, starts, starts + window, vectors[0], hop)


QUERY = np.array([1, 0], np.float32)


def test_a_clip_of_one_window_has_the_plain_vector():
    clip = tone(2500, 7.0)
    recording = encode_recording(Bands(), encoded(clip))
    (plain,) = Bands().embed_clips([clip])
    np.testing.assert_array_equal(recording.whole, plain)
    np.testing.assert_array_equal(recording.vectors, plain[None])
    assert (recording.starts, recording.ends, recording.duration, recording.hop) == ([0], [7], 7, 5)
    assert locate(recording, plain) == [Span(0, 7, pytest.approx(1, abs=1e-6))]


def test_windows_of_a_recording_equal_clips_embedded_alone(sharp_model, processor):
    embedder = Embedder(sharp_model, processor)
    short, content = encoded(tone(seconds=1.2)), encoded(with_tones(5.3, (2500, 2, 3)))
    (plain,) = embedder.embed_files([short])
    np.testing.assert_array_equal(encode_recording(embedder, short, 2.0, 1.0).whole, plain)
    recording, clip = encode_recording(embedder, content, 2.0, 1.0), load_audio(content)
    assert list(recording.starts) == [0, 1, 2, 3, 3.3] and recording.vectors.dtype == np.float32
    for vector, start, end in zip(recording.vectors, recording.starts, recording.ends, strict=True):
        (alone,) = embedder.embed_clips([clip[round(start * RATE) : round(end * RATE)]])
        np.testing.assert_allclose(vector, alone, atol=1e-5)
    mean = recording.vectors.sum(0) / np.linalg.norm(recording.vectors.sum(0))
    np.testing.assert_allclose(recording.whole, mean, atol=1e-6)
    again = encode_recording(embedder, content, 2.0, 1.0)
    np.testing.assert_array_equal(again.vectors, recording.vectors)


@pytest.mark.parametrize(("start", "end"), [(0, 3), (21.3, 24.3), (57, 60)])
@pytest.mark.parametrize(("window", "hop"), [(10, 5), (5, 2.5), (4, 2), (4, 1)])
def test_inserted_tone_is_located(start, end, window, hop):
    recording = encode_recording(Bands(), encoded(with_tones(60, (2500, start, end))), window, hop)
    best, *rest = locate(recording, Bands().vector(2500))
    assert start - 2 * hop <= best.start <= start + hop and end - hop <= best.end <= end + 2 * hop
    assert best.end - best.start <= end - start + window
    assert all(span.score < best.score for span in rest)


def test_two_inserted_tones_are_two_spans():
    content = encoded(with_tones(90, (2500, 20, 26), (2500, 60, 66), (6500, 40, 46)))
    recording = encode_recording(Bands(), content, 4.0, 2.0)
    first, second, *_ = locate(recording, Bands().vector(2500))
    assert sorted([(first.start, first.end), (second.start, second.end)]) == [(20, 26), (60, 66)]
    (bell,) = locate(recording, Bands().vector(6500), top_k=1)
    assert (bell.start, bell.end) == (40, 46)


def test_step_score_is_the_mean_of_its_windows():
    edges, scores = timeline(recording([0.1, 0.3, 0.8]), QUERY)
    np.testing.assert_array_equal(edges, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(scores, [0.1, 0.2, 0.55, 0.8], atol=1e-6)


def test_a_window_counts_by_how_much_of_a_step_it_covers():
    edges, scores = timeline(recording([0.2, 0.5], window=3.0, hop=2.0), QUERY)  # from 0 to 3 and from 2 to 5 s
    np.testing.assert_array_equal(edges, [0, 2, 4, 5])  # the second that is left over is half a hop: a step
    np.testing.assert_allclose(scores, [0.2, (0.2 + 2 * 0.5) / 3, 0.5], atol=1e-6)


def test_a_remainder_under_half_a_hop_belongs_to_the_last_step():
    two = recording([0.2, 0.5])
    for last, edges in ((2.4, [0, 1, 2.4]), (2.6, [0, 1, 2, 2.6])):
        moved = Recording(two.vectors, np.array([0, last - 2]), np.array([2, last]), two.whole, two.hop)
        np.testing.assert_array_equal(timeline(moved, QUERY)[0], edges)


def test_spans_extend_half_way_up_and_lie_a_window_apart():
    # steps: 0 0 .1 .35 .75 .75 .35 .1 and zeros, the median; at the end .15, which is half way up to .3
    scores = [0, 0, 0.2, 0.5, 1, 0.5, 0.2, *[0] * 13, 0.3]
    first, second, *rest = locate(recording(scores), QUERY)
    assert (first.start, first.end, first.score) == (4, 6, pytest.approx(0.75))
    assert (second.start, second.end, second.score) == (20, 22, pytest.approx(0.3))
    for one, other in zip([first, second, *rest], [second, *rest], strict=False):
        assert one.score >= other.score and (one.end <= other.start or other.end <= one.start)


def test_dip_within_a_window_makes_no_second_span():
    spans = locate(recording([0, 0, 0, 0.9, 0.1, 0.9, 0, 0, 0, 0, 0], window=4.0), QUERY)
    assert [span.score > 0.3 for span in spans].count(True) == 1


def test_continuous_sound_is_one_span():
    assert locate(recording([0.5] * 30), QUERY) == [Span(0, 31, pytest.approx(0.5))]


def test_top_k_limits_the_spans():
    scores = [0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1] * 8
    assert [len(locate(recording(scores), QUERY, top_k=k)) for k in (1, 3, 8)] == [1, 3, 8]
    spans = locate(recording(scores), QUERY, top_k=8)
    assert [(span.start, span.end) for span in spans] == [(10 * n + 5.0, 10 * n + 7.0) for n in range(8)]


def test_min_score_excludes_lower_spans():
    scores = [0.1] * 10 + [0.5] * 3 + [0.1] * 10 + [0.9] * 3 + [0.1] * 10
    every = locate(recording(scores), QUERY)
    for least in (-1, 0.3, 0.6, 1):
        kept = [span for span in every if span.score >= least]
        assert locate(recording(scores), QUERY, min_score=least) == kept
    assert [len(locate(recording(scores), QUERY, min_score=least)) for least in (0.3, 0.6, 1)] == [2, 1, 0]


class Words(Bands):
    """Texts at random directions of 8; "hum" is a 500 Hz tone."""

    def embed_text(self, texts):
        rng = np.random.default_rng(0)
        said = rng.normal(size=(len(texts), self.dims)).astype(np.float32)
        said /= np.linalg.norm(said, axis=1, keepdims=True)
        return np.stack([self.vector(500) if text == "hum" else row for text, row in zip(texts, said, strict=True)])


@pytest.mark.parametrize("dim", [None, 4])
def test_noise_score_is_a_quantile_of_common_sounds(dim):
    words, recording = Words(), encode_recording(Words(), encoded(with_tones(30, (2500, 10, 14))), 4.0, 1.0)
    least = noise_score(words, recording, dim)
    best = [timeline(recording, name, dim)[1].max() for name in words.embed_text(list(COMMON_SOUNDS))]
    assert np.mean(np.array(best) > least) == pytest.approx(0.1, abs=0.03)
    (hum,) = words.embed_text(["hum"])  # all over the recording, but for the tone
    assert locate(recording, hum, dim=dim, min_score=least)[0].score > 0.9
    assert locate(recording, -hum, dim=dim, min_score=least) == []


@pytest.mark.parametrize(
    "seconds, longest, expected",
    [(3, 30, (4, 1)), (120, None, (4, 1)), (121, 30, (10, 5)), (121, 4, (4, 4)), (3, 0.5, (0.5, 0.5))],
)
def test_short_recordings_have_short_windows(seconds, longest, expected):
    assert windows_for(encoded(np.zeros(round(seconds * RATE), np.float32) + 0.1), longest) == expected


def test_nested_dims_are_cut_and_normalised_again():
    recording = encode_recording(Bands(), encoded(with_tones(20, (2500, 10, 14))), 4.0, 2.0)
    query = Bands().vector(2500)
    cut = recording.vectors[:, :4] / np.linalg.norm(recording.vectors[:, :4], axis=1, keepdims=True)
    short = Recording(cut, recording.starts, recording.ends, recording.whole[:4], recording.hop)
    expected = timeline(short, query[:4] / np.linalg.norm(query[:4]))
    for one, other in zip(timeline(recording, query, dim=4), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert not np.allclose(timeline(recording, query)[1], expected[1], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": np.ones(3)}, r"one vector \[2\]"),
        ({"query": np.ones((1, 2))}, r"one vector \[2\]"),
        ({"query": np.zeros(2)}, "not all zero"),
        ({"query": np.array([1, np.nan])}, "finite"),
        ({"query": QUERY, "dim": 0}, "between 1 and the embeddings' width 2"),
        ({"query": QUERY, "dim": 3}, "between 1 and the embeddings' width 2"),
        ({"query": QUERY, "top_k": 0}, "top_k must be 1"),
        ({"query": QUERY, "min_score": 1.5}, "min_score is a cosine"),
        ({"query": QUERY, "min_score": np.nan}, "min_score is a cosine"),
    ],
)
def test_invalid_queries_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        locate(recording([0.1, 0.2]), **options)


def test_unreadable_recordings_and_windows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="window of 31 s is over the 30 s"):
        encode_recording(Bands(), encoded(tone()), window=31)
    with pytest.raises(ValueError, match="hop over 0 s and up to it"):
        encode_recording(Bands(), encoded(tone()), window=2, hop=3)
    with pytest.raises(ValueError, match="nowhere.wav does not exist"):
        encode_recording(Bands(), tmp_path / "nowhere.wav")
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="NaN or infinite"):
        encode_recording(Bands(), encoded(np.zeros(RATE, np.float32)))  # of silence Bands has no direction


def test_an_embedder_without_a_limit_takes_any_window():
    bands = Bands()
    bands.max_seconds = None
    assert encode_recording(bands, encoded(tone(seconds=35)), window=60).ends == [35]


def test_the_envelope_is_that_of_the_recording():
    peaks = envelope(encoded(with_tones(20, (2500, 10, 14))), 20, points=200)
    assert len(peaks) == 200
    assert peaks[:99].max() < 0.15 and peaks[101:139].min() > 0.45 and peaks[141:].max() < 0.15
    assert len(envelope(encoded(tone()[:5]), 5 / RATE)) == 5


class FirstSamples(Bands):
    """Vectors that cost nothing."""

    def embed_clips(self, clips, lookahead=256):
        for clip in clips:
            yield clip[1:9] / np.linalg.norm(clip[1:9])


def write_long(path: Path, seconds: int, rate: int = 8000) -> None:
    second = tone(seconds=rate / RATE)
    with soundfile.SoundFile(path, "w", rate, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(seconds):
            file.write(second)


_GROWTH = """
import sys
from wavlink.long_recordings import encode_recording
from tests.library.test_long_recordings import FirstSamples

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

for path in sys.argv[1:]:
    print(len(encode_recording(FirstSamples(), path, 10, 5).starts), peak())
"""


def peaks_of_memory(*paths: Path) -> list[tuple[int, float]]:
    """The windows of each recording, and the process's peak in MB after it."""
    command = [sys.executable, "-c", _GROWTH, *map(str, paths)]
    done = run_process(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [(int(count), float(peak)) for count, peak in map(str.split, done.stdout.splitlines())]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is read from Linux's /proc")
def test_an_hour_takes_no_more_memory_than_ten_minutes(tmp_path):
    for name, minutes in (("short", 10), ("long", 60)):
        write_long(tmp_path / name, 60 * minutes)
    (few, before), (many, after) = peaks_of_memory(tmp_path / "short", tmp_path / "long")
    assert (few, many) == (119, 719)
    assert after - before < 12  # MB; the samples of 50 minutes are 192 MB


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("WAVLINK_TEN_HOURS"), reason="takes minutes: set WAVLINK_TEN_HOURS=1")
def test_ten_hours_take_no_more_memory_than_ten_minutes(tmp_path):
    for name, minutes in (("short", 10), ("long", 600)):
        write_long(tmp_path / name, 60 * minutes)
    (few, before), (many, after) = peaks_of_memory(tmp_path / "short", tmp_path / "long")
    assert (few, many) == (119, 7199)
    assert after - before < 24  # MB; the samples of 590 minutes are 2266 MB


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command with `Bands` for a model on a recording of a siren at 20 s and a bell at 40 s."""
    content = with_tones(60, (2500, 20, 26), (6500, 40, 46))
    (tmp_path / "night.wav").write_bytes(encoded(content))
    (tmp_path / "bell.wav").write_bytes(encoded(tone(6500, 2.0)))
    monkeypatch.setattr(localization, "Embedder", lambda *args, **options: Bands())
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["long", "model", "night.wav", "--window", "4", "--hop", "2", *arguments])
        localization.main()
        return capsys.readouterr().out

    return run


def test_the_command_prints_spans_of_texts_and_sounds(command):
    lines = command("--query", "siren", "bell", "--by_sound", "bell.wav", "--top_k", "1").splitlines()
    assert [lines[0], lines[3], lines[6]] == ["siren", "bell", "bell.wav"]
    assert lines[2].split()[:2] == ["0:00:20.0", "0:00:26.0"]
    assert lines[5].split()[:2] == lines[8].split()[:2] == ["0:00:40.0", "0:00:46.0"]


def test_the_command_prints_json(command):
    found = json.loads(command("--query", "siren", "--by_sound", "bell.wav", "--top_k", "2", "--dim", "4", "--json"))
    assert (found["file"], found["duration"], found["window"], found["hop"], found["dim"]) == (
        "night.wav",
        60,
        4,
        2,
        4,
    )
    text, sound = found["queries"]
    assert text["text"] == "siren" and sound["sound"] == "bell.wav"
    assert text["spans"][0].keys() == {"start", "end", "score"}
    assert (text["spans"][0]["start"], text["spans"][0]["end"]) == (20, 26)


def test_where_marks_nothing_if_nothing_stands_out(command, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "draw_timeline", lambda *given, **options: drawn.append((given[2], options)))
    loud = ("--query", "siren", "owl", "--top_k", "1", "--min_score", "0.8")  # no owl is in it
    lines = command(*loud, "--picture", "timeline.png").splitlines()
    assert lines[0] == "siren" and lines[2].split()[:2] == ["0:00:20.0", "0:00:26.0"] and lines[3] == "owl"
    assert re.fullmatch(r"  nothing stands out; the closest is .+, score 0\.\d{3} of at least 0\.800", lines[4])
    ((curves, options),) = drawn
    assert [len(spans) for _, _, spans in curves.values()] == [1, 0] and options == {"min_score": 0.8}
    siren, owl = json.loads(command(*loud, "--json"))["queries"]
    assert len(siren["spans"]) == 1 and owl["spans"] == [] and owl["closest"]["score"] < 0.8
    assert json.loads(command("--query", "owl", "--min_score", "-1", "--json"))["queries"][0]["spans"]


def test_the_command_takes_windows_by_the_recordings_length(command, tmp_path):
    def windows(*options: str) -> tuple[float, float]:
        found = json.loads(command("--query", "siren", "--json", *options))
        return found["window"], found["hop"]

    assert windows() == (4, 2)  # as the fixture asks

    def chosen(*options: str) -> tuple[float, float]:
        given = parser_of(of.where, "wavlink where").parse_args(["model", "night.wav", *options])
        return span_search.windows_of(Bands(), given.file, given.window, given.hop)

    assert chosen() == (4, 1) and chosen("--window", "8") == (8, 4) and chosen("--hop", "2") == (4, 2)
    (tmp_path / "night.wav").write_bytes(encoded(tone(500, 130)))
    assert chosen() == (10, 5)


def test_where_draws_a_plot(command, tmp_path):
    command("--query", "siren", "--by_sound", "bell.wav", "--picture", "timeline.png")
    assert is_picture(tmp_path / "timeline.png")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to look for"),
        (("--query", "siren", "--dim", "5"), r"nested dims of bands, \[4, 8\], got 5"),
        (("--query", "siren", "--picture", "timeline.doc"), "name of a .png"),
        (("--query", "siren", "--picture", "nowhere/timeline.png"), "folder that exists"),
        (("--by_sound", "nowhere.wav"), "nowhere.wav does not exist"),
        (("--query", "siren", "--hop", "9"), "hop over 0 s and up to it"),
        (("--query", "siren", "--window", "40"), "over the 30 s"),
        (("--query", "siren", "--min_score", "2"), "a cosine, from -1 to 1"),
    ],
)
def test_wrong_options_are_refused(command, arguments, message):
    with pytest.raises(ValueError, match=message):
        command(*arguments)


def run_command(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "modeling_wavlink.long", *map(str, arguments)]
    return run_process(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_where_runs_with_a_saved_model_and_escapes_control_characters(wavlink_folder, tmp_path):
    (tmp_path / "night.wav").write_bytes(encoded(with_tones(6, (2500, 2, 4))))
    words = "a $dog^\x1b[2J\nbarks"
    options = ("--window", 2, "--hop", 1, "--picture", tmp_path / "timeline.png")
    done = run_command(wavlink_folder, tmp_path / "night.wav", "--query", words, "a bell", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == r"a $dog^\x1b[2J\nbarks" and "\x1b" not in done.stdout
    assert is_picture(tmp_path / "timeline.png")


@pytest.mark.slow
def test_the_commands_errors_are_one_line(wavlink_folder, tmp_path):
    (tmp_path / "bad\x1b\nfile.wav").write_bytes(b"woof")
    done = run_command(wavlink_folder, tmp_path / "bad\x1b\nfile.wav", "--query", "a bell")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("modeling_wavlink.long: cannot read ")
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr


def test_times_counts_and_words_in_print():
    assert [counted(number, "sound") for number in range(3)] == ["0 sounds", "1 sound", "2 sounds"]
    assert [clock(x) for x in (0, 9.96, 62.5, 3723.44)] == ["0:00:00.0", "0:00:10.0", "0:01:02.5", "1:02:03.4"]
    assert printable("Glocke läutet 鐘\t\x07\udc80") == "Glocke läutet 鐘\\t\\x07\\udc80"
