"""The paper's data sets in their own shapes: clips joined with sounds; what is missing, broken or long is counted."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import soundfile

from processing.collator import CaptionedAudio
from processing.datasets import caption_tables as captions_module
from processing.datasets import youtube_ids as clip_files
from processing.datasets.caption_tables import captions_by_id, find_captions
from processing.datasets.load import caption_columns, durations, load_split
from processing.datasets.paper import load_paper_data
from processing.datasets.youtube_ids import clip_key, clip_keys, find_clips
from tests.conftest import RATE, tone
from tests.paper_files import SOUNDS, wav, write

AUTO_ACD = """youtube_id,caption
oPRC3zComfA_000117,"Electronic music plays, then stops"
YmAJAqzo-Y_Y,A woman talks quietly
cwPXoYexXrs_000311,Rustling
YPsERnugT1hs,A lady speaks
ATSbLAiKFXI_000030,Rain falls
YmAJAqzo-Y_Y,"A woman talks in a ""small"" room"
Tdxa6DYIo-Y_000469,"A clarinet
plays"
YBy9kurkyNvk,
,Nobody knows what
eALUwesAXys_000268,Gunshots
"""
AUDIOSETCAPS = {  # every file has its own form of ids
    "AudioSetCaps_caption.csv": "id,caption\nY---1_cCGK4M,A solemn cello\nYOxPnZzn1_L8,A crowd\n",
    "VGGSound_AudioSetCaps_caption.csv": "id,caption\nOxPnZzn1_L8_000883,A cat meows\n",
    "YouTube-8M_AudioSetCaps_caption.csv": "id,caption\n9eUrEyAR3xk_84_10,A bell\n9eUrEyAR3xk_94_10,A horn\n",
}
AUDIOCAPS = [  # youtube_id, start_time, caption, its sound
    ("aaaaaaaaaaa", 30, "A dog barks", "dog"),
    ("bbbbbbbbbbb", 0, "A bell rings", "bell"),
    ("aaaaaaaaaaa", 30, "Barking", "dog"),
    ("ccccccccccc", 5, "Noise", "broken"),
    ("ddddddddddd", 5, "Silence", None),
    ("aaaaaaaaaaa", 40, "Another moment", "bell"),
    ("eeeeeeeeeee", 7, "Long", "long"),
    ("fffffffffff", 7, "First row broken", "broken"),
    ("fffffffffff", 7, "Second row whole", "dog"),
    ("bbbbbbbbbbb", 0, " ", "bell"),
]
CLOTHO_HUB = [  # index, text, its sound
    ("eval/A door.wav", "A door is opened. A door creaks. Wood on wood. It shuts.. The 2.5 inch lock clicks", "dog"),
    ("eval/Rain.wav", "Rain falls.Rain is falling.It rains.Drops fall on a roof.Water runs.", "bell"),
    ("eval/Broken.wav", "One. Two. Three. Four. Five.", "broken"),
]
CLOTHO_HEADER = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"


def write_parquet(folder: Path, split: str, rows: list[dict]) -> str:
    kinds = {int: datasets.Value("int64"), list: datasets.List(datasets.Value("string"))}
    columns = {name: kinds.get(type(value), datasets.Value("string")) for name, value in rows[0].items()}
    features = datasets.Features(columns | {"audio": datasets.Audio()})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_list(rows).cast(features)
    dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def audiocaps_repository(folder: Path) -> str:
    return write_parquet(folder, "test", [
        {"audiocap_id": number, "youtube_id": youtube_id, "start_time": start, "audio_length": 480000,
         "caption": caption, "audio": SOUNDS[sound] and {"bytes": SOUNDS[sound], "path": f"{youtube_id}.wav"}}
        for number, (youtube_id, start, caption, sound) in enumerate(AUDIOCAPS)
    ])  # fmt: skip


def clotho_repository(folder: Path, split: str = "test") -> str:
    return write_parquet(folder, split, [
        {"index": index, "datasetname": "Clotho", "audio": {"bytes": SOUNDS[sound], "path": None}, "audio_len": 7,
         "text": text, "raw_text": ""}
        for index, text, sound in CLOTHO_HUB
    ])  # fmt: skip


def acd_sounds(folder: Path) -> str:
    empty = io.BytesIO()
    soundfile.write(empty, np.zeros(0), RATE, format="WAV")
    return write(folder, {
        "a/b/oPRC3zComfA_000117.wav": SOUNDS["dog"],
        "YmAJAqzo-Y_Y.FLAC": SOUNDS["bell"],
        "cwPXoYexXrs_000311.wav": SOUNDS["broken"],
        "ATSbLAiKFXI_000030.wav": empty.getvalue(),
        "Tdxa6DYIo-Y_000469.wav": SOUNDS["long"],
        "a/eALUwesAXys_000268.mp3": wav(0.3, kind="MP3"),
        "YBy9kurkyNvk.wav": SOUNDS["dog"],  # its caption is empty
        "unasked.ogg": wav(0.1, kind="OGG"),
        "notes.txt": "not a sound", "fakewav": "not one either", ".YPsERnugT1hs.wav": "hidden",
    })  # fmt: skip


@pytest.fixture
def csv_files(tmp_path, monkeypatch):
    """Where the caption files lie instead of on the Hub."""
    names = {"train.csv": AUTO_ACD, **{f"Dataset/{name}": text for name, text in AUDIOSETCAPS.items()}}
    write(tmp_path / "csv", names)
    monkeypatch.setattr(captions_module, "hf_hub_download", lambda _, name, repo_type: tmp_path / "csv" / name)
    return tmp_path / "csv"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def counts(report) -> dict[str, int]:
    return {name: getattr(report, name) for name in ("rows", "empty", "clips", "missing", "broken", "too_long")}


def captions_by_file(dataset) -> dict[str, list[str]]:
    return {Path(row["audio"]["path"]).name: row["captions"] for row in dataset}


def test_auto_acd_joins_captions_with_a_folder_and_counts_what_it_lacks(csv_files, tmp_path):
    dataset, report = load_paper_data("auto_acd", "train", acd_sounds(tmp_path / "sounds"))
    assert captions_by_file(dataset) == {
        "oPRC3zComfA_000117.wav": ["Electronic music plays, then stops"],
        "YmAJAqzo-Y_Y.FLAC": ["A woman talks quietly", 'A woman talks in a "small" room'],
        "eALUwesAXys_000268.mp3": ["Gunshots"],
    }
    assert dataset["duration"] == pytest.approx([0.1, 0.2, 0.3]) and set(dataset["source"]) == {"auto_acd"}
    assert dataset.features["audio"] == datasets.Audio(decode=False) and dataset[0]["audio"]["bytes"] is None
    assert counts(report) == {"rows": 10, "empty": 2, "clips": 3, "missing": 1, "broken": 2, "too_long": 1}
    assert report.examples == {
        "missing": ["YPsERnugT1hs"],
        "broken": ["cwPXoYexXrs_000311", "ATSbLAiKFXI_000030"],
        "too_long": ["Tdxa6DYIo-Y_000469"],
    }
    assert str(report) == (
        "auto_acd train: 3 of 7 clips, 1 missing, such as YPsERnugT1hs; 2 broken, such as cwPXoYexXrs_000311, "
        "ATSbLAiKFXI_000030; 1 over 30 s, such as Tdxa6DYIo-Y_000469 (10 rows, 2 without id or caption)"
    )


def test_too_long_is_what_the_caller_says(csv_files, tmp_path):
    folder = acd_sounds(tmp_path / "sounds")
    kept, report = load_paper_data("auto_acd", "train", folder, max_seconds=None)
    assert len(kept) == report.clips == 4 and report.too_long == 1 and "4 of 7 clips" in str(report)
    assert "1 over 30 s but kept" in str(report) and max(kept["duration"]) == 30.01
    short, report = load_paper_data("auto_acd", "train", folder, max_seconds=0.15)
    assert short["captions"] == [["Electronic music plays, then stops"]] and report.too_long == 3


def test_ten_examples_are_enough(csv_files, tmp_path):
    rows = "".join(f"Y{number:011},Caption\n" for number in range(25))
    (csv_files / "train.csv").write_text("youtube_id,caption\n" + rows)
    _, report = load_paper_data("auto_acd", "train", write(tmp_path / "s", {"Y00000000024.wav": SOUNDS["dog"]}))
    assert report.missing == 24 and report.examples["missing"] == [f"Y{number:011}" for number in range(10)]
    assert str(report).count("Y000") == 3


def test_many_clips_are_joined_in_pieces(csv_files, tmp_path, monkeypatch):
    monkeypatch.setattr("processing.datasets.paper._CLIPS_A_CHUNK", 2)
    monkeypatch.setattr(clip_files, "_FILES_A_TASK", 2)
    dataset, _ = load_paper_data("auto_acd", "train", acd_sounds(tmp_path / "sounds"), max_seconds=None)
    assert [texts[-1][:10] for texts in dataset["captions"]] == ["Electronic", "A woman ta", "A clarinet", "Gunshots"]
    assert (
        dataset["duration"] == pytest.approx([0.1, 0.2, 30.01, 0.3]) and dataset.data.column("audio").num_chunks == 2
    )
    assert dataset.select([3, 1])["captions"][1][0] == "A woman talks quietly"


def test_audiosetcaps_reads_its_three_files_each_in_its_own_form(csv_files, tmp_path):
    folder = write(tmp_path / "sounds", {
        "---1_cCGK4M_30.000.wav": SOUNDS["dog"],  # a start only the file tells
        "VGGSound/OxPnZzn1_L8_000883.wav": SOUNDS["dog"],  # of AudioSet's clip of that video there is no sound
        "9eUrEyAR3xk_94_104.wav": SOUNDS["dog"],
    })  # fmt: skip
    dataset, report = load_paper_data("audiosetcaps", "train", folder)
    assert captions_by_file(dataset) == {
        "---1_cCGK4M_30.000.wav": ["A solemn cello"],
        "OxPnZzn1_L8_000883.wav": ["A cat meows"],
        "9eUrEyAR3xk_94_104.wav": ["A horn"],
    }
    assert counts(report) == {"rows": 5, "empty": 0, "clips": 3, "missing": 2, "broken": 0, "too_long": 0}
    assert report.examples["missing"] == ["YOxPnZzn1_L8", "9eUrEyAR3xk_84_10"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mAJAqzo-Y_Y", "mAJAqzo-Y_Y"),
        ("YmAJAqzo-Y_Y", "mAJAqzo-Y_Y"),
        ("mAJAqzo-Y_Y_000030", "mAJAqzo-Y_Y_30"),
        ("mAJAqzo-Y_Y_30.000", "mAJAqzo-Y_Y_30"),
        ("mAJAqzo-Y_Y_30_10", "mAJAqzo-Y_Y_30"),
        ("YmAJAqzo-Y_Y_30.500", "mAJAqzo-Y_Y_30.5"),
        ("mAJAqzo-Y_Y_000000", "mAJAqzo-Y_Y_0"),
        ("YmAJAqzo-Y_", "YmAJAqzo-Y_"),  # 11 characters: the Y is part of the id
        ("YmAJAqzo-YY_000030", "YmAJAqzo-YY_30"),
        ("Yabcdefghij_", "abcdefghij_"),
        ("Yabcdefghij__7", "abcdefghij__7"),
        ("A door.creaks", "A door.creaks"),
        ("mAJAqzo-Y_Y_vocals", "mAJAqzo-Y_Y_vocals"),
    ],
)
def test_the_key_of_a_clip(name, key):
    assert clip_key(name) == key


ID = "mAJAqzo-Y_Y"


@pytest.mark.parametrize(
    ("clips", "files", "found"),
    [
        ([f"{ID}_000030"], [f"{ID}_30.000"], [0]),
        ([f"Y{ID}"], [f"{ID}_30"], [0]),
        ([f"{ID}_000030"], [ID], [0]),
        ([f"{ID}_000030"], [f"{ID}_40"], [-1]),  # another moment of that video
        ([f"{ID}_30", f"{ID}_40"], [f"Y{ID}"], [-1, -1]),  # whose sound is it?
        ([f"Y{ID}"], [f"{ID}_30", f"{ID}_40"], [-1]),  # which of them is it?
        ([f"Y{ID}", f"{ID}_40"], [f"{ID}_40"], [-1, 0]),
        ([f"Y{ID}", f"{ID}_40"], [ID, "other"], [0, -1]),
        ([f"{ID}_84_10", "other"], ["other", f"{ID}_84_94", f"{ID}_000084"], [1, 0]),  # the first of two
        ([f"{ID}_30"], [f"{ID}", f"Y{ID}"], [0]),  # two files of one name are one
        ([f"{ID}x"], [ID], [-1]),
    ],
)
def test_a_file_goes_to_the_clip_it_can_only_be(clips, files, found):
    tables = [clip_keys(pyarrow.array(names)) for names in (clips, files)]
    assert find_clips(*tables).tolist() == found


def test_captions_by_id_join_sounds_that_arrive_by_name(csv_files):
    captions = captions_by_id("audiosetcaps", "train")
    assert captions["9eUrEyAR3xk_84"] == ["A bell"] and captions["---1_cCGK4M"] == ["A solemn cello"]
    wanted = {
        "---1_cCGK4M": "A solemn cello", "Y---1_cCGK4M": "A solemn cello", "---1_cCGK4M_30.000": "A solemn cello",
        "OxPnZzn1_L8": "A crowd", "OxPnZzn1_L8_000883": "A cat meows", "OxPnZzn1_L8_30": None,
        "9eUrEyAR3xk_000094": "A horn", "9eUrEyAR3xk": None, "9eUrEyAR3xk_85": None, "unknown": None,
    }  # fmt: skip
    assert {name: (find_captions(captions, name) or [None])[0] for name in wanted} == wanted
    captions = captions_by_id("auto_acd", "train")
    assert find_captions(captions, "mAJAqzo-Y_Y_7") == ["A woman talks quietly", 'A woman talks in a "small" room']
    assert find_captions(captions, "oPRC3zComfA")[0][:10] == "Electronic" and not find_captions(
        captions, "By9kurkyNvk"
    )
    assert find_captions(captions, "oPRC3zComfA_118") is None
    with pytest.raises(ValueError, match="those of auto_acd and audiosetcaps, not of 'clotho'"):
        captions_by_id("clotho", "train")
    with pytest.raises(ValueError, match="audiosetcaps has no split 'test': train"):
        captions_by_id("audiosetcaps", "test")


AUDIOCAPS_CLIPS = [
    ["A dog barks", "Barking"],
    ["A bell rings"],
    ["Another moment"],
    ["First row broken", "Second row whole"],
]


def test_audiocaps_is_one_row_a_clip(cache, tmp_path):
    dataset, report = load_paper_data("audiocaps", "test", audiocaps_repository(tmp_path / "repository"))
    assert list(dataset["captions"]) == AUDIOCAPS_CLIPS
    assert [row["bytes"] for row in dataset["audio"]] == [SOUNDS[name] for name in ("dog", "bell", "bell", "dog")]
    assert dataset["duration"] == pytest.approx([0.1, 0.2, 0.2, 0.1]) and set(dataset["source"]) == {"audiocaps"}
    assert counts(report) == {"rows": 10, "empty": 1, "clips": 4, "missing": 1, "broken": 1, "too_long": 1}
    assert report.examples == {"missing": ["ddddddddddd"], "broken": ["ccccccccccc"], "too_long": ["eeeeeeeeeee"]}


def test_clotho_of_the_hub_is_split_into_its_captions(cache, tmp_path):
    dataset, report = load_paper_data("clotho", "test", clotho_repository(tmp_path / "repository"))
    assert list(dataset["captions"]) == [
        ["A door is opened", "A door creaks", "Wood on wood", "It shuts", "The 2.5 inch lock clicks"],
        ["Rain falls", "Rain is falling", "It rains", "Drops fall on a roof", "Water runs"],
    ]
    assert [row["bytes"] for row in dataset["audio"]] == [SOUNDS["dog"], SOUNDS["bell"]]
    assert counts(report) == {"rows": 3, "empty": 0, "clips": 2, "missing": 0, "broken": 1, "too_long": 0}
    assert report.examples["broken"] == ["eval/Broken.wav"]


def test_clotho_of_the_hub_may_have_lists_of_captions(cache, tmp_path):
    row = {"index": "a", "audio": {"bytes": SOUNDS["dog"], "path": None}, "text": ["A dog. It barks", "A bark", " "]}
    dataset, _ = load_paper_data("clotho", "train", write_parquet(tmp_path / "repository", "train", [row]))
    assert list(dataset["captions"]) == [["A dog. It barks", "A bark"]]


@pytest.mark.parametrize("root", ["evaluation", "clotho_audio_evaluation/evaluation", "sounds"])
def test_clotho_as_it_was_published(root, tmp_path):
    names = {"Door, creaking.wav": "dog", "FREEZER.wav": "bell", "Long.wav": "long", "Bad.wav": "broken"}
    files = {f"{root}/{name}": SOUNDS[sound] for name, sound in names.items()}
    if root != "sounds":
        files["development/FREEZER.wav"] = SOUNDS["dog"]  # another sound of the same name
    rows = [*names, "Gone.wav", "Blank.wav"]
    lines = [f'"{name}"' + "".join(f",{name[:4]} {number}" for number in range(1, 6)) for name in rows[:-1]]
    files["clotho_captions_evaluation.csv"] = CLOTHO_HEADER + "\n".join([*lines, "Blank.wav,,, ,,"]) + "\n"
    dataset, report = load_paper_data("clotho", "test", write(tmp_path, files))
    assert captions_by_file(dataset) == {
        "Door, creaking.wav": ["Door 1", "Door 2", "Door 3", "Door 4", "Door 5"],
        "FREEZER.wav": ["FREE 1", "FREE 2", "FREE 3", "FREE 4", "FREE 5"],
    }
    assert dataset["duration"] == pytest.approx([0.1, 0.2])
    assert counts(report) == {"rows": 6, "empty": 1, "clips": 2, "missing": 1, "broken": 1, "too_long": 1}
    assert report.examples == {"missing": ["Gone.wav"], "broken": ["Bad.wav"], "too_long": ["Long.wav"]}


@pytest.mark.parametrize(
    ("name", "split", "audio", "message"),
    [
        ("audio_caps", "train", "", "no data set of the paper is called 'audio_caps': auto_acd, audiosetcaps"),
        ("audiosetcaps", "test", "sounds", "audiosetcaps has no split 'test': train$"),
        ("clotho", "evaluation", "", "clotho has no split 'evaluation': train, validation, test"),
        ("auto_acd", "train", "", r"captions only: name the folder of its sounds .audio=."),
        ("auto_acd", "train", "nowhere", "nowhere is not a folder"),
        ("auto_acd", "train", "tars", "tars holds tar shards: stream them, or unpack"),
        ("auto_acd", "train", "texts", r"texts holds no sound files .\.wav, \.flac"),
        (
            "auto_acd",
            "train",
            "others",
            "holds none of the 7 clips of auto_acd: no file like oPRC.*117 or YmAJAqzo-Y_Y",
        ),
        ("auto_acd", "train", "broken", "no clip is left: auto_acd train: 0 of 7 clips, 6 missing"),
        (
            "clotho",
            "validation",
            "texts",
            "texts holds no clotho_captions_validation.csv: get Clotho from https://zen",
        ),
        (
            "clotho",
            "train",
            "clotho",
            r"cannot read .*development.csv: no column caption_2, .*, only file_name, caption_1",
        ),
        ("audiocaps", "test", "parquet", "parquet has no column youtube_id, caption, only audio, index, text"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(name, split, audio, message, csv_files, cache, tmp_path):
    write(tmp_path, {
        "tars/00000.tar": b"", "texts/readme.txt": "", "others/whale.wav": SOUNDS["dog"],
        "broken/mAJAqzo-Y_Y.wav": b"no", "sounds/a.wav": SOUNDS["dog"],
        "clotho/clotho_captions_development.csv": "file_name,caption_1\na.wav,A\n",
    })  # fmt: skip
    write_parquet(tmp_path / "parquet", "test", [{"audio": {"bytes": b"", "path": "a"}, "index": "", "text": ""}])
    with pytest.raises(ValueError, match=message):
        load_paper_data(name, split, audio and str(tmp_path / audio))


def test_a_caption_file_of_another_shape_is_named(csv_files, tmp_path):
    folder = acd_sounds(tmp_path / "sounds")
    (csv_files / "train.csv").write_text("id,text\na,b\n")
    with pytest.raises(ValueError, match="cannot read .*train.csv: no column youtube_id, caption, only id, text"):
        load_paper_data("auto_acd", "train", folder)
    (csv_files / "train.csv").write_text("youtube_id,caption\na,b,c\n")
    with pytest.raises(ValueError, match="cannot read .*train.csv: .*Expected 2 columns, got 3"):
        load_paper_data("auto_acd", "train", folder)


def test_load_split_takes_a_name_and_keeps_what_training_crops(csv_files, tmp_path):
    folder = acd_sounds(tmp_path / "sounds")
    dataset = load_split("auto_acd", "train", folder)
    assert caption_columns(dataset) == ["captions"] and durations(dataset) == pytest.approx([0.1, 0.2, 30.01, 0.3])
    item = CaptionedAudio(dataset, ["captions"])[1]
    np.testing.assert_allclose(item["audio"]["array"], tone(880, 0.2), atol=1e-4)
    assert item["captions"] == ["A woman talks quietly", 'A woman talks in a "small" room']
    with pytest.raises(ValueError, match="a folder of sounds belongs to a data set of the paper .*, not to synthetic"):
        load_split("synthetic", "train", folder)


FROM_THE_HUB = """
import base64, json, sys
from processing.datasets.paper import load_paper_data
for name, split, audio in {wanted}:
    dataset, report = load_paper_data(name, split, audio)
    clips = [[row["captions"], base64.b64encode(row["audio"]["bytes"] or b"").decode()] for row in dataset]
    print("RESULT " + json.dumps([name, split, clips, report.__dict__]))
"""


@pytest.mark.slow
def test_each_hub_id_is_read_from_a_hub(hub, tmp_path):
    write(tmp_path / "acd", {"train.csv": AUTO_ACD, "test.csv": "youtube_id,caption\nYPsERnugT1hs,A lady\n"})
    write(tmp_path / "asc", {f"Dataset/{name}": text for name, text in AUDIOSETCAPS.items()})
    hub.add_repo("Loie/Auto-ACD", tmp_path / "acd")
    hub.add_repo("baijs/AudioSetCaps", tmp_path / "asc")
    hub.add_repo("OpenSound/AudioCaps", audiocaps_repository(tmp_path / "ac"))
    hub.add_repo("mteb/Clotho", clotho_repository(tmp_path / "clotho"))
    hub.add_repo("CLAPv2/Clotho", clotho_repository(tmp_path / "clotho_train", "train"))
    folder = acd_sounds(tmp_path / "sounds")
    write(tmp_path / "sounds", {"PsERnugT1hs.wav": SOUNDS["dog"], "Y---1_cCGK4M.wav": SOUNDS["dog"]})
    wanted = [("auto_acd", "train", folder), ("auto_acd", "test", folder), ("audiosetcaps", "train", folder)]
    wanted += [("audiocaps", "test", ""), ("clotho", "test", ""), ("clotho", "train", "")]
    printed = hub.run(FROM_THE_HUB.replace("{wanted}", repr(wanted)), tmp_path / "home")
    asked = {path for _, path in hub.requests}
    resolve = "/datasets/{}/resolve/main/{}".format
    assert {resolve("Loie/Auto-ACD", f"{split}.csv") for split in ("train", "test")} <= asked
    assert {resolve("baijs/AudioSetCaps", f"Dataset/{name}") for name in AUDIOSETCAPS} <= asked
    assert {path.split("/resolve/")[0] for path in asked if path.endswith(".parquet")} == {
        "/datasets/OpenSound/AudioCaps", "/datasets/mteb/Clotho", "/datasets/CLAPv2/Clotho"
    }  # fmt: skip
    results = [json.loads(line[7:]) for line in printed.splitlines() if line.startswith("RESULT ")]
    clips = {(name, split): clips for name, split, clips, _ in results}
    assert [texts for texts, _ in clips["auto_acd", "train"]][1][0] == "A woman talks quietly"
    assert [texts for texts, _ in clips["auto_acd", "test"]] == [["A lady"]]
    assert [texts for texts, _ in clips["audiosetcaps", "train"]] == [["A solemn cello"]]
    assert [texts for texts, _ in clips["audiocaps", "test"]] == AUDIOCAPS_CLIPS
    for split in ("train", "test"):
        assert [texts[1] for texts, _ in clips["clotho", split]] == ["A door creaks", "Rain is falling"]
    assert all(sound for _, sound in clips["audiocaps", "test"] + clips["clotho", "test"])
