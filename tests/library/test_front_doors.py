"""The doors users come through, in a clean process where the package must not be needed."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, Trainer, TrainingArguments

from processing.collator import AudioTextCollator
from tests.clean_process import run_clean
from tests.conftest import RATE, tone
from wavlink.evaluation.command import compute_metrics

CAPTIONS = [
    "a dog barks",
    "the cat meows",
    "the bell rings",
    "a low sound",
    "the high sound",
    "rain falls",
    "a loud dog",
]


@pytest.fixture
def rows() -> list[dict]:
    """Seven clips: an odd number leaves an uneven last batch."""
    return [
        {"audio": {"array": tone(200 * (i + 1), 0.3 + 0.1 * i, i), "sampling_rate": RATE}, "caption": caption}
        for i, caption in enumerate(CAPTIONS)
    ]


def test_auto_classes_and_pipeline_in_a_clean_process(wavlink_folder, model, processor, tmp_path):
    clip = tone(300, 1.3)
    np.save(tmp_path / "clip.npy", clip)
    run_clean(
        """
        import numpy as np, torch
        from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
        folder = sys.argv[1]
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        assert config.model_type == "wavlink" and config.matryoshka_dims == [32, 16, 8, 4], config
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        inputs = processor(audio=np.load("clip.npy"), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            np.save("vector.npy", model.get_audio_features(**inputs).pooler_output.numpy())
        classify = pipeline("zero-shot-audio-classification", model=folder, trust_remote_code=True)
        labels = ["dog", "cat", "bell"]
        answers = classify(np.load("clip.npy"), candidate_labels=labels)
        np.save("scores.npy", [next(a["score"] for a in answers if a["label"] == label) for label in labels])
        """,
        wavlink_folder,
        tmp_path=tmp_path,
    )
    inputs = processor(
        audio=clip,
        text=[f"This is a sound of {x}." for x in ("dog", "cat", "bell")],
        sampling_rate=RATE,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**inputs)
    np.testing.assert_allclose(np.load(tmp_path / "vector.npy"), output.audio_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        np.load(tmp_path / "scores.npy"), output.logits_per_audio[0].softmax(0).numpy(), atol=1e-5
    )


@pytest.mark.slow
def test_the_pipeline_pads_as_the_checkpoint_was_trained(model, processor, tmp_path):
    processor.feature_extractor.padding = "max_length"
    try:
        processor.save_pretrained(tmp_path)
    finally:
        processor.feature_extractor.padding = "longest"
    model.save_pretrained(tmp_path)
    out = run_clean(
        """
        import numpy as np
        from transformers import pipeline
        classify = pipeline("zero-shot-audio-classification", model=sys.argv[1], trust_remote_code=True)
        print(classify.feature_extractor([np.zeros(1600, np.float32)], sampling_rate=16000)["input_features"].shape)
        """,
        tmp_path,
        tmp_path=tmp_path,
    )
    assert "(1, 80, 3000)" in out


def trainer(model, processor, rows, tmp_path, **options) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"max_steps": 3, "learning_rate": 1e-3, **options},
    )
    return Trainer(
        model=model,
        args=arguments,
        data_collator=AudioTextCollator(processor, ["caption"]),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=compute_metrics,
    )


@pytest.mark.parametrize("label_names", [None, ["caption_ids"]])
def test_trainer_fine_tunes_with_eval_loss_and_recall(model, processor, rows, tmp_path, label_names):
    before = model.audio_model.global_token.detach().clone()
    subject = trainer(model, processor, rows, tmp_path, label_names=label_names)
    subject.can_return_loss = True  # what Trainer asks where there are no labels
    subject.train()
    assert not torch.equal(before, model.audio_model.global_token)
    metrics = subject.evaluate()
    assert metrics["eval_loss"] > 0
    assert metrics["eval_text_to_audio_R@10"] == 1.0  # seven clips
    assert 0 <= metrics["eval_audio_to_text_R@1"] <= 1


def test_lora_on_whisper_through_trainer_saved_loaded_and_merged(model, processor, rows, wavlink_folder, tmp_path):
    lora = LoraConfig(
        r=8,
        target_modules=r"audio_model\.encoder\..*\.(q_proj|v_proj)",
        modules_to_save=["audio_projection", "text_projection"],
    )
    adapted = get_peft_model(model, lora)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "projection" in name for name in trainable)
    assert sum("lora_A" in name for name in trainable) == 4  # 2 layers x (q, v)
    subject = trainer(adapted, processor, rows, tmp_path, max_steps=5)
    subject.train()
    adapted.save_pretrained(tmp_path / "adapter")
    batch = AudioTextCollator(processor, ["caption"])(rows)
    batch.pop("caption_ids")
    with torch.no_grad():
        expected = adapted.eval()(**batch).audio_embeds
    base = AutoModel.from_pretrained(wavlink_folder, trust_remote_code=True)
    with torch.no_grad():
        untrained = base.eval()(**batch).audio_embeds
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).audio_embeds, expected, atol=1e-6, rtol=0)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**batch).audio_embeds, expected, atol=1e-5, rtol=0)
    assert (untrained - expected).abs().max() > 1e-3


def test_sentence_transformer_encodes_sound_and_text(wavlink_folder, model, processor):
    door = SentenceTransformer(str(wavlink_folder), trust_remote_code=True, device="cpu")
    clips = [tone(200, 0.5), tone(900, 1.1)]
    texts = ["a dog barks", "the bell rings"]
    with torch.no_grad():
        inputs = processor(audio=clips, text=texts, sampling_rate=RATE, return_tensors="pt")
        output = model(**inputs)
    sounds = door.encode([{"array": clip, "sampling_rate": RATE} for clip in clips])
    np.testing.assert_allclose(sounds, output.audio_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(door.encode(clips), output.audio_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(door.encode(texts), output.text_embeds.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="44100"):
        door.encode([{"array": clips[0], "sampling_rate": 44100}])


def test_sentence_transformer_cuts_to_a_nested_dim(wavlink_folder, model, processor):
    door = SentenceTransformer(str(wavlink_folder), trust_remote_code=True, device="cpu", truncate_dim=8)
    clip = tone(200, 0.5)
    with torch.no_grad():
        inputs = processor(audio=clip, sampling_rate=RATE, return_tensors="pt")
        expected = model.truncate_embeddings(model.get_audio_features(**inputs).pooler_output, 8)
    cut = door.encode([{"array": clip, "sampling_rate": RATE}], normalize_embeddings=True)
    np.testing.assert_allclose(cut, expected.numpy(), atol=1e-6)
