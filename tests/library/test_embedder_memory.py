"""An Embedder's memory: weights are held once, and those of a tower that is not used are not held."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import BertConfig, WhisperConfig

from modeling_wavlink import WavLinkConfig, WavLinkModel, pretrained_wavlink
from tests.conftest import RATE, tone
from tests.helpers import put_into_hub_cache
from wavlink import Embedder
from wavlink.backends.torch_cpu import PackedLinear, packing_pays
from wavlink.loading import weights_digest
from wavlink.mapped_weights import WeightsFile

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
def kib(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
import modeling_wavlink.modeling_wavlink, processing.processing_wavlink, wavlink.backends.torch_model
from wavlink.embedder import Embedder
before = kib("VmRSS")
embedder = Embedder(sys.argv[1])
vectors = list(embedder.embed_files([sys.argv[2]] * 32))
after_sounds = kib("VmHWM"), kib("VmRSS")
embedder.embed_text(["a dog barks"])
print(json.dumps([(value - before) / 1024 for value in (*after_sounds, kib("VmRSS"))]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize("place", ["folder", "Hub"])
def test_weights_are_held_once(place, processor, tmp_path):
    """The peak was over twice the weights: all of the file that is mapped, and packed copies of most of it."""
    audio = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    text = BertConfig(vocab_size=len(processor.tokenizer), hidden_size=768, num_hidden_layers=8)
    model = WavLinkModel(WavLinkConfig(audio_config=audio.to_dict(), text_config=text.to_dict(), projection_dim=64))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model/model.safetensors").stat().st_size / 2**20
    assert weights > 200
    put_into_hub_cache(tmp_path / "model", tmp_path / "home")
    soundfile.write(tmp_path / "sound.wav", tone(440, 2.0), RATE)
    offline = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **offline, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    source = str(tmp_path / "model") if place == "folder" else "user/model"
    command = [sys.executable, "-c", PROGRAM, source, str(tmp_path / "sound.wav")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    peak, resident, with_text = json.loads(done.stdout.splitlines()[-1])
    assert peak < 0.8 * weights + 40  # all are read once, to check and to hash them, but a part at a time
    assert resident < 0.6 * weights + 40  # the text tower's are not held
    assert with_text < 1.5 * weights + 40  # packed from the file, which is then mapped anew


def test_the_text_tower_is_packed_by_the_first_text(wavlink_folder):
    if not packing_pays(torch.float32):
        pytest.skip("no packed kernels for this processor")
    embedder, plain = Embedder(wavlink_folder), Embedder(wavlink_folder, fast_kernels=False)
    towers = embedder.model.audio_model, embedder.model.text_model
    packed = [any(isinstance(part, PackedLinear) for part in tower.modules()) for tower in towers]
    assert packed == [True, False]
    for _ in range(2):
        np.testing.assert_allclose(embedder.embed_text(["a dog"]), plain.embed_text(["a dog"]), atol=1e-5)
    assert any(isinstance(part, PackedLinear) for part in towers[1].modules())


def test_weights_of_a_new_mapping_are_the_same(wavlink_folder, monkeypatch):
    clip = tone(440, 0.7)
    mapped = next(Embedder(wavlink_folder, fast_kernels=False).embed_clips([clip]))
    monkeypatch.setattr(WeightsFile, "map_again", lambda *_: None)
    np.testing.assert_array_equal(next(Embedder(wavlink_folder, fast_kernels=False).embed_clips([clip])), mapped)


def test_weights_of_a_file_that_was_replaced_are_not_taken(model, wavlink_folder):
    weights = WeightsFile.of(wavlink_folder)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights.map_again(model)
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    path = wavlink_folder / "model.safetensors"
    shutil.copyfile(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    weights.map_again(model)
    assert not any(weight.any() for weight in model.parameters())


def test_texts_are_embedded_from_another_working_directory_and_without_the_folder(wavlink_folder, monkeypatch):
    expected = Embedder(wavlink_folder).embed_text(["a dog"])
    monkeypatch.chdir(wavlink_folder.parent)
    moved, left = (Embedder(wavlink_folder.name) for _ in range(2))
    monkeypatch.chdir("/")
    np.testing.assert_allclose(moved.embed_text(["a dog"]), expected, atol=1e-5)
    shutil.rmtree(wavlink_folder)
    np.testing.assert_allclose(left.embed_text(["a dog"]), expected, atol=1e-5)


def test_a_random_control_keeps_its_weights(model, wavlink_folder):
    model.control_seed = 0
    with torch.no_grad():
        model.logit_scale.fill_(7.0)
    WeightsFile.of(wavlink_folder).map_again(model)
    assert model.logit_scale == 7
    del model.control_seed


@pytest.mark.parametrize("source", ["", "a/b"])
def test_a_hub_id_has_no_file(source, model):
    assert WeightsFile.of(source) == WeightsFile(None)
    WeightsFile.of(source).map_again(model)
    assert WeightsFile.of(source).path_for(model) is None


def test_weights_that_are_mapped_anew_have_the_same_digest(model, wavlink_folder, monkeypatch):
    monkeypatch.setattr(pretrained_wavlink, "_MAPPED_AT_ONCE", 0)
    path = WeightsFile.of(wavlink_folder).path_for(model)
    assert weights_digest(model, path) == weights_digest(model)
    with torch.no_grad():
        model.logit_scale.fill_(7.0)
    assert weights_digest(model) != weights_digest(model, path)  # which is that of the file
    half = model.half()  # of which the file has no weight
    assert weights_digest(half, path) == weights_digest(half)
