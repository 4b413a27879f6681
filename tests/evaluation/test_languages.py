"""Scores in each language of the captions."""

import json

import pytest
import soundfile
import torch

from processing.datasets.load import columns_by_language, load_split
from tests.conftest import RATE, tone
from wavlink.evaluation.command import main
from wavlink.evaluation.protocol import evaluate_dataset
from wavlink.evaluation.report import evaluation_report
from wavlink.evaluation.retrieval import language_scores

ROWS = [  # English, German, German again
    ("a dog barks", "dog sound", "loud dog"),
    ("the cat meows", "cat", ""),
    ("rain falls", "rain", "dog sound"),
    ("the bell rings", "", ""),
]
COLUMNS = ["caption_en", "caption_de", "caption_de_2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("languages") / "sounds"
    (root / "test").mkdir(parents=True)
    lines = [",".join(["file_name", *COLUMNS])]
    for number, row in enumerate(ROWS):
        soundfile.write(root / "test" / f"{number}.wav", tone(200 * (number + 1), 0.2, number), RATE)
        lines.append(",".join([f"{number}.wav", *row]))
    (root / "test/metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def test_names_of_columns_state_languages():
    names = ["caption", "caption_2", "caption_de", "captions_pt_BR", "caption_de_2", "text_zh-Hans", "caption_said"]
    assert columns_by_language([*names, "label", "text", "captions_2"]) == {
        "de": ["caption_de", "caption_de_2"],
        "pt_BR": ["captions_pt_BR"],
        "zh-Hans": ["text_zh-Hans"],
    }


def test_a_language_is_scored_with_its_texts_alone_among_all_clips():
    audio = torch.eye(4)
    text = torch.stack([audio[0], audio[1], audio[3], audio[1] + 0.1 * audio[0]])  # the last two are of German
    scores = language_scores(audio, text, {"en": [[0], [1], [], []], "de": [[3], [], [2], []], "fr": [[0]] * 4}, 4)
    assert set(scores) == {"en", "de"}  # one French text cannot be searched with
    for way in ("text_to_audio", "audio_to_text"):
        assert scores["en"][way]["R@1"]["value"] == 1
    assert scores["de"]["clips"] == scores["de"]["captions"] == 2
    assert scores["de"]["text_to_audio"]["R@1"]["value"] == 0  # both name another clip
    assert scores["de"]["audio_to_text"]["R@1"]["value"] == 0.5  # clip 0 is nearer to its own text
    assert scores["de"]["chance"]["text_to_audio"]["R@1"] == 0.25


def test_scores_by_language_are_those_of_its_columns_alone(sharp_model, processor, data):
    dataset = load_split(str(data), "test")
    scores = evaluate_dataset(sharp_model, processor, dataset, COLUMNS, progress=False)
    assert set(scores["by_language"]) == {"de", "en"}
    for language, columns in columns_by_language(COLUMNS).items():
        alone = evaluate_dataset(sharp_model, processor, dataset, columns, progress=False)
        row = scores["by_language"][language]
        assert row["captions"] == alone["captions"]
        assert all(row[way] == alone[way]["32"] for way in ("text_to_audio", "audio_to_text"))
        assert row["chance"] == alone["chance"]
    assert scores["by_language"]["de"]["clips"] == 3
    assert "text → audio   de" in evaluation_report(scores)


def test_the_command_writes_scores_by_language(wavlink_folder, data, tmp_path, capsys):
    output = tmp_path / "scores.json"
    command = ["--model", str(wavlink_folder), "--benchmark", str(data), "--output", str(output)]
    main([*command, "--caption_columns", *COLUMNS])
    written = json.loads(output.read_text(encoding="utf-8"))
    figure = written["by_language"]["de"]["text_to_audio"]["R@10"]
    assert figure["value"] == 1 and figure["interval"] == [1, 1]
    assert "by language" in capsys.readouterr().out
