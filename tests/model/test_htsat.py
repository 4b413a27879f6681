"""HTS-AT as the audio tower: transformers' vectors out of any CLAP, no batch-mates in a clip's, and every door."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoProcessor,
    ClapAudioConfig,
    ClapAudioModel,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapModel,
)

import train
from hub_cards import push
from modeling_wavlink import WavLinkClapAudioModel, WavLinkConfig, WavLinkModel
from processing import WavLinkClapFeatureExtractor, WavLinkProcessor
from processing.collator import AudioTextCollator
from tests.clean_process import run_clean
from tests.htsat_models import AUDIO, RATE, tone, whole_clap
from wavlink.compat import enable_checkpointing
from wavlink.training.grad_cache import backward, trim

CAPTIONS = ["a dog", "the cat", "the bell rings", "low rain", "a dog"]


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(11)
    whole_clap().save_pretrained(folder)
    ClapFeatureExtractor(16, max_length_s=2, truncation="rand_trunc", frequency_min=50).save_pretrained(folder)
    return folder


@pytest.fixture
def model(clap_folder, bert_folder) -> WavLinkModel:
    torch.manual_seed(0)
    return WavLinkModel.from_audio_text_pretrained(str(clap_folder), str(bert_folder), text_pooling="mean").eval()


@pytest.fixture(scope="module")
def processor(clap_folder, bert_folder) -> WavLinkProcessor:
    return WavLinkProcessor.from_audio_text_pretrained(str(clap_folder), str(bert_folder))


@pytest.fixture(scope="module")
def batch(processor) -> dict[str, torch.Tensor]:
    """Five clips of 1, 1, 2, 3 and 1 windows, two with the same caption."""
    seconds = (0.3, 2.0, 3.1, 5.0, 1.7)
    rows = [
        {"audio": {"array": tone(200 * 2**i, length, i), "sampling_rate": RATE}, "captions": [caption]}
        for i, (length, caption) in enumerate(zip(seconds, CAPTIONS, strict=True))
    ]
    batch = AudioTextCollator(processor)(rows)
    assert batch["input_features_mask"].sum(1).tolist() == [1, 1, 2, 3, 1]
    return batch


def embed(model, processor, clips) -> torch.Tensor:
    with torch.no_grad():
        return model.get_audio_features(
            **processor(audio=clips, sampling_rate=RATE, return_tensors="pt")
        ).pooler_output


def without_dropout(model) -> WavLinkModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.text_model.modules():
        if hasattr(layer, "dropout_prob"):
            layer.dropout_prob = 0.0
    return model


@pytest.mark.parametrize("layout", [ClapModel, ClapAudioModel, ClapAudioModelWithProjection])
def test_the_tower_of_any_layout_gives_claps_own_pooled_output(clap_folder, bert_folder, processor, tmp_path, layout):
    clap = ClapModel.from_pretrained(clap_folder).eval()
    saved = {ClapModel: clap, ClapAudioModel: clap.audio_model}.get(layout)
    if saved is None:
        saved = ClapAudioModelWithProjection(clap.config.audio_config)
        saved.audio_model.load_state_dict(clap.audio_model.state_dict())
    saved.save_pretrained(tmp_path)
    model = WavLinkModel.from_audio_text_pretrained(str(tmp_path), str(bert_folder)).eval()
    clips = [tone(300, 0.4), tone(900, 2.0), tone(2000, 1.1)]
    inputs = processor(audio=clips, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = clap.audio_model(input_features=inputs["input_features"])
        ours = model.audio_model(**inputs)
        embeds = model.get_audio_features(**inputs).pooler_output
    assert torch.equal(ours.pooler_output, expected.pooler_output)
    assert torch.equal(ours.last_hidden_state.transpose(1, 2), expected.last_hidden_state.flatten(2))
    projected = F.normalize(expected.pooler_output @ model.audio_projection.weight.T, dim=-1)
    torch.testing.assert_close(embeds, projected, atol=1e-6, rtol=0)
    assert (embeds @ embeds.T - torch.eye(3)).max() < 0.999  # the clips do lie apart


def test_windows_are_averaged(model, processor, clap_folder):
    clip = np.concatenate([tone(200, 2.0), tone(3000, 2.0), tone(800, 1.0)])  # 5 s: windows at 0, 1.5 and 3 s
    windows = [clip[round(start * RATE) :][: 2 * RATE] for start in (0, 1.5, 3)]
    clap = ClapAudioModel.from_pretrained(clap_folder, key_mapping={r"^audio_model\.": ""}).eval()
    extractor = ClapFeatureExtractor.from_pretrained(clap_folder)
    with torch.no_grad():
        features = extractor(windows, sampling_rate=RATE, return_tensors="pt")["input_features"]
        expected = clap(input_features=features).pooler_output
        inputs = processor(audio=[clip, tone()], sampling_rate=RATE, return_tensors="pt")
        found = model.audio_model(**inputs)
    torch.testing.assert_close(found.pooler_output[0], expected.mean(0), atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert not found.last_hidden_state[1].view(3, -1)[1:].any()


@pytest.mark.parametrize("training", [False, True])
def test_one_clip_one_vector(model, processor, training):
    without_dropout(model).train(training)
    clips = [tone(200 * 2**i, seconds, i) for i, seconds in enumerate((0.3, 2.0, 3.1, 5.0, 1.7))]
    before = {name: value.clone() for name, value in model.audio_model.named_buffers()}
    together = embed(model, processor, clips)
    alone = torch.cat([embed(model, processor, clip) for clip in clips])
    pairs = torch.cat([embed(model, processor, clips[start : start + 2]) for start in (0, 2, 4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, pairs, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2
    for name, value in model.audio_model.named_buffers():
        assert torch.equal(value, before[name]), name


def test_the_mask_is_what_hides_padding(model, processor):
    inputs = processor(audio=[tone(seconds=0.5), tone(seconds=4)], sampling_rate=RATE, return_tensors="pt")
    louder = {**inputs, "input_features": inputs["input_features"].clone()}
    louder["input_features"][0, 1] = 30.0
    with torch.no_grad():
        expected = model.get_audio_features(**inputs).pooler_output
        assert torch.equal(model.get_audio_features(**louder).pooler_output, expected)
        changed = model.get_audio_features(louder["input_features"]).pooler_output
    assert (changed[0] - expected[0]).abs().max() > 1e-2 and torch.equal(changed[1], expected[1])


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_chunks_give_the_gradients_of_the_whole_in_training(model, batch, micro_batch_size):
    without_dropout(model).train()

    def gradients(size):
        model.zero_grad()
        loss = backward(Accelerator(cpu=True), model, batch, size)
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    loss, expected = gradients(0)
    cached_loss, cached = gradients(micro_batch_size)
    assert cached_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_trim_drops_padding_windows(batch):
    chunk = trim({name: value[:3] for name, value in batch.items() if name != "caption_ids"})
    assert chunk["input_features"].shape == (3, 2, 201, 16) and chunk["input_features_mask"].shape == (3, 2)
    assert torch.equal(chunk["input_features"], batch["input_features"][:3, :2])


def test_one_step_teaches_every_parameter(model, batch):
    model.train()
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # A bias of keys moves no softmax.
            assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"logit_bias"}
    assert model.audio_model.audio_encoder.batch_norm.weight.grad.abs().max() > 1e-6


def test_a_new_tower_starts_with_log_mels_near_unit_scale(processor):
    tower = WavLinkClapAudioModel(ClapAudioConfig(**AUDIO))
    assert tower.training and not tower.audio_encoder.batch_norm.training
    inputs = processor(audio=[tone(100), tone(2000), tone(8000)], sampling_rate=RATE, return_tensors="pt")
    images = inputs["input_features"].transpose(1, 3)  # (B, F, T, 1), as ClapAudioEncoder feeds it
    normalised = tower.audio_encoder.batch_norm(images)
    torch.testing.assert_close(normalised, (images + 50) / 25, atol=1e-4, rtol=0)
    assert normalised.abs().max() < 4 and normalised.std() > 0.3


def test_saved_and_loaded_bit_for_bit(model, batch, tmp_path):
    inputs = {name: value for name, value in batch.items() if name != "caption_ids"}
    model.save_pretrained(tmp_path)
    loaded = WavLinkModel.from_pretrained(tmp_path).eval()
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert loaded.audio_model.audio_encoder.batch_norm.running_mean[0] == -60
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits_per_audio, model(**inputs).logits_per_audio)
    assert torch.equal(loaded.truncate_embeddings(torch.ones(1, 32), 8), torch.full((1, 8), 8**-0.5))


@pytest.mark.parametrize(
    "drop, add, message",
    [
        ("audio_model.audio_encoder.batch_norm.running_mean", None, "missing.*running_mean"),
        ("audio_model.audio_encoder.norm.weight", None, "missing.*norm.weight"),
        (None, "audio_model.audio_encoder.strange", "unexpected.*strange"),
    ],
)
def test_wrong_weights_are_refused(clap_folder, bert_folder, tmp_path, drop, add, message):
    folder = tmp_path / "clap"
    shutil.copytree(clap_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(drop, None)
    if add:
        weights[add] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        WavLinkModel.from_audio_text_pretrained(str(folder), str(bert_folder))


def test_what_is_no_usable_htsat_is_refused(bert_folder, tmp_path, model):
    whole_clap(enable_fusion=True, fusion_type="channel_map").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="enable_fusion=True.*clap-htsat-unfused"):
        WavLinkModel.from_audio_text_pretrained(str(tmp_path), str(bert_folder))
    with pytest.raises(ValueError, match="hidden_size must be the last stage's width, 32"):
        WavLinkConfig(audio_config={**AUDIO, "model_type": "clap_audio_model", "hidden_size": 64})
    with pytest.raises(ValueError, match="the last stage has 8 x 8 patches.*window of 16 x 16"):
        WavLinkConfig(audio_config={**AUDIO, "model_type": "clap_audio_model", "window_size": 16})
    with pytest.raises(ValueError, match="the audio tower must be a Whisper, a CLAP or a PaSST"):
        WavLinkModel.from_audio_text_pretrained(str(bert_folder), str(bert_folder))
    for shape in [(1, 16, 201), (1, 1, 201, 64), (1, 1, 257, 16), (1, 1, 0, 16)]:
        with pytest.raises(ValueError, match=r"\[batch, windows, 1 to 256 frames, 16\]"):
            model.get_audio_features(torch.zeros(shape))


def test_no_more_is_claimed_than_transformers_has(model, tmp_path):
    model.set_attn_implementation("sdpa")
    assert model.text_model.config._attn_implementation == "sdpa"
    assert model.audio_model.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    for attention in ("sdpa", "eager"):
        loaded = WavLinkModel.from_pretrained(tmp_path, attn_implementation=attention)
        assert loaded.text_model.config._attn_implementation == attention
        assert loaded.audio_model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="gradient checkpointing|activation checkpointing"):
        enable_checkpointing(model)


@pytest.mark.slow
def test_auto_classes_and_pipeline_in_a_clean_process(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    clips = [tone(300, 1.3), tone(700, 3.0)]
    np.savez(tmp_path / "clips.npz", *clips)
    run_clean(
        """
        import numpy as np, torch
        from transformers import AutoModel, AutoProcessor, pipeline
        folder = sys.argv[1]
        clips = list(np.load("clips.npz").values())
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        assert processor.feature_extractor.sampling_rate == 48000
        inputs = processor(audio=clips, sampling_rate=48000, return_tensors="pt")
        with torch.no_grad():
            np.save("vectors.npy", model.get_audio_features(**inputs).pooler_output.numpy())
        classify = pipeline("zero-shot-audio-classification", model=folder, trust_remote_code=True)
        labels = ["dog", "cat", "bell"]
        answers = classify(clips[1], candidate_labels=labels)
        np.save("scores.npy", [next(a["score"] for a in answers if a["label"] == label) for label in labels])
        """,
        tmp_path,
        tmp_path=tmp_path,
    )
    texts = [f"This is a sound of {label}." for label in ("dog", "cat", "bell")]
    with torch.no_grad():
        output = model(**processor(audio=clips, text=texts, sampling_rate=RATE, return_tensors="pt"))
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), output.audio_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        np.load(tmp_path / "scores.npy"), output.logits_per_audio[1].softmax(0).numpy(), atol=1e-5
    )


def test_sentence_transformer_encodes_at_48_khz(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    door = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    clips = [tone(200, 0.5), tone(900, 3.0)]
    sounds = door.encode([{"array": clip, "sampling_rate": RATE} for clip in clips])
    np.testing.assert_allclose(sounds, embed(model, processor, clips).numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="16000"):
        door.encode([{"array": clips[0], "sampling_rate": 16000}])


@pytest.mark.slow
def test_an_htsat_is_pushed_with_its_card(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    push.main([str(tmp_path / "model"), "user/name", "--dry_run", "--output_dir", str(tmp_path / "out")])
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert (
        "| audio tower | HTS-AT of CLAP, width 32, without a global token |\n| text tower | bert, width 32 |\n" in text
    )
    assert "| a clip is encoded | in windows of 2 s, whose vectors are averaged; 48 kHz mono, up to 30 s |\n" in text
    assert "Whisper encoder" not in text


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [True, False])
def test_the_loop_trains_scores_and_saves(tones_44k, clap_folder, bert_folder, tmp_path, pretrained):
    options = ["--data", str(tones_44k), "--output_dir", str(tmp_path), "--batch_size", "3", "--epochs", "2"]
    options += ["--num_workers", "0", "--mixed_precision", "no", "--micro_batch_size", "2"]
    if pretrained:
        options = ["sounds", *options, "--audio_model", str(clap_folder), "--text_model", str(bert_folder)]
    else:  # a recipe's new tower takes windows of 10 s: 1001 frames of 64 bins on 1024 x 64, folded to 256 x 256
        audio = {
            **AUDIO,
            "model_type": "clap_audio_model",
            "num_mel_bins": 64,
            "spec_size": 256,
            "patch_size": 16,
            "patch_stride": 16,
        }
        options = ["quickstart", *options, "--label_prompt", "", "--audio_config", json.dumps(audio)]
    train.train(train.parse_recipe(options))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    assert 0 < records[-1]["validation"]["text_to_audio"]["32" if pretrained else "128"]["R@5"]["value"] <= 1
    model = AutoModel.from_pretrained(tmp_path / "best", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "best", trust_remote_code=True)
    assert type(processor.feature_extractor).__name__ == WavLinkClapFeatureExtractor.__name__
    assert embed(model, processor, tone(440, 2.5)).shape == (1, model.config.projection_dim)
    mean = model.audio_model.audio_encoder.batch_norm.running_mean
    assert torch.equal(mean, torch.linspace(-60, -20, 16) if pretrained else torch.full((64,), -50.0))
