"""Files that lie, each made here: refused by name, within memory, and never taken for something else."""

import io
import json
import math
import os
import shutil
import struct
import tarfile
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing.datasets.load import load_split
from processing.datasets.shards import load_stream
from tests.conftest import RATE, tone
from tests.index_files import make_index, rows_of, signed
from tests.sound_bytes import encoded
from wavlink.embedder import Embedder
from wavlink.search.index import Index
from wavlink.search.table import Table


@pytest.fixture(scope="module")
def saved(whisper_folder, bert_folder, tmp_path_factory):
    """A tiny model, saved once."""
    folder = tmp_path_factory.mktemp("saved")
    towers = str(whisper_folder), str(bert_folder)
    WavLinkModel.from_audio_text_pretrained(*towers, text_pooling="mean").save_pretrained(folder)
    return folder


@pytest.fixture
def wavlink_folder(saved, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(saved, tmp_path / "wavlink")


def change(path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


HOSTILE = {
    "projection_dim": ["512", 1.5, -1, 0, None, True, []],
    "matryoshka_dims": [[0], [-1], ["8"], [8, 8], 8, [1.5]],
    "loss_type": [None, "x", [], 3],
    "logit_scale_max": [float("nan"), -1, 0, "x", None],
    "initializer_range": [-1, float("inf"), {}],
    "label_smoothing": [float("nan"), 2, "x"],
    "audio_config": [3, [], "whisper", {"model_type": "llama"}, {"model_type": []}],
    "text_config": [3, {"model_type": "../../x"}],
    "model_type": ["llama", None, 3, [], "\x1b[31m"],
    "dtype": ["float33", 3, "../../x"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in HOSTILE.items() for value in values])
def test_a_config_that_cannot_be_is_refused_by_name(name, value, wavlink_folder):
    change(wavlink_folder / "config.json", **{name: value})
    with pytest.raises(ValueError, match=str(wavlink_folder)) as caught:
        WavLinkModel.from_pretrained(wavlink_folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("tower", ["audio_config", "text_config"])
@pytest.mark.parametrize(
    "name", ["output_hidden_states", "chunk_size_feed_forward", "layer_norm_eps", "num_attention_heads"]
)
def test_a_field_of_a_tower_that_is_of_no_type_is_refused_by_name(name, tower, wavlink_folder):
    """Older versions of transformers refuse most of them, in an error of their own."""
    path = wavlink_folder / "config.json"
    change(path, **{tower: json.loads(path.read_text())[tower] | {name: "\0"}})
    with pytest.raises(ValueError, match=str(wavlink_folder)):
        WavLinkModel.from_pretrained(wavlink_folder)


@pytest.mark.parametrize("tower", ["audio_config", "text_config"])
def test_a_config_of_a_billion_layers_is_refused_before_one_is_built(tower, wavlink_folder):
    path = wavlink_folder / "config.json"
    config = json.loads(path.read_text())[tower]
    name = "encoder_layers" if tower == "audio_config" else "num_hidden_layers"
    change(path, **{tower: config | {name: 10**9}})
    with pytest.raises(ValueError, match="tower of more than 1000 layers cannot be meant"):
        WavLinkModel.from_pretrained(wavlink_folder)


def test_json_as_deep_as_a_well_is_refused(wavlink_folder):
    (wavlink_folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"config of {wavlink_folder}.*recursion"):
        WavLinkConfig.from_pretrained(wavlink_folder)


def weights_of(folder) -> tuple[dict, bytes]:
    content = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_weights(folder, header: dict, data: bytes, length: int | None = None) -> None:
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_any_claimed_size_is_refused(length, wavlink_folder):
    write_weights(wavlink_folder, *weights_of(wavlink_folder), length)
    with pytest.raises(ValueError, match=f"the weights of {wavlink_folder} cannot be loaded: "):
        WavLinkModel.from_pretrained(wavlink_folder)


@pytest.mark.parametrize("shape", [[2**62, 2], [2**31, 2**31], [0], [], [16, 33], [-1, 2]])
def test_a_tensor_of_any_claimed_shape_is_refused(shape, wavlink_folder):
    header, data = weights_of(wavlink_folder)
    header["audio_projection.weight"]["shape"] = shape
    write_weights(wavlink_folder, header, data)
    with pytest.raises(ValueError, match=f"weights of {wavlink_folder} cannot be loaded: "):
        WavLinkModel.from_pretrained(wavlink_folder)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5000, -1])
def test_weights_cut_anywhere_are_refused(kept, wavlink_folder):
    path = wavlink_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"weights of {wavlink_folder} cannot be loaded: "):
        WavLinkModel.from_pretrained(wavlink_folder)


def test_swapped_tensors_are_refused_where_their_shapes_differ(wavlink_folder):
    weights = load_file(wavlink_folder / "model.safetensors")
    one, other = "audio_projection.weight", "logit_scale"
    weights[one], weights[other] = weights[other], weights[one]
    save_file(weights, wavlink_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{wavlink_folder} cannot be loaded: they have other shapes than its config"):
        WavLinkModel.from_pretrained(wavlink_folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(value, wavlink_folder):
    weights = load_file(wavlink_folder / "model.safetensors")
    weights["text_projection.weight"][1, 2] = value
    save_file(weights, wavlink_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"text_projection.weight of {wavlink_folder} holds NaN or infinite"):
        WavLinkModel.from_pretrained(wavlink_folder)


def test_weights_too_large_for_a_lower_precision_are_named(wavlink_folder):
    weights = load_file(wavlink_folder / "model.safetensors")
    weights["logit_scale"].fill_(1e6)
    save_file(weights, wavlink_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="logit_scale of .* in torch.float16: take another checkpoint or dtype"):
        WavLinkModel.from_pretrained(wavlink_folder, dtype=torch.float16)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 3e38])
def test_a_model_that_gives_no_direction_is_no_embedder(value, model, processor):
    with torch.no_grad():
        model.audio_projection.weight.fill_(value)
        model.text_projection.weight.fill_(value)
    embedder = Embedder(model, processor)
    (found,) = embedder.embed_files([{"array": tone(), "sampling_rate": RATE}])
    assert isinstance(found, ValueError) and "this sound a vector that is zero or holds NaN" in str(found)
    with pytest.raises(ValueError, match="the model gives the text 'a dog' a vector that is zero or holds NaN"):
        embedder.embed_text(["a dog"])


@pytest.fixture
def index(tmp_path) -> Path:
    """Of ten sounds, in one commit."""
    return make_index(tmp_path / "sounds.index", [f"{number}.wav" for number in range(10)], windows=1)


@pytest.mark.parametrize(
    "fields",
    [
        *({"window": value} for value in (0, -1, float("nan"), float("inf"), "10", None)),
        *({"dims": value} for value in (8.0, "8", -8, 2**60, None)),
        *({"root": value} for value in (None, 3, "a\0b")),
        *({"recall": value} for value in (None, [], {"text": "x"}, {"text": float("nan")})),
        *({"probes": value} for value in (-1, 2**40, 1.5, True)),
        *({"storage": "../x"}, {"matryoshka_dims": ["8"]}, {"format": "1"}, {"more": 1}, {"rescore_dim": 4}),
    ],
    ids=str,
)
def test_a_manifest_with_a_right_checksum_and_wrong_values_is_refused(fields, index):
    signed(index, **fields)
    with pytest.raises(ValueError, match=r"what .*sounds.index says of its model is damaged \("):
        Index.open(index)


def commit(index: Path, column: str, values: pyarrow.Array) -> None:
    """Add a file with a right checksum, in which a column holds these values."""
    with Table.open(index).writing() as table:
        rows = rows_of(table.manifest, [f"{number}.wav" for number in range(10, 10 + len(values))], windows=1)
        number = rows.column_names.index(column)
        table.append(rows.set_column(number, rows.schema.field(column), values))


def halves(*vectors) -> pyarrow.Array:
    return pyarrow.array([[*map(np.float16, vector)] for vector in vectors], pyarrow.list_(pyarrow.float16(), 12))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("embedding", halves([np.nan] * 12)),
        ("embedding", halves([np.inf] * 12)),
        ("embedding", halves([0] * 12)),
        ("embedding", pyarrow.nulls(1, pyarrow.list_(pyarrow.float16(), 12))),
        ("start", pyarrow.array([np.nan])),
        ("start", pyarrow.array([None], pyarrow.float64())),
        ("path", pyarrow.array([None], pyarrow.string())),
        ("path", pyarrow.array(["../../../etc/passwd"])),
        ("path", pyarrow.array(["a\0b"])),
        ("window", pyarrow.array([2**31 - 1], pyarrow.int32())),
        ("windows", pyarrow.array([None], pyarrow.int32())),
        ("error", pyarrow.array([None], pyarrow.string())),
        ("revision", pyarrow.array([None], pyarrow.string())),
        ("version", pyarrow.array([None], pyarrow.int64())),
    ],
    ids=str,
)
def test_impossible_rows_are_refused_or_leave_the_others_right(column, values, index):
    expected = [(hit.path, hit.score) for hit in Index.open(index).nearest(np.ones(24), 10)]
    commit(index, column, values)
    try:
        opened = Index.open(index)
        found = opened.nearest(np.ones(24), 11)
        files = opened.table.files()
    except ValueError as error:
        assert "sounds.index" in str(error)
        return
    assert all(math.isfinite(hit.score) and abs(hit.score) < 1.001 for hit in found)
    assert [(hit.path, hit.score) for hit in found if hit.path in dict(expected)] == expected
    assert all(hit.file is None or Path(hit.file).is_relative_to("/sounds") for hit in found)
    assert all(isinstance(file.rows, int) for file in files.values())


def test_rows_that_unpack_to_far_more_than_the_file_take_little_memory(index):
    """The same path and vector a million times are 8 MB: a query reads them in steps."""
    with Table.open(index).writing() as table:
        one = rows_of(table.manifest, ["x" * 4000], windows=1)
        for _ in range(2):
            table.append(one.take(np.zeros(200_000, np.int64)))
        assert table.bytes() < 20 << 20
    before = pyarrow.total_allocated_bytes()
    opened = Index.open(index)
    assert opened.nearest(np.ones(24), 3)
    assert pyarrow.total_allocated_bytes() - before < 64 << 20


@pytest.fixture
def folder(tmp_path):
    """`my_sounds/train/0.wav`, and `secret.wav` beside the folder."""
    (tmp_path / "my_sounds/train").mkdir(parents=True)
    for name in ("my_sounds/train/0.wav", "secret.wav"):
        (tmp_path / name).write_bytes(encoded(tone(seconds=0.1)))
    return tmp_path / "my_sounds"


def write_rows(folder, *lines: str, name: str = "metadata.jsonl") -> None:
    (folder / "train" / name).write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("name", ["../../secret.wav", "../train/0.wav", "x/../0.wav", "{secret}"])
def test_metadata_names_no_file_outside_its_folder(name, folder):
    write_rows(folder, json.dumps({"file_name": name.format(secret=folder.parent / "secret.wav")}))
    with pytest.raises(ValueError, match="metadata.jsonl names .* which may lie outside its folder: put the sounds"):
        load_split(str(folder), "train")


def test_links_below_a_folder_are_followed(folder):
    """They are the user's own: a data set of the Hub brings none, and the Hub's cache is made of them."""
    os.symlink(folder.parent / "secret.wav", folder / "train/linked.wav")
    write_rows(folder, json.dumps({"file_name": "linked.wav"}))
    assert load_split(str(folder), "train")[0]["audio"]["path"] == str(folder / "train/linked.wav")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "[]",
        "3",
        "null",
        '{"file_name": 3}',
        '{"file_name": ["0.wav"]}',
        '{"file_name": "0.wav\\u0000"}',
        '{"file_name": "' + "x" * 300 + '"}',
        '{"file_name": "."}',
        '{"file_name": "0.wav", "duration": {"a": 1}}',
        '{"file_name": "0.wav", "duration": NaN}',
        '{"file_name": "0.wav", "duration": -1}',
        '{"file_name": "0.wav", "duration": 1' + "0" * 400 + "}",
        '{"file_name": "0.wav", "caption": "\\ud800"}',
        '{"file_name": "0.wav", "caption": 99999999999999999999999}',
    ],
    ids=lambda line: line[:60],
)
def test_rows_that_are_none_are_refused_by_the_name_of_their_file(line, folder):
    write_rows(folder, line)
    with pytest.raises(ValueError, match="metadata.jsonl"):
        load_split(str(folder), "train")


def test_a_column_of_several_kinds_is_refused_by_the_name_of_its_file(folder):
    write_rows(folder, '{"file_name": "0.wav", "caption": "x"}', '{"file_name": "0.wav", "caption": {"a": 1}}')
    with pytest.raises(ValueError, match="metadata.jsonl has a column whose values are of several kinds"):
        load_split(str(folder), "train")


def test_a_cell_of_a_csv_without_end_is_refused(folder):
    write_rows(folder, "file_name,caption", f"0.wav,{'x' * 200_000}", name="metadata.csv")
    with pytest.raises(ValueError, match="cannot read .*metadata.csv: field larger than field limit"):
        load_split(str(folder), "train")


@pytest.mark.parametrize("place", ["{here}/secret.wav", "secret.wav", "{data}/../secret.wav"])
def test_a_row_of_parquet_names_no_file_outside_its_folder(place, folder, monkeypatch):
    """A data set of the Hub may hold paths instead of bytes, and they would be opened here."""
    monkeypatch.chdir(folder.parent)
    data = folder.parent / "parquet"
    data.mkdir()
    path = place.format(here=folder.parent, data=data)
    audio = [{"bytes": (folder / "train/0.wav").read_bytes(), "path": "0.wav"}, {"bytes": None, "path": path}]
    features = datasets.Features({"audio": datasets.Audio(decode=False)})
    datasets.Dataset.from_list([{"audio": each} for each in audio]).cast(features).to_parquet(data / "train.parquet")
    with pytest.raises(ValueError, match="parquet holds no sound in a row but names .*secret.wav"):
        load_split(str(data), "train")


def shard(path, *files: tuple[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize(("name", "size"), [("0.wav", 600 << 20), ("0.json", 17 << 20), ("0.txt", 17 << 20)])
def test_a_compressed_shard_that_unpacks_to_far_more_is_refused_before_it_does(name, size, tmp_path):
    path = shard(tmp_path / "train.tar", ("1.wav", encoded(tone())), (name, bytes(min(size, 18 << 20))), mode="w:gz")
    if size > 18 << 20:  # claimed alone
        with tarfile.open(path, "w:gz") as tar:
            about = tarfile.TarInfo(name)
            about.size = size
            tar.addfile(about)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"train.tar holds '{name}', of more than"):
        list(load_stream(path, "train"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_links_and_paths_in_a_shard_lead_nowhere(tmp_path):
    """Nothing is unpacked to the disk, and a link is no file."""
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("0.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        content = encoded(tone(seconds=0.1))
        about = tarfile.TarInfo("../../1.wav")
        about.size = len(content)
        tar.addfile(about, io.BytesIO(content))
    (row,) = load_stream(str(path), "train")
    assert row["audio"]["bytes"] == content and row["__key__"] == "../../1"
