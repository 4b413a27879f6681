"""Probabilities of matches: their formulas, and the doors that show them."""

import json
import re
from statistics import NormalDist

import numpy as np
import pytest
import soundfile
import torch

import wavlink
from modeling_wavlink import WavLinkConfig, WavLinkModel
from tests.clap_models import save_clap
from tests.conftest import RATE, tone
from wavlink import cli
from wavlink.config_file import write_field
from wavlink.defaults import STORAGES
from wavlink.embedder import Embedder
from wavlink.long_recordings import encode_recording
from wavlink.probability import Background, Logistic, background_of, calibration_of
from wavlink.search.build import index_sounds
from wavlink.search.index import Index

ndtr = np.vectorize(NormalDist().cdf)
LABELS = ["dog", "a low bell rings", "rain"]
FITS = {"32": {"slope": 5.0, "intercept": -1.0}, "8": {"slope": 2.0, "intercept": 0.5}}
CALIBRATION = {"prior": 0.1, "data": "tones, validation", "pairs": 12, "dims": FITS}


def probability(cosine: float, dim: str = "32", shift: float = 0.0) -> float:
    return 1 / (1 + np.exp(-(FITS[dim]["slope"] * cosine + FITS[dim]["intercept"] + shift)))


@pytest.fixture
def calibrated(sharp_model, processor, tmp_path):
    sharp_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_field(tmp_path / "model", "match_calibration", CALIBRATION)
    return tmp_path / "model"


@pytest.fixture
def plain(sharp_model, processor, tmp_path):
    sharp_model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def sounds(tmp_path):
    (tmp_path / "sounds").mkdir()
    for number in range(24):
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", tone(150 + 90 * number, 0.4, number), RATE)
    return tmp_path / "sounds"


def run(capsys, *words) -> tuple[int, dict, str]:
    code = cli.main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_a_logistic_at_another_prior():
    logistic = Logistic(10.0, -3.0, prior=0.01)
    assert logistic.probability(0.3) == pytest.approx(0.5)
    assert logistic.probability([[0.3, 9], [-9, 0.3]]).shape == (2, 2)
    # by Bayes: the likelihood ratio of the cosine stays
    ratio = (0.5 / 0.5) / (0.01 / 0.99)
    assert logistic.at_prior(0.2).probability(0.3) == pytest.approx(ratio * 0.25 / (1 + ratio * 0.25))
    assert logistic.at_prior(0.2).at_prior(0.01).intercept == pytest.approx(-3.0)
    assert json.dumps(logistic.at_prior(np.float32(0.25)).prior) == "0.25"
    for prior in (0, 1, -0.1, 2, float("nan"), "0.1", True):
        with pytest.raises(ValueError, match="prior must be"):
            logistic.at_prior(prior)


def test_a_background_is_the_chance_that_no_cosine_of_a_normal_is_higher():
    cosines = np.random.default_rng(0).normal(0.1, 0.05, 5000)
    cosines[:50] = 0.9  # matches, which move neither the median nor the spread by much
    background = background_of(cosines)
    assert (background.center, background.spread) == pytest.approx((0.1, 0.05), abs=0.004)
    assert Background(0.1, 0.05, 7).probability(0.2) == pytest.approx(ndtr(2.0) ** 7)
    assert background.probability([0.1, 0.9]) == pytest.approx([0, 1], abs=1e-6)
    assert background_of(cosines[:100], count=5000).count == 5000
    assert background_of(cosines[:19]) is None and background_of(np.full(100, 0.3)) is None
    highest = np.random.default_rng(1).normal(size=(2000, 200)).max(1)
    share = (Background(0, 1, 200).probability(highest) > 0.5).mean()
    assert share == pytest.approx(0.5, abs=0.04)  # of queries that nothing matches, half have a maximum above 0.5


def test_classify_gives_independent_probabilities(calibrated, plain, sounds):
    files = [sounds / "1.wav", sounds / "9.wav"]
    for dim, key in ((None, "32"), (8, "8")):
        for row in wavlink.classify(calibrated, files, LABELS, dim=dim):
            for label in row["labels"]:
                assert label["probability"] == pytest.approx(probability(label["cosine"], key))
    few, more = (wavlink.classify(calibrated, files[0], LABELS[:n])[0]["labels"] for n in (2, 3))
    by_label = {row["label"]: row for row in more}
    assert all(row["probability"] == by_label[row["label"]]["probability"] for row in few)
    assert few[0]["score"] != by_label[few[0]["label"]]["score"]
    shifted = wavlink.classify(calibrated, files[0], LABELS, prior=0.5)[0]["labels"][0]
    assert shifted["probability"] == pytest.approx(probability(shifted["cosine"], shift=np.log(9)))
    assert {row["probability"] for row in wavlink.classify(plain, files[0], LABELS)[0]["labels"]} == {None}
    with pytest.raises(ValueError, match="prior=0.5 shifts a model's calibration, which .* lacks at 32 dims"):
        wavlink.classify(plain, files[0], LABELS, prior=0.5)
    with pytest.raises(ValueError, match="prior must be"):
        wavlink.classify(calibrated, files[0], LABELS, prior=1)
    assert calibration_of(Embedder(str(calibrated)), 16) is None  # there is no fit at 16 dims


def test_the_classify_command_prints_them(calibrated, plain, sounds, capsys):
    given = ["classify", sounds / "1.wav", "--labels", *LABELS, "--model"]
    code, found, err = run(capsys, *given, calibrated, "--prior", 0.2)
    assert code == 0 and (found["results"]["calibration"], found["results"]["prior"]) == ("model", 0.2)
    assert err.count(" %  match ") == 3
    code, found, err = run(capsys, *given, plain)
    assert code == 0 and found["results"]["calibration"] is None and "match" not in err


@pytest.mark.parametrize("storage", STORAGES)
def test_hits_have_the_models_probabilities_of_their_cosines(calibrated, sounds, tmp_path, storage):
    index_sounds(str(sounds), tmp_path / "index", str(calibrated), dim=32, storage=storage, progress=False)
    for dim in (32, 8):
        index = Index.open(tmp_path / "index", dim=dim)
        hits = index.query("a dog barks", top_k=24)
        assert len(hits) == 24 and {hit.calibration for hit in hits} == {"model"}
        assert [hit.probability for hit in hits] == pytest.approx([probability(hit.score, str(dim)) for hit in hits])
        middle = hits[11].probability
        kept = index.query("a dog barks", top_k=24, min_probability=middle)
        assert kept == [hit for hit in hits if hit.probability >= middle] and 12 <= len(kept) < 24
    assert {hit.calibration for hit in Index.open(tmp_path / "index", dim=16).query("a dog barks")} == {"index"}


def test_rescored_hits_have_the_probabilities_of_the_dims_that_score_them(calibrated, sounds, tmp_path):
    index_sounds(str(sounds), tmp_path / "index", str(calibrated), dim=8, rescore_dim=32, progress=False)
    hits = Index.open(tmp_path / "index").query("a dog barks")
    assert {hit.calibration for hit in hits} == {"model"}
    assert [hit.probability for hit in hits] == pytest.approx([probability(hit.score, "32") for hit in hits])


def test_an_index_of_a_model_without_a_calibration_is_its_own_background(plain, sounds, tmp_path, capsys):
    index_sounds(str(sounds), tmp_path / "index", str(plain), dim=32, storage="fp32", progress=False)
    index = Index.open(tmp_path / "index")
    hits = index.query("a dog barks", top_k=24)
    assert {hit.calibration for hit in hits} == {"index"}
    cosines = np.array([hit.score for hit in hits], np.float64)
    spread = 1.4826 * np.median(abs(cosines - np.median(cosines)))
    expected = ndtr((cosines - np.median(cosines)) / spread) ** 24
    assert [hit.probability for hit in hits] == pytest.approx(expected, abs=1e-4)
    assert cli.main(["query", str(tmp_path / "index"), "a dog barks"]) == 0
    assert "the model has no calibration: % is how surely a result stands out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="shifts a model's calibration"):
        index.query("a dog barks", prior=0.5)


def test_only_one_text_has_probabilities(calibrated, sounds, tmp_path):
    index_sounds(str(sounds), tmp_path / "index", str(calibrated), dim=32, progress=False)
    index = Index.open(tmp_path / "index")
    one = sounds / "1.wav"
    others = [{"sound": one}, {"text": ["a", "the dog"]}, {"text": "dog", "without": "rain"}]
    for query in [*others, {"text": "dog", "without_sound": one}, {"text": "dog", "sound": one}]:
        assert {hit.probability for hit in index.query(**query)} == {None}
        with pytest.raises(ValueError, match="of one text alone"):
            index.query(**query, min_probability=0.5)
    assert index.query(["a dog"])[0].probability is not None
    for wrong in (-0.1, 1.1, float("nan"), "0.5", True):
        with pytest.raises(ValueError, match="min_probability must be a probability"):
            index.query("a dog", min_probability=wrong)


def test_the_query_command_says_that_nothing_matches(calibrated, plain, sounds, tmp_path, capsys):
    index_sounds(str(sounds), tmp_path / "index", str(calibrated), dim=32, progress=False)
    given = ["query", tmp_path / "index", "a dog barks"]
    code, found, _ = run(capsys, *given)
    assert code == 0 and len(found["results"]) == 10 and "note" not in found
    assert all(0 < hit["probability"] < 1 and hit["calibration"] == "model" for hit in found["results"])
    code, found, _ = run(capsys, *given, "--min_probability", "1")
    assert code == 0 and found == {"results": [], "note": "nothing in this index matches"}
    assert cli.main([*map(str, given), "--min_probability", "0.9999"]) == 0
    assert capsys.readouterr().out == "nothing in this index matches\n"
    assert cli.main([*map(str, given), "--top_k", "1"]) == 0
    assert " %  " in capsys.readouterr().out
    code, found, _ = run(capsys, "query", tmp_path / "index", "--by_sound", sounds / "1.wav")
    assert code == 0 and not any("probability" in hit or "calibration" in hit for hit in found["results"])
    code, found, _ = run(capsys, *given, "--min_probability", "2")
    assert code == 2 and "min_probability must be a probability, from 0 to 1" in found["error"]
    few = tmp_path / "few"
    index_sounds([str(sounds / "1.wav")], few, str(plain), dim=32, progress=False)
    code, found, _ = run(capsys, "query", few, "a dog", "--min_probability", "0.5")
    assert code == 2 and "`wavlink calibrate` fits one" in found["error"]
    code, found, _ = run(capsys, "query", few, "a dog")
    assert code == 0 and "probability" not in found["results"][0]


@pytest.fixture
def night(tmp_path):
    parts = [tone(200 + 400 * (n % 5), 1.0, n) for n in range(30)]
    soundfile.write(tmp_path / "night.wav", np.concatenate(parts), RATE)
    return tmp_path / "night.wav"


def test_spans_have_probabilities(calibrated, plain, night):
    windows = {"window": 2, "hop": 1}
    spans = wavlink.locate(calibrated, night, "a dog", **windows, min_score=-1, dim=8)
    assert [span.probability for span in spans] == pytest.approx([probability(x.score, "8") for x in spans])
    least = spans[1].probability
    assert wavlink.locate(calibrated, night, "a dog", **windows, min_probability=least, dim=8) == [
        span for span in spans if span.probability >= least
    ]
    assert wavlink.locate(calibrated, night, "a dog", **windows, min_probability=1.0) == []
    assert wavlink.locate(plain, night, "a dog", **windows, min_score=-1)[0].probability is None
    embedder = Embedder(str(plain))
    (found,) = wavlink.locate(embedder, night, "a dog", **windows, min_probability=0.0, top_k=1)
    assert 0 <= found.probability <= 1  # that it stands out from the recording's 30 steps
    assert len(encode_recording(embedder, night, 2, 1).starts) >= 20
    with pytest.raises(ValueError, match="too few windows"):
        wavlink.locate(embedder, night, "a dog", window=10, hop=10, min_probability=0.5)
    with pytest.raises(ValueError, match="probabilities are of texts"):
        wavlink.locate(embedder, night, by_sound=night, min_probability=0.5)


def test_the_where_command_says_that_nothing_matches(calibrated, night, capsys):
    given = ["where", calibrated, night, "--query", "a dog", "rain", "--window", "2", "--hop", "1"]
    code, found, _ = run(capsys, *given, "--min_probability", "1")
    assert code == 0
    for query in found["results"]["queries"]:
        assert query["spans"] == [] and query["note"] == "nothing in this recording matches"
        assert (query["calibration"], query["prior"]) == ("model", 0.1) and 0 < query["closest"]["probability"] < 1
    assert cli.main([*map(str, given), "--min_probability", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  nothing in this recording")]
    assert len(lines) == 2 and all(re.search(r"closest is .+, score 0\.\d{3}, match +\d+\.\d %$", x) for x in lines)
    assert cli.main([*map(str, given), "--min_score", "-1"]) == 0
    assert "match\n" in capsys.readouterr().out


GOOD = WavLinkConfig(projection_dim=32, matryoshka_dims=[32, 8], match_calibration=CALIBRATION)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prior": 0}, "prior must be a number between 0 and 1"),
        ({"prior": True}, "prior must be a number"),
        ({"prior": None}, "prior must be a number"),
        ({"prior": float("nan")}, "prior must be a number"),
        ({"data": 3}, "data must be a text"),
        ({"pairs": 0}, "pairs must be a whole number"),
        ({"pairs": 1.5}, "pairs must be a whole number"),
        ({"dims": None}, "dims must be an object"),
        ({"dims": {}}, "dims must be an object"),
        ({"dims": [1]}, "dims must be an object"),
        ({"dims": {"16": FITS["8"]}}, "'16', which is none of the nested dims"),
        ({"dims": {32: FITS["8"]}}, "32, which is none of the nested dims"),
        ({"dims": {"32": {"slope": 1.0}}}, "must have a slope above 0 and an intercept"),
        ({"dims": {"32": {"slope": 0, "intercept": 0}}}, "must have a slope above 0"),
        ({"dims": {"32": {"slope": -1.0, "intercept": 0}}}, "must have a slope above 0"),
        ({"dims": {"32": {"slope": "1", "intercept": 0}}}, "finite numbers"),
        ({"dims": {"32": {"slope": float("inf"), "intercept": 0}}}, "finite numbers"),
        ({"dims": {"32": {"slope": 10**400, "intercept": 0}}}, "finite numbers"),
        ({"dims": {"32": 3}}, "finite numbers"),
    ],
)
def test_a_wrong_calibration_is_refused(changes, why):
    with pytest.raises(ValueError, match=f"match_calibration: {why}|match_calibration: .*{why}"):
        WavLinkConfig(**{**GOOD.to_dict(), "match_calibration": CALIBRATION | changes})


@pytest.mark.parametrize("calibration", [[], "x", 3, True])
def test_a_calibration_is_an_object(calibration):
    with pytest.raises(ValueError, match="match_calibration must be an object"):
        WavLinkConfig(match_calibration=calibration)


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        ("a {}", "a list of one text or more"),
        ([], "a list of one text or more"),
        (["a dog"], "one {}"),
        (["a {} {}"], "one {}"),
        (["{x} {}"], "one {}"),
        ([3], "one {}"),
        (["a {}", "a {}"], "must differ"),
    ],
)
def test_wrong_prompts_are_refused(prompts, why):
    with pytest.raises(ValueError, match=f"label_prompts.*{why}"):
        WavLinkConfig(label_prompts=prompts)


def test_both_fields_survive_saving_and_older_configs_lack_them(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not {"label_prompts", "match_calibration"} & {name for name, value in saved.items() if value is not None}
    model.config.match_calibration, model.config.label_prompts = CALIBRATION, ["a {}", "{}."]
    model.save_pretrained(tmp_path)
    loaded = WavLinkModel.from_pretrained(tmp_path)
    assert loaded.config.match_calibration == CALIBRATION and loaded.config.label_prompts == ["a {}", "{}."]
    assert torch.equal(loaded.logit_scale, model.logit_scale)


def test_only_a_wavlinks_config_brings_either(sounds, tmp_path):
    """Other libraries' configs take any field, and check none."""
    embedder = Embedder(str(save_clap(tmp_path / "clap", False)))
    for prompts, calibration in ((3, {"dims": "x"}), ("ab", [1]), (["a"], {"dims": {}, "prior": 0.1})):
        embedder.model.config.label_prompts, embedder.model.config.match_calibration = prompts, calibration
        rows = wavlink.classify(embedder, sounds / "1.wav", LABELS)[0]["labels"]
        assert {row["probability"] for row in rows} == {None}
        with pytest.raises(ValueError, match="shifts a model's calibration"):
            wavlink.classify(embedder, sounds / "1.wav", LABELS, prior=0.5)
