"""More like sounds of the index, by their stored vectors, and results as playlists, tables and JSON."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from tests import searches
from tests.processes import run_process
from tests.searches import SECONDS, index, write
from wavlink.sanitize import path_text
from wavlink.search import command as search
from wavlink.search.hits import Hit, print_hits
from wavlink.search.index import Index
from wavlink.search.playlist import write_playlist
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds
ROOT = Path(__file__).parents[2]


@pytest.fixture
def opened(sounds, tmp_path, embedder) -> Index:
    index(sounds, tmp_path / "index", embedder, storage="fp32", dim=32)
    return Index.open(tmp_path / "index", embedder)


# --- more like this


def scores(hits: list[Hit]) -> dict[str, float]:
    return {hit.path: hit.score for hit in hits}


def test_like_finds_what_the_sound_itself_finds(opened, sounds):
    for name in ("rain.wav", "dog/far.wav"):
        by_sound = scores(opened.query(sound=sounds / name, top_k=9))
        by_stored = scores(opened.query(like=name, top_k=9))
        assert by_stored == pytest.approx({path: by_sound[path] for path in by_sound if path != name}, abs=1e-4)
        assert len(opened.query(like=name, top_k=2)) == 2


def test_like_in_chains_and_with_texts(opened, sounds, embedder):
    text, far, bell = "a dog", sounds / "dog/far.wav", sounds / "bell.flac"
    cases = [
        ({"like": ["dog/far.wav", "bell.flac"]}, {"sound": [far, bell]}),
        ({"like": "bell.flac", "text": text}, {"sound": bell, "text": text}),
        ({"like": Path("bell.flac"), "without": text, "weight": 0.3}, {"sound": bell, "without": text, "weight": 0.3}),
        ({"like": "bell.flac", "sound": far}, {"sound": [far, bell]}),
    ]
    for query, same in cases:
        left_out = {str(query["like"])} if isinstance(query["like"], str | Path) else {*query["like"]}
        found, expected = scores(opened.query(**query, top_k=9)), scores(opened.query(**same, top_k=9))
        assert found == pytest.approx({path: expected[path] for path in expected if path not in left_out}, abs=1e-4)


def test_a_query_of_any_collections_is_that_of_lists(opened, sounds):
    expected = {
        "text": scores(opened.query(["a dog"])),
        "like": scores(opened.query(like=["rain.wav"])),
        "sound": scores(opened.query(sound=[sounds / "rain.wav"])),
    }
    for name, query in {"text": "a dog", "like": "rain.wav", "sound": str(sounds / "rain.wav")}.items():
        for given in (pandas.Series([query], index=[4]), np.array([query]), iter([query]), (query,)):
            assert scores(opened.query(**{name: given})) == expected[name]
    for given in (b"a dog", [3], [None]):
        with pytest.raises(ValueError, match="texts must be a list of strings"):
            opened.query(given)


def test_a_query_is_read_again_where_the_index_changes_meanwhile(opened, monkeypatch):
    expected, nearest = scores(opened.query(["a dog"], like=["rain.wav"])), opened._nearest
    failures = [OSError("the version is gone")]

    def replaced(*arguments, **options):
        if failures:
            raise failures.pop()
        return nearest(*arguments, **options)

    monkeypatch.setattr(Table, "reopened", lambda table: Table.open(table.index))
    monkeypatch.setattr(opened, "_nearest", replaced)
    assert scores(opened.query(iter(["a dog"]), like=iter(["rain.wav"]))) == expected


def test_like_by_windows_and_with_a_filter(opened):
    hits = opened.query(like="rain.wav", windows=True, top_k=4)
    assert len(hits) == 4 and all(hit.path != "rain.wav" for hit in hits)
    assert len(opened.query(like="rain.wav", windows=True, top_k=50)) == 9 - 4
    assert [hit.path for hit in opened.query(like="rain.wav", where="path like 'dog/n%'")] == ["dog/near.wav"]


@pytest.mark.parametrize("options", [{"dim": 8}, {"dim": 8, "rescore_dim": 32}, {"storage": "fp16"}])
def test_like_at_stored_dims(sounds, tmp_path, embedder, options):
    index(sounds, tmp_path / "other", embedder, **options)
    opened = Index.open(tmp_path / "other", embedder)
    by_sound = scores(opened.query(sound=sounds / "rain.wav", top_k=9))
    # The mean of the windows is that of the stored dims, which for nested dims differs a little from that of all.
    assert scores(opened.query(like="rain.wav", top_k=9)) == pytest.approx(
        {path: score for path, score in by_sound.items() if path != "rain.wav"}, abs=0.05
    )
    assert opened.query(like="rain.wav", text="a dog", top_k=1)


def test_like_of_what_the_index_does_not_hold(opened, sounds, tmp_path, embedder):
    for name in ("other.wav", "rain", "x' or '1'='1", "", "dog"):
        with pytest.raises(ValueError, match="the index has no"):
            opened.query(like=name)
    (sounds / "broken.wav").write_bytes(b"no sound")
    write(sounds / "cafe\u0301.wav", 7)
    index(sounds, tmp_path / "index", embedder)
    with pytest.raises(ValueError, match="broken.wav has no vector, it was skipped: cannot read"):
        opened.query(like="broken.wav")
    assert len(opened.query(like="caf\u00e9.wav", top_k=9)) == len(SECONDS)  # in another Unicode form
    with pytest.raises(ValueError, match="probabilities are of a query of one text alone"):
        opened.query(like="bell.flac", min_probability=0.5)
    with pytest.raises(ValueError, match="say what to find"):
        opened.query(like=[])


def test_like_needs_no_model_and_no_sound(sounds, tmp_path, models):
    index(sounds, tmp_path / "index", str(models["model"]))
    sounds.rename(tmp_path / "moved")
    code = f"""
import sys
from wavlink.cli import main
like = ["--like", "bell.flac", "--like", "cat.ogg"]
code = main(["query", {str(tmp_path / "index")!r}, *like, "--json", "--top_k", "9"])
assert not {{"torch", "transformers", "datasets"}} & {{*sys.modules}}
sys.exit(code)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_process([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {hit["path"] for hit in json.loads(done.stdout)["results"]} == {*SECONDS} - {"bell.flac", "cat.ogg"}


# --- playlists


@pytest.fixture
def described(sounds, tmp_path, embedder) -> Index:
    (sounds / "m.csv").write_text('file_name,label,n\nbell.flac,"a, ""bell""",3\nrain.wav,é,\n', encoding="utf-8")
    index(sounds, tmp_path / "index", embedder, metadata=sounds / "m.csv")
    return Index.open(tmp_path / "index", embedder)


@pytest.mark.parametrize("name", ["list.m3u", "list.M3U8"])
def test_m3u_names_each_file_once_with_its_seconds(described, sounds, tmp_path, name, capsys):
    hits = described.query("a dog", windows=True, top_k=50)
    (sounds / "cat.ogg").unlink()
    hits = described.query("a dog", windows=True, top_k=50)
    write_playlist(tmp_path / name, hits)
    first, *lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
    order = [path for path in dict.fromkeys(hit.path for hit in hits) if path != "cat.ogg"]
    assert first == "#EXTM3U" and lines[1::2] == [str(sounds / path) for path in order]
    assert lines[::2] == [f"#EXTINF:{SECONDS[path]:.0f},{path}" for path in order]
    assert "1 results have no file here that a playlist can name: cat.ogg" in capsys.readouterr().err


def test_m3u_of_names_that_are_no_text(tmp_path, capsys):
    hits = [
        Hit("a\\xff.wav", 0.5, 0, 1, os.fsdecode(b"/s/a\xff.wav"), duration=2.4),
        Hit("b\n.wav", 0.5, 0, 1, "/s/b\n.wav"),
        Hit("c.wav", 0.5, 0, 1, None),
        Hit("d\u202e.wav", 0.5, 0, 1, "/s/d\u202e.wav"),
    ]
    write_playlist(tmp_path / "list.m3u", hits)
    lines = (tmp_path / "list.m3u").read_bytes().split(b"\n")
    assert lines[1:3] == [b"#EXTINF:2,a\\xff.wav", b"/s/a\xff.wav"] and lines[4:] == ["/s/d\u202e.wav".encode(), b""]
    assert lines[3].startswith(b"#EXTINF:-1,d") and "2 results have no file" in capsys.readouterr().err


def test_a_path_is_printed_as_it_can_be_given_again(capsys):
    names = ["two  spaces .wav", "Bell at 3.14\u202fPM.wav", "a\u3000b.wav", "tab\there.wav", "\u202egnp.wav"]
    print_hits([Hit(name, 0.5, 0, 1) for name in names], as_json=False)
    printed = [line.split(" s  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert printed == [*names[:3], "tab\\there.wav", "\\u202egnp.wav"]
    assert len(path_text("a" * 5000)) == 1000


def test_csv_and_json_hold_all_facts(described, tmp_path):
    hits = described.query("a dog", top_k=9)
    write_playlist(tmp_path / "list.csv", hits)
    with (tmp_path / "list.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert [*rows] == [hit.path for hit in hits]
    assert rows["bell.flac"]["label"] == 'a, "bell"' and rows["bell.flac"]["n"] == "3" and rows["cat.ogg"]["n"] == ""
    assert all(float(rows[hit.path]["score"]) == hit.score and rows[hit.path]["file"] == hit.file for hit in hits)
    assert {path: float(row["duration"]) for path, row in rows.items()} == pytest.approx(SECONDS)
    write_playlist(tmp_path / "list.json", hits)
    facts = {fact["path"]: fact for fact in json.loads((tmp_path / "list.json").read_text())}
    assert facts["bell.flac"]["metadata"] == {"label": 'a, "bell"', "n": 3} and facts["rain.wav"]["duration"] == 25


def test_the_command_writes_a_playlist_beside_its_answer(described, tmp_path, models, capsys):
    out = tmp_path / "list.m3u"
    out.write_text("earlier")
    (tmp_path / "folder.m3u").mkdir()
    command = ["query", str(tmp_path / "index"), "a dog", "--model", str(models["model"]), "--json"]
    search.main([*command, "--playlist", str(out)])
    assert len(json.loads(capsys.readouterr().out)) == 5 and out.read_text().startswith("#EXTM3U\n#EXTINF:")
    assert [path.name for path in tmp_path.glob("*list*")] == ["list.m3u"]
    for wrong, words in (
        ("list.txt", "ends in .m3u, .m3u8, .csv, .json"),
        ("folder.m3u", "is a folder"),
        ("index", "no playlist"),
    ):
        with pytest.raises((ValueError, OSError), match=words):
            search.main([*command[:2], "x", "--model", "missing", "--playlist", str(tmp_path / wrong)])


def test_an_empty_answer_is_an_empty_playlist(tmp_path):
    for name, content in (("a.m3u", "#EXTM3U\n"), ("a.json", "[]\n")):
        write_playlist(tmp_path / name, [])
        assert (tmp_path / name).read_text() == content
    write_playlist(tmp_path / "a.csv", [])
    assert (tmp_path / "a.csv").read_text().startswith("path,score,start,end,file")
