"""Calibration: the fit against known logistics, its scores against plain sums, and the command that stores it."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from modeling_wavlink import WavLinkModel
from tests.conftest import RATE, tone
from wavlink import bundled_models, cli
from wavlink.evaluation import calibrate
from wavlink.evaluation import calibration as fitting
from wavlink.evaluation.calibration import fit_calibration
from wavlink.evaluation.calibration_scores import BINS, calibration_scores
from wavlink.evaluation.embed_split import embed_dataset
from wavlink.evaluation.metrics import Correspondence
from wavlink.loading import random_control
from wavlink.probability import Logistic


def cosine_pairs(cosines: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips and texts `[n, n + 1]` whose cosines are a matrix `[clips, texts]` with entries of up to 0.1."""
    n = len(cosines)
    texts = np.eye(n + 1)[:n]
    clips = np.concatenate([cosines, np.sqrt(1 - (cosines**2).sum(1, keepdims=True))], axis=1)
    return torch.from_numpy(clips).float(), torch.from_numpy(texts).float()


@pytest.fixture(scope="module")
def noisy():
    """Two independent collections of 300 clips with two texts each."""
    rng = np.random.default_rng(0)

    def collection():
        base = rng.normal(size=(300, 16))
        audio, text = base + rng.normal(size=(300, 16)), np.repeat(base, 2, 0) + rng.normal(size=(600, 16))
        return torch.from_numpy(audio).float(), torch.from_numpy(text).float()

    return collection(), collection(), Correspondence([[2 * n, 2 * n + 1] for n in range(300)], 600)


def test_the_fit_finds_the_logistic_that_made_the_pairs():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-0.03, 0.03, (400, 400))
    matches = rng.random(cosines.shape) < Logistic(100.0, -1.0).probability(cosines)
    pairs = Correspondence([np.flatnonzero(row) for row in matches], 400)
    fit = fit_calibration(*cosine_pairs(cosines), pairs, [401], prior=float(matches.mean()))
    assert fit["dims"]["401"]["slope"] == pytest.approx(100, rel=0.03)
    assert fit["dims"]["401"]["intercept"] == pytest.approx(-1, abs=0.03)
    assert fit["pairs"] == cosines.size


def test_at_another_prior_the_fit_is_shifted_by_the_log_odds():
    """Of a logistic that is true, weighting the pairs to a prior changes the intercept alone."""
    rng = np.random.default_rng(1)
    cosines = rng.uniform(-0.03, 0.03, (400, 400))
    matches = rng.random(cosines.shape) < Logistic(100.0, -1.0).probability(cosines)
    pairs = Correspondence([np.flatnonzero(row) for row in matches], 400)
    half, few = (fit_calibration(*cosine_pairs(cosines), pairs, [401], prior=p)["dims"]["401"] for p in (0.5, 0.01))
    shifted = Logistic(half["slope"], half["intercept"], 0.5).at_prior(0.01)
    assert few["intercept"] == pytest.approx(shifted.intercept, abs=0.05)
    assert few["slope"] == pytest.approx(shifted.slope, rel=0.05)
    assert shifted.intercept == pytest.approx(half["intercept"] + np.log(0.01 / 0.99))


def test_targets_are_platts_where_the_pairs_do_not_overlap():
    """One match at cosine 1 and three others at 0: the fit goes through 2/3 and 1/5, the targets, at any prior."""
    audio = text = torch.eye(2)
    audio, text = audio[[0, 1, 1]], text[[0]]
    fit = fit_calibration(audio[[0, 1, 2, 2]], text, Correspondence([[0], [], [], []], 1), [2], prior=0.3)["dims"]["2"]
    logistic = Logistic(fit["slope"], fit["intercept"])
    assert logistic.probability([1.0, 0.0]) == pytest.approx([2 / 3, 1 / 5], abs=1e-5)


def test_every_nested_dim_has_its_fit_in_any_order_of_pairs(noisy):
    (audio, text), _, pairs = noisy
    fit = fit_calibration(audio, text, pairs, [4, 16, 8], data="x")
    assert list(fit["dims"]) == ["16", "8", "4"] and fit["prior"] == 0.01 and fit["data"] == "x"
    assert fit["dims"]["16"]["slope"] > fit["dims"]["4"]["slope"] > 0
    order = np.random.default_rng(0).permutation(300)
    reordered = fit_calibration(audio[order], text, pairs.select(order), [4, 16, 8], data="x")
    for dim, row in fit["dims"].items():
        assert reordered["dims"][dim] == pytest.approx(row, abs=2e-6)


def test_in_blocks_and_with_thinned_texts(noisy, monkeypatch):
    (audio, text), _, pairs = noisy
    whole = fit_calibration(audio, text, pairs, [16])
    scores = calibration_scores(audio, text, pairs, [16], whole)
    monkeypatch.setattr(fitting, "_BLOCK", 700)
    assert fit_calibration(audio, text, pairs, [16]) == whole
    assert calibration_scores(audio, text, pairs, [16], whole)["16"]["auroc"] == scores["16"]["auroc"]
    monkeypatch.setattr(fitting, "_PAIRS", 300 * 100)
    thinned = fit_calibration(audio, text, pairs, [16])
    assert thinned["pairs"] == 300 * 100
    every_sixth = [[n // 6 for n in row if n % 6 == 0] for row in ([2 * n, 2 * n + 1] for n in range(300))]
    assert thinned == fit_calibration(audio, text[::6], Correspondence(every_sixth, 100), [16])


@pytest.mark.parametrize(
    ("sign", "answers", "prior", "why"),
    [
        (-1, [[0], [1], [2]], 0.01, "no higher than those of others"),
        (1, [[], [], []], 0.01, "needs clips with texts"),
        (1, [[0, 1, 2]] * 3, 0.01, "texts that do not match all"),
        (1, [[0], [1], [2]], 0.0, "prior must be above 0 and below 1"),
        (1, [[0], [1], [2]], float("nan"), "prior must be a probability"),
        (1, [[0], [1], [2]], True, "prior must be a probability"),
    ],
)
def test_pairs_that_cannot_be_calibrated_are_refused(sign, answers, prior, why):
    with pytest.raises(ValueError, match=why):
        fit_calibration(sign * torch.eye(3), torch.eye(3), Correspondence(answers, 3), [3], prior)


def test_scores_are_those_of_plain_sums(noisy):
    (audio, text), (other_audio, other_text), pairs = noisy
    fit = fit_calibration(audio, text, pairs, [16])
    scores = calibration_scores(other_audio, other_text, pairs, [16, 8], fit)
    assert list(scores) == ["calibration", "texts", "labels", "prior", "data", "16"]  # no fit at 8
    assert (scores["calibration"], scores["texts"], scores["prior"]) == ("model", 600, 0.01)
    a, t = (torch.nn.functional.normalize(x, dim=-1).double().numpy() for x in (other_audio, other_text))
    cosines, own = t @ a.T, np.arange(600)[:, None] // 2 == np.arange(300)
    p = 1 / (1 + np.exp(-(fit["dims"]["16"]["slope"] * cosines + fit["dims"]["16"]["intercept"])))
    present, absent = cosines.max(1), np.where(own, -1, cosines).max(1)
    row = scores["16"]
    higher, equal = present[:, None] > absent, present[:, None] == absent
    assert row["auroc"]["value"] == pytest.approx((higher + equal / 2).mean(), abs=1e-5)
    matching, others = cosines[own], np.sort(cosines[~own])
    assert row["pairs_auroc"]["value"] == pytest.approx(
        np.searchsorted(others, matching).mean() / len(others), abs=1e-4
    )
    assert row["false_alarm_rate"]["value"] == pytest.approx((np.where(own, 0, p).max(1) > 0.5).mean())
    assert row["detection_rate"]["value"] == pytest.approx((np.where(own, p, 0).max(1) > 0.5).mean())
    weights, bins = np.where(own, 0.01 / 600, 0.99 / (600 * 299)), np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = [abs((weights * (p - own))[bins == n].sum()) for n in range(BINS)]
    assert row["ece"]["value"] == pytest.approx(sum(gaps), abs=1e-6)
    assert sum(weight for _, _, weight in row["bins"]) == pytest.approx(1)
    for name in ("auroc", "pairs_auroc", "false_alarm_rate", "detection_rate", "ece"):
        low, high = row[name]["interval"]
        assert low < high and json.loads(json.dumps(row[name])) == row[name]


def test_clips_of_a_texts_label_are_taken_out_too(noisy):
    (audio, text), _, pairs = noisy
    groups = audio[8 * (torch.arange(300) // 8)]  # clips of one label lie near each other
    audio, text = groups + 0.3 * audio, torch.repeat_interleave(groups, 2, 0) + 0.3 * text
    fit = fit_calibration(audio, text, pairs, [16], prior=0.1)
    labels = [None if n % 4 == 3 else f"{n // 8}" for n in range(300)]
    rows = [calibration_scores(audio, text, pairs, [16], fit, given)["16"] for given in ([], [None] * 300, labels)]
    assert rows[0] == rows[1] and rows[2]["detection_rate"] == rows[0]["detection_rate"]
    assert rows[2]["ece"] == rows[0]["ece"] and rows[2]["pairs_auroc"] == rows[0]["pairs_auroc"]
    a, t = (torch.nn.functional.normalize(x, dim=-1).double().numpy() for x in (audio, text))
    clips, of_text = np.arange(300), np.arange(600)[:, None] // 2
    taken_out = (of_text == clips) | ((of_text // 8 == clips // 8) & (of_text % 4 != 3) & (clips % 4 != 3))
    highest = np.where(taken_out, -1, t @ a.T).max(1)
    alarms = Logistic(**fit["dims"]["16"], prior=0.1).probability(highest) > 0.5
    assert rows[2]["false_alarm_rate"]["value"] == pytest.approx(alarms.mean())
    assert rows[2]["false_alarm_rate"]["value"] < rows[0]["false_alarm_rate"]["value"]
    assert rows[2]["auroc"]["value"] > rows[0]["auroc"]["value"]


def test_a_text_whose_label_all_clips_have_is_never_absent_and_left_out(noisy):
    (audio, text), _, _ = noisy
    pairs = Correspondence([[n, 40] if n < 2 else [n] for n in range(40)], 41)  # text 40 has clips of both labels
    given = audio[:40], text[:41], pairs, [16]
    both = calibration_scores(*given, labels=["x", "y"] * 20)
    assert (both["texts"], both["labels"]) == (40, 2) and np.isfinite(both["16"]["auroc"]["value"])
    without = Correspondence([[n] for n in range(40)], 41)
    assert both["16"]["auroc"] == calibration_scores(*given[:2], without, [16], labels=["x", "y"] * 20)["16"]["auroc"]
    one = calibration_scores(*given, labels=["x"] * 40)  # tells no clip from another
    assert one == calibration_scores(*given) and (one["texts"], one["labels"]) == (41, 0)


def test_a_clip_without_texts_counts_in_the_calibration_error_as_in_its_bins(noisy):
    (audio, text), _, _ = noisy
    pairs = Correspondence([[2 * n, 2 * n + 1] if n < 200 else [] for n in range(300)], 600)
    fit = fit_calibration(audio, text, pairs, [16], prior=0.3)
    row = calibration_scores(audio, text, pairs, [16], fit)["16"]
    assert row["ece"]["value"] == pytest.approx(sum(weight * abs(p - match) for p, match, weight in row["bins"]))


def test_a_calibrated_model_is_calibrated_on_other_clips(noisy):
    (audio, text), (other_audio, other_text), pairs = noisy
    fit = fit_calibration(audio, text, pairs, [16], prior=0.5)
    calibrated = calibration_scores(other_audio, other_text, pairs, [16], fit)["16"]["ece"]["value"]
    fit["dims"]["16"]["intercept"] += 2  # as if the prior were another
    assert calibrated < 0.03 < calibration_scores(other_audio, other_text, pairs, [16], fit)["16"]["ece"]["value"]


def test_without_a_fit_the_collection_itself_is_the_background(noisy):
    (audio, text), _, pairs = noisy
    scores = calibration_scores(audio, torch.repeat_interleave(audio, 2, 0) + 0.1 * text, pairs, [16])
    assert scores["calibration"] == "index" and "prior" not in scores and "ece" not in scores["16"]
    row = scores["16"]
    assert row["false_alarm_rate"]["value"] < 0.3 < row["detection_rate"]["value"]
    assert calibration_scores(audio[:1], text[:2], Correspondence([[0, 1]], 2), [16]) is None


# The command.


@pytest.fixture(scope="module")
def calibrated_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioned")
    (root / "validation").mkdir()
    lines = ["file_name,label,caption"]
    for number, name in enumerate(["dog", "cat", "bell", "rain", "low", "high"] * 2):
        soundfile.write(root / "validation" / f"{number}.wav", tone(200 + 90 * (number % 6), 0.3, number), RATE)
        lines.append(f"{number}.wav,{name},the {name}")
    (root / "validation" / "metadata.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def understanding(monkeypatch):
    """Texts' vectors near those of their clips, as of a model that has learned."""

    def embed(*args, **options):
        embedded = embed_dataset(*args, **options)
        embedded.audio.copy_(torch.randn(embedded.audio.shape, generator=torch.Generator().manual_seed(0)))
        pairs = embedded.correspondence
        for clip, text in zip(pairs.queries, pairs.indices, strict=True):
            embedded.text[text] = embedded.audio[clip] + 0.1 * embedded.text[text]
        return embedded

    monkeypatch.setattr(calibrate, "embed_dataset", embed)


def test_the_command_writes_the_config_alone(understanding, wavlink_folder, calibrated_data, capsys):
    before = {path.name: path.read_bytes() for path in wavlink_folder.iterdir()}
    given = ["calibrate", str(wavlink_folder), "--data", str(calibrated_data), "--prior", "0.2", "--json"]
    assert WavLinkModel.from_pretrained(wavlink_folder).config.match_calibration is None  # as in older checkpoints
    assert cli.main(given) == 0
    printed = json.loads(capsys.readouterr().out)["results"]
    config = json.loads((wavlink_folder / "config.json").read_text())
    assert config["match_calibration"] == printed
    assert printed["prior"] == 0.2 and printed["data"] == f"{calibrated_data.name}, validation"
    assert printed["pairs"] == 12 * 6 and set(printed["dims"]) == {"32", "16", "8", "4"}
    after = {path.name: path.read_bytes() for path in wavlink_folder.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"config.json"}
    assert {**config, "match_calibration": 0} == {**json.loads(before["config.json"]), "match_calibration": 0}
    model = WavLinkModel.from_pretrained(wavlink_folder)
    assert model.config.match_calibration == printed
    model.save_pretrained(wavlink_folder / "again")
    assert WavLinkModel.from_pretrained(wavlink_folder / "again").config.match_calibration == printed


def test_what_cannot_be_calibrated_leaves_the_folder_as_it_is(wavlink_folder, calibrated_data, tmp_path, capsys):
    before = (wavlink_folder / "config.json").read_bytes()
    shutil.copytree(wavlink_folder, tmp_path / "clap")
    (tmp_path / "clap" / "config.json").write_text('{"model_type": "clap"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for model, options, why in (
        ("owner/name", [], "is no folder here"),
        (tmp_path / "clap", [], "only a WavLink"),
        (tmp_path / "broken", [], "is broken"),
        (tmp_path, [], "no config.json"),
        (wavlink_folder, ["--split", "test"], "test"),
        (wavlink_folder, ["--prior", "1"], "prior must be above 0 and below 1"),
        (wavlink_folder, ["--caption_columns", "words"], "no column words"),
    ):
        assert cli.main(["calibrate", str(model), "--data", str(calibrated_data), *options]) == 2
        err = capsys.readouterr().err
        assert why in err.splitlines()[-1] and err.splitlines()[-1].startswith("wavlink calibrate: "), (model, err)
    assert (wavlink_folder / "config.json").read_bytes() == before


def test_the_report_names_only_cosines_that_there_are():
    fits = {"32": {"slope": 10.0, "intercept": -3.0}, "8": {"slope": 0.3, "intercept": -3.7}}
    report = calibrate.report({"prior": 0.01, "data": "d", "pairs": 3, "dims": fits})
    assert [line.split()[-1] for line in report.splitlines()[-2:]] == ["0.300", "none"]


def test_a_prior_that_is_none_is_refused_before_the_split_is_embedded(
    wavlink_folder, calibrated_data, monkeypatch, capsys
):
    monkeypatch.setattr(calibrate, "embed_dataset", lambda *args, **options: pytest.fail("the split was embedded"))
    for prior in ("0", "1", "nan", "-1"):
        given = ["calibrate", str(wavlink_folder), "--data", str(calibrated_data), "--prior", prior]
        assert cli.main(given) == 2
        assert "prior must be" in capsys.readouterr().err


def test_a_bundled_model_keeps_its_config(tiny_bundle, calibrated_data, capsys):
    for words in (["calibrate"], ["prompts", "--store"]):
        assert cli.main([words[0], str(tiny_bundle), "--data", str(calibrated_data), *words[1:]]) == 2
        assert "is a bundled model, whose files stay those of the release" in capsys.readouterr().err
    bundled_models._verify.cache_clear()
    assert bundled_models.bundled() == str(tiny_bundle)


def test_eval_scores_the_probabilities(wavlink_folder, calibrated_data, capsys):
    given = ["eval", "--model", str(wavlink_folder), "--benchmark", str(calibrated_data), "--split", "validation"]
    assert cli.main([*given, "--choices", "0", "--json"]) == 0
    captured = capsys.readouterr()
    scores = json.loads(captured.out)["results"]["calibration"]
    assert scores["calibration"] == "index" and set(scores["32"]) >= {"auroc", "false_alarm_rate", "detection_rate"}
    config = json.loads((wavlink_folder / "config.json").read_text())
    fit = {"prior": 0.01, "data": "d", "pairs": 9, "dims": {"32": {"slope": 3.0, "intercept": -1.0, "note": "n"}}}
    (wavlink_folder / "config.json").write_text(json.dumps(config | {"match_calibration": fit}))
    assert cli.main([*given, "--choices", "0", "--json"]) == 0
    captured = capsys.readouterr()
    scores = json.loads(captured.out)["results"]["calibration"]
    assert scores["calibration"] == "model" and set(scores["32"]) >= {"auroc", "ece", "false_alarm_rate"}
    assert "probabilities by the model's calibration" in captured.err and "calibration error" in captured.err
    assert random_control(str(wavlink_folder)).config.match_calibration is None  # nor of a loaded one
    assert random_control(WavLinkModel.from_pretrained(wavlink_folder)).config.match_calibration is None
