"""What a folder is does not depend on parquet files that lie somewhere in it."""

import json

import datasets
import pandas
import pytest
import soundfile

from processing.datasets.folder_form import holds_parquet
from processing.datasets.load import load_split
from processing.datasets.shards import load_stream
from tests.conftest import RATE, tone
from tests.tar_streams import sound, write_tar
from wavlink.search.listing import list_sounds

STRAY = ["index/embeddings/part-000000.parquet", "x.parquet", "data/y.parquet", ".cache/train.parquet"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def stray(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame({"path": ["train/0.wav"], "start": [0.0]}).to_parquet(path)


def hub_copy(folder, split="train") -> None:
    rows = [{"audio": {"bytes": sound(n), "path": f"{n}.wav"}, "caption": f"row {n}"} for n in range(2)]
    dataset = datasets.Dataset.from_list(rows)
    dataset = dataset.cast(datasets.Features({**dataset.features, "audio": datasets.Audio(decode=False)}))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")


@pytest.fixture(params=["metadata", "metadata of all", "classes", "classes without splits"])
def audiofolder(request, tmp_path):
    root = tmp_path / "sounds"
    names = {"classes": ["train/dog/0.wav", "train/cat/1.wav"], "classes without splits": ["dog/0.wav", "cat/1.wav"]}
    for name in names.get(request.param, ["train/0.wav", "train/1.wav"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone(440, 0.1), RATE)
    if request.param == "metadata":
        (root / "train/metadata.csv").write_text("file_name,label\n0.wav,dog\n1.wav,cat\n")
    if request.param == "metadata of all":
        (root / "metadata.csv").write_text("file_name,label\ntrain/0.wav,dog\ntrain/1.wav,cat\n")
    return root


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_parquet_changes_nothing(audiofolder, name):
    before = load_split(str(audiofolder), "train")
    stray(audiofolder / name)
    after = load_split(str(audiofolder), "train")
    assert after["audio"] == before["audio"] and sorted(after["label"]) == ["cat", "dog"]
    assert len(list_sounds([str(audiofolder)]).sounds) == 2


def test_metadata_goes_before_the_parquet_of_a_hub_copy(audiofolder):
    hub_copy(audiofolder)
    first = load_split(str(audiofolder), "train")[0]
    metadata = any(audiofolder.rglob("metadata.csv")) or (audiofolder / "train").is_dir()
    assert ("label" in first) == metadata  # without, `data/train-*.parquet` says what the folder is


def test_a_hub_copy_with_an_index_and_sample_sounds_stays_one(tmp_path):
    folder = tmp_path / "copy"
    hub_copy(folder)
    stray(folder / "index/embeddings/part-000000.parquet")
    (folder / "index/index.json").write_text(json.dumps({}))
    (folder / "examples").mkdir()
    soundfile.write(folder / "examples/0.wav", tone(440, 0.1), RATE)
    assert holds_parquet(folder, "train")
    assert list(load_split(str(folder), "train")["caption"]) == ["row 0", "row 1"]
    assert [row["caption"] for row in load_stream(str(folder), "train")] == ["row 0", "row 1"]


def test_tars_beside_an_index_stay_shards(tmp_path):
    write_tar(tmp_path / "shards/train-0.tar", {"a.wav": sound(1), "a.txt": b"one"})
    stray(tmp_path / "shards/index/windows/0000.parquet")
    stray(tmp_path / "shards/cache.parquet")
    write_tar(tmp_path / "shards/.hidden/train-1.tar", {"b.wav": sound(1), "b.txt": b"two"})
    assert [row["text"] for row in load_stream(str(tmp_path / "shards"), "train")] == [["one"]]


def test_clothos_tables_go_before_a_stray_parquet(tmp_path):
    from processing.datasets.paper import load_paper_data

    folder = tmp_path / "clotho"
    (folder / "evaluation").mkdir(parents=True)
    soundfile.write(folder / "evaluation/0.wav", tone(440, 0.1), RATE)
    header = ",".join(["file_name", *(f"caption_{n}" for n in range(1, 6))])
    (folder / "clotho_captions_evaluation.csv").write_text(f"{header}\n0.wav,a,b,c,d,e\n")
    stray(folder / "x.parquet")
    dataset, _ = load_paper_data("clotho", "test", str(folder))
    assert dataset[0]["captions"] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    "audio", [3, [0.1, 0.2], {"array": [0.1], "sampling_rate": 16000}], ids=lambda x: str(type(x))
)
def test_a_parquet_whose_audio_is_no_sound_is_refused(audio, tmp_path):
    datasets.Dataset.from_list([{"audio": audio, "caption": "a dog"}]).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match="'audio' that holds no sounds"):
        load_split(str(tmp_path), "train")


def test_parquet_files_of_different_columns_are_refused(tmp_path):
    for number, column in enumerate(["caption", "words"]):
        rows = [{"audio": {"bytes": b"", "path": "a"}, column: "a dog"}]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"train-{number}.parquet")
    with pytest.raises(ValueError, match="cannot be read as a data set"):
        load_split(str(tmp_path), "train")
