"""The forward pass: Whisper parity, one clip one vector, every text tower by one path, and when there is a loss."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection, WhisperModel

from modeling_wavlink import WavLinkModel
from modeling_wavlink.losses_wavlink import LOSSES, contrastive_loss
from tests.conftest import RATE, tone
from tests.tiny_models import SENTENCES, audio_embeds, batch_of, build

# 1 frame, 3 and 27 (odd), 26, 100, and exactly 30 s.
SAMPLES = [1, 400, 4161, 4001, RATE, 30 * RATE]
TOWERS = [("clip", "eos"), ("clip", "mean"), ("modernbert", "cls"), ("modernbert", "eos"), ("bert", "mean")]


@pytest.fixture(scope="module")
def clips():
    return [tone(200 + 150 * i, 30, seed=i)[:samples] for i, samples in enumerate(SAMPLES)]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True])
def test_whisper_parity_bit_for_bit(attn, masked, model, whisper_folder):
    whisper = WhisperModel.from_pretrained(whisper_folder, attn_implementation=attn).encoder.eval()
    model.set_attn_implementation(attn)
    features = torch.randn(2, 80, 3000)
    mask = torch.ones(2, 3000) if masked else None
    with torch.no_grad():
        expected = whisper(features).last_hidden_state
        actual = model.audio_model(features, mask, use_global_token=False)
    assert torch.equal(actual.last_hidden_state, expected)
    assert actual.pooler_output is None


def test_global_token_is_appended_and_pooled(sharp_model):
    audio_model, features = sharp_model.audio_model, torch.randn(2, 80, 101)
    with torch.no_grad():
        without = audio_model(features, use_global_token=False).last_hidden_state
        first = audio_model(features)
        audio_model.global_token.neg_()
        second = audio_model(features)
    assert first.last_hidden_state.shape == without.shape == (2, 51, 32)
    assert first.pooler_output.shape == (2, 32)
    for other in (second.last_hidden_state, without):  # the frames attend to the token
        assert (first.last_hidden_state - other).abs().amax(-1).min() > 1e-3
    assert (first.pooler_output - second.pooler_output).abs().max() > 1e-1
    assert (first.pooler_output[0] - first.pooler_output[1]).abs().max() > 1e-1  # and the token to the frames


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_one_clip_one_vector(padding, sharp_model, processor, clips):
    def embeds(chosen):
        return audio_embeds(sharp_model, processor, chosen, padding=padding)

    alone = torch.cat([embeds([clip]) for clip in clips])
    assert torch.pdist(alone).min() > 1e-2  # the clips lie far more apart than the tolerance
    together, backwards = embeds(clips), embeds(clips[::-1]).flip(0)
    assert (alone - together).abs().max() < 1e-5
    assert (alone - backwards).abs().max() < 1e-5
    for i, clip in enumerate(clips[:-1]):
        assert (alone[i] - embeds([clip, clips[i + 1]])[0]).abs().max() < 1e-5
    assert (alone[1] - embeds([clips[1]] * 7)).abs().max() < 1e-5


def test_samples_after_a_clip_change_nothing(sharp_model, processor, clips):
    inputs = processor(audio=clips[:5], sampling_rate=RATE, return_tensors="pt")
    expected = audio_embeds(sharp_model, processor, clips[:5])
    past = inputs["input_features_mask"][:, None] == 0
    noise = torch.where(past, 5 * torch.randn_like(inputs["input_features"]), inputs["input_features"])
    with torch.no_grad():
        actual = sharp_model.get_audio_features(noise, inputs["input_features_mask"]).pooler_output
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 80, 3001), (1, 80, 0), (80, 100)])
def test_what_does_not_fit_one_window_is_refused(shape, model):
    with pytest.raises(ValueError, match=r"\[batch, 80, 1 to 3000 frames\], got .*; one window holds 30 s"):
        model.get_audio_features(torch.zeros(shape))


@pytest.mark.parametrize(("tower", "pooling"), TOWERS)
def test_text_towers_by_one_path(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)
    inputs = processor(text=SENTENCES, return_tensors="pt")
    with torch.no_grad():
        output = model.get_text_features(**inputs)
        reference = CLIPTextModelWithProjection if tower == "clip" else AutoModel
        folder = request.getfixturevalue(f"{tower}_folder")
        states = reference.from_pretrained(folder).eval()(**inputs).last_hidden_state
        lengths = inputs["attention_mask"].sum(1)
        place = {
            "eos": lambda row, n: row[n - 1],
            "cls": lambda row, n: row[0],
            "mean": lambda row, n: row[:n].mean(0),
        }
        pooled = torch.stack([place[pooling](row, n) for row, n in zip(states, lengths, strict=True)])
        expected = F.normalize(pooled @ model.text_projection.weight.T, dim=-1)
        alone = torch.cat(
            [model.get_text_features(**processor(text=s, return_tensors="pt")).pooler_output for s in SENTENCES]
        )
    assert torch.allclose(output.last_hidden_state, states, atol=1e-6)
    assert torch.allclose(output.pooler_output, expected, atol=1e-6)
    assert (alone - output.pooler_output).abs().max() < 1e-5
    assert torch.pdist(alone).min() > 1e-3


@pytest.mark.parametrize("eos_token_id", [None, 2])  # 2 is what CLIP's old configs say, whatever the tokenizer
def test_clip_text_features_are_clips_own(eos_token_id, clip_folder, whisper_folder, tmp_path):
    clip = CLIPTextModelWithProjection.from_pretrained(clip_folder).eval()
    clip.config.eos_token_id = eos_token_id or clip.config.eos_token_id
    clip.save_pretrained(tmp_path)
    clip = CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(tmp_path)).eval()
    inputs = AutoTokenizer.from_pretrained(clip_folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = F.normalize(clip(**inputs).text_embeds, dim=-1)
        assert torch.equal(model.get_text_features(**inputs).pooler_output, expected)


@pytest.mark.parametrize(("tower", "limit"), [("clip", 24), ("bert", 32), ("modernbert", 64)])
def test_text_over_the_limit_is_refused(tower, limit, request):
    model, _ = build(request, tower)
    assert torch.isfinite(model.get_text_features(torch.ones(1, limit, dtype=torch.long)).pooler_output).all()
    with pytest.raises(ValueError, match=f"a text of {limit + 1} tokens is over the text tower's limit of {limit}"):
        model.get_text_features(torch.ones(1, limit + 1, dtype=torch.long))


@pytest.mark.parametrize("loss_type", LOSSES)
def test_outputs(loss_type, request):
    model, processor = build(request, "bert", loss_type=loss_type, matryoshka_dims=[32, 9])
    inputs = batch_of(processor)
    with torch.no_grad():
        output = model(**inputs)
        audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(output.audio_embeds, audio.pooler_output)
    assert torch.equal(output.text_embeds, text.pooler_output)
    assert torch.allclose(output.audio_embeds.norm(dim=-1), torch.ones(3))
    scale, bias = {"info_nce": (1 / 0.07, 0.0), "sigmoid": (10.0, -10.0)}[loss_type]
    logits = scale * output.audio_embeds @ output.text_embeds.T + bias
    assert torch.allclose(output.logits_per_audio, logits, atol=1e-5)
    assert torch.equal(output.logits_per_text, output.logits_per_audio.T)
    expected = contrastive_loss(output.audio_embeds, output.text_embeds, scale, bias, loss_type, [32, 9])
    assert torch.allclose(output.loss, expected, atol=1e-5)


def test_loss_is_by_default_wherever_counts_match(model, processor):
    pairs, labels = batch_of(processor), batch_of(processor, clips=1)
    assert model(**pairs).loss == model(**pairs, return_loss=True).loss
    assert model(**pairs, return_loss=False).loss is None
    assert model(**labels).loss is None
    assert model(**labels).logits_per_audio.shape == (1, 3)
    with pytest.raises(ValueError, match="needs one text per clip, got 1 clips and 3 texts"):
        model(**labels, return_loss=True)


def test_return_dict(model, processor):
    inputs = batch_of(processor)
    whole = model(**inputs).to_tuple()
    parts = model(**inputs, return_dict=False)
    assert len(whole) == len(parts) == 7 and all(torch.equal(a, b) for a, b in zip(whole[:5], parts[:5], strict=True))
    audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"], return_dict=False)
    assert [tuple(x.shape) for x in audio] == [(3, 32)]
    audio = model.get_audio_features(inputs["input_features"], return_dict=False, output_frames=True)
    assert [tuple(x.shape) for x in audio] == [(3, 21, 32), (3, 32)]


def test_caption_ids_reach_the_loss(model, processor):
    inputs = batch_of(processor)
    loss = model(**inputs).loss
    assert model(**inputs, caption_ids=torch.tensor([[0], [1], [2]])).loss == loss
    assert model(**inputs, caption_ids=torch.tensor([[0], [1], [0]])).loss < loss - 0.1


@pytest.mark.parametrize("loss_type", LOSSES)
def test_text_owner_and_label_smoothing_reach_the_loss(loss_type, request):
    smoothing = 0.2 if loss_type == "info_nce" else 0.0
    model, processor = build(request, "bert", loss_type=loss_type, label_smoothing=smoothing)
    inputs = batch_of(processor, clips=2)  # and three texts
    owner, ids = torch.tensor([1, 0, 1]), torch.tensor([[7, 9], [8, 7]])
    output = model(**inputs, text_owner=owner, caption_ids=ids)
    arguments = output.audio_embeds, output.text_embeds, model.scale, model.logit_bias, loss_type, [32, 16, 8, 4], ids
    expected = contrastive_loss(*arguments, text_owner=owner, label_smoothing=smoothing)
    assert torch.equal(output.loss, expected)
    assert model(**inputs, text_owner=owner, return_loss=False).loss is None
    assert model(**inputs, text_owner=owner).loss > expected + 1e-4  # clip 1 also has the text of clip 0
    with pytest.raises(ValueError, match="each of the rows 0 to 1 at least once"):
        model(**inputs, text_owner=torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match="got 2 clips and 3 texts; .* give text_owner"):
        model(**inputs, return_loss=True)


def test_negatives_of_other_processes_join_in_training_only(model, processor, monkeypatch):
    gathered = []

    def record(*args, gather_negatives, **kwargs):
        gathered.append(gather_negatives)
        return contrastive_loss(*args, **kwargs)

    monkeypatch.setattr("modeling_wavlink.modeling_wavlink.contrastive_loss", record)
    for training in (True, False):
        model.train(training)(**batch_of(processor))
    assert gathered == [True, False]


def test_one_modality_is_pointed_to_its_method(model, processor):
    with pytest.raises(ValueError, match="get_text_features or get_audio_features"):
        model(**processor(text=SENTENCES, return_tensors="pt"))


def test_truncate_embeddings_takes_trained_dims_only(model):
    assert model.config.matryoshka_dims == [32, 16, 8, 4]
    embeds = F.normalize(torch.randn(5, 32), dim=-1)
    for dim in (32, 16, 8, 4):
        expected = embeds[:, :dim] / embeds[:, :dim].norm(dim=-1, keepdim=True)
        assert torch.allclose(model.truncate_embeddings(embeds, dim), expected)
    for dim in (0, 5, 64):
        with pytest.raises(ValueError, match=rf"trained with, \[4, 8, 16, 32\], got {dim}"):
            model.truncate_embeddings(embeds, dim)


@pytest.mark.parametrize("log_scale", [4.7, 10.0, 50.0, 1000.0])
def test_scale_is_clamped_and_still_learns(log_scale, model, processor):
    inputs = batch_of(processor)
    model.logit_scale.data.fill_(log_scale)
    assert model.scale.item() == 100.0
    model(**inputs).loss.backward()
    clamped = model.logit_scale.grad.clone()
    model.zero_grad()
    model.logit_scale.data.fill_(math.log(99.9999))
    model(**inputs).loss.backward()
    assert clamped.abs() > 1e-3 and torch.allclose(clamped, model.logit_scale.grad, rtol=1e-3)


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("tower", ["clip", "modernbert", "bert"])
def test_exactly_the_constants_are_frozen_and_all_else_learns(tower, loss_type, request, tmp_path):
    model, processor = build(request, tower, loss_type=loss_type)
    frozen = {"audio_model.encoder.embed_positions.weight"} | ({"logit_bias"} if loss_type == "info_nce" else set())
    model.save_pretrained(tmp_path)
    for trained in (model, WavLinkModel.from_pretrained(tmp_path)):
        trained.train()(**batch_of(processor)).loss.backward()
        assert {name for name, p in trained.named_parameters() if not p.requires_grad} == frozen
        assert {name for name, p in trained.named_parameters() if p.grad is None} == frozen
        # A bias of the keys shifts all of a query's scores alike, which no softmax sees.
        dead = [n for n, p in trained.named_parameters() if n not in frozen and not p.grad.any()]
        assert all(name.endswith(("key.bias", "k_proj.bias")) for name in dead), dead
