"""benchmarks/claims.py: arms are searched, trained under seeds, scored, recorded and continued."""

import importlib
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState

from benchmarks import records
from tests.conftest import RATE, tone

TINY = "--steps 2 --batch_size 4 --projection_dim 16 --arms base siglip --seeds 3".split()


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(str(records.RESULTS.parent))
    return importlib.import_module("claims")


@pytest.fixture
def report(claims):
    return importlib.import_module("claims_report")


@pytest.fixture
def arguments(tmp_path, whisper_folder, clip_folder):
    """Of a run of two arms on tones, one of which is too long."""
    for split in ("train", "validation", "test"):
        (tmp_path / "sounds" / split).mkdir(parents=True)
        lines = ["file_name,label,caption,caption_2"]
        for i in range(9):
            soundfile.write(tmp_path / "sounds" / split / f"{i}.wav", tone(150 + 90 * i, 0.2 + 0.4 * (i == 8)), RATE)
            lines.append(f"{i}.wav,tone {i // 2},tone number {i},a sound {i // 2}")
        (tmp_path / "sounds" / split / "metadata.csv").write_text("\n".join(lines))
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "clip").symlink_to(clip_folder)
    words = [tmp_path / "sounds", "--towers", tmp_path / "towers", "--audio_model", whisper_folder]
    words += ["--work", tmp_path / "work", "--record", tmp_path / "claims.json", "--max_seconds", "0.5"]
    return [*map(str, words), *TINY]


@pytest.fixture
def fresh_state():
    """Other tests train in another precision, and a process keeps that of its first training."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture
def started(claims, fresh_state, monkeypatch):
    """(arm, rate, seed) of each training."""
    calls, trained = [], claims.Bench.trained
    monkeypatch.setattr(claims.Bench, "trained", lambda self, *call: (calls.append(call), trained(self, *call))[1])
    return calls


@pytest.mark.slow
def test_arms_are_searched_scored_recorded_and_continued_from_the_record_alone(
    claims, arguments, started, tmp_path, monkeypatch
):
    claims.main(arguments)
    searched = [call for call in started if call[0] == "base"]
    assert 3 <= len(searched) <= 5 and len({rate for _, rate, _ in searched}) == len(searched)
    record = records.read(tmp_path / "claims.json")
    table = record["values"]["arms"]
    assert [row[0] for row in table["rows"]] == [claims.ARMS[arm].words for arm in ("base", "siglip")]
    ahead = table["rows"][1][table["columns"].index("ahead (over seeds)")]
    assert ahead["range"][0] == ahead["range"][1] == ahead["value"]
    assert "Under one seed so far are SigLIP's loss against InfoNCE (" in record["note"]
    assert "LoRA (0 of 1 seeds)" in record["note"] and "SigLIP's loss (" not in record["note"].split("Not finished")[1]
    assert "on 8 clips of at most 0.5 s and their 12 texts, after 2 steps of 4 clips" in record["note"]

    before = len(started)
    shutil.rmtree(tmp_path / "work")  # as on another machine, with the record alone
    claims.main([*arguments[:-1], "3", "4"])
    assert [(arm, seed) for arm, _, seed in started[before:]] == [("base", 4), ("siglip", 4)]
    grown = records.read(tmp_path / "claims.json")
    assert [row for row in grown["raw"]["runs"] if row["seed"] == 3] == record["raw"]["runs"]
    assert [row[3] for row in grown["values"]["arms"]["rows"]] == [2, 2]

    before = len(started)
    claims.main([*arguments[:-1], "3", "4", "--stop_after", "0"])
    assert len(started) == before and records.read(tmp_path / "claims.json")["values"] == grown["values"]
    with pytest.raises(ValueError, match="finished runs have other settings"):
        claims.main([*arguments, "--steps", "3"])
    changed = claims.ARMS["siglip"].__class__("another", "base", changes={"regime": "lora"})
    monkeypatch.setitem(claims.ALL, "siglip", changed)
    with pytest.raises(ValueError, match="siglip has changed since its runs"):
        claims.main(arguments)


@pytest.mark.slow
def test_options_of_training_are_compared_with_the_same_base(claims, arguments, fresh_state, tmp_path, monkeypatch):
    """Beyond an epoch, so that a bank is embedded again."""
    monkeypatch.setattr(claims, "next_rate", lambda tried, middle: None if tried else middle)
    arms = ["base", *claims.TRAINING]
    claims.main([*arguments, "--training", "--steps", "3", "--arms", *arms])
    record = records.read(tmp_path / "claims.json")
    rows = record["values"]["arms"]["rows"]
    assert [row[0] for row in rows] == [claims.ALL[arm].words for arm in arms] and "Not finished" not in record["note"]
    rates = {row["arm"]: row["differs"]["changes"] for row in record["raw"]["runs"]}
    assert rates["heads"] == {"head_rate": 10.0} and record["title"] == "Options of training at small scale"


def test_a_line_that_was_not_written_whole_counts_for_nothing(claims, tmp_path):
    row = {"arm": "base", "seed": 0, "rate": 1e-3, "validation": 0.5, "differs": {"changes": {}, "stages": [{}]}}
    whole = json.dumps({"settings": {"steps": 2}}) + "\n" + json.dumps(row) + "\n"
    (tmp_path / "results.jsonl").write_text(whole + json.dumps(row | {"rate": 3e-3})[:20])
    runs = claims.Runs(tmp_path / "results.jsonl", None)
    assert runs.searched("base") == {1e-3: 0.5} and runs.common == {"settings": {"steps": 2}}


def test_the_search_goes_on_while_the_best_rate_is_at_an_end(claims):
    def search(scores: dict, middle: float) -> list[float]:
        tried = {}
        while (rate := claims.next_rate(tried, middle)) is not None:
            tried[rate] = scores.get(rate, 0.0)
        return list(tried)

    assert search({3e-4: 0.5}, 3e-4) == [3e-4, 1e-4, 1e-3]
    assert search({1e-3: 0.5, 3e-4: 0.4}, 3e-4) == [3e-4, 1e-4, 1e-3, 3e-3]
    assert search({1e-2: 0.5, 1e-3: 0.4, 3e-3: 0.45}, 3e-4) == [3e-4, 1e-4, 1e-3, 3e-3, 1e-2]
    assert search({1e-5: 0.5, 3e-5: 0.4}, 3e-5) == [3e-5, 1e-5, 1e-4]


def test_hits_are_those_of_both_directions_and_widths_and_are_packed_as_text(report):
    from wavlink.evaluation.embed_split import Embedded
    from wavlink.evaluation.metrics import Correspondence

    audio, text = torch.eye(16), torch.eye(16)
    text[:2, :2] = torch.tensor([[0.6, 0.8], [0.8, 0.6]])  # two are confused, and where the dims are cut all are
    answers = Correspondence([[index] for index in range(16)], 16)
    found = report.hits(Embedded(audio, text, [], [], answers, [], None))
    assert found["text_to_audio"]["R@1"].tolist() == [False] * 2 + [True] * 14
    assert found["audio_to_text"]["R@10"].all() and not found["audio_to_text"]["R@1 small"].any()
    again = report.unpacked(json.loads(json.dumps(report.packed(found))), answers)
    for way, names in found.items():
        assert names.keys() == again[way].keys() and all((names[n] == again[way][n]).all() for n in names)


def test_differences_are_over_clips_and_over_seeds(report):
    answers = report.from_text("0;0 1;2;3")
    assert report.as_text(answers) == "0;0 1;2;3" and answers.shape == (4, 4)

    def hits(texts: str, clips: str) -> dict:
        as_bits = {"text_to_audio": texts, "audio_to_text": clips}
        return {way: {"R@10": np.array([bit == "1" for bit in bits])} for way, bits in as_bits.items()}

    better, worse = (
        {0: hits("1110", "1111"), 1: hits("1111", "1110")},
        {0: hits("1100", "1100"), 1: hits("1000", "1000")},
    )
    gap = report.difference((better, worse | {2: hits("0000", "0000")}), "R@10", answers)
    assert gap["seeds"] == [(0.25 + 0.5) / 2, (0.75 + 0.5) / 2] and gap["value"] == 0.5
    assert gap["interval"][0] < 0.5 < gap["interval"][1]
    assert report.difference((worse, worse), "R@10", answers)["interval"] == [0, 0]


def test_a_verdict_needs_the_interval_and_every_seed(report):
    def verdict(low, high, *seeds):
        return report.verdict({"value": 0.0, "interval": [low, high], "seeds": list(seeds)})

    assert verdict(0.01, 0.05, 0.02, 0.03) == "ahead" and verdict(-0.05, -0.01, -0.02, -0.03) == "behind"
    assert verdict(-0.01, 0.05, 0.02, 0.03) == verdict(0.01, 0.05, 0.07, -0.01) == "not told apart"
    assert verdict(0.01, 0.05, 0.02) == "one seed"
