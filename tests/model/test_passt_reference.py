"""PaSST against its reference implementation: vectors and log-mels recorded from it, and itself where installed.

`hear21passt` needs torchaudio and timm, and is no dependency; `python -m tests.model.test_passt_reference` records it.
"""

import json
import warnings

import numpy as np
import pytest
import torch

from modeling_wavlink import WavLinkPasstModel
from processing import WavLinkPasstFeatureExtractor
from tests.passt_models import LENGTHS, RATE, RECORD, features, tone, weights

CLIP = tone(900.0, 0.3)  # 30 frames


@pytest.fixture(scope="module")
def record() -> dict[str, np.ndarray]:
    return dict(np.load(RECORD))


@pytest.fixture(scope="module")
def tower() -> WavLinkPasstModel:
    return WavLinkPasstModel.from_passt_weights(weights(), num_attention_heads=4).eval()


def reference():
    """The reference's network of the recorded sizes, and its log-mel as in its `get_basic_model`, in evaluation."""
    passt = pytest.importorskip("hear21passt.models.passt", reason="the reference implementation is not installed")
    preprocess = pytest.importorskip("hear21passt.models.preprocess")
    passt.first_RUN = False  # else it prints every shape
    sizes = {"img_size": (128, 98), "stride": (10, 10), "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    net = passt.PaSST(**sizes, patch_size=16, in_chans=1, num_classes=5, distilled=True)
    net.load_state_dict(weights({name: list(weight.shape) for name, weight in net.state_dict().items()}))
    mel = preprocess.AugmentMelSTFT(freqm=48, timem=192, fmax=None, fmin_aug_range=10, fmax_aug_range=2000)
    return net.eval(), mel.eval()


def recorded(net, mel) -> dict[str, np.ndarray]:
    """What is recorded of the reference."""
    stft = torch.stft
    with torch.no_grad(), warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # torch no longer returns real pairs, as the reference asks for.
        patch.setattr(
            torch,
            "stft",
            lambda *args, return_complex, **options: torch.view_as_real(stft(*args, return_complex=True, **options)),
        )
        result = {f"vectors_{frames}": net(features(frames)[:, None])[1].numpy() for frames in LENGTHS}
        result["log_mel"] = mel(torch.from_numpy(CLIP)[None])[0].numpy()
    result["shapes"] = np.array(json.dumps({name: list(weight.shape) for name, weight in net.state_dict().items()}))
    return result


def test_the_record_is_what_the_reference_computes(record):
    now = recorded(*reference())
    assert now.keys() == record.keys() and str(now.pop("shapes")) == str(record["shapes"])
    for name, expected in now.items():
        np.testing.assert_allclose(record[name], expected, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("frames", LENGTHS)
def test_vectors_are_the_references(tower, record, frames, attention):
    tower.set_attn_implementation(attention)
    with torch.no_grad():
        output = tower(features(frames))
    expected = record[f"vectors_{frames}"]
    np.testing.assert_allclose(output.pooler_output.numpy(), expected, atol=1e-5, rtol=0)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    assert output.last_hidden_state.shape == (2, 12 * ((frames - 16) // 10 + 1), 32)


def test_the_log_mel_is_the_references(record):
    found = WavLinkPasstFeatureExtractor()(CLIP, sampling_rate=RATE, return_tensors="np")
    assert found["input_features"].dtype == np.float32 and record["log_mel"].shape == (128, 30)
    # The record is of another processor, whose FFT rounds otherwise; the logarithm of a quiet band magnifies that.
    power, expected = (
        np.exp(5.0 * mel.astype(np.float64) - 4.5) for mel in (found["input_features"][0], record["log_mel"])
    )
    np.testing.assert_allclose(power, expected, atol=5e-9, rtol=5e-5)
    assert record["log_mel"].std() > 0.1


@pytest.mark.parametrize("samples", [4801, RATE, 33333, 10 * RATE - 1, 10 * RATE])
def test_log_mels_of_any_length_are_the_references(samples):
    _, mel = reference()
    clip = tone(300.0, samples / RATE)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stft = torch.stft
        patch.setattr(
            torch,
            "stft",
            lambda *args, return_complex, **options: torch.view_as_real(stft(*args, return_complex=True, **options)),
        )
        expected = mel(torch.from_numpy(clip)[None]).numpy()
    found = WavLinkPasstFeatureExtractor()(clip, sampling_rate=RATE, return_tensors="np")["input_features"]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "size, stride, window_frames",
    [((128, 998), 10, 1000), ((128, 998), 16, 1000), ((128, 2000), 10, 2000), ((128, 3200), 10, 3200)],
)
def test_sizes_of_released_checkpoints(size, stride, window_frames):
    """The grids of the reference's architectures: 10 s, 10 s without overlap, 20 s, and 10 s at a hop of 100."""
    shapes = json.loads(str(np.load(RECORD)["shapes"]))
    shapes["freq_new_pos_embed"][2], shapes["time_new_pos_embed"][3] = (length // stride for length in size)
    tower = WavLinkPasstModel.from_passt_weights(weights(shapes), num_attention_heads=4)
    config = tower.config
    assert (config.frequency_stride, config.time_stride, config.window_frames) == (stride, stride, window_frames)
    assert config.time_positions == size[1] // stride
    with torch.no_grad():
        assert tower.eval()(features(window_frames, 1)).pooler_output.isfinite().all()


if __name__ == "__main__":
    np.savez_compressed(RECORD, **recorded(*reference()))
