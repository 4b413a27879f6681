"""What a push prepares: one merged folder that loads without us, under the scores of these very weights alone."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hub_cards import push, verify
from modeling_wavlink import WavLinkModel
from tests.hub_server import TOKEN
from wavlink.config_file import write_field
from wavlink.loading import describe, load_for_evaluation
from wavlink.training.finetuning import merged_state_dict, save_adapter, set_trainable

FIGURE = {"value": 0.4321, "interval": [0.4, 0.5]}
FIGURES = {name: FIGURE for name in ("R@1", "R@5", "R@10", "mAP@10")} | {
    "median_rank": {"value": 4, "interval": [3, 5]}
}
SCORES = {
    "benchmark": "my_sounds",
    "split": "test",
    "clips": 7,
    "captions": 9,
    "text_to_audio": {"32": FIGURES},
    "audio_to_text": {"32": FIGURES},
    "zero_shot": {"labels": 3, "chance": 1 / 3, "32": {"accuracy": FIGURE}},
    "multiple_choice": {"questions": 5, "chance": 0.25, "32": {"total": FIGURE}},
}


@pytest.fixture
def unverified(monkeypatch) -> None:
    """Without the clean process, where that is not the subject."""
    monkeypatch.setattr(push, "verify", lambda folder, expected: None)


def prepared(source, out: Path, *options: str, repo_id: str = "user/name") -> Path:
    names = [repo_id] if source is None else [str(source), repo_id]
    push.main([*names, "--dry_run", "--output_dir", str(out), *options])
    return out


def scores_of(source, path: Path, **changes) -> Path:
    """What the evaluation records of `source`, with other figures."""
    model, processor = load_for_evaluation(str(source))
    scores = SCORES | {"model": str(source), "about": describe(model, processor)} | changes
    path.write_text(json.dumps(scores))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_dry_run_leaves_a_verified_folder_with_a_card(wavlink_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(push, "HfApi", lambda: None)  # which nothing may ask
    scores = scores_of(wavlink_folder, tmp_path / "scores.json")
    capsys.readouterr()  # of the fixtures
    out = prepared(wavlink_folder, tmp_path / "out", "--scores", str(scores))
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "zero-shot-audio-classification"
    assert 'from_pretrained("user/name"' in card.text and "43.2" in card.text
    assert {"model.safetensors", "modeling_wavlink.py", "processing_wavlink.py"} <= {p.name for p in out.iterdir()}
    assert same(weights(out), weights(wavlink_folder))
    captured = capsys.readouterr()
    assert f"verified, not uploaded: {out}" in captured.out
    assert all(line.endswith(" ...") for line in captured.err.splitlines()) and captured.err.count("\n") == 3


def test_broken_and_pickled_checkpoints_are_refused(wavlink_folder, tmp_path):
    whole = load_file(wavlink_folder / "model.safetensors")
    part = {name: value for name, value in whole.items() if name != "audio_model.global_token"}
    save_file(part, wavlink_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="audio_model.global_token"):
        prepared(wavlink_folder, tmp_path / "out")
    (wavlink_folder / "model.safetensors").unlink()
    torch.save(whole, wavlink_folder / "pytorch_model.bin")
    with pytest.raises(SystemExit, match="offers no weights in safetensors"):
        prepared(wavlink_folder, tmp_path / "out2")


@pytest.mark.slow
def test_other_vectors_and_foreign_code_are_refused(wavlink_folder, tmp_path, monkeypatch):
    save = WavLinkModel.save_pretrained

    def save_changed(self, folder, **options):
        self.audio_model.global_token.data.mul_(0.5)
        save(self, folder, **options)

    monkeypatch.setattr(WavLinkModel, "save_pretrained", save_changed)
    with pytest.raises(SystemExit, match="the audio vectors differ"):
        prepared(wavlink_folder, tmp_path / "out")

    def save_needy(self, folder, **options):
        save(self, folder, **options)
        code = Path(folder) / "modeling_wavlink.py"
        code.write_text(code.read_text() + "\nimport peft\n")

    monkeypatch.setattr(WavLinkModel, "save_pretrained", save_needy)
    with pytest.raises(
        SystemExit, match="does not load with transformers and torch alone: ModuleNotFoundError: .*peft"
    ):
        prepared(wavlink_folder, tmp_path / "out2")


@pytest.mark.parametrize("name", ["training_args.bin", "notes", "old.pkl"])
def test_pickled_files_fail_verification(wavlink_folder, name):
    torch.save({"a": 1}, wavlink_folder / name, _use_new_zipfile_serialization=name != "notes")
    with pytest.raises(ValueError, match=f"{name} in .* only safetensors are pushed"):
        verify.verify(wavlink_folder, {})


@pytest.mark.slow
def test_sharded_weights_load_like_one_file(wavlink_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "SHARD_SIZE", "100KB")
    out = prepared(wavlink_folder, tmp_path / "out")
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert {*json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].values()} == {*shards}
    assert same(weights(out), weights(wavlink_folder))


@pytest.fixture
def run(model, processor, wavlink_folder, tmp_path) -> Path:
    """What a LoRA run on `wavlink_folder` leaves: `best/`, merged, and `best/adapter/`."""
    torch.manual_seed(5)
    learned = set_trainable(copy.deepcopy(model), "lora", "both")
    with torch.no_grad():
        for parameter in (p for p in learned.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    best = tmp_path / "run/best"
    model.save_pretrained(best, state_dict=merged_state_dict(learned))
    extractor = copy.deepcopy(processor.feature_extractor)
    extractor.padding = "max_length"
    type(processor)(extractor, processor.tokenizer).save_pretrained(best)
    save_adapter(learned, best / "adapter", base=str(wavlink_folder))
    (tmp_path / "run/recipe.json").write_text("{}")
    return tmp_path / "run"


@pytest.mark.slow
def test_an_adapter_is_pushed_merged_with_its_run_s_padding_and_scores(run, wavlink_folder, tmp_path):
    scores = scores_of(run / "best", tmp_path / "scores.json")
    out = prepared(run / "best/adapter", tmp_path / "out", "--scores", str(scores))
    assert same(weights(out), weights(run / "best")) and not same(weights(out), weights(wavlink_folder))
    assert not list(out.glob("adapter*"))
    assert '"padding": "max_length"' in (out / "processor_config.json").read_text()


def test_stock_peft_s_adapter_is_merged_too(model, wavlink_folder, tmp_path, unverified):
    torch.manual_seed(6)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=r".*q_proj", modules_to_save=["text_projection"]
    )
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = str(wavlink_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    calibration = {"prior": 0.1, "dims": {"32": {"slope": 5.0, "intercept": -1.0}}}
    write_field(wavlink_folder, "match_calibration", calibration)
    out = prepared(wavlink_folder, tmp_path / "base")
    assert json.loads((out / "config.json").read_text())["match_calibration"] == calibration
    out = prepared(tmp_path / "adapter", tmp_path / "out")
    assert not json.loads((out / "config.json").read_text()).get("match_calibration")  # of other weights
    pushed = weights(out)
    before = weights(wavlink_folder)
    name = "audio_model.encoder.layers.0.self_attn.q_proj"
    lora = {key.rsplit(".lora_")[1][0]: value for key, value in adapted.state_dict().items() if f"{name}.lora_" in key}
    expected = before[f"{name}.weight"] + 6 / 4**0.5 * lora["B"] @ lora["A"]
    torch.testing.assert_close(pushed[f"{name}.weight"], expected, atol=1e-6, rtol=0)
    changed = {key for key in before if not torch.equal(before[key], pushed[key])}
    assert changed == {f"audio_model.encoder.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)} | {
        "text_projection.weight"
    }


def test_an_adapter_without_a_base_or_of_another_is_refused(run, tmp_path, unverified):
    path = run / "best/adapter/adapter_config.json"
    config = json.loads(path.read_text())
    adapter = run / "best/adapter/adapter_model.safetensors"
    state = load_file(adapter)
    save_file(state | {"base_model.model.audio_model.forgotten": torch.ones(1)}, adapter, metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="does not fit the model it names as its base: .*audio_model.forgotten"):
        prepared(run / "best/adapter", tmp_path / "out")
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(SystemExit, match="does not name the model it was trained on: push the merged folder"):
        prepared(run / "best/adapter", tmp_path / "out")
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(SystemExit, match="gone, which .*adapter was trained on, does not load"):
        prepared(run / "best/adapter", tmp_path / "out")
    with pytest.raises(SystemExit, match="did you mean .*run/best"):
        prepared(run, tmp_path / "out")


def test_scores_of_other_weights_are_refused(run, wavlink_folder, tmp_path, unverified):
    other = scores_of(run / "best", tmp_path / "other.json")
    with pytest.raises(
        SystemExit, match=r"other.json was measured on other weights, .*run/best \(sha256:.*measure these"
    ):
        prepared(wavlink_folder, tmp_path / "out", "--scores", str(other))
    control = scores_of(f"random:{wavlink_folder}", tmp_path / "control.json")
    with pytest.raises(SystemExit, match="control.json was measured on other weights"):
        prepared(wavlink_folder, tmp_path / "out2", "--scores", str(control))
    figure = {"32": {**FIGURES, "R@1": {"value": 0.9876, "interval": [0.9, 1.0]}}}
    own = scores_of(wavlink_folder, tmp_path / "own.json", text_to_audio=figure, audio_to_text=figure)
    coarse = json.loads(own.read_text())
    coarse["about"] |= {"backend": "openvino", "precision": "int8"}
    (tmp_path / "coarse.json").write_text(json.dumps(coarse))
    with pytest.raises(SystemExit, match=r"coarse\.json was measured in int8, and the card is of the weights in fp32"):
        prepared(wavlink_folder, tmp_path / "out4", "--scores", str(tmp_path / "coarse.json"))
    several = {"benchmark": "my_sounds", "models": [json.loads(path.read_text()) for path in (other, control, own)]}
    (tmp_path / "several.json").write_text(json.dumps(several))
    out = prepared(wavlink_folder, tmp_path / "out3", "--scores", str(tmp_path / "several.json"))
    assert (out / "README.md").read_text().count("98.8") >= 2
    assert "| 43.2 [40.0, 50.0] | 43.2 [40.0, 50.0] | 43.2 [40.0, 50.0] | 43.2" not in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "text", ["[1]", "not json", json.dumps(SCORES), json.dumps(SCORES | {"model": "m", "about": {}})]
)
def test_scores_without_their_weights_are_refused_first(text, tmp_path):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(SystemExit, match="scores.json is not what wavlink eval --output writes"):
        prepared("no/model", tmp_path / "out", "--scores", str(tmp_path / "scores.json"))


def test_scores_measured_on_a_commit_count_for_its_weights(
    hub, wavlink_folder, run, tmp_path, monkeypatch, unverified
):
    """The evaluation of a Hub id records the commit; one that changed the card alone has the same weights."""
    monkeypatch.setattr("hub_cards.scores.HfApi", partial(HfApi, endpoint=hub.endpoint, token=TOKEN))
    first = hub.add_repo("user/scored", wavlink_folder, "model")
    about = {"kind": "wavlink", "revision": first}
    scores = scores_of(wavlink_folder, tmp_path / "scores.json", model="user/scored", about=about)
    prepared(wavlink_folder, tmp_path / "out", "--scores", str(scores))
    with pytest.raises(SystemExit, match=f"user/scored .{first}"):
        prepared(run / "best", tmp_path / "out2", "--scores", str(scores))
    control = scores_of(wavlink_folder, tmp_path / "control.json", model="user/scored", about={**about, "seed": 0})
    with pytest.raises(SystemExit, match="measured on other weights"):
        prepared(wavlink_folder, tmp_path / "out3", "--scores", str(control))


@pytest.mark.slow
def test_half_precision_is_kept_and_matches_scores_in_fp32(model, processor, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    scores = scores_of(tmp_path / "half", tmp_path / "scores.json")
    out = prepared(tmp_path / "half", tmp_path / "out", "--scores", str(scores))
    assert {value.dtype for value in weights(out).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "words, said",
    [
        (["FOLDER", "user/name", "--dry_run"], "--dry_run needs --output_dir"),
        (["user/name"], "give either FOLDER and REPO_ID, or --init and REPO_ID"),
        (["FOLDER", "user/name", "--init", "base"], "give either FOLDER and REPO_ID, or --init and REPO_ID"),
        (["FOLDER", "name"], "must be user/name"),
        (["FOLDER", "user/name", "--create_pr", "--tag", "v1"], "leave --revision and --tag out"),
    ],
)
def test_wrong_push_commands_are_explained(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        push.main(words)
    assert stopped.value.code and said in str(stopped.value) + capsys.readouterr().err


def test_output_dir_must_be_empty(wavlink_folder, tmp_path, unverified):
    (tmp_path / "out").mkdir()
    prepared(wavlink_folder, tmp_path / "out", "--private")
    with pytest.raises(SystemExit, match="out is not an empty folder"):
        prepared(wavlink_folder, tmp_path / "out")
