"""ONNX: torch's vectors in onnxruntime at any batch and length, what int8 costs, and their use without torch."""

import copy
import importlib.util
import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import ClapAudioConfig

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from modeling_wavlink import WavLinkConfig, WavLinkModel  # noqa: E402
from processing import WavLinkProcessor  # noqa: E402
from processing.audio import load_audio  # noqa: E402
from processing.datasets.load import captions_of, load_split  # noqa: E402
from processing.datasets.synthetic import KINDS, render  # noqa: E402
from tests.conftest import RATE, tone  # noqa: E402
from tests.htsat_models import AUDIO  # noqa: E402
from tests.passt_models import AUDIO as PASST  # noqa: E402
from tests.processes import run_process  # noqa: E402
from wavlink.backends import onnx as onnx_export  # noqa: E402
from wavlink.backends.onnx import CONFIG, export_onnx, load, main, measured, run  # noqa: E402

pytestmark = pytest.mark.slow  # an export takes seconds

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_without_torch.py"
SECONDS = (1.111, 0.0123, 0.5, 2.0)  # 112 frames, 2, 50 and 200
TEXTS = ["a dog barks", "the loud bell rings . the low cat meows", "rain"]
# (text tower, its pooling, the audio pooling, frames pooled to one, opset); `served` is another, with BERT
TOWERS = [("clip", "eos", "token_mean", 3, None), ("modernbert", "cls", "mean", 1, 18)]


def build(request, text, text_pooling, pooling="token", frame_pooling=1) -> tuple[WavLinkModel, WavLinkProcessor]:
    folders = [str(request.getfixturevalue(f"{name}_folder")) for name in ("whisper", text)]
    torch.manual_seed(0)
    options = {"text_pooling": text_pooling, "pooling": pooling, "frame_pooling": frame_pooling}
    model = WavLinkModel.from_audio_text_pretrained(*folders, **options).eval()
    torch.nn.init.normal_(model.audio_model.global_token)
    return model, WavLinkProcessor.from_audio_text_pretrained(*folders)


def clips() -> list[np.ndarray]:
    return [tone(300 + 200 * i, seconds, seed=i) for i, seconds in enumerate(SECONDS)]


def audio_inputs(processor, clips, **options):
    return processor(audio=clips, sampling_rate=RATE, return_tensors="pt", **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, whisper_folder, bert_folder) -> dict:
    """An export of a model in half precision and in training, that model, the same in fp32, and the processor."""
    folders = str(whisper_folder), str(bert_folder)
    torch.manual_seed(0)
    half = WavLinkModel.from_audio_text_pretrained(*folders, text_pooling="mean").bfloat16().train()
    half.config.label_prompts = ["a {}"]
    half.config.match_calibration = {"prior": 0.1, "dims": {"32": {"slope": 5.0, "intercept": -1.0}}}
    processor = WavLinkProcessor.from_audio_text_pretrained(*folders)
    folder = tmp_path_factory.mktemp("onnx") / "served"
    about = export_onnx(half, processor, folder)
    model = copy.deepcopy(half).float().eval()
    return {"folder": folder, "half": half, "model": model, "processor": processor, "about": about}


@pytest.fixture
def served(exported) -> tuple[Path, WavLinkModel, WavLinkProcessor]:
    return exported["folder"], exported["model"], exported["processor"]


@pytest.fixture
def graphs_at_hand(served, monkeypatch):
    """Spares tests of what is done with a graph the seconds in which torch writes it."""

    def copy_graph(tower, path, *_):
        shutil.copy(served[0] / path.name, path)
        return 20

    monkeypatch.setattr(onnx_export, "_write_graph", copy_graph)


@pytest.fixture(scope="module")
def example():
    """examples/onnx_without_torch.py as a module."""
    spec = importlib.util.spec_from_file_location("onnx_without_torch", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agrees(folder, about, model, processor):
    audio, texts = load(folder / "audio.onnx"), load(folder / "text.onnx")
    assert about == json.loads((folder / CONFIG).read_text()) and about["precision"] == "fp32"
    assert set(about["agreement"]) == {"audio", "text"} and max(about["agreement"].values()) < 1e-4
    with torch.no_grad():
        for batch in ([tone(seconds=30)], clips(), clips()[::-1], [tone(seconds=0.01)]):
            inputs = audio_inputs(processor, batch)
            expected = model.get_audio_features(**inputs).pooler_output.numpy()
            np.testing.assert_allclose(run(audio, inputs), expected, atol=1e-4)
        for batch in (TEXTS, TEXTS[:1], [" ".join(TEXTS * 9)]):
            inputs = processor(text=batch, return_tensors="pt")
            expected = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output.numpy()
            np.testing.assert_allclose(run(texts, inputs), expected, atol=1e-4)
            np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


def test_onnxruntime_agrees_with_torch_at_any_batch_and_length(exported):
    agrees(*(exported[name] for name in ("folder", "about", "model", "processor")))


@pytest.mark.parametrize(("text", "text_pooling", "pooling", "frame_pooling", "opset"), TOWERS)
def test_with_every_text_tower_and_pooling(text, text_pooling, pooling, frame_pooling, opset, request, tmp_path):
    model, processor = build(request, text, text_pooling, pooling, frame_pooling)
    about = export_onnx(model, processor, tmp_path / "onnx", opset=opset)
    assert about["opset"] == (opset or 20)
    agrees(tmp_path / "onnx", about, model, processor)


def test_onnx_vectors_are_independent_of_batch_and_padding(served):
    folder, _, processor = served
    audio, text = load(folder / "audio.onnx"), load(folder / "text.onnx")
    together = run(audio, audio_inputs(processor, clips()))
    alone = np.concatenate([run(audio, audio_inputs(processor, [clip])) for clip in clips()])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    inputs = audio_inputs(processor, clips())
    inputs["input_features"] += 3 * (1 - inputs["input_features_mask"][:, None])  # masked frames are not attended to
    np.testing.assert_allclose(run(audio, inputs), alone, atol=1e-5)
    inputs["input_features_mask"] = torch.ones_like(inputs["input_features_mask"])
    assert np.abs(run(audio, inputs) - alone).max() > 1e-3
    together = run(text, processor(text=TEXTS, return_tensors="np"))
    alone = np.concatenate([run(text, processor(text=[one], return_tensors="np")) for one in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_exported_folder_describes_its_preprocessing(served):
    folder, model, processor = served
    about = json.loads((folder / CONFIG).read_text())
    assert {path.name for path in folder.iterdir()} >= {
        "audio.onnx",
        "text.onnx",
        "tokenizer.json",
        "preprocessor_config.json",
        "mel_filters.npy",
    }
    assert not [path for path in folder.iterdir() if path.suffix == ".py"]
    assert about["matryoshka_dims"] == model.config.matryoshka_dims and about["projection_dim"] == 32
    for name in ("label_prompts", "match_calibration"):
        assert about[name] == getattr(model.config, name) is not None
    assert about["logit_scale"] == pytest.approx(model.logit_scale.item()) and about["logit_bias"] == 0
    assert (about["sampling_rate"], about["padding"], about["max_samples"]) == (RATE, "longest", 480000)
    assert (about["text_max_length"], about["pad_token_id"]) == (32, processor.tokenizer.pad_token_id)
    assert list(folder.parent.iterdir()) == [folder]


def test_export_does_not_change_the_model(exported):
    assert exported["half"].training and exported["half"].dtype == torch.bfloat16


def test_int8_states_its_cosine_to_fp32(served, graphs_at_hand, tmp_path):
    folder, model, processor = served
    about = export_onnx(model, processor, tmp_path / "int8", int8=True)
    assert about["precision"] == "int8" and json.loads((tmp_path / "int8" / CONFIG).read_text()) == about
    for name in ("audio", "text"):
        full, small = load(folder / f"{name}.onnx"), load(tmp_path / "int8" / f"{name}.onnx")
        vectors = [(run(full, one)[0], run(small, one)[0]) for one in measured(name, processor)]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in vectors]
        stated = about["int8_cosine"][name]
        assert stated["measured"] == len(cosines) == 32
        assert stated["mean"] == pytest.approx(np.mean(cosines), abs=1e-5)
        assert stated["min"] == pytest.approx(np.min(cosines), abs=1e-5)
        assert 0.98 < stated["min"] < 0.999999  # close, and not fp32 under another name


def test_int8_of_weights_beside_their_graph(served, monkeypatch, tmp_path):
    """As Large has them, over 2 GB; in int8 they fit into the graph, and nothing is left beside it."""
    folder, model, processor = served
    beside = []

    def write_graph(tower, path, *_):
        graph = onnx.load(folder / path.name)
        onnx.save(graph, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=256)
        beside.append((path.parent / f"{path.name}.data").stat().st_size)
        return 20

    monkeypatch.setattr(onnx_export, "_write_graph", write_graph)
    export_onnx(model, processor, tmp_path / "int8", int8=True)
    assert len(beside) == 2 and min(beside) > 10000 and not list((tmp_path / "int8").glob("*.data*"))
    assert not [path for path in (tmp_path / "int8").iterdir() if path.is_dir()]
    assert run(load(tmp_path / "int8" / "audio.onnx"), audio_inputs(processor, clips())).shape == (len(SECONDS), 32)


@pytest.mark.parametrize("wrong", [lambda vectors: vectors + 2e-4, lambda vectors: vectors * np.nan])
def test_failed_export_leaves_the_folder_unchanged(wrong, served, graphs_at_hand, tmp_path, monkeypatch):
    _, model, processor = served
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / CONFIG).write_text("{}")
    monkeypatch.setattr(onnx_export, "run", lambda session, inputs: wrong(run(session, inputs)))
    with pytest.raises(ValueError, match="audio vectors in onnxruntime differ"):
        export_onnx(model, processor, kept)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", CONFIG]


def test_what_cannot_be_exported_is_refused(served, tmp_path):
    _, model, processor = served
    with pytest.raises(ValueError, match="'bert' model"):
        export_onnx(model.text_model, processor, tmp_path / "onnx")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with pytest.raises(ValueError, match="give a new folder"):
        export_onnx(model, processor, tmp_path / "photos")
    (tmp_path / "photos" / "me.jpg").unlink()
    for audio in (ClapAudioConfig(**AUDIO), {"model_type": "passt", **PASST}):
        other = WavLinkModel(WavLinkConfig(audio, model.config.text_config))
        with pytest.raises(ValueError, match="must be a Whisper: HTS-AT and PaSST pick"):
            export_onnx(other, processor, tmp_path / "onnx")

    class Untraceable(WavLinkModel):
        def get_audio_features(self, input_features, mask=None):
            raise RuntimeError("no kernel")

    with pytest.raises(ValueError, match="audio tower cannot be exported"):
        export_onnx(Untraceable(model.config), processor, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_tokenizer_with_steps_outside_its_file_is_refused(served, tmp_path):
    _, model, processor = served

    class Shouting(WavLinkProcessor):
        def _tokenize(self, text, **kwargs):
            texts = [text] if isinstance(text, str) else text
            return super()._tokenize([f"{one} loud" for one in texts], **kwargs)

    with pytest.raises(ValueError, match="otherwise than the processor"):
        export_onnx(model, Shouting(processor.feature_extractor, processor.tokenizer), tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(served, graphs_at_hand, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "load_for_evaluation", {"runs/best": served[1:]}.__getitem__)
    main(["runs/best", str(tmp_path / "onnx"), "--int8"])
    about = json.loads((tmp_path / "onnx" / CONFIG).read_text())
    printed = capsys.readouterr().out
    for name in ("audio", "text"):
        size = (tmp_path / "onnx" / f"{name}.onnx").stat().st_size
        assert about["bytes"][name] == size and f"  {name}: {size / 1e6:.1f} MB" in printed
    assert f"MB, opset {about['opset']}" in printed
    assert "int8" in printed and f"min {about['int8_cosine']['text']['min']:.4f}" in printed


def test_export_prints_only_its_own_lines(served, tmp_path, monkeypatch, capfd):
    def write_graph(tower, path, *_):
        warnings.warn("foreign", FutureWarning, stacklevel=1)
        logging.getLogger("torch.onnx.foreign").warning("foreign")
        logging.warning("foreign")
        shutil.copy(served[0] / path.name, path)
        return 20

    monkeypatch.setattr(onnx_export, "_write_graph", write_graph)
    monkeypatch.setattr(onnx_export, "load_for_evaluation", {"runs/best": served[1:]}.__getitem__)
    main(["runs/best", str(tmp_path / "onnx"), "--int8"])
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 6 and all(line.endswith(" ...") for line in captured.err.splitlines())
    assert "loading runs/best ..." in captured.err and "exporting the text tower ..." in captured.err
    assert "foreign" not in captured.out


# Without torch.


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_the_log_mel_is_the_extractors(example, served, padding):
    """To 1e-5 of what it computes in double precision. Itself it computes in single, which moves bins 80 dB under the
    clip's maximum by more, and those of noise by less."""
    folder, _, processor = served
    extractor, wavlink = processor.feature_extractor, example.WavLink(folder)
    wavlink.about["padding"] = padding
    noise = np.random.default_rng(0).normal(scale=0.1, size=20001).astype(np.float32)
    sounds = [render(kind, np.random.default_rng(0))[0].astype(np.float32) for kind in list(KINDS)[::8]]
    for clip in [noise[:1], noise[:400], noise, tone(seconds=30), *sounds]:
        found = wavlink.log_mel(clip)
        single = extractor(clip, sampling_rate=RATE, padding=padding, return_tensors="np").input_features[0]
        padded = np.zeros(480000 if padding == "max_length" else min((single.shape[1] + 2) * 160, 480000))
        padded[: len(clip)] = clip
        double = extractor._np_extract_fbank_features(padded[None], "cpu")[0][:, : single.shape[1]]
        assert found.shape == single.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, double, atol=1e-5)
        assert np.abs(found - single).mean() < 2e-6
        if clip is noise:
            np.testing.assert_allclose(found, single, atol=1e-5)


STRANGERS = ("torch", "transformers", "modeling_wavlink", "processing", "wavlink")


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """In which these cannot be imported."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in STRANGERS:
        (hidden / f"{name}.py").write_text(f"raise ImportError('{name} is not needed')")
    return {**os.environ, "PYTHONPATH": str(hidden)}


def test_the_example_needs_no_torch(served, environment, tmp_path):
    folder, model, processor = served
    for number, clip in enumerate(clips()):
        soundfile.write(tmp_path / f"{number}.wav", clip, RATE, subtype="FLOAT")
    files = [str(tmp_path / f"{number}.wav") for number in range(len(SECONDS))]
    command = [sys.executable, str(EXAMPLE), str(folder), *files, "--text", *TEXTS]
    done = run_process(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    with torch.no_grad():
        sounds = model.get_audio_features(**audio_inputs(processor, clips())).pooler_output
        texts = model.get_text_features(**processor(text=TEXTS, return_tensors="pt")).pooler_output
    for number, row in enumerate((sounds @ texts.T).tolist()):
        name, *scores = lines[4 * number : 4 * number + 4]
        assert name == files[number]
        for score, cosine, text in zip(scores, row, TEXTS, strict=True):
            assert float(score.split()[0]) == pytest.approx(cosine, abs=6e-4) and score.endswith(text)
    refused = run_process([sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True)
    assert "torch is not needed" in refused.stderr


# Real weights: WAVLINK_SOUNDS=... WAVLINK_WEIGHTS=... pytest -m real -s


@pytest.mark.real
def test_real_towers(weights, sounds, example, tmp_path):
    towers = str(weights / "whisper-tiny.en"), str(weights / "all-MiniLM-L6-v2")
    torch.manual_seed(0)
    model = WavLinkModel.from_audio_text_pretrained(*towers).eval()
    processor = WavLinkProcessor.from_audio_text_pretrained(*towers)
    clips = load_split(str(sounds), "test").select(range(0, 1157, 60))
    files = [clip["audio"]["path"] for clip in clips]
    captions = [captions_of(clip, ["caption"])[0] for clip in clips]
    with torch.no_grad():
        found = [
            model.get_audio_features(**audio_inputs(processor, [load_audio(file)])).pooler_output for file in files
        ]
        read = [
            model.get_text_features(**processor(text=text, return_tensors="pt")).pooler_output for text in captions
        ]
    expected = {"audio": torch.cat(found).numpy(), "text": torch.cat(read).numpy()}
    for precision, least in (("fp32", 1 - 1e-6), ("int8", 0.98)):
        about = export_onnx(model, processor, tmp_path / precision, int8=precision == "int8")
        served = example.WavLink(tmp_path / precision)
        vectors = {
            "audio": np.stack([served.embed_sound(file, file) for file in files]),
            "text": np.stack([served.embed_text(text) for text in captions]),
        }
        print(f"\n{about['precision']}: agreement {about['agreement']}, {about.get('int8_cosine')}")
        for name, vector in vectors.items():
            size = (tmp_path / precision / f"{name}.onnx").stat().st_size / 1e6
            cosines = (vector * expected[name]).sum(1)
            print(f"  {name}: {size:.1f} MB, real inputs' cosine mean {cosines.mean():.5f} min {cosines.min():.5f}")
            assert cosines.min() > least
            if precision == "fp32":
                assert max(about["agreement"].values()) < 1e-5
                np.testing.assert_allclose(vector, expected[name], atol=1e-4)


def test_repeated_export_keeps_foreign_files(served, graphs_at_hand, tmp_path):
    _, model, processor = served
    folder = tmp_path / "onnx"
    export_onnx(model, processor, folder)
    about = json.loads((folder / CONFIG).read_text())
    assert about["files"] == sorted(path.name for path in folder.iterdir())
    (folder / CONFIG).write_text(json.dumps({**about, "files": [*about["files"], "audio.onnx.data", "../precious"]}))
    (folder / "audio.onnx.data").write_text("of an earlier one")
    (tmp_path / "precious").write_text("mine")
    (folder / "Dockerfile").write_text("FROM scratch")
    (folder / ".git/objects").mkdir(parents=True)
    (folder / ".git/objects/ab").write_text("mine")
    (folder / "link").symlink_to("Dockerfile")
    inode = (folder / "Dockerfile").stat().st_ino
    export_onnx(model, processor, folder, int8=True)
    assert json.loads((folder / CONFIG).read_text())["precision"] == "int8"
    assert (folder / "Dockerfile").stat().st_ino == inode and (folder / "link").is_symlink()
    assert (folder / ".git/objects/ab").read_text() == (tmp_path / "precious").read_text() == "mine"
    left = {path.name for path in folder.iterdir()} - {*about["files"], ".lock"}
    assert left == {"Dockerfile", ".git", "link"}
    (folder / CONFIG).write_text(json.dumps({"files": [CONFIG]}))
    with pytest.raises(ValueError, match="which no export has written"):
        export_onnx(model, processor, folder)


def test_export_follows_links_and_writes_into_the_working_folder(served, graphs_at_hand, tmp_path, monkeypatch):
    _, model, processor = served
    (tmp_path / "disk").mkdir()
    (tmp_path / "onnx").symlink_to("disk")
    export_onnx(model, processor, tmp_path / "onnx")
    assert (tmp_path / "onnx").is_symlink() and (tmp_path / "disk" / CONFIG).is_file()
    monkeypatch.chdir(tmp_path / "disk")
    export_onnx(model, processor, ".")
    assert (tmp_path / "disk" / CONFIG).is_file() and not [*tmp_path.rglob("*unfinished")]
