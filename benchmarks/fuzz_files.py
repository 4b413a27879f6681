"""Damaged and hostile configs, checkpoints, indexes and data sets, for fuzz.py."""

import copy
import csv
import hashlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
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
from wavlink.search.index import Index
from wavlink.search.manifest import FILES, Manifest, checksum
from wavlink.search.quantization import encode
from wavlink.search.store import IndexFolder

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


def make_index(folder: Path) -> IndexFolder:
    """An index of two parts, of random vectors."""
    rng, dims = np.random.default_rng(0), [8, 16]
    manifest = Manifest("someone/model", "0" * 40, 16, dims, 16, "int8", 10.0, 5.0, 16000, str(folder))
    with IndexFolder.create(folder / "sounds.index", manifest) as index:
        for part in range(2):
            names = [f"{part}/{number}.wav" for number in range(20)]
            codes = encode(rng.standard_normal((20, 16)), 16, "int8")
            windows = index.manifest.windows(names, np.zeros(20), np.full(20, 10.0), codes)
            rows = [(name, 100, 1, 0, 1, 1, "") for name in names]
            files = [dict(zip(FILES.names, row, strict=True)) for row in rows]
            index.append(windows, pyarrow.Table.from_pylist(files, schema=FILES))
    return index


def make_manifest(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    index = make_index(folder)
    fields = json.loads((index.folder / "index.json").read_text())
    fields.pop("sha256")

    def draw(rng) -> bytes:
        if rng.random() < 0.2:
            return as_json(rng, fields)
        changed = hostile(rng, fields)
        digest = {"sha256": checksum(changed)} if isinstance(changed, dict) else {}
        return json.dumps(changed | digest if digest else changed).encode("utf-8", "surrogatepass")

    def read(content: bytes) -> bool:
        (index.folder / "index.json").write_bytes(content)
        return _searches(index.folder)

    return draw, read


def make_part(folder: Path, sounds: str) -> tuple[Callable, Callable]:
    """A part's parquet, with a manifest whose checksum is that of the damaged one."""
    index = make_index(folder)
    fields = json.loads((index.folder / "index.json").read_text())
    name = fields["parts"][0]["name"]
    seeds = {kind: (index.folder / kind / name).read_bytes() for kind in ("embeddings", "files")}

    def draw(rng) -> bytes:
        kind = rng.choice(list(seeds))
        content = mutate(rng, [seeds[kind]])
        if rng.random() < 0.5:  # its metadata is at the end
            content = mutate(rng, [seeds[kind][::-1]])[::-1]
        return kind[:1].encode() + content

    def read(content: bytes) -> bool:
        kind = "embeddings" if content[:1] == b"e" else "files"
        for other, seed in seeds.items():
            (index.folder / other / name).write_bytes(content[1:] if other == kind else seed)
        fields["parts"][0]["sha256"] = {
            each: hashlib.sha256((index.folder / each / name).read_bytes()).hexdigest() for each in seeds
        }
        unsigned = {key: value for key, value in fields.items() if key != "sha256"}
        (index.folder / "index.json").write_text(json.dumps(unsigned | {"sha256": checksum(unsigned)}))
        return _searches(index.folder)

    return draw, read


def _searches(folder: Path) -> bool:
    def work():
        index = Index.open(folder)
        return index, index.nearest(np.ones(16, np.float32), 5) if len(index) else []

    found, error = attempt(work, folder.name)
    for hit in found[1] if found else []:
        assert -1.001 <= hit.score <= 1.001
        assert hit.file is None or Path(hit.file).is_relative_to(found[0].manifest.root), "a place outside the root"
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
    "index.json": make_manifest,
    "index part": make_part,
    "metadata": make_metadata,
    "shard": make_shard,
}
