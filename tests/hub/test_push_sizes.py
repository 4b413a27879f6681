"""The paper's three sizes, made from towers on the Hub, pushed, loaded without us and ready for their first stage.

The towers are as large as the real ones and stored as those are, with random weights. Small and Large are opt-in:
`pytest -m big tests/hub/test_push_sizes.py -s` prints their seconds and their memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from modeling_wavlink import WavLinkConfig
from tests.conftest import clip_tokenizer
from tests.hub_server import TOKEN, Hub
from tests.processes import started
from wavlink.training.recipes import get_recipe

ROOT = Path(__file__).parents[2]
PARAMETERS = {"base": 84.28, "small": 151.98, "large": 761.60}  # millions: Table 1
VISION = {  # of the whole CLIPs, which we leave out
    "openai/clip-vit-base-patch32": {},
    "openai/clip-vit-large-patch14": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 14,
    },
}
CLIENT = """
import json, sys
sys.path = [path for path in sys.path if path]
import torch
from transformers import AutoModel, AutoProcessor
name = NAME
model = AutoModel.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
assert "modeling_wavlink" not in sys.modules
found = [sum(p.numel() for p in model.parameters()), str(model.dtype), processor.feature_extractor.padding]
del model
sys.path.insert(0, "")
import train
from wavlink.training.factory import build, refuse_bad_start
recipe = train.parse_recipe([STAGE, "--init", name])
refuse_bad_start(recipe)
model, processor = build(recipe, lambda: ())
found += [model.config.matryoshka_dims, sum(p.numel() for p in model.parameters() if p.requires_grad)]
print(json.dumps(found))
"""


def add_towers(hub: Hub, size: str) -> tuple[str, str]:
    """A whole Whisper and a whole CLIP of the size under the recipe's ids, Large's Whisper in half precision."""
    config, recipe = WavLinkConfig.for_size(size), get_recipe(f"{size}_stage1")
    torch.manual_seed(1)
    dtype = torch.float16 if size == "large" else torch.float32
    with tempfile.TemporaryDirectory(dir=hub.root) as folder:
        whisper = WhisperModel._from_config(WhisperConfig.from_dict(config.audio_config.to_dict()), dtype=dtype)
        whisper.save_pretrained(folder)
        del whisper
        WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins).save_pretrained(folder)
        hub.add_repo(recipe.audio_model, Path(folder), "model")
    ids = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }  # as OpenAI's configs say: the end is the highest id
    text = CLIPTextConfig.from_dict(config.text_config.to_dict() | ids)
    width = config.projection_dim
    with tempfile.TemporaryDirectory(dir=hub.root) as folder:
        vision = VISION[recipe.text_model] | {"projection_dim": width}
        whole = CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=width)
        CLIPModel(whole).save_pretrained(folder)
        clip_tokenizer().save_pretrained(folder)
        hub.add_repo(recipe.text_model, Path(folder), "model")
    return recipe.audio_model, recipe.text_model


def push(hub: Hub, size: str, home: Path) -> str:
    """The command; prints its seconds and the peak memory of it and of the clean environment that it starts."""
    command = [sys.executable, "-m", "hub_cards.push", "--init", size, f"user/wavlink-{size}"]
    begun = time.perf_counter()
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with started(command, env=hub.environment(home, TOKEN), cwd=ROOT, **options) as process:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    print(f"\n{size}: {time.perf_counter() - begun:.0f} s, peak {usage.ru_maxrss / 2**20:.1f} GiB resident")
    assert process.returncode == 0, output[-4000:]
    return output


def check(hub: Hub, size: str, tmp_path: Path) -> None:
    whisper, clip = add_towers(hub, size)
    push(hub, size, tmp_path / "home")
    repo_id = f"user/wavlink-{size}"
    assert [commit["title"] for commit in hub.history(repo_id)] == ["initial commit", "WavLink"]
    towers = {name: hub.find("models", name, "main")[1] / "model.safetensors" for name in (whisper, clip)}
    pushed = hub.find("models", repo_id, "main")[1] / "model.safetensors"
    pairs = {
        "audio_model.encoder.layers.0.fc1.weight": (whisper, "encoder.layers.0.fc1.weight"),
        "text_model.encoder.layers.0.mlp.fc1.weight": (clip, "text_model.encoder.layers.0.mlp.fc1.weight"),
        "text_projection.weight": (clip, "text_projection.weight"),
    }
    with safe_open(pushed, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}
        for name, (tower, there) in pairs.items():
            with safe_open(towers[tower], "pt") as source:
                assert torch.equal(file.get_tensor(name), source.get_tensor(there).float())
        token = file.get_tensor("audio_model.global_token")
    assert 0.01 < token.std() < 0.03  # new
    card = (pushed.parent / "README.md").read_text()
    assert "## Results" not in card
    code = CLIENT.replace("NAME", repr(repo_id)).replace("STAGE", repr(f"{size}_stage1"))
    count, dtype, padding, dims, learn = json.loads(hub.run(code, tmp_path / "trainer", timeout=1200).splitlines()[-1])
    assert round(count / 1e6, 2) == PARAMETERS[size] and (dtype, padding) == ("torch.float32", "max_length")
    width = 768 if size == "large" else 512
    assert dims == [width, width // 2, width // 4, width // 8]
    assert learn == count - 1500 * WavLinkConfig.for_size(size).audio_config.d_model - 1  # sinusoids, InfoNCE's bias


@pytest.fixture
def fresh(tmp_path):
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.mark.slow
def test_base_is_pushed_untrained_and_ready_for_its_first_stage(fresh, tmp_path):
    check(fresh, "base", tmp_path)


@pytest.mark.big
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_larger_size_is_pushed_untrained_and_ready_for_its_first_stage(size, fresh, tmp_path):
    check(fresh, size, tmp_path)
