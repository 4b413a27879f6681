"""A damaged shard of a stream is left out, counted and named; the rest goes on, and a resume stays exact."""

import gzip
import shutil
from itertools import islice
from pathlib import Path

import datasets
import pytest

from processing.datasets import shard_reader
from processing.datasets.shards import load_stream
from tests.shard_streams import flat, ids, parquets, stream, tars

SHARDS = (7, 3, 9, 4)
MEMBER = 1024  # bytes of a clip's json, or of a sound of at most 512 bytes, with its header


def cut_in_member(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 8 * MEMBER + 700])


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 8 * MEMBER + 100])


def cut_between_members(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 8 * MEMBER])


def bad_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8 * MEMBER : 8 * MEMBER + 512] = b"\x55" * 512
    path.write_bytes(content)


def cut_gzip(path: Path) -> None:
    packed = gzip.compress(path.read_bytes(), 0)
    path.write_bytes(packed[: 8 * MEMBER + 300])


def bad_gzip(path: Path) -> None:
    packed = bytearray(gzip.compress(path.read_bytes(), 0))
    packed[10:60] = b"\xff" * 50
    path.write_bytes(packed)


def no_tar(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def two_sounds_of_a_key(path: Path) -> None:
    content = bytearray(path.read_bytes())
    assert content[: len(b"c7.wav")].startswith(b"c")
    path.write_bytes(bytes(content[:1024]) + bytes(content))  # the first sound comes twice


DAMAGES = {  # and how many clips of the third shard are read in front of it
    cut_in_member: 4,
    cut_in_header: 3,
    cut_between_members: 3,
    bad_header: 3,
    cut_gzip: 3,
    bad_gzip: 0,
    no_tar: 0,
    emptied: 0,
    two_sounds_of_a_key: 0,
}


def damaged(folder, damage, shard: int = 2) -> str:
    data = tars(folder, SHARDS)
    damage(folder / f"train-{shard}.tar")
    return data


def clips_of(data: str, epochs: int = 3) -> tuple[list[list[int]], dict]:
    """The clips in the order of the shards, epoch by epoch, by one reader, and the names of damaged shards."""
    found, reports = [[] for _ in range(epochs)], []
    source = load_stream(data, "train")
    start = {"epoch": 0, "position": 0, "inside": 0, "stream": None}
    reader = shard_reader.ShardReader(source, 0, 0, 1, start)
    for example, (epoch, _, _) in reader:
        if epoch == epochs:
            break
        if isinstance(example, shard_reader.DamagedShard):
            reports.append(example.name)
        else:
            caption = example["caption"]
            found[epoch].append(int(caption[0] if isinstance(caption, list) else caption))
    return found, reports


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_rest_of_a_damaged_tar_is_left_out(damage, tmp_path):
    epochs, names = clips_of(damaged(tmp_path, damage))
    kept = [*range(10), *range(10, 10 + DAMAGES[damage]), *range(19, 23)]
    assert all(sorted(epoch) == kept for epoch in epochs)
    assert names == [str(tmp_path / "train-2.tar")] * 3


def test_a_shard_removed_while_it_is_streamed_is_left_out(tmp_path):
    data, expected = tars(tmp_path, SHARDS), [*range(10), *range(19, 23)]
    batches = stream(data, batch_size=2, window=7)
    (tmp_path / "train-2.tar").unlink()
    assert sorted(flat(ids(batches, 7))) == expected
    assert batches.report["skipped_broken"] == 1 and batches.report["names"] == [str(tmp_path / "train-2.tar")]


def damage_parquet(path: Path, where: str) -> None:
    content = bytearray(path.read_bytes())
    if where == "cut":
        content = content[: len(content) // 2]
    else:
        content[4:200] = b"\xff" * 196
    path.write_bytes(content)


@pytest.mark.parametrize("where", ["cut", "pages"])
@pytest.mark.parametrize("shard", [0, 2])
def test_a_damaged_parquet_file_is_left_out(where, shard, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = parquets(tmp_path / "data", SHARDS)
    path = tmp_path / f"data/train-{shard}.parquet"
    damage_parquet(path, where)
    epochs, names = clips_of(data)
    first = sum(SHARDS[:shard])
    kept = [number for number in range(23) if not first <= number < first + SHARDS[shard]]
    assert all(set(kept) <= set(epoch) and len(epoch) < 23 for epoch in epochs) and epochs[0]
    assert names == [str(path)] * 3


def either(form: str, folder: Path) -> str:
    if form == "tar":
        return damaged(folder, cut_in_member)
    data = parquets(folder, SHARDS)
    damage_parquet(folder / "train-2.parquet", "cut")
    return data


@pytest.mark.parametrize(
    "form, num_workers", [("tar", 0), ("tar", 1), ("parquet", 0), pytest.param("parquet", 1, marks=pytest.mark.slow)]
)
def test_a_resume_around_a_damaged_shard_is_exact(form, num_workers, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = either(form, tmp_path / "data")
    unbroken = stream(data, batch_size=3, window=1, num_workers=num_workers)
    expected = ids(unbroken, 24)
    assert unbroken.report["skipped_broken"] >= 3
    for stop in range(1, 24, 5 if num_workers else 1):
        begun = stream(data, batch_size=3, window=1, num_workers=num_workers)
        assert ids(begun, stop) == expected[:stop]
        resumed = stream(data, batch_size=3, window=1, num_workers=num_workers)
        resumed.load_state_dict(begun.state_dict())
        assert ids(resumed, 24 - stop) == expected[stop:]
        assert resumed.report == unbroken.report


def test_of_more_readers_than_shards_one_counts_the_damage(tmp_path):
    data = damaged(tmp_path, cut_in_member)
    source, found, names = load_stream(data, "train"), [], []
    for number in range(5):
        start = {"epoch": 0, "position": 0, "inside": 0, "stream": None}
        for example, (epoch, _, _) in shard_reader.ShardReader(source, 0, number, 5, start):
            if epoch:
                break
            (names if isinstance(example, shard_reader.DamagedShard) else found).append(example)
    assert sorted(int(example["caption"][0]) for example in found) == [*range(14), *range(19, 23)]
    assert [damage.name for damage in names] == [str(tmp_path / "train-2.tar")]


def test_a_reader_whose_shards_are_damaged_in_one_epoch_goes_on(tmp_path):
    """Of two readers of two shards, one has the damaged shard alone, until the order is drawn anew."""
    data = tars(tmp_path, (6, 6))
    no_tar(tmp_path / "train-1.tar")
    for rank in range(2):
        batches = stream(data, batch_size=4, window=1, rank=rank, world_size=2)
        assert set(flat(ids(batches, 20))) == set(range(6)) and batches.report["skipped_broken"]


def test_shards_of_which_none_can_be_read_are_an_error(tmp_path):
    data = tars(tmp_path, SHARDS)
    for path in tmp_path.glob("*.tar"):
        no_tar(path)
    with pytest.raises(ValueError, match="cannot read .*train-0.tar.*none of 4 shards can be read"):
        load_stream(data, "train")


def test_shards_that_are_all_lost_end_a_run(tmp_path):
    batches = stream(tars(tmp_path, SHARDS), batch_size=2, window=1)
    found = iter(batches)
    next(found)
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="cannot read .*train-.*[4-9] shards cannot be read, one after another"):
        list(islice(found, 40))


def test_many_lost_shards_one_after_another_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_reader, "MOST_DAMAGED", 3)
    data = tars(tmp_path, (2,) * 9)
    source = stream(data, batch_size=2, window=1)
    for number in range(1, 9):
        no_tar(tmp_path / f"train-{number}.tar")
    with pytest.raises(ValueError, match="3 shards cannot be read, one after another"):
        list(islice(source, 40))


@pytest.mark.parametrize("damage", [no_tar, emptied, cut_in_header])
def test_a_damaged_first_shard_does_not_end_a_run(damage, tmp_path):
    data = damaged(tmp_path, damage, 0)
    epochs, names = clips_of(data, 1)
    assert {*range(7, 23)} <= set(epochs[0]) and names == [str(tmp_path / "train-0.tar")]
