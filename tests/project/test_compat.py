"""Private touches of other libraries are in one place, each with a public way that gives the same without it."""

import ast
import functools
from pathlib import Path
from types import SimpleNamespace

import lance
import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_wavlink import WavLinkModel
from modeling_wavlink.compat_wavlink import attention_of, from_config, optional_file
from processing import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor
from processing.datasets.compat_datasets import files_of
from tests.clap_models import unfused  # noqa: F401
from tests.conftest import RATE, tone
from tests.index_files import make_index
from tests.passt_models import save_passt
from tests.project_imports import ROOT, imports, modules, parsed
from wavlink import compat
from wavlink.backends import torch_cpu
from wavlink.search.table import Table
from wavlink.training import recipes
from wavlink.training.finetuning import set_trainable
from wavlink.training.trainer import WavLinkTrainer

COMPAT = {
    *("wavlink/compat.py", "modeling_wavlink/compat_wavlink.py", "processing/compat_features_wavlink.py"),
    "processing/datasets/compat_datasets.py",
    "wavlink/compat_argparse.py",
}
# Methods of ours, of namedtuples and of classes that transformers and evaluate want overridden; `os._exit`.
OWN = {"_replace", "_exit", "_init_weights", "_save", "_load_from_checkpoint", "_load_best_model"}


@functools.cache
def definitions(tree: ast.AST) -> set[str]:
    """The names of functions, classes and attributes that a file gives a meaning."""
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and type(node.ctx) is ast.Store}
    return defined | {node.id for node in nodes if isinstance(node, ast.Name) and type(node.ctx) is ast.Store}


def neighbours(name: str) -> list[Path]:
    """The file itself and those that share classes with it: what it imports, and what imports it."""
    others = IMPORTS[name] | {other for other, imported in IMPORTS.items() if name in imported}
    return [MODULES[name], *(MODULES[other] for other in others)]


def private_touches(tree: ast.AST, defined: set[str] = frozenset()) -> list[str]:
    """Underscored attributes of other libraries' objects: those that neither the file nor its neighbours define."""
    defined = defined | definitions(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found += [node.attr] if node.attr not in defined | OWN else []
        elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            found.append(node.arg)
    return found


MODULES, IMPORTS = modules(), imports()


@pytest.mark.parametrize("name", MODULES)
def test_private_attributes_are_used_only_in_compat_modules(name):
    near = [parsed(other) for other in neighbours(name)]
    touches = private_touches(near[0], set().union(*map(definitions, near)))
    assert bool(touches) == (MODULES[name].relative_to(ROOT).as_posix() in COMPAT), touches


def test_private_attributes_are_detected():
    assert private_touches(
        ast.parse("torch.ops.mkldnn._reorder(x); cached_file(a, _raise=False); model._private = 1")
    ) == [
        *("_reorder", "_raise"),
    ]


@pytest.fixture
def no_operators(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())


def test_without_packed_operators_layers_stay_as_they_are(no_operators):
    layers = nn.Sequential(nn.Linear(4, 4))
    torch_cpu.pack_layers(layers)
    assert type(layers[0]) is nn.Linear and not torch_cpu.packing_pays(torch.float32)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_bf16_without_torchs_own_answer(monkeypatch):
    expected = compat.has_bf16_kernels()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert compat.has_bf16_kernels() == expected
    for capability, answer in (("AVX2", False), ("AVX512", True), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert compat.has_bf16_kernels() == answer
        if not (torch.cuda.is_available() or torch.accelerator.is_available()):
            assert recipes.computes_in_bf16() == answer


def test_stream_with_unknown_files_lists_none():
    assert files_of(SimpleNamespace()) == files_of(SimpleNamespace(_ex_iterable=None)) == []


def test_layers_that_fsdp_does_not_split(model, monkeypatch):
    declared = compat.unsplit_modules(model)
    assert {"WhisperEncoderLayer", "WavLinkLastLayer"} <= declared
    assert compat.unsplit_modules(nn.Sequential(nn.ModuleList([nn.Linear(1, 1)]))) == {"Linear"}


def test_checkpointing_by_either_name():
    class Model:
        def gradient_checkpointing_enable(self):
            self.old = True

    class NewModel(Model):
        def activation_checkpointing_enable(self):
            self.new = True

    old, new = Model(), NewModel()
    compat.enable_checkpointing(old)
    compat.enable_checkpointing(new)
    assert vars(old) == {"old": True} and vars(new) == {"new": True}


def test_trainer_without_private_methods():
    inputs, args = {"a": torch.ones(1)}, SimpleNamespace(train_batch_size=3, device=torch.device("cpu"))
    assert compat.train_batch_size(SimpleNamespace(args=args)) == 3
    assert compat.train_batch_size(SimpleNamespace(args=args, _train_batch_size=2)) == 2
    assert compat.on_device(SimpleNamespace(args=args), inputs).keys() == {"a"}
    assert compat.on_device(SimpleNamespace(_prepare_inputs=lambda inputs: {"b": 1}), inputs) == {"b": 1}


def test_trainer_without_hooks_refuses_lora_in_place(model, monkeypatch, tmp_path):
    from transformers import TrainingArguments

    assert all(hasattr(Trainer, name) for name in compat.TRAINER_HOOKS)
    args = TrainingArguments(tmp_path, remove_unused_columns=False, report_to=[], use_cpu=True)
    monkeypatch.setattr(compat, "TRAINER_HOOKS", ("_no_such_hook",))
    WavLinkTrainer(model, args, data_collator=list)
    set_trainable(model, "lora")
    with pytest.raises(ValueError, match="would save LoRA in place without its weights: put peft's get_peft_model"):
        WavLinkTrainer(model, args, data_collator=list)


def test_rows_by_their_ids_without_a_private_method(tmp_path, monkeypatch):
    """By `take`, whose numbers are those of the rows while none was removed; after that, by a scan."""
    table = Table.open(make_index(tmp_path / "index", "abc", "de"))
    with table.writing():
        table.remove(["b"])
    ids = [row for batch in table.scan(["path"], with_row_id=True) for row in batch["_rowid"].to_pylist()]
    order = [ids[number] for number in (6, 0, 3, 7)]
    expected = compat.take_rows(table.dataset, order, ["path", "window"])
    assert expected["path"].to_pylist() == ["e", "a", "c", "e"]
    monkeypatch.delattr(lance.LanceDataset, "_take_rows")
    assert compat.take_rows(table.dataset, order, ["path", "window"]).equals(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tower_without_from_config(dtype):
    config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
    expected = from_config(WhisperEncoder, config, dtype)

    def without(config):
        return WhisperEncoder(config)

    made = from_config(without, config, dtype)  # a callable that has no `_from_config`
    assert {name: (x.shape, x.dtype) for name, x in made.state_dict().items()} == {
        name: (x.shape, x.dtype) for name, x in expected.state_dict().items()
    }


@pytest.mark.parametrize("seconds", [0.013, 1.0, 30.0])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_whispers_log_mel_by_a_plain_extractor(padding, seconds, monkeypatch):
    extractor = WavLinkFeatureExtractor(padding=padding)
    options = {"sampling_rate": RATE, "return_tensors": "np"}
    expected = extractor(tone(440, seconds), **options)["input_features"]
    monkeypatch.setattr(WavLinkFeatureExtractor, "_torch_extract_fbank_features", None)
    np.testing.assert_array_equal(extractor(tone(440, seconds), **options)["input_features"], expected)


@pytest.mark.parametrize("seconds", [0.2, 10.0, 14.0])
def test_claps_log_mel_by_a_plain_extractor(seconds, monkeypatch):
    extractor = WavLinkClapFeatureExtractor()
    clip = np.resize(tone(440, 3.0), round(seconds * extractor.sampling_rate))
    options = {"sampling_rate": extractor.sampling_rate, "return_tensors": "np"}
    expected = extractor(clip, **options)["input_features"]
    monkeypatch.setattr(WavLinkClapFeatureExtractor, "_get_input_mel", None)
    np.testing.assert_array_equal(extractor(clip, **options)["input_features"], expected)


def test_attention_of_a_config():
    assert (
        attention_of(SimpleNamespace()) == "eager" and attention_of(SimpleNamespace(_attn_implementation="x")) == "x"
    )


def test_towers_load_where_transformers_ignores_no_keys(
    whisper_folder,
    bert_folder,
    unfused,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    from modeling_wavlink import loading_wavlink

    for name in ("_WhisperEncoderAlone", "_ClapAudioAlone", "_PasstAlone", "_CLIPTextAlone"):
        monkeypatch.setattr(getattr(loading_wavlink, name), "_keys_to_ignore_on_load_unexpected", None)
    for audio in (whisper_folder, unfused, save_passt(tmp_path)):
        WavLinkModel.from_audio_text_pretrained(str(audio), str(bert_folder))


def test_optional_file(wavlink_folder, tmp_path):
    assert optional_file(str(wavlink_folder), "none.json") is None
    assert optional_file(str(wavlink_folder), "config.json") == str(wavlink_folder / "config.json")


OPTIONAL = """
from modeling_wavlink.compat_wavlink import optional_file
print(optional_file("user/files", "none.json"), bool(optional_file("user/files", "config.json")))
print(optional_file("user/files", "other.json", local_files_only=True))
try:
    optional_file("user/none", "config.json")
except OSError as error:
    print("refused")
"""


@pytest.mark.slow
def test_optional_file_on_the_hub(hub, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/config.json").write_text("{}")
    hub.add_repo("user/files", tmp_path / "files", "model")
    assert hub.run(OPTIONAL, tmp_path / "home").splitlines()[-3:] == ["None True", "None", "refused"]
