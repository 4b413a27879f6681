"""PaSST as the audio tower: checkpoints of both layouts, one vector a clip, patch-out, training and Auto classes."""

import json

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

import train
from hub_cards import push
from modeling_wavlink import WavLinkConfig, WavLinkModel, WavLinkPasstConfig, WavLinkPasstModel
from processing import WavLinkFeatureExtractor, WavLinkPasstFeatureExtractor, WavLinkProcessor
from processing.collator import AudioTextCollator
from tests.clean_process import run_clean
from tests.passt_models import AUDIO, RATE, features, save_passt, tone, weights
from wavlink import Embedder
from wavlink.backends.torch_cpu import pack_layers
from wavlink.compat import enable_checkpointing
from wavlink.training.finetuning import set_trainable
from wavlink.training.grad_cache import backward, trim

SECONDS = (0.1, 0.5, 1.0, 1.3, 3.7)  # 1, 1, 1, 2 and 4 windows; the first is shorter than a patch
CLIPS = [tone(200 * 2**i, seconds, i) for i, seconds in enumerate(SECONDS)]
CAPTIONS = ["a dog", "the cat", "the bell rings", "low rain", "a dog"]


@pytest.fixture(scope="module")
def passt_folder(tmp_path_factory):
    return save_passt(tmp_path_factory.mktemp("passt"))


@pytest.fixture
def model(passt_folder, bert_folder) -> WavLinkModel:
    torch.manual_seed(0)
    return WavLinkModel.from_audio_text_pretrained(str(passt_folder), str(bert_folder), text_pooling="mean").eval()


@pytest.fixture(scope="module")
def processor(passt_folder, bert_folder) -> WavLinkProcessor:
    return WavLinkProcessor.from_audio_text_pretrained(str(passt_folder), str(bert_folder))


@pytest.fixture(scope="module")
def batch(processor) -> dict[str, torch.Tensor]:
    rows = [
        {"audio": {"array": clip, "sampling_rate": RATE}, "captions": [caption]}
        for clip, caption in zip(CLIPS, CAPTIONS, strict=True)
    ]
    batch = AudioTextCollator(processor)(rows)
    assert batch["input_features_mask"].sum(1).tolist() == [16, 50, 100, 200, 400]
    return batch


def embed(model, processor, clips) -> torch.Tensor:
    inputs = processor(audio=clips, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return model.get_audio_features(**inputs).pooler_output


def without_dropout(model) -> WavLinkModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return model


@pytest.mark.parametrize("layout", ["reference", "wrapper", "own", "no extractor"])
def test_a_checkpoint_of_any_layout_is_loaded(passt_folder, bert_folder, processor, tmp_path, layout):
    expected = WavLinkPasstModel.from_passt_weights(weights(), num_attention_heads=4).eval()
    folder = save_passt(tmp_path / "passt", prefix="net." if layout == "wrapper" else "")
    if layout == "wrapper":
        saved = load_file(folder / "model.safetensors") | {"device_proxy": torch.zeros(1)}
        save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    if layout == "own":
        expected.save_pretrained(folder)
        assert "layers.0.attn.qkv.weight" in load_file(folder / "model.safetensors")
    if layout == "no extractor":
        (folder / "preprocessor_config.json").unlink()
    model = WavLinkModel.from_audio_text_pretrained(str(folder), str(bert_folder)).eval()
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.audio_model.state_dict()[name], weight), name
    own = WavLinkProcessor.from_audio_text_pretrained(str(folder), str(bert_folder))
    found, inputs = (p(audio=CLIPS[:4], sampling_rate=RATE, return_tensors="pt") for p in (own, processor))
    assert torch.equal(found["input_features"], inputs["input_features"])
    with torch.no_grad():
        assert torch.equal(model.audio_model(**found).pooler_output, expected(**inputs).pooler_output)


@pytest.mark.parametrize(
    "drop, add, message",
    [
        ("norm.weight", None, r"missing \['norm.weight'\]"),
        ("blocks.1.attn.qkv.bias", None, r"missing \['layers.1.attn.qkv.bias'\]"),
        (None, "blocks.0.strange", r"unexpected \['layers.0.strange'\]"),
    ],
)
def test_wrong_weights_are_refused(bert_folder, tmp_path, drop, add, message):
    folder = save_passt(tmp_path)
    saved = load_file(folder / "model.safetensors")
    saved.pop(drop, None)
    if add:
        saved[add] = torch.zeros(1)
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        WavLinkModel.from_audio_text_pretrained(str(folder), str(bert_folder))
    with pytest.raises(ValueError, match=message):
        WavLinkPasstModel.from_passt_weights(saved, num_attention_heads=4)


def test_what_is_no_passt_is_refused(bert_folder, tmp_path):
    with pytest.raises(ValueError, match="not the weights of a PaSST: patch_embed.proj.weight, freq_new_pos_embed"):
        WavLinkPasstModel.from_passt_weights({"conv1.weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="embedding of 12 rows fits no stride of patches of 16 over 64 bands"):
        WavLinkPasstConfig.from_passt_weights(weights(), num_mel_bins=64)
    folder = save_passt(tmp_path)
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "ASTFeatureExtractor"}')
    with pytest.raises(ValueError, match="type 'ASTFeatureExtractor', a PaSST's is WavLinkPasstFeatureExtractor"):
        WavLinkProcessor.from_audio_text_pretrained(str(folder), str(bert_folder))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_one_clip_one_vector(model, processor, training, attention):
    without_dropout(model).train(training).set_attn_implementation(attention)
    together = embed(model, processor, CLIPS)
    alone = torch.cat([embed(model, processor, clip) for clip in CLIPS])
    pairs = torch.cat([embed(model, processor, CLIPS[start : start + 2]) for start in (0, 2, 4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, pairs, atol=1e-5, rtol=0)
    assert (together @ together.T - 2 * torch.eye(5)).max() < 0.999


def test_the_mask_hides_padding(model, processor):
    inputs = processor(audio=[CLIPS[1], CLIPS[4]], sampling_rate=RATE, return_tensors="pt")
    louder = inputs["input_features"].clone()
    louder[0, :, 50:] = 3.0
    with torch.no_grad():
        expected = model.audio_model(**inputs)
        found = model.audio_model(louder, inputs["input_features_mask"])
        changed = model.audio_model(louder).pooler_output
    assert torch.equal(found.pooler_output, expected.pooler_output)
    assert (changed[0] - expected.pooler_output[0]).abs().max() > 1e-2
    states = found.last_hidden_state.view(2, 4, 12, 9, 32)  # windows, rows, columns
    assert states[0, 0, :, :4].abs().sum(-1).min() > 0 and not states[0, 0, :, 4:].any() and not states[0, 1:].any()
    assert states[1].abs().sum(-1).min() > 0


def test_windows_of_a_long_clip_are_averaged(model, processor):
    clip = CLIPS[4]  # 3.7 s: windows at 0, 0.9, 1.8 and 2.7 s
    inputs = processor(audio=clip, sampling_rate=RATE, return_tensors="pt")
    cut = [clip[round(start * RATE) :][:RATE] for start in (0, 0.9, 1.8, 2.7)]
    alone = processor(audio=cut, sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(inputs["input_features"][0], torch.cat([*alone["input_features"]], 1))
    with torch.no_grad():
        parts = model.audio_model(**alone).pooler_output
        torch.testing.assert_close(model.audio_model(**inputs).pooler_output[0], parts.mean(0), atol=1e-5, rtol=0)
    assert (parts[0] - parts[1]).abs().max() > 1e-2


def patched_out(**config) -> WavLinkPasstModel:
    torch.manual_seed(0)
    return WavLinkPasstModel(WavLinkPasstConfig(**AUDIO, **config)).train()


def test_patch_out_drops_columns_and_rows_in_training_only():
    tower = patched_out(time_patchout=4, frequency_patchout=5)
    inputs = features(100), (torch.arange(100) < torch.tensor([[100], [60]])).long()
    torch.manual_seed(1)
    output = tower(*inputs)
    # Of 9 columns 5 are left, of the 5 columns of 60 frames 5 - 5 * 4 // 9 = 3; of 12 rows 7.
    states = output.last_hidden_state.view(2, 7, 5, 32)
    assert states[0].abs().sum(-1).min() > 0
    assert states[1, :, :3].abs().sum(-1).min() > 0 and not states[1, :, 3:].any()
    torch.manual_seed(1)
    assert torch.equal(tower(*inputs).pooler_output, output.pooler_output)
    assert not torch.equal(tower(*inputs).pooler_output, output.pooler_output)
    tower.eval()
    plain = WavLinkPasstModel(WavLinkPasstConfig(**AUDIO)).eval()
    plain.load_state_dict(tower.state_dict())
    assert torch.equal(tower(*inputs).pooler_output, plain(*inputs).pooler_output)


def test_patch_out_keeps_patches_in_order_with_their_positions():
    tower = patched_out(time_patchout=6, frequency_patchout=9)
    states = torch.arange(12 * 9).view(1, 1, 12, 9).float().expand(300, 1, -1, -1)
    kept, mask = tower._patch_out(states, torch.arange(9).expand(300, 9) < 7)
    kept = kept[:, 0]
    assert kept.shape == (300, 3, 3) and mask.sum(1).unique().tolist() == [7 - 7 * 6 // 9]
    rows, columns = kept // 9, kept % 9
    assert (rows == rows[:, :, :1]).all() and (columns == columns[:, :1]).all()
    assert (rows.diff(dim=1) > 0).all() and (columns.diff(dim=2) > 0).all()
    assert columns.unique().tolist() == [*range(7)] and rows.unique().tolist() == [*range(12)]


def test_a_short_clip_keeps_patches_under_patch_out():
    tower = patched_out(time_patchout=8)
    output = tower(features(100), (torch.arange(100) < torch.tensor([[16], [100]])).long())
    assert output.pooler_output.isfinite().all() and output.last_hidden_state.shape == (2, 12, 32)
    assert output.last_hidden_state.abs().sum(-1).min() > 0


@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("patchout", [0, 3])
def test_chunks_give_the_gradients_of_the_whole_in_training(model, batch, micro_batch_size, patchout):
    """With patch-out: those of the patches that each chunk has drawn."""
    without_dropout(model).train()
    model.audio_model.config.time_patchout = patchout
    audio = {name: value for name, value in batch.items() if name.startswith("input_features")}
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    chunks = zip(*(value.split(micro_batch_size if patchout else 5) for value in audio.values()), strict=True)

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        return found

    torch.manual_seed(5)
    embeds = [model.get_audio_features(**trim(dict(zip(audio, chunk, strict=True)))).pooler_output for chunk in chunks]
    loss = model.loss(torch.cat(embeds), model.get_text_features(**text).pooler_output, batch["caption_ids"])
    loss.backward()
    expected = gradients()
    torch.manual_seed(5)
    cached_loss = backward(Accelerator(cpu=True), model, batch, micro_batch_size)
    assert cached_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_trim_drops_padding(batch):
    chunk = trim({name: value[:2] for name, value in batch.items() if name != "caption_ids"})
    assert chunk["input_features"].shape == (2, 128, 50) and chunk["input_features_mask"].shape == (2, 50)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_step_teaches_every_parameter(model, batch, checkpointing):
    model.train()
    if checkpointing:
        enable_checkpointing(model)
        assert model.audio_model.layers[0].gradient_checkpointing
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"logit_bias"}


def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    without_dropout(model).train()
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            enable_checkpointing(model)
        model(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.audio_model.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_lora_adapts_every_map_of_its_layers(model):
    set_trainable(model, "lora", "audio")
    adapted = {name.split(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    maps = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert adapted == {f"audio_model.layers.{layer}.{name}" for layer in (0, 1) for name in maps}
    learned = {name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert learned == {"audio_projection.weight", "text_projection.weight", "logit_scale"}


def test_lora_on_every_map_and_convolution_of_peft(model, batch):
    audio = {name: value for name, value in batch.items() if name.startswith("input_features")}
    kinds = torch.nn.Linear, torch.nn.Conv2d
    names = [name for name, module in model.audio_model.named_modules() if isinstance(module, kinds)]
    lora = get_peft_model(model, LoraConfig(target_modules=[f"audio_model.{name}" for name in names]))
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    lora.get_audio_features(**audio).pooler_output.pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in lora.named_parameters() if "lora_" in name)
    with torch.no_grad():
        expected = lora.get_audio_features(**audio).pooler_output
        found = lora.merge_and_unload().get_audio_features(**audio).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_packed_layers_give_the_same_vectors(model, processor):
    expected = embed(model, processor, CLIPS)
    pack_layers(model)
    torch.testing.assert_close(embed(model, processor, CLIPS), expected, atol=1e-5, rtol=0)


def test_saved_and_loaded_bit_for_bit(model, processor, batch, tmp_path):
    inputs = {name: value for name, value in batch.items() if name != "caption_ids"}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = WavLinkModel.from_pretrained(tmp_path).eval()
    assert type(loaded.config.audio_config) is WavLinkPasstConfig and loaded.config.audio_config.window_frames == 100
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits_per_audio, model(**inputs).logits_per_audio)
    extractor = AutoProcessor.from_pretrained(tmp_path).feature_extractor
    assert type(extractor) is WavLinkPasstFeatureExtractor
    assert (extractor.window_frames, extractor.chunk_length, extractor.sampling_rate) == (100, 5, RATE)
    model.audio_model.save_pretrained(tmp_path / "alone")
    alone = AutoModel.from_pretrained(tmp_path / "alone")
    assert type(alone) is WavLinkPasstModel and json.loads((tmp_path / "alone/config.json").read_text())["auto_map"]
    for (name, weight), theirs in zip(
        model.audio_model.state_dict().items(), alone.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, theirs), name


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_attention_heads": 5}, "hidden_size=32 must be a multiple of num_attention_heads=5"),
        ({"num_mel_bins": 8}, "num_mel_bins=8 is less than one patch, patch_size=16"),
        ({"window_frames": 15}, "window_frames=15 is less than one patch"),
        ({"patch_size": 0}, "patch_size of a PaSST must be a whole number, 1 or more, got 0"),
        ({"time_stride": 2.5}, "time_stride of a PaSST must be a whole number"),
        ({"hidden_size": True}, "hidden_size of a PaSST must be a whole number"),
        ({"time_patchout": 9}, "time_patchout=9 leaves no patches: window_frames has 9"),
        ({"frequency_patchout": 12}, "frequency_patchout=12 leaves no patches: num_mel_bins has 12"),
        ({"time_patchout": -1}, "time_patchout of a PaSST must be a whole number, 0 or more"),
        ({"time_positions": 8}, "needs 9 columns of the time embedding, and time_positions is 8: lower window_frames"),
        ({"hidden_act": "gleu"}, "hidden_act must be an activation of transformers"),
        ({"hidden_act": ["gelu"]}, "hidden_act must be an activation of transformers"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers of a PaSST must be a whole number, 1 or more, got '2'"),
        ({"time_positions": "99"}, "time_positions of a PaSST must be a whole number"),
        ({"layer_norm_eps": 0}, "layer_norm_eps of a PaSST must be a number above 0"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be at least 0 and below 1, got 1.0"),
        ({"num_hidden_layers": 1001}, "more than 1000 layers"),
        ({"frame_pooling": 2}, "frame_pooling=2 is for a Whisper: PaSST pools its patches itself"),
    ],
)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WavLinkConfig(audio_config={"model_type": "passt", **AUDIO, **fields})
    with pytest.raises(ValueError, match=message):
        WavLinkPasstModel(WavLinkPasstConfig(**{**AUDIO, **fields}))


def test_a_pooling_of_whispers_is_refused():
    with pytest.raises(ValueError, match="PaSST pools its patches itself: leave pooling out, got 'mean'"):
        WavLinkConfig(audio_config={"model_type": "passt", **AUDIO}, pooling="mean")


@pytest.mark.parametrize("frames", [50, 150])
def test_a_clip_without_frames_is_refused(model, frames):
    mask = torch.ones(2, frames, dtype=torch.long)
    mask[1] = 0
    for clips in (slice(0, 2), slice(1, 2)):
        with pytest.raises(ValueError, match="fewer frames than a patch, 16"):
            model.audio_model(features(frames)[clips], mask[clips])


@pytest.mark.parametrize("shape", [(1, 64, 50), (1, 128, 15), (1, 1, 128, 50), (128, 50), (1, 128, 103)])
def test_features_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"\[batch, 128, 16 frames or more\]|fewer frames than a patch, 16"):
        model.get_audio_features(torch.zeros(shape))


def test_hidden_states_and_attentions_are_of_all_windows(model, batch):
    model.set_attn_implementation("eager")
    audio = {name: value for name, value in batch.items() if name.startswith("input_features")}
    with torch.no_grad():
        output = model.get_audio_features(**audio, output_hidden_states=True, output_attentions=True)
    length = 2 + 12 * 9
    assert [state.shape for state in output.hidden_states] == [(9, length, 32)] * 3
    assert [weight.shape for weight in output.attentions] == [(9, 4, length, length)] * 2


def test_embedder_takes_files_of_any_rate_and_length(model, processor, tmp_path):
    for i, rate in enumerate((RATE, 44100)):
        soundfile.write(tmp_path / f"{i}.wav", np.sin(np.arange(7 * rate) * 0.05).astype(np.float32), rate)
    soundfile.write(tmp_path / "2.wav", CLIPS[1], RATE, subtype="FLOAT")
    embedder = Embedder(model, processor)
    assert (embedder.sampling_rate, embedder.max_seconds) == (RATE, 5)
    vectors = list(embedder.embed_files([str(tmp_path / f"{i}.wav") for i in range(3)]))
    np.testing.assert_allclose(vectors[2], embed(model, processor, CLIPS[1])[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_sentence_transformer_encodes_at_32_khz(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    sounds = loaded.encode([{"array": clip, "sampling_rate": RATE} for clip in CLIPS])
    np.testing.assert_allclose(sounds, embed(model, processor, CLIPS).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="16000"):
        loaded.encode([{"array": CLIPS[0], "sampling_rate": 16000}])


@pytest.mark.slow
def test_auto_classes_and_pipeline_in_a_clean_process(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model.audio_model.save_pretrained(tmp_path / "tower")
    processor.feature_extractor.save_pretrained(tmp_path / "tower")
    np.savez(tmp_path / "clips.npz", *CLIPS)
    run_clean(
        """
        import numpy as np, torch
        from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline
        folder = sys.argv[1]
        clips = list(np.load("clips.npz").values())
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        assert processor.feature_extractor.sampling_rate == 32000
        inputs = processor(audio=clips, sampling_rate=32000, return_tensors="pt")
        with torch.no_grad():
            np.save("vectors.npy", model.get_audio_features(**inputs).pooler_output.numpy())
        classify = pipeline("zero-shot-audio-classification", model=folder, trust_remote_code=True)
        labels = ["dog", "cat", "bell"]
        answers = classify(clips, candidate_labels=labels, batch_size=3)
        scores = [[next(a["score"] for a in one if a["label"] == label) for label in labels] for one in answers]
        np.save("scores.npy", scores)
        tower = AutoModel.from_pretrained("tower", trust_remote_code=True)
        extractor = AutoFeatureExtractor.from_pretrained("tower", trust_remote_code=True)
        with torch.no_grad():
            pooled = tower(**extractor(clips, sampling_rate=32000, return_tensors="pt")).pooler_output
        np.save("pooled.npy", pooled.numpy())
        """,
        tmp_path,
        tmp_path=tmp_path,
    )
    texts = [f"This is a sound of {label}." for label in ("dog", "cat", "bell")]
    inputs = processor(audio=CLIPS, text=texts, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
        pooled = model.audio_model(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), output.audio_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), output.logits_per_audio.softmax(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "pooled.npy"), pooled.numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_passt_is_pushed_with_its_card(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    push.main([str(tmp_path / "model"), "user/name", "--dry_run", "--output_dir", str(tmp_path / "out")])
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert (
        "| audio tower | PaSST, width 32, 2 layers, the mean of its class and its distillation token |\n"
        "| text tower | bert, width 32 |\n" in text
    )
    assert (
        "| a clip is encoded | at its own length, over 1 s in windows of 1 s, whose vectors are averaged; 32 kHz "
        "mono, up to 5 s |\n" in text
    )
    assert "Whisper encoder" not in text


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_recipe_trains_scores_and_saves(tones_44k, passt_folder, bert_folder, tmp_path, pretrained):
    options = ["--data", str(tones_44k), "--output_dir", str(tmp_path), "--batch_size", "3", "--epochs", "2"]
    options += ["--num_workers", "0", "--mixed_precision", "no", "--micro_batch_size", "2"]
    if pretrained:
        options = ["sounds", *options, "--audio_model", str(passt_folder), "--text_model", str(bert_folder)]
    else:
        audio = {**AUDIO, "model_type": "passt", "time_patchout": 3}
        options = ["quickstart", *options, "--label_prompt", "", "--audio_config", json.dumps(audio)]
        options += ["--gradient_checkpointing", "true"]
    train.train(train.parse_recipe(options))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    assert 0 < records[-1]["validation"]["text_to_audio"]["32" if pretrained else "128"]["R@5"]["value"] <= 1
    model = AutoModel.from_pretrained(tmp_path / "best", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "best", trust_remote_code=True)
    assert type(processor.feature_extractor) is WavLinkPasstFeatureExtractor
    assert processor.feature_extractor.chunk_length == (5 if pretrained else 30)
    assert embed(model, processor, tone(440, 2.5)).shape == (1, model.config.projection_dim)


@pytest.mark.parametrize("bands", [80, 128])
def test_feature_extractor_of_another_tower_is_refused(model, processor, bands):
    other = WavLinkProcessor(WavLinkFeatureExtractor(bands), processor.tokenizer)
    with pytest.raises(ValueError, match="a WavLinkFeatureExtractor, which is for a whisper tower, not"):
        Embedder(model, other)
