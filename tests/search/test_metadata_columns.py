"""Columns that describe the sounds of an index: from CSV files and JSON lines, and from tags in the sounds."""

import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from processing.sound_tags import TAGS, read_tags
from tests import searches
from tests.conftest import RATE
from tests.index_files import make_index
from tests.searches import SECONDS, assert_same_rows, index, rows, write
from wavlink.search import command as search
from wavlink.search.hits import as_dict
from wavlink.search.index import Index
from wavlink.search.metadata import described, update
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds

CSV = """file_name,label,bpm,loudness,code,Album Artist
dog/far.wav,dog,120,-3.5,007,"Müller, Ina"
dog/near.wav,dog,,2,12,
bell.flac,bell,-7,1e-3,3,
rain.wav,rain,0,,,
"""
VALUES = {
    "dog/far.wav": ("dog", 120, -3.5, "007", "Müller, Ina"),
    "dog/near.wav": ("dog", None, 2.0, "12", None),
    "bell.flac": ("bell", -7, 0.001, "3", None),
    "rain.wav": ("rain", 0, None, None, None),
    "cat.ogg": (None,) * 5,
}
NAMES = ("label", "bpm", "loudness", "code", "Album Artist")


def columns(folder) -> dict[str, tuple]:
    """The columns of every file; all rows of a file have the same."""
    table, found = Table.open(folder), {}
    for batch in table.scan(["path", *table.metadata_columns]):
        for row in batch.to_pylist():
            assert found.setdefault(row.pop("path"), tuple(row.values())) == tuple(row.values())
    return found


def version(folder) -> int:
    return Table.open(folder).dataset.version


@pytest.fixture
def metadata(sounds):
    (sounds / "metadata.csv").write_text(CSV, encoding="utf-8")
    return sounds / "metadata.csv"


def test_parquet_becomes_columns(sounds, tmp_path, embedder):
    rows = {"file_name": ["rain.wav", "bell.flac"], "label": ["rain", None], "bpm": [1, None], "level": [0.5, 2.0]}
    pyarrow.parquet.write_table(pyarrow.table(rows), sounds / "about.parquet")
    index(sounds, tmp_path / "index", embedder, metadata=sounds / "about.parquet")
    found = columns(tmp_path / "index")
    assert found["rain.wav"] == ("rain", 1, 0.5) and found["bell.flac"] == (None, None, 2.0)


def test_a_csv_becomes_columns_with_the_types_of_all_values(sounds, tmp_path, embedder, metadata):
    index(sounds, tmp_path / "index", embedder, metadata=metadata)
    table = Table.open(tmp_path / "index")
    kinds = [table.schema.field(name).type for name in NAMES]
    assert table.metadata_columns == [*NAMES]
    assert kinds == [pyarrow.string(), pyarrow.int64(), pyarrow.float64(), pyarrow.string(), pyarrow.string()]
    assert columns(tmp_path / "index") == VALUES
    index(sounds, tmp_path / "plain", embedder)
    assert_same_rows(tmp_path / "index", tmp_path / "plain")
    hits = Index.open(tmp_path / "index", embedder).query(
        "a dog", where="label = 'dog' and bpm > 100 and duration < 5"
    )
    assert [hit.metadata for hit in hits] == [dict(zip(NAMES, VALUES["dog/far.wav"], strict=True))]
    assert as_dict(hits[0])["metadata"]["Album Artist"] == "Müller, Ina"
    named = Index.open(tmp_path / "index", embedder).query("a cat", where="`Album Artist` like 'M%'")
    assert [hit.path for hit in named] == ["dog/far.wav"]


def test_columns_are_kept_over_later_runs_and_follow_the_csv(sounds, tmp_path, embedder, metadata):
    out = tmp_path / "index"
    index(sounds, out, embedder, metadata=metadata)
    before = version(out)
    index(sounds, out, embedder)
    index(sounds, out, embedder, metadata=metadata)
    assert version(out) == before and columns(out) == VALUES  # nothing has changed: no commit

    write(sounds / "bell.flac", 9, 4.0)  # a changed file keeps its columns, a new one has none yet
    write(sounds / "new.wav", 7)
    index(sounds, out, embedder)
    assert columns(out) == VALUES | {"new.wav": (None,) * 5}

    metadata.write_text("file_name,label,bpm\nnew.wav,new,1\nbell.flac,chime,2\n", encoding="utf-8")
    before, vectors = version(out), rows(out)
    index(sounds, out, embedder, metadata=metadata)
    expected = {path: (None, None, *values[2:]) for path, values in VALUES.items()}
    expected |= {"new.wav": ("new", 1, None, None, None), "bell.flac": ("chime", 2, *VALUES["bell.flac"][2:])}
    assert columns(out) == expected and version(out) == before + 1
    assert all((rows(out)[key] == vector).all() for key, vector in vectors.items())


def test_a_column_may_change_its_type(sounds, tmp_path, embedder, metadata):
    out = tmp_path / "index"
    index(sounds, out, embedder, metadata=metadata)
    metadata.write_text("file_name,bpm\nbell.flac,fast\nrain.wav,3\n", encoding="utf-8")
    index(sounds, out, embedder, metadata=metadata)
    table = Table.open(out)
    assert table.schema.field("bpm").type == pyarrow.string()
    assert {path: row["bpm"] for path, row in described(table).items() if row["bpm"]} == {
        "bell.flac": "fast",
        "rain.wav": "3",
    }


def test_sounds_outside_the_run_keep_their_columns(sounds, tmp_path, embedder):
    """Two folders, each with its own file; the second has another type of number."""
    out = tmp_path / "index"
    (sounds / "dog/metadata.jsonl").write_text(
        '{"file_name": "far.wav", "grade": 1}\n{"file_name": "near.wav", "grade": 2}\n'
    )
    index(sounds, out, embedder, metadata=sounds / "dog/metadata.jsonl")
    assert {path: row["grade"] for path, row in described(Table.open(out)).items()} == {
        **dict.fromkeys(SECONDS),
        "dog/far.wav": 1,
        "dog/near.wav": 2,
    }
    (sounds / "grades.csv").write_text("file_name,grade\nbell.flac,2.5\n")
    search.index_sounds(str(sounds / "bell.flac"), out, embedder, metadata=[sounds / "grades.csv"], progress=False)
    grades = {path: row["grade"] for path, row in described(Table.open(out)).items()}
    assert grades == {**dict.fromkeys(SECONDS), "dog/far.wav": 1.0, "dog/near.wav": 2.0, "bell.flac": 2.5}


def test_json_lines_and_several_files(sounds, tmp_path, embedder):
    lines = [
        {"file_name": "rain.wav", "title": "Rain", "take": 3, "wet": True, "gain": 1},
        {"file_name": "bell.flac", "title": None, "take": "4", "gain": 0.5, "note": ""},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "b.csv").write_text("file_name,title,year\nrain.wav,Heavy rain,1999\ncat.ogg,,2001\n")
    out = tmp_path / "index"
    index(sounds, out, embedder, metadata=[tmp_path / "a.jsonl", tmp_path / "b.csv"])  # names relative to the root
    found = described(Table.open(out))
    assert found["rain.wav"] == {
        "title": "Heavy rain",
        "take": "3",
        "wet": "true",
        "gain": 1.0,
        "note": None,
        "year": 1999,
    }
    assert (
        found["bell.flac"]["take"] == "4" and found["bell.flac"]["note"] is None and found["cat.ogg"]["year"] == 2001
    )


def test_a_file_that_is_skipped_has_columns_too(sounds, tmp_path, embedder):
    (sounds / "broken.wav").write_bytes(b"no sound")
    (sounds / "empty.wav").write_bytes(b"")
    (sounds / "m.csv").write_text("file_name,label\nbroken.wav,b\nempty.wav,e\nbell.flac,c\n")
    index(sounds, tmp_path / "index", embedder, metadata=sounds / "m.csv")
    found = described(Table.open(tmp_path / "index"))
    assert [found[name]["label"] for name in ("broken.wav", "empty.wav", "bell.flac")] == ["b", "e", "c"]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("m.csv", "file_name,duration\nbell.flac,3\n", "'duration', which an index has of its own: rename it"),
        ("m.csv", "file_name,Path\nbell.flac,3\n", "'Path', which an index has"),
        ("m.csv", "file_name,embedding\nbell.flac,3\n", "rename it, such as to 'my_embedding'"),
        ("m.csv", "file_name,score\nbell.flac,3\n", "'score'"),
        ("m.csv", "file_name,a.b\nbell.flac,3\n", "'a.b'"),
        ("m.csv", "file_name,_rowid\nbell.flac,3\n", "'_rowid'"),
        ("m.csv", "file_name,\nbell.flac,3\n", "a column named ''"),
        ("m.csv", "file_name,a`b\nbell.flac,3\n", "a`b"),
        ("m.csv", "file_name,Label,label\nbell.flac,3,4\n", "in large or small letters"),
        ("m.csv", "file_name,label,label\nbell.flac,3,4\n", "several columns named 'label'"),
        ("m.csv", "name,label\nbell.flac,3\n", "no column 'file_name'"),
        ("m.csv", "file_name,label\n", "has no rows"),
        ("m.csv", "file_name,label\nother.wav,3\n", "names none of the sounds"),
        ("m.csv", "file_name,label\nbell.flac,a\nbell.flac,b\n", "several rows for bell.flac"),
        ("m.jsonl", '{"file_name": "bell.flac", "tags": ["a"]}\n', "a list as 'tags'"),
        ("m.jsonl", "not json\n", "cannot read"),
        ("m.txt", "file_name,label\nbell.flac,a\n", "name a .csv, .jsonl or .parquet"),
    ],
)
def test_metadata_that_cannot_be_columns_is_refused_before_the_index_changes(
    sounds, tmp_path, embedder, name, text, words
):
    index(sounds, tmp_path / "index", embedder)
    before = version(tmp_path / "index")
    (sounds / name).write_text(text)
    with pytest.raises(ValueError) as error:
        index(sounds, tmp_path / "index", embedder, metadata=sounds / name)
    assert words in str(error.value) and str(sounds / name) in str(error.value) and "\n" not in str(error.value)
    assert version(tmp_path / "index") == before
    with pytest.raises(ValueError, match="cannot read .*missing.csv: No such file"):
        index(sounds, tmp_path / "index", embedder, metadata=tmp_path / "missing.csv")


def test_columns_that_differ_in_case_alone_are_refused(sounds, tmp_path, embedder):
    """A filter without backticks would not reach the one with the large letter."""
    for name, column in (("a.csv", "label"), ("b.csv", "Label")):
        (sounds / name).write_text(f"file_name,{column}\nbell.flac,x\n")
    with pytest.raises(ValueError, match="b.csv has a column 'Label' beside 'label'.*rename"):
        index(sounds, tmp_path / "index", embedder, metadata=[sounds / "a.csv", sounds / "b.csv"])
    (sounds / "c.csv").write_text("file_name,Title\nbell.flac,x\n")
    with pytest.raises(ValueError, match="c.csv has a column 'Title' beside 'title'.*rename"):
        index(sounds, tmp_path / "index", embedder, metadata=sounds / "c.csv", tags=True)
    assert not (tmp_path / "index").exists()
    index(sounds, tmp_path / "index", embedder, metadata=sounds / "a.csv")
    before = version(tmp_path / "index")
    with pytest.raises(ValueError, match="b.csv has a column 'Label' beside 'label'.*rename"):
        index(sounds, tmp_path / "index", embedder, metadata=sounds / "b.csv")
    assert version(tmp_path / "index") == before


def tagged(path, **tags) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for name, value in tags.items():
            setattr(file, name, value)
        file.write(np.sin(np.arange(RATE) / len(path.name)) / 2)


def test_tags_become_columns_of_all_and_of_later_files(sounds, tmp_path, embedder):
    out = tmp_path / "index"
    tagged(sounds / "song.flac", title="Ein Lied", artist="Ä", album="Album", genre="folk", date="1999", comment="c")
    index(sounds, out, embedder)
    assert Table.open(out).metadata_columns == []
    index(sounds, out, embedder, tags=True)
    table = Table.open(out)
    assert table.metadata_columns == [*TAGS] and table.manifest.tags
    assert {table.schema.field(name).type for name in TAGS} == {pyarrow.string()}
    song = dict(zip(TAGS, ("Ein Lied", "Ä", "Album", "folk", "1999", "c"), strict=True))
    assert described(table) == {name: dict.fromkeys(TAGS) for name in SECONDS} | {"song.flac": song}

    tagged(sounds / "other.wav", title="Other")
    tagged(sounds / "song.flac", title="Changed")
    index(sounds, out, embedder)
    found = described(Table.open(out))
    assert found["other.wav"] == dict.fromkeys(TAGS) | {"title": "Other"}
    assert found["song.flac"] == dict.fromkeys(TAGS) | {"title": "Changed"}
    assert [hit.path for hit in Index.open(out, embedder).query("x", where="title is not null", top_k=9)]


def test_a_csv_takes_the_place_of_tags_of_the_same_name(sounds, tmp_path, embedder):
    tagged(sounds / "song.flac", title="Song", date="1999", artist="A")
    (sounds / "m.csv").write_text("file_name,title,date\nsong.flac,Named,2020\nbell.flac,Bell,\n")
    for _ in range(2):
        index(sounds, tmp_path / "index", embedder, metadata=sounds / "m.csv", tags=True)
        found = described(Table.open(tmp_path / "index"))
        assert found["song.flac"] == dict.fromkeys(TAGS) | {"title": "Named", "date": "2020", "artist": "A"}
        assert found["bell.flac"]["title"] == "Bell" and found["bell.flac"]["date"] is None


def test_read_tags_of_damaged_and_other_files(tmp_path):
    (tmp_path / "damaged.wav").write_bytes(b"RIFF....")
    assert read_tags(tmp_path / "damaged.wav") == read_tags(b"") == read_tags(tmp_path / "missing.wav") == {}
    tagged(tmp_path / "a.ogg", title="  T\n", comment="x" * 20_000)
    found = read_tags(tmp_path / "a.ogg")
    assert found["title"] == "T" and len(found["comment"]) == 10_000
    assert read_tags((tmp_path / "a.ogg").read_bytes()) == found


def test_tags_of_a_container(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        container.metadata.update({"title": "Lied", "artist": "Ä", "genre": "folk", "encoder": "x"})
        stream = container.add_stream("aac", rate=RATE)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert read_tags(tmp_path / "a.m4a") == {"title": "Lied", "artist": "Ä", "genre": "folk"}


def test_a_run_says_what_it_sets_and_names_rows_without_a_sound(sounds, tmp_path, embedder, capsys):
    """Each form of a name; of two rows for one file the later counts, and neither is without a sound."""
    (sounds / "a.csv").write_text(
        "file_name,label,n\nbell.flac,bell,1\n./bell.flac,chime,2\ndog/far.wav,dog,3\ngone.wav,x,4\n../up.wav,y,5\n"
    )
    (tmp_path / "b.jsonl").write_text('{"file_name": "rain.wav", "wet": 1}\n{"file_name": "cat.ogg", "dry": 2}\n')
    tagged(sounds / "song.flac", title="Song")
    out, files = tmp_path / "index", [sounds / "a.csv", tmp_path / "b.jsonl"]
    report = index(sounds, out, embedder, metadata=files, tags=True)
    assert [vars(each) for each in report.described] == [
        {"source": "tags", "columns": [*TAGS], "sounds": 1, "rows": 6, "unmatched": []},
        {"source": str(files[0]), "columns": ["label", "n"], "sounds": 2, "rows": 5}
        | {"unmatched": ["gone.wav", "../up.wav"]},
        {"source": str(files[1]), "columns": ["wet", "dry"], "sounds": 2, "rows": 2, "unmatched": []},
    ]
    assert str(report).splitlines()[1:] == [
        f"tags ({', '.join(TAGS)}) of 1 of the 6 sounds that were read for them",
        f"{files[0]}: label, n of 2 sounds; 2 of its 5 rows name no sound of this run: gone.wav, ../up.wav",
        f"{files[1]}: wet, dry of 2 sounds",
    ]
    names = [f"{number}.wav" for number in range(20)]
    (sounds / "a.csv").write_text("".join(f"{name},x\n" for name in ["file_name", "bell.flac", "\x1b[31m", *names]))
    report = index(sounds, out, metadata=files[0])
    assert len(report.described[-1].unmatched) == 21
    line = str(report).splitlines()[-1]
    assert line.endswith("1.wav, 2.wav, 3.wav, 4.wav, 5.wav, 6.wav, 7.wav, 8.wav and 11 more") and "\x1b" not in line


def test_a_run_without_new_sounds_reads_no_tags(sounds, tmp_path, embedder):
    out = tmp_path / "index"
    index(sounds, out, embedder, tags=True)
    assert index(sounds, out).described == []
    assert str(index(sounds, out, tags=True)).endswith("of 0 of the 0 sounds that were read for them")


def test_command_line(sounds, tmp_path, models, metadata, capsys):
    out = str(tmp_path / "index")
    arguments = ["index", str(sounds), "--out", out, "--model", str(models["model"]), "--metadata", str(metadata)]
    metadata.write_text(f"{CSV}gone.wav,dog,,,,\n", encoding="utf-8")
    assert search.main([*arguments, "--tags"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("5 added") and printed[1].startswith("tags (title, artist,")
    assert (
        printed[2]
        == f"{metadata}: {', '.join(NAMES)} of 4 sounds; 1 of its 5 rows name no sound of this run: gone.wav"
    )
    assert search.main([*arguments, "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["described"]
    assert (facts["source"], facts["sounds"], facts["unmatched"]) == (str(metadata), 4, ["gone.wav"])
    search.main(["info", out, "--json"])
    assert json.loads(capsys.readouterr().out)["columns"] == [*TAGS, *NAMES]
    search.main(["info", out])
    assert "label" in capsys.readouterr().out
    search.main(["query", out, "a dog", "--where", "label = 'dog'", "--json"])
    hits = json.loads(capsys.readouterr().out)
    assert {hit["path"] for hit in hits} == {"dog/far.wav", "dog/near.wav"}
    assert {hit["metadata"]["code"] for hit in hits} == {"007", "12"}
    search.main(["query", out, "a dog", "--where", "label = 'bell'"])
    assert "label=bell" in capsys.readouterr().out


def test_an_index_without_columns_gets_them(sounds, tmp_path, embedder, metadata):
    index(sounds, tmp_path / "index", embedder)
    index(sounds, tmp_path / "index", embedder, metadata=metadata)
    assert columns(tmp_path / "index") == VALUES


def test_columns_survive_a_removal_and_a_verification(sounds, tmp_path, embedder, metadata):
    out = tmp_path / "index"
    index(sounds, out, embedder, metadata=metadata)
    shutil.rmtree(sounds / "dog")
    index(sounds, out, embedder)
    assert columns(out) == {path: values for path, values in VALUES.items() if not path.startswith("dog/")}
    search.main(["verify", str(out)])


def test_a_kill_while_a_column_changes_its_type_loses_no_value(tmp_path, monkeypatch):
    folder = make_index(tmp_path / "index", "abc")
    with Table.open(folder).writing() as table:
        update(table, {name: {"n": number} for number, name in enumerate("abc")}, ["n"])
    before = described(Table.open(folder))
    vectors = Table.open(folder).dataset.to_table(columns=["path", "window", "embedding"])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Table, "commit_operation", killed)
        with pytest.raises(KeyboardInterrupt), Table.open(folder).writing() as table:
            update(table, {"a": {"n": "text"}}, ["n"])
    assert described(Table.open(folder)) == before
    with Table.open(folder).writing() as table:
        update(table, {"a": {"n": "text"}}, ["n"])
    table = Table.open(folder)
    assert described(table) == {"a": {"n": "text"}, "b": {"n": "1"}, "c": {"n": "2"}}
    assert table.dataset.to_table(columns=["path", "window", "embedding"]).equals(vectors)
