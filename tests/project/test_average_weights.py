"""benchmarks/average_weights.py: the mean of models that were trained from one start."""

import pytest
import torch

from benchmarks import average_weights
from wavlink import WavLinkModel


def main(monkeypatch, *words) -> None:
    monkeypatch.setattr("sys.argv", ["average_weights.py", *map(str, words)])
    average_weights.main()


def test_the_mean_of_two_models_is_a_model_without_a_calibration(
    wavlink_folder, model, processor, tmp_path, monkeypatch
):
    with torch.no_grad():
        model.audio_model.global_token += 2.0
    model.config.match_calibration = {"prior": 0.5}
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    main(monkeypatch, wavlink_folder, tmp_path / "other", "--out", tmp_path / "mean")
    mean = WavLinkModel.from_pretrained(tmp_path / "mean")
    assert mean.config.match_calibration is None
    dims = {str(dim): {"slope": 9.0, "intercept": -5.0} for dim in model.config.matryoshka_dims}
    model.config.match_calibration = {"prior": 0.01, "pairs": 9, "data": "sounds, validation", "dims": dims}
    model.config.label_prompts = ["a sound of {}"]
    model.config.save_pretrained(tmp_path / "fitted")
    folders = wavlink_folder, tmp_path / "other"
    main(monkeypatch, *folders, "--fitted", tmp_path / "fitted", "--out", tmp_path / "with-calibration")
    kept = WavLinkModel.from_pretrained(tmp_path / "with-calibration").config
    assert kept.match_calibration == model.config.match_calibration and kept.label_prompts == ["a sound of {}"]
    expected = model.state_dict()
    expected["audio_model.global_token"] = expected["audio_model.global_token"] - 1.0
    for name, weight in mean.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    with pytest.raises(SystemExit):  # a folder that is there already
        main(monkeypatch, wavlink_folder, tmp_path / "other", "--out", tmp_path / "mean")


def test_models_of_two_sizes_have_no_mean(wavlink_folder, model, tmp_path, monkeypatch, capsys):
    model.audio_model.global_token = torch.nn.Parameter(torch.zeros(1, 1, 4))
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        main(monkeypatch, wavlink_folder, tmp_path / "other", "--out", tmp_path / "mean")
    assert "average models of one architecture" in capsys.readouterr().err and not (tmp_path / "mean").exists()
    with pytest.raises(SystemExit):
        main(monkeypatch, wavlink_folder, "--out", tmp_path / "mean")
