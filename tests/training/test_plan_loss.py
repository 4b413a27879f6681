"""Plans of a caption bank, of a tower that does not learn and of a moving average, beside what training computes."""

import functools
import weakref

import datasets
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import train
from modeling_wavlink.losses_wavlink import bank_cross_entropy, contrastive_loss
from tests import tone_runs
from tests.tone_runs import recipe
from wavlink.planning import loss as loss_module
from wavlink.planning import plan as plan_module
from wavlink.planning import speed
from wavlink.planning.data import _distinct, _parquet_texts, training_data
from wavlink.planning.facts import SOURCES
from wavlink.planning.loss import Loss
from wavlink.planning.model import Shapes, count_flops, count_kept, planned_config
from wavlink.planning.plan import plan, table
from wavlink.training.recipes import Recipe

folder = tone_runs.folder
BANK = ["--caption_bank", "true", "--scope", "audio", "--label_prompts", "a {},the sound of {}"]
WHISPER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 80}
TEXT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 48, "max_position_embeddings": 64, "vocab_size": 100}
SHAPES = Shapes((80, 90), (90,), 11)


def tiny(**changes) -> Recipe:
    fields = {"audio_config": WHISPER, "text_config": TEXT, "mixed_precision": "no", "projection_dim": 16}
    return Recipe("tiny", **fields | {"batch_size": 12, "data": "audiocaps"} | changes)


@functools.cache
def planned(**changes) -> dict:
    """The plan of 3,000 clips in batches of 600."""
    return plan(tiny(**{"scope": "audio", "batch_size": 600} | changes), ["l4"], 3000, 2.0)


def embeds(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def pairs_loss(kind: str, clips: int, dims=(8, 4), chunk: int = 4096):
    """The loss of random pairs, of which some share a caption, as a function."""
    pair = embeds(clips, 8, 0), embeds(clips, 8, 1), *torch.zeros(2, requires_grad=True).unbind()
    ids = torch.arange(clips)[:, None] // 2
    return lambda: contrastive_loss(*pair, kind, dims, ids, chunk=chunk)


def bank_loss(clips: int, captions: int, dims=(8, 4)):
    """The loss of random clips and a bank of random captions, with the projection of their 6 dims to 8."""
    pooled, weight, audio = embeds(captions, 6, 0).detach(), embeds(8, 6, 1), embeds(clips, 8, 2)
    held = []  # as by a run, during its step

    def loss():
        held.append(torch.arange(captions) == torch.arange(clips)[:, None])
        return bank_cross_entropy(audio, pooled @ weight.T, torch.tensor(2.0), held[0], dims)

    return loss


@pytest.mark.parametrize("chunk", [4096, 16])
@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
def test_flops_of_the_loss_are_those_of_a_real_one(kind, chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    with FlopCounterMode(display=False) as counter:
        pairs_loss(kind, 40, chunk=chunk)().backward()
    assert Loss(kind, (8, 4), 8, 6).flops(40) == counter.get_total_flops()


def test_flops_of_the_bank_are_those_of_a_real_one():
    with FlopCounterMode(display=False) as counter:
        bank_loss(12, 50)().backward()
    with_bank, without = (Loss("info_nce", (8, 4), 8, 6, captions).flops(12) for captions in (50, 0))
    assert with_bank - without == counter.get_total_flops()


class Live(TorchDispatchMode):
    """Count the bytes of the tensors that live at once."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, id(storage))
                self.peak = max(self.peak, sum(self.sizes.values()))
        return output


def peak(compute) -> int:
    with Live() as live:
        compute().backward()
    return live.peak


@pytest.mark.parametrize("dims", [(8,), (8, 4, 2, 1)])
@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
def test_memory_of_the_loss_is_that_of_a_real_one(kind, dims):
    assert Loss(kind, dims, 8, 6).memory(600) == pytest.approx(peak(pairs_loss(kind, 600, dims)), rel=0.05)


@pytest.mark.parametrize("dims", [(8,), (8, 4, 2, 1)])
def test_memory_of_the_bank_is_that_of_a_real_one(dims):
    with_bank, without = (Loss("info_nce", dims, 8, 6, captions).memory(200) for captions in (3000, 0))
    assert with_bank - without == pytest.approx(peak(bank_loss(200, 3000, dims)), rel=0.05)


@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_flops_of_a_step_with_a_bank_are_those_of_a_run(folder, tmp_path, micro_batch_size):
    """The batch's own texts come from the bank: the text tower computes nothing in a step."""
    options = [
        *BANK,
        "--max_steps",
        "1",
        "--micro_batch_size",
        str(micro_batch_size),
        "--attn_implementation",
        "eager",
    ]
    run = train.Run(recipe(folder, tmp_path / "run", *options))
    (batch, *_) = run.feed.batches(run.processor, 0)
    shapes = Shapes(batch["input_features"].shape[1:], None, batch["input_ids"].shape[1])
    batch["input_features_mask"].fill_(1)  # as in a plan all clips have one length
    batch["attention_mask"].fill_(1)
    flops = count_flops(run.model.config, run.recipe, shapes, len(run.bank.ids))
    assert flops.loss.captions == 7 * 5
    with FlopCounterMode(display=False) as counter:
        run.learn(batch)
    assert flops.step(4, micro_batch_size or 4) == pytest.approx(counter.get_total_flops(), rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.model.get_text_features(batch["input_ids"], batch["attention_mask"])
    assert flops.text == pytest.approx(counter.get_total_flops() / 4, rel=0.01)


def test_a_frozen_text_tower_has_no_backward_pass_and_keeps_nothing():
    both, audio = tiny(), tiny(scope="audio")
    config = planned_config(both)
    flops = [count_flops(config, recipe, SHAPES) for recipe in (both, audio)]
    assert flops[0].forward == flops[1].forward
    projection = 2 * 16 * 16  # of the text, whose gradient by its input is not needed
    assert flops[0].backward - flops[1].backward == pytest.approx(2 * flops[0].text - projection, rel=0.01)
    longer = Shapes(SHAPES.features, SHAPES.mask, 44)
    recipe = tiny(scope="audio", gradient_checkpointing=True)
    for kept in (lambda shapes: count_kept(config, audio, shapes), lambda shapes: count_kept(config, recipe, shapes)):
        assert kept(longer).clip == pytest.approx(kept(SHAPES).clip, rel=0.001)
    assert count_kept(config, both, longer).clip > 1.1 * count_kept(config, both, SHAPES).clip


def test_plan_counts_the_bank_once_and_at_each_step():
    without, with_bank = planned(), planned(caption_bank=True)
    assert with_bank["data"]["caption_bank"] == 3000 and without["data"]["caption_bank"] == 0
    bank = Loss("info_nce", (16, 8, 4, 2), 16, 16, 3000)
    flops, before = (result["flops"] for result in (with_bank, without))
    text_tower = flops["caption_bank"] / 3000 - 2 * 16 * 16  # of a text, without its projection
    difference = bank.flops(600) - Loss("info_nce", bank.dims, 16, 16).flops(600) - 600 * text_tower
    assert flops["step"] - before["step"] == pytest.approx(difference)
    assert flops["total"] == flops["caption_bank"] + with_bank["steps"] * flops["step"] and before["caption_bank"] == 0
    (row,) = with_bank["devices"]
    assert row["hours"] == pytest.approx(flops["total"] / row["tflops"] / 1e12 / 3600)
    memory = with_bank["memory"]
    assert memory["caption_bank"] == 3000 * 16 * 4 / 1e9 and memory["logits"] == bank.memory(600) / 1e9
    assert memory["total"] == pytest.approx(sum(gb for part, gb in memory.items() if part != "total"))
    text = table(with_bank)
    assert "bank       3,000 captions, embedded with " in text and " + caption bank 0.00 + " in text
    assert "bank" not in table(without)


def test_plan_counts_the_bank_again_after_each_epoch_where_the_text_tower_learns():
    once, anew = (planned(max_steps=11, caption_bank=True, scope=scope) for scope in ("audio", "both"))
    assert anew["flops"]["caption_bank"] == 3 * once["flops"]["caption_bank"]  # 11 steps, 5 an epoch
    assert anew["flops"]["total"] == anew["flops"]["caption_bank"] + 11 * anew["flops"]["step"]


def test_logits_do_not_add_to_the_activations_of_a_piece():
    logits = planned(caption_bank=True)["memory"]["logits"]
    memory = planned(caption_bank=True, micro_batch_size=1)["memory"]
    assert logits > memory["logits"] > 0 and memory["logits"] + memory["activations"] == pytest.approx(logits)


def test_a_bank_too_large_for_a_card_fits_with_no_pieces(monkeypatch):
    counted = plan_module._counted(tiny(scope="audio", batch_size=600, caption_bank=True), 3000, 2.0)
    memory = counted.memory
    rest = memory["total"] - memory["activations"] - memory["logits"]
    assert plan_module._fits(memory["total"] + 1e-3, counted)["largest_micro_batch_size"] == 600
    result = plan_module._fits(rest + max(memory["activations"], memory["logits"]) + 1e-3, counted)
    assert not result["fits"] and 0 < result["largest_micro_batch_size"] < 600
    result = plan_module._fits(rest + 0.9 * memory["logits"], counted)
    assert result == {"fits": False, "largest_micro_batch_size": 0}


def test_a_moving_average_is_a_copy_of_what_learns():
    plain, average = planned(), planned(ema_decay=0.9)
    assert average["memory"]["moving_average"] == 4 * average["parameters"]["trained"] / 1e9
    assert average["memory"]["total"] - plain["memory"]["total"] == pytest.approx(average["memory"]["moving_average"])
    assert plain["memory"]["moving_average"] == 0 and average["flops"] == plain["flops"]


def test_a_moving_average_is_part_of_the_measured_update(monkeypatch):
    updates = []
    monkeypatch.setattr(speed.WeightAverage, "update", lambda self, step: updates.append(len(self.weights)))
    for decay in (0.0, 0.9):
        measured = tiny(ema_decay=decay, batch_size=2)
        speed.measure(planned_config(measured), measured, SHAPES, "cpu")
    assert len(updates) == 4 and updates[0] > 10


def test_the_bank_of_a_folder_holds_its_captions_and_wordings(folder):
    planned = training_data(recipe(folder, "unused", *BANK))
    assert planned.bank == 7 * 5 and training_data(recipe(folder, "unused", *BANK), clips=28).bank == 2 * 7 * 5
    assert training_data(recipe(folder, "unused")).bank == 0


def test_the_bank_of_parquet_files_is_read_without_their_sounds(tmp_path):
    audio = {"bytes": (b"RIFF" + bytes(40)), "path": "a.wav"}
    rows = [{"audio": audio, "caption": text, "label": row % 2} for row, text in enumerate(["A dog", "a dog ", "b"])]
    features = datasets.Features(
        audio={"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        caption=datasets.Value("string"),
        label=datasets.ClassLabel(names=["dog", "cat"]),
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    fields = {"caption_bank": True, "scope": "audio", "label_prompts": ("a {}", "the {}")}
    texts = _parquet_texts(tmp_path, "train")
    assert "audio" not in texts.column_names
    assert _distinct(tiny(**fields), texts) == 2 + 3  # "a dog" is a caption too


def test_the_bank_of_known_data_sets_has_all_their_captions():
    bank = {"caption_bank": True, "scope": "audio"}
    expected = {name: source.captions * source.clips for name, source in SOURCES.items()}
    assert training_data(tiny(**bank)).bank == expected["audiocaps"] and expected["clotho"] == 5 * 3839
    mixed = tiny(**bank, mixture={"audiocaps": 1.0, "clotho": 5.0})
    assert training_data(mixed).bank == expected["audiocaps"] + expected["clotho"]


def test_the_bank_of_made_sounds_is_counted(monkeypatch):
    monkeypatch.setattr("wavlink.planning.data.SYNTHETIC_CLIPS_PER_KIND", {"validation": 1})
    made = tiny(data="synthetic", caption_bank=True, scope="audio", train_split="validation")
    assert 56 <= training_data(made).bank <= 3 * 56
