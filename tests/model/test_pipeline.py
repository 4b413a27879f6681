"""transformers' zero-shot pipeline: in batches the scores of one by one, in a clean process and from every input."""

import json
import shutil

import datasets
import numpy as np
import pytest
import soundfile
from transformers import AutoConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import wavlink
from modeling_wavlink.configuration_wavlink import CUSTOM_PIPELINES, WavLinkConfig
from modeling_wavlink.pipeline_wavlink import WavLinkZeroShotAudioClassificationPipeline
from tests.clean_process import run_clean
from tests.conftest import RATE, tone
from wavlink.config_file import write_field

TASK = "zero-shot-audio-classification"
LABELS = ["dog", "a low bell rings and falls", "rain"]
CLIPS = [tone(200 * (n + 1), seconds, n) for n, seconds in enumerate([1.0, 0.5, 2.5, 1.0, 1.5])]


@pytest.fixture
def sharp_folder(sharp_model, processor, tmp_path):
    folder = tmp_path / "sharp"
    sharp_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def scores(rows: list) -> np.ndarray:
    """`[clips, labels]`, whatever order they are ranked in."""
    return np.array([[next(x["score"] for x in row if x["label"] == label) for label in LABELS] for row in rows])


@pytest.fixture
def classify(sharp_folder):
    return pipeline(TASK, model=str(sharp_folder), trust_remote_code=True)


@pytest.fixture
def single(classify) -> np.ndarray:
    found = scores([classify(clip, candidate_labels=LABELS) for clip in CLIPS])
    assert np.abs(found - found[:1]).max() > 1e-3  # the clips are told apart
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_batches_have_the_scores_of_single_clips(classify, single, batch_size):
    found = classify(CLIPS, candidate_labels=LABELS, batch_size=batch_size)
    np.testing.assert_allclose(scores(found), single, atol=1e-5)


def test_generators_data_sets_and_workers(classify, single):
    found = {
        "generator": classify((clip for clip in CLIPS), candidate_labels=LABELS, batch_size=2),
        "workers": classify(CLIPS, candidate_labels=LABELS, batch_size=2, num_workers=2),
        "KeyDataset": classify(
            KeyDataset([{"audio": {"array": clip, "sampling_rate": RATE}} for clip in CLIPS], "audio"),
            candidate_labels=LABELS,
            batch_size=3,
        ),
    }
    for name, rows in found.items():
        np.testing.assert_allclose(scores(list(rows)), single, atol=1e-5, err_msg=name)


def test_files_bytes_and_cells(classify, single, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, CLIPS[0], RATE, subtype="FLOAT")
    cells = datasets.Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", datasets.Audio(decode=False))
    for audio in (str(path), path.read_bytes(), cells[0]["audio"], {"array": CLIPS[0], "sampling_rate": RATE}):
        np.testing.assert_allclose(scores([classify(audio, candidate_labels=LABELS)]), single[:1], atol=1e-6)


def test_one_label_and_bad_input(classify):
    assert [row[0]["score"] for row in classify(CLIPS, candidate_labels=["dog"], batch_size=2)] == [1.0] * 5
    for labels in ([], None, "dog"):
        with pytest.raises(ValueError, match="candidate_labels must be a list"):
            classify(CLIPS[0], candidate_labels=labels)
    for audio, why in ((np.zeros((2, 400), np.float32), "average the channels"), ("https://x.org/a.wav", "is a URL")):
        with pytest.raises(ValueError, match=why):
            classify(audio, candidate_labels=LABELS)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_prompts_that_the_model_brings_are_averaged_and_a_given_template_wins(
    classify, single, sharp_folder, tmp_path, batch_size
):
    prompts = ["{}.", "the {} rings", "a low {}"]
    folder = shutil.copytree(sharp_folder, tmp_path / "with_prompts")
    write_field(folder, "label_prompts", prompts)
    prompted = pipeline(TASK, model=str(folder), trust_remote_code=True)
    expected = wavlink.classify(
        sharp_folder, [{"array": clip, "sampling_rate": RATE} for clip in CLIPS], LABELS, prompts=prompts
    )
    found = scores(prompted(CLIPS, candidate_labels=LABELS, batch_size=batch_size))
    np.testing.assert_allclose(found, scores([row["labels"] for row in expected]), atol=1e-5)
    assert np.abs(found - single).max() > 1e-4
    template = {"hypothesis_template": "This is a sound of {}.", "batch_size": batch_size}
    np.testing.assert_allclose(scores(prompted(CLIPS, candidate_labels=LABELS, **template)), single, atol=1e-5)
    assert set(prompted(CLIPS[0], candidate_labels=LABELS)[0]) == {"label", "score"}
    assert [row[0]["score"] for row in prompted(CLIPS, candidate_labels=["dog"], batch_size=batch_size)] == [1.0] * 5


@pytest.mark.parametrize("padding", ["max_length"])
def test_the_papers_way_in_batches(sharp_model, processor, tmp_path, monkeypatch, padding):
    monkeypatch.setattr(processor.feature_extractor, "padding", padding)
    sharp_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline(TASK, model=str(tmp_path), trust_remote_code=True)
    alone = scores([classify(clip, candidate_labels=LABELS) for clip in CLIPS[:3]])
    np.testing.assert_allclose(scores(classify(CLIPS[:3], candidate_labels=LABELS, batch_size=2)), alone, atol=1e-5)


def test_a_model_and_its_parts_need_the_class_named(sharp_model, processor, single):
    classify = pipeline(
        TASK,
        model=sharp_model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        pipeline_class=WavLinkZeroShotAudioClassificationPipeline,
    )
    np.testing.assert_allclose(scores(classify(CLIPS, candidate_labels=LABELS, batch_size=2)), single, atol=1e-5)


def test_the_config_stays_json_after_a_pipeline_took_it(classify, tmp_path):
    json.loads(classify.model.config.to_json_string())
    classify.model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert saved[TASK]["impl"] == "pipeline_wavlink.WavLinkZeroShotAudioClassificationPipeline"
    assert saved[TASK]["pt"] == ["AutoModel"] and (tmp_path / "pipeline_wavlink.py").is_file()


def test_a_checkpoint_of_before_keeps_the_stock_pipeline(sharp_folder, tmp_path):
    config = json.loads((sharp_folder / "config.json").read_text())
    del config["custom_pipelines"]
    (sharp_folder / "config.json").write_text(json.dumps(config))
    (sharp_folder / "pipeline_wavlink.py").unlink()
    assert not hasattr(AutoConfig.from_pretrained(sharp_folder, trust_remote_code=True), "custom_pipelines")
    classify = pipeline(TASK, model=str(sharp_folder), trust_remote_code=True)
    assert type(classify).__name__ == "ZeroShotAudioClassificationPipeline"
    assert len(classify(CLIPS[0], candidate_labels=LABELS)) == 3


@pytest.mark.slow
def test_batches_in_a_clean_process(sharp_folder, single, tmp_path):
    np.savez(tmp_path / "clips.npz", *CLIPS)
    out = run_clean(
        """
        import json, numpy as np
        from transformers import pipeline
        clips = list(np.load("clips.npz").values())
        classify = pipeline(sys.argv[2], model=sys.argv[1], trust_remote_code=True)
        print(json.dumps(classify(clips, candidate_labels=json.loads(sys.argv[3]), batch_size=2)))
        """,
        sharp_folder,
        TASK,
        json.dumps(LABELS),
        tmp_path=tmp_path,
    )
    np.testing.assert_allclose(scores(json.loads(out.splitlines()[-1])), single, atol=1e-5)


@pytest.mark.parametrize(
    ("impl", "kept"),
    [
        ("pipeline_wavlink.WavLinkZeroShotAudioClassificationPipeline", True),
        ("evil/repo--pipeline_wavlink.WavLinkZeroShotAudioClassificationPipeline", True),
        ("evil.Evil", False),
        ("evil/repo--evil.Evil", False),
        (None, False),
    ],
)
def test_a_file_can_name_no_other_pipeline(impl, kept):
    """The Hub's client writes the repository in front; it is left out, so that the pipeline is the model's own."""
    config = {**WavLinkConfig.for_size("base").to_dict(), "custom_pipelines": {TASK: {"impl": impl, "pt": []}}}
    loaded = WavLinkConfig.from_dict(config)
    assert getattr(loaded, "custom_pipelines", None) == (CUSTOM_PIPELINES if kept else None)
    config["custom_pipelines"]["another-task"] = {"impl": "evil.Evil"}
    assert not hasattr(WavLinkConfig.from_dict(config), "custom_pipelines")
