"""All sounds of a file are read, however they are framed, and what is lost is logged; the same through both doors."""

import io
import logging
import struct

import numpy as np
import pytest
import soundfile

from processing import containers
from processing.audio import load_audio
from processing.file_parts import Reader
from processing.flac_frames import ends_of
from processing.windows import stream_windows
from tests.conftest import RATE
from tests.container_files import PITCHES, has_pitches, link
from tests.sound_bytes import encoded, pure

CHAINS = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16")]
CHAINS += [("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16")]
CHAINS += [("RF64", "PCM_16"), ("W64", "PCM_16"), ("WAVEX", "FLOAT")]


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def read(tmp_path, caplog):
    """Reads a file's bytes by all doors, which must agree, and gives the clip and the warnings of each door."""

    def both(content: bytes, rate: int = RATE) -> tuple[np.ndarray, list[str]]:
        path = tmp_path / "sound"
        path.write_bytes(content)
        caplog.clear()
        clip = load_audio(path, rate)
        logged = warnings_of(caplog)
        caplog.clear()
        np.testing.assert_array_equal(load_audio(content, rate, name=str(path)), clip)
        assert warnings_of(caplog) == logged
        for window in (len(clip) / rate, 0.25):
            caplog.clear()
            parts = list(stream_windows(path, window, window, rate))
            assert warnings_of(caplog) == logged
            for part in parts:
                np.testing.assert_array_equal(part.samples, clip[round(part.start * rate) : round(part.end * rate)])
        assert all(str(path) in line for line in logged)
        return clip, logged

    return both


@pytest.mark.parametrize(("container", "codec"), CHAINS, ids=lambda name: name)
def test_sounds_one_after_another_are_all_read(container, codec, read):
    clip, logged = read(b"".join(link(container, codec, hertz) for hertz in PITCHES))
    assert abs(len(clip) - 3 * RATE) < 2000 and has_pitches(clip) and not logged


@pytest.mark.parametrize(("container", "codec"), CHAINS, ids=lambda name: name)
def test_links_may_differ_in_rate_and_channels(container, codec, read):
    kinds = zip(PITCHES, (RATE, 48000, 24000), (1, 2, 1), strict=True)
    clip, logged = read(b"".join(link(container, codec, hertz, 1, rate, channels) for hertz, rate, channels in kinds))
    assert abs(len(clip) - 3 * RATE) < 3000 and has_pitches(clip) and not logged


def test_links_of_several_formats(read):
    kinds = ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("WAV", "PCM_16")
    clip, logged = read(b"".join(link(*kind, hertz) for kind, hertz in zip(kinds, PITCHES, strict=True)))
    assert abs(len(clip) - 3 * RATE) < 3000 and has_pitches(clip) and not logged


ID3 = b"ID3\x04\0\0" + bytes([0, 0, 40, 8]) + b"TIT2" + bytes(5124)
ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")
APE = b"APETAGEX" + struct.pack("<4I", 2000, 45, 1, 0xA0000000) + bytes(8) + b"x" * 13
APE += b"APETAGEX" + struct.pack("<4I", 2000, 45, 1, 0x80000000) + bytes(8)


@pytest.mark.parametrize("between", [ID3, ID3V1, APE, ID3V1 + ID3, bytes(5000)], ids=range(5))
@pytest.mark.parametrize("bare", [False, True])
def test_mp3s_with_tags_between_them(between, bare, read):
    files = [link("MP3", "MPEG_LAYER_III", hertz) for hertz in PITCHES]
    if bare:
        files = [without_info(content) for content in files]
    clip, logged = read(between.join([b"", *files]) if between is ID3 else between.join(files))
    assert abs(len(clip) - 3 * RATE) < 8000 and has_pitches(clip) and not logged


def without_info(content: bytes) -> bytes:
    """An MP3 without its first frame, which tells how many there are."""
    return content[content.index(content[:2], 2) :]


def changing() -> np.ndarray:
    """Silence, then noise, so that an MP3's bit rate rises."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=4 * RATE)
    return np.concatenate([pure(440, seconds=4.0) * 0.001, noise]).astype(np.float32)


def variable(clip: np.ndarray) -> bytes:
    file = io.BytesIO()
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.2}
    with soundfile.SoundFile(file, "w", RATE, 1, **options) as sound:
        sound.write(clip)
    return file.getvalue()


@pytest.mark.parametrize("times", [1, 3])
def test_an_mp3_of_changing_bit_rates_without_a_header(times, read):
    whole, _ = read(variable(changing()))
    clip, logged = read(without_info(variable(changing())) * times)
    assert len(whole) == 8 * RATE and not logged
    assert abs(len(clip) - times * 8 * RATE) < times * 3000
    assert np.sqrt(np.mean(clip[-RATE:] ** 2)) > 0.05


def test_an_mp3_whose_header_states_too_few_frames(read):
    clip, logged = read(link("MP3", "MPEG_LAYER_III", 440) + without_info(link("MP3", "MPEG_LAYER_III", 880)))
    assert abs(len(clip) - 2 * RATE) < 2000 and has_pitches(clip, 2) and not logged


def chunk(name: bytes, size: int, fill: bytes = b"\x55") -> bytes:
    return name + struct.pack("<I", size) + fill * size + b"\0" * (size % 2)


CHUNKS = [chunk(b"LIST", 1001), chunk(b"id3 ", 5000), chunk(b"bext", 602) + chunk(b"cue ", 28), chunk(b"JUNK", 70001)]


@pytest.mark.parametrize("chunks", CHUNKS, ids=range(4))
@pytest.mark.parametrize("length", [RATE, RATE - 1])
def test_chunks_around_the_sound_of_a_wav_are_not_sound(chunks, length, read):
    plain = encoded(pure(440)[:length], "WAV", "PCM_U8")
    at = plain.index(b"data")
    for content in (plain + chunks, plain[:at] + chunks + plain[at:], plain[:at] + chunks + plain[at:] + chunks):
        content = b"RIFF" + struct.pack("<I", len(content) - 8) + content[8:]
        clip, logged = read(content)
        np.testing.assert_array_equal(clip, load_audio(plain))
        assert not logged


def test_an_empty_wav_with_chunks_behind_stays_empty():
    plain = encoded(pure(440)[:0], "WAV", "PCM_16")
    with pytest.raises(ValueError, match="holds no samples"):
        load_audio(plain + CHUNKS[0])


OPEN_SIZES = 0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF - 36


@pytest.mark.parametrize("size", OPEN_SIZES)
@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("codec", ["PCM_16", "PCM_24", "FLOAT", "IMA_ADPCM", "ULAW", "GSM610"])
def test_a_wav_whose_recorder_died(size, riff, codec, read):
    content = bytearray(encoded(pure(440), "WAV", codec))
    expected, at = load_audio(bytes(content)), content.index(b"data")
    content[4:8], content[at + 4 : at + 8] = struct.pack("<I", riff), struct.pack("<I", size)
    clip, logged = read(bytes(content))
    assert len(clip) >= len(expected) and not logged
    np.testing.assert_array_equal(clip[: len(expected)], expected)


@pytest.mark.parametrize("size", OPEN_SIZES)
@pytest.mark.parametrize("container", ["AIFF", "AU", "RIFX", "RF64", "W64", "CAF"])
def test_other_headers_that_were_not_closed(container, size, read):
    big = {"format": "WAV", "endian": "BIG"} if container == "RIFX" else {"format": container}
    file = io.BytesIO()
    soundfile.write(file, pure(440), RATE, subtype="PCM_16", **big)
    content = bytearray(file.getvalue())
    if container == "AU":
        content[8:12] = struct.pack(">I", size)
    elif container in ("AIFF", "RIFX"):
        at = content.index(b"SSND" if container == "AIFF" else b"data")
        content[at + 4 : at + 8] = struct.pack(">I", size)
    elif container == "RF64":
        at = content.index(b"ds64")
        content[at + 8 : at + 24] = struct.pack("<QQ", 0, 0 if size == 0 else 2**64 - 1)
        at = content.index(b"data")
        content[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFFF)
    elif container == "W64":
        at = content.index(b"data")
        content[at + 16 : at + 24] = struct.pack("<Q", 0)
    else:
        at = content.index(b"data")
        content[at + 4 : at + 12] = struct.pack(">q", -1)
    clip, logged = read(bytes(content))
    np.testing.assert_array_equal(clip, load_audio(file.getvalue()))
    assert not logged


FORMATS = [*CHAINS, ("CAF", "ALAC_16"), ("AIFF", "FLOAT"), ("WAV", "PCM_U8")]


@pytest.mark.parametrize(("container", "codec"), FORMATS, ids=lambda name: name)
@pytest.mark.parametrize("front", [ID3, ID3 + bytes(3000), bytes(3001)], ids=["ID3", "ID3 and zeros", "zeros"])
def test_tags_and_zeros_in_front(container, codec, front, read):
    plain = link(container, codec, 440)
    clip, logged = read(front + plain)
    np.testing.assert_array_equal(clip, load_audio(plain))
    assert not logged


@pytest.mark.parametrize(("container", "codec"), FORMATS, ids=lambda name: name)
@pytest.mark.parametrize("behind", [bytes(3), bytes(100_001), ID3V1, b"\x9f\x17 garbage"], ids=range(4))
def test_padding_and_tags_behind_are_harmless(container, codec, behind, read):
    plain = link(container, codec, 440)
    clip, logged = read(plain + behind)
    np.testing.assert_array_equal(clip, load_audio(plain))
    assert not logged


@pytest.mark.parametrize(("container", "codec"), FORMATS, ids=lambda name: name)
def test_many_unknown_bytes_at_the_end_are_reported(container, codec, read):
    plain = link(container, codec, 440)
    behind = b"\x91" + np.random.default_rng(1).bytes(9000).replace(b"\xff", b"\x91")
    clip, logged = read(plain + behind)
    np.testing.assert_array_equal(clip, load_audio(plain))
    assert container == "FLAC" or "goes on for" in logged[0]


@pytest.mark.parametrize(("container", "codec"), CHAINS, ids=lambda name: name)
@pytest.mark.parametrize("kept", [0.35, 0.8])
def test_a_file_that_was_cut_is_refused_or_reported(container, codec, kept, read):
    noise = np.random.default_rng(0).normal(scale=0.1, size=8 * RATE)
    content = encoded(noise, container, codec)
    try:
        clip, logged = read(content[: int(kept * len(content)) | 1])
    except ValueError as error:
        assert "cannot read" in str(error)
    else:
        assert len(clip) < 7 * RATE and "ends before its sound does" in logged[0]


@pytest.mark.parametrize(("container", "codec"), CHAINS, ids=lambda name: name)
@pytest.mark.parametrize("number", [0, 1])
def test_a_chain_with_a_link_cut_at_its_end_keeps_the_others(container, codec, number, read):
    """What is damaged within is refused as a whole, as one alone is."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=6 * RATE)
    links = [encoded(noise, container, codec), encoded(noise, container, codec)]
    links[number] = links[number][: int(0.7 * len(links[number])) | 1]
    try:
        clip, logged = read(b"".join(links))
    except ValueError as error:
        assert container in ("FLAC", "WAVEX") and any(why in str(error) for why in ("cannot read", "NaN"))
    else:
        assert len(clip) > 5.9 * RATE and logged


def sparse(path, header: bytes, size: int, behind: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
        file.seek(0, io.SEEK_END)
        file.write(behind)


BIG = {
    "RIFF": ("WAV", "<", b"data", 8, 0),
    "FORM": ("AIFF", ">", b"SSND", 16, 8),
    ".snd": ("AU", ">", None, 0, 0),
}


@pytest.mark.parametrize("kind", BIG)
@pytest.mark.parametrize("size", [2**31 + 64_000, 2**32 + 64_000, 3 * 2**32 + 1200])
@pytest.mark.parametrize("behind", [b"", chunk(b"LIST", 100)], ids=["", "LIST"])
def test_more_than_four_gigabytes(kind, size, behind, tmp_path):
    """The size of 32 bits in the header has overflowed; the file is sparse."""
    container, order, name, header, more = BIG[kind]
    content, path = encoded(pure(440), container, "PCM_16"), tmp_path / "night"
    at = content.index(name) if name else 0
    start = at + header if name else 24
    written = bytearray(content[:start])
    place = at + 4 if name else 8
    written[place : place + 4] = struct.pack(order + "I", (size + more) % 2**32)
    sparse(path, bytes(written), size, behind if kind == "RIFF" else b"")
    with open(path, "rb") as file:
        links, rest = containers.links_of(file, "night")
        frames = 0
        for each in links:
            with soundfile.SoundFile(each.open(file)) as sound:
                frames += sound.frames
                sound.seek(sound.frames - 1)
                assert not sound.read().any()
    assert frames == size // 2 and rest == 0
    windows = stream_windows(path, 10, 5)
    assert [next(windows).end for _ in range(3)] == [10, 15, 20]
    windows.close()


def test_a_large_rf64_is_read_as_it_is(tmp_path):
    content, path = encoded(pure(440), "RF64", "PCM_16"), tmp_path / "night"
    at = content.index(b"ds64")
    size, start = 2**32 + 64_000, content.index(b"data") + 8
    header = content[: at + 8] + struct.pack("<QQ", size + start - 8, size) + content[at + 24 : start]
    sparse(path, header, size, chunk(b"LIST", 10))
    with open(path, "rb") as file:
        assert containers.links_of(file, "night") == ([containers.Link()], 0)


def test_a_flac_whose_header_states_too_few_samples(read):
    content = bytearray(link("FLAC", "PCM_16", 440, 3.0))
    fields = int.from_bytes(content[18:26], "big") >> 36 << 36
    content[18:26] = (fields | RATE).to_bytes(8, "big")
    clip, logged = read(bytes(content))
    assert len(clip) == 3 * RATE and not logged


def test_a_link_that_cannot_be_read_is_reported(read):
    clip, logged = read(link("WAV", "PCM_16", 440) + b"RIFF\0\0\0\0WAVEfmt " + bytes(50))
    assert len(clip) == RATE and "of which 1 cannot be read" in logged[0]


def test_a_file_of_too_many_sounds_is_refused(monkeypatch):
    monkeypatch.setattr(containers, "MAX_LINKS", 3)
    with pytest.raises(ValueError, match="more than 3 sounds one after another: cut it"):
        load_audio(link("WAV", "PCM_16", 440, 0.1) * 4)


@pytest.mark.parametrize(("container", "codec"), [kind for kind in CHAINS if kind[0] not in ("FLAC", "MP3")])
def test_sounds_of_other_formats_behind_a_flac(container, codec, read):
    clip, logged = read(
        link("FLAC", "PCM_16", 440) + link(container, codec, 880, 1, 48000, 2) + link("FLAC", "PCM_24", 330)
    )
    assert abs(len(clip) - 3 * RATE) < 2000 and has_pitches(clip) and not logged


@pytest.mark.parametrize("between", [b"", ID3, bytes(1000)], ids=["", "ID3", "zeros"])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_mp3_behind_a_flac(between, streamed, read):
    flac = bytearray(link("FLAC", "PCM_16", 440))
    if streamed:  # a header that tells of no number of samples
        flac[21], flac[22:26] = flac[21] & 0xF0, bytes(4)
    clip, logged = read(bytes(flac) + between + link("MP3", "MPEG_LAYER_III", 880))
    assert abs(len(clip) - 2 * RATE) < 3000 and has_pitches(clip, 2) and not logged
    flac, mp3 = link("FLAC", "PCM_16", 440), link("MP3", "MPEG_LAYER_III", 880)
    clip, logged = read(flac + between + mp3 + link("FLAC", "PCM_24", 330, 1, 48000, 2), 48000)
    assert abs(len(clip) - 3 * 48000) < 9000 and has_pitches(clip[::3], 3) and not logged


BEHIND = [("VOC", "PCM_16"), ("NIST", "PCM_16"), ("PAF", "PCM_16"), ("SVX", "PCM_16"), ("MAT5", "PCM_16")]


@pytest.mark.parametrize(("container", "codec"), BEHIND)
@pytest.mark.parametrize("first", [kind for kind in CHAINS if kind[1] not in ("OPUS", "IMA_ADPCM")], ids="-".join)
def test_a_sound_of_an_old_format_behind_another(first, container, codec, read):
    clip, logged = read(link(*first, 440) + link(container, codec, 880))
    assert abs(len(clip) - 2 * RATE) < 3000 and has_pitches(clip, 2) and not logged
    clip, logged = read(link(container, codec, 440) + link("FLAC", "PCM_16", 880))
    assert abs(len(clip) - 2 * RATE) < 100 and has_pitches(clip, 2) and not logged


@pytest.mark.parametrize("container", ["AVR", "HTK", "MPC2K", "IRCAM", "PVF", "MAT4"])
@pytest.mark.parametrize("first", CHAINS, ids="-".join)
def test_unknown_bytes_after_a_sound_are_reported(first, container, read):
    plain = link(*first, 440)
    clip, logged = read(plain + link(container, "PCM_16", 880))
    np.testing.assert_array_equal(clip, load_audio(plain))
    assert "goes on for" in logged[0] and "1.0 s are read" in logged[0] and "--ignore-length" in logged[0]


def test_noise_in_a_flac_is_no_sound_behind_it(read):
    noise = np.random.default_rng(0).uniform(-1, 1, (20 * 48000, 2)).astype(np.float32)
    for codec in ("PCM_16", "PCM_24"):
        content = encoded(noise, "FLAC", codec, 48000)
        clip, logged = read(content, 48000)
        assert len(clip) == len(noise) and not logged
        assert ends_of(Reader(io.BytesIO(content)), 0, len(content)) == [len(content)]
        ends = ends_of(Reader(io.BytesIO(content + bytes(500) + b"x" * 5000)), 0, len(content) + 5500)
        assert len(content) in ends and len(ends) < 4


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RIFX", "RF64", "AIFF", "AU", "CAF"])
@pytest.mark.parametrize(("codec", "frame"), [("PCM_16", 2), ("PCM_24", 3), ("FLOAT", 4)])
@pytest.mark.parametrize(("seconds", "silence"), [(0.1, 0), (1.0, 0), (1.0, 2000), (2.4, 0)])
def test_a_header_that_was_not_updated_is_corrected(container, codec, frame, seconds, silence, read):
    """All is read and logged where the header tells of less than half; else what is not read is logged."""
    options = {"format": "WAV", "endian": "BIG"} if container == "RIFX" else {"format": container}
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-1, 1, 3 * RATE)
    noise[int(seconds * RATE) : int(seconds * RATE) + silence] = 0
    soundfile.write(file, noise, RATE, subtype=codec, **options)
    content, size = bytearray(file.getvalue()), int(seconds * RATE) * frame
    name = {"AIFF": b"SSND", "AU": b".snd"}.get(container, b"data")
    at = content.index(name) + 4
    assert len(content) == at + {"AIFF": 12, "AU": 20, "CAF": 12}.get(container, 4) + 3 * RATE * frame
    if container == "RF64":
        riff = content.index(b"ds64") + 8
        content[riff : riff + 16] = struct.pack("<QQ", at + size, size)
        content[at : at + 4] = b"\xff" * 4
    elif container == "CAF":
        content[at : at + 8] = struct.pack(">q", size + 4)
    else:
        at += 4 if container == "AU" else 0
        big = container in ("RIFX", "AIFF", "AU")
        content[at : at + 4] = struct.pack(">I" if big else "<I", size + 8 * (container == "AIFF"))
        if container != "AU":
            content[4:8] = struct.pack(">I" if big else "<I", at + size)
    clip, (logged,) = read(bytes(content))
    if seconds < 1.5:
        np.testing.assert_array_equal(clip, load_audio(file.getvalue()))
        assert f"tells of {seconds:.1f} s of sound, but 3.0 s are there" in logged and "--ignore-length" in logged
    else:
        assert abs(len(clip) - seconds * RATE) <= 1
        assert "2.4 s are read" in logged and "would be 0.6 s" in logged and "--ignore-length" in logged


@pytest.mark.parametrize("behind", [chunk(b"LIST", 90_001), ID3, bytes(90_000), b"LIST" + b"\xff" * 90_000])
def test_a_small_header_with_something_else_behind_is_right(behind, read):
    plain = link("WAV", "PCM_16", 440)
    clip, _ = read(plain + behind)
    np.testing.assert_array_equal(clip, load_audio(plain))


def test_an_mp3_behind_the_start_of_a_frame(read):
    whole = link("MP3", "MPEG_LAYER_III", 440, 3.0)
    for length in range(4, 300, 37):
        assert abs(len(read(whole[:length] + whole)[0]) - 3 * RATE) < 2000
