"""Streams: every example in every epoch, divided among processes, and resumed to the last bit wherever killed."""

import io
import json
from collections import Counter
from itertools import islice

import datasets
import fsspec
import numpy as np
import pytest
import soundfile
import torch

from processing.collator import AudioTextCollator
from processing.datasets.load import caption_columns
from processing.datasets.shards import load_stream
from tests.conftest import RATE, tone
from tests.shard_streams import flat, ids, parquets, stream, tars
from tests.tar_streams import sound, tar_of, write_tar


def assert_equal(batches, expected) -> None:
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in other)


# ---- resume


@pytest.mark.parametrize("write", [tars, parquets])
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_resumed_stream_is_the_unbroken_one(write, num_workers, tmp_path):
    """Stops at the begin, inside windows, at windows' ends (every 2), at an epoch's end (23 clips: in batch 6)."""
    data = write(tmp_path / "data")
    full = list(islice(stream(data, num_workers=num_workers), 18))
    assert len({tuple(batch["id"].tolist()) for batch in full}) > 12
    for stop in [0, 1, 2, 5, 6, 11] if num_workers < 2 else [1, 4, 7]:
        broken = stream(data, num_workers=num_workers)
        assert_equal(islice(broken, stop), full[:stop])
        file = io.BytesIO()
        torch.save(broken.state_dict(), file)
        file.seek(0)
        resumed = stream(data, num_workers=num_workers)
        resumed.load_state_dict(torch.load(file, weights_only=True))  # plain values only
        assert resumed.report == broken.report
        assert_equal(islice(resumed, 18 - stop), full[stop:])


@pytest.mark.parametrize("write", [tars, parquets])
def test_every_stop_and_a_stop_after_a_stop(write, tmp_path):
    data = write(tmp_path / "data")
    full = list(islice(stream(data, window=3), 26))
    batches = stream(data, window=3)
    for number in range(26):
        state = batches.state_dict()
        batches = stream(data, window=3)
        batches.load_state_dict(json.loads(json.dumps(state)))
        assert_equal([next(iter(batches))], [full[number]])


def test_a_worker_reads_the_batches_that_this_process_would(tmp_path):
    data = tars(tmp_path)
    states = []
    for num_workers in (0, 1):
        batches = stream(data, num_workers=num_workers)
        states.append((ids(batches, 9), batches.state_dict()))
    assert states[0] == states[1]  # the state too, though the worker has read ahead
    resumed = stream(data, num_workers=0)
    resumed.load_state_dict(states[1][1])
    assert ids(resumed, 3) == ids(stream(data), 12)[9:]


def test_iterating_again_goes_on(tmp_path):
    data = tars(tmp_path)
    batches = stream(data)
    assert ids(batches, 3) + ids(batches, 4) == ids(stream(data), 7)


def test_the_models_inputs_are_resumed_to_the_last_bit(processor, tmp_path):
    data = parquets(tmp_path / "data", (6, 5))
    options = {"collator": AudioTextCollator(processor), "num_workers": 1}
    full = list(islice(stream(data, **options), 6))
    assert {"input_features", "input_ids", "caption_ids"} <= full[0].keys()
    broken = stream(data, **options)
    assert_equal(islice(broken, 3), full[:3])
    resumed = stream(data, **options)
    resumed.load_state_dict(broken.state_dict())
    assert_equal(islice(resumed, 3), full[3:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 1, "world_size": 2}, "rank was 0 and is now 1, world_size was 1 and is now 2"),
        ({"seed": 5}, "seed was 0 and is now 5"),
        ({"batch_size": 6, "window": 3}, "batch_size was 4 and is now 6, window was 2 and is now 3"),
        ({"num_workers": 2}, "readers was 1 and is now 2; .*num_workers"),
        ({"max_seconds": 2.0}, "max_seconds was 30.0 and is now 2.0"),
    ],
)
def test_another_streams_state_is_refused(change, message, tmp_path):
    data = tars(tmp_path)
    with pytest.raises(ValueError, match=message):
        stream(data, **change).load_state_dict(stream(data).state_dict())


# ---- order of the clips


@pytest.mark.parametrize("write", [tars, parquets])
def test_every_clip_once_an_epoch_and_nothing_left_out(write, tmp_path):
    """23 clips, windows of 8: after 23 windows each was used 8 times, though no epoch ends with a window."""
    batches = list(islice(stream(write(tmp_path / "data")), 46))
    assert Counter(flat(batch["id"].tolist() for batch in batches)) == dict.fromkeys(range(23), 8)
    assert all(torch.equal(batch["id"], batch["first"]) for batch in batches)  # the caption of this very sound
    for epoch in range(8):  # windows mix neighbouring epochs only, and a batch at most at the seam
        begin, end = -(-epoch * 23 // 8), (epoch + 1) * 23 // 8  # windows that lie in this epoch
        clip_ids = flat(batch["id"].tolist() for batch in batches[2 * begin : 2 * end])
        assert len(set(clip_ids)) == len(clip_ids) == 8 * (end - begin) >= 8


def test_two_processes_get_disjoint_clips_and_together_all(tmp_path):
    """4 shards of 8, a share of 4 in windows of 4 batches: a process's window is its epoch."""
    data = tars(tmp_path, (8, 8, 8, 8))
    clip_ids = [ids(stream(data, batch_size=8, window=4, rank=r, world_size=2), 12) for r in (0, 1)]
    halves = []
    for epoch in range(3):
        own = [set(flat(clip_ids[rank][epoch * 4 : epoch * 4 + 4])) for rank in (0, 1)]
        assert len(own[0]) == len(own[1]) == 16 and own[0] | own[1] == set(range(32))
        assert all(len({clip // 8 for clip in part}) == 2 for part in own)  # two whole shards
        halves.append(own[0])
    orders = [[flat(clip_ids[rank][epoch * 4 : epoch * 4 + 4]) for epoch in range(3)] for rank in (0, 1)]
    assert all(len(set(map(tuple, order))) == 3 for order in orders)  # another order in every epoch
    assert halves[0] != halves[1] or halves[1] != halves[2]  # and other shards


def test_a_process_opens_its_own_shards_only(tmp_path):
    data = tars(tmp_path, (8, 8, 8, 8))
    opened = [set(clip // 8 for clip in flat(ids(stream(data, rank=r, world_size=4, window=8), 8))) for r in range(4)]
    assert all(len(shards) == 1 for shards in opened) and set.union(*opened) == {0, 1, 2, 3}


@pytest.mark.parametrize(("shards", "world_size"), [((12,), 2), ((7, 5), 3), ((13, 1, 4), 4)])
def test_fewer_shards_than_processes(shards, world_size, tmp_path, caplog):
    data, total = tars(tmp_path, shards), sum(shards)
    clip_ids = []
    for rank in range(world_size):
        caplog.clear()
        batches = stream(data, batch_size=world_size, window=1, rank=rank, world_size=world_size)
        assert len([x for x in caplog.records if "write more shards" in x.message]) == (rank == 0)
        clips = flat(ids(batches, 2 * total))
        period = next(n for n in range(1, total + 1) if set(clips[:n]) == set(clips))
        assert Counter(clips[:period]) == dict.fromkeys(clips[:period], 1)
        clip_ids.append(clips[:period])
    assert sorted(flat(clip_ids)) == list(range(total))


def test_shares_may_be_uneven_and_no_process_ever_ends(tmp_path):
    data = tars(tmp_path, (2, 9, 1))  # three shards for two processes
    streams = [stream(data, batch_size=5, rank=rank, world_size=2) for rank in (0, 1)]
    clip_ids = [ids(batches, 60) for batches in streams]
    assert [set(map(len, share)) for share in clip_ids] == [{3}, {2}]
    assert set(flat(clip_ids[0])) == set(flat(clip_ids[1])) == set(range(12))  # over epochs shards change hands


def test_workers_divide_the_shards_of_a_process(tmp_path):
    """2 processes of 2 workers, 4 shards of 8, windows of 4 shares of 2: each worker's window is a whole shard."""
    data = tars(tmp_path, (8, 8, 8, 8))
    options = {"batch_size": 4, "window": 4, "num_workers": 2, "world_size": 2}
    clip_ids = [ids(stream(data, rank=rank, **options), 16) for rank in (0, 1)]
    for epoch in range(2):
        parts = [share[8 * epoch + worker : 8 * epoch + 8 : 2] for share in clip_ids for worker in (0, 1)]
        assert sorted(flat(flat(parts))) == list(range(32))
        assert all(len({clip // 8 for clip in flat(part)}) == 1 for part in parts)


# ---- randomness


def test_batches_are_grouped_by_length_and_shuffled(tmp_path):
    data = tars(tmp_path, (40,))
    lengths = [batch["length"] for batch in islice(stream(data, window=10), 20)]
    for window in (lengths[:10], lengths[10:]):
        spans = sorted((int(batch.min()), int(batch.max())) for batch in window)
        assert all(longest <= shortest for (_, longest), (shortest, _) in zip(spans, spans[1:], strict=False))
        assert [int(batch.min()) for batch in window] != sorted(int(batch.min()) for batch in window)
    assert ids(stream(data, seed=1, window=10), 10) != ids(stream(data, window=10), 10)


def test_one_batch_at_most_mixes_two_epochs(tmp_path):
    """10 clips in windows of 8: the second is two clips of the first epoch and six of the next, of 5 windows to 4."""
    batches = list(islice(stream(tars(tmp_path, (10,)), batch_size=2, window=4), 20))
    assert Counter(flat(batch["id"].tolist() for batch in batches[:20])) == dict.fromkeys(range(10), 4)
    assert {8, 9} in [set(batch["id"].tolist()) for batch in batches[4:8]]
    assert all(len(set(batch["id"].tolist())) == 2 for batch in batches)


def test_all_processes_have_long_clips_at_once(tmp_path):
    data = tars(tmp_path, (50, 50))
    options = {"batch_size": 8, "world_size": 2, "window": 10}
    shares = [
        [float(batch["length"].float().mean()) for batch in islice(stream(data, rank=rank, **options), 10)]
        for rank in (0, 1)
    ]
    assert np.argsort(shares[0]).tolist() == np.argsort(shares[1]).tolist() != list(range(10))


def test_crops_depend_on_seed_epoch_shard_and_number_only(tmp_path):
    """Sample i of a clip is i (the first excepted), so a crop's first sample tells where it begins."""
    for shard in (0, 1):
        files = {}
        for clip in range(8 * shard, 8 * shard + 8):
            files |= {f"c{clip}.wav": sound(clip, 1000), f"c{clip}.txt": b"%d" % clip}
        write_tar(tmp_path / f"train-{shard}.tar", files)

    def starts(seconds=0.03, **options) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for batch in islice(stream(str(tmp_path), columns=["text"], max_seconds=seconds, **options), 16):
            assert set(batch["length"].tolist()) == {480}
            for clip, first in zip(batch["id"].tolist(), batch["first"].tolist(), strict=True):
                found.setdefault(clip, []).append(first)
        return found

    alone = starts(window=4)  # a window is an epoch
    for clip, firsts in alone.items():
        expected = [np.random.default_rng((0, e, clip // 8, clip % 8)).integers(521) for e in range(4)]
        assert firsts == [start or clip for start in expected]
    for rank in (0, 1):
        share = starts(rank=rank, world_size=2, window=4)
        assert share and all(firsts[0] == alone[clip][0] for clip, firsts in share.items())
    assert starts(window=4, seed=1) != alone


def test_which_caption_comes_first_changes(tmp_path):
    files = {}
    for clip in range(4):
        files |= {f"c{clip}.wav": sound(clip), f"c{clip}.json": b'{"caption": ["%d", "%d"]}' % (clip, clip + 100)}
    write_tar(tmp_path / "train.tar", files)
    clip_ids = Counter(flat(ids(stream(str(tmp_path)), 40)))
    assert set(clip_ids) == {0, 1, 2, 3, 100, 101, 102, 103} and min(clip_ids.values()) > 5


# ---- examples that cannot be used


def broken_tars(folder) -> str:
    """10 good clips, 2 of noise bytes, 1 without sound, 2 without caption, 1 whose JSON is broken."""
    files = {}
    for clip in range(10):
        files |= {f"c{clip}.wav": sound(clip), f"c{clip}.json": b'{"caption": "%d"}' % clip}
    files |= {"noise1.wav": b"RIFFnothing", "noise1.json": b'{"caption": "50"}', "noise2.flac": b""}
    files |= {"noise2.json": b'{"caption": "51"}', "silent.json": b'{"caption": "52"}', "mute1.wav": sound(60)}
    files |= {"mute2.wav": sound(61), "mute2.json": b'{"caption": "  "}', "mute3.wav": sound(62), "mute3.json": b"{"}
    write_tar(folder / "train.tar", files)
    return str(folder)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_skipped_is_counted_and_named(num_workers, tmp_path):
    batches = stream(broken_tars(tmp_path), batch_size=5, window=2, num_workers=num_workers)
    assert batches.report["read"] == 0
    assert Counter(flat(ids(batches, 4))) == dict.fromkeys(range(10), 2)  # none in another's place
    report = batches.report
    assert report == {
        "read": 26,  # two windows: an epoch of 16, and the ten good ones that come first in the next
        "skipped_broken": 3,
        "skipped_without_caption": 3,
        "names": ["noise1", "noise2", "silent", "mute1", "mute2", "mute3"],
    }
    state = batches.state_dict()
    ids(batches, 30)
    unbroken = batches.report
    assert len(unbroken["names"]) == 10 and unbroken["read"] > 100
    resumed = stream(broken_tars(tmp_path), batch_size=5, window=2, num_workers=num_workers)
    resumed.load_state_dict(state)
    assert resumed.report == report
    ids(resumed, 30)
    assert resumed.report == unbroken


def test_a_window_of_nothing_is_an_error(tmp_path):
    files = {f"c{clip}.wav": b"no sound" for clip in range(20)} | {"d.wav": sound(0)}
    write_tar(tmp_path / "train.tar", files)
    batches = stream(str(tmp_path), columns=[], captions_by_id={f"c{clip}": "1" for clip in range(20)})
    with pytest.raises(ValueError, match="not one of 8 successive examples .*'skipped_broken': 8"):
        next(iter(batches))
    batches = stream(str(tmp_path), columns=[], captions_by_id={"other": "1"}, num_workers=1)
    with pytest.raises(ValueError, match="not one of 8 successive examples .*'skipped_without_caption': 8"):
        next(iter(batches))


def test_captions_are_joined_by_key(tmp_path):
    for shard, prefix in enumerate(["", "folder/"]):
        clips = range(8 * shard, 8 * shard + 8)
        write_tar(tmp_path / f"train-{shard}.tar", {f"{prefix}Y{clip}.flac.wav": sound(clip) for clip in clips})
    captions = {f"Y{clip}": [str(clip), ""] if clip % 2 else str(clip) for clip in range(12)}
    batches = stream(str(tmp_path), columns=[], captions_by_id=captions, batch_size=3, window=4)
    taken = list(islice(batches, 4))
    assert sorted(flat(batch["id"].tolist() for batch in taken)) == list(range(12))
    assert all(torch.equal(batch["id"], batch["first"]) for batch in taken)
    ids(batches, 4)
    assert batches.report["skipped_without_caption"] >= 4 and batches.report["skipped_broken"] == 0
    assert set(batches.report["names"]) <= {f"folder/Y{clip}" for clip in range(12, 16)}
    parquet = parquets(tmp_path / "parquet", (6, 4))  # there the key is the file's name
    joined = stream(parquet, columns=[], captions_by_id={f"c{clip}": str(clip + 50) for clip in range(10)}, window=5)
    assert set(flat(ids(joined, 10))) == set(range(50, 60))


def test_the_stream_is_not_read_ahead_of_its_window():
    reads = []

    def generate():
        for number in range(1_000_000):
            reads.append(number)
            yield {"audio": {"array": tone(440, 0.01), "sampling_rate": RATE}, "caption": str(number)}

    batches = iter(stream(datasets.IterableDataset.from_generator(generate), batch_size=4, window=3))
    for taken in range(1, 8):
        next(batches)
        assert len(reads) == -(-taken // 3) * 12


# ---- layouts


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus"])
def test_tar_shards_of_every_format(suffix, tmp_path):
    file = io.BytesIO()
    kinds = {"opus": ("OGG", "OPUS"), "mp3": ("MP3", None)}
    kind, subtype = kinds.get(suffix, (suffix.upper(), None))
    soundfile.write(file, tone(440, 0.2), RATE, format=kind, subtype=subtype)
    content = {"caption": "1", "tags": ["a", "b"], "seconds": 0.2, "audio": "x"}
    files = {f"./a/k1.{suffix.upper()}": file.getvalue(), "./a/k1.json": json.dumps(content).encode()}
    files |= {"a/._k2.wav": b"hidden", "a/k2.txt": b"2\n\n3\n", f"a/k2.{suffix}": file.getvalue()}
    write_tar(tmp_path / "train-0.tar", files)
    source = load_stream(str(tmp_path / "*.tar"), "train")
    assert source.column_names == ["__key__", "audio", "caption", "tags", "text"]
    assert caption_columns(source) == ["caption", "text"]
    first, second = source
    assert first["__key__"] == "a/k1" and first["caption"] == ["1"] and first["tags"] == ["a", "b"]
    assert first["text"] is None and second["text"] == ["2", "", "3"] and second["caption"] is None
    assert first["audio"] == {"bytes": file.getvalue(), "path": f"a/k1.{suffix}"}
    batches = stream(source, columns=["caption", "text"], batch_size=2, window=1)
    assert sorted(ids(batches, 1)[0]) in ([1, 2], [1, 3]) and batches.report["skipped_without_caption"] == 0


def test_which_tars_a_split_has(tmp_path, caplog):
    def shards(data, split) -> set[str]:
        return {row["__key__"] for row in load_stream(str(data), split)}

    for name in [
        "named/train-00.tar",
        "named/test-00.tar",
        "named/trainer.tar",
        "inside/train/0.tar",
        "inside/test/1.tar",
    ]:
        write_tar(tmp_path / name, {f"{name.replace('/', '-').split('.')[0]}.wav": sound(1)})
    assert shards(tmp_path / "named", "train") == {"named-train-00"}
    assert shards(tmp_path / "inside", "test") == {"inside-test-1"}
    assert shards(tmp_path / "inside" / "*" / "*.tar", "test") == {"inside-test-1", "inside-train-0"}
    assert shards(f"file://{tmp_path}/**/*.tar", "train") >= {"named-train-00", "inside-test-1"}
    assert shards(tmp_path / "named" / "trainer.tar", "train") == {"named-trainer"}
    assert "taken as" not in caplog.text
    assert len(shards(tmp_path / "inside" / "train", "validation")) == 1  # all there is
    assert "all of its tars are taken as 'validation'" in caplog.text
    with pytest.raises(ValueError, match="no shards named validation, but others, such as test/1.tar; give a glob"):
        load_stream(str(tmp_path / "inside"), "validation")


def test_shards_elsewhere():
    files = {}
    for clip in range(6):
        files |= {f"c{clip}.wav": sound(clip), f"c{clip}.txt": b"%d" % clip}
    fsspec.filesystem("memory").pipe("/far/train-0.tar", tar_of(files))
    assert sorted(flat(ids(stream("memory://far/*.tar", columns=["text"], window=3, batch_size=2), 3))) == list(
        range(6)
    )


def test_faults_of_the_data_are_named(tmp_path):
    with pytest.raises(ValueError, match="name the data set"):
        load_stream("", "train")
    with pytest.raises(ValueError, match=r"no .tar file matches .*none-\*.tar"):
        load_stream(str(tmp_path / "none-*.tar"), "train")
    with pytest.raises(ValueError, match="holds neither parquet files nor .tar shards"):
        load_stream(str(tmp_path), "train")
    write_tar(tmp_path / "text" / "train.tar", {"a.txt": b"A dog"})
    with pytest.raises(ValueError, match="train.tar holds no sound in its first 5 clips"):
        load_stream(str(tmp_path / "text"), "train")
    write_tar(tmp_path / "later" / "a.tar", {"a.wav": sound(1), "a.txt": b"1"})
    write_tar(tmp_path / "later" / "b.tar", {"a.txt": b"A dog"})
    with pytest.raises(ValueError, match="b.tar holds no sound"):
        list(load_stream(str(tmp_path / "later"), "train"))
    write_tar(tmp_path / "twice" / "a.tar", {"1.5.wav": sound(1), "1.6.wav": sound(2)})
    with pytest.raises(ValueError, match="two wav files of key 1; a key ends at its first dot"):
        load_stream(str(tmp_path / "twice"), "train")
    (tmp_path / "cut").mkdir()
    whole = (tmp_path / "later" / "a.tar").read_bytes()
    (tmp_path / "cut" / "a.tar").write_bytes(whole[:600])
    with pytest.raises(ValueError, match="cannot read .*a.tar: .*write this shard again"):
        load_stream(str(tmp_path / "cut"), "train")
    datasets.Dataset.from_dict({"sound": [1]}).to_parquet(tmp_path / "no" / "train.parquet")
    with pytest.raises(ValueError, match="no column 'audio', only sound"):
        load_stream(str(tmp_path / "no"), "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": []}, "name the columns that hold captions, or give captions_by_id"),
        ({"columns": ["words"]}, "no column words; the columns are __key__, audio, caption"),
        ({"captions_by_id": {}}, "captions_by_id is empty"),
        ({"batch_size": 1}, "at least two clips in a batch .* batch_size=1"),
        ({"batch_size": 2, "world_size": 3}, "one for each process.* batch_size=2 for 3 processes"),
        ({"window": 0}, "window=0"),
        ({"num_workers": -1}, "num_workers=-1"),
    ],
)
def test_impossible_streams_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        stream(tars(tmp_path, (3,)), **options)


def test_no_audio_too_few_clips_and_empty_shares_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no column 'audio', only caption"):
        stream(datasets.Dataset.from_dict({"caption": ["1"]}).to_iterable_dataset())
    with pytest.raises(ValueError, match="repeats 3 different clips, 4 make a batch"):
        next(iter(stream(tars(tmp_path, (3,)))))
    with pytest.raises(ValueError, match="1 shards hold no example for reader 3 of 4"):
        next(iter(stream(tars(tmp_path, (3,)), rank=3, world_size=4)))
