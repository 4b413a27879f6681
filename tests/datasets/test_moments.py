"""Clotho-Moment and CASTELLA in their published layouts: what is loaded, and what is left out and named."""

import json

import pytest

from processing.datasets.moments import load_moments

from ..moment_folders import CASTELLA, CLOTHO_MOMENT, castella_folder, clotho_moment_folder, query
from ..paper_files import wav, write


def queries(dataset) -> dict:
    return {row["vid"]: [(m["qid"], m["query"], m["windows"]) for m in row["moments"]] for row in dataset}


def test_clotho_moment_as_its_scripts_write_it(tmp_path):
    dataset, report = load_moments("clotho-moment", "", clotho_moment_folder(tmp_path))
    assert queries(dataset) == {
        "Venice_0.0_60.0": [
            ("00001", "the sound of 00001", [[0.2, 0.6]]),
            ("00002", "the sound of 00002", [[0.5, 0.9]]),
        ],
        "Oslo_1.0_61.0": [
            ("00003", "the sound of 00003", [[0.2, 0.6]]),
            ("00006", "the sound of 00006", [[0.1, 0.2]]),
        ],
        "Short_4.0_64.0": [("00010", "the sound of 00010", [[0.2, 0.6]])],
    }
    assert dataset["duration"] == [1.0, 1.0, 0.5]
    assert dataset[0]["audio"]["path"].endswith("Venice_0.0_60.0.wav")


def test_bad_rows_are_named_and_counted(tmp_path):
    _, report = load_moments("clotho-moment", "test", clotho_moment_folder(tmp_path))
    faults = {"malformed": 3, "repeated": 1, "bad_windows": 3, "without_windows": 1, "without_sound": 2}
    faults |= {"missing": 1, "broken": 1, "other_length": 1, "too_long": 0}
    assert report.counts() == {"rows": 12, "clips": 3, "queries": 5, **faults}
    assert report.examples == {
        "malformed": ["line 3", "line 7", "line 12"],
        "repeated": ["00003 of line 6"],
        "bad_windows": ["00005 of line 8", "00006 of line 9"],
        "without_windows": ["00005 of line 8"],
        "missing": ["Gone_2.0_62.0"],
        "broken": ["Broken_3.0_63.0"],
        "other_length": ["Short_4.0_64.0"],
    }
    assert "5 of 12 queries on 3 recordings; " in str(report) and "1 missing, such as Gone_2.0_62.0" in str(report)


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(query("1", duration=10**400)),
        json.dumps(query("1", windows=[(0, 10**400)])),
        json.dumps(query("1", query="\ud800")),
        json.dumps(query("1", "\ud800")),
        "[" * 100_000,
    ],
    ids=["duration", "window", "half a character", "half a character in the id", "depth"],
)
def test_what_json_can_hold_and_no_query_can_is_malformed(line, tmp_path):
    folder = clotho_moment_folder(tmp_path)
    path = tmp_path / "text/test.jsonl"
    path.write_text(f"{line}\n{json.dumps(query('2'))}", encoding="utf-8")
    dataset, report = load_moments("clotho-moment", "test", folder)
    assert [moment["qid"] for moment in dataset[0]["moments"]] == ["2"]
    assert report.examples == {"malformed": ["line 1"]}


def test_a_byte_order_mark_is_no_part_of_the_first_query(tmp_path):
    folder = clotho_moment_folder(tmp_path)
    path = tmp_path / "text/test.jsonl"
    path.write_text(json.dumps(query("1")), encoding="utf-8-sig")
    assert load_moments("clotho-moment", "test", folder)[0][0]["moments"][0]["qid"] == "1"


def test_castella_as_its_authors_publish_it(tmp_path):
    dataset, report = load_moments("castella", "", castella_folder(tmp_path))
    assert queries(dataset) == {
        "-0awng26xQ8": [("-0awng26xQ8_1", "A man starts the engine", [[0.0, 1.0], [1.0, 2.0]])],
        "BUAPM4D3-h8": [("BUAPM4D3-h8_1", "A bell rings", [[0.0, 1.0]])],
    }
    assert report.counts() == {**report.counts(), "rows": 4, "queries": 2, "malformed": 1, "without_windows": 1}
    assert report.examples["malformed"] == ["recording 3"] and report.other_length == 0


def test_lighthouse_has_the_same_queries(tmp_path):
    lines = [
        {
            "qid": f"{row['yid']}_{number}",
            "query": moment["local_caption"],
            "duration": row["duration"],
            "vid": row["yid"],
            "relevant_windows": moment["timestamps"],
        }
        for row in CASTELLA[:2]
        for number, moment in enumerate(row["moments"], start=1)
    ]
    published = queries(load_moments("castella", "val", castella_folder(tmp_path / "a", "json/en/val.json"))[0])
    folder = castella_folder(tmp_path / "b", "unused.txt")
    write(tmp_path / "b", {"castella_val_release.jsonl": "\n".join(map(json.dumps, lines))})
    for name in ("val", "valid", "validation"):
        assert queries(load_moments("castella", name, folder)[0]) == published


def test_without_a_duration_windows_end_with_the_sound(tmp_path):
    rows = [
        query("1", windows=[(0.2, 0.6), (3.0, 4.0)], duration=None),
        query("2", windows=[(2.5, float("inf"))], duration=None),
        query("3", "Oslo_1.0_61.0", windows=[(3.0, 4.0)], duration=None),
    ]
    dataset, report = load_moments("clotho-moment", "test", clotho_moment_folder(tmp_path, rows))
    assert queries(dataset) == {"Venice_0.0_60.0": [("1", "the sound of 1", [[0.2, 0.6]])]}
    assert (report.queries, report.clips, report.bad_windows, report.without_windows) == (1, 1, 3, 2)
    assert report.examples["without_windows"] == ["2 of Venice_0.0_60.0", "3 of Oslo_1.0_61.0"]


def test_numbers_are_ids_too(tmp_path):
    folder = clotho_moment_folder(tmp_path, [{**CLOTHO_MOMENT[0], "qid": 7}] * 2, "clotho_moment_test_release.jsonl")
    dataset, report = load_moments("clotho-moment", "test", folder)
    assert [moment["qid"] for moment in dataset[0]["moments"]] == ["7"] and report.repeated == 1


@pytest.mark.parametrize(
    ("name", "split", "files", "message"),
    [
        ("audiocaps", "", {}, "no data set of moments is called 'audiocaps': clotho-moment, castella"),
        ("castella", "dev", {"a.wav": wav(0.1)}, "no split 'dev': train, val, test"),
        ("castella", "", {"a.wav": wav(0.1)}, "no annotations of castella test: one of json/en/test.json"),
        ("castella", "", {"test.json": "["}, "cannot read .*test.json"),
        ("castella", "", {"test.json": "{}"}, "no list of recordings"),
        ("castella", "", {"test.json": "[]", "a.wav": wav(0.1)}, "no query of .*test.json is left"),
    ],
)
def test_errors_tell_what_to_do(tmp_path, name, split, files, message):
    with pytest.raises(ValueError, match=message):
        load_moments(name, split, write(tmp_path, {**files, "note.txt": ""}))


@pytest.mark.parametrize("folder", ["", "owner/name"])
def test_a_folder_is_needed(folder):
    with pytest.raises(ValueError, match="--data FOLDER"):
        load_moments("castella", "", folder)
