"""What libsndfile does not read: m4a, aac, webm and videos through PyAV, within the same bounds; none opens others."""

import io
import logging
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest

from processing import audio, windows
from processing.audio import load_audio
from processing.windows import stream_windows
from tests.conftest import RATE
from tests.container_files import has_pitches, link
from tests.sound_bytes import pure

av = pytest.importorskip("av")
SOUNDS = [
    ("ipod", "aac"),
    ("adts", "aac"),
    ("mp4", "aac"),
    ("mov", "pcm_s16le"),
    ("webm", "libopus"),
    ("asf", "wmav2"),
]
SOUNDS += [
    ("matroska", "aac"),
    ("matroska", "flac"),
    ("flv", "aac"),
    ("mpegts", "aac"),
    ("avi", "mp2"),
    ("ac3", "ac3"),
]
VIDEOS = [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")]


def made(container: str, codec: str = "", clip: np.ndarray | None = None, video: str = "", rate: int = 48000) -> bytes:
    """A file of a clip `[samples]` or `[channels, samples]` at `rate`, or of none, with a moving picture or none."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        if video:
            picture = output.add_stream(video, rate=10)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        if codec:
            clip = np.atleast_2d(pure(440, rate, 2.0) if clip is None else clip).astype(np.float32)
            layout = "stereo" if len(clip) == 2 else "mono"
            sound = output.add_stream(codec, rate=rate, layout=layout)
            sound.bit_rate = 128_000
        if video:
            for number in range(20):
                frame = av.VideoFrame(64, 64, "yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                output.mux(picture.encode(frame))
            output.mux(picture.encode(None))
        if codec:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            output.mux(sound.encode(frame))
            output.mux(sound.encode(None))
    return file.getvalue()


def both(content: bytes) -> np.ndarray:
    clip = load_audio(content)
    for window in (len(clip) / RATE, 0.3):
        for part in stream_windows(content, window, window):
            np.testing.assert_array_equal(part.samples, clip[round(part.start * RATE) : round(part.end * RATE)])
    return clip


@pytest.mark.parametrize(("container", "codec"), SOUNDS)
def test_a_sound_is_recognised_by_its_content_decoded_and_resampled(container, codec, tmp_path, caplog):
    content = made(container, codec)
    clip = both(content)
    assert clip.dtype == np.float32 and abs(len(clip) - 2 * RATE) < 1500 and has_pitches(clip, 1)
    assert 0.3 < np.abs(clip[RATE // 2 : RATE]).max() < 0.55
    (tmp_path / "named.wav").write_bytes(content)
    np.testing.assert_array_equal(load_audio(tmp_path / "named.wav"), clip)
    assert not caplog.records


@pytest.mark.parametrize(("container", "video"), VIDEOS)
def test_the_sound_of_a_video_is_read_and_its_pictures_are_not(container, video, monkeypatch):
    content = made(container, "aac", video=video)
    monkeypatch.setattr(av.VideoFrame, "to_ndarray", None)
    assert has_pitches(both(content), 1)
    with pytest.raises(ValueError, match="film.mp4 has no sound: FFmpeg finds no audio stream"):
        load_audio(made(container, video=video), name="film.mp4")


@pytest.mark.parametrize("seconds", [1, 10])
def test_a_video_whose_pictures_begin_late_is_read_completely(seconds):
    """FFmpeg looks at the first seconds; PyAV ends with an IndexError where a stream begins later."""
    content = made("flv", "aac", np.tile(pure(440, 44100), seconds), rate=44100)
    picture = bytes([9, 0, 0, 41]) + struct.pack(">I", seconds * 1000 << 8)[:3] + bytes(4) + b"\x12" + bytes(40)
    found = load_audio(content + picture + struct.pack(">I", len(picture)), RATE)
    np.testing.assert_array_equal(found, load_audio(content, RATE))
    assert abs(len(found) - seconds * RATE) < RATE / 10


def test_channels_are_mixed_as_of_other_files():
    clip = pure(440, 48000, 2.0)
    kept = both(made("mov", "pcm_s16le", np.stack([clip, -clip])))
    np.testing.assert_allclose(kept[100:-100], pure(440, seconds=2.0)[100:-100], atol=1e-3)
    mean = both(made("mov", "pcm_s16le", np.stack([clip, 0 * clip])))
    np.testing.assert_allclose(mean[100:-100], pure(440, seconds=2.0)[100:-100] / 2, atol=1e-3)


def test_flac_in_ogg_one_after_another(caplog):
    links = [made("ogg", "flac", pure(hertz, 48000, 1.0)) for hertz in (440, 880, 330)]
    clip = both(b"".join(links))
    assert abs(len(clip) - 3 * RATE) < 10 and has_pitches(clip) and not caplog.records


def test_lame_s_mp3s_one_after_another(caplog):
    links = [made("mp3", "libmp3lame", pure(hertz, 48000, 1.0)) for hertz in (440, 880, 330)]
    clip = both(b"".join(links))
    assert abs(len(clip) - 3 * RATE) < 10 and has_pitches(clip) and not caplog.records


@pytest.mark.parametrize("container", ["matroska", "avi", "mpegts", "flv"])
def test_a_cut_file_gives_what_there_is(container):
    content = made(container, "aac")
    clip = both(content[: len(content) // 2])
    assert 0.2 * RATE < len(clip) < 1.5 * RATE


def test_a_cut_mp4_is_refused_or_reported(caplog):
    content = made("mp4", "aac")
    with pytest.raises(ValueError, match="cannot read a.m4a as sound"):
        load_audio(content[: len(content) // 2], name="a.m4a")  # what tells of its packets is at the end
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(whole := io.BytesIO(), "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    fragments = whole.getvalue()
    assert abs(len(load_audio(fragments)) - 2 * RATE) < 1500 and not caplog.records
    assert len(load_audio(fragments[: len(fragments) // 2], name="a.m4a")) < 1.5 * RATE
    assert any("a.m4a ends before its sound does" in record.getMessage() for record in caplog.records)


def test_the_bounds_are_those_of_other_files(monkeypatch):
    content = made("ipod", "aac")
    monkeypatch.setattr(audio, "MAX_SAMPLES", RATE)
    monkeypatch.setattr(windows, "MAX_HOURS", 1 / 3600)
    with pytest.raises(ValueError, match="has more than 16000 samples"):
        load_audio(content)
    with pytest.raises(ValueError, match="lasts over"):
        list(stream_windows(content, 0.5, 0.5))


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n",
    "a.ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 97\na=x:{}\n",
    "a.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{}</BaseURL></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("front", [b"", b"ID3\x04\0\0\0\0\0\0", b"\0\0\0\x08free"], ids=["", "ID3", "free"])
def test_a_playlist_opens_nothing(name, front, tmp_path):
    (tmp_path / "secret.aac").write_bytes(made("adts", "aac"))
    (tmp_path / name).write_bytes(front + PLAYLISTS[name].format(tmp_path / "secret.aac").encode())
    with pytest.raises(ValueError, match=f"cannot read .*{name} as sound"):
        load_audio(tmp_path / name)


def test_a_mov_that_refers_to_another_file_does_not_open_it(tmp_path):
    content = made("mov", "pcm_s16le")
    secret = str(tmp_path / "secret.mov").encode()
    (tmp_path / "secret.mov").write_bytes(content)
    at = content.index(b"url \0\0\0\x01") - 4
    alias = struct.pack(">I", 12 + len(secret) + 1) + b"url \0\0\0\0" + secret + b"\0"
    try:
        clip = load_audio(content[:at] + alias + content[at + 12 :])
    except ValueError:
        return
    assert not np.array_equal(clip, load_audio(content))


@pytest.mark.parametrize("count", [10**6, 80_000_000, 2**32 - 1])
@pytest.mark.parametrize("front", [b"", b"\0\0\0\x08abcd"], ids=["", "behind an unknown box"])
def test_an_mp4_that_tells_of_packets_it_does_not_hold_takes_no_memory(count, front):
    content = bytearray(made("ipod", "aac"))
    at = content.index(b"stsz")
    content[at + 8 : at + 16] = struct.pack(">II", 1, count)
    at = content.index(b"stsc")
    content[at + 8 : at + 24] = struct.pack(">IIII", 1, 1, count, 1)
    with pytest.raises(ValueError, match="more packets than it has bytes"):
        load_audio(front + bytes(content))


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"phone.m4a.*pip install .*\[formats\]', or convert it"):
        load_audio(made_before, name="phone.m4a")
    assert len(load_audio(link("OGG", "VORBIS", 440))) == RATE


made_before = made("ipod", "aac", pure(440, 48000, 0.2))


def test_a_damaged_packet_is_reported(caplog):
    content = bytearray(made("adts", "aac"))
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(60)
    caplog.set_level(logging.WARNING)
    try:
        load_audio(bytes(content), name="a.aac")
    except ValueError as error:
        assert "a.aac" in str(error)
    else:
        assert any("a.aac is damaged" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("container", ["ipod", "mp4", "mov", "3gp"])
def test_mp4s_one_after_another(container, caplog):
    parts = [made(container, "aac", pure(hertz, 48000, 1.0)) for hertz in (440, 880, 330)]
    clip = load_audio(b"".join(parts), 48000)
    np.testing.assert_array_equal(clip, np.concatenate([load_audio(part, 48000) for part in parts]))
    assert has_pitches(load_audio(b"".join(parts))) and not caplog.records


@pytest.mark.parametrize(
    ("container", "codec", "video"), [("webm", "libopus", ""), ("matroska", "aac", "mpeg4"), ("avi", "mp2", "mpeg4")]
)
def test_a_file_shorter_than_stated_is_reported(container, codec, video, caplog):
    whole = made(container, codec, video=video)
    load_audio(whole)
    assert not caplog.records
    load_audio(whole[: len(whole) * 3 // 4])
    assert [record.getMessage() for record in caplog.records if "ends before its sound does" in record.getMessage()]


def test_a_file_of_too_many_mp4s_is_refused():
    with pytest.raises(ValueError, match="more than 100 sounds"):
        load_audio(b"\0\0\0\x10ftypM4A \0\0\0\0" * 9000)
