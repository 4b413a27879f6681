"""What a recipe learns from: data sets, mixtures and streams, through the one loop."""

import dataclasses
import io
import json
import tarfile
from collections import Counter

import pytest
import soundfile
import torch
from safetensors.torch import load_file

import train
from processing.datasets import caption_tables as captions
from processing.datasets import loaders as feeds
from processing.datasets.loaders import Epochs, Stream
from tests.conftest import RATE, tone
from tests.tone_runs import folder  # noqa: F401
from wavlink.training.recipes import Recipe

AUTO_ACD = ["aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc", "ddddddddddd"]
AUDIOSETCAPS = ["ccccccccccc", "ddddddddddd"]


def wav(number: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(200 + 50 * number, 0.2 + 0.01 * number, number), RATE, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three tars of eight captioned clips each."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with tarfile.open(root / f"train-{shard}.tar", "w") as tar:
            for number in range(8 * shard, 8 * shard + 8):
                caption = json.dumps({"caption": f"tone {number}"}).encode()
                for name, content in ((f"c{number}.wav", wav(number)), (f"c{number}.json", caption)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root


@pytest.fixture
def paper_sets(tmp_path, monkeypatch):
    """Auto-ACD and AudioSetCaps of a few rows, in place of the Hub's, and one folder of their sounds."""
    texts = {"auto_acd": ("youtube_id", AUTO_ACD), "audiosetcaps": ("id", AUDIOSETCAPS)}

    def download(repository, name, **_):
        source = "auto_acd" if "Auto-ACD" in repository else "audiosetcaps"
        column, ids = texts[source]
        path = tmp_path / f"{source}-{name.replace('/', '-')}"
        empty = source == "audiosetcaps" and not name.endswith("/AudioSetCaps_caption.csv")
        lines = [f"{column},caption", *([] if empty else [f"{x},{source} of {x}" for x in ids])]
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    monkeypatch.setattr(captions, "hf_hub_download", download)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number, name in enumerate(AUTO_ACD):
        (sounds / f"{name}.wav").write_bytes(wav(number))
    return sounds


def small(**changes) -> Recipe:
    return dataclasses.replace(Recipe("small", init="anything", batch_size=2, data="", epochs=1), **changes)


def test_a_mixture_repeats_clips_by_the_weight_of_their_source(paper_sets):
    for weight, times in ((1, 1), (2, 2)):
        mixed = small(mixture={"auto_acd": 1, "audiosetcaps": weight}, audio_folder=str(paper_sets))
        counts = Counter((row["source"], *row["captions"]) for row in Epochs(mixed, 0, 1).data.dataset)
        assert {count for (source, _), count in counts.items() if source == "auto_acd"} == {1}
        assert {count for (source, _), count in counts.items() if source == "audiosetcaps"} == {times}
        assert len(counts) == len(AUTO_ACD) + len(AUDIOSETCAPS)


def test_a_source_has_its_own_folder_of_sounds_where_there_is_one(paper_sets, monkeypatch):
    asked = []
    monkeypatch.setattr(feeds, "load_split", lambda *place: asked.append(place))
    (paper_sets / "clotho").mkdir()
    for source in ("auto_acd", "clotho", "audiocaps", "some/folder"):
        feeds.load_source(small(audio_folder=str(paper_sets)), source, "train")
    sounds = str(paper_sets)
    assert [place[2] for place in asked] == [sounds, f"{sounds}/clotho", "", ""]


@pytest.mark.parametrize("kind", ["epochs", "stream"])
def test_first_sounds_are_the_same_in_every_process(kind, folder, shards, processor):  # noqa: F811
    if kind == "epochs":
        found = [Epochs(Recipe("mine", data=str(folder), init="any"), *share) for share in ((0, 1), (1, 2))]
    else:
        streamed = {"data": f"{shards}/*.tar", "streaming": True, "max_steps": 3, "init": "any", "batch_size": 4}
        found = [Stream(Recipe("mine", **streamed), *share) for share in ((0, 1), (1, 2))]
    sounds = [feed.first_sounds(processor, count=6) for feed in found]
    for batch in sounds:
        assert set(batch) == {"input_features", "input_features_mask"} and len(batch["input_features"]) == 6
        assert torch.equal(batch["input_features"], sounds[0]["input_features"])
    whole = next(iter(found[0].batches(processor, 0)))  # and training goes on as if it had not been asked
    untouched = Stream(Recipe("mine", **streamed), 0, 1) if kind == "stream" else None
    if untouched:
        assert torch.equal(next(iter(untouched.batches(processor, 0)))["input_features"], whole["input_features"])


def test_rows_without_a_caption_are_left_out(folder, tmp_path):  # noqa: F811
    lines = (folder / "train/metadata.csv").read_text().splitlines()
    bare = [line.rsplit(",", 1)[0] + "," for line in lines[1:4]]
    (tmp_path / "metadata.csv").write_text("\n".join([lines[0], *bare, *lines[4:]]))
    for path in (folder / "train").glob("*.wav"):
        (tmp_path / path.name).symlink_to(path)
    given = [
        "--data",
        str(tmp_path),
        "--caption_columns",
        "caption_2",
        "--label_prompt",
        "",
        "--mixed_precision",
        "no",
    ]
    given += ["--mixed_precision", "no", "--output_dir", str(tmp_path / "run")]
    run = train.Run(train.parse_recipe(["quickstart", *given]))
    assert len(run.feed.data) == len(run.validation_set) == 11


def options(shards, folder, output, *more):  # noqa: F811
    given = ["--streaming", "true", "--data", str(shards), "--validation_data", str(folder), "--label_prompt", ""]
    given += ["--batch_size", "4", "--max_steps", "9", "--save_steps", "3", "--mixed_precision", "no"]
    return train.parse_recipe(["quickstart", *given, "--num_workers", "0", "--output_dir", str(output), *more])


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_streamed_run_resumes_to_the_same_weights_and_metrics(
    shards,
    folder,  # noqa: F811
    wavlink_folder,
    tmp_path,
    monkeypatch,
    workers,
):
    more = ["--init", str(wavlink_folder), "--num_workers", workers]
    whole = train.train(options(shards, folder, tmp_path / "whole", *more))
    learn = train.Run.learn

    def die(self, *arguments):
        if self.step == 5:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(options(shards, folder, tmp_path / "killed", *more))
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = train.train(options(shards, folder, tmp_path / "killed", *more))
    expected, got = (load_file(run / "last/model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()
    assert (whole / "metrics.jsonl").read_text().count("validation") == 3  # at every save_steps


def test_streamed_sounds_find_the_captions_of_all_their_sets(paper_sets, processor, tmp_path):
    with tarfile.open(tmp_path / "sounds.tar", "w") as tar:
        for path in sorted(paper_sets.iterdir()):
            tar.add(path, path.name)
    mixed = {"auto_acd": 1.0, "audiosetcaps": 1.0}
    changes = {"streaming": True, "max_steps": 1, "batch_size": 4, "num_workers": 0, "all_captions": True}
    feed = Stream(small(mixture=mixed, audio_folder=str(tmp_path / "sounds.tar"), **changes), 0, 1)
    batch = next(iter(feed.batches(processor, 0)))
    assert sorted(Counter(batch["text_owner"].tolist()).values()) == [1, 1, 2, 2]  # two clips are in both sets
    with pytest.raises(ValueError, match="each of weight 1"):
        Stream(small(mixture={"auto_acd": 2.0}, audio_folder=str(paper_sets), **changes), 0, 1)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--max_steps", "0"], "a stream has no length: give --max_steps"),
        (["--label_prompt", "a {}"], "label_prompt needs a data set held whole"),
        ([], "a text tower from scratch needs the words .*--text_model"),
    ],
)
def test_streams_that_cannot_work_are_refused(shards, folder, tmp_path, more, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        train.train(options(shards, folder, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_one_clip_or_none_is_refused(folder, tmp_path):  # noqa: F811
    lines = (folder / "train/metadata.csv").read_text().splitlines()
    (tmp_path / "metadata.csv").write_text("\n".join(lines[:2]))
    (tmp_path / "0.wav").symlink_to(folder / "train/0.wav")
    with pytest.raises(ValueError, match="needs at least two clips in a batch, .*a data set of 1"):
        Epochs(small(data=str(tmp_path)), 0, 1)
    (tmp_path / "metadata.csv").write_text(lines[0])
    with pytest.raises(ValueError, match="has no rows for train"):
        Epochs(small(data=str(tmp_path)), 0, 1)
