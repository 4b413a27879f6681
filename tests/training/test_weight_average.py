"""The moving average of the weights: its formula, what is saved, and resumption."""

import pytest
import torch
from safetensors.torch import load_file

import train
from modeling_wavlink import WavLinkModel
from tests import tone_runs
from tests.tone_runs import recipe
from wavlink.training import loop
from wavlink.training.recipe_fields import Recipe
from wavlink.training.weight_average import WeightAverage

folder = tone_runs.folder


def test_average_equals_the_sum_over_all_steps():
    """The weights of step t count (1 - d_t) times all later d, the start the product of all d."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=True).double()
    model.bias.requires_grad_(False)
    history = [model.weight.detach().clone()]
    average = WeightAverage(model, 0.4)
    for step in range(8):
        with torch.no_grad():
            model.weight.normal_()
        history.append(model.weight.detach().clone())
        average.update(step)
    decays = [min(0.4, (1 + t) / (10 + t)) for t in range(8)]
    assert decays[0] == 0.1 and decays[-1] == 0.4
    expected, rest = torch.zeros(2, 3).double(), 1.0
    for weights, decay in zip(reversed(history), [*reversed(decays), 0.0], strict=True):
        expected += rest * (1 - decay) * weights
        rest *= decay
    assert average.weights.keys() == {"weight"}
    torch.testing.assert_close(average.weights["weight"], expected)


def test_own_weights_come_back_also_after_an_error():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average.weights["weight"].fill_(7.0)
    with pytest.raises(KeyError), average.applied():
        assert (model.weight == 7).all()
        raise KeyError
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("regime", ["full", "lora"])
def test_best_and_last_are_the_average(folder, tmp_path, monkeypatch, regime):
    """The average once more, from the weights after each step; the only validation is after the last step."""
    runs, history = [], []
    update = WeightAverage.update

    def record(self, step):
        runs.append(self)
        history.append({name: p.detach().clone() for name, p in self._learned.items()})
        update(self, step)

    monkeypatch.setattr(WeightAverage, "update", record)
    options = ["--ema_decay", "0.5", "--max_steps", "3", "--regime", regime, "--learning_rate", "0.01"]
    output = train.train(recipe(folder, tmp_path / "run", *options))
    best, last = (load_file(output / name / "model.safetensors") for name in ("best", "last"))
    assert len(history) == 3 and all(torch.equal(best[name], last[name]) for name in last)
    weights = {name: value for name, value in runs[0].weights.items() if ".lora_" not in name}
    assert all(torch.equal(last[name], value) for name, value in weights.items())
    assert not torch.equal(last["text_projection.weight"], history[-1]["text_projection.weight"])
    if regime == "lora":
        adapter = load_file(output / "last/adapter/adapter_model.safetensors")
        lora = [name for name in runs[0].weights if ".lora_B." in name]
        assert lora and not torch.equal(runs[0].weights[lora[0]], history[-1][lora[0]])
        assert torch.equal(adapter["base_model.model." + lora[0].replace(".default", "")], runs[0].weights[lora[0]])
    WavLinkModel.from_pretrained(output / "best")


def test_an_average_changes_no_step(folder, tmp_path):
    """The losses are those of a run without; the scores are not."""
    texts = []
    for decay in ("0", "0.9"):
        output = train.train(recipe(folder, tmp_path / decay, "--ema_decay", decay, "--learning_rate", "0.01"))
        texts.append((output / "metrics.jsonl").read_text().splitlines())
    losses = [[line for line in lines if '"loss"' in line] for lines in texts]
    assert losses[0] == losses[1] and len(losses[0]) == 6 and texts[0] != texts[1]


@pytest.mark.parametrize("dropped_at", [2, 5])
def test_killed_run_with_an_average_resumes_bit_equal(folder, tmp_path, monkeypatch, dropped_at):
    options = ["--save_steps", "2", "--ema_decay", "0.9"]
    whole = train.train(recipe(folder, tmp_path / "whole", *options))
    learn = train.Run.learn

    def die(self, *arguments):
        if self.step == dropped_at:
            raise KeyboardInterrupt
        return learn(self, *arguments)

    monkeypatch.setattr(train.Run, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe(folder, tmp_path / "killed", *options))
    monkeypatch.setattr(train.Run, "learn", learn)
    resumed = train.train(recipe(folder, tmp_path / "killed", *options))
    for name in ("last", "best"):
        expected, got = (load_file(run / name / "model.safetensors") for run in (whole, resumed))
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()


def test_a_checkpoint_without_its_average_is_refused(folder, tmp_path):
    options = ["--ema_decay", "0.9", "--max_steps", "1"]
    output = train.train(recipe(folder, tmp_path / "run", *options))
    (average,) = output.glob("checkpoints/*/weight_average.safetensors")
    average.unlink()
    with pytest.raises(ValueError, match="no average of these weights"):
        train.train(recipe(folder, tmp_path / "run", *options))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_outside_0_to_1_is_refused(decay):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        Recipe("mine", init="any", ema_decay=decay)


def test_an_average_is_refused_with_fsdp2(folder, tmp_path, monkeypatch):
    start = loop.sharding.start

    def sharded(*arguments):
        accelerator = start(*arguments)
        monkeypatch.setattr(type(accelerator), "is_fsdp2", True)
        return accelerator

    monkeypatch.setattr(loop.sharding, "start", sharded)
    with pytest.raises(ValueError, match="ema_decay does not work with FSDP2"):
        train.Run(recipe(folder, tmp_path / "run", "--ema_decay", "0.9"))
