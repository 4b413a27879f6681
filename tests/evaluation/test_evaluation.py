"""An evaluation equals one clip at a time; the command's outputs, refusals and resumption."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch

from processing.datasets.load import load_split
from tests import captioned_folders
from tests.benchmark_folders import air_bench_folder, esc50_folder, write_rows
from tests.captioned_folders import ROWS
from tests.clap_models import save_clap
from tests.conftest import RATE, tone
from tests.helpers import by_sorting, wav
from wavlink import embedder
from wavlink.cli import build_parser
from wavlink.compat_argparse import actions_of
from wavlink.evaluation import command as command_of_eval
from wavlink.evaluation import embed_split as embedding
from wavlink.evaluation.command import main
from wavlink.evaluation.protocol import Protocol, evaluate_dataset

folder = captioned_folders.folder


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_evaluate_dataset_agrees_with_one_clip_at_a_time(sharp_model, processor, folder):
    scores = evaluate_dataset(
        sharp_model, processor, load_split(str(folder), "test"), ["caption", "caption_2"], progress=False
    )
    texts = sorted({text for row in ROWS for text in row[3:] if text})
    prompts = [f"This is a sound of {name}." for name in ("cat", "dog", "low bell")]
    targets = [1, 0, 2, 1]  # of the first four clips
    with torch.no_grad():
        sounds = [
            sharp_model.get_audio_features(
                **processor(audio=tone(200 * (i + 1), row[1], i), sampling_rate=RATE, return_tensors="pt")
            )
            for i, row in enumerate(ROWS)
        ]
        text_embeds = sharp_model.get_text_features(
            **processor(text=texts + prompts, return_tensors="pt")
        ).pooler_output.numpy()
    audio_embeds = torch.cat([output.pooler_output for output in sounds]).numpy()
    relevant = np.array([[text in row[3:] for text in texts] for row in ROWS])
    assert (scores["clips"], scores["captions"]) == (5, 6)
    assert list(scores["text_to_audio"]) == list(scores["audio_to_text"]) == ["32", "16", "8", "4"]
    for dim in (32, 16, 8, 4):
        cosines = unit(audio_embeds[:, :dim]) @ unit(text_embeds[:, :dim]).T
        for k in (1, 5, 10):
            results = {name: scores[name][str(dim)][f"R@{k}"]["value"] for name in ("text_to_audio", "audio_to_text")}
            assert results["text_to_audio"] == pytest.approx(by_sorting(cosines[:, :6].T, relevant.T, k))
            assert results["audio_to_text"] == pytest.approx(by_sorting(cosines[:, :6], relevant, k))
        top = cosines[:4, 6:].argmax(1) == targets
        assert scores["zero_shot"][str(dim)]["accuracy"]["value"] == pytest.approx(top.mean())
        assert "top-5" not in scores["zero_shot"][str(dim)]  # there are but three labels
    zero_shot = scores["zero_shot"]
    assert (zero_shot["labels"], zero_shot["clips"], zero_shot["chance"]) == (3, 4, pytest.approx(1 / 3))


def test_evaluation_leaves_the_model_as_it_was(model, processor, folder):
    dataset = load_split(str(folder), "test")
    calm = evaluate_dataset(model, processor, dataset, ["caption"], progress=False)
    model.train()
    assert evaluate_dataset(model, processor, dataset, ["caption"], progress=False) == calm
    assert model.training


def test_labels_may_be_class_numbers(model, processor, folder):
    named = load_split(str(folder), "test")
    feature = datasets.ClassLabel(names=["cat", "dog", "low_bell"])
    numbered = named.remove_columns("label").add_column("label", [1, 0, 2, 1, -1]).cast_column("label", feature)
    scores = [evaluate_dataset(model, processor, data, ["caption"], progress=False) for data in (named, numbered)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("labels", [None, [""] * 5])
def test_without_names_of_classes_there_is_no_zero_shot(model, processor, folder, labels):
    dataset = load_split(str(folder), "test").remove_columns("label")
    dataset = dataset if labels is None else dataset.add_column("label", labels)
    assert "zero_shot" not in evaluate_dataset(model, processor, dataset, ["caption"], progress=False)


def test_a_prompt_without_braces_is_refused(model, processor, folder):
    with pytest.raises(ValueError, match="where the label goes.*got 'a sound'"):
        evaluate_dataset(
            model, processor, load_split(str(folder), "test"), ["caption"], Protocol(("a sound",)), progress=False
        )


def command(model, benchmark, output=None, *more) -> dict:
    arguments = ["--model", *map(str, model if isinstance(model, list) else [model]), "--benchmark", str(benchmark)]
    main([*arguments, *(["--output", str(output)] if output else []), *more])
    return json.loads(output.read_text(encoding="utf-8")) if output else {}


def test_the_command_line_is_frozen():
    """What users have typed goes on to work: take nothing from here."""
    options = """--model --benchmark --split --data --caption_columns --prompt --clean_up --renames --candidates
    --group_column --choices --question --choice_text --seed --robustness --batch_size --backend --precision --output
    --json""".split()
    results = {name for action in actions_of(build_parser().commands["eval"]) for name in action.option_strings}
    assert results - {"-h", "--help", "--debug"} == set(options)


def test_the_command_writes_and_prints_the_scores(wavlink_folder, model, processor, folder, tmp_path, capsys):
    output = tmp_path / "new" / "scores.json"
    written = command(wavlink_folder, folder, output, "--choices", "3")
    dataset = load_split(str(folder), "test")
    columns = ["caption", "caption_2"]
    scores = evaluate_dataset(model, processor, dataset, columns, Protocol(choices=3), progress=False)
    assert written == {**written, **json.loads(json.dumps(scores))}
    assert [written[name] for name in ("model", "benchmark", "split")] == [str(wavlink_folder), str(folder), "test"]
    assert written["data"]["fingerprint"] and written["data"]["rows"] == 5
    assert written["about"]["kind"] == "wavlink" and written["about"]["revision"].startswith("sha256:")
    assert written["protocol"]["prompts"] == ["This is a sound of {}."] and written["protocol"]["clean_up"] == "spaces"
    assert written["versions"]["torch"] == torch.__version__
    assert written["multiple_choice"]["questions"] == 4 and "interval" in written["multiple_choice"]["32"]["total"]
    printed = capsys.readouterr().out
    value = 100 * scores["text_to_audio"]["32"]["R@1"]["value"]
    assert "5 clips, 6 captions" in printed and "3 labels, chance 33.3" in printed and f"{value:.1f} [" in printed
    written_files = sorted(path.name for path in output.parent.iterdir())
    assert written_files == ["scores.confusion.png", "scores.json", "scores.recall.png"]  # and no parts


def test_models_side_by_side(wavlink_folder, folder, tmp_path, capsys):
    clap = save_clap(tmp_path / "clap", fusion=False)
    names = [str(wavlink_folder), str(clap), f"random:{wavlink_folder}"]
    written = command(names, folder, tmp_path / "scores.json")
    assert [row["model"] for row in written["models"]] == names
    assert [row["about"]["kind"] for row in written["models"]] == ["wavlink", "clap", "random control"]
    assert [list(row["text_to_audio"]) for row in written["models"]] == [
        ["32", "16", "8", "4"],
        ["8"],
        ["32", "16", "8", "4"],
    ]
    assert written["models"][0]["text_to_audio"] != written["models"][2]["text_to_audio"]
    assert written["models"][0] == {**command(names[0], folder, tmp_path / "alone.json"), "model": names[0]}
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(names[2]) and "random control" in line for line in lines)


def test_a_stopped_command_goes_on(wavlink_folder, folder, tmp_path, monkeypatch):
    whole = command(wavlink_folder, folder, tmp_path / "whole.json", "--batch_size", "1")
    monkeypatch.setattr(embedding, "_BATCHES_A_PART", 1)
    read = embedder.load_column
    read_paths = []

    def stopping(audio, rate):
        read_paths.append(audio["path"])
        if len(read_paths) == 4:
            raise KeyboardInterrupt
        return read(audio, rate)

    monkeypatch.setattr(embedder, "load_column", stopping)
    with pytest.raises(KeyboardInterrupt):
        command(wavlink_folder, folder, tmp_path / "scores.json", "--batch_size", "1")
    assert not (tmp_path / "scores.json").exists()
    assert command(wavlink_folder, folder, tmp_path / "scores.json", "--batch_size", "1") == whole
    assert len(read_paths) == 6 and len({*read_paths}) == 5  # only the clip it was stopped at was begun twice
    assert not (tmp_path / "scores.json.parts").exists()


def test_an_unreadable_clip_is_named_and_counted_but_not_scored(wavlink_folder, folder, tmp_path, capsys):
    broken, without = tmp_path / "broken", tmp_path / "without"
    for copy in (broken, without):
        shutil.copytree(folder, copy)
    (broken / "test" / "bell.wav").write_bytes(b"no sound")
    lines = (folder / "test" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("bell.wav")]
    (without / "test" / "metadata.csv").write_text("\n".join(kept), encoding="utf-8")
    written = [command(wavlink_folder, copy, tmp_path / f"{copy.name}.json") for copy in (broken, without)]
    assert written[0]["unreadable"]["count"] == 1 and written[0]["clips"] == 4
    [(name, why)] = written[0]["unreadable"]["clips"].items()
    assert name.endswith("bell.wav") and "cannot read" in why
    assert "1 clips cannot be read and are not scored: " in capsys.readouterr().out
    for key in ("text_to_audio", "audio_to_text", "captions"):
        assert written[0][key] == written[1][key]
    assert (written[0]["zero_shot"]["labels"], written[1]["zero_shot"]["labels"]) == (3, 2)  # it stays a candidate
    assert written[0]["zero_shot"]["clips"] == written[1]["zero_shot"]["clips"] == 3


def test_labels_alone_are_enough_and_candidates_may_be_given(wavlink_folder, tmp_path, capsys):
    for number, label in enumerate(["dog", "low_bell", "dog", "rain"]):
        (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "test" / label / f"{number}.wav", tone(200 * (number + 1), 0.3, number), RATE)
    written = command(wavlink_folder, tmp_path, tmp_path / "scores.json")
    assert written["zero_shot"]["label_text"] == {"low_bell": "low bell"} and "text_to_audio" not in written
    more = ["--candidates", "dog", "rain", "cat", "--clean_up", "none", "--prompt", "a {}", "the sound of a {}"]
    written = command(wavlink_folder, tmp_path, tmp_path / "scores.json", *more)
    assert written["zero_shot"]["absent"] == {"clips": 1, "labels": 1, "examples": {"low_bell": 1}}
    assert (written["zero_shot"]["clips"], written["zero_shot"]["labels"]) == (3, 3)
    assert written["zero_shot"]["prompts"] == ["a {}", "the sound of a {}"]
    assert "1 clips whose label is no candidate" in capsys.readouterr().out


def test_a_benchmark_by_name_is_read_from_its_copy(wavlink_folder, tmp_path):
    written = command(wavlink_folder, "esc50", tmp_path / "s.json", "--data", esc50_folder(tmp_path / "ESC-50"))
    assert written["split"] == "train" and written["data"]["report"]["missing"] > 0
    labels = written["zero_shot"]["labels"]  # those of missing clips too
    assert labels > len(written["zero_shot"]["per_class"]) and written["zero_shot"]["chance"] == 1 / labels


@pytest.mark.slow
def test_a_benchmark_of_the_hub_has_its_commit_on_record(hub, wavlink_folder, tmp_path):
    labels = {"category": datasets.Value("string")}
    rows = [{"audio": {"bytes": wav(tone(300, 0.2, i)), "path": f"{i}.wav"}, "category": str(i)} for i in range(3)]
    commit = hub.add_repo("mteb/esc50", Path(write_rows(tmp_path / "esc50", "train", rows, labels)))
    arguments = ["--model", str(wavlink_folder), "--benchmark", "esc50", "--output", str(tmp_path / "scores.json")]
    hub.run(f"from wavlink.evaluation.command import main; main({arguments})", tmp_path / "home")
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert written["data"]["revision"] == commit and written["data"]["source"] == "esc50"
    assert written["zero_shot"]["clips"] == 3


def test_air_bench_is_scored_by_task_and_group(wavlink_folder, tmp_path, capsys):
    written = command(wavlink_folder, "airbench", tmp_path / "s.json", "--data", air_bench_folder(tmp_path / "air"))
    scores = written["multiple_choice"]
    assert scores["questions"] == 7 and scores["clips"] == written["clips"] == 4  # each clip is embedded once
    assert list(scores["32"]["groups"]) == ["sound", "music"] and written["windowed"] == 1
    assert written["data"]["report"]["no_third_choice"] == 1 and scores["counts"]["no_fourth_choice"] == 2
    assert "text_to_audio" not in written and "zero_shot" not in written
    assert "Total" in capsys.readouterr().out


def test_captions_of_audiocaps_are_separate_queries(wavlink_folder, tmp_path):
    """Two clips that share a caption do not answer for each other there, as they do in a folder."""
    sounds = {name: wav(tone(hertz, 0.3, 1)) for name, hertz in (("a", 300), ("b", 900))}
    rows = [("a", "a dog barks"), ("a", "the dog"), ("b", "a dog barks"), ("b", "rain")]
    rows = [
        {"youtube_id": name * 11, "caption": caption, "audio": {"bytes": sounds[name], "path": f"{name}.wav"}}
        for name, caption in rows
    ]
    dataset = datasets.Dataset.from_list(rows)
    dataset = dataset.cast(datasets.Features({**dataset.features, "audio": datasets.Audio(decode=False)}))
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    written = command(wavlink_folder, "audiocaps", tmp_path / "s.json", "--data", str(tmp_path))
    assert (written["clips"], written["captions"]) == (2, 4) and not written["protocol"]["share_captions"]
    # Of two clips, the first is right for one query with the shared caption and wrong for the other.
    assert written["text_to_audio"]["32"]["R@1"]["value"] in (0.25, 0.5, 0.75)
    assert written["chance"]["text_to_audio"]["R@1"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "xyz"], r"no benchmark 'xyz'\. There are audiocaps"),
        (["--benchmark", "clothoo"], "no benchmark 'clothoo'; did you mean clotho.*any audiofolder"),
        (["--benchmark", "FOLDER", "--caption_columns", "title"], "no column title; the columns are .*label, caption"),
        (["--benchmark", "FOLDER", "--data", "x"], "--data is the copy of a benchmark by name"),
        (["--benchmark", "FOLDER", "--split", "train"], "holds neither train/metadata.csv|no rows for train"),
        (["--benchmark", "FOLDER", "--candidates", "horse"], "none of 5 clips has a label among the 1 candidates"),
        (["--benchmark", "esc50", "--data", "FOLDER"], "holds neither .*csv nor parquet files"),
    ],
)
def test_the_command_refuses_what_cannot_be_scored(wavlink_folder, folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        main(["--model", str(wavlink_folder), *(str(folder) if word == "FOLDER" else word for word in arguments)])


@pytest.mark.parametrize(
    ("arguments", "renames", "message"),
    [
        (["--candidates", "Dog", "Cat"], {}, "none of 5 clips has a label among the 2 candidates"),
        (["--candidates", "dog"], {}, "'dog' is the only label"),
        ([], {"horse": "a horse"}, "renames hold 'horse', which is no label here"),
        ([], {"dog": "cat"}, "'cat' and 'dog' both read 'cat'"),
        ([], {"cat": ["a cat"]}, "the label 'cat' needs words"),
    ],
)
def test_options_that_do_not_fit_the_labels_are_refused_before_a_model_is_loaded(
    folder, tmp_path, arguments, renames, message
):
    (tmp_path / "renames.json").write_text(json.dumps(renames))
    words = ["--benchmark", str(folder), "--renames", str(tmp_path / "renames.json"), *arguments]
    with pytest.raises(ValueError, match=message):
        main(["--model", "no-such/model", *words])


def test_a_name_that_stands_for_no_model_is_refused_before_data_are_read(monkeypatch):
    monkeypatch.setattr(command_of_eval, "load", None)
    with pytest.raises(ValueError, match="'no-such-model' is neither a folder here nor a bundled model"):
        main(["--model", "wavlink-tiny", "no-such-model", "--benchmark", "esc50"])


def captioned(root, rows) -> str:
    """An audiofolder of tones with these file names, labels and captions."""
    (root / "test").mkdir(parents=True)
    for number, (name, *_) in enumerate(rows):
        soundfile.write(root / "test" / name, tone(200 * (number + 1), 0.2, number), RATE)
    lines = ["file_name,label,caption", *map(",".join, rows)]
    (root / "test/metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return str(root)


def test_labels_that_read_alike_leave_the_captions_scored(wavlink_folder, tmp_path, caplog):
    rows = [("a.wav", "dog_bark", "a dog"), ("b.wav", "dog bark", "a hound"), ("c.wav", "bell", "a bell")]
    scores = command(wavlink_folder, captioned(tmp_path / "data", rows), tmp_path / "s.json", "--choices", "2")
    assert "text_to_audio" in scores and "zero_shot" not in scores and "multiple_choice" not in scores
    assert "labels are not scored: the labels 'dog bark' and 'dog_bark' both read 'dog bark'" in caplog.text


def test_a_candidate_without_clips_may_have_other_words(wavlink_folder, tmp_path):
    rows = [("a.wav", "dog", "a dog"), ("b.wav", "cat", "a cat"), ("c.wav", "bell", "a bell")]
    (tmp_path / "renames.json").write_text('{"horse": "a horse", "cat": "a kitten"}')
    options = ["--candidates", "dog", "bell", "horse", "--renames", str(tmp_path / "renames.json"), "--choices", "2"]
    data = captioned(tmp_path / "data", rows)
    scores = command(wavlink_folder, data, tmp_path / "s.json", *options, "--robustness")
    assert scores["zero_shot"]["label_text"] == {"horse": "a horse"} and scores["zero_shot"]["clips"] == 2
    assert scores["multiple_choice"]["questions"] == 3 and "robustness" in scores


@pytest.mark.parametrize("unreadable", [1, 2])
def test_robustness_is_left_out_where_the_readable_clips_allow_no_retrieval(
    wavlink_folder, tmp_path, caplog, unreadable
):
    rows = [("a.wav", "dog", "a dog"), ("b.wav", "cat", "a cat"), ("c.wav", "dog", ""), ("d.wav", "cat", "")]
    data = captioned(tmp_path / "data", rows)
    for name, *_ in rows[:unreadable]:
        (tmp_path / "data/test" / name).write_bytes(b"no sound")
    scores = command(wavlink_folder, data, tmp_path / "s.json", "--robustness")
    assert "zero_shot" in scores and "robustness" not in scores
    assert "robustness is not scored: " in caplog.text


def test_groups_that_are_none_are_refused_before_a_model_is_loaded(folder, tmp_path):
    data = Path(captioned(tmp_path / "data", [("a.wav", "", "a dog"), ("b.wav", "", "a cat")]))
    rows = [{"file_name": f"{name}.wav", "caption": name, "group": [name]} for name in "ab"]
    (data / "test/metadata.csv").unlink()
    (data / "test/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="column 'group' holds a list of text: a group is a text"):
        main(["--model", "no-such/model", "--benchmark", str(data)])


def test_captions_that_differ_in_case_alone_are_one_caption(tmp_path):
    rows = [("a.wav", "", "a dog"), ("b.wav", "", "A Dog")]
    with pytest.raises(ValueError, match="2 clips and 1 different captions"):
        main(["--model", "no-such/model", "--benchmark", captioned(tmp_path / "data", rows)])


def test_an_empty_split_is_refused(model, processor, folder):
    with pytest.raises(ValueError, match="the split is empty: name another --split"):
        evaluate_dataset(model, processor, load_split(str(folder), "test").select([]), ["caption"], progress=False)


def test_labels_and_groups_cannot_control_the_terminal(wavlink_folder, tmp_path, capsys):
    data = tmp_path / "evil"
    (data / "test").mkdir(parents=True)
    rows = [{"label": f"dog\x1b[{n}m", "group": "a\u202eb\x07", "caption": f"a \x9b{n}"} for n in range(3)]
    for number, row in enumerate(rows):
        soundfile.write(data / "test" / f"{number}.wav", tone(200, 0.1, number), RATE)
        row["file_name"] = f"{number}.wav"
    (data / "test/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main(["--model", str(wavlink_folder), "--benchmark", str(data), "--output", str(tmp_path / "s.json")])
    out = capsys.readouterr().out
    assert "dog\\x1b[2m" in out and all(line.isprintable() for line in out.splitlines())
    assert "dog\x1b[2m" in json.loads((tmp_path / "s.json").read_text())["zero_shot"]["per_class"]
