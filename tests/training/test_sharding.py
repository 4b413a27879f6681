"""Config files for `accelerate launch`; two processes, sharded or not, train and evaluate as one."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoModel

import train
from tests.processes import run_process
from tests.tone_runs import (
    TEXT_CONFIG,
    folder,  # noqa: F401
)
from wavlink.evaluation import embed_split as embedding
from wavlink.training import distributed as sharding
from wavlink.training import finetuning

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"
SMALL = [
    "--label_prompt",
    "",
    "--num_workers",
    "0",
    "--mixed_precision",
    "no",
    "--text_config",
    json.dumps(TEXT_CONFIG),
]


@pytest.fixture(scope="module")
def odd(folder, tmp_path_factory):  # noqa: F811
    """The audiofolder of tones with 13 clips for validation, which two processes cannot divide."""
    root = tmp_path_factory.mktemp("odd") / "tones"
    shutil.copytree(folder, root)
    metadata = root / "validation" / "metadata.csv"
    metadata.write_text("\n".join(metadata.read_text().splitlines()[:-1]))
    return root


def command(data, output, *options) -> list[str]:
    return ["quickstart", "--data", str(data), "--output_dir", str(output), *SMALL, *options]


def launch(config: str, *arguments) -> None:
    run = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = run_process([*run, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def records(output, key: str) -> list:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [record[key] for record in map(json.loads, lines) if key in record]


def weights(output) -> dict[str, torch.Tensor]:
    return load_file(output / "last/model.safetensors")


def assert_trained_alike(output, alone) -> None:
    losses = records(alone, "loss")
    assert len(losses) == 6 and records(output, "loss") == pytest.approx(losses, rel=1e-5)
    assert records(output, "scale") == pytest.approx(records(alone, "scale"), rel=1e-6)
    assert records(output, "validation") == records(alone, "validation") != []
    expected, got = weights(alone), weights(output)
    assert {name: x.shape for name, x in got.items()} == {name: x.shape for name, x in expected.items()}
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-5, msg=name)
    # Each process writes its random state: the run did have two.
    newest = max((output / "checkpoints").iterdir())
    assert {path.name for path in newest.glob("random_states_*")} == {"random_states_0.pkl", "random_states_1.pkl"}


@pytest.mark.parametrize(
    "name, kind, processes, machines",
    [
        ("one_gpu", DistributedType.NO, 1, 1),
        ("ddp_8gpu", DistributedType.MULTI_GPU, 8, 1),
        ("ddp_64gpu", DistributedType.MULTI_GPU, 64, 8),
        ("fsdp2_8gpu", DistributedType.FSDP, 8, 1),
        ("cpu_2", DistributedType.MULTI_GPU, 2, 1),
        ("fsdp2_cpu_2", DistributedType.FSDP, 2, 1),
    ],
)
def test_config_files_are_accelerates_own(name, kind, processes, machines):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.num_machines) == (kind, processes, machines)
    assert config.mixed_precision == "no" and config.use_cpu == ("cpu" in name)
    assert (config.fsdp_config.get("fsdp_version") == 2) == (kind == DistributedType.FSDP)


def test_every_config_file_is_tested():
    assert len(list(CONFIGS.iterdir())) == 6


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(odd, tmp_path):
    """Batches of five: three clips on one process, two on the other."""
    options = ["--batch_size", "5", "--max_steps", "6"]
    alone = train.train(train.parse_recipe(command(odd, tmp_path / "alone", *options)))
    launch("cpu_2.yaml", *command(odd, tmp_path / "together", *options))
    assert_trained_alike(tmp_path / "together", alone)


@pytest.mark.slow
def test_sharded_processes_train_as_one_and_resume(odd, tmp_path):
    """In chunks and with the bias learning, so that accumulation and every whole parameter take part."""
    options = ["--batch_size", "4", "--max_steps", "6", "--save_steps", "2", "--loss_type", "sigmoid"]
    alone = train.train(train.parse_recipe(command(odd, tmp_path / "alone", *options)))
    sharded = tmp_path / "sharded"
    arguments = command(odd, sharded, *options, "--micro_batch_size", "1")
    launch("fsdp2_cpu_2.yaml", *arguments)
    assert_trained_alike(sharded, alone)
    shards = (sharded / "checkpoints/step-00000006/pytorch_model_fsdp_0").glob("*.distcp")
    assert sorted(path.name for path in shards) == ["__0_0.distcp", "__1_0.distcp"]
    for name in ("best", "last"):
        model = AutoModel.from_pretrained(sharded / name, trust_remote_code=True)
        assert type(model).__name__ == "WavLinkModel" and model.logit_scale.shape == ()
    whole, metrics = weights(sharded), (sharded / "metrics.jsonl").read_text()
    shutil.rmtree(sharded / "checkpoints/step-00000006")
    shutil.rmtree(sharded / "last")
    launch("fsdp2_cpu_2.yaml", *arguments)
    assert (sharded / "metrics.jsonl").read_text() == metrics
    assert all(torch.equal(x, whole[name]) for name, x in weights(sharded).items())


def test_a_share_is_every_nth_clip_and_equally_long_for_all(monkeypatch):
    order = torch.tensor([4, 0, 2, 1, 3]).numpy()
    monkeypatch.setattr(embedding.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(embedding.dist, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(embedding.dist, "get_rank", lambda rank=rank: rank)
        shares.append(embedding._share(order).tolist())
    assert shares == [[4, 1], [0, 3], [2, 3]]


def test_optimizer_groups_do_not_mix_whole_and_sharded_parameters(model):
    groups = [group["params"] for group in finetuning.parameter_groups(model, 0.1)]
    assert sum(map(len, groups)) == sum(p.requires_grad for p in model.parameters())
    assert all(len({p.ndim == 0 for p in group}) == 1 for group in groups)


@pytest.mark.parametrize("batch_size, micro, fits", [(4, 1, True), (5, 2, False), (7, 2, True), (5, 0, True)])
def test_sharded_processes_need_equally_many_chunks(batch_size, micro, fits):
    """7 clips over two processes are 4 and 3, both two chunks of two; 5 are 3 and 2, two chunks and one."""
    accelerator = SimpleNamespace(is_fsdp2=True, num_processes=2)
    if fits:
        sharding.refuse_unequal_chunks(accelerator, batch_size, micro)
    else:
        with pytest.raises(ValueError, match="1 chunks .* and 2 on others: make batch_size a multiple of 2"):
            sharding.refuse_unequal_chunks(accelerator, batch_size, micro)
    sharding.refuse_unequal_chunks(SimpleNamespace(is_fsdp2=False, num_processes=2), batch_size, micro)


@pytest.mark.slow
@pytest.mark.parametrize("version, precision, message", [(1, "bf16", "fsdp_version: 2"), (2, "fp16", "bf16 or fp32")])
def test_what_does_not_shard_is_refused(monkeypatch, version, precision, message):
    fake = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=version == 2)
    monkeypatch.setattr(sharding, "Accelerator", lambda **options: fake)
    with pytest.raises(ValueError, match=message):
        sharding.start(precision)


@pytest.mark.slow
def test_compiled_towers_train_as_eager_ones(odd, tmp_path, monkeypatch):
    """The graphs are captured and differentiated as in real compilation; only their machine code is left out, which
    takes minutes on a CPU."""
    compiled = []
    compile_module = torch.nn.Module.compile

    def without_code_generation(module, **options):
        compiled.append(type(module).__name__)
        compile_module(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", without_code_generation)
    losses, names = [], []
    for choice in ("false", "true"):
        run = train.Run(train.parse_recipe(command(odd, tmp_path, "--batch_size", "4", "--compile", choice)))
        run.model.train()
        batches = run.feed.batches(run.processor, 0)
        losses.append([run.learn(batch)[0] for _, batch in zip(range(2), batches, strict=False)])
        names.append(set(run.model.state_dict()))
        assert len(compiled) == (2 if choice == "true" else 0)
    assert compiled == ["WavLinkAudioModel", "BertModel"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and names[1] == names[0]
