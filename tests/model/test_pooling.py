"""How a clip's frames become its vector: the global token, their mean, or both; at every door."""

import json

import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch.export import Dim
from transformers import AutoModel, ClapAudioConfig, Trainer, TrainingArguments, pipeline

import train
from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing.collator import AudioTextCollator
from tests.conftest import RATE, tone
from tests.tone_runs import folder  # noqa: F401
from wavlink.training import loop
from wavlink.training.factory import refuse_bad_start
from wavlink.training.finetuning import save_adapter, set_trainable
from wavlink.training.recipes import RECIPES, Recipe

CLIPS = [tone(300, 0.31, 0), tone(800, 1.2, 1), tone(500, 0.8, 2)]


def features(processor, clips, **options):
    return processor(audio=clips, sampling_rate=RATE, return_tensors="pt", **options)


@torch.no_grad()
def vectors(model, processor, clips=CLIPS, **options) -> torch.Tensor:
    return model.get_audio_features(**features(processor, clips, **options)).pooler_output


@pytest.fixture(params=["mean", "token_mean"])
def pooled(request, sharp_model):
    sharp_model.config.pooling = request.param
    sharp_model.freeze_constants()
    return sharp_model


@torch.no_grad()
def test_each_pooling_by_hand(sharp_model, processor):
    tower = sharp_model.audio_model
    for clip in CLIPS:
        inputs = features(processor, [clip])
        alone = tower(**inputs, use_global_token=False).last_hidden_state
        with_token = tower(**inputs)
        mean = tower(**inputs, pooling="mean")
        both = tower(**inputs, pooling="token_mean")
        torch.testing.assert_close(mean.pooler_output, alone.mean(1))
        assert torch.equal(mean.last_hidden_state, alone)
        expected = with_token.pooler_output + with_token.last_hidden_state.mean(1)
        torch.testing.assert_close(both.pooler_output, expected)
        assert not torch.allclose(mean.pooler_output, both.pooler_output, atol=0.1)


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_one_clip_one_vector(pooled, processor, padding):
    together = vectors(pooled, processor, padding=padding)
    alone = torch.cat([vectors(pooled, processor, [clip], padding=padding) for clip in CLIPS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together @ together.T).fill_diagonal_(0).max() < 0.999


@torch.no_grad()
def test_the_position_of_the_token_makes_no_difference(sharp_model, processor):
    """It has no position, and attention no order: before the frames or after them, its last state is the same."""
    tower = sharp_model.audio_model
    hidden, _ = tower._convolve(features(processor, CLIPS[:1])["input_features"], None)
    states = torch.cat([tower.global_token, hidden], dim=1)
    for layer in tower.encoder.layers:
        output = layer(states, None)
        states = output[0] if isinstance(output, tuple) else output
    first = tower.encoder.layer_norm(states)[:, 0]
    torch.testing.assert_close(first, tower(**features(processor, CLIPS[:1])).pooler_output, atol=1e-5, rtol=0)


def test_mean_pooling_ignores_the_token_and_gives_it_no_gradient(sharp_model, processor):
    sharp_model.config.pooling = "mean"
    sharp_model.freeze_constants()
    assert not sharp_model.audio_model.global_token.requires_grad
    before = vectors(sharp_model, processor)
    with torch.no_grad():
        sharp_model.audio_model.global_token.add_(5)
    assert torch.equal(vectors(sharp_model, processor), before)
    for regime in ("projector", "lora", "full"):
        assert not set_trainable(sharp_model, regime).audio_model.global_token.requires_grad
    sharp_model.config.pooling = "token_mean"
    sharp_model.freeze_constants()
    assert sharp_model.audio_model.global_token.requires_grad


def test_saved_loaded_piped_and_encoded(pooled, processor, tmp_path):
    pooled.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = vectors(pooled, processor)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert loaded.config.pooling == pooled.config.pooling
    assert loaded.audio_model.global_token.requires_grad is (loaded.config.pooling == "token_mean")
    assert torch.equal(vectors(loaded, processor), expected)
    door = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    sounds = door.encode([{"array": clip, "sampling_rate": RATE} for clip in CLIPS], convert_to_tensor=True)
    torch.testing.assert_close(sounds, expected, atol=1e-6, rtol=0)
    classify = pipeline("zero-shot-audio-classification", model=str(tmp_path), trust_remote_code=True)
    scores = {row["label"]: row["score"] for row in classify(CLIPS[0], candidate_labels=["dog", "bell"])}
    texts = processor(text=["This is a sound of dog.", "This is a sound of bell."], return_tensors="pt")
    with torch.no_grad():
        logits = pooled(**texts, **features(processor, CLIPS[:1])).logits_per_audio[0]
    assert [scores["dog"], scores["bell"]] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)


def test_a_checkpoint_that_says_nothing_has_the_token(wavlink_folder, model, processor):
    config = json.loads((wavlink_folder / "config.json").read_text(encoding="utf-8"))
    assert config.pop("pooling") == "token"
    (wavlink_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = WavLinkModel.from_pretrained(wavlink_folder).eval()
    assert torch.equal(vectors(loaded, processor), vectors(model, processor))


def test_trainer_trains_it(pooled, processor, tmp_path):
    captions = ["a dog barks", "the bell rings", "rain falls"]
    rows = [
        {"audio": {"array": clip, "sampling_rate": RATE}, "caption": caption}
        for clip, caption in zip(CLIPS, captions, strict=True)
    ]
    before = {name: p.detach().clone() for name, p in pooled.named_parameters()}
    arguments = TrainingArguments(tmp_path, max_steps=2, remove_unused_columns=False, report_to=[], use_cpu=True)
    collator = AudioTextCollator(processor, ["caption"])
    Trainer(pooled, arguments, train_dataset=rows, data_collator=collator).train()
    moved = {name for name, p in pooled.named_parameters() if not torch.equal(p, before[name])}
    assert ("audio_model.global_token" in moved) is (pooled.config.pooling == "token_mean")
    assert "audio_model.encoder.conv1.weight" in moved


def test_an_adapter_of_it_fits_its_base(pooled, processor, tmp_path):
    pooled.save_pretrained(tmp_path / "base")
    set_trainable(pooled, "lora")
    with torch.no_grad():
        for name, p in pooled.named_parameters():
            if ".lora_B" in name:
                p.fill_(0.01)
    save_adapter(pooled, tmp_path / "adapter", base=str(tmp_path / "base"))
    base = AutoModel.from_pretrained(tmp_path / "base", trust_remote_code=True)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(vectors(adapted, processor), vectors(pooled, processor), atol=1e-6, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_torch_export_with_dynamic_batch_and_length(pooled, processor):
    inputs = features(processor, CLIPS[:2])
    shapes = {"input_features": {0: Dim("clips", max=64), 2: Dim("frames", min=3, max=3000)}}
    shapes["input_features_mask"] = {0: shapes["input_features"][0], 1: shapes["input_features"][2]}
    shapes["pooling"] = None
    pooling = pooled.config.pooling
    program = torch.export.export(pooled.audio_model, (), {**inputs, "pooling": pooling}, dynamic_shapes=shapes)
    for clips in (CLIPS, CLIPS[:1], [tone(400, 3.0)]):
        inputs = features(processor, clips)
        expected = pooled.audio_model(**inputs, pooling=pooling).pooler_output
        actual = program.module()(**inputs, pooling=pooling).pooler_output
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_token_starts_as_the_mean_frame(sharp_model, processor):
    tower = sharp_model.audio_model
    entering = []
    hook = tower.encoder.layers[0].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    for clip in CLIPS:  # alone, so that nothing is padded
        tower(**features(processor, [clip]), use_global_token=False)
    hook.remove()
    tower.start_token(**features(processor, CLIPS))
    expected = torch.stack([frames[0].mean(0) for frames in entering]).mean(0)
    torch.testing.assert_close(tower.global_token[0, 0], expected, atol=1e-5, rtol=1e-5)
    assert tower.global_token.requires_grad


def test_a_run_starts_its_token_so_unless_it_has_one(
    folder,  # noqa: F811
    tmp_path,
    whisper_folder,
    bert_folder,
    wavlink_folder,  # noqa: F811
):
    def token(*options) -> torch.Tensor:
        fixed = ["--data", str(folder), "--mixed_precision", "no", "--output_dir", str(tmp_path), "--batch_size", "4"]
        run = train.Run(train.parse_recipe(["sounds", *fixed, *options]))
        return run.accelerator.unwrap_model(run.model).audio_model.global_token.detach()

    towers = ["--audio_model", str(whisper_folder), "--text_model", str(bert_folder)]
    started, again, noise = token(*towers), token(*towers, "--seed", "0"), token(*towers, "--token_start", "noise")
    assert torch.equal(started, again) and started.std() > 5 * noise.std()
    brought = WavLinkModel.from_pretrained(wavlink_folder).audio_model.global_token
    assert torch.equal(token("--init", str(wavlink_folder)), brought)


def test_wrong_poolings_are_refused():
    with pytest.raises(ValueError, match="pooling must be one of token, mean, token_mean, got 'max'"):
        WavLinkConfig(pooling="max")
    with pytest.raises(ValueError, match="HTS-AT pools its patches itself"):
        WavLinkConfig(audio_config=ClapAudioConfig(), pooling="mean")


def test_a_recipe_sets_it_and_a_start_brings_its_own(wavlink_folder, whisper_folder, bert_folder):
    towers = ["--audio_model", str(whisper_folder), "--text_model", str(bert_folder), "--data", "synthetic"]
    recipe = train.parse_recipe(["sounds", *towers, "--pooling", "token_mean"])
    model, _ = loop.build(recipe, list)
    assert model.config.pooling == "token_mean"
    with pytest.raises(ValueError, match="brings its pooling, token: leave --pooling out"):
        refuse_bad_start(Recipe("mine", init=str(wavlink_folder), pooling="mean"))
    for name in RECIPES:
        start = train.parse_recipe([name, "--init", str(wavlink_folder)])
        assert start.pooling == ""
    assert loop.build(Recipe("mine", init=str(wavlink_folder)), list)[0].config.pooling == "token"
    assert all(RECIPES[name]().pooling in ("", "token") for name in RECIPES if "stage" in name)
