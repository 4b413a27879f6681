"""int8 exports: what they state, the gate on R@10, layers that stay in fp32, and vectors that ignore their batch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from processing.datasets.load import captions_of, load_split
from tests.conftest import RATE, tone
from wavlink.backends import export as module
from wavlink.backends import int8_search, sessions
from wavlink.backends.export import export, main
from wavlink.backends.graphs import Tower
from wavlink.backends.int8 import rank_layers
from wavlink.backends.int8_search import Int8Search, Split
from wavlink.embedder import Embedder
from wavlink.evaluation.evaluate import evaluate
from wavlink.search.build import index_sounds
from wavlink.search.table import Table

pytest.importorskip("nncf")

EMBED = Int8Search._embed  # which a fixture replaces
CLIPS = 12
WORDS = "dog cat bell rain".split()
LAYERS = [f"encoder.layers.{n}.{part}" for n in range(2) for part in ("self_attn.q_proj", "fc1", "fc2")]
BACKENDS = [("openvino", ("openvino",)), ("onnx", ("onnxruntime", "onnx", "onnxscript"))]


@pytest.fixture(scope="module")
def sounds_folder(tmp_path_factory) -> Path:
    """An audiofolder of 12 clips with 12 captions in each split."""
    root = tmp_path_factory.mktemp("int8")
    for number, split in enumerate(("train", "validation")):
        (root / split).mkdir()
        lines = ["file_name,caption"]
        for index in range(CLIPS):
            clip = tone(100 * (index + 1), 0.2 + 0.1 * index, 50 * number + index)
            soundfile.write(root / split / f"{index}.wav", clip, RATE, subtype="FLOAT")
            lines.append(f"{index}.wav,a {WORDS[index % 4]} {WORDS[index // 4]}")
        (root / split / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def splits(folder: Path) -> dict[str, Split]:
    return {"calibration": Split(str(folder), "train"), "validation": Split(str(folder), "validation")}


@pytest.fixture
def lenient(monkeypatch):
    """On 12 clips a single one is 8 points."""
    monkeypatch.setattr(int8_search, "MAX_LOSS", 100)


@pytest.fixture
def few_steps(monkeypatch):
    """Spares tests of the search the seconds of converting and quantizing: nothing is written but empty files."""

    def quantize(backend, source, target, inputs, in_fp32):
        target.write_text(" ".join(in_fp32))
        return [name for name in KNOWN if name.startswith(target.name.partition("_")[0])]

    monkeypatch.setattr(module, "write_graphs", lambda *_: {"audio": {"file": ""}, "text": {"file": ""}})
    monkeypatch.setattr(module, "measured_agreement", lambda *_: {"audio": 0.0, "text": 0.0})
    monkeypatch.setattr(module, "refuse_missing", lambda *_: None)
    monkeypatch.setattr(int8_search, "quantize", quantize)
    monkeypatch.setattr(Int8Search, "_embed", lambda self, graphs, precision: _Vectors(graphs, precision))


KNOWN = [f"audio_model.{name}" for name in LAYERS] + ["audio_projection", "text_projection"]


class _Vectors:
    """Stands for an embedded split: remembers the layers that were left out."""

    def __init__(self, graphs, precision):
        self.audio = self.text = torch.ones(2, 1)
        self.left_out = [] if precision == "fp32" else [n for p in graphs.values() for n in p.read_text().split()]
        self.full = precision == "fp32"


def recall_with(good: int):
    """R@10 that reaches fp32's where so many layers or more are left out."""

    def recall(self, vectors):
        value = 50.0 if vectors.full or len(vectors.left_out) >= good else 49.0
        return {way: dict.fromkeys(self.dims, value) for way in ("text_to_audio", "audio_to_text")}

    return recall


@pytest.mark.parametrize(("good", "most", "left_out"), [(0, 8, 0), (1, 8, 1), (2, 8, 2), (3, 8, 4), (3, 3, 3)])
def test_search_leaves_out_the_most_harmful_layers(
    good, most, left_out, few_steps, monkeypatch, wavlink_folder, sounds_folder
):
    monkeypatch.setattr(Int8Search, "_recall", recall_with(good))
    record = export(wavlink_folder, "openvino", "int8", **splits(sounds_folder), max_layers_in_fp32=most)
    assert len(record["layers_in_fp32"]) == left_out
    assert sorted(record["layers_in_fp32"] + record["layers_in_int8"]) == sorted(KNOWN)
    assert json.loads((wavlink_folder / "openvino" / "wavlink_int8.json").read_text()) == record
    assert set(record["files"]) == {"audio_model_int8.xml", "text_model_int8.xml"}
    assert record["calibration"]["clips"] == record["validation"]["clips"] == CLIPS
    assert (record["calibration"]["split"], record["validation"]["split"]) == ("train", "validation")
    assert record["R@10"]["text_to_audio"]["32"] == {"fp32": 50.0, "int8": 50.0}


@pytest.mark.parametrize("most", [0, 2])
def test_export_that_loses_recall_is_refused(most, few_steps, monkeypatch, wavlink_folder, sounds_folder):
    monkeypatch.setattr(Int8Search, "_recall", recall_with(100))
    before = sorted(wavlink_folder.rglob("*"))
    with pytest.raises(ValueError, match=r"int8 loses 1\.00 points of R@10 .* nothing is written") as refused:
        export(wavlink_folder, "openvino", "int8", **splits(sounds_folder), max_layers_in_fp32=most)
    assert "--layers_in_fp32" in str(refused.value) and sum(name in str(refused.value) for name in KNOWN) >= 3
    assert sorted(wavlink_folder.rglob("*")) == before


def test_named_layers_stay_in_fp32(few_steps, monkeypatch, wavlink_folder, sounds_folder):
    monkeypatch.setattr(Int8Search, "_recall", recall_with(1))
    named = ["audio_model.encoder.layers.1.fc2"]
    record = export(
        wavlink_folder, "openvino", "int8", **splits(sounds_folder), layers_in_fp32=named, max_layers_in_fp32=0
    )
    assert record["layers_in_fp32"] == named
    with pytest.raises(ValueError, match="no linear layer 'fc9': take some of audio_model"):
        export(wavlink_folder, "openvino", "int8", **splits(sounds_folder), layers_in_fp32=["fc9"])


def test_validation_split_of_ten_is_refused(few_steps, wavlink_folder, sounds_folder):
    given = splits(sounds_folder)
    given["validation"].rows = given["validation"].rows.select(range(10))
    with pytest.raises(ValueError, match="10 readable clips and 10 captions, and R@10 of ten is always 100 %"):
        export(wavlink_folder, "openvino", "int8", **given)


@pytest.mark.parametrize("readable", [11, 10])
def test_clips_that_cannot_be_read_are_named_and_not_counted(
    readable, few_steps, monkeypatch, wavlink_folder, sounds_folder, tmp_path, caplog
):
    folder = tmp_path / "sounds"
    shutil.copytree(sounds_folder, folder)
    for split in ("train", "validation"):
        for index in range(readable, CLIPS):
            (folder / split / f"{index}.wav").write_bytes(b"no sound")
    monkeypatch.setattr(Int8Search, "_embed", EMBED)
    recalls = {way: dict.fromkeys((4, 8, 16, 32), 50.0) for way in ("text_to_audio", "audio_to_text")}
    monkeypatch.setattr(Int8Search, "_recall", lambda *_: recalls)
    vectors = lambda inputs: np.ones((len(next(iter(inputs.values()))), 32), np.float32)  # noqa: E731
    monkeypatch.setattr(int8_search, "open_tower", lambda *_: vectors)
    if readable == 10:
        with pytest.raises(ValueError, match="10 readable clips"):
            export(wavlink_folder, "openvino", "int8", **splits(folder))
        return
    record = export(wavlink_folder, "openvino", "int8", **splits(folder))
    assert record["calibration"]["clips"] == record["validation"]["clips"] == readable
    assert "train/11.wav is left out of the calibration: " in caplog.text
    assert "validation/11.wav is left out of the scores: " in caplog.text


def test_layers_are_ranked_by_what_int8_does_to_the_vectors(model, processor):
    """One weight of a layer is so large that the others of its row round to zero."""
    clips = [processor(audio=tone(300 * n, 0.5, n), sampling_rate=RATE, return_tensors="np") for n in range(1, 5)]
    inputs = [
        {"input_features": one["input_features"], "input_features_mask": np.ones((1, one["input_features"].shape[2]))}
        for one in clips
    ]
    broken = "audio_projection"
    with torch.no_grad():
        model.audio_projection.weight[:, 0] = 1e-3
        model.audio_projection.weight[:, 1] = 1e3
        model.audio_model.encoder.layer_norm.weight[1] = 0
        model.audio_model.encoder.layer_norm.bias[1] = 0
        expected = model.state_dict()
    ranked = rank_layers(Tower(model, "audio").eval(), inputs)
    assert ranked[0][0] == broken and ranked == sorted(ranked, key=lambda item: item[1])
    assert {name for name, _ in ranked} > {f"audio_model.{name}" for name in LAYERS}
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.modules())
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "packages"), BACKENDS)
def test_int8_export_is_used(backend, packages, lenient, wavlink_folder, sounds_folder, tmp_path):
    for package in packages:
        pytest.importorskip(package)
    (wavlink_folder / backend).mkdir()
    (wavlink_folder / backend / "notes.txt").write_text("mine")
    left_out = "audio_model.encoder.layers.0.fc2"
    record = export(wavlink_folder, backend, "int8", **splits(sounds_folder), layers_in_fp32=[left_out])
    assert left_out in record["layers_in_fp32"] and len(record["layers_in_int8"]) == 25
    names = {path.name for path in (wavlink_folder / backend).iterdir() if not path.name.startswith(".")}
    assert names == {"notes.txt", "wavlink_int8.json", *record["files"]}
    plain = Embedder(wavlink_folder)
    assert (plain.backend, plain.precision) == ("torch", "fp32")
    small = Embedder(wavlink_folder, backend=backend, precision="int8")
    assert (small.backend, small.precision, small.revision) == (backend, "int8", plain.revision)
    clips = [tone(150 * n, 0.3 * n, n) for n in range(1, 7)]
    exact, found = (np.stack(list(one.embed_clips(clips))) for one in (plain, small))
    assert 0.9 < (exact * found).sum(1).min() < 0.9999999
    alone = np.concatenate([np.stack(list(small.embed_clips([clip]))) for clip in clips])
    np.testing.assert_allclose(found, alone, atol=1e-5, rtol=0)
    scores = evaluate(str(wavlink_folder), str(sounds_folder), split="validation", backend=backend, precision="int8")
    assert (scores["about"]["backend"], scores["about"]["precision"]) == (backend, "int8")
    one = str(sounds_folder / "train" / "0.wav"), tmp_path / "index"
    index_sounds(*one, str(wavlink_folder), backend=backend, precision="int8", progress=False)
    manifest = Table.open(tmp_path / "index").manifest
    assert (manifest.backend, manifest.precision) == (backend, "int8")
    index_sounds(str(sounds_folder / "train"), tmp_path / "index", progress=False)  # goes on in int8
    with pytest.raises(ValueError, match="the index has precision=int8, not fp32"):
        index_sounds(*one, precision="fp32")
    model = WavLinkModel.from_pretrained(wavlink_folder)
    with torch.no_grad():
        model.audio_projection.weight[0, 0] += 1
    model.save_pretrained(wavlink_folder)
    with pytest.raises(ValueError, match="exported for other weights"):
        Embedder(wavlink_folder, backend=backend, precision="int8")


@pytest.mark.parametrize(("bf16", "rest"), [(True, "bf16"), (False, "f32")])
def test_the_rest_of_an_int8_graph_is_computed_in_bf16_where_the_processor_has_it(bf16, rest, monkeypatch, tmp_path):
    if bf16 and not sessions.has_bf16():
        pytest.skip("this processor has no bf16")
    openvino = sessions.import_openvino()
    number = openvino.opset13.parameter([1, 2], np.float32)
    openvino.save_model(openvino.Model([openvino.opset13.relu(number)], [number]), tmp_path / "graph.xml")
    monkeypatch.setattr(sessions, "has_bf16", lambda: bf16)
    tower = sessions.OpenVinoTower(tmp_path / "graph.xml", "int8")
    assert tower.compiled().get_property("INFERENCE_PRECISION_HINT").get_type_name() == rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8", "--backend", "openvino"], "--precision int8 and --calibration DATA need each other"),
        (["--backend", "onnx", "--calibration", "x"], "--precision int8 and --calibration DATA need each other"),
        ([], "give either --backend"),
        (["dir", "--backend", "onnx"], "give either --backend"),
        (["dir", "--precision", "int8"], "--precision goes with --backend"),
        (["--backend", "openvino", "--opset", "20"], "--opset is of ONNX"),
        (["--backend", "torch"], "invalid choice: 'torch'"),
        (
            "--backend onnx --precision int8 --calibration x --calibration_split validation".split(),
            "calibrate by another split",
        ),
        (
            "--backend onnx --precision int8 --calibration x --calibration_clips 0".split(),
            "--calibration_clips must be 1 or more",
        ),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["runs/best", *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_command(few_steps, monkeypatch, wavlink_folder, sounds_folder, capsys):
    monkeypatch.setattr(Int8Search, "_recall", recall_with(1))
    options = ["--backend", "openvino", "--precision", "int8", "--calibration", str(sounds_folder)]
    main([str(wavlink_folder), *options])
    printed = capsys.readouterr().out
    assert "7 linear layers in int8; in fp32: " in printed and "R@10 on 12 clips" in printed
    with pytest.raises(ValueError, match="is no folder here"):
        main(["your-name/wavlink-base", *options])


# Real weights: WAVLINK_SOUNDS=... WAVLINK_WEIGHTS=... pytest -m real -s


@pytest.mark.real
@pytest.mark.parametrize(("backend", "packages"), BACKENDS)
def test_real_towers(backend, packages, weights, sounds, lenient, tmp_path):
    """Vectors of int8 are near fp32's, whatever the batch. These projections are random, so recall means nothing."""
    for package in packages:
        pytest.importorskip(package)
    towers = str(weights / "whisper-tiny.en"), str(weights / "all-MiniLM-L6-v2")
    torch.manual_seed(0)
    model = WavLinkModel.from_audio_text_pretrained(*towers)
    model.save_pretrained(tmp_path / "model")
    WavLinkProcessor.from_audio_text_pretrained(*towers).save_pretrained(tmp_path / "model")
    given = splits(sounds)
    given["validation"].rows = given["validation"].rows.select(range(0, 941, 10))
    record = export(tmp_path / "model", backend, "int8", **given, calibration_clips=32)
    rows = load_split(str(sounds), "test").select(range(0, 1157, 60))
    files, texts = [row["audio"]["path"] for row in rows], [captions_of(row, ["caption"])[0] for row in rows]
    plain, small = Embedder(tmp_path / "model"), Embedder(tmp_path / "model", backend=backend, precision="int8")
    exact, found = (np.stack(list(one.embed_files(files))) for one in (plain, small))
    read, found_texts = plain.embed_text(texts), small.embed_text(texts)
    print(f"\n{backend}: {record['files']}, opset {record['towers']['audio'].get('opset')}, R@10 {record['R@10']}")
    for name, cosines in (("audio", (exact * found).sum(1)), ("text", (read * found_texts).sum(1))):
        print(f"  {name}: cosine to fp32 mean {cosines.mean():.4f} min {cosines.min():.4f}")
        assert cosines.min() > 0.9
    alone = np.concatenate([np.stack(list(small.embed_files([file]))) for file in files])
    np.testing.assert_allclose(found, alone, atol=1e-5, rtol=0)
