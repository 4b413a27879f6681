"""ONNX exports of wavlink-tiny on real clips of 1 to 30 s: WAVLINK_SOUNDS=... pytest -m real -s"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("nncf")

from processing.audio import load_audio  # noqa: E402
from processing.datasets.load import captions_of, durations, load_split  # noqa: E402
from wavlink import bundled_models  # noqa: E402
from wavlink.backends.export import export, report  # noqa: E402
from wavlink.backends.int8_search import Split  # noqa: E402
from wavlink.backends.sessions import OnnxTower  # noqa: E402
from wavlink.loading import load_for_evaluation  # noqa: E402

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
SECONDS = (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30)
PRECISIONS = ("fp32", "int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of wavlink-tiny, which gets the exports."""
    return shutil.copytree(bundled_models.MODELS / "wavlink-tiny", tmp_path_factory.mktemp("onnx") / "tiny")


@pytest.fixture(scope="module")
def exports(folder, sounds) -> dict[str, dict]:
    """The records of both exports; int8 has passed its gate on the validation split."""
    calibration, validation = Split(str(sounds), "train"), Split(str(sounds), "validation")
    return {
        "fp32": export(folder, "onnx"),
        "int8": export(folder, "onnx", "int8", calibration, validation),
    }


@pytest.fixture(scope="module")
def towers(folder, exports) -> dict[str, dict[str, OnnxTower]]:
    return {
        precision: {
            name: OnnxTower(folder / "onnx" / tower["file"], precision, 1) for name, tower in record["towers"].items()
        }
        for precision, record in exports.items()
    }


@pytest.fixture(scope="module")
def model():
    return load_for_evaluation("")


@pytest.fixture(scope="module")
def rows(sounds):
    """Test clips whose lengths are nearest to `SECONDS`."""
    test = load_split(str(sounds), "test")
    lengths = np.array(durations(test))
    return test.select([int(np.abs(lengths - seconds).argmin()) for seconds in SECONDS])


@pytest.fixture(scope="module")
def audio(rows, model) -> list[dict]:
    """The features of each clip, as a batch of one."""
    clips = [load_audio(row["audio"]["path"])[: 30 * 16000] for row in rows]
    assert len(clips[0]) < 1.5 * 16000 and len(clips[-1]) > 29 * 16000
    return [model[1](audio=[clip], sampling_rate=16000, return_tensors="np") for clip in clips]


@torch.no_grad()
def torchs(model, inputs: dict) -> np.ndarray:
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items() if name != "token_type_ids"}
    embed = model[0].get_text_features if "input_ids" in tensors else model[0].get_audio_features
    return embed(**tensors).pooler_output.numpy()


def padded(batch: list[dict], frames: int, noise: float = 0.0) -> dict:
    """A batch of clips, each padded to so many frames; the masked ones hold noise."""
    values = np.random.default_rng(0).normal(scale=noise, size=(len(batch), 80, frames)).astype(np.float32)
    mask = np.zeros((len(batch), frames), np.int64)
    for row, one in enumerate(batch):
        length = one["input_features"].shape[2]
        values[row, :, :length], mask[row, :length] = one["input_features"][0], 1
    return {"input_features": values, "input_features_mask": mask}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_opset_and_sizes_are_stated(precision, folder, exports):
    record = exports[precision]
    assert json.loads((folder / "onnx" / f"wavlink_{precision}.json").read_text()) == record
    text = report(folder / "onnx", record)
    for tower in record["towers"].values():
        path = folder / "onnx" / tower["file"]
        graph = onnx.load(path)
        assert {entry.domain: entry.version for entry in graph.opset_import}[""] == tower["opset"] >= 18
        assert record["files"][tower["file"]] == path.stat().st_size
        assert f"{path.stat().st_size / 1e6:.1f} MB, opset {tower['opset']}" in text
        kinds = {node.op_type for node in graph.graph.node}
        assert ({"QuantizeLinear", "DequantizeLinear"} <= kinds) == (precision == "int8")
        assert "DynamicQuantizeLinear" not in kinds  # whose scales would be a batch's
    print("\n" + text)


def test_fp32_equals_torch(towers, model, audio, rows):
    expected = np.concatenate([torchs(model, one) for one in audio])
    alone = np.concatenate([towers["fp32"]["audio"](one) for one in audio])
    print(f"\nfp32: largest difference to torch {np.abs(alone - expected).max():.1e}")
    np.testing.assert_allclose(alone, expected, atol=1e-5, rtol=0)
    together = towers["fp32"]["audio"](padded(audio, 3000))
    np.testing.assert_allclose(together, expected, atol=1e-5, rtol=0)
    texts = [captions_of(row, ["caption"])[0] for row in rows]
    batch = model[1](text=texts, return_tensors="np")
    np.testing.assert_allclose(towers["fp32"]["text"](batch), torchs(model, batch), atol=1e-5, rtol=0)


def test_int8_is_near_torch_and_finds_as_much(towers, exports, model, audio):
    expected = np.concatenate([torchs(model, one) for one in audio])
    cosines = (np.concatenate([towers["int8"]["audio"](one) for one in audio]) * expected).sum(1)
    print(f"\nint8: cosine to torch mean {cosines.mean():.4f}, least {cosines.min():.4f}; {exports['int8']['cosine']}")
    assert cosines.mean() > 0.98 and cosines.min() > 0.9
    for dims in exports["int8"]["R@10"].values():
        assert set(dims) == {"48", "96", "192", "384"}
        assert all(found["fp32"] - found["int8"] <= 0.5 + 1e-6 for found in dims.values()), dims


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_does_not_depend_on_its_batch(precision, towers, audio):
    """Bit-equal in one batch size, whatever the other clips and the masked frames are; to 1e-5 across batch sizes."""
    tower = towers[precision]["audio"]
    alone = np.concatenate([tower(one) for one in audio])
    whole = padded(audio, 3000)
    together = tower(whole)
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(tower(padded(audio, 3000, noise=3.0)), together)
    np.testing.assert_array_equal(tower(padded(audio[::-1], 3000))[::-1], together)
    for size in (2, 3):
        batch = [audio[5], *audio[:1] * (size - 1)]
        other = [audio[5], *audio[7:8] * (size - 1)]
        np.testing.assert_array_equal(tower(padded(batch, 3000))[0], tower(padded(other, 3000))[0])
        np.testing.assert_allclose(tower(padded(batch, 1200))[0], alone[5], atol=1e-5, rtol=0)
