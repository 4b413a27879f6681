"""`wavlink eval` on recordings with queries: the spans of `locate`, scored and kept after a kill."""

import json

import numpy as np
import pytest

from processing.datasets.moments import load_moments
from wavlink import Embedder, locate
from wavlink.evaluation import moment_scores
from wavlink.evaluation.command import main
from wavlink.evaluation.moment_metrics import moment_figures
from wavlink.evaluation.protocol import evaluate_dataset
from wavlink.frame_head import Fitted, FrameHead, step_states, write_frame_head
from wavlink.loading import load_for_evaluation
from wavlink.probability import Logistic

from ..conftest import tone
from ..moment_folders import castella_folder, clotho_moment_folder


@pytest.fixture
def dataset(tmp_path):
    return load_moments("clotho-moment", "", clotho_moment_folder(tmp_path / "moments"))[0]


def test_the_command_scores_moments_and_counts_bad_rows(wavlink_folder, tmp_path, capsys):
    output = tmp_path / "scores.json"
    data = clotho_moment_folder(tmp_path / "moments")
    main(["--model", str(wavlink_folder), "--benchmark", "clotho-moment", "--data", data, "--output", str(output)])
    written = json.loads(output.read_text(encoding="utf-8"))
    assert (written["clips"], written["captions"]) == (3, 5)
    assert written["data"]["report"]["malformed"] == 3 and written["data"]["source"] == data
    assert written["moments"]["windows"] == {"4/1": 3}
    assert {*written["moments"]["32"]} == {"R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP"}
    assert "text_to_audio" not in written
    printed = capsys.readouterr().out
    assert "3 malformed, such as line 3, line 7, line 12" in printed and "mAP@0.75" in printed
    assert not output.with_name("scores.json.parts").exists()


def by_locate(folder, dataset, **options) -> dict:
    found, relevant, recordings, embedder = [], [], [], Embedder(str(folder))
    for number, row in enumerate(dataset):
        for moment in row["moments"]:
            spans = locate(embedder, row["audio"]["path"], moment["query"], top_k=10, min_score=-1, **options)
            found.append(np.array([(span.start, span.end) for span in spans]))
            relevant.append(moment["windows"])
            recordings.append(number)
    return moment_figures(found, relevant, recordings)


def test_scores_are_those_of_locate(wavlink_folder, model, processor, dataset):
    scores = evaluate_dataset(model, processor, dataset, progress=False)
    assert scores["moments"]["16"] == by_locate(wavlink_folder, dataset, dim=16)
    assert not scores["moments"]["frames"]


def test_a_frame_head_finds_moments_at_full_width(wavlink_folder, dataset, monkeypatch):
    embedder = Embedder(str(wavlink_folder))
    head = FrameHead(step_states(embedder, [tone(440, 1.0)]).shape[-1], embedder.dims, hidden=8)
    write_frame_head(wavlink_folder, Fitted(head, Logistic(10.0, -3.0, 0.01)), embedder.revision)
    model, processor = load_for_evaluation(str(wavlink_folder))
    used, steps_of = [], moment_scores.steps_of
    monkeypatch.setattr(moment_scores, "steps_of", lambda *given: used.append(given) or steps_of(*given))
    scores = evaluate_dataset(model, processor, dataset, progress=False)
    assert scores["moments"]["frames"] and scores["moments"]["32"] == by_locate(wavlink_folder, dataset)
    assert scores["moments"]["16"] == by_locate(wavlink_folder, dataset, dim=16)
    assert len(used) == len(dataset)


def test_a_killed_evaluation_goes_on(model, processor, dataset, tmp_path, monkeypatch):
    find, calls = moment_scores._find, []

    def killed_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find(*arguments)

    monkeypatch.setattr(moment_scores, "_find", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate_dataset(model, processor, dataset, progress=False, store=tmp_path)
    scores = evaluate_dataset(model, processor, dataset, progress=False, store=tmp_path)
    assert len(calls) == 2 + 2  # the first recording is not encoded again
    assert scores == evaluate_dataset(model, processor, dataset, progress=False)


def test_a_recording_that_breaks_is_named(model, processor, dataset, monkeypatch):
    encode = moment_scores.encode_recording

    def broken_venice(embedder, sound, window, hop):
        if "Venice" in sound:
            raise ValueError("cut off")
        return encode(embedder, sound, window, hop)

    monkeypatch.setattr(moment_scores, "encode_recording", broken_venice)
    scores = evaluate_dataset(model, processor, dataset, progress=False)
    assert scores["unreadable"] == {"count": 1, "clips": {"Venice_0.0_60.0": "cut off"}}
    assert (scores["clips"], scores["captions"]) == (2, 3)


def test_several_models_are_compared(wavlink_folder, tmp_path, capsys):
    models = [str(wavlink_folder), f"random:{wavlink_folder}"]
    main(["--model", *models, "--benchmark", "castella", "--data", castella_folder(tmp_path)])
    assert "R1@0.7" in capsys.readouterr().out.splitlines()[-3]
