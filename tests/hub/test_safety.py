"""What is loaded runs nothing that a file says: safetensors alone, no network, no file outside its own folder."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as sharded
from accelerate import Accelerator
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModel, TrainingArguments

import train
from modeling_wavlink import WavLinkModel
from processing.collator import AudioTextCollator
from tests.clap_models import unfused  # noqa: F401
from tests.clean_process import run_clean
from tests.conftest import RATE, tone
from tests.helpers import SHIPPED
from tests.tone_runs import folder, recipe  # noqa: F401
from wavlink.evaluation.embed_split import embed_audio
from wavlink.loading import load_for_evaluation
from wavlink.training.checkpoints import load_state, save_state
from wavlink.training.finetuning import load_adapter, save_adapter, set_trainable
from wavlink.training.trainer import WavLinkTrainer

ROOT = Path(__file__).parents[2]
CODE = sorted(path for path in ROOT.rglob("*.py") if not {"tests", "build"} & {*path.relative_to(ROOT).parts})
CODE = [path for path in CODE if not path.relative_to(ROOT).parts[0].startswith(".")]

PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
NETWORK = {"aiohttp", "asyncio", "ftplib", "http", "httpx", "huggingface_hub", "requests", "socket", "urllib"}
PROCESSES = {"ctypes", "multiprocessing", "subprocess"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"load_pickle", "read_pickle", "register_for_checkpointing", "full_load", "unsafe_load", "system", "popen"}

# The only files that may: one looks through a pickled index without running it; others start `git`, a clean Python,
# `wavlink train`, or the command that is measured.
MAY_IMPORT = {
    "wavlink/training/checkpoints.py": {"pickle"},
    "wavlink/kept_memory.py": {"ctypes"},  # glibc's mallopt
    "wavlink/backends/signal_stack.py": {"ctypes"},  # Linux's sigaltstack
    "wavlink/training/run_folder.py": {"subprocess"},
    "processing/datasets/worker_processes.py": {"multiprocessing"},  # starts DataLoader's own workers
    "hub_cards/push.py": {"huggingface_hub"},
    "hub_cards/verify.py": {"subprocess"},
    "hub_cards/space/folder.py": {"subprocess", "huggingface_hub"},
    "hub_cards/space/npm.py": {"subprocess"},
    "examples/demo.py": {"subprocess"},
    "examples/multilingual.py": {"subprocess"},
    "benchmarks/captions_at_scale.py": {"multiprocessing"},
    "benchmarks/forked.py": {"multiprocessing"},
    "benchmarks/load.py": {"multiprocessing", "subprocess"},
    "benchmarks/spoken_words.py": {"ctypes", "multiprocessing"},  # eSpeak NG
    "benchmarks/where.py": {"multiprocessing"},
}


def imports(tree: ast.AST) -> set[str]:
    """The first parts of what is imported, anywhere in a file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Calls that run what they read."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = name.rsplit(".", 1)[-1]
        loads = last == "load" and name.split(".")[0] in ("torch", "np", "numpy", "yaml", "jit")
        if name in RUNS_CODE or last in UNSAFE or options.get("shell") == "True":
            found.append(name)
        elif loads and name.startswith("torch") and options.get("weights_only") != "True":
            found.append(name)
        elif loads and (name.startswith("yaml") or options.get("allow_pickle", "False") != "False"):
            found.append(name)
        elif options.get("weights_only", "True") != "True" or options.get("use_safetensors", "True") == "False":
            found.append(name)
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_executes_data(path):
    tree, name = ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(ROOT))
    allowed = MAY_IMPORT.get(name, {"subprocess"} if name.startswith("benchmarks/") else set())
    assert not imports(tree) & (PICKLES | PROCESSES) - allowed
    assert not unsafe_calls(tree)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_code_opens_no_connection_and_starts_no_process(path):
    assert not imports(ast.parse(path.read_text(encoding="utf-8"))) & (PICKLES | NETWORK | PROCESSES)


def test_the_rules_find_examples():
    bad = """
torch.load(f); torch.load(f, weights_only=False); np.load(f, allow_pickle=True); yaml.load(f); eval(s); exec(s)
os.system(s); subprocess.run(s, shell=True); pd.read_pickle(f); accelerator.register_for_checkpointing(x)
AutoModel.from_pretrained(f, use_safetensors=False); torch.jit.load(f); accelerate.utils.load(f, weights_only=False)
"""
    good = 'torch.load(f, weights_only=True); np.load(f); model.eval(); re.compile("x"); load(f, use_safetensors=True)'
    assert len(unsafe_calls(ast.parse(bad))) == bad.count("(")
    assert not unsafe_calls(ast.parse(good))
    assert imports(ast.parse("import os.path, pickle as p\ndef f():\n    from urllib.request import x")) == {
        *("os", "pickle", "urllib"),
    }
    assert len(CODE) > 40 and ROOT / "train.py" in CODE


WATCHED = """
import os, numpy as np, torch
from transformers import AutoModel, AutoProcessor, pipeline  # libraries look around when they are imported
events = []
REFUSED = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "socket.gethostbyname",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
def watch(event, arguments):
    if event in REFUSED:
        events.append([event, repr(arguments), False])
        raise PermissionError(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND) != 0
        events.append(["open", os.path.abspath(os.fsdecode(arguments[0])), writes])
    elif event in CHANGES:
        events.append([event, os.path.abspath(os.fsdecode(arguments[0])), True])
sys.addaudithook(watch)
folder, clip = sys.argv[1], np.sin(np.arange(16000) / 9).astype(np.float32)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(audio=clip, text=["a dog barks"], sampling_rate=16000, return_tensors="pt")
with torch.no_grad():
    model(**inputs)
classify = pipeline("zero-shot-audio-classification", model=folder, trust_remote_code=True)
assert len(classify(clip, candidate_labels=["dog", "bell"])) == 2
import json
roots = [sys.prefix, sys.base_prefix, os.path.dirname(os.path.dirname(torch.__file__))]
print(json.dumps([events, roots]))
"""


@pytest.mark.slow
def test_loading_a_folder_reads_no_other_file(wavlink_folder, tmp_path):
    """As far as Python sees: its audit events. The Hub is not said to be offline, but would be refused."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = tmp_path / "hf"
    environment = {**kept, "HF_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(home / "inductor")  # torch makes its own folder, if only to have it
    out = run_clean(WATCHED, wavlink_folder, tmp_path=tmp_path, environment=environment)
    events, installed = json.loads(out.splitlines()[-1])
    assert [event for event in events if event[0] != "open" and not event[2]] == []
    places = [wavlink_folder, home, *map(Path, installed), *map(Path, ("/proc", "/sys", "/dev"))]
    assert [path for _, path, _ in events if not any(Path(path).is_relative_to(place) for place in places)] == []
    written = {path for _, path, writes in events if writes}
    assert written and [path for path in written if not Path(path).is_relative_to(home) and path != os.devnull] == []
    read = {Path(path).name for _, path, _ in events if Path(path).is_relative_to(wavlink_folder)}
    assert {"config.json", "modeling_wavlink.py", "processing_wavlink.py"} <= read  # the watch did see


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def bomb(tmp_path):
    """A pickled file that has gone off once, to show that it can, and is set again; none may go off in the test."""
    marker, path = tmp_path / "it-ran", tmp_path / "bomb.bin"
    torch.save({"logit_scale": Bomb(marker)}, path)
    torch.load(path, weights_only=False)
    marker.rmdir()
    yield path
    assert not marker.exists()


def only_pickled(source: Path, target: Path, bomb: Path) -> Path:
    """A copy whose weights are all in one pickled file."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(bomb, target / "pytorch_model.bin")
    return target


REFUSAL = "offers no weights in safetensors, .* can run code: .*save_pretrained"


def test_a_wavlink_with_pickled_weights_is_refused(wavlink_folder, bomb, tmp_path, folder):  # noqa: F811
    source = only_pickled(wavlink_folder, tmp_path / "pickled", bomb)
    with pytest.raises(ValueError, match=REFUSAL):
        WavLinkModel.from_pretrained(source)
    with pytest.raises(ValueError, match=REFUSAL):
        WavLinkModel.from_pretrained(source, use_safetensors=False)
    with pytest.raises(ValueError, match=REFUSAL):
        AutoModel.from_pretrained(source, trust_remote_code=True)
    with pytest.raises(ValueError, match=REFUSAL):
        load_for_evaluation(str(source))
    with pytest.raises(ValueError, match=REFUSAL):
        train.train(recipe(folder, tmp_path / "run", "--init", str(source)))


def test_pickled_file_beside_safetensors_is_not_read(wavlink_folder, bomb):
    shutil.copy(bomb, wavlink_folder / "pytorch_model.bin")
    WavLinkModel.from_pretrained(wavlink_folder)
    with pytest.raises(ValueError, match=REFUSAL):
        WavLinkModel.from_pretrained(wavlink_folder, use_safetensors=False)


@pytest.mark.parametrize("tower", ["whisper_folder", "unfused", "bert_folder", "clip_folder", "modernbert_folder"])
def test_a_tower_with_pickled_weights_is_refused(tower, request, whisper_folder, bert_folder, bomb, tmp_path):
    source = only_pickled(request.getfixturevalue(tower), tmp_path / "pickled", bomb)
    towers = (source, bert_folder) if tower in ("whisper_folder", "unfused") else (whisper_folder, source)
    with pytest.raises(ValueError, match=REFUSAL):
        WavLinkModel.from_audio_text_pretrained(*map(str, towers))


def test_pickled_clap_is_refused(unfused, bomb, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match=REFUSAL):
        load_for_evaluation(str(only_pickled(unfused, tmp_path / "pickled", bomb)))


def test_a_pickled_adapter_is_refused(model, wavlink_folder, bomb, tmp_path):
    adapted = set_trainable(model, "lora")
    save_adapter(adapted, tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    shutil.copy(bomb, tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(ValueError, match="only a folder written with LoRA"):
        load_adapter(adapted, tmp_path / "adapter")
    with pytest.raises(Exception, match="Weights only load failed"):  # peft's own door
        PeftModel.from_pretrained(WavLinkModel.from_pretrained(wavlink_folder), tmp_path / "adapter")


def test_a_pickled_part_of_an_evaluation_is_not_read(model, processor, bomb, tmp_path):
    rows = [{"audio": {"array": tone(300, 0.5), "sampling_rate": RATE}}]
    embed_audio(model, processor, rows, [1.0], progress=False, store=tmp_path)
    (part,) = tmp_path.glob("part-*.safetensors")
    shutil.copy(bomb, part)
    with pytest.raises(SafetensorError):
        embed_audio(model, processor, rows, [1.0], progress=False, store=tmp_path)


@pytest.fixture
def run() -> tuple[Accelerator, torch.nn.Module, torch.optim.Optimizer]:
    """An accelerator with a prepared model and an optimizer that has moments."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return accelerator, model, optimizer


PLACE = {"step": 7, "best": 0.1 + 0.2, "schedule": {"_last_lr": [1e-3 / 3]}, "feeds": [{"places": [[1, 2], None]}]}


def test_checkpoint_restores_weights_moments_and_position(run, tmp_path):
    accelerator, model, optimizer = run
    save_state(accelerator, tmp_path, PLACE)
    weights, moments = model.weight.detach().clone(), optimizer.state_dict()["state"][0]["exp_avg"].clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, weights)
    assert load_state(accelerator, tmp_path) == PLACE
    assert torch.equal(model.weight, weights) and torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moments)


@pytest.mark.parametrize("name", ["optimizer.bin", "pytorch_model.bin"])
def test_a_checkpoint_that_would_run_code_is_refused(run, bomb, tmp_path, name):
    save_state(run[0], tmp_path, PLACE)
    if name == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    shutil.copy(bomb, tmp_path / name)
    with pytest.raises(ValueError, match="no run has written and that could run code.*delete it"):
        load_state(run[0], tmp_path)


def test_random_states_run_no_code(run, bomb, tmp_path):
    """Accelerate goes on without random states that it cannot read."""
    save_state(run[0], tmp_path, PLACE)
    shutil.copy(bomb, tmp_path / "random_states_0.pkl")
    load_state(run[0], tmp_path)


def test_checkpoint_without_a_position_is_refused(run, bomb, tmp_path):
    """As runs before this version wrote it: the place in a pickled file."""
    run[0].save_state(str(tmp_path))
    shutil.copy(bomb, tmp_path / "custom_checkpoint_0.pkl")
    with pytest.raises(ValueError, match="has no place.json.*--output_dir"):
        load_state(run[0], tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shard_index_is_checked_before_torch_reads_it(run, bomb, tmp_path):
    accelerator, model, optimizer = run
    save_state(accelerator, tmp_path, PLACE)
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    sharded.save(states, checkpoint_id=tmp_path / "pytorch_model_fsdp_0", no_dist=True)
    index = tmp_path / "pytorch_model_fsdp_0/.metadata"
    assert index.is_file() and load_state(accelerator, tmp_path) == PLACE
    index.write_bytes(pickle.dumps(Bomb(bomb.with_name("it-ran"))))
    with pytest.raises(ValueError, match="could run code"):
        load_state(accelerator, tmp_path)


def test_trainer_resumes_without_running_code_of_its_checkpoint(model, processor, bomb, tmp_path):
    rows = [
        {"audio": {"array": tone(200 * (i + 1), 0.3, i), "sampling_rate": RATE}, "caption": f"a {word}"}
        for i, word in enumerate(("dog", "cat"))
    ]
    options = {"per_device_train_batch_size": 2, "remove_unused_columns": False, "report_to": [], "use_cpu": True}
    options |= {"save_steps": 1, "disable_tqdm": True, "output_dir": str(tmp_path / "trainer")}

    def trainer(steps: int) -> WavLinkTrainer:
        arguments = TrainingArguments(max_steps=steps, **options)
        return WavLinkTrainer(model, arguments, AudioTextCollator(processor, ["caption"]), rows)

    trainer(1).train()
    checkpoint = tmp_path / "trainer/checkpoint-1"
    pickled = sorted(path.name for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin"))
    assert pickled == ["optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"]
    for name in pickled:
        honest = (checkpoint / name).read_bytes()
        shutil.copy(bomb, checkpoint / name)
        if name == "training_args.bin":  # written for people, never read
            trainer(2).train(resume_from_checkpoint=str(checkpoint))
        else:
            with pytest.raises(Exception, match="Weights only load failed"):
                trainer(2).train(resume_from_checkpoint=str(checkpoint))
        (checkpoint / name).write_bytes(honest)
