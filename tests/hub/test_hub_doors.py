"""Doors through the Hub, on loopback: pushed by transformers', peft's and datasets' own calls, loaded without ours.

That is a process that cannot import this repository. What it has loaded it loads again with the server gone;
when a branch moves it gets the new, and the old by its commit.
"""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.clean_process import run_clean
from tests.conftest import RATE, tone
from tests.hub_server import TOKEN, Hub

pytestmark = pytest.mark.slow  # two processes that import everything push and load what all tests look at
TEXTS = ["a dog barks", "the bell rings"]

PUSH = """
import json, sys, numpy as np, torch
from datasets import Dataset, Features, List, Value
from peft import LoraConfig, get_peft_model
from modeling_wavlink import WavLinkModel
from wavlink.evaluation.embed_split import embed_audio
from processing import WavLinkFeatureExtractor, WavLinkProcessor
from transformers import AutoTokenizer
folder, clips = "FOLDER", np.load("CLIPS")
model = WavLinkModel.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config.text_config)
processor = WavLinkProcessor(WavLinkFeatureExtractor.from_pretrained(folder), tokenizer)
model.push_to_hub("user/wavlink")
processor.push_to_hub("user/wavlink")

names = ["one.wav", "two.wav", "three.wav"]
rows = [{"audio": {"array": clip, "sampling_rate": 16000}} for clip in clips]
found = embed_audio(model, processor, rows, [1.0] * len(rows), progress=False)
columns = {"file": [names[row] for row in found.rows], "embedding": found.vectors.numpy()}
features = Features({"file": Value("string"), "embedding": List(Value("float32"), model.config.projection_dim)})
Dataset.from_dict(columns, features=features).push_to_hub("user/embeddings")

lora = LoraConfig(r=2, target_modules=r"audio_model.*(q_proj|v_proj)", modules_to_save=["audio_projection"])
adapted = get_peft_model(model, lora)
torch.manual_seed(3)
for name, parameter in adapted.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter, std=0.2)
adapted.push_to_hub("user/adapter")
inputs = processor(audio=clips[0], text=TEXTS, sampling_rate=16000, return_tensors="pt")
with torch.no_grad():
    vector = adapted.eval()(**inputs).audio_embeds[0]
print(json.dumps({"adapted": vector.tolist(), "embeddings": found.vectors.tolist()}))
"""

LOAD = """
import json, numpy as np, torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModel, AutoProcessor, pipeline
clips, found = np.load("CLIPS"), {}
model = AutoModel.from_pretrained("user/wavlink", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("user/wavlink", trust_remote_code=True)
inputs = processor(audio=clips[0], text=TEXTS, sampling_rate=16000, return_tensors="pt")
with torch.no_grad():
    output = model(**inputs)
found["audio"], found["text"] = output.audio_embeds[0].tolist(), output.text_embeds.tolist()
task = "zero-shot-audio-classification"
classify = pipeline(task, model="user/wavlink", trust_remote_code=True)
scores = {x["label"]: x["score"] for x in classify(clips[0], candidate_labels=["dog", "bell"])}
found["scores"] = scores["dog"], scores["bell"]
rows = load_dataset("user/embeddings", split="train")
found["files"] = list(rows["file"])
vectors = torch.tensor(np.stack(rows.with_format("numpy")["embedding"][:]))
found["embeddings"], found["nested"] = vectors.tolist(), model.truncate_embeddings(vectors, 8).tolist()
own = "modeling_wavlink", "processing", "wavlink"
found["modules"] = sorted(name for name in sys.modules if name.split(".")[0] in own)
adapted = PeftModel.from_pretrained(model, "user/adapter").eval()
with torch.no_grad():
    found["adapted"] = adapted(**inputs).audio_embeds[0].tolist()
"""

TASKS = """
def task_of(repo):
    try:
        return pipeline(model=repo, trust_remote_code=True).task
    except RuntimeError as error:
        return str(error)
found["tasks"] = task_of("user/wavlink"), task_of("user/tagged")
"""

PRINT = """
print(json.dumps(found))
"""

MOVED = """
import json, numpy as np, torch
from transformers import AutoModel
inputs = torch.load("INPUTS", weights_only=True)
def vector(**pins):
    model = AutoModel.from_pretrained("user/moving", trust_remote_code=True, **pins).eval()
    with torch.no_grad():
        return model.get_audio_features(**inputs).pooler_output[0].tolist()
"""


@pytest.fixture(scope="module")
def desk(hub, tmp_path_factory, whisper_folder, bert_folder, processor):
    """Where the doors are tried: a WavLink's folder to push, clips, and what both processes' code names."""
    from modeling_wavlink import WavLinkModel

    root = tmp_path_factory.mktemp("desk")
    torch.manual_seed(0)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(bert_folder), text_pooling="mean").eval()
    torch.nn.init.normal_(model.audio_model.global_token)
    model.save_pretrained(root / "wavlink")
    processor.save_pretrained(root / "wavlink")
    clips = np.stack([tone(200 * (i + 1), 1.0, i) for i in range(3)])
    np.save(root / "clips.npy", clips)
    inputs = processor(audio=clips[0], sampling_rate=RATE, return_tensors="pt")
    torch.save(dict(inputs), root / "inputs.pt")
    return root


def written(code: str, desk) -> str:
    names = {"FOLDER": desk / "wavlink", "CLIPS": desk / "clips.npy", "INPUTS": desk / "inputs.pt"}
    for name, path in names.items():
        code = code.replace(f'"{name}"', repr(str(path)))
    return code.replace("TEXTS", repr(TEXTS))


@pytest.fixture(scope="module")
def pushed(hub, desk) -> dict:
    """What the pushing process had; it is the only one that may import this repository."""
    found = json.loads(hub.run(written(PUSH, desk), desk / "pusher", TOKEN).splitlines()[-1])
    card = b"---\nlibrary_name: transformers\npipeline_tag: zero-shot-audio-classification\n---\n"
    hub.add_repo("user/tagged", desk / "wavlink", "model")
    hub.commit(hub.root / "models/user/tagged", "main", {"README.md": card})
    return found


@pytest.fixture(scope="module")
def loaded(hub, desk, pushed) -> dict:
    """What a clean environment got from the Hub, into `desk/home`."""
    environment = hub.environment(desk / "home")
    code = written(LOAD + TASKS + PRINT, desk)
    return json.loads(run_clean(code, tmp_path=desk, environment=environment).splitlines()[-1])


def assert_close(got, expected) -> None:
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=1e-6, rtol=0)


def test_pushed_model_gives_the_same_vectors_in_a_clean_environment(loaded, model, processor, desk):
    """`model` is made like the pushed one, with the same seed."""
    inputs = processor(audio=np.load(desk / "clips.npy")[0], text=TEXTS, sampling_rate=RATE, return_tensors="pt")
    from modeling_wavlink import WavLinkModel

    with torch.no_grad():
        output = WavLinkModel.from_pretrained(desk / "wavlink").eval()(**inputs)
    assert loaded["modules"] == []
    assert_close(loaded["audio"], output.audio_embeds[0].tolist())
    assert_close(loaded["text"], output.text_embeds.tolist())
    assert sum(loaded["scores"]) == pytest.approx(1.0, abs=1e-6)


def test_pushed_adapter_changes_the_model_equally(loaded, pushed):
    assert_close(loaded["adapted"], pushed["adapted"])
    assert np.abs(np.subtract(loaded["adapted"], loaded["audio"])).max() > 1e-2


def test_a_pushed_data_set_of_embeddings_is_exact_and_nested(loaded, pushed):
    assert loaded["files"] == ["one.wav", "two.wav", "three.wav"]
    assert loaded["embeddings"] == pushed["embeddings"]
    prefix = np.array(pushed["embeddings"])[:, :8]
    assert_close(loaded["nested"], (prefix / np.linalg.norm(prefix, axis=1, keepdims=True)).astype("float32").tolist())
    assert_close(loaded["embeddings"][0], loaded["audio"])


def test_a_pipeline_knows_its_task_from_the_config(loaded):
    """A stock push writes a card that names no task; the config's `custom_pipelines` does."""
    assert loaded["tasks"] == ["zero-shot-audio-classification"] * 2


def test_everything_loads_from_the_cache_without_the_server(hub, desk, loaded, tmp_path):
    """Offline is said, as otherwise the Hub's client tries again for minutes before it takes its cache."""
    gone = Hub(tmp_path / "gone")
    gone.close()
    environment = gone.environment(desk / "home", HF_HUB_OFFLINE="1")
    asked = len(hub.requests)
    again = json.loads(run_clean(written(LOAD + PRINT, desk), tmp_path=desk, environment=environment).splitlines()[-1])
    assert again == {name: value for name, value in loaded.items() if name != "tasks"}
    assert len(hub.requests) == asked


def test_branch_gives_new_weights_and_pinned_commit_old_ones(hub, desk):
    """Weights, then code, move on; the cache of the clean environment has the first."""
    source = (desk / "wavlink/modeling_wavlink.py").read_text()
    line = "F.normalize(projection(pooled).float(), dim=-1)"
    assert source.count(line) == 1
    weights = load_file(desk / "wavlink/model.safetensors")
    weights["audio_model.global_token"] *= -2
    save_file(weights, desk / "other.safetensors", metadata={"format": "pt"})
    environment = hub.environment(desk / "mover")
    first = hub.add_repo("user/moving", desk / "wavlink", "model")
    code = written(MOVED + "print(json.dumps(vector()))", desk)
    before = json.loads(run_clean(code, tmp_path=desk, environment=environment).splitlines()[-1])
    repo = hub.root / "models/user/moving"
    second = hub.commit(repo, "main", {"model.safetensors": desk / "other.safetensors"})
    hub.commit(repo, "main", {"modeling_wavlink.py": source.replace(line, f"-{line}").encode()})
    pins = [{}, {"revision": first}, {"revision": second}, {"code_revision": second}]
    code = written(MOVED, desk) + f"print(json.dumps([vector(**pins) for pins in {pins}]))"
    out = run_clean(code, tmp_path=desk, environment=environment)
    now, at_first, at_second, with_old_code = json.loads(out.splitlines()[-1])
    assert at_first == before
    assert np.abs(np.subtract(at_second, before)).max() > 1e-3
    assert_close(now, np.negative(at_second).tolist())
    assert with_old_code == at_second


def test_nothing_pushed_is_pickled(hub, loaded):
    names = {path.name for repo in ("wavlink", "adapter") for path in (hub.root / "models/user" / repo).rglob("*")}
    assert {"model.safetensors", "adapter_model.safetensors", "config.json", "processor_config.json"} <= names
    assert not [name for name in names if os.path.splitext(name)[1] in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
