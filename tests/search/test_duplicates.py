"""Near-duplicates: groups of files by their stored vectors, computed in blocks."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow
import pytest
import soundfile

from tests import searches
from tests.conftest import RATE
from tests.searches import index, write
from wavlink.search import command as search
from wavlink.search import duplicates as finding
from wavlink.search.duplicates import duplicates
from wavlink.search.index import Index
from wavlink.search.listing import Sound
from wavlink.search.manifest import Manifest
from wavlink.search.rows import window_rows
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds
DIM = 16
MANIFEST = Manifest("model", "r", DIM, [DIM], DIM, "fp32", 10.0, 5.0, 16000, "/sounds")


def table_of(folder, vectors: np.ndarray, seconds: np.ndarray) -> Table:
    with Table.create(folder, dataclasses.replace(MANIFEST)) as table:
        rows = []
        for number, (vector, duration) in enumerate(zip(vectors, seconds, strict=True)):
            sound = Sound(f"{number:05}.wav", 1, 1, "")
            facts = {"windows": 1, "duration": float(duration)}
            rows.append(window_rows(MANIFEST, sound, [(0.0, float(duration))], vector[None], **facts))
        table.append(pyarrow.concat_tables(rows))
    return table


def expected(vectors: np.ndarray, seconds: np.ndarray, min_score: float, any_duration: bool) -> set[frozenset]:
    """All pairs at once, and groups grown one by one."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T >= min_score
    if not any_duration:
        near &= np.minimum.outer(seconds, seconds) >= 0.9 * np.maximum.outer(seconds, seconds)
    groups, left = set(), set(range(len(vectors)))
    while left:
        group = fresh = {left.pop()}
        while fresh:
            fresh = {int(n) for one in fresh for n in np.flatnonzero(near[one])} - group
            group |= fresh
        left -= group
        groups |= {frozenset(group)} if len(group) > 1 else set()
    return groups


@pytest.fixture(params=[4096, 0], ids=["all", "centres"])
def compared(request, monkeypatch):
    """In small blocks: all files with each other, and those of near centres alone."""
    monkeypatch.setattr(finding, "_MANY", 11)
    monkeypatch.setattr(finding, "_FEW", 7)
    monkeypatch.setattr(finding, "_A_CENTRE", 6)
    monkeypatch.setattr(finding, "_COMPARED", request.param)
    return request.param


@pytest.mark.parametrize("any_duration", [False, True])
def test_groups_are_those_of_all_pairs(tmp_path, any_duration, compared):
    random = np.random.default_rng(0)
    centres = random.standard_normal((60, DIM))
    vectors = centres[random.integers(0, 60, 300)] + 0.08 * random.standard_normal((300, DIM))
    seconds = np.round(random.uniform(1, 3, 300), 2)
    table = table_of(tmp_path / "index", vectors, seconds)
    for min_score in (0.8, 0.9, 0.98, 0.995):
        groups = expected(vectors, seconds, min_score, any_duration)
        found = duplicates(table, min_score, any_duration)
        assert {frozenset(int(hit.path[:5]) for hit in group) for group in found} == groups and groups
        assert [len(group) for group in found] == sorted(map(len, found), reverse=True)
        for group in found:
            assert [hit.path for hit in group] == sorted(hit.path for hit in group)
            assert group[0].score == pytest.approx(1, abs=1e-6)


def test_copies_are_found_and_other_durations_are_not(sounds, tmp_path, embedder):
    shutil.copy(sounds / "bell.flac", sounds / "dog/copy.flac")
    samples, _ = soundfile.read(sounds / "bell.flac")
    soundfile.write(sounds / "quieter.wav", 0.9999 * samples, RATE)
    soundfile.write(sounds / "padded.wav", np.pad(samples, (0, RATE)), RATE)
    (sounds / "broken.wav").write_bytes(b"no sound")
    index(sounds, tmp_path / "index", embedder)
    opened = Index.open(tmp_path / "index")
    (group,) = opened.duplicates(0.999)
    assert [hit.path for hit in group] == ["bell.flac", "dog/copy.flac", "quieter.wav"]
    assert group[1].score == pytest.approx(1, abs=1e-5) and group[1].end == 3 and group[1].file
    assert all(len(group) > 1 for group in opened.duplicates(-1, any_duration=True))
    assert len(opened.duplicates(-1, any_duration=True)[0]) == 8
    assert opened._embedder is None  # no model is loaded


def test_few_pairs_are_compared_where_few_are_near():
    random = np.random.default_rng(0)
    kinds = random.standard_normal((60, 48))
    vectors = (kinds[random.integers(0, 60, 6000)] + 0.3 * random.standard_normal((6000, 48))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1::2] = vectors[::2]
    compared = {0.98: 0, 0.5: 0}
    for min_score in compared:
        compared[min_score] = sum(len(ones) * len(others) for ones, others in finding._compared(vectors, min_score))
    assert compared[0.98] < 6000**2 / 8 < 6000**2 / 4 < compared[0.5] <= 6000**2
    assert len(finding._groups(vectors, None, 0.98)) == 3000


def test_windows_of_a_file_may_lie_anywhere_in_the_table(tmp_path):
    """Also those of a file whose duration is not known, which has no near-duplicate but of any duration."""
    vectors = np.random.default_rng(1).standard_normal((2, DIM))
    with Table.create(tmp_path / "index", MANIFEST) as table:
        for first in (1, 0):
            for name in ("a", "b", "c"):
                facts = {"first": first, "windows": 2, "duration": None if name == "c" else 3.0}
                times = [(first, first + 2.0)]
                table.append(window_rows(MANIFEST, Sound(name, 1, 1, ""), times, vectors[None, first], **facts))
    (group,) = duplicates(table)
    assert [(hit.path, hit.start, hit.end) for hit in group] == [("a", 0, 3), ("b", 0, 3)]
    (group,) = duplicates(table, any_duration=True)
    assert [(hit.path, hit.start, hit.end) for hit in group] == [("a", 0, 3), ("b", 0, 3), ("c", 0, 2)]


def test_many_equal_files(tmp_path, compared):
    vectors = np.ones((1200, DIM)) + np.eye(DIM)[0]
    (group,) = duplicates(table_of(tmp_path / "index", vectors, np.full(1200, 2.0)))
    assert len(group) == 1200


def test_an_index_without_duplicates_or_sounds(tmp_path):
    assert duplicates(table_of(tmp_path / "a", np.eye(DIM), np.ones(DIM))) == []
    assert duplicates(table_of(tmp_path / "b", np.eye(DIM)[:1], np.ones(1))) == []
    for wrong in (1.1, -2, float("nan")):
        with pytest.raises(ValueError, match="min_score is a cosine"):
            duplicates(table_of(tmp_path / f"c{wrong}", np.eye(DIM), np.ones(DIM)), wrong)


def test_command_line(sounds, tmp_path, embedder, capsys):
    write(sounds / "again.wav", 0)
    index(sounds, tmp_path / "index", embedder)
    search.main(["duplicates", str(tmp_path / "index"), "--min_score", "0.9999"])
    assert capsys.readouterr().out == " 1.000  again.wav\n 1.000  dog/far.wav\n\n2 sounds in 1 group\n"
    search.main(["duplicates", str(tmp_path / "index"), "--min_score", "0.9999", "--json"])
    assert [[hit["path"] for hit in group] for group in json.loads(capsys.readouterr().out)] == [
        ["again.wav", "dog/far.wav"]
    ]
