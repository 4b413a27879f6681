"""A clip that cannot be read is left out or replaced, counted and named, in every form of data."""

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import TrainingArguments
from transformers.utils import logging

import train
from modeling_wavlink import WavLinkModel
from processing.collator import AudioTextCollator, CaptionedAudio, UnreadableClip
from processing.datasets import loaders as feeds
from processing.datasets.durations import header_seconds
from processing.datasets.load import load_split
from processing.datasets.loaders import Epochs, Stream
from processing.sampling import BatchPlan
from tests.conftest import RATE, tone
from tests.tar_streams import sound, tar_of
from wavlink.training.recipes import Recipe
from wavlink.training.trainer import WavLinkTrainer

CLIPS = 12


@pytest.fixture
def logged(caplog):
    """What the package's loggers say, which do not propagate."""
    logging.get_logger().addHandler(caplog.handler)
    yield caplog
    logging.get_logger().removeHandler(caplog.handler)


def no_sound(path) -> None:
    path.write_text("not a sound")


def cut(path) -> None:
    """A header that promises a second, and samples that are NaN: only decoding tells."""
    soundfile.write(path, np.full(RATE // 4, np.nan), RATE, subtype="FLOAT")


def audiofolder(root, clips: int = CLIPS, durations=False):
    (root / "train").mkdir(parents=True)
    lines = ["file_name,duration,caption" if durations else "file_name,caption"]
    for number in range(clips):
        soundfile.write(root / f"train/{number}.wav", tone(200 * (number + 1), 0.1 + 0.01 * number, number), RATE)
        lines.append(f"{number}.wav,{'0.1,' if durations else ''}sound {number}")
    (root / "train/metadata.csv").write_text("\n".join(lines))
    return root


def epochs(root, *share, **options) -> Epochs:
    options = {"batch_size": 4, "num_workers": 0, "max_steps": 7, "init": "any"} | options
    return Epochs(Recipe("mine", data=str(root), **options), *(share or (0, 1)))


def equal(batches, others) -> bool:
    pairs = list(zip(batches, others, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clip_whose_header_cannot_be_read_is_left_out_before_the_first_step(tmp_path, processor, logged, workers):
    root = audiofolder(tmp_path)
    no_sound(root / "train/5.wav")
    (root / "train/6.wav").write_bytes(b"")
    feed = epochs(root, num_workers=workers)
    assert len(feed.data) == CLIPS - 2
    assert "2 of 12 clips cannot be read as sound: " in logged.text and "train/5.wav" in logged.text
    assert all(len(batch["input_features"]) == 4 for batch in feed.batches(processor, 0))
    logged.clear()
    epochs(root, 1, 2)
    assert "cannot be read" not in logged.text  # the first process has logged it


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("breaking", [no_sound, cut])
def test_a_clip_that_breaks_later_is_replaced_counted_and_named(tmp_path, processor, breaking, workers, logged):
    root = audiofolder(tmp_path, durations=True)  # headers are not opened where durations are known
    breaking(root / "train/5.wav")
    feed = epochs(root, num_workers=workers)
    assert len(feed.data) == CLIPS
    batches = list(feed.batches(processor, 0))
    assert [len(batch["input_features"]) for batch in batches] == [4] * 9
    assert feed.report == {"read": 36, "skipped_broken": 1, "names": [str(root / "train/5.wav")]}
    if not workers:
        assert logged.text.count("train/5.wav cannot be read and is replaced by another clip (1 so far)") == 1


def test_batches_with_a_replaced_clip_are_the_same_after_a_resume(tmp_path, processor):
    root = audiofolder(tmp_path, durations=True)
    for number in (2, 5, 7):
        cut(root / f"train/{number}.wav")
    full = list(epochs(root).batches(processor, 0))
    for step in range(9):
        assert equal(list(epochs(root).batches(processor, step)), full[step:])
    assert equal(list(epochs(root, num_workers=2).batches(processor, 0)), full)


def test_processes_keep_equal_shares_of_different_clips(tmp_path, processor):
    root = audiofolder(tmp_path, durations=True)
    for number in (2, 5):
        cut(root / f"train/{number}.wav")
    whole = list(epochs(root).batches(processor, 0))
    halves = [list(epochs(root, rank, 2).batches(processor, 0)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        ids = [part["caption_ids"][:, 0].tolist() for part in parts]
        assert [len(part) for part in ids] == [2, 2] and len({*ids[0], *ids[1]}) == 4
        assert {*ids[0], *ids[1]} == set(batch["caption_ids"][:, 0].tolist())


@pytest.mark.parametrize("clips", [8, 9, 12, 33])
def test_substitutes_are_not_in_the_batch_and_differ(clips):
    plan = BatchPlan(np.ones(clips), 4, 3, seed=1)
    for epoch in range(3):
        batches = [batch.tolist() for batch in plan.epoch(epoch)]
        for batch in batches:
            substitutes = [[index for _, index in plan.substitutes(epoch, clip)] for clip in batch]
            assert all(len(found) >= len(batches) - 1 and not set(found) & set(batch) for found in substitutes)
            together = [index for found in substitutes for index in found]
            assert len(set(together)) == len(together)
    left = set(range(clips)) - {index for batch in batches for index in batch}
    assert left <= {index for clip in batches[0] for _, index in plan.substitutes(2, clip)} or len(left) > 4


def test_data_of_one_batch_without_a_substitute_is_refused_with_the_clips_name(tmp_path, processor):
    root = audiofolder(tmp_path, 4, durations=True)
    cut(root / "train/2.wav")
    with pytest.raises(ValueError, match="no other clip can take the place .*train/2.wav .*repair or remove"):
        list(epochs(root).batches(processor, 0))


def test_where_most_cannot_be_read_the_run_is_refused(tmp_path):
    root = audiofolder(tmp_path)
    for number in range(7):
        no_sound(root / f"train/{number}.wav")
    with pytest.raises(ValueError, match="7 of 12 clips cannot be read as sound: .*0.wav.*repair them, or leave"):
        epochs(root)


def test_a_disk_that_goes_away_ends_the_run(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(feeds, "MOST_UNREADABLE", 5)
    root = audiofolder(tmp_path, durations=True)
    feed = epochs(root, max_steps=40)
    batches = feed.batches(processor, 0)
    next(batches)
    for path in (root / "train").glob("*.wav"):
        path.unlink()
    with pytest.raises(ValueError, match="no other clip can take the place of one that cannot be read"):
        list(batches)


def test_the_token_starts_from_clips_that_can_be_read(tmp_path, processor, monkeypatch):
    root = audiofolder(tmp_path, durations=True)
    for number in range(5):
        cut(root / f"train/{number}.wav")
    assert len(epochs(root).first_sounds(processor, count=64)["input_features"]) == CLIPS - 5
    assert len(epochs(root).first_sounds(processor, count=3)["input_features"]) == 3
    for number in range(CLIPS):
        cut(root / f"train/{number}.wav")
    with pytest.raises(ValueError, match="not one of 12 clips can be read"):
        epochs(root).first_sounds(processor)
    monkeypatch.setattr(feeds, "MOST_UNREADABLE", 6)
    with pytest.raises(ValueError, match="6 of the first clips cannot be read"):
        epochs(root).first_sounds(processor)


# ---- forms of data


def contents(broken: bytes) -> list[bytes | None]:
    return [broken if number == 3 else sound(number, 1600) for number in range(CLIPS)]


BROKEN = {"no sound": b"not a sound", "empty": b"", "cut": sound(1)[:20]}


@pytest.mark.parametrize("broken", [*BROKEN.values(), None], ids=[*BROKEN, "null"])
def test_a_copy_of_a_hub_repository(tmp_path, processor, monkeypatch, broken, logged):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"audio": {"bytes": content, "path": f"{number}.wav" if content else None}, "caption": f"sound {number}"}
        for number, content in enumerate(contents(broken))
    ]
    dataset = datasets.Dataset.from_list(rows)
    dataset = dataset.cast(datasets.Features({**dataset.features, "audio": datasets.Audio(decode=False)}))
    (tmp_path / "copy/data").mkdir(parents=True)
    dataset.to_parquet(tmp_path / "copy/data/train-00000-of-00001.parquet")
    feed = epochs(tmp_path / "copy")
    assert len(feed.data) == CLIPS - 1 and "1 of 12 clips cannot be read as sound" in logged.text
    assert len(list(feed.batches(processor, 0))) == 8
    streamed = Recipe("m", data=str(tmp_path / "copy"), streaming=True, max_steps=4, batch_size=4, init="any")
    stream = Stream(streamed, 0, 1)
    next(iter(stream.batches(processor, 0)))
    assert stream.stream.report["skipped_broken"] >= 1


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_tar_shards(tmp_path, processor, broken):
    files = {}
    for number, content in enumerate(contents(broken)):
        files |= {f"c{number}.wav": content, f"c{number}.txt": b"sound %d" % number}
    (tmp_path / "train.tar").write_bytes(tar_of(files))
    recipe = Recipe("m", data=str(tmp_path), streaming=True, max_steps=4, batch_size=4, num_workers=0, init="any")
    stream = Stream(recipe, 0, 1)
    assert len(stream.first_sounds(processor, 8)["input_features"]) == 8
    next(iter(stream.batches(processor, 0)))
    assert stream.stream.report["skipped_broken"] >= 1 and "c3" in stream.stream.report["names"]


def test_a_mixture(tmp_path, processor):
    parts = [audiofolder(tmp_path / name) for name in "ab"]
    no_sound(parts[0] / "train/1.wav")
    cut(parts[1] / "train/2.wav")
    feed = epochs("", mixture={str(part): 1.0 for part in parts})
    assert len(feed.data) == 2 * CLIPS - 1
    assert all(len(batch["input_features"]) == 4 for batch in feed.batches(processor, 0))
    assert feed.report["skipped_broken"] == 1


def test_a_folder_a_class(tmp_path, logged):
    for label in ("dog", "cat"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(4):
            soundfile.write(tmp_path / f"train/{label}/{number}.wav", tone(440, 0.1, number), RATE)
    no_sound(tmp_path / "train/dog/0.wav")
    dataset, seconds = feeds.readable(load_split(str(tmp_path), "train"))
    assert len(dataset) == len(seconds) == 7 and "train/dog/0.wav" in logged.text


def test_a_folder_of_files_of_no_known_length_keeps_them(tmp_path):
    soundfile.write(tmp_path / "flac.flac", tone(440, 0.5), RATE)
    content = bytearray((tmp_path / "flac.flac").read_bytes())
    content[21] &= 0xF0  # the number of samples of a FLAC that is written as a stream: 0, not known
    content[22:26] = bytes(4)
    (tmp_path / "flac.flac").write_bytes(content)
    (tmp_path / "empty.wav").write_bytes(sound(1)[:44])
    audio = [{"bytes": None, "path": str(tmp_path / name)} for name in ("flac.flac", "empty.wav", "gone.wav")]
    dataset = datasets.Dataset.from_dict({"audio": audio}).cast_column("audio", datasets.Audio(decode=False))
    assert header_seconds(dataset)[0] == pytest.approx(0.5) and np.isnan(header_seconds(dataset)[1:]).all()


def test_a_duration_that_is_no_number_is_refused():
    dataset = datasets.Dataset.from_dict({"audio": ["x.wav"], "duration": ["long"]})
    with pytest.raises(ValueError, match="column 'duration' holds 'long', which is no number of seconds"):
        header_seconds(dataset)


# ---- DataLoader and Trainer


def test_one_clip_alone_is_an_error_and_a_batch_leaves_it_out(tmp_path):
    root = audiofolder(tmp_path, 4)
    no_sound(root / "train/1.wav")
    data = CaptionedAudio(load_split(str(root), "train"), ["caption"])
    with pytest.raises(UnreadableClip, match="cannot read .*train/1.wav as sound"):
        data[1]
    rows = [row["captions"][0] for batch in torch.utils.data.DataLoader(data, 2, collate_fn=list) for row in batch]
    assert rows == ["sound 0", "sound 2", "sound 3"] and list(data.unreadable) == [str(root / "train/1.wav")]
    with pytest.raises(ValueError, match="none of the 1 clips of a batch can be read: .*train/1.wav"):
        data.__getitems__([1])


def test_a_clip_over_the_limit_is_no_broken_clip(tmp_path):
    root = audiofolder(tmp_path, 4)
    with pytest.raises(ValueError, match="lasts 0.10 s, the limit is 0.05 s"):
        CaptionedAudio(load_split(str(root), "train"), ["caption"], max_seconds=0.05).__getitems__([0])


def test_the_collator_leaves_out_what_cannot_be_read(tmp_path, processor, logged):
    root = audiofolder(tmp_path, 4)
    no_sound(root / "train/1.wav")
    rows = list(load_split(str(root), "train"))
    collator = AudioTextCollator(processor, ["caption"], all_captions=True)
    batch = collator(rows)
    assert len(batch["input_features"]) == len(batch["input_ids"]) == len(batch["caption_ids"]) == 3
    assert batch["text_owner"].tolist() == [0, 1, 2] and list(collator.unreadable) == [str(root / "train/1.wav")]
    assert "train/1.wav cannot be read and is left out (1 so far)" in logged.text
    with pytest.raises(ValueError, match="none of the 1 clips of a batch can be read, such as .*1.wav"):
        collator(rows[1:2])
    with pytest.raises(ValueError, match="divide 16-bit samples"):  # a mistake of all rows, not of one file
        collator([{"audio": {"array": np.zeros(9, np.int16), "sampling_rate": RATE}, "caption": "x"}, rows[0]])


@pytest.mark.parametrize("captioned", [True, False])
def test_trainer_goes_on_past_a_broken_clip(wavlink_folder, processor, tmp_path, captioned):
    root = audiofolder(tmp_path / "data", 8)
    no_sound(root / "train/1.wav")
    rows = load_split(str(root), "train")
    data = CaptionedAudio(rows, ["caption"], shuffle=True) if captioned else rows
    args = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    collator = AudioTextCollator(processor, ["captions"] if captioned else ["caption"])
    sizes = []

    class Counting(WavLinkTrainer):
        def training_step(self, model, inputs, *more):
            sizes.append(len(inputs["input_features"]))
            return super().training_step(model, inputs, *more)

    trainer = Counting(WavLinkModel.from_pretrained(wavlink_folder), args, collator, data)
    trainer.train()
    assert sizes == [4] * 4 if captioned else sorted(sizes) == [3, 3, 4, 4]


@pytest.mark.slow
def test_a_killed_run_with_a_broken_clip_resumes_to_the_same_weights(tmp_path, wavlink_folder, monkeypatch):
    root = audiofolder(tmp_path / "data", durations=True)
    (root / "validation").symlink_to(root / "train")
    cut(root / "train/5.wav")
    given = ["--data", str(root), "--init", str(wavlink_folder), "--label_prompt", "", "--batch_size", "4"]
    given += ["--max_steps", "6", "--save_steps", "2", "--num_workers", "0", "--mixed_precision", "no"]

    def run(name: str):
        return train.train(train.parse_recipe(["quickstart", *given, "--output_dir", str(tmp_path / name)]))

    whole, learn = run("whole"), train.Run.learn

    def die(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = run("killed")
    assert (whole / "last/model.safetensors").read_bytes() == (resumed / "last/model.safetensors").read_bytes()
    assert '"count": 1' in (whole / "metrics.jsonl").read_text()  # of the validation's clips that are not scored
