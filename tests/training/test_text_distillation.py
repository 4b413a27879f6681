"""`wavlink distill`: the student, what is written, determinism, and what is refused."""

import inspect
import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from modeling_wavlink import WavLinkModel
from modeling_wavlink.pooling_wavlink import sentence_transformers_pooling
from processing import WavLinkProcessor
from processing.prompt_templates import TEMPLATES
from tests.conftest import RATE, tone
from tests.wordpiece_models import WORDS, wordpiece, write_teacher
from wavlink import cli
from wavlink.training import text_distillation
from wavlink.training.distillation_texts import gather
from wavlink.training.sentence_encoder import kept_layers, load_teacher, make_student
from wavlink.training.text_distillation import Distillation, batches, distill, distillation_loss, similarity

SMALL = {"vocabulary": 75, "max_length": 24, "steps": 4, "batch_size": 8}
CAPTIONS = {
    "train": [
        ("a dog barks", "dog"),
        ("the cat meows, loud", "cat"),
        ("rain falls", "light_rain"),
        ("a bell rings", ""),
    ],
    "validation": [("A  dog barks", "dog"), ("the rain is low", ""), ("a loud singer.", "")],
    "test": [("the piano", ""), ("the piano", "")],
}


def write_data(root, captions=CAPTIONS):
    """An audiofolder with a caption and a label of each clip."""
    for split, rows in captions.items():
        (root / split).mkdir(parents=True)
        lines = ["file_name,caption,label"]
        for number, (caption, label) in enumerate(rows):
            soundfile.write(root / split / f"{number}.wav", tone(300, 0.05, number), RATE)
            lines.append(f'{number}.wav,"{caption}",{label}')
        (root / split / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("captioned") / "my_sounds")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teachers") / "teacher")


@pytest.fixture(scope="module")
def student(teacher, data, tmp_path_factory):
    """The folder of a student, and its record."""
    folder = tmp_path_factory.mktemp("students") / "student"
    lines = []
    record = distill(Distillation(str(teacher), str(data), str(folder), **SMALL), lines.append)
    assert lines[-1].startswith("step 4 of 4: loss ")
    return folder, record


def test_texts_are_those_of_the_split_and_held_out_ones_are_in_no_training_text(data):
    texts = gather(str(data), "train", ["validation", "test"], (), WORDS, seed=0)
    assert texts.captions == ["a dog barks", "the cat meows, loud", "rain falls", "a bell rings"]
    assert {template.format("light rain") for template in TEMPLATES} < set(texts.labels)
    assert len(texts.labels) == 3 * len(TEMPLATES)
    assert texts.held_out_captions == [
        "the rain is low",
        "a loud singer.",
        "the piano",
    ]  # "A  dog barks" is trained on
    assert 0 < len(texts.held_out_sentences) == (len(texts.sentences) + len(texts.held_out_sentences)) // 10
    assert not set(texts.held_out_sentences) & set(texts.training)
    assert all(any(word in text for text in texts.training + texts.held_out_sentences) for word in WORDS)
    assert gather(str(data), "train", ["test"], (), WORDS, seed=0).sentences == texts.sentences
    assert gather(str(data), "train", ["test"], (), WORDS, seed=1).sentences != texts.sentences


def test_a_student_with_everything_is_the_teacher(teacher):
    full = load_teacher(str(teacher))
    size = len(full.tokenizer)
    same = make_student(full, range(3), range(size), 32)
    texts = ["a dog barks", "the loud rain falls, and a cat", "xyz"]
    torch.testing.assert_close(same.embed(same.tokenize(texts)), full.embed(full.tokenize(texts)))


def test_a_student_has_the_weights_of_its_layers_tokens_and_positions(teacher):
    full = load_teacher(str(teacher))
    kept = sorted(set(range(70)) - {2})
    small = make_student(full, [0, 2], kept, 20)
    old, new = full.model, small.model
    assert torch.equal(new.embeddings.word_embeddings.weight, old.embeddings.word_embeddings.weight[kept])
    assert torch.equal(new.embeddings.position_embeddings.weight, old.embeddings.position_embeddings.weight[:20])
    for name, weight in old.encoder.layer[2].state_dict().items():
        assert torch.equal(new.encoder.layer[1].state_dict()[name], weight)
    assert (
        new.config.hidden_dropout_prob
        == new.config.attention_probs_dropout_prob
        == 0.0
        < old.config.hidden_dropout_prob
    )
    assert new.config.num_hidden_layers == 2 and new.config.pad_token_id == small.tokenizer.pad_token_id


def test_padding_and_batches_change_no_vector(teacher):
    encoder = load_teacher(str(teacher))
    tokens = encoder.tokenize(["dog", "the loud rain falls", "a cat meows"])
    alone = torch.cat([encoder([ids]) for ids in tokens])
    torch.testing.assert_close(encoder.embed(tokens, batch_size=2), alone, atol=1e-5, rtol=0)


def test_loss_by_hand():
    axes = torch.eye(2)
    assert distillation_loss(axes, axes) == 0
    assert distillation_loss(axes, axes.flip(0)) == 1  # cosines 0; the similarities within are equal
    assert distillation_loss(axes[[0, 0]], axes) == pytest.approx(0.5 + 2 * 2 / 4)


def test_an_epoch_has_every_text_once():
    lengths = np.arange(50) % 7 + 1
    rows = batches(lengths, 4, seed=0)
    epoch = [next(rows) for _ in range(13)]
    assert sorted(np.concatenate(epoch)) == list(range(50)) and max(map(len, epoch)) == 4
    again = batches(lengths, 4, seed=0)
    assert all(np.array_equal(one, next(again)) for one in epoch)


def test_similarity_by_hand():
    axes = torch.eye(4)
    student = torch.cat([axes[:1].repeat(90, 1), axes[1:2].repeat(10, 1)])
    scores = similarity(student, axes[:1].repeat(100, 1))
    assert scores["texts"] == 100
    assert scores["mean"]["value"] == pytest.approx(0.9) and scores["quantile_5"]["value"] == 0
    low, high = scores["mean"]["interval"]
    assert 0.8 < low < 0.9 < high < 1
    assert similarity(student[:96], axes[:1].repeat(96, 1))["quantile_5"]["value"] == 0
    assert similarity(student[:94], axes[:1].repeat(94, 1))["quantile_5"]["value"] == 1


def test_training_brings_the_student_closer_to_the_teacher(teacher, data, tmp_path):
    scores = []
    for steps in (1, 60):
        task = Distillation(
            str(teacher), str(data), str(tmp_path / str(steps)), **SMALL | {"steps": steps, "learning_rate": 3e-3}
        )
        scores.append(distill(task, lambda line: None)["similarity"])
    assert all(scores[1][name]["mean"]["value"] > scores[0][name]["mean"]["value"] for name in scores[0])
    assert set(scores[0]) == {"captions", "sentences"}


def test_the_folder_loads_everywhere(student, teacher, whisper_folder, caplog):
    folder, record = student
    assert json.loads((folder / "distillation.json").read_text()) == record
    assert record["teacher"] == "teacher" and record["teacher_revision"].startswith("sha256:")
    assert record["layers"] == [0, 2] and record["vocabulary"] == 75 and record["steps"] == 4
    assert record["texts"]["captions"] == 4 and record["similarity"]["captions"]["texts"] == 2
    assert record["parameters"] < record["teacher_parameters"]
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert not caplog.records and model.dtype == torch.float32
    assert model.num_parameters() == record["parameters"] and len(tokenizer) == 75 and tokenizer.model_max_length == 24
    assert sentence_transformers_pooling(str(folder)) == "mean"
    wavlink = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(folder)).eval()
    processor = WavLinkProcessor.from_audio_text_pretrained(str(whisper_folder), str(folder))
    text = "a dog barks, the thunder is low"
    hidden = wavlink.get_text_features(**processor(text=[text], return_tensors="pt")).last_hidden_state
    encoder = load_teacher(str(folder))
    torch.testing.assert_close(F.normalize(hidden.mean(1), dim=-1), encoder.embed(encoder.tokenize([text])))
    assert wavlink.config.text_pooling == "mean"
    assert "/" not in json.dumps(record) and str(teacher) not in (folder / "config.json").read_text()


def test_sentence_transformers_gives_the_same_vectors(student):
    library = pytest.importorskip("sentence_transformers")
    folder, _ = student
    texts = ["a dog barks", "the loud rain falls, and a cat"]
    encoder = load_teacher(str(folder))
    vectors = library.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, encoder.embed(encoder.tokenize(texts)).numpy(), atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_pooling_is_the_teachers(pooling, data, tmp_path):
    write_teacher(tmp_path / "teacher", pooling=pooling)
    task = Distillation(str(tmp_path / "teacher"), str(data), str(tmp_path / "student"), **SMALL)
    assert distill(task, lambda line: None)["pooling"] == pooling
    assert sentence_transformers_pooling(str(tmp_path / "student")) == pooling


def test_equal_seeds_give_equal_files(student, teacher, data, tmp_path):
    folder, _ = student
    torch.rand(3)  # the global state has no influence, and none is left
    before = torch.get_rng_state()
    for seed in (0, 1):
        distill(
            Distillation(str(teacher), str(data), str(tmp_path / str(seed)), seed=seed, **SMALL), lambda line: None
        )
    assert torch.equal(torch.get_rng_state(), before)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (tmp_path / "0" / name).read_bytes() for name in files)
    one, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "1"))
    assert not torch.equal(one["embeddings.word_embeddings.weight"], other["embeddings.word_embeddings.weight"])


def test_layers():
    assert kept_layers((), 6) == [0, 2, 4, 5] and kept_layers((), 1) == [0] and kept_layers((), 3) == [0, 2]
    assert kept_layers((1, 2), 3) == [1, 2]
    for layers in ((3,), (-1, 0), (1, 0), (0, 0)):
        with pytest.raises(ValueError, match="layers must be of 0 to 2, each once and in order"):
            kept_layers(layers, 3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"layers": (0, 7)}, "layers must be of 0 to 2"),
        ({"vocabulary": 10}, r"vocabulary must be at least \d\d, got 10"),
        ({"max_length": 33}, "max_length must be at most the teacher's 32"),
        ({"max_length": 2}, "max_length must be at least 3"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"held_out": ["train"]}, "'train' is trained on"),
        ({"split": "test", "held_out": ["other"]}, "other"),
        ({"caption_columns": ["none"]}, "no column none"),
        ({"max_length": 3}, "no text of .* has at most max_length 3 tokens"),
    ],
)
def test_options_that_do_not_suit_are_refused(options, why, teacher, data, tmp_path):
    with pytest.raises(ValueError, match=why):
        distill(Distillation(str(teacher), str(data), str(tmp_path / "out"), **SMALL | options))
    assert not list(tmp_path.iterdir())


def test_data_without_other_captions_is_refused(teacher, tmp_path):
    same = {"train": CAPTIONS["train"], "validation": [("A DOG  barks", "")]}
    data = write_data(tmp_path / "data", same | {"test": [("", "dog")]})
    for held_out, why in (("validation", "every caption of validation is a training text"), ("test", "caption")):
        with pytest.raises(ValueError, match=why):
            distill(Distillation(str(teacher), str(data), str(tmp_path / "out"), held_out=[held_out], **SMALL))


def test_teachers_of_other_kinds_are_refused(teacher, clip_folder, modernbert_folder, bert_folder, tmp_path):
    for folder, why in (
        (clip_folder, "is a clip"),
        (modernbert_folder, "is a modernbert"),
        (bert_folder, "WordLevel"),
    ):
        with pytest.raises(ValueError, match=why):
            make_student(load_teacher(str(folder)), [0], [0], 8)
    with pytest.raises(ValueError, match="neither a folder"):
        load_teacher(str(tmp_path / "gone"))
    shutil.copytree(teacher, tmp_path / "max")
    (tmp_path / "max/1_Pooling/config.json").write_text('{"pooling_mode": "max"}')
    with pytest.raises(ValueError, match="pools by max"):
        load_teacher(str(tmp_path / "max"))
    write_teacher(tmp_path / "few", vocab_size=40)
    last = len(wordpiece()) - 1
    with pytest.raises(ValueError, match=f"has a token {last}, but it has 40 embeddings"):
        load_teacher(str(tmp_path / "few"))


def test_the_command_writes_only_new_folders(teacher, data, tmp_path, capsys, monkeypatch):
    given = ["distill", str(teacher), "--data", str(data), "--out", str(tmp_path / "out"), "--json"]
    given += ["--layers", "0,1", "--vocabulary", "80", "--max_length", "24", "--steps", "1", "--held_out", "test"]
    assert cli.main(given) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)["results"]
    assert record["layers"] == [0, 1] and record["held_out"] == ["test"]
    assert "1 held-out captions" in captured.err and "5 % quantile" in captured.err
    monkeypatch.setattr(text_distillation, "load_teacher", lambda *_: pytest.fail("the work began"))
    assert cli.main(given[:-10]) == 2
    assert "is there already: name a folder that is new or empty" in capsys.readouterr().err
    assert cli.main([*given[:2], "--data", str(data)]) == 2
    assert "--out" in capsys.readouterr().err


def test_an_error_while_writing_leaves_nothing(teacher, data, tmp_path, monkeypatch):
    monkeypatch.setattr(text_distillation.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distill(Distillation(str(teacher), str(data), str(tmp_path / "out"), **SMALL), lambda line: None)
    assert not list(tmp_path.iterdir())


def test_defaults_of_the_command_are_those_of_the_library(data):
    parser = cli.build_parser().commands["distill"]
    for field in fields(Distillation):
        if field.default is not inspect.Parameter.empty and field.name not in ("teacher", "data", "out"):
            default = parser.get_default(field.name)
            assert (tuple(default) if isinstance(default, list) else default) == field.default, field.name
