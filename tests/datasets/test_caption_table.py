"""Captions by key in an Arrow file: a mapping like a dict, made once and opened by all."""

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import huggingface_hub
import numpy as np
import pyarrow
import pytest

from processing.datasets import caption_tables as captions
from processing.datasets.caption_store import CaptionTable, kept_table
from processing.datasets.caption_tables import captions_by_id, find_captions
from processing.datasets.loaders import JoinedCaptions

KEYS = ["b", "é", "a", "c c", "", "z" * 300]
CAPTIONS = [["a bee"], ["é", "an e"], [], ["x"], ["nothing"], ["long"]]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home/wavlink/captions"


def table(keys=KEYS, lists=CAPTIONS, *more) -> pyarrow.Table:
    column = pyarrow.chunked_array([pyarrow.array(lists, pyarrow.large_list(pyarrow.large_string()))])
    kinds = [pyarrow.chunked_array([pyarrow.array(keys, "string")]), *(pyarrow.chunked_array([k]) for k, _ in more)]
    return CaptionTable.of(kinds, [np.arange(len(keys)), *(rows for _, rows in more)], column)


def test_it_is_a_mapping_like_the_dict():
    found = CaptionTable(table())
    assert dict(found) == dict(zip(KEYS, CAPTIONS, strict=True)) and len(found) == 6
    assert found.get("d") is None and found.get("zz") is None and "b" in found and "bb" not in found
    with pytest.raises(KeyError):
        found["aa"]


def test_the_first_kind_of_keys_decides():
    second = pyarrow.array(["b", "second", "a2"])
    found = CaptionTable(table(KEYS, CAPTIONS, (second, np.array([1, 1, 3]))))
    assert found["b"] == ["a bee"] and found["second"] == ["é", "an e"] and found["a2"] == ["x"]


def test_a_table_in_pieces_is_the_same():
    whole = table()
    pieces = pyarrow.concat_tables([whole.slice(0, 2), whole.slice(2)])
    assert dict(CaptionTable(pieces)) == dict(CaptionTable(whole))


@pytest.mark.parametrize("kept", [True, False])
def test_it_is_pickled(kept, tmp_path):
    (tmp_path / "source").touch()
    found = kept_table("x", [tmp_path / "source"], table) if kept else CaptionTable(table())
    content = pickle.dumps(found)
    assert dict(pickle.loads(content)) == dict(found)
    assert not kept or len(content) < 500  # its path alone


def test_it_is_made_once_and_again_when_a_source_changes(tmp_path, home):
    source, made = tmp_path / "source", []

    def make() -> pyarrow.Table:
        made.append(1)
        return table()

    source.write_text("1")
    assert dict(kept_table("x", [source], make)) == dict(kept_table("x", [source], make)) and len(made) == 1
    source.write_text("22")
    kept_table("x", [source], make)
    assert len(made) == 2 and not [path for path in home.iterdir() if path.suffix not in (".arrow", ".lock")]
    next(home.glob("*.arrow")).write_bytes(b"damaged")
    for _ in range(2):
        assert kept_table("x", [source], make)["b"] == ["a bee"]
    os.utime(source, (1, 1))
    kept_table("x", [source], make)
    assert len(made) >= 3


def test_without_a_cache_folder_the_table_is_held_in_memory(tmp_path):
    (tmp_path / "home").write_text("no folder")
    (tmp_path / "source").touch()
    assert kept_table("x", [tmp_path / "source"], table)["b"] == ["a bee"]


def test_what_fails_leaves_nothing_behind(tmp_path, home):
    (tmp_path / "source").touch()

    def fail() -> pyarrow.Table:
        raise ValueError("no such column")

    with pytest.raises(ValueError, match="no such column"):
        kept_table("x", [tmp_path / "source"], fail)
    assert not list(home.glob("*.arrow"))


def _by_id(csv: str, home: str) -> tuple[int, list[str]]:
    """How many files this process reads, and the captions of a clip."""
    captions.hf_hub_download = lambda *names, **options: csv
    huggingface_hub.constants.HF_HOME = home
    read, real = [], captions.read_csv
    captions.read_csv = lambda *given: read.append(1) or real(*given)
    found = find_captions(captions_by_id("auto_acd", "train"), "aaaaaaaaaaa_7")
    return len(read), found


def test_of_several_processes_one_reads_the_captions(tmp_path):
    csv = tmp_path / "train.csv"
    csv.write_text("youtube_id,caption\n" + "".join(f"{'a' * 11}_{n},caption {n}\n" for n in range(9)))
    results = []
    for _ in range(3):  # a process each, all at once
        pool = ProcessPoolExecutor(1, mp_context=get_context("fork"))
        results.append((pool, pool.submit(_by_id, str(csv), str(tmp_path / "home"))))
    found = [future.result(timeout=120) for _, future in results]
    for pool, _ in results:
        pool.shutdown()
    assert [texts for _, texts in found] == [["caption 7"]] * 3 and sum(read for read, _ in found) == 1


def test_joined_captions_are_those_of_all_sets():
    parts = [CaptionTable(table(["aaaaaaaaaaa"], [[text]])) for text in ("one", "two")]
    joined = JoinedCaptions(parts)
    assert joined.get("aaaaaaaaaaa") == ["one", "two"] and joined.get("bbbbbbbbbbb") is None
    assert pickle.loads(pickle.dumps(joined)).get("aaaaaaaaaaa") == ["one", "two"]
