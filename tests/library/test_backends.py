"""Backends of `Embedder`: torch's vectors in OpenVINO and onnxruntime, and which backend is chosen."""

import errno
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from tests.clap_models import save_clap
from tests.conftest import RATE, tone
from tests.helpers import put_into_hub_cache
from tests.processes import run_process
from wavlink.backends import choice, compiled_model, exported, sessions
from wavlink.backends.export import export
from wavlink.embedder import Embedder
from wavlink.loading import describe, load_for_evaluation
from wavlink.search import command

ROOT = Path(__file__).parents[2]
SECONDS = [0.4, 3.0, 0.7, 2.9, 0.0123, 1.5, 0.45]
CLIPS = [tone(200 * (i + 1), seconds, i) for i, seconds in enumerate(SECONDS)]
TEXTS = ["a dog barks", "the loud bell rings . the low cat meows", "rain"]
NEEDS = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript")}
# (backend, text tower, its pooling, the audio pooling, frames pooled to one)
CASES = [
    ("openvino", "bert", "mean", "token", 1),
    ("openvino", "clip", "eos", "token_mean", 3),
    ("openvino", "modernbert", "cls", "mean", 2),
    ("onnx", "bert", "mean", "token", 2),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of conversions."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wavlink"


def needs(backend: str) -> None:
    for name in NEEDS[backend]:
        pytest.importorskip(name)


def save(request, folder: Path, text="bert", text_pooling="mean", pooling="token", frame_pooling=1) -> Path:
    towers = [str(request.getfixturevalue(f"{name}_folder")) for name in ("whisper", text)]
    torch.manual_seed(0)
    options = {"text_pooling": text_pooling, "pooling": pooling, "frame_pooling": frame_pooling}
    model = WavLinkModel.from_audio_text_pretrained(*towers, **options).eval()
    torch.nn.init.normal_(model.audio_model.global_token)
    model.save_pretrained(folder)
    WavLinkProcessor.from_audio_text_pretrained(*towers).save_pretrained(folder)
    return folder


def vectors(embedder: Embedder, clips=CLIPS) -> np.ndarray:
    return np.stack(list(embedder.embed_clips(clips)))


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


def export_of(folder: Path, backend="openvino", precision="fp32", weights="sha256:0", **others) -> Path:
    """Write the record of an export whose graphs are not there."""
    (folder / backend).mkdir(exist_ok=True)
    path = folder / backend / f"wavlink_{precision}.json"
    record = {"model": {"weights": weights, "settings": ""}, "towers": {}, "files": {}} | others
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def all_installed(monkeypatch) -> None:
    monkeypatch.setattr(choice, "installed", lambda backend: True)


# The rule.


@pytest.mark.parametrize(
    ("exports", "arguments", "expected"),
    [
        ((), {}, ("torch", "fp32")),
        ((), {"backend": "onnx"}, ("onnx", "fp32")),
        ((), {"dtype": "bfloat16"}, ("torch", "bf16")),
        ((), {"dtype": "float16"}, ("torch", "fp16")),
        ((("onnx", "fp32"),), {}, ("onnx", "fp32")),
        ((("onnx", "fp32"), ("openvino", "fp32")), {}, ("openvino", "fp32")),
        ((("onnx", "fp32"), ("openvino", "fp32")), {"backend": "torch"}, ("torch", "fp32")),
        ((("openvino", "fp32"),), {"device": "cuda"}, ("torch", "fp32")),
        ((("openvino", "fp32"),), {"dtype": "bfloat16"}, ("torch", "bf16")),
        ((("openvino", "int8"),), {}, ("torch", "fp32")),  # which changes no vector
        ((("openvino", "int8"), ("onnx", "int8")), {"precision": "int8"}, ("openvino", "int8")),
        ((("onnx", "int8"),), {"precision": "int8"}, ("onnx", "int8")),
    ],
)
def test_rule_for_the_backend(exports, arguments, expected, all_installed, tmp_path):
    for backend, precision in exports:
        export_of(tmp_path, backend, precision)
    assert choice.choose(folder=tmp_path, **arguments) == expected


def test_export_of_a_missing_package_is_not_chosen(monkeypatch, tmp_path):
    export_of(tmp_path, "openvino")
    export_of(tmp_path, "onnx")
    monkeypatch.setattr(choice, "installed", lambda backend: backend != "openvino")
    assert choice.choose(folder=tmp_path) == ("onnx", "fp32")
    monkeypatch.setattr(choice, "installed", lambda backend: backend == "torch")
    assert choice.choose(folder=tmp_path) == ("torch", "fp32")
    for backend, package, extra in (("openvino", "openvino", "fast"), ("onnx", "onnxruntime", "onnx")):
        with pytest.raises(ValueError, match=rf"{package} is not installed: pip install .*\[{extra}\]"):
            choice.choose(backend)
    export_of(tmp_path, "openvino", "int8")
    with pytest.raises(ValueError, match=r"openvino is not installed: pip install .*\[fast\]"):
        choice.choose(precision="int8", folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tensorrt"}, "backend must be one of torch, openvino, onnx"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, int8"),
        ({"backend": "torch", "precision": "int8"}, "take backend='openvino' or 'onnx', after `wavlink export"),
        ({"precision": "int8"}, "wavlink export MODEL --backend"),
        ({"backend": "onnx", "precision": "bf16"}, "take backend='torch' or 'openvino'"),
        ({"backend": "openvino", "device": "cuda:0"}, "runs on the CPU"),
        ({"backend": "openvino", "dtype": "bfloat16"}, "leave dtype out"),
        ({"precision": "fp32", "dtype": "float16"}, "leave dtype out"),
    ],
)
def test_what_a_backend_does_not_have_is_refused(arguments, message, all_installed, wavlink_folder):
    with pytest.raises(ValueError, match=message):
        Embedder(wavlink_folder, **arguments)


def test_bf16_needs_a_processor_that_has_it(all_installed, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    for backend in ("torch", "openvino"):
        with pytest.raises(ValueError, match="this processor has no bf16"):
            choice.choose(backend, "bf16")
    for line in ("flags : fpu avx512_bf16", "flags : amx_bf16 amx_tile", "Features : fp asimd bf16"):
        (tmp_path / "cpuinfo").write_text(f"{line}\n")
        assert choice.choose("openvino", "bf16") == ("openvino", "bf16")
    (tmp_path / "cpuinfo").unlink()  # of another system
    assert isinstance(choice.has_bf16(), bool)


def test_torch_takes_the_precision(model, processor, monkeypatch):
    monkeypatch.setattr(choice, "has_bf16", lambda: True)
    embedder = Embedder(model, processor, precision="bf16")
    assert (embedder.backend, embedder.precision, embedder.model.dtype) == ("torch", "bf16", torch.bfloat16)
    assert Embedder(model, processor, dtype="float16").precision == "fp16"


def test_scores_state_backend_and_precision(model, processor):
    about = describe(model, processor)
    assert (about["backend"], about["precision"]) == ("torch", "fp32")
    assert describe(model.bfloat16(), processor)["precision"] == "bf16"


def test_info_of_a_model(all_installed, wavlink_folder, capsys):
    export_of(wavlink_folder, "onnx", "int8", files={"audio_model_int8.onnx": 1000})
    command.info(str(wavlink_folder), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["backend"], facts["precision"]) == ("torch", "fp32")
    assert [(one["backend"], one["precision"], one["bytes"]) for one in facts["exports"]] == [("onnx", "int8", 1000)]
    export_of(wavlink_folder, "onnx", "fp32")
    command.info(str(wavlink_folder), as_json=False)
    assert "default        onnx, fp32" in capsys.readouterr().out


# Exports that are refused.


@pytest.fixture
def identity(wavlink_folder) -> dict[str, str]:
    return exported.model_identity(load_for_evaluation(str(wavlink_folder))[0])


@pytest.mark.parametrize("given", [{"backend": "openvino"}, {}, {"backend": "openvino", "precision": "int8"}])
def test_export_of_another_model_is_refused(given, identity, all_installed, wavlink_folder):
    export_of(wavlink_folder, precision=given.get("precision", "fp32"))
    with pytest.raises(ValueError, match="exported for other weights than those of .*export the model again"):
        Embedder(wavlink_folder, **given)


def test_export_with_other_settings_is_refused(identity, all_installed, wavlink_folder):
    export_of(wavlink_folder, model=identity)
    config = json.loads((wavlink_folder / "config.json").read_text())
    config["text_pooling"] = "cls"
    (wavlink_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"exported for other settings in config\.json"):
        Embedder(wavlink_folder, backend="openvino")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"files": {"audio_model.xml": 3}}, r"audio_model\.xml of .* is missing or damaged"),
        ({"files": {"../config.json": 3}}, "names a file outside its folder"),
        ({"files": []}, "does not describe an export"),
        ({"model": 1}, "does not describe an export"),
    ],
)
def test_damaged_export_is_refused(others, message, identity, all_installed, wavlink_folder):
    export_of(wavlink_folder, **({"model": identity} | others))
    with pytest.raises(ValueError, match=message):
        Embedder(wavlink_folder, backend="openvino")


def test_export_with_other_bytes_is_refused(identity, all_installed, wavlink_folder):
    record = export_of(wavlink_folder, model=identity, files={"audio_model.xml": 3}, sha256={"audio_model.xml": "0"})
    (record.parent / "audio_model.xml").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"audio_model\.xml of .* is missing or damaged"):
        Embedder(wavlink_folder, backend="openvino")


def test_int8_needs_an_export(all_installed, wavlink_folder, model, processor):
    for loaded in ((wavlink_folder,), (model, processor)):
        with pytest.raises(ValueError, match="carries no int8 export for onnx: make one with `wavlink export"):
            Embedder(*loaded, backend="onnx", precision="int8")


def test_other_models_are_torchs(all_installed, tmp_path):
    save_clap(tmp_path / "clap", fusion=False)
    with pytest.raises(ValueError, match="only a WavLink is exported"):
        Embedder(tmp_path / "clap", backend="openvino")


def test_settings_that_change_no_graph_keep_the_identity(model, identity):
    model.config.label_prompts, model.config.match_calibration = ["a {}"], None
    assert exported.model_identity(model) == identity
    with torch.no_grad():
        model.audio_projection.weight[0, 0] += 1e-3
    assert exported.model_identity(model)["weights"] != identity["weights"]


# Conversions.


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "text", "text_pooling", "pooling", "frame_pooling"), CASES)
def test_fp32_vectors_equal_torchs(backend, text, text_pooling, pooling, frame_pooling, request, tmp_path):
    needs(backend)
    folder = save(request, tmp_path / "model", text, text_pooling, pooling, frame_pooling)
    plain, fast = Embedder(folder), Embedder(folder, backend=backend)
    assert (plain.backend, plain.precision) == ("torch", "fp32")
    assert (fast.backend, fast.precision) == (backend, "fp32")
    assert (fast.revision, fast.parameters, fast.dims) == (plain.revision, plain.parameters, plain.dims)
    expected = vectors(plain)
    found = vectors(fast)
    close(found, expected)
    close(vectors(fast, CLIPS[::-1])[::-1], found)
    close(np.concatenate([vectors(fast, [clip]) for clip in CLIPS]), found)
    close(fast.embed_text(TEXTS), plain.embed_text(TEXTS))
    close(np.concatenate([fast.embed_text([text]) for text in TEXTS]), plain.embed_text(TEXTS))
    inputs = fast.processor(audio=CLIPS, sampling_rate=RATE, return_tensors="pt")
    inputs["input_features"] += 3 * (1 - inputs["input_features_mask"][:, None])  # masked frames are not attended to
    close(fast.model.get_audio_features(**inputs).pooler_output.numpy(), expected)


@pytest.mark.slow
def test_conversion_is_kept_for_these_weights(wavlink_folder, cache, monkeypatch):
    needs("openvino")

    def fail(*_):
        raise ValueError("converted")

    monkeypatch.setattr(exported, "write_openvino", fail)
    with pytest.raises(ValueError, match="converted"):
        Embedder(wavlink_folder, backend="openvino")
    assert not [path for path in cache.rglob("*") if path.is_file()]

    def fill_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exported, "write_openvino", fill_disk)
    with pytest.raises(OSError, match=f"could not write {re.escape(str(cache))}.*free space on its disk"):
        Embedder(wavlink_folder, backend="openvino")
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HOME", str(cache.parent))
    first = Embedder(wavlink_folder, backend="openvino")
    assert len(list(cache.glob("openvino/*/wavlink_fp32.json"))) == 1
    monkeypatch.setattr(exported, "write_openvino", fail)
    again = Embedder(wavlink_folder, backend="openvino")
    close(vectors(again), vectors(first), 0)
    close(vectors(pickle.loads(pickle.dumps(again))), vectors(first), 0)
    assert pickle.loads(pickle.dumps(again)).backend == "openvino"
    if choice.has_bf16():  # from the same graph
        coarse = vectors(Embedder(wavlink_folder, backend="openvino", precision="bf16"))
        assert 0.99 < (coarse * vectors(first)).sum(1).min() and np.abs(coarse - vectors(first)).max() > 1e-5
    model = WavLinkModel.from_pretrained(wavlink_folder)
    with torch.no_grad():
        model.text_projection.weight *= 2
    model.save_pretrained(wavlink_folder)
    with pytest.raises(ValueError, match="converted"):
        Embedder(wavlink_folder, backend="openvino")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["zeros", "shorter", "record", "no record"])
def test_a_damaged_conversion_is_made_again(damage, wavlink_folder, cache, monkeypatch):
    needs("openvino")
    expected = vectors(Embedder(wavlink_folder, backend="openvino"))
    (record,) = cache.glob("openvino/*/wavlink_fp32.json")
    graph = record.parent / "text_model.bin"
    content = graph.read_bytes()
    if damage == "zeros":
        graph.write_bytes(bytes(len(content)))
    elif damage == "shorter":
        graph.write_bytes(content[:-8])
    elif damage == "record":
        record.write_text("{")
    else:
        record.unlink()
    close(vectors(Embedder(wavlink_folder, backend="openvino")), expected, 0)
    assert graph.read_bytes() == content and json.loads(record.read_text())["sha256"]


SECOND = """
import json, sys
from wavlink import Embedder
embedder = Embedder(sys.argv[1], backend=sys.argv[2])
about = ["torch" in sys.modules, embedder.revision, embedder.name, embedder.folder]
print(json.dumps([*about, embedder.embed_text(["a dog"]).tolist()]))
"""


def opened_anew(folder, backend: str, cache: Path, **environment: str) -> list:
    """Whether a new process imports torch, and its embedder's revision, name, folder and vector."""
    environment = {**os.environ, "HF_HOME": str(cache.parent), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", SECOND, str(folder), backend]
    return json.loads(run_process(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_a_converted_model_is_opened_again_without_torch(backend, wavlink_folder, cache):
    needs(backend)
    first = Embedder(wavlink_folder, backend=backend)
    with_torch, revision, name, _, vector = opened_anew(wavlink_folder, backend, cache)
    assert (with_torch, revision, name) == (False, first.revision, first.name)
    close(np.array(vector), first.embed_text(["a dog"]))
    settings = wavlink_folder / "processor_config.json"
    settings.write_text(settings.read_text() + "\n")  # another processor may make other inputs
    assert opened_anew(wavlink_folder, backend, cache)[0]
    assert not opened_anew(wavlink_folder, backend, cache)[0]
    (wavlink_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter"):
        Embedder(wavlink_folder, backend=backend)


@pytest.mark.slow
def test_a_converted_model_of_the_hub_is_opened_again_without_torch(wavlink_folder, cache):
    needs("openvino")
    put_into_hub_cache(wavlink_folder, cache.parent)
    offline = {"HF_HUB_OFFLINE": "1"}
    first = opened_anew("user/model", "openvino", cache, **offline)
    again = opened_anew("user/model", "openvino", cache, **offline)
    assert first[0] and not again[0] and again[1:4] == first[1:4] == ["0" * 40, "user/model", ""]
    close(np.array(again[4]), np.array(first[4]))


@pytest.mark.slow
def test_a_conversion_is_used_where_its_note_cannot_be_written(wavlink_folder, cache):
    needs("openvino")
    expected = vectors(Embedder(wavlink_folder, backend="openvino"))
    for note in cache.glob("openvino/folders/*"):
        note.unlink()

    (cache / "openvino/folders").rmdir()
    (cache / "openvino/folders").touch()
    close(vectors(Embedder(wavlink_folder, backend="openvino")), expected)


def edit(path: Path, **fields) -> None:
    """Change fields of a JSON file; `a__b` stands for `b` within `a`, and None removes one."""
    content = json.loads(path.read_text())
    for name, value in fields.items():
        *parts, last = name.split("__")
        part = content
        for key in parts:
            part = part[key]
        part[last] = value
        if value is None:
            del part[last]
    path.write_text(json.dumps(content))


DAMAGES = [
    "{",
    "[]",
    "[" * 100_000,
    {"conversion": 3},
    {"conversion": "../.."},
    {"standalone__logit_scale": 1e9},
    {"standalone__parameters": "many"},
    {"sha256": None},
]


@pytest.mark.slow
def test_a_damaged_note_of_a_conversion_is_written_again(wavlink_folder, cache):
    needs("openvino")
    expected = vectors(Embedder(wavlink_folder, backend="openvino"))
    (note,) = cache.glob("openvino/folders/*.json")
    written = note.read_text()
    for damage in DAMAGES:
        note.write_text(damage) if isinstance(damage, str) else edit(note, **damage)
        close(vectors(Embedder(wavlink_folder, backend="openvino")), expected, 0)
        assert note.read_text() == written, damage


CHANGED = {"towers": {}, "files": {}, "backend": "onnx", "model__weights": "sha256:0"}


@pytest.mark.slow
def test_a_changed_record_of_a_conversion_is_written_again(wavlink_folder, cache):
    needs("openvino")
    first = Embedder(wavlink_folder, backend="openvino")
    expected = vectors(first)
    (record,) = cache.glob("openvino/*/wavlink_fp32.json")
    for field, value in CHANGED.items():
        edit(record, **{field: value})
        found = Embedder(wavlink_folder, backend="openvino")
        close(vectors(found), expected, 0)
        assert found.revision == first.revision


@pytest.mark.slow
def test_models_of_other_settings_have_conversions_of_their_own(request, tmp_path):
    """The settings are not seen in the weights; text vectors differ by them."""
    needs("openvino")
    folder = save(request, tmp_path / "model", "modernbert", "cls")
    for fields in (
        {},
        {"text_config__rope_parameters__full_attention__rope_theta": 100.0},
        {"text_config__pad_token_id": 5},
    ):
        edit(folder / "config.json", **fields)
        for _ in range(2):
            close(Embedder(folder, backend="openvino").embed_text(TEXTS), Embedder(folder).embed_text(TEXTS))


@pytest.mark.slow
def test_weights_elsewhere_than_in_the_usual_file_are_loaded_each_time(wavlink_folder, cache):
    needs("openvino")
    model = WavLinkModel.from_pretrained(wavlink_folder)
    path, other = wavlink_folder / "model.safetensors", wavlink_folder / "shards/w.safetensors"
    other.parent.mkdir()
    path.rename(other)
    edit(wavlink_folder / "config.json", transformers_weights="shards/w.safetensors")
    before = Embedder(wavlink_folder, backend="openvino").embed_text(TEXTS)
    assert not list(cache.glob("openvino/folders/*"))
    with torch.no_grad():
        model.text_projection.weight *= -1
    model.save_pretrained(wavlink_folder)
    path.replace(other)
    edit(wavlink_folder / "config.json", transformers_weights="shards/w.safetensors")
    found = Embedder(wavlink_folder, backend="openvino")
    close(found.embed_text(TEXTS), -before)
    plain = Embedder(wavlink_folder)
    close(plain.embed_text(TEXTS), -before)
    assert found.revision == plain.revision


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_what_only_transformers_knows_is_left_to_it(file, wavlink_folder, cache):
    """A token that tokenizer.json does not know, and a size that config.json leaves to its default."""
    needs("openvino")
    if file == "config.json":
        edit(wavlink_folder / file, audio_config__num_mel_bins=None)
    else:
        tokenizer = load_for_evaluation(str(wavlink_folder))[1].tokenizer
        edit(wavlink_folder / file, additional_special_tokens=["dog"], extra_special_tokens=["dog"])
        assert tokenizer("hotdog")["input_ids"]
    texts = ["hotdog dogs", *TEXTS]
    for _ in range(2):
        found = Embedder(wavlink_folder, backend="openvino")
        close(found.embed_text(texts), Embedder(wavlink_folder).embed_text(texts))
        close(vectors(found), vectors(Embedder(wavlink_folder)))


@pytest.mark.slow
def test_a_converted_model_is_called_as_in_torch(wavlink_folder):
    needs("openvino")
    plain, found = Embedder(wavlink_folder), Embedder(wavlink_folder, backend="openvino")
    for kind in ("np", "pt"):
        inputs = found.processor(text=TEXTS, return_tensors=kind, truncation=True, max_length=4)
        expected = plain.processor(text=TEXTS, return_tensors=kind, truncation=True, max_length=4)
        np.testing.assert_array_equal(inputs["input_ids"], expected["input_ids"])
    assert inputs.to("cpu").input_ids.dtype == torch.int64
    features = found.processor(audio=CLIPS[:2], sampling_rate=RATE, return_tensors="pt").input_features
    expected = found.model.get_audio_features(features).pooler_output
    close(found.model.get_audio_features(features.numpy()).pooler_output, expected.numpy(), 0)
    graph = found.model.get_audio_features(features.clone().requires_grad_()).pooler_output
    assert torch.equal(graph, expected)
    half = found.model.get_audio_features(features.bfloat16()).pooler_output
    assert half.dtype == torch.float32 and (half * expected).sum(1).min() > 0.9


@pytest.mark.slow
def test_a_folder_that_changes_while_it_is_converted_gets_no_note(wavlink_folder, cache, monkeypatch):
    needs("openvino")
    other = WavLinkModel.from_pretrained(wavlink_folder)
    with torch.no_grad():
        other.text_projection.weight *= -1
    convert = compiled_model.converted_folder

    def change(*arguments):
        other.save_pretrained(wavlink_folder)
        return convert(*arguments)

    monkeypatch.setattr(compiled_model, "converted_folder", change)
    before = Embedder(wavlink_folder, backend="openvino").embed_text(["a dog"])
    assert not list(cache.glob("openvino/folders/*"))
    monkeypatch.setattr(compiled_model, "converted_folder", convert)
    close(Embedder(wavlink_folder, backend="openvino").embed_text(["a dog"]), -before)


@pytest.mark.slow
def test_towers_are_compiled_when_they_are_needed_and_stay_those_that_were_opened(request, wavlink_folder, tmp_path):
    needs("openvino")
    export(wavlink_folder, "openvino")
    expected = Embedder(wavlink_folder).embed_text(["a dog"])
    opened = Embedder(wavlink_folder)
    vectors(opened)
    assert [tower._compiled is not None for tower in opened.model.towers.values()] == [True, False]
    other = save(request, tmp_path / "other", "clip", "eos")
    export(other, "openvino")
    shutil.rmtree(wavlink_folder / "openvino")
    shutil.copytree(other / "openvino", wavlink_folder / "openvino")
    close(opened.embed_text(["a dog"]), expected, 0)


def test_sessions_need_no_torch():
    code = "import sys, wavlink.backends.choice, wavlink.backends.sessions; sys.exit('torch' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_low_precision_pads_by_a_clips_own_length(size):
    """The part that a clip is in, and its padding, are the same alone and beside others."""
    lengths = np.array([37, 100, 1, 2995])[:size]
    mask = (np.arange(3000) < lengths[:, None]).astype(np.int64)
    values = np.random.default_rng(0).normal(size=(size, 2, 3000)).astype(np.float32)
    parts = sessions._by_own_length(values, mask)
    assert sorted(np.concatenate([rows for rows, _, _ in parts])) == list(range(size))
    for rows, clips, masks in parts:
        for row, clip, one in zip(rows, clips, masks, strict=True):
            assert clip.shape[1] == len(one) == min(-(-lengths[row] // 20) * 20, 3000) and one.sum() == lengths[row]
            np.testing.assert_array_equal(clip[:, : lengths[row]], values[row, :, : lengths[row]])
    ids = np.array([[5, 6, 7, 0], [5, 6, 0, 0], [8, 9, 7, 0]])
    parts = sessions._by_own_length(ids, (ids > 0).astype(np.int64))
    assert [(rows.tolist(), part.tolist()) for rows, part, _ in parts] == [
        ([1], [[5, 6]]),
        ([0, 2], [[5, 6, 7], [8, 9, 7]]),
    ]


SIGNALS = """
import gc, os, signal, sys
import numpy as np
from wavlink.backends.sessions import OpenVinoTower, import_openvino
from wavlink.backends.signal_stack import _Stack, ctypes

openvino = import_openvino()
from openvino import opset13 as ops

values = ops.parameter([-1, 2], np.int64, name="input_ids")
mask = ops.parameter([-1, 2], np.int64, name="attention_mask")
total = ops.convert(ops.add(values, mask), np.float32)
openvino.save_model(openvino.Model([total], [values, mask]), sys.argv[1], compress_to_fp16=False)


def stack():
    now = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return now.address, now.flags, now.size


before = stack()
tower = OpenVinoTower(sys.argv[1])
assert tower({"input_ids": np.ones((1, 2), np.int64)}).tolist() == [[2.0, 2.0]]
assert stack() == before, (before, stack())
del tower
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack of Linux")
@pytest.mark.parametrize("options", [[], ["-X", "faulthandler"]])  # which has a signal stack of its own
def test_a_signal_after_openvino_is_handled(options, tmp_path):
    """OpenVINO leaves the thread a signal stack in memory that it has freed."""
    needs("openvino")
    command = [sys.executable, *options, "-c", SIGNALS, str(tmp_path / "graph.xml")]
    done = run_process(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and done.stdout == "handled\n", done.stderr
