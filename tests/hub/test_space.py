"""What the demo answers, and what it tells who asks wrongly; no page is served here."""

import dataclasses
import importlib
import json
import math
import re
import tempfile

import numpy as np
import pytest
import soundfile
import torch

import wavlink
from hub_cards.space import answers, pages, samples
from hub_cards.space.answers import ClassifiedSound, Demo, Limits, labels_in, part_of, trained_on
from processing.audio import load_audio
from tests.conftest import RATE, tone
from tests.space_demo import demo_in, write_all
from wavlink.embedder import Embedder
from wavlink.long_recordings import encode_recording, locate, noise_score
from wavlink.search.index import Index


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whisper_folder, bert_folder):
    return write_all(tmp_path_factory.mktemp("space"), whisper_folder, bert_folder)


@pytest.fixture(scope="module")
def demo(folder) -> Demo:
    return demo_in(folder)


def test_scores_are_the_softmax_of_scaled_cosines_at_each_dim():
    named = ClassifiedSound(["a", "b"], np.array([0.6, 0.8], np.float32), np.eye(2, dtype=np.float32), scale=5.0)
    cosines, shares = named.at(2)
    assert cosines == pytest.approx([0.6, 0.8], abs=1e-6)
    assert shares[1] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)  # 5 x 0.8 against 5 x 0.6
    flipped = dataclasses.replace(named, text_embeds=np.array([[0.8, 0.6], [-0.8, 0.6]], np.float32))
    assert flipped.at(1)[0] == pytest.approx([1, -1])  # of one number only its sign is left


def test_labels_get_the_scores_of_the_model(demo, folder):
    named = demo.classify(str(folder / "dropped.wav"), "a dog,  a cat\nrain; a dog,")
    assert named.labels == ["a dog", "a cat", "rain"]
    texts = [f"This is a sound of {label}." for label in named.labels]
    processor, model = demo.embedder.processor, demo.embedder.model
    clip = load_audio(folder / "dropped.wav")
    with torch.no_grad():
        inputs = processor(audio=[clip], text=texts, sampling_rate=RATE, return_tensors="pt")
        expected = model(**inputs).logits_per_audio.softmax(-1)[0].numpy()
    assert named.at(32)[1] == pytest.approx(expected, abs=1e-5)
    shown = pages.labels(demo, named, 8)
    order = re.findall(r'wl-label">([^<]+)', shown)
    assert order == [named.labels[place] for place in np.argsort(-named.at(8)[1])]
    worst = np.abs(named.at(8)[0] - named.at(32)[0]).max()
    assert f"differ by at most {worst:.3f}" in shown and "against all 32 dims" in shown
    assert "against all" not in pages.labels(demo, named, 32)


def test_sentence_finds_the_hits_of_the_index_at_each_dim(demo, folder):
    asked = demo.embed_sentence("a low bell")
    for dim, kept in ((8, 8), (16, 16), (32, 16)):  # the index holds 16 of the 32
        found, whole = demo.closest(asked, dim)
        index = Index.open(folder / "index", demo.embedder, dim=kept)
        assert found == index.query("a low bell", top_k=5) and len(found) == 5
        assert whole == Index.open(folder / "index", demo.embedder).query("a low bell", top_k=5)
        shown = pages.sounds(demo, asked, dim)
        assert re.findall(r'wl-label">([^<]+)', shown) == [hit.path.removesuffix(".wav") for hit in found]
        assert f"Compared at {kept} of the index&#x27;s 16 dims" in shown
        assert shown.count("data:audio/flac;base64,") == 5 == shown.count("<svg")
    same = len({hit.path for hit in demo.closest(asked, 8)[0]} & {hit.path for hit in whole})
    assert f"{same} of these 5 sounds" in pages.sounds(demo, asked, 8)


def test_a_calibrated_model_shows_probabilities_and_its_prompts(folder):
    plain = demo_in(folder)
    config = plain.embedder.model.config
    fits = {str(dim): {"slope": 3.0, "intercept": -9.0} for dim in (32, 16)}
    config.match_calibration = {"prior": 0.01, "data": "tones", "pairs": 9, "dims": fits}
    config.label_prompts = ["a {}", "{} falls"]
    demo = Demo(plain.embedder, str(folder / "index"), trained="tones")
    sound = demo.classify(str(folder / "dropped.wav"), "dog, low bell")
    expected = wavlink.classify(demo.embedder, folder / "dropped.wav", ["dog", "low bell"])[0]["labels"]
    assert [row["cosine"] for row in expected] == pytest.approx(sorted(sound.at(32)[0], reverse=True), abs=1e-6)
    shown = pages.labels(demo, sound, 32)
    assert "read as “a (label)”, “(label) falls”" in shown and "where 1 % of all sounds do" in shown
    for row in expected:
        assert f"cosine {row['cosine']:.3f}, match {100 * row['probability']:.3g} %" in shown
    assert "match" not in pages.labels(demo, sound, 8)  # which has no fit
    shown = pages.sounds(demo, demo.embed_sentence("a low bell"), 16)
    assert shown.count(", match ") == 5 and "nothing in this index matches well" in shown
    shown = pages.spans(demo, demo.locate(str(folder / "long.flac"), "a low bell"), 16)
    assert 'wl-note">match ' in shown


def test_player_has_the_located_part(folder):
    path = folder / "long.flac"
    assert part_of(str(path), 6, 7.5, RATE) == pytest.approx(load_audio(path)[6 * RATE : int(7.5 * RATE)], abs=1e-4)
    assert part_of(str(folder / "gone.wav"), 0, 1, RATE) is None
    assert part_of(str(folder / "broken.wav"), 0, 1, RATE) is None


def test_located_spans_are_those_of_the_library_and_no_file_is_left(demo, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    searched = demo.locate(str(folder / "long.flac"), "a low bell")
    recording = encode_recording(demo.embedder, folder / "long.flac", 4.0, 1.0)  # of less than two minutes
    spans = locate(recording, demo.embedder.embed_text(["a low bell"])[0], 5, 8)
    assert np.array_equal(searched.recording.vectors, recording.vectors) and searched.at(8)[2] == spans
    least = noise_score(demo.embedder, recording, 8)
    assert searched.min_scores[8] == least
    searched = dataclasses.replace(searched, min_scores={8: spans[-1].score})
    shown = pages.spans(demo, searched, 8)
    times = re.findall(r'wl-label">([^<]+)', shown)
    assert len(times) == len(spans) and times[0] == f"{pages._clock(spans[0].start)} to {pages._clock(spans[0].end)}"
    assert shown.count("data:image/png;base64,") == 2 and 'alt="loudness' in shown
    assert f"stands out in {len(spans)} place" in shown
    shown = pages.spans(demo, dataclasses.replace(searched, min_scores={8: 1.0}), 8)
    assert "Nothing stands out for “a low bell”" in shown and "under 1.00" in shown
    assert re.findall(r'wl-label">([^<]+)', shown) == times[:1] and "; nothing stands out" in shown
    assert not list(tmp_path.iterdir())


def test_bytes_of_each_storage(demo):
    cells = re.findall(r"<td>(\d+)</td>", pages.costs(demo, 8))
    assert cells == ["32", "128", "16", "64"]  # fp32, fp16: 8 dims, then 32


def test_page_shows_what_was_loaded(demo, folder):
    shown = pages.facts(demo)
    for words in (f"{folder.name}/model", demo.embedder.revision, "32, nested: 8, 16, 32", "tones", "7 windows"):
        assert words in shown, words
    assert str(folder) not in shown
    assert "none, so sounds cannot be searched" in pages.facts(Demo(demo.embedder))


@pytest.mark.parametrize(
    "file, labels, said",
    [
        (None, "dog", "Drop or record a sound first"),
        ("gone.wav", "dog", "Drop or record a sound first"),
        ("broken.wav", "dog", "cannot read broken.wav as sound: .* Try wav, flac, ogg or mp3"),
        ("silent.wav", "dog", "silent.wav is silent"),
        ("dropped.wav", " ,; \n", "Type the labels first"),
        ("dropped.wav", ",".join(map(str, range(51))), "These are 51 labels: up to 50"),
        ("long.flac", "dog", "long.flac is longer than 10 s: cut it"),
        ("large.wav", "dog", "large.wav is larger than 0.2 MB"),
    ],
)
def test_errors_are_one_line_without_a_path(demo, folder, monkeypatch, file, labels, said):
    monkeypatch.setattr(demo, "limits", Limits(megabytes=0.2, seconds=10))
    soundfile.write(folder / "large.wav", tone(300, 8), RATE)
    soundfile.write(folder / "long.flac", np.concatenate([tone(300, 6), tone(700, 6), tone(300, 6)]), RATE)
    limit = 5 if file == "long.flac" else 0.2
    monkeypatch.setattr(demo, "limits", Limits(megabytes=limit, seconds=10))
    with pytest.raises(ValueError, match=said) as raised:
        demo.classify(file and str(folder / file), labels)
    assert str(folder) not in str(raised.value) and "\n" not in str(raised.value)


def test_samples_are_sounds_that_the_demo_takes(demo, tmp_path):
    for name in (*samples.NAMES, samples.RECORDING):
        rate, clip = samples.sample(name)
        assert clip.dtype == np.int16 and 10000 < np.abs(clip).max() <= 16000
        soundfile.write(tmp_path / "sample.wav", clip, rate)
        assert len(demo.sound(str(tmp_path / "sample.wav"))) == len(clip)
        assert 0.3 * rate < len(clip) <= 24 * rate and np.array_equal(clip, samples.sample(name)[1])


def test_samples_are_the_real_clips_and_the_recording_has_two_at_known_times():
    assert len(samples.NAMES) == 12 and "Cow moo" in samples.NAMES and len(labels_in(", ".join(samples.LABELS))) == 12
    rate, clip = samples.sample(samples.RECORDING)
    assert len(clip) == 24 * rate
    seconds = np.abs(clip.reshape(24, rate).astype(float)).mean(1)
    assert {*np.argsort(-seconds)[:4]} == {6, 7, 8, 15}


def test_a_space_without_the_clips_offers_none(monkeypatch):
    monkeypatch.setattr("wavlink.samples._REAL", None)
    try:
        importlib.reload(samples)
        assert samples.NAMES == () == samples.LABELS
    finally:
        monkeypatch.undo()
        importlib.reload(samples)


def test_slider_positions_are_the_nested_dims(demo):
    assert re.findall(r"<span>(\d+)</span>", pages.ticks(demo)) == ["8", "16", "32"]


def test_empty_and_long_sentences_are_refused(demo, folder):
    for text in ("", "  \n", None):
        with pytest.raises(ValueError, match="Type a sentence first"):
            demo.embed_sentence(text)
    with pytest.raises(ValueError, match="longer than 500 letters"):
        demo.locate(str(folder / "long.flac"), "dog " * 200)
    with pytest.raises(ValueError, match="no index"):
        Demo(demo.embedder).closest(demo.embed_sentence("a dog"), 8)


def test_long_wait_is_refused_and_the_next_visitor_is_served(demo, monkeypatch):
    monkeypatch.setattr(demo, "limits", Limits(wait=0.05))
    with demo.turn(), pytest.raises(ValueError, match="try again in a minute"):
        demo.embed_sentence("a dog")
    assert demo.embed_sentence("a dog").vector.shape == (32,)


def test_text_of_a_visitor_is_escaped(demo, folder):
    evil = '<img src=x onerror="alert(1)">'
    shown = pages.labels(demo, demo.classify(str(folder / "dropped.wav"), f"{evil}, dog"), 32)
    shown += pages.sounds(demo, demo.embed_sentence(evil), 32) + pages.failure(evil)
    shown += pages.spans(demo, demo.locate(str(folder / "long.flac"), evil), 32)
    assert "<img src=x" not in shown and "&lt;img src=x" in shown
    assert 'alert(1)">' not in shown  # nor inside an attribute


def test_another_model_s_index_is_refused_at_the_start(demo, folder, tmp_path, sharp_model, processor):
    other = Embedder(sharp_model, processor)
    with pytest.raises(ValueError, match="their vectors do not compare"):
        Demo(other, str(folder / "index"))
    with pytest.raises(ValueError, match="is no index"):
        Demo(demo.embedder, str(tmp_path))


def test_what_a_model_was_trained_on(tmp_path, folder):
    best = tmp_path / "run/best"
    best.mkdir(parents=True)
    assert trained_on(str(best)) == "data it does not name"
    assert trained_on("random:some/model") == "nothing: its weights are random"
    (best / "README.md").write_text("---\ndatasets:\n- some/sounds\n- more/sounds\n---\n")
    assert trained_on(str(best)) == "some/sounds, more/sounds"
    (best / "README.md").write_text("---\ntags: [a]\n---\n**Not trained.** These are towers.")
    assert trained_on(str(best)).startswith("nothing yet")
    (best / "training").mkdir()
    (best / "training/recipe.json").write_text(json.dumps({"mixture": [["audiocaps", 1], ["clotho", 2]]}))
    assert trained_on(str(best)) == "audiocaps, clotho"
    (tmp_path / "run/recipe.json").write_text(json.dumps({"data": "/home/me/my_sounds"}))
    assert trained_on(str(best)) == "my_sounds"


def test_labels_are_cleaned_and_kept_once():
    assert labels_in("a, b;\nA\u0000, a ,b") == ["a", "b", "A"]
    assert answers.SILENCE == pytest.approx(10 ** (-80 / 20))
