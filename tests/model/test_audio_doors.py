"""Every door that takes audio takes samples, files, bytes, cells and decoders, alone or mixed, to the same vectors."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import soundfile
import torch
from sentence_transformers import SentenceTransformer

from processing import audio_inputs_wavlink as inputs
from processing.audio import load_audio, load_column
from processing.collator import AudioTextCollator, CaptionedAudio
from tests.clean_process import run_clean
from tests.conftest import RATE, tone
from wavlink.classification import classify
from wavlink.embedder import Embedder
from wavlink.evaluation.embed_split import embed_audio
from wavlink.localization import locate
from wavlink.long_recordings import encode_recording
from wavlink.search.build import index_sounds
from wavlink.search.index import Index

OWN_RATE = 22050


class Decoder:
    """The interface of torchcodec's `AudioDecoder`, which `datasets` hands out: channels first, at the file's rate."""

    def __init__(self, content: bytes):
        self._data, self._rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        self.metadata = SimpleNamespace(duration_seconds=len(self._data) / self._rate)

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(self._data.T.copy()), sample_rate=self._rate)


class BrokenDecoder:
    def get_all_samples(self):
        raise RuntimeError("Could not decode packet 3")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Stereo, at a rate that is not the model's."""
    path = tmp_path_factory.mktemp("sound") / "bell.wav"
    t = np.arange(int(0.7 * OWN_RATE)) / OWN_RATE
    channels = np.stack([0.4 * np.sin(2764.6 * t), 0.2 * np.sin(1884.9 * t)], axis=1)
    soundfile.write(path, channels, OWN_RATE, subtype="FLOAT")
    return path


def kinds(sound: Path) -> dict:
    """The same sound, in every form."""
    content = sound.read_bytes()
    return {
        "str": str(sound),
        "path": sound,
        "bytes": content,
        "bytearray": bytearray(content),
        "path in a dict": {"path": str(sound), "bytes": None},
        "bytes in a dict": {"path": "bell.wav", "bytes": content},
        "array": {"array": load_audio(sound), "sampling_rate": RATE},
        "tensor": {"array": torch.from_numpy(load_audio(sound)), "sampling_rate": RATE},
        "decoder": Decoder(content),
    }


def features_of(processor, audio, **options) -> np.ndarray:
    return processor(audio=audio, return_tensors="np", **options)["input_features"]


@pytest.mark.parametrize(
    "kind",
    [
        "str",
        "path",
        "bytes",
        "bytearray",
        "path in a dict",
        "bytes in a dict",
        "array",
        "tensor",
        "decoder",
    ],
)
def test_processor_and_extractor_read_every_kind(processor, sound, kind):
    expected = features_of(processor, load_audio(sound), sampling_rate=RATE)
    value = kinds(sound)[kind]
    np.testing.assert_array_equal(load_column(value), load_audio(sound))
    for given in (value, [value], (value,)):
        np.testing.assert_array_equal(features_of(processor, given), expected)
        np.testing.assert_array_equal(processor.feature_extractor(given, return_tensors="np").input_features, expected)


def test_a_batch_may_mix_kinds_with_bare_arrays(processor, sound):
    values = [
        *kinds(sound).values(),
        load_audio(sound),
        torch.from_numpy(load_audio(sound)),
        load_audio(sound).tolist(),
    ]
    features = features_of(processor, values, sampling_rate=RATE)
    assert len(features) == len(values) and (features == features[:1]).all()
    with pytest.raises(ValueError, match="sampling_rate is missing"):
        features_of(processor, values)
    paths = np.array([str(sound)] * 2, dtype=object)
    np.testing.assert_array_equal(features_of(processor, paths), features[:2])


def test_a_dicts_own_rate_is_resampled(processor):
    clip = tone(440, 1.0)
    given = features_of(processor, {"array": clip, "sampling_rate": 44100})
    np.testing.assert_array_equal(
        given, features_of(processor, load_column({"array": clip, "sampling_rate": 44100}), sampling_rate=RATE)
    )
    assert given.shape[-1] == 37  # 0.363 s


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("https://example.org/dog.wav", "https://example.org/dog.wav is a URL, and nothing is fetched here: download"),
        ("s3://bucket/dog.wav", "is a URL"),
        ({"path": "http://example.org/dog.wav", "bytes": None}, "is a URL"),
        ("gone.wav", "gone.wav does not exist or is not a file"),
        (Path("gone.wav"), "gone.wav does not exist"),
        (b"no sound at all", "cannot read a clip of 15 bytes as sound"),
        ({"path": "text.wav", "bytes": b"no sound"}, "cannot read text.wav as sound"),
        ({"path": None, "bytes": None}, "holds none: give"),
        ({"array": np.zeros(4)}, "has no sampling_rate"),
        ({"array": np.zeros((2, 400)), "sampling_rate": RATE}, "average the channels of stereo"),
        ({"array": np.zeros(400, np.int16), "sampling_rate": RATE}, "divide 16-bit samples by 32768"),
        ({"array": np.full(400, np.nan), "sampling_rate": RATE}, "NaN"),
        ({"array": np.zeros(0), "sampling_rate": RATE}, "holds no samples"),
        ({"array": np.zeros(400), "sampling_rate": "16k"}, "sampling rate of '16k' Hz"),
        (BrokenDecoder(), r"Could not decode packet 3.*cast_column\(\"audio\", Audio\(decode=False\)\)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_a_value_error_at_every_door(processor, sharp_model, value, why):
    embedder = Embedder(sharp_model, processor)
    doors = {
        "processor": lambda: processor(audio=value),
        "processor, a batch": lambda: processor(audio=[tone(), value], sampling_rate=RATE),
        "collator": lambda: AudioTextCollator(processor)([{"audio": value, "captions": ["a dog"]}]),
        "clips": lambda: list(embedder.embed_clips([value])),
        "encode_recording": lambda: encode_recording(embedder, value),
    }
    for door in doors.values():
        with pytest.raises(ValueError, match=why):
            door()
    (error,) = embedder.embed_files([value])
    assert isinstance(error, ValueError)
    assert embedder({"audio": [value]})["error"][0] == str(error)


@pytest.mark.parametrize("value", [{"path": float("nan")}, {"path": 3, "bytes": None}, {"path": ["dog.wav"]}])
def test_a_path_that_is_none_is_an_error_of_its_row(processor, sharp_model, sound, value):
    first, wrong, last = Embedder(sharp_model, processor).embed_files([sound, value, sound])
    np.testing.assert_allclose(first, last, atol=1e-5)
    assert isinstance(wrong, ValueError) and "the path of a sound is a" in str(wrong)


def test_the_embedders_doors_give_every_kind_one_vector(processor, sharp_model, sound):
    embedder, values = Embedder(sharp_model, processor), [*kinds(sound).values()]
    (expected,) = embedder.embed_clips([load_audio(sound)])
    found = {
        "files": list(embedder.embed_files(values)),
        "clips": list(embedder.embed_clips([*values, load_audio(sound), torch.from_numpy(load_audio(sound))])),
        "a table": list(embedder({"audio": values})["embedding"]),
        "evaluation": list(
            embed_audio(
                sharp_model, processor, [{"audio": x} for x in values], [1] * len(values), progress=False
            ).vectors
        ),
        "encode_recording": [encode_recording(embedder, value).whole for value in values],
        "one file": [
            *embedder.embed_files(str(sound)),
            *embedder.embed_files(sound),
            *embedder.embed_files(values[-1]),
        ],
    }
    for door, vectors in found.items():
        np.testing.assert_allclose(np.stack(vectors), np.tile(expected, (len(vectors), 1)), atol=1e-5, err_msg=door)


def test_classify_names_every_kind(processor, sharp_model, sound):
    found = classify(Embedder(sharp_model, processor), [*kinds(sound).values()], ["dog", "bell"])
    assert [row["path"] for row in found] == [
        *[str(sound)] * 2,
        "row 2",
        "row 3",
        str(sound),
        "bell.wav",
        "row 6",
        "row 7",
        "row 8",
    ]
    assert all(row["labels"][0]["label"] == found[0]["labels"][0]["label"] for row in found)
    assert classify(Embedder(sharp_model, processor), sound, ["dog", "bell"])[0]["path"] == str(sound)


def test_labels_of_any_collection_keep_their_cosines(processor, sharp_model, sound):
    embedder, labels = Embedder(sharp_model, processor), ["dog", "bell", "rain"]
    expected = classify(embedder, sound, labels)
    assert len({row["cosine"] for row in expected[0]["labels"]}) == 3
    for given in (pandas.Series(labels, index=[2, 0, 1]), np.array(labels), dict.fromkeys(labels), iter(labels)):
        assert classify(embedder, sound, given) == expected
    for given in (None, 3, "dog", ["dog", 3]):
        with pytest.raises(ValueError, match="labels must be a list of strings"):
            classify(embedder, sound, given)


def test_file_objects_are_refused_and_not_read_line_by_line(processor, sharp_model, sound, tmp_path):
    embedder = Embedder(sharp_model, processor)
    index_sounds(str(sound.parent), tmp_path / "index", embedder, progress=False)
    index = Index.open(tmp_path / "index", embedder)
    doors = [
        lambda file: classify(embedder, file, ["dog", "bell"]),
        lambda file: locate(embedder, sound, by_sound=file),
        lambda file: index.query(sound=file),
        lambda file: list(embedder.embed_files(file)),
        lambda file: list(embedder.embed_clips(file)),
    ]
    for door in doors:
        with open(sound, "rb") as file, pytest.raises(ValueError, match=r"give the file's path, or .*file.read\(\)"):
            door(file)
        with pytest.raises(ValueError, match="a BytesIO is no sound"):
            door(io.BytesIO(sound.read_bytes()))


def test_training_rows_may_hold_decoders(processor, sound):
    decoder = kinds(sound)["decoder"]
    rows = CaptionedAudio([{"audio": decoder, "caption": "a bell"}], ["caption"])
    batch = AudioTextCollator(processor)([rows[0], {"audio": decoder, "captions": ["a bell"]}])
    expected = features_of(processor, load_audio(sound), sampling_rate=RATE)
    np.testing.assert_array_equal(batch["input_features"].numpy(), np.repeat(expected, 2, axis=0))


def test_an_index_is_searched_by_every_kind(wavlink_folder, sound, tmp_path):
    soundfile.write(tmp_path / "low.wav", tone(100, 0.5), RATE)
    (tmp_path / "bell.wav").write_bytes(sound.read_bytes())
    index_sounds(str(tmp_path), str(tmp_path / "index"), str(wavlink_folder), progress=False)
    index = Index.open(tmp_path / "index", str(wavlink_folder))
    for name, value in kinds(sound).items():
        hit = index.query(sound=value, top_k=1)[0]
        assert hit.path == "bell.wav" and hit.score > 0.999, name
    both = index.query(sound=[kinds(sound)["decoder"], sound], top_k=2)
    assert [hit.path for hit in both] == ["bell.wav", "low.wav"]
    with pytest.raises(ValueError, match="is a URL"):
        index.query(sound="https://example.org/dog.wav")


def test_sentence_transformer_reads_paths_and_arrays(wavlink_folder, model, processor, sound):
    door = SentenceTransformer(str(wavlink_folder), trust_remote_code=True, device="cpu")
    with torch.no_grad():
        one = processor(audio=load_audio(sound), sampling_rate=RATE, return_tensors="pt")
        expected = model.get_audio_features(**one).pooler_output.numpy()
    clip = {"array": load_audio(sound), "sampling_rate": RATE}
    found = door.encode([str(sound), clip, str(sound), load_audio(sound)])
    np.testing.assert_allclose(found, np.repeat(expected, 4, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_shipped_reader_is_bit_equal_to_the_projects(container, codec, rate, channels):
    clip = np.stack([tone(300 + 200 * n, 1.5, n)[: int(1.5 * rate)] for n in range(channels)], axis=1)
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format=container, subtype=codec)
    content = file.getvalue()
    np.testing.assert_array_equal(inputs.read_file(content, RATE), load_audio(content, RATE))


def test_the_shipped_reader_refuses_what_it_would_read_in_part():
    parts = []
    for hertz in (440, 880):
        file = io.BytesIO()
        soundfile.write(file, tone(hertz, 2.0), RATE, format="MP3", subtype="MPEG_LAYER_III")
        parts.append(file.getvalue())
    with pytest.raises(ValueError, match="goes on after its first sound"):
        inputs.read_file(b"".join(parts), RATE, "two.mp3")
    assert len(inputs.read_file(parts[0] + b"TAG" + bytes(125), RATE)) == len(load_audio(parts[0], RATE))


def test_the_shipped_reader_says_what_to_install(sound, monkeypatch):
    monkeypatch.setattr(inputs, "soxr", None)
    with pytest.raises(ImportError, match="22050 Hz, the model takes 16000 Hz: pip install soxr"):
        inputs.read_file(sound, RATE)
    monkeypatch.setattr(inputs, "soundfile", None)
    with pytest.raises(ImportError, match="pip install soundfile soxr"):
        inputs.read_file(sound, RATE)
    assert np.array_equal(inputs.load_source({"array": tone(), "sampling_rate": RATE}, RATE), tone())


READ = """
import io, json, os, sys, numpy as np, torch
from transformers import AutoModel, AutoProcessor
folder, path = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
processor(audio=path, return_tensors="pt")  # whatever is imported first
opened, refused = [], ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system")
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        opened.append([os.fsdecode(arguments[0]), bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))])
    assert event not in refused, event
sys.addaudithook(watch)
content = open(path, "rb").read()
opened.clear()
with torch.no_grad():
    vectors = [
        model.get_audio_features(**processor(audio=audio, return_tensors="pt")).pooler_output[0].tolist()
        for audio in (path, content, {"path": path, "bytes": None})
    ]
try:
    processor(audio="https://example.org/dog.wav")
except ValueError as error:
    refusal = str(error)
print(json.dumps([vectors, opened, refusal]))
"""


@pytest.mark.slow
def test_shipped_code_opens_the_files_its_caller_names_and_no_others(
    wavlink_folder, model, processor, sound, tmp_path
):
    vectors, opened, refusal = json.loads(run_clean(READ, wavlink_folder, sound, tmp_path=tmp_path).splitlines()[-1])
    assert opened == [[str(sound), False]] * 2 and "is a URL" in refusal
    with torch.no_grad():
        given = processor(audio=load_audio(sound), sampling_rate=RATE, return_tensors="pt")
        expected = model.get_audio_features(**given).pooler_output
    torch.testing.assert_close(torch.tensor(vectors), expected.repeat(3, 1), atol=1e-6, rtol=0)
