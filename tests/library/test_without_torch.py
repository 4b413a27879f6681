"""A model's export runs without torch and transformers: vectors, commands, and what is refused."""

import json
import re
import shutil
import sys
from contextlib import closing
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

import wavlink
from tests.conftest import RATE, tone
from tests.exports import REFUSED, change_record, write_export
from tests.hub_server import Hub
from tests.processes import run_process
from wavlink import opening
from wavlink.backends import choice
from wavlink.backends.standalone import KEY, StandaloneModel
from wavlink.embedder import Embedder

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]
LENGTHS = [0.1, 1.3, 0.4, 45.0]
TEXTS = ["a dog barks", "rain"]
LABELS = ["dog", "rain", "bell"]


@pytest.fixture
def exported_folder(wavlink_folder) -> Path:
    write_export(wavlink_folder)
    return wavlink_folder


@pytest.fixture
def sounds(tmp_path) -> Path:
    (tmp_path / "sounds").mkdir()
    for number, seconds in enumerate(LENGTHS):
        soundfile.write(tmp_path / f"sounds/{number}.wav", tone(300 * (number + 1), seconds, number), RATE)
    return tmp_path / "sounds"


@pytest.fixture
def no_torch(monkeypatch) -> None:
    """What is installed, without torch."""
    for module in (choice, opening):
        monkeypatch.setattr(module, "installed", lambda backend: backend != "torch")


CALLS = """
import json
import numpy as np
import wavlink
from wavlink.cli import main

folder, sounds, work = sys.argv[1:]
files = [f"{sounds}/{number}.wav" for number in range(4)]
embedder = wavlink.Embedder(folder, backend="onnx")
np.savez(f"{work}/vectors.npz", sounds=np.stack(list(embedder.embed_files(files))), texts=embedder.embed_text(%r))
assert (embedder.backend, embedder.precision) == ("onnx", "fp32")
spans = wavlink.locate(embedder, files[3], "rain", window=10)
for command in (
    ["classify", files[0], "--model", folder, "--labels", "dog", "rain", "--json"],
    ["index", sounds, "--model", folder, "--out", f"{work}/index"],
    ["index", f"{work}/rows", "--model", folder, "--out", f"{work}/index of rows"],
    ["query", f"{work}/index", "a dog barks", "--json"],
    ["query", f"{work}/index", "--by_sound", files[0]],
    ["where", folder, files[3], "--query", "rain", "--backend", "onnx"],
    ["info", folder],
    ["info", f"{work}/index"],
    ["verify", f"{work}/index"],
):
    assert main(command) == 0, command
for command in (["train", "quickstart", "--output_dir", f"{work}/run"], ["export", folder, "--backend", "onnx"]):
    assert main(command) == 2, command
import wavlink.serving.command
print(sorted({"torch", "transformers"} & {name.split(".")[0] for name in sys.modules}))
"""


def test_commands_import_neither_torch_nor_transformers(exported_folder, sounds, tmp_path):
    rows = [{"audio": {"path": f"{n}.wav", "bytes": (sounds / f"{n}.wav").read_bytes()}} for n in range(2)]
    (tmp_path / "rows").mkdir()
    features = datasets.Features({"audio": {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows/train-00000-of-00001.parquet")
    command = [sys.executable, "-c", REFUSED + CALLS % TEXTS, exported_folder, sounds, tmp_path]
    done = run_process(command, capture_output=True, text=True, cwd=sounds)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr.count(" is not installed: pip install ") == 2
    assert "Traceback" not in done.stderr
    here = Embedder(exported_folder, backend="onnx")
    found = np.load(tmp_path / "vectors.npz")
    np.testing.assert_allclose(found["texts"], here.embed_text(TEXTS), atol=1e-6)
    files = [sounds / f"{number}.wav" for number in range(len(LENGTHS))]
    np.testing.assert_allclose(found["sounds"], np.stack(list(here.embed_files(files))), atol=1e-6)


def test_vectors_are_those_of_the_models_own_inputs(exported_folder, processor, sounds):
    """The same graphs with the processor of transformers, whole batches and masks included."""
    alone = Embedder(exported_folder, backend="onnx")
    assert isinstance(alone.model, StandaloneModel)
    other = Embedder.borrowing(alone.model, alone.processor)
    other.processor = processor
    clips = [tone(200 * (n + 1), seconds, n) for n, seconds in enumerate([0.1, 3.0, 0.7, 2.9, 30.0, 1 / RATE])]
    found = np.stack(list(alone.embed_clips(clips)))
    np.testing.assert_allclose(found, np.stack(list(other.embed_clips(clips))), atol=1e-5, rtol=0)
    np.testing.assert_allclose(alone.embed_text(TEXTS), other.embed_text(TEXTS), atol=1e-6, rtol=0)
    np.testing.assert_allclose(found, np.concatenate([list(alone.embed_clips([clip])) for clip in clips]), atol=1e-5)


def test_properties_are_those_of_the_model(exported_folder):
    alone, plain = Embedder(exported_folder, backend="onnx"), Embedder(exported_folder, backend="torch")
    for name in ("name", "revision", "parameters", "sampling_rate", "dims", "matryoshka_dims", "max_seconds"):
        assert getattr(alone, name) == getattr(plain, name), name
    assert alone.model.scale == pytest.approx(plain.model.scale.item())
    with pytest.raises(ValueError, match="clip 0 has 31.00 s, the limit is 30 s"):
        next(alone.embed_clips([tone(440, 31.0)]))
    with pytest.raises(ValueError, match="revision='main' is of a Hub id"):
        Embedder(exported_folder, backend="onnx", revision="main")
    with pytest.raises(ValueError, match="brings its own processor"):
        Embedder(exported_folder, alone.processor, backend="onnx")
    with pytest.raises(ValueError, match="cannot be trained"):
        alone.model.train()


def test_classification_reads_prompts_and_calibration_of_the_config(exported_folder, sounds):
    config = json.loads((exported_folder / "config.json").read_text())
    config["match_calibration"] = {"prior": 0.1, "dims": {"32": {"slope": 5.0, "intercept": -1.0}}}
    config["label_prompts"] = ["a {}", "the {}"]
    (exported_folder / "config.json").write_text(json.dumps(config))
    embedder = Embedder(exported_folder, backend="onnx")
    (result,) = wavlink.classify(embedder, sounds / "0.wav", LABELS)
    assert sum(label["score"] for label in result["labels"]) == pytest.approx(1)
    assert all(0 < label["probability"] < 1 for label in result["labels"])
    texts = embedder.embed_text([prompt.format(label) for label in LABELS for prompt in ("a {}", "the {}")])
    means = texts.reshape(3, 2, -1).mean(1)
    (vector,) = embedder.embed_files([sounds / "0.wav"])
    expected = means @ vector / np.linalg.norm(means, axis=1)
    cosines = {label["label"]: label["cosine"] for label in result["labels"]}
    np.testing.assert_allclose([cosines[label] for label in LABELS], expected, atol=1e-6)


def test_an_export_is_evaluated(exported_folder, tones_44k, tmp_path):
    scores = [
        wavlink.evaluate(model, tones_44k, split="validation", output=tmp_path / f"{number}.json", backend=backend)
        for number, (model, backend) in enumerate(((exported_folder, "onnx"), (Embedder(exported_folder), None)))
    ]
    assert (scores[0]["about"]["backend"], scores[0]["about"]["precision"]) == ("onnx", "fp32")
    assert scores[0]["text_to_audio"] == scores[1]["text_to_audio"]
    assert scores[0]["about"]["revision"] == Embedder(exported_folder, backend="torch").revision


def test_an_export_runs_without_the_weights(exported_folder, no_torch):
    expected = Embedder(exported_folder)
    assert (expected.backend, expected.precision) == ("onnx", "fp32")
    (exported_folder / "model.safetensors").unlink()
    found = Embedder(exported_folder)
    np.testing.assert_array_equal(found.embed_text(TEXTS), expected.embed_text(TEXTS))
    assert found.revision == expected.revision


ON_THE_HUB = """
import numpy as np, wavlink
from wavlink.cli import main

work, file = %r
embedder = wavlink.Embedder("user/model", backend="onnx")
np.savez(f"{work}/found.npz", sounds=np.stack(list(embedder.embed_files([file]))), texts=embedder.embed_text(%r))
print(embedder.name, embedder.revision, embedder.backend, embedder.precision)
assert main(["index", file, "--model", "user/model", "--out", f"{work}/index"]) == 0
for name, options in (
    ("user/plain", {}), ("user/clap", {}), ("user/none", {}), ("user/model", {"backend": "openvino"}),
    ("user/model", {"precision": "int8"}), ("user/model", {"revision": "none"}),
):
    try:
        wavlink.Embedder(name, **options)
    except ValueError as error:
        print("refused:", error)
import os
os.environ["HF_HUB_OFFLINE"] = "1"
assert main(["query", f"{work}/index", "a dog barks"]) == 0  # the model is looked up in the cache alone
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
WHERE_TORCH_IS = """
import sys, wavlink
embedder = wavlink.Embedder("user/model", backend="onnx")
assert "torch" not in sys.modules
print(embedder.name, embedder.revision, embedder.backend, embedder.precision)
"""
WHY = [
    "torch is not installed: .* and user/plain carries none: run `wavlink export`",
    "without torch only a WavLink runs",
    "'user/none' is neither a folder here nor available on the Hub",
    "run `wavlink export .* --backend openvino`|openvino is not installed",
    "carries no int8 export",
    "'user/model' is neither a folder here nor available on the Hub .*[Rr]evision",
]


@pytest.mark.slow
def test_a_model_of_the_hub_is_downloaded_and_runs_by_its_export(wavlink_folder, sounds, tmp_path):
    with closing(Hub(tmp_path / "hub")) as hub:
        hub.add_repo("user/plain", wavlink_folder, "model")
        (tmp_path / "clap").mkdir()
        (tmp_path / "clap/config.json").write_text('{"model_type": "clap"}')
        hub.add_repo("user/clap", tmp_path / "clap", "model")
        write_export(wavlink_folder)
        commit = hub.add_repo("user/model", wavlink_folder, "model")
        code = REFUSED + ON_THE_HUB % ((str(tmp_path), str(sounds / "0.wav")), TEXTS)
        lines = hub.run(code, tmp_path / "home", PYTHONPATH=str(ROOT)).splitlines()
        lines += hub.run(WHERE_TORCH_IS, tmp_path / "other home", PYTHONPATH=str(ROOT)).splitlines()
        weights = [path for _, path in hub.requests if "user/model" in path and path.endswith(".safetensors")]
    assert lines[0] == lines[-1] == f"user/model {commit} onnx fp32" and not weights
    refused = [line for line in lines if line.startswith("refused: ")]
    assert len(refused) == len(WHY) and all(map(re.search, WHY, refused)), refused
    here, there = Embedder(wavlink_folder, backend="onnx"), np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(there["texts"], here.embed_text(TEXTS), atol=1e-6)
    np.testing.assert_allclose(there["sounds"], np.stack(list(here.embed_files([sounds / "0.wav"]))), atol=1e-6)


def other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_settings(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["activation_function"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))


def other_graph(folder: Path) -> None:
    path = folder / "onnx/text_model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def broken_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"matryoshka_dims": [64]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weights, "was exported for other weights than those of"),
        (other_settings, "was exported for other settings in config.json than those of"),
        (other_graph, "text_model.onnx of .* is missing or damaged"),
        (broken_config, "the config of .* is not a WavLink's: matryoshka_dims must be distinct"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer of .* cannot be read"),
    ],
)
def test_what_is_not_as_it_was_exported_is_refused(change, message, exported_folder):
    change(exported_folder)
    with pytest.raises(ValueError, match=message):
        Embedder(exported_folder, backend="onnx")


def test_without_torch_the_error_says_what_to_do(wavlink_folder, no_torch, tmp_path):
    for arguments, message in (
        (
            (wavlink_folder,),
            f"torch is not installed: pip install .*run `wavlink export {wavlink_folder} --backend onnx`",
        ),
        ((wavlink_folder, None), "run `wavlink export"),
        (("random:user/model",), "without torch only a WavLink runs"),
    ):
        with pytest.raises(ValueError, match=message):
            Embedder(*arguments)
    with pytest.raises(ValueError, match=f"run `wavlink export {wavlink_folder} --backend openvino`"):
        Embedder(wavlink_folder, backend="openvino")
    write_export(wavlink_folder, "int8")
    with pytest.raises(ValueError, match="take precision='int8', or run `wavlink export"):
        Embedder(wavlink_folder)
    assert Embedder(wavlink_folder, precision="int8").precision == "int8"


def test_without_torch_the_bundled_model_is_exported_first(tiny_bundle, no_torch):
    with pytest.raises(
        ValueError, match="run `cp -r .*wavlink-tiny my-wavlink-tiny` and `wavlink export my-wavlink-tiny"
    ):
        Embedder()


@pytest.mark.parametrize(
    ("facts", "why"),
    [(None, "an earlier version made it"), ({"error": "tokenizer.json reads 'x' otherwise"}, "tokenizer.json reads")],
)
def test_an_export_that_needs_torch_says_why(facts, why, exported_folder, no_torch):
    change_record(exported_folder, **{KEY: facts})
    with pytest.raises(ValueError, match=f"does not run without torch .{why}.*torch is not installed"):
        Embedder(exported_folder, backend="onnx")


def _facts(**changed) -> dict:
    return {"weights": {}, "settings": "", "parameters": 1, "logit_scale": 0.0, "logit_bias": 0.0} | changed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({KEY: {"weights": {}}}, "does not describe an export .by 'settings'"),
        ({KEY: {"weights": {}, "settings": "", "parameters": "many"}}, "does not describe an export .by 'parameters'"),
        ({KEY: _facts(logit_scale=1e300)}, "does not describe an export .by 'logit_scale'"),
        ({KEY: _facts(logit_bias=float("nan"))}, "does not describe an export .by 'logit_bias'"),
        ({"format": 3}, "a newer version of wavlink"),
        ({"backend": "openvino"}, "an export for openvino, not onnx"),
        ({"towers": {}}, "names no graphs .*export the model again"),
        ({"towers": {name: {"file": "../config.json"} for name in ("audio", "text")}}, "none of its files"),
    ],
)
def test_damaged_records_are_refused(fields, message, exported_folder):
    change_record(exported_folder, **fields)
    with pytest.raises(ValueError, match=message):
        Embedder(exported_folder, backend="onnx")


def test_a_renamed_export_is_refused(exported_folder):
    """It would run in fp32, and be called int8, or run another backend's graph."""
    record = exported_folder / "onnx/wavlink_fp32.json"
    record.rename(record.with_name("wavlink_int8.json"))
    with pytest.raises(ValueError, match="describes an export in fp32, whose file has another name"):
        Embedder(exported_folder, backend="onnx", precision="int8")


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_size": 128}, "a feature extractor of 128 mel bands, its audio tower takes 80"),
        ({"chunk_length": 60, "n_samples": 960_000, "nb_max_frames": 6000}, "up to 6000 frames, .* takes 3000"),
    ],
)
def test_a_processor_of_another_tower_is_refused(backend, settings, message, exported_folder):
    """OpenVINO gave vectors of clips that are longer than the model takes."""
    path = exported_folder / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["feature_extractor"] |= settings
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=message):
        Embedder(exported_folder, backend=backend)


def test_inputs_that_an_export_has_no_weights_for_are_refused(exported_folder):
    """As torch refuses them; OpenVINO reads beside the weights."""
    model = Embedder(exported_folder, backend="onnx").model
    limit, tokens = model.config.text_config.max_position_embeddings, model.config.text_config.vocab_size
    for ids, message in (
        (np.zeros((1, limit + 1), np.int64), f"over the text tower's limit of {limit}: shorten it"),
        (np.array([[0, tokens]]), f"knows {tokens} tokens, got token {tokens}"),
        (np.array([[-1, 0]]), f"knows {tokens} tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            model.get_text_features(ids)
    for shape in ((1, 80, 3001), (1, 81, 100), (1, 80, 0), (80, 100)):
        with pytest.raises(ValueError, match="must be .batch, 80, 1 to 3000 frames"):
            model.get_audio_features(np.zeros(shape, np.float32))
    assert model.get_text_features(np.array([[0, tokens - 1]])).pooler_output.shape[0] == 1


@pytest.mark.parametrize(("name", "why"), [("adapter_config.json", "an adapter"), ("modules.json", "SentenceTransf")])
def test_what_changes_the_model_needs_torch(name, why, exported_folder, no_torch):
    (exported_folder / name).write_text("[]")
    with pytest.raises(ValueError, match=f"does not run without torch .*{why}"):
        Embedder(exported_folder)


def test_a_tokenizer_that_reads_otherwise_needs_torch(wavlink_folder):
    path = wavlink_folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["post_processor"] = None
    copy = wavlink_folder.parent / "copy"
    shutil.copytree(wavlink_folder, copy)
    (copy / "tokenizer.json").write_text(json.dumps(saved))
    from wavlink.backends.exported import standalone_facts
    from wavlink.loading import load_for_evaluation

    model, processor = load_for_evaluation(str(wavlink_folder))
    assert "error" not in standalone_facts(wavlink_folder, model, processor)
    assert "otherwise than the processor" in standalone_facts(copy, model, processor)["error"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_exported_vectors_without_torch_equal_torchs(backend, wavlink_folder, sounds, tmp_path):
    for package in {"onnx": ("onnxscript",), "openvino": ("openvino",)}[backend]:
        pytest.importorskip(package)
    from wavlink.backends.export import export, report

    assert "runs without torch" in report(wavlink_folder / backend, export(wavlink_folder, backend))
    code = """
import numpy as np, wavlink
embedder = wavlink.Embedder(sys.argv[1], backend=sys.argv[2])
files = [f"{sys.argv[3]}/{number}.wav" for number in range(4)]
np.savez(sys.argv[4], sounds=np.stack(list(embedder.embed_files(files))), texts=embedder.embed_text(%r))
"""
    command = [sys.executable, "-c", REFUSED + code % TEXTS, wavlink_folder, backend, sounds, tmp_path / "found.npz"]
    done = run_process(command, capture_output=True, text=True, cwd=sounds)
    assert done.returncode == 0, done.stderr
    plain, found = Embedder(wavlink_folder, backend="torch"), np.load(tmp_path / "found.npz")
    files = [sounds / f"{number}.wav" for number in range(len(LENGTHS))]
    np.testing.assert_allclose(found["sounds"], np.stack(list(plain.embed_files(files))), atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["texts"], plain.embed_text(TEXTS), atol=1e-5, rtol=0)
