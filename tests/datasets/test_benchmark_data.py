"""Benchmarks in their own shapes: labels as they are, missing and broken sounds counted, bad folders refused."""

import json
import logging
from pathlib import Path

import datasets
import pytest

from processing.audio import load_column
from processing.datasets.benchmarks import load_benchmark
from tests.benchmark_folders import ESC50, air_bench_folder, esc50_folder, question, write_rows
from tests.paper_files import SOUNDS, write

US8K = """slice_file_name,fsID,start,end,salience,fold,classID,class
100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark
100263-2-0-117.wav,100263,58.5,62.5,1,5,2,children_playing
100263-2-0-117.wav,100263,58.5,62.5,1,6,1,car_horn
"""
VGGSOUND = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,"playing violin, fiddle",test
-07FTRnQ3r8,0,people marching,train
--R6PrrFRkM,30,waterfall burbling,test
--R6PrrFRkM,90,dog barking,test
aaaaaaaaaaa,7,zebra braying,test
"""


def sound(name: str) -> dict:
    return {"bytes": SOUNDS[name], "path": f"{name}.wav"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_esc50_as_published_keeps_labels_and_counts_what_is_not_there(tmp_path, caplog):
    folder = esc50_folder(tmp_path / "ESC-50")
    with caplog.at_level(logging.WARNING, "processing"):
        rows, report = load_benchmark("esc50", folder=folder)
    assert rows["label"] == ["dog", "chirping_birds"]
    assert rows["duration"] == pytest.approx([0.1, 0.2])
    assert rows.features["audio"] == datasets.Audio(decode=False)
    assert [len(load_column(row["audio"])) for row in rows] == [1600, 3200]
    assert (report.rows, report.empty, report.clips, report.missing, report.broken) == (5, 1, 2, 1, 1)
    assert report.examples["missing"] == ["1-100210-A-36.wav"] and report.examples["broken"] == ["2-100211-A-36.wav"]
    assert report.labels == ["chirping_birds", "dog", "vacuum_cleaner"]  # a label to choose, though none of its clips
    assert "5 rows, 1 without label, 3 labels" in str(report) and report.split == "train"


def test_a_folder_as_published_has_the_split_it_has(tmp_path):
    with pytest.raises(ValueError, match="esc50 has no split 'test': all of its clips are in 'train'"):
        load_benchmark("esc50", "test", esc50_folder(tmp_path))
    with pytest.raises(ValueError, match="no split 'validation': test, train"):
        load_benchmark("vggsound", "validation", write(tmp_path / "v", {"vggsound.csv": VGGSOUND}))


def test_urbansound8k_finds_a_slice_in_its_own_fold(tmp_path):
    audio = {"audio/fold5/100263-2-0-117.wav": SOUNDS["dog"], "audio/fold6/100263-2-0-117.wav": SOUNDS["bell"]}
    rows, report = load_benchmark("us8k", folder=write(tmp_path, {"metadata/UrbanSound8K.csv": US8K, **audio}))
    assert rows["label"] == ["children_playing", "car_horn"] and rows["duration"] == pytest.approx([0.1, 0.2])
    assert (report.missing, report.examples["missing"]) == (1, ["100032-3-0-0.wav"])


def test_vggsound_finds_clips_by_id_and_start(tmp_path):
    audio = {
        "video/---g-f_I2yQ_000001.wav": SOUNDS["dog"],
        "video/--0PQM4-hqg.flac": SOUNDS["bell"],  # the id alone, of its only clip
        "--R6PrrFRkM_000090.wav": SOUNDS["bell"],
        "-07FTRnQ3r8_000000.wav": SOUNDS["dog"],
    }
    folder = write(tmp_path, {"vggsound.csv": VGGSOUND, **audio})
    rows, report = load_benchmark("vggsound", folder=folder)
    found = [(Path(row["audio"]["path"]).stem, row["label"]) for row in rows]
    assert found == [
        ("---g-f_I2yQ_000001", "people marching"),
        ("--0PQM4-hqg", "playing violin, fiddle"),
        ("--R6PrrFRkM_000090", "dog barking"),
    ]
    assert report.examples["missing"] == ["--R6PrrFRkM_000030", "aaaaaaaaaaa_000007"] and len(report.labels) == 5
    rows, _ = load_benchmark("vggsound", "train", folder)
    assert rows["label"] == ["people marching"]


def test_a_copy_of_the_hub_repository(tmp_path, cache, caplog):
    rows = [
        {"audio": sound("dog"), "target": 14, "category": "chirping_birds"},
        {"audio": None, "target": 0, "category": "dog"},
        {"audio": sound("long"), "target": 0, "category": "dog"},
        {"audio": sound("bell"), "target": 1, "category": None},
    ]
    types = {"target": datasets.Value("int64"), "category": datasets.Value("string")}
    with caplog.at_level(logging.WARNING):
        found, report = load_benchmark("esc50", folder=write_rows(tmp_path / "esc50", "train", rows, types))
    assert found["label"] == ["chirping_birds", "dog"] and found["duration"] == pytest.approx([0.1, 30.01])
    assert found.column_names == ["audio", "label", "duration"]
    assert found[0]["audio"]["bytes"] == SOUNDS["dog"]
    assert (report.empty, report.missing, report.too_long, report.kept_too_long) == (1, 1, 1, True)
    assert report.examples["missing"] == ["row 1"]


def test_class_numbers_become_their_names_or_are_refused(tmp_path, cache):
    rows = [{"audio": sound(name), "label": label} for name, label in [("dog", 1), ("bell", 0), ("dog", 1)]]
    named = {"label": datasets.ClassLabel(names=["dog barking", "zebra braying", "never heard"])}
    found, report = load_benchmark("vggsound", folder=write_rows(tmp_path / "named", "test", rows, named))
    assert found["label"] == ["zebra braying", "dog barking", "zebra braying"]
    assert report.labels == ["dog barking", "zebra braying"]
    folder = write_rows(tmp_path / "numbers", "test", rows, {"label": datasets.Value("int64")})
    with pytest.raises(ValueError, match="holds no names of labels .* the columns are audio, label"):
        load_benchmark("vggsound", folder=folder)


def test_wrong_columns_are_listed(tmp_path, cache):
    types = {"classID": datasets.Value("int64")}
    folder = write_rows(tmp_path / "us8k", "train", [{"audio": sound("dog"), "classID": 3}], types)
    with pytest.raises(ValueError, match="no column class, only audio, classID"):
        load_benchmark("us8k", folder=folder)
    folder = write(tmp_path / "csv", {"meta/esc50.csv": "filename,target\n1-1-A-0.wav,0\n"})
    with pytest.raises(ValueError, match="no column category, only filename, target"):
        load_benchmark("esc50", folder=folder)
    folder = write(tmp_path / "vgg", {"vggsound.csv": "video,start_seconds,label,split\n"})
    with pytest.raises(ValueError, match="row 1 of .* is no YouTube id, start in seconds, label, split"):
        load_benchmark("vggsound", folder=folder)


def test_nothing_to_score_is_an_error(tmp_path, cache):
    folder = write(tmp_path / "csv", {"meta/esc50.csv": ESC50.splitlines()[0] + "\n1-1-A-0.wav,1,0,,True,1,A\n"})
    with pytest.raises(ValueError, match="none of the 1 rows of .* has a label"):
        load_benchmark("esc50", folder=folder)
    with pytest.raises(ValueError, match="no clip is left: .*4 missing"):
        load_benchmark("esc50", folder=write(tmp_path / "silent", {"meta/esc50.csv": ESC50}))


@pytest.mark.parametrize("name", ["esc50", "us8k", "vggsound"])
def test_a_folder_of_neither_layout_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="holds neither .*csv nor parquet files"):
        load_benchmark(name, folder=str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        load_benchmark(name, folder=str(tmp_path / "absent"))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no benchmark is called 'esc10': esc50, us8k, vggsound, airbench"):
        load_benchmark("esc10")


@pytest.mark.parametrize(("labels", "reported"), [(50, False), (49, True)])
def test_another_number_of_labels_is_reported(tmp_path, caplog, labels, reported):
    lines = [ESC50.splitlines()[0], *(f"{i}.wav,1,{i},label_{i},False,1,A" for i in range(labels))]
    folder = write(tmp_path, {"meta/esc50.csv": "\n".join(lines), "audio/0.wav": SOUNDS["dog"]})
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("processing.datasets.benchmarks")
    logger.addHandler(handler)
    load_benchmark("esc50", folder=folder)
    logger.removeHandler(handler)
    assert ("esc50 train has 49 labels here, 50 as published" in seen) is reported
    assert any("49 missing" in line or "48 missing" in line for line in seen)


@pytest.mark.parametrize("below", ["", "Foundation"])
def test_air_bench_questions_with_their_sounds(tmp_path, below):
    folder = air_bench_folder(tmp_path)
    rows, report = load_benchmark("airbench", folder=str(Path(folder) / below))
    assert rows["uniq_id"] == ["7", "8", "9", "10", "11", "17", "18"]
    assert rows["answer"] == [2, 1, 0, 0, 0, 0, 3]
    assert [len(choices) for choices in rows["choices"]] == [4, 4, 2, 3, 4, 4, 4]
    assert rows["choices"][5] == ["[0.5, 1]", "[1, 2.5]", "bell", "rain"]
    assert rows["task"][4:] == ["Sound_AQA", "Audio_Grounding", "Music_AQA"] and rows["dataset"][0] == "avqa"
    assert Path(rows[5]["audio"]["path"]).name == "c.flac" and rows["question"][0] == "What is heard?"
    assert [len(load_column(rows[row]["audio"])) for row in (0, 3)] == [1600, 3200]
    assert rows["duration"][0] == pytest.approx(0.1)


def test_air_bench_counts_every_fault(tmp_path):
    _, report = load_benchmark("airbench", folder=air_bench_folder(tmp_path))
    assert report.counts() == {
        "rows": 12, "questions": 7, "clips": 4, "incomplete": 1, "unmatched": 1, "missing": 1, "broken": 1,
        "without_sound": 3, "too_long": 1, "loose_answers": 1, "duplicate_choices": 1, "no_third_choice": 1,
        "no_fourth_choice": 2,
    }  # fmt: skip
    assert report.examples["missing"] == ["Sound_AQA_avqa/gone.wav"]
    assert report.examples["unmatched"] == ["12"] and report.examples["incomplete"] == ["13"]
    assert "7 of 12 questions on 4 clips" in str(report)
    assert "1 missing, such as Sound_AQA_avqa/gone.wav" in str(report)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ('{"path": "a.wav"}', "is no list of questions"),
        ("[]", "is no list of questions"),
        ("[{]", "cannot read"),
        ('[{"path": "a.wav", "question": "?"}]', "have no choice_a, .* only path, question"),
        (json.dumps([question("gone.wav", "dog")]), "no question is left .* 1 missing"),
    ],
)
def test_an_air_bench_of_another_shape_is_refused(tmp_path, meta, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark("airbench", folder=write(tmp_path, {"Foundation_meta.json": meta}))


def test_an_air_bench_without_questions_or_of_another_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds neither Foundation_meta.json nor Foundation/Foundation_meta.json"):
        load_benchmark("airbench", folder=str(tmp_path))
    with pytest.raises(ValueError, match="no split 'Chat'"):
        load_benchmark("airbench", "Chat", str(tmp_path))


FROM_THE_HUB = """
from processing.datasets.benchmarks import load_benchmark
rows, report = load_benchmark("airbench")
print(len(rows), report.missing)
rows, report = load_benchmark("us8k")
print(*rows["label"], report.clips)
rows, report = load_benchmark("us8k", folder="danavery/urbansound8K")
print(*rows["label"])
"""


@pytest.mark.slow
def test_from_the_hub_only_what_is_asked(hub, tmp_path):
    hub.add_repo("qyang1021/AIR-Bench-Dataset", Path(air_bench_folder(tmp_path / "air")))
    types = {"classID": datasets.Value("int64"), "class": datasets.Value("string")}
    for repository, label in {"mteb/urbansound8K": "dog_bark", "danavery/urbansound8K": "siren"}.items():
        rows = [{"audio": sound("dog"), "classID": 3, "class": label}]
        hub.add_repo(repository, Path(write_rows(tmp_path / label, "train", rows, types)))
    assert hub.run(FROM_THE_HUB, tmp_path / "home").splitlines() == ["7 1", "dog_bark 1", "siren"]
    assert not any("Chat" in path for _, path in hub.requests)
