"""CLAPs of transformers give their own vectors without chance, WavLinks theirs, and controls nothing learned."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers import ClapFeatureExtractor, ClapModel, ClapProcessor
from transformers.utils import logging

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from tests import clap_models
from tests.clap_models import LONG, SHORT, save_clap
from tests.conftest import RATE as WHISPER_RATE
from tests.conftest import tone as whisper_tone
from tests.htsat_models import RATE, tone
from wavlink import cli
from wavlink.evaluation.embed_split import embed_audio, embed_text
from wavlink.loading import describe, load_for_evaluation, random_control

WINDOW = 2 * RATE
BARELY = tone(500, 2.005, 4)  # over the window, but not by a frame

unfused = clap_models.unfused


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    return save_clap(tmp_path_factory.mktemp("fused"), True)


@pytest.fixture(params=[False, True], ids=["unfused", "fused"])
def clap(request, unfused, fused):
    return fused if request.param else unfused


def own(folder, clips, expected_longer=None) -> torch.Tensor:
    """What transformers makes of a batch."""
    inputs = ClapProcessor.from_pretrained(folder)(audio=clips, sampling_rate=RATE, return_tensors="pt")
    assert expected_longer is None or inputs["is_longer"][:, 0].tolist() == expected_longer
    with torch.no_grad():
        return ClapModel.from_pretrained(folder).eval().get_audio_features(**inputs).pooler_output


def vectors(model, processor, clips, rate=RATE) -> torch.Tensor:
    with torch.no_grad():
        inputs = processor(audio=clips, sampling_rate=rate, return_tensors="pt").to(model.device)
        return model.get_audio_features(**inputs).pooler_output


def apart(embeds: torch.Tensor) -> float:
    """The smallest distance of two rows."""
    distances = torch.cdist(embeds, embeds)
    return distances[~torch.eye(len(embeds), dtype=torch.bool)].min().item()


def test_clips_of_a_window_have_the_vectors_of_transformers(unfused):
    model, processor = load_for_evaluation(str(unfused))
    assert torch.equal(vectors(model, processor, SHORT), own(unfused, SHORT))
    assert apart(own(unfused, SHORT)) > 0.01
    assert not model.training and model.dtype == torch.float32 and model.device.type == "cpu"
    assert model.config.projection_dim == 8 and model.config.matryoshka_dims == [8]
    assert processor.feature_extractor.sampling_rate == RATE


def test_fusion_marks_no_short_clip_as_longer(fused):
    model, processor = load_for_evaluation(str(fused))
    clips = [*SHORT, BARELY]
    expected = own(fused, [*clips, LONG[0]], [False] * 4 + [True])[:4]  # no clip is marked at random beside a long one
    found = vectors(model, processor, clips)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    alone = torch.cat([own(fused, [clip], [True]) for clip in clips])  # as transformers marks a clip alone
    assert (alone - found).norm(dim=1).min() > 0.1
    assert processor(audio=[SHORT[0], LONG[0]], sampling_rate=RATE)["is_longer"].tolist() == [[False], [True]]


def test_texts_have_the_vectors_of_transformers(clap):
    model, processor = load_for_evaluation(str(clap))
    texts = ["a dog barks", "the cat", "this is the sound of the low loud rain . a bell rings"]
    inputs = ClapProcessor.from_pretrained(clap).tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = ClapModel.from_pretrained(clap).eval().get_text_features(**inputs).pooler_output
        assert torch.equal(
            model.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output, expected
        )
        alone = model.get_text_features(**processor(text=texts[1], return_tensors="pt")).pooler_output
    torch.testing.assert_close(alone, expected[1:2], atol=1e-6, rtol=0)
    assert apart(expected) > 0.01 and processor.texts_truncated == 0


def test_crop_of_a_long_clip_depends_on_its_samples(unfused, monkeypatch):
    model, processor = load_for_evaluation(str(unfused))
    starts, draw = [], np.random.randint
    monkeypatch.setattr(np.random, "randint", lambda *limits: starts.append(draw(*limits)) or starts[-1])
    found = processor(audio=LONG, sampling_rate=RATE, return_tensors="pt")
    crops = [clip[start : start + WINDOW] for clip, start in zip(LONG, starts, strict=True)]
    expected = ClapFeatureExtractor.from_pretrained(unfused)(crops, sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(found["input_features"], expected["input_features"])
    assert found["is_longer"].all() and processor.clips_over_window == 3
    assert abs(starts[0] - starts[1]) > 100  # though both clips last 3.1 s


def test_fusion_crops_of_a_long_clip_depend_on_the_clip_alone(fused):
    model, processor = load_for_evaluation(str(fused))
    extractor = ClapFeatureExtractor.from_pretrained(fused)
    shrunk, *pieces = processor(audio=LONG[0], sampling_rate=RATE, return_tensors="np")["input_features"][0]
    whole = extractor._np_extract_fbank_features(LONG[0].astype(np.float64), extractor.mel_filters)  # (311, 64)
    starts = [next(i for i in range(len(whole)) if np.array_equal(whole[i : i + 201], piece)) for piece in pieces]
    assert 0 <= starts[0] < 37 <= starts[1] < 74 <= starts[2] <= 110  # a piece of each third of the 111 places
    theirs = extractor([LONG[0]], sampling_rate=RATE, return_tensors="np")["input_features"][0]
    assert np.array_equal(shrunk, theirs[0])


def test_clip_vectors_are_deterministic_and_independent_of_the_batch(clap):
    model, processor = load_for_evaluation(str(clap))
    clips = [*SHORT, BARELY, *LONG]
    together = vectors(model, processor, clips)
    np.random.seed(7)
    alone = torch.cat([vectors(model, processor, [clip]) for clip in clips])
    backwards = vectors(*load_for_evaluation(str(clap)), clips[::-1]).flip(0)
    short = vectors(model, processor, SHORT)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together, backwards, atol=1e-6, rtol=0)
    torch.testing.assert_close(together[:3], short, atol=1e-6, rtol=0)
    rows = [{"audio": {"array": clip, "sampling_rate": RATE}} for clip in clips]
    embedded = embed_audio(model, processor, rows, [len(clip) for clip in clips], batch_size=3, progress=False)
    torch.testing.assert_close(embedded.vectors, together, atol=1e-6, rtol=0)


def test_numpys_generator_is_restored(clap):
    _, processor = load_for_evaluation(str(clap))
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    processor(audio=[*SHORT, *LONG], sampling_rate=RATE)
    assert np.random.random() == expected


def test_texts_over_the_limit_are_truncated_and_counted(unfused):
    model, processor = load_for_evaluation(str(unfused))
    assert processor.text_limit == 19  # 20 positions from padding's on, of which it keeps one
    texts = ["the dog " * 20, "the " * 17, "the " * 18]
    assert len(processor.tokenizer(texts[1])["input_ids"]) == 19
    tokens = processor(text=texts, return_tensors="pt")
    assert tokens["input_ids"].shape == (3, 19) and processor.texts_truncated == 2
    assert embed_text(model, processor, texts).isfinite().all()
    assert describe(model, processor)["texts_truncated"] == 4


@pytest.mark.parametrize(
    ("clip", "rate", "message"),
    [
        (tone(), None, "sampling_rate=None but this CLAP takes 48000 Hz"),
        (tone(), 16000, "sampling_rate=16000 but"),
        (np.zeros((2, 100), np.float32), RATE, r"clip 0 must be mono.*got \[2, 100\]"),
        (np.zeros(0, np.float32), RATE, "not empty"),
        (np.zeros(100, np.int16), RATE, "of int16"),
        (np.full(100, np.nan, np.float32), RATE, "finite"),
    ],
)
def test_bad_clips_are_refused(unfused, clip, rate, message):
    _, processor = load_for_evaluation(str(unfused))
    with pytest.raises(ValueError, match=message):
        processor(audio=[clip], sampling_rate=rate, return_tensors="pt")


def test_description_states_how_inputs_are_made(unfused, fused):
    model, processor = load_for_evaluation(str(unfused))
    vectors(model, processor, [*SHORT, *LONG])
    found = describe(model, processor)
    assert json.loads(json.dumps(found)) == found
    assert found["kind"] == "clap" and found["dims"] == 8 and found["sampling_rate"] == RATE
    assert found["parameters"] == sum(p.numel() for p in ClapModel.from_pretrained(unfused).parameters())
    assert found["clips_over_window"] == 3 and "one crop of 2 s, placed by the clip's samples" in found["note"]
    assert "texts up to 19 tokens" in found["note"]
    assert "shrunk to 2 s and three crops" in describe(*load_for_evaluation(str(fused)))["note"]


def test_wavlink_is_loaded_unchanged(wavlink_folder, model, processor):
    clips = [whisper_tone(300, 0.5), whisper_tone(2000, 1.5)]
    loaded, its_processor = load_for_evaluation(str(wavlink_folder))
    expected = vectors(model, processor, clips, WHISPER_RATE)
    assert torch.equal(vectors(loaded, its_processor, clips, WHISPER_RATE), expected)
    found = describe(loaded, its_processor)
    assert found["kind"] == "wavlink" and "at their own length" in found["note"]
    assert not loaded.training and loaded.dtype == torch.float32
    assert found["revision"].startswith("sha256:") and found["revision"] == describe(model, processor)["revision"]
    with torch.no_grad():
        loaded.logit_scale += 1e-6
    assert describe(loaded, its_processor)["revision"] != found["revision"]
    its_processor.feature_extractor.padding = "max_length"
    assert "padded to 30 s" in describe(loaded, its_processor)["note"]


def test_half_precision_weights_are_scored_in_fp32(wavlink_folder, model):
    model.to(torch.bfloat16).save_pretrained(wavlink_folder)
    for name in (str(wavlink_folder), f"random:{wavlink_folder}"):
        assert {p.dtype for p in load_for_evaluation(name)[0].parameters()} == {torch.float32}


@pytest.fixture
def htsat_folder(unfused, bert_folder, tmp_path):
    """A WavLink with the CLAP's audio tower."""
    towers = str(unfused), str(bert_folder)
    WavLinkModel.from_audio_text_pretrained(*towers, text_pooling="mean").save_pretrained(tmp_path / "htsat")
    WavLinkProcessor.from_audio_text_pretrained(*towers).save_pretrained(tmp_path / "htsat")
    return tmp_path / "htsat"


@pytest.mark.parametrize("kind", ["wavlink_folder", "htsat_folder", "unfused", "fused"])
def test_random_baseline_depends_on_its_seed_alone(kind, request):
    folder = request.getfixturevalue(kind)
    trained, processor = load_for_evaluation(str(folder))
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    rate = processor.feature_extractor.sampling_rate
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    control, its_processor = load_for_evaluation(f"random:{folder}@3")
    of_model = random_control(trained, 3)
    assert torch.rand(1) == expected
    revisions = [describe(m, its_processor)["revision"] for m in (control, of_model, random_control(trained, 4))]
    assert revisions[0] == revisions[1] != revisions[2] and describe(trained, processor)["revision"] not in revisions
    assert {name: value.shape for name, value in control.state_dict().items()} == {
        name: value.shape for name, value in before.items()
    }
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name]), name
    clips = [np.sin(np.arange(rate) * step).astype(np.float32) for step in (0.05, 0.3, 1.0)]
    embeds = vectors(control, its_processor, clips, rate)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(3))
    assert apart(embeds) > 1e-4 and not control.training  # no constant
    found = describe(control, its_processor)
    assert found["kind"] == "random control" and found["seed"] == 3 and found["note"].startswith("new weights")
    assert found["parameters"] == describe(trained, processor)["parameters"]
    assert control.config.matryoshka_dims == trained.config.matryoshka_dims


def test_random_baseline_needs_no_weights(unfused, tmp_path):
    folder = shutil.copytree(unfused, tmp_path / "clap")
    (folder / "model.safetensors").unlink()
    model, processor = load_for_evaluation(f"random:{folder}")
    assert describe(model, processor)["seed"] == 0
    with pytest.raises(ValueError, match=f"{folder} offers no weights in safetensors"):
        load_for_evaluation(str(folder))


def test_missing_weights_are_refused_but_not_missing_constants(unfused, tmp_path):
    folder = shutil.copytree(unfused, tmp_path / "clap")
    weights = load_file(folder / "model.safetensors")
    del weights["text_model.embeddings.position_ids"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(vectors(*load_for_evaluation(str(folder)), SHORT), own(unfused, SHORT))
    del weights["audio_projection.linear1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{folder} lacks weights.*audio_projection.linear1.weight"):
        load_for_evaluation(str(folder))


def test_a_fusing_extractor_on_a_model_without_fusion_is_refused(tmp_path):
    with pytest.raises(ValueError, match="without fusion whose feature extractor has truncation='fusion'"):
        load_for_evaluation(str(save_clap(tmp_path, False, truncation="fusion")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:", "'random:' does not say which model.*random:NAME@SEED"),
        ("random:{bert}@1", "is a 'bert' model: give a WavLink or a transformers CLAP"),
        ("random:{bert}@x", "@x' is neither a folder here nor a Hub id.*random:NAME@SEED"),
        ("{bert}", "is a 'bert' model: give a WavLink or a transformers CLAP"),
        ("{empty}", "empty has no config.json: give a WavLink"),
        ("{run}", "run has no config.json: did you mean .*run/best"),
        ("{run}/broken", "config.json of .*broken is broken"),
        ("no/such/folder", "'no/such/folder' is neither a folder"),
        ("random:random:no", "'random:no' is neither a folder"),
    ],
)
def test_unknown_names_are_refused(bert_folder, tmp_path, name, message):
    for folder in ("empty", "run/best", "run/broken"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/best/config.json").write_text("{}")
    (tmp_path / "run/broken/config.json").write_text("{")
    with pytest.raises(ValueError, match=message):
        load_for_evaluation(name.format(bert=bert_folder, empty=tmp_path / "empty", run=tmp_path / "run"))


def test_the_message_for_a_run_says_what_it_holds(tmp_path):
    run = tmp_path / "runs/mine"
    (run / "checkpoints").mkdir(parents=True)
    for name in (run, run / "best", tmp_path / "runs/mien"):
        with pytest.raises(ValueError, match=r"the training in .*runs/mine has not saved a model yet: the command"):
            load_for_evaluation(str(name))
    (run / "last").mkdir()
    (run / "last/config.json").write_text("{}")
    for name in (run, run / "best", tmp_path / "runs/mien"):
        with pytest.raises(ValueError, match=r"did you mean the folder .*runs/mine/last\?"):
            load_for_evaluation(str(name))


@pytest.mark.parametrize("shown", [True, False])
def test_loading_shows_no_bars_and_leaves_transformers_setting(wavlink_folder, capfd, shown):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        load_for_evaluation(str(wavlink_folder))
        assert capfd.readouterr().err == ""
        assert logging.is_progress_bar_enabled() is shown is not are_progress_bars_disabled()
        assert cli.main(["classify", "none.wav", "--model", str(wavlink_folder), "--labels", "a", "b"]) == 2
        assert logging.is_progress_bar_enabled() is shown is not are_progress_bars_disabled()
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_a_wavlink_without_a_processor_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_for_evaluation(str(tmp_path))


FROM_HUB = """
import json
from wavlink.loading import describe, load_for_evaluation
try:
    load_for_evaluation("user/none")
except ValueError as error:
    refused = str(error)
names = "user/clap", "random:user/clap", "user/wavlink", "random:user/wavlink@1"
print(json.dumps([refused, *(describe(*load_for_evaluation(name)) for name in names)]))
"""


@pytest.mark.slow
def test_from_the_hub_the_commit_is_the_revision(hub, unfused, wavlink_folder, tmp_path):
    commits = [
        hub.add_repo(name, folder, "model")
        for name, folder in (("user/clap", unfused), ("user/wavlink", wavlink_folder))
    ]
    refused, *found = json.loads(hub.run(FROM_HUB, tmp_path / "home").splitlines()[-1])
    assert refused.startswith("'user/none' is neither a folder here nor available on the Hub")
    assert [row["revision"] for row in found[::2]] == commits
    assert all(row["revision"].startswith("sha256:") for row in found[1::2])
    assert [row["kind"] for row in found] == ["clap", "random control", "wavlink", "random control"]
