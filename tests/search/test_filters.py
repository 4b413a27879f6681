"""Filters of queries: SQL over the columns, in every path of the search, and errors that say how to write one."""

import dataclasses

import numpy as np
import pyarrow
import pytest

from wavlink.search import nearest as searching
from wavlink.search import vector_index
from wavlink.search.filters import checked
from wavlink.search.listing import Sound
from wavlink.search.manifest import Manifest
from wavlink.search.nearest import nearest
from wavlink.search.rows import skipped_row, window_rows
from wavlink.search.table import Table

FILES, WINDOWS, DIM = 300, 4, 8
MANIFEST = Manifest("model", "r", DIM, [DIM], DIM, "fp16", 10.0, 5.0, 16000, "/sounds")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Table:
    """1,200 windows; a file's duration is its number, and every tenth file cannot be read."""
    random = np.random.default_rng(0)
    with Table.create(tmp_path_factory.mktemp("index") / "index", MANIFEST) as table:
        rows = []
        for number in range(FILES):
            sound = Sound(f"{'dogs' if number % 3 else 'cats'}/it's {number}.wav", 1, 1, "")
            if number % 10 == 0:
                rows.append(skipped_row(MANIFEST, sound, "no sound"))
                continue
            times = [(float(window), window + 1.0) for window in range(WINDOWS)]
            facts = {"windows": WINDOWS, "duration": float(number)}
            rows.append(window_rows(MANIFEST, sound, times, random.standard_normal((WINDOWS, DIM)), **facts))
        table.append(pyarrow.concat_tables(rows))
        vector_index._train(table, 40_000)
        table.dataset.checkout_latest()
        table.change(probes=9)
    return table


QUERY = np.random.default_rng(1).standard_normal(DIM)


def found(table: Table, where: str | None, **options) -> list[tuple[str, int]]:
    rows, scores = nearest(table, QUERY, 2000, where=where, **options)
    assert (np.diff(scores) <= 0).all()
    return [(row["path"], row["window"]) for row in rows.to_pylist()]


@pytest.mark.parametrize("path", ["exact", "indexed", "indexed, few left"])
@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize(
    "where, holds",
    [
        ("duration < 25", lambda path, number, window: number < 25),
        ("path LIKE 'dogs/%'", lambda path, number, window: path.startswith("dogs/")),
        (
            "path = 'dogs/it''s 7.wav' or duration between 100 and 103",
            lambda path, number, window: number in (7, 101, 102, 103),
        ),
        ("not (start >= 1.0)", lambda path, number, window: window == 0),
        ("error = '' or error = 'no sound'", lambda path, number, window: True),
        ("duration < 1 or true", lambda path, number, window: True),
        ("`duration` > 1000", lambda path, number, window: False),
    ],
)
def test_a_filter_holds_for_every_result(table, monkeypatch, path, windows, where, holds):
    monkeypatch.setattr(searching, "_FILTERED_ROWS", 0 if path == "indexed" else 10**9)
    everything = found(table, None, exact=True, windows=True)
    assert len(everything) == FILES * 9 // 10 * WINDOWS
    expected = [(path, n) for path, n in everything if holds(path, int(path.split(" ")[1][:-4]), n)]
    if not windows:
        expected = [
            next(each for each in expected if each[0] == name) for name in dict.fromkeys(p for p, _ in expected)
        ]
    assert found(table, where, windows=windows, exact=path == "exact") == expected


@pytest.mark.parametrize(
    "where, words",
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("duration <", "Expected"),
        ("duration < 5 label", "Expected: )"),  # Lance alone ignores the last word
        ("duration", "boolean"),
        ("'dog'", "boolean"),
        ("1", "boolean"),
        ("null", "boolean"),
        ("duration + 1", "boolean"),
        ("color = 'red'", "No field named color"),
        ("a.b = 1", "No field named a"),
        ("path = 3", "3"),
        ("duration < 'abc'", "abc"),
        ("duration and path", "boolean operation"),
        ("embedding = 3", "vectors"),
        ("embedding", "vectors"),
        ("Embedding[0] > 0.5", "vectors"),
        ("`rescore` is null", "vectors"),
        ("no_function(path)", "no_function"),
        ("path in (select 1)", "SELECT"),
        ("count(path) > 1", "count"),
        ("duration < 5 -- all", "--"),
        ("duration < 5 /* all */", "/*"),
        ("duration < 5; drop", ";"),
        ("1=1) or (1=1", "no ("),
        ("(duration < 5", "not closed"),
        ("path = $1", "it holds $"),
        ("path = 'dog", "has no end"),
        ("\"path\" = 'dog'", "is a text: write the column as path"),
        ("cast(path as int) = 1", "Cannot cast"),
        ("path ~ 'dog'", "~"),
        ("duration < 5\0", "NUL"),
        ("a" * 100_000, "10000"),
    ],
)
@pytest.mark.parametrize("exact", [True, False])
def test_a_wrong_filter_is_refused_in_one_line_that_lists_the_columns(table, where, words, exact):
    with pytest.raises(ValueError) as error:
        nearest(table, QUERY, 3, where=where, exact=exact)
    text = str(error.value)
    assert words in text and "the columns are path, window, start, end, duration, size" in text
    assert "\n" not in text and ".rs:" not in text and len(text) < 1500 and "embedding," not in text


def test_texts_in_a_filter_may_hold_anything(table):
    for text in ("a -- b", "a; b", "/* ( */", "`", '"', "it''s", ") or (", "embedding", "é"):
        assert checked(table, f"path = '{text}'") == f"(path = '{text}')"
        assert nearest(table, QUERY, 3, where=f"path = '{text}'")[0].num_rows == 0


def test_columns_with_capitals_or_spaces_are_shown_as_a_filter_spells_them(tmp_path):
    with Table.create(tmp_path / "index", dataclasses.replace(MANIFEST, storage="fp32")) as table:
        table.dataset.add_columns(pyarrow.schema([("Album Artist", pyarrow.string()), ("bpm", pyarrow.int64())]))
        table.refresh()
        assert checked(table, "`Album Artist` = 'x' and bpm > 3")
        with pytest.raises(ValueError, match="revision, `Album Artist`, bpm"):
            checked(table, "album = 'x'")


def test_a_value_with_a_nul_that_cannot_be_computed_is_an_error(tmp_path):
    """Where Lance meets it in a scan, it ends the process."""
    with Table.create(tmp_path / "index", MANIFEST) as table:
        table.append(window_rows(MANIFEST, Sound("a\0b", 1, 1, ""), [(0.0, 1.0)], np.ones((1, DIM)), windows=1))
    with pytest.raises(ValueError, match="the filter 'cast.path as int. = 1' cannot be used .*Cannot cast"):
        nearest(table, QUERY, 5, where="cast(path as int) = 1")
    assert len(nearest(table, QUERY, 5, where="path like 'a%'")[1]) == 1
