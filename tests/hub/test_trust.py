"""Data never decides what code runs: a WavLink's own code, an index's model, and whatever else a file may name."""

import builtins
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline

import train
from hub_cards import push
from modeling_wavlink import WavLinkConfig, WavLinkModel, losses_wavlink
from processing import (
    WavLinkClapFeatureExtractor,
    WavLinkFeatureExtractor,
    WavLinkPasstFeatureExtractor,
    WavLinkProcessor,
)
from tests.clap_models import unfused  # noqa: F401
from tests.clean_process import run_clean
from tests.conftest import RATE, tone
from tests.former_index import write_former
from tests.tone_runs import folder, recipe  # noqa: F401
from wavlink import classification, localization
from wavlink.backends import onnx as onnx_export
from wavlink.embedder import Embedder
from wavlink.evaluation import command as evaluation
from wavlink.loading import load_for_evaluation, random_control
from wavlink.search import index_model
from wavlink.search import map as sound_map
from wavlink.search.build import index_sounds
from wavlink.search.command import main as search_main
from wavlink.search.copies import without_local_paths
from wavlink.search.hub import pull
from wavlink.search.index import Index
from wavlink.search.table import Table

ROOT = Path(__file__).parents[2]
EVIL = """
import pathlib
pathlib.Path({marker!r}).touch()
class Evil:
    pass
"""
AUTO_CLASSES = (
    "AutoConfig AutoModel AutoProcessor AutoFeatureExtractor AutoImageProcessor AutoModelForCausalLM".split()
)
AUTO_MAP = {name: "evil.Evil" for name in AUTO_CLASSES}


def edit(path: Path, **changes) -> dict:
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    fields |= changes
    path.write_text(json.dumps(fields), encoding="utf-8")
    return fields


def poison(source: Path, target: Path, marker: Path) -> Path:
    """A copy with code that makes `marker` when it is imported, named wherever transformers looks for a name."""
    shutil.copytree(source, target)
    code = EVIL.format(marker=str(marker))
    (target / "evil.py").write_text(code)
    for path in target.glob("*_wavlink.py"):
        path.write_text(code + path.read_text(encoding="utf-8"))
    config = edit(target / "config.json", auto_map=AUTO_MAP, custom_pipelines={"a": {"impl": "evil.Evil"}})
    nested = {
        name: config[name] | {"auto_map": AUTO_MAP} for name in ("audio_config", "text_config") if name in config
    }
    edit(target / "config.json", **nested)
    if (target / "processor_config.json").is_file():
        extractor = json.loads((target / "processor_config.json").read_text())["feature_extractor"]
        edit(target / "processor_config.json", auto_map=AUTO_MAP, feature_extractor=extractor | {"auto_map": AUTO_MAP})
    else:
        edit(target / "preprocessor_config.json", auto_map=AUTO_MAP)
    edit(target / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None], **AUTO_MAP})
    return target


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that only the code in a folder makes: no test here may end with it. Nor may anything be asked."""

    def refuse(prompt=""):
        raise AssertionError(f"the user was asked: {prompt}")

    monkeypatch.setattr(builtins, "input", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


@pytest.fixture
def evil(wavlink_folder, marker, tmp_path) -> Path:
    return poison(wavlink_folder, tmp_path / "evil", marker)


@pytest.fixture
def wavs(tmp_path) -> Path:
    (tmp_path / "wavs").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "wavs" / f"{number}.wav", tone(200.0 * (number + 1), 1.0, number), RATE)
    return tmp_path / "wavs"


LOADED = """
import sys
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
except Exception as error:
    print(error)
"""


@pytest.mark.slow
def test_code_in_the_folder_runs_if_it_is_trusted(wavlink_folder, tmp_path):
    """Else no test of this file could fail."""
    evil = poison(wavlink_folder, tmp_path / "evil", tmp_path / "it-ran")
    run_clean(LOADED, evil, tmp_path=tmp_path)
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("trust", [None, False, True])
def test_auto_classes_return_this_packages_classes(evil, trust):
    options = {} if trust is None else {"trust_remote_code": trust}
    assert type(AutoConfig.from_pretrained(evil, **options)) is WavLinkConfig
    assert type(AutoModel.from_pretrained(evil, **options)) is WavLinkModel
    assert type(AutoFeatureExtractor.from_pretrained(evil, **options)) is WavLinkFeatureExtractor
    if not trust:  # a tokenizer's own code is run where it is trusted
        processor = AutoProcessor.from_pretrained(evil, **options)
        assert type(processor) is WavLinkProcessor
        assert type(processor.feature_extractor) is WavLinkFeatureExtractor


@pytest.mark.parametrize("kind", [WavLinkClapFeatureExtractor, WavLinkPasstFeatureExtractor])
def test_other_feature_extractors_are_found_by_their_names(marker, tmp_path, kind):
    kind().save_pretrained(tmp_path / "tower")
    edit(tmp_path / "tower/preprocessor_config.json", auto_map=AUTO_MAP)
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path / "tower")) is kind


REGISTERED = """
import sys
{imports}
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
for auto in (AutoConfig, AutoModel, AutoProcessor, AutoFeatureExtractor):
    print(type(auto.from_pretrained(sys.argv[1])).__module__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    ["import processing", "import transformers, modeling_wavlink", "from modeling_wavlink import WavLinkModel"],
)
def test_importing_registers(evil, tmp_path, imports):
    command = [sys.executable, "-c", REGISTERED.format(imports=imports), str(evil)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert {line.split(".")[0] for line in done.stdout.split()} == {"modeling_wavlink", "processing"}


def test_processor_needs_no_trust_and_uses_this_packages_extractor(wavlink_folder, marker, tmp_path):
    processor = WavLinkProcessor.from_pretrained(wavlink_folder)
    assert type(processor.feature_extractor) is WavLinkFeatureExtractor
    processor.save_pretrained(tmp_path / "again")
    assert type(WavLinkProcessor.from_pretrained(tmp_path / "again").feature_extractor) is WavLinkFeatureExtractor
    processor.feature_extractor.save_pretrained(tmp_path / "again")  # and in the form of older transformers
    (tmp_path / "again/processor_config.json").unlink()
    assert type(WavLinkProcessor.from_pretrained(tmp_path / "again").feature_extractor) is WavLinkFeatureExtractor


def test_a_processor_loads_no_audio_tokenizer_that_its_file_names(wavlink_folder, marker, tmp_path):
    named = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": str(tmp_path / "none")}
    edit(wavlink_folder / "processor_config.json", audio_tokenizer=named)
    assert type(WavLinkProcessor.from_pretrained(wavlink_folder)) is WavLinkProcessor


def test_another_feature_extractor_and_a_tokenizer_with_code_are_refused(evil):
    edit(evil / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    with pytest.raises(ValueError, match="the tokenizer of .*evil needs code of its own, which is not run"):
        Embedder(str(evil))
    edit(evil / "processor_config.json", feature_extractor={"feature_extractor_type": "Wav2Vec2FeatureExtractor"})
    with pytest.raises(ValueError, match="feature extractor of type 'Wav2Vec2FeatureExtractor'"):
        WavLinkProcessor.from_pretrained(evil)


def test_ignored_code_is_named(evil, wavlink_folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("modeling_wavlink"), "propagate", True)
    with caplog.at_level("WARNING"):
        Embedder(str(wavlink_folder))
        assert "is not run" not in caplog.text
        Embedder(str(evil))
    assert "the model class that" in caplog.text and "'evil.Evil', is not run" in caplog.text


def search_it(evil, wavs, out):
    assert search_main(["index", str(wavs), "--model", str(evil), "--out", str(out)]) == 0
    assert search_main(["query", str(out), "a dog barks"]) == 0
    soundfile.write(wavs / "new.wav", tone(900.0), RATE)
    assert search_main(["index", str(wavs), "--out", str(out)]) == 0
    sound_map.draw_map(out, out.with_suffix(".html"), labels_from_text=["a dog", "rain"])


def evaluate_it(evil, wavs, out):
    rows = ["file_name,caption,label", "0.wav,a dog barks,dog", "1.wav,rain falls,rain", "2.wav,the bell rings,bell"]
    (wavs / "test").mkdir()
    for path in wavs.glob("*.wav"):
        path.rename(wavs / "test" / path.name)
    (wavs / "test/metadata.csv").write_text("\n".join(rows))
    evaluation.main(["--model", str(evil), f"random:{evil}", "--benchmark", str(wavs), "--output", str(out)])
    assert json.loads(out.read_text())


DOORS = {
    "embedder": lambda evil, wavs, out: next(Embedder(str(evil)).embed_files([str(wavs / "0.wav")])),
    "control": lambda evil, wavs, out: (load_for_evaluation(f"random:{evil}@3"), random_control(str(evil))),
    "search": search_it,
    "evaluate": evaluate_it,
    "classify": lambda evil, wavs, out: classification.main(
        [str(wavs / "0.wav"), "--model", str(evil), "--labels", "dog", "rain"]
    ),
    "locate": lambda evil, wavs, out: localization.main([str(evil), str(wavs / "0.wav"), "--query", "rain"]),
    "export": lambda evil, wavs, out: onnx_export.main([str(evil), str(out)]),
    "push": lambda evil, wavs, out: push.main([str(evil), "user/name", "--dry_run", "--output_dir", str(out)]),
    "pipeline": lambda evil, wavs, out: pipeline("zero-shot-audio-classification", model=str(evil)),
}


@pytest.mark.parametrize(
    "door", [pytest.param(door, marks=pytest.mark.slow if door in ("export", "push") else ()) for door in DOORS]
)
def test_no_command_runs_the_code_in_a_folder(door, evil, wavs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DOORS[door](evil, wavs, tmp_path / "out")


def test_no_command_runs_the_code_in_a_clap(unfused, marker, wavs, tmp_path):  # noqa: F811
    evil = poison(unfused, tmp_path / "clap", marker)
    assert len(next(Embedder(str(evil)).embed_files([str(wavs / "0.wav")])))


@pytest.mark.parametrize("towers", ["whisper_folder bert_folder", "whisper_folder clip_folder"])
def test_no_tower_runs_its_own_code(towers, marker, tmp_path, request):
    audio, text = (request.getfixturevalue(name) for name in towers.split())
    audio, text = poison(audio, tmp_path / "audio", marker), poison(text, tmp_path / "text", marker)
    WavLinkModel.from_audio_text_pretrained(str(audio), str(text)).save_pretrained(tmp_path / "both")
    WavLinkProcessor.from_audio_text_pretrained(str(audio), str(text)).save_pretrained(tmp_path / "both")
    AutoModel.from_pretrained(tmp_path / "both")
    assert "evil" not in (tmp_path / "both/tokenizer_config.json").read_text()


@pytest.mark.slow
def test_second_stage_uses_and_saves_this_packages_code(folder, evil, tmp_path, monkeypatch):  # noqa: F811
    losses = []

    def changed(*arguments, **options):
        losses.append(losses_wavlink.contrastive_loss(*arguments, **options))
        return losses[-1]

    monkeypatch.setattr("modeling_wavlink.modeling_wavlink.contrastive_loss", changed)
    train.train(recipe(folder, tmp_path / "run", "--init", str(evil), "--max_steps", "2"))
    assert losses  # of the working tree
    for path in (tmp_path / "run/best").iterdir():
        assert b"evil" not in path.read_bytes().replace(str(evil).encode(), b"")
    code = (tmp_path / "run/best/losses_wavlink.py").read_bytes()
    assert code == Path(losses_wavlink.__file__).read_bytes()
    run_clean(LOADED, tmp_path / "run/best", tmp_path=tmp_path)  # where it is trusted, and runs this code alone


@pytest.mark.parametrize("own", [False, True])
def test_an_adapter_beside_a_model_is_refused(wavlink_folder, marker, own, folder, tmp_path):  # noqa: F811
    if own:
        edit(wavlink_folder / "adapter_config.json", base_model_name_or_path=str(wavlink_folder), peft_type="LORA")
    else:
        edit(wavlink_folder / "adapter_config.json", base_model_name_or_path="someone/else", megatron_core="evil")
    with pytest.raises(ValueError, match="holds an adapter_config.json"):
        Embedder(str(wavlink_folder))
    with pytest.raises(ValueError, match="holds an adapter_config.json"):
        train.train(recipe(folder, tmp_path / "run", "--init", str(wavlink_folder)))


@pytest.mark.parametrize("tower", ["whisper_folder", "bert_folder", "clip_folder", "unfused"])
def test_an_adapter_beside_a_tower_is_refused(tower, whisper_folder, bert_folder, marker, tmp_path, request):
    named = tmp_path / "tower"
    shutil.copytree(request.getfixturevalue(tower), named)
    edit(named / "adapter_config.json", base_model_name_or_path="someone/else", peft_type="LORA")
    audio = tower in ("whisper_folder", "unfused")
    with pytest.raises(ValueError, match="tower holds an adapter_config.json"):
        WavLinkModel.from_audio_text_pretrained(
            str(named if audio else whisper_folder), str(bert_folder if audio else named)
        )


@pytest.mark.parametrize("where", ["", "text_config", "audio_config"])
@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_config_downloads_no_kernel(wavlink_folder, marker, where, name):
    fields = json.loads((wavlink_folder / "config.json").read_text())
    (fields[where] if where else fields)[name] = "someone/kernel"
    (wavlink_folder / "config.json").write_text(json.dumps(fields))
    model = WavLinkModel.from_pretrained(wavlink_folder)
    for config in (model.config, model.text_model.config, model.audio_model.config):
        assert config._attn_implementation in ("sdpa", "eager")
    assert (
        WavLinkModel.from_pretrained(wavlink_folder, attn_implementation="eager").config._attn_implementation
        == "eager"
    )


def test_a_wavlink_is_no_tower(wavlink_folder):
    config = json.loads((wavlink_folder / "config.json").read_text())
    with pytest.raises(ValueError, match="a WavLink cannot be a tower"):
        WavLinkConfig(text_config={"model_type": "wavlink"}, audio_config=config["audio_config"])


def renamed(path: Path, model: str) -> None:
    """Writes another model's name into an index, with a checksum that fits, as anybody can."""
    with Table.open(path).writing() as table:
        table.change(model=model)


def converted(path: Path, **fields) -> None:
    """Makes it an index of an earlier version, with these fields, and converts that."""
    former = write_former(path.with_name("former"), Table.open(path), "fp16", **fields)
    shutil.rmtree(path)
    pull(str(former), path)


@pytest.fixture
def index(wavlink_folder, wavs, tmp_path) -> Path:
    index_sounds(str(wavs), tmp_path / "index", str(wavlink_folder), progress=False)
    return tmp_path / "index"


def test_an_index_without_a_model_named_uses_the_one_of_this_machine(index, wavlink_folder, marker):
    assert Index.open(index).query("rain")
    converted(index, model=str(wavlink_folder), foreign=True)  # a field of earlier versions, which decides nothing
    assert Index.open(index).query("rain")
    assert "foreign" not in Table.open(index).manifest.to_json()


@pytest.mark.parametrize("named", ["{}", "random:{}", "random:{}@3"])
def test_an_index_finds_its_folder_from_any_working_folder(named, wavlink_folder, wavs, marker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index_sounds(str(wavs), tmp_path / "index", named.format("wavlink"), progress=False)
    assert Table.open(tmp_path / "index").manifest.model == named.format(wavlink_folder)
    monkeypatch.chdir(wavs)
    assert Index.open(tmp_path / "index").query("rain")


@pytest.mark.parametrize("foreign", [None, {}, {"foreign": False}, {"foreign": True}])
@pytest.mark.parametrize("command", [["query", "{index}", "rain"], ["index", "{wavs}", "--out", "{index}"]])
def test_an_index_cannot_have_a_folders_code_run(index, evil, wavs, foreign, command, tmp_path, monkeypatch):
    """Named by a path below the working folder, as one beside the index in an archive would be."""
    monkeypatch.chdir(tmp_path)
    if foreign is None:
        renamed(index, "evil")
    else:
        converted(index, model="evil", **foreign)
    soundfile.write(wavs / "new.wav", tone(900.0), RATE)
    with pytest.raises(ValueError, match="says it was made by 'evil', .* name it yourself with --model"):
        search_main([word.format(index=index, wavs=wavs) for word in command])
    assert Index.open(index, str(evil)).query("rain")  # the same weights: named by the user, and still no code is run


@pytest.mark.parametrize(
    "name", ["//server/share/model", "\\\\server\\share", "/no/such/folder", "random:", "random:/no/such@1", ".", "~"]
)
def test_an_index_reads_no_path_of_another_machine(index, marker, name):
    renamed(index, name)
    with pytest.raises(ValueError, match="name it yourself with --model"):
        Index.open(index).query("rain")


def test_an_index_with_the_path_of_another_model_is_refused(index, model, processor, marker, tmp_path):
    with torch.no_grad():
        model.logit_scale.add_(0.5)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    renamed(index, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="their vectors do not compare"):
        Index.open(index).query("rain")


@pytest.mark.parametrize("change", [{"projection_dim": 8, "matryoshka_dims": [8]}, {"matryoshka_dims": [4]}, None])
def test_an_index_with_the_path_of_a_model_of_other_dims_reads_no_weights(index, change, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    config = json.loads((Path(Table.open(index).manifest.model) / "config.json").read_text())
    config = config | change if change else {"model_type": "bert"}
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    (tmp_path / "other/model.safetensors").write_bytes(b"not to be read")
    renamed(index, str(tmp_path / "other"))
    monkeypatch.setattr(index_model, "new_embedder", lambda *_, **__: pytest.fail("weights are read"))
    with pytest.raises(ValueError, match="its vectors have .* dims.*name it yourself with --model"):
        Index.open(index).query("rain")


FROM_HUB = """
import sys
from wavlink.embedder import Embedder
from wavlink.search.build import index_sounds
from wavlink.search.index import Index
if "make" in sys.argv:
    index_sounds(sys.argv[2], sys.argv[3], "user/wavlink", progress=False)
try:
    print("found", len(Index.open(sys.argv[3]).query("rain")))
except ValueError as error:
    print("refused", error)
"""


@pytest.mark.slow
def test_an_index_downloads_no_model(hub, wavlink_folder, wavs, tmp_path):
    """What has been downloaded for one's own index is found again; on another machine the model is to be named."""
    hub.add_repo("user/wavlink", wavlink_folder, "model")
    run = [str(wavs), str(tmp_path / "index")]
    code = FROM_HUB.replace("sys.argv", repr(["", "make", *run]))
    assert hub.run(code, tmp_path / "home").splitlines()[-1] == "found 3"
    again = FROM_HUB.replace("sys.argv", repr(["", "query", *run]))
    assert hub.run(again, tmp_path / "home").splitlines()[-1] == "found 3"
    asked = len([path for _, path in hub.requests if "wavlink" in path])
    said = hub.run(again, tmp_path / "other home").splitlines()[-1]
    assert said.startswith("refused the index says it was made by 'user/wavlink', which this machine does not have")
    assert len([path for _, path in hub.requests if "wavlink" in path]) == asked > 0


@pytest.mark.parametrize("named", ["{}", "random:{}", "random:{}@3"])
def test_pushed_index_holds_no_local_paths(index, named):
    manifest = Table.open(index).manifest
    there, name = manifest.model, Path(manifest.model).name
    published = without_local_paths(replace(manifest, model=named.format(there)))
    assert published.model == named.format(name) and published.root == ""
