"""Damaged and hostile configs, checkpoints, indexes and data sets, for fuzz.py."""

import copy
import csv
import io
import json
import os
import re
import shutil
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import lance
import numpy as np
import pyarrow
import soundfile
import torch
import transformers
from fuzz_audio import attempt, mutate

from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing.collator import CaptionedAudio
from processing.datasets.load import caption_columns, load_split
from processing.datasets.shards import load_stream
from wavlink.search import vector_index
from wavlink.search.checksums import Checksums
from wavlink.search.index import Index
from wavlink.search.listing import Sound
from wavlink.search.location import TABLE
from wavlink.search.manifest import METADATA, Manifest, checksum
from wavlink.search.rows import skipped_row, window_rows
from wavlink.search.table import Table

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()

HOSTILE = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**63 - 1, 2**64, 10**9, 10**30, -(2**63)),
    *(
        0.0,
        -0.5,
        1.5,
        1e-300,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "0",
        "1e9",
        "../../etc/passwd",
        "\0",
        "\ud800",
    ),
    *("a\x1b[31m\u202eb", "x" * 10000, [], [[]], [1, "x"], [-1], [0], [10**12], {}, {"": {}}, {"model_type": "llama"}),
]


def hostile(rng: np.random.Generator, tree):
    """A JSON value in which some places hold what they should not, or are gone, or are there twice."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.integers(1, 4)):
        place, key = tree, None
        while isinstance(place, dict | list) and len(place):
            parent, key = (
                place,
                (list(place) if isinstance(place, dict) else range(len(place)))[rng.integers(len(place))],
            )
            place = parent[key]
            if rng.random() < 0.3:
                break
        if key is None:
            continue
        choice = rng.random()
        if choice < 0.15:
            del parent[key]
        elif choice < 0.25 and isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        elif choice < 0.4 and isinstance(place, int | float):
            parent[key] = place * int(rng.choice([-1, 2, 3, 1000])) + int(rng.integers(-1, 2))
        else:
            parent[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])
    return tree


def as_json(rng, tree) -> bytes:
    """Hostile values in a file, which now and then is itself damaged or far too deep."""
    if rng.random() < 0.03:
        return b"[" * 100000
    content = json.dumps(hostile(rng, tree)).encode("utf-8", "surrogatepass")
    return mutate(rng, [content]) if rng.random() < 0.15 else content


def tiny(folder: Path) -> Path:
    """A WavLink of a few thousand weights, without a tokenizer."""
    torch.manual_seed(0)
    whisper = {
        "model_type": "whisper",
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "vocab_size": 32,
    }
    whisper |= {"encoder_ffn_dim": 32, "decoder_layers": 1, "max_source_positions": 100, "num_mel_bins": 80}
    whisper |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    bert = {
        "model_type": "bert",
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    bert |= {"intermediate_size": 32, "max_position_embeddings": 16}
    config = WavLinkConfig(audio_config=whisper, text_config=bert, projection_dim=16, text_pooling="mean")
    WavLinkModel(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def check_model(model: WavLinkModel) -> bool:
    """Two clips and two texts have directions, each alone as in the batch; False where they are zero or NaN."""
    model.eval()
    features = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 5, 7, 2], [1, 9, 3, 2]])
    for embed, inputs in ((model.get_audio_features, features), (model.get_text_features, ids)):
        vectors = embed(inputs).pooler_output.float()
        assert vectors.shape == (2, model.config.projection_dim)
        if not (torch.isfinite(vectors).all() and vectors.any(-1).all()):  # Embedder and the index refuse it
            return False
        assert ((vectors.norm(dim=-1) - 1).abs() < 1e-3).all(), "no unit vector"
        assert (embed(inputs[:1]).pooler_output.float() - vectors[:1]).abs().max() < 1e-3, "another in a batch"
    return True


def make_config(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    model = tiny(folder / "model-to-load")
    config = json.loads((model / "config.json").read_text())

    def draw(rng) -> bytes:
        return as_json(rng, config)

    def read(content: bytes) -> bool:
        (model / "config.json").write_bytes(content)
        return _loads(model)

    return draw, read


def make_checkpoint(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """`model.safetensors`: damaged bytes, hostile sizes, types and places in its header, tensors of changed places."""
    model = tiny(folder / "model-to-load")
    content = (model / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, weights = json.loads(content[8 : 8 + size]), content[8 + size :]

    def draw(rng) -> bytes:
        if rng.random() < 0.3:
            return mutate(rng, [content])
        changed = hostile(rng, header)
        names = [name for name in header if name != "__metadata__"]
        if rng.random() < 0.2:
            one, other = rng.choice(names, 2)
            changed = dict(header) | {one: header[other], other: header[one]}
        text = json.dumps(changed).encode("utf-8", "surrogatepass")
        length = len(text) if rng.random() < 0.9 else int(rng.choice([0, 1, 2**31, 2**40, 2**63 - 1]))
        return struct.pack("<Q", length) + text + weights[: len(weights) - int(rng.integers(0, 2) * rng.integers(99))]

    def read(content: bytes) -> bool:
        (model / "model.safetensors").write_bytes(content)
        return _loads(model)

    return draw, read


def _loads(folder: Path) -> bool:
    model, error = attempt(lambda: WavLinkModel.from_pretrained(folder), folder.name)
    return not error and check_model(model)


def make_index(folder: Path) -> Path:
    """An index of two commits of random vectors, with a removed file, a skipped one and a vector index."""
    rng, dims = np.random.default_rng(0), [8, 16]
    manifest = Manifest("someone/model", "0" * 40, 16, dims, 16, "fp16", 10.0, 5.0, 16000, str(folder))
    vector_index.LEAST_ROWS, vector_index._QUERIES = 32, 8
    with Table.create(folder / "sounds.index", manifest) as table:
        for part in range(2):
            sounds = [Sound(f"{part}/{number}.wav", 100, 1, "") for number in range(20)]
            vectors = rng.standard_normal((20, 1, 16))
            rows = [
                window_rows(manifest, *each, windows=1, duration=10.0)
                for each in zip(sounds, [[(0.0, 10.0)]] * 20, vectors, strict=True)
            ]
            table.append(pyarrow.concat_tables(rows))
        table.append(skipped_row(manifest, Sound("empty.wav", 0, 1, ""), "it holds no bytes"))
        vector_index.update(table)
        table.remove(["0/3.wav"])
    return folder / "sounds.index"


def make_manifest(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """What an index says of its model: hostile values, with a checksum that is right."""
    index = make_index(folder)
    shutil.copytree(index, folder / "whole")
    fields = json.loads(Table.open(index).schema.metadata[METADATA])
    fields.pop("sha256")

    def draw(rng) -> bytes:
        if rng.random() < 0.2:
            return as_json(rng, fields)
        changed = hostile(rng, fields)
        digest = {"sha256": checksum(changed)} if isinstance(changed, dict) else {}
        return json.dumps(changed | digest if digest else changed).encode("utf-8", "surrogatepass")

    def read(content: bytes) -> bool:
        shutil.rmtree(index)
        shutil.copytree(folder / "whole", index)
        text = content.decode("utf-8", "replace")
        lance.dataset(f"{index}/{TABLE}").update_schema_metadata({METADATA.decode(): text})
        return searches(index)

    return draw, read


def make_damaged(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """A file of an index that is no longer as it was written: it is refused, or nothing has changed."""
    return _files_of_index(folder, sign=False)


def make_forged(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """A file of an index, whose checksum is that of the damaged one."""
    return _files_of_index(folder, sign=True)


def _files_of_index(folder: Path, sign: bool) -> tuple[Callable, Callable]:
    index = make_index(folder)
    files = sorted(path for path in (index / TABLE).rglob("*") if path.is_file())
    names = [re.sub("[0-9a-f-]{6,}", "", path.relative_to(index).as_posix()) for path in files]
    order = sorted(range(len(files)), key=lambda number: (names[number], files[number].stat().st_size))
    files = [files[number] for number in order]  # the names are random
    whole = {path: path.read_bytes() for path in files}
    checksums = (index / "checksums.jsonl").read_bytes()
    expected = answers_of(index)

    def draw(rng) -> bytes:
        number = int(rng.integers(len(files)))
        content = mutate(rng, [whole[files[number]]])
        if rng.random() < 0.5:  # much of what is told of a file is at its end
            content = mutate(rng, [whole[files[number]][::-1]])[::-1]
        return bytes([number]) + content

    def read(content: bytes) -> bool:
        path = files[content[0]]
        path.write_bytes(content[1:])
        if sign:
            _sign(index)
        try:
            read = searches(index, "" if sign else expected)
        finally:
            path.write_bytes(whole[path])
            (index / "checksums.jsonl").write_bytes(checksums)
        return read

    return draw, read


def _sign(index: Path) -> None:
    """Note the checksums of all files as they are now."""
    checksums = Checksums(index)
    names = [*checksums.read()]
    checksums.forget()
    checksums.update(names)


def answers_of(folder: Path) -> str:
    index = Index.open(folder)
    hits = [index.nearest(np.ones(16, np.float32), 5, exact=exact) for exact in (False, True)]
    return repr((len(index), hits, sorted(index.table.files().items())))


def searches(folder: Path, expected: str = "") -> bool:
    """Read all that an index holds; what is read is in range, or as `expected`."""

    def work():
        index = Index.open(folder)
        index.table.files()
        return index, [index.nearest(np.ones(16, np.float32), 5, exact=exact) for exact in (False, True)]

    found, error = attempt(work, folder.name)
    for hit in [hit for hits in found[1] for hit in hits] if found else []:
        assert -1.001 <= hit.score <= 1.001
        assert hit.file is None or Path(hit.file).is_relative_to(found[0].manifest.root), "a place outside the root"
    assert error or not expected or answers_of(folder) == expected, "other results"
    return not error


def _rows() -> list[dict]:
    rows = [{"file_name": f"{n}.wav", "caption": f"a dog, {n}", "label": "dog", "duration": 0.1 * n} for n in range(3)]
    return [rows[0] | {"caption": "ein Hund bellt 狗叫 \u202e"}, *rows[1:]]


def make_metadata(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """`metadata.csv` or `metadata.jsonl` beside three sounds, with one more outside."""
    data = folder / "my-sounds"
    (data / "train").mkdir(parents=True)
    for place in ("0.wav", "1.wav", "2.wav", "../../secret.wav"):
        soundfile.write(data / "train" / place, np.full(800, 0.1), 16000)
    columns = list(_rows()[0])
    table = io.StringIO()
    csv.writer(table).writerows([columns, *([row[name] for name in columns] for row in _rows())])
    paths = ["../../secret.wav", str(folder / "secret.wav"), "./../train/0.wav", "0.wav\0", "x" * 300, ".", "train"]

    def draw(rng) -> bytes:
        if rng.random() < 0.5:
            lines = [as_json(rng, row) for row in _rows()]
            if rng.random() < 0.3:
                lines.append(json.dumps({"file_name": paths[rng.integers(len(paths))], "caption": "x"}).encode())
            return b"{" + b"\n".join(lines)
        content = table.getvalue()
        if rng.random() < 0.4:
            content = content.replace(f"{rng.integers(3)}.wav", paths[rng.integers(len(paths))])
        return b"," + (mutate(rng, [content.encode()]) if rng.random() < 0.8 else content.encode())

    def read(content: bytes) -> bool:
        names = ("metadata.jsonl", "metadata.csv") if content[:1] == b"{" else ("metadata.csv", "metadata.jsonl")
        (data / "train" / names[0]).write_bytes(content[1:])
        (data / "train" / names[1]).unlink(missing_ok=True)
        rows, error = attempt(lambda: load_split(str(data), "train"), data.name)
        for row in rows or []:
            place = os.path.realpath(row["audio"]["path"])
            assert Path(place).is_relative_to(data), f"{place} is outside the folder"
        if error:
            return False
        columns, error = _captions(rows)
        if columns:
            attempt(lambda: CaptionedAudio(rows, columns)[0], "")
        return not error

    return draw, read


def _captions(rows) -> tuple[Sequence[str] | None, str]:
    return attempt(lambda: caption_columns(rows), "caption")


def make_shard(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """A tar, plain or compressed, of sounds and their captions, among them one that unpacks to far more than it is."""
    clip = io.BytesIO()
    soundfile.write(clip, np.full(800, 0.1), 16000, format="WAV")
    files = [
        (f"{n}.{s}", c) for n in range(3) for s, c in (("wav", clip.getvalue()), ("json", b'{"caption": "a dog"}'))
    ]
    seeds = [_tar(files, "w"), _tar(files, "w:gz"), _tar([*files, ("9.json", bytes(1 << 26))], "w:gz")]
    path = folder / "train-000.tar"

    def draw(rng) -> bytes:
        choice = rng.random()
        return mutate(rng, seeds[:1] if choice < 0.8 else seeds[1:2]) if choice < 0.98 else seeds[2]

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        rows, error = attempt(lambda: list(load_stream(str(path), "train")), path.name)
        for row in rows or []:
            attempt(lambda row=row: CaptionedAudio([row], ["caption"])[0], "")
        return not error

    return draw, read


def _tar(files: list[tuple[str, bytes]], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return out.getvalue()


TARGETS = {
    "config": make_config,
    "checkpoint": make_checkpoint,
    "manifest": make_manifest,
    "index": make_damaged,
    "forged index": make_forged,
    "metadata": make_metadata,
    "shard": make_shard,
}
INPUTS = 2000  # of each
