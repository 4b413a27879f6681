"""`wavlink distill --translations`: a WavLink with another text tower, its record, and what is refused."""

import json
import shutil

import datasets
import pytest
import soundfile
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel, XLMRobertaTokenizer

from modeling_wavlink import WavLinkModel
from modeling_wavlink.losses_wavlink import truncate_embeddings
from processing import WavLinkProcessor
from tests.conftest import RATE, tone
from tests.wordpiece_models import write_teacher
from wavlink import cli
from wavlink.training import translations
from wavlink.training.multilingual_distillation import distill_multilingual
from wavlink.training.multilingual_students import TextTower, fit_projection, published_student
from wavlink.training.text_distillation import Distillation, train_student
from wavlink.training.translations import Translation, hold_out, load_translations

WORDS = {"the dog": "der Hund", "the cat": "die Katze", "the bell": "die Glocke", "low rain": "leiser Regen"}
WORDS |= {"a loud singer": "ein lauter Sänger", "a piano": "ein Klavier", "thunder": "Donner", "a meow": "ein Miauen"}
PAIRS = [(f"{one} and {other}", f"{WORDS[one]} und {WORDS[other]}") for one in WORDS for other in WORDS]
CAPTIONS = {"train": ["a dog barks", "rain falls", "a bell rings"], "validation": ["the rain is low", "a loud cat"]}
SMALL = {"vocabulary": 90, "max_length": 24, "steps": 3, "batch_size": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioned") / "my_sounds"
    for split, captions in CAPTIONS.items():
        (root / split).mkdir(parents=True)
        for number in range(len(captions)):
            soundfile.write(root / split / f"{number}.wav", tone(300, 0.05, number), RATE)
        lines = ["file_name,caption", *(f"{number}.wav,{caption}" for number, caption in enumerate(captions))]
        (root / split / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    lines = ["en\tde\tru", *(f"{source}\t{text}\t" for source, text in PAIRS), "rain falls\t\tидёт дождь"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def teacher(whisper_folder, tmp_path_factory):
    """A WavLink with a BERT, whose texts lie apart."""
    folder = tmp_path_factory.mktemp("teachers") / "wavlink"
    bert = str(write_teacher(folder.parent / "bert"))
    model = WavLinkModel.from_audio_text_pretrained(
        str(whisper_folder), bert, projection_dim=16, matryoshka_dims=[16, 8]
    )
    torch.manual_seed(0)
    torch.nn.init.orthogonal_(model.text_projection.weight)
    model.config.match_calibration = {
        "data": "",
        "dims": {str(dim): {"slope": 1.0, "intercept": 0.0} for dim in (16, 8)},
        "pairs": 9,
        "prior": 0.01,
    }
    model.save_pretrained(folder)
    WavLinkProcessor.from_audio_text_pretrained(str(whisper_folder), bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published") / "multilingual-MiniLM")


def write_published(folder):
    """A tiny encoder laid out like paraphrase-multilingual-MiniLM-L12-v2: a BERT with XLM-R's Unigram tokens."""
    texts = [text for pair in PAIRS for text in pair]
    tokenizer = XLMRobertaTokenizer().train_new_from_iterator(texts, 80, show_progress=False)
    tokenizer.model_max_length = 512
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,  # as published, where the tokenizer's is 1
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": 24,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": false}')
    return folder


def task(teacher, data, table, out, **options) -> Distillation:
    return Distillation(str(teacher), str(data), str(out), translations=[str(table)], **SMALL | options)


def run(*given, **options) -> dict:
    return distill_multilingual(task(*given, **options), lambda line: None)


def vectors(folder, texts) -> torch.Tensor:
    model, processor = WavLinkModel.from_pretrained(folder), WavLinkProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model.eval().get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output


def test_tables_of_each_form_hold_the_same_translations(tmp_path):
    (tmp_path / "a.csv").write_text('\ufeffde,en,fr\n"Hund, laut",dog, chien \n,cat,chat\nx,,y\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text("en\tde\ncat\tKatze\ndog\tHund, laut\n", encoding="utf-8")
    expected = [("dog", "de", "Hund, laut"), ("dog", "fr", "chien"), ("cat", "fr", "chat"), ("cat", "de", "Katze")]
    assert load_translations([str(tmp_path / "a.csv"), str(tmp_path / "b.tsv")], "en") == expected


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.csv", "de,fr\nHund,chien\n", "has no column 'en', only de, fr: name it by --language"),
        ("a.tsv", "en\tde\ndog\t\n", "holds no translation of a text in the column 'en'"),
        ("a.csv", "", "holds no translation"),
        (
            "a.csv",
            "en,de\na dog, loud,ein Hund, laut\n",
            "more cells than columns in the row of 'a dog': .* a comma in",
        ),
        ("a.tsv", 'en\tde\n"dog\tHund\ncat\tKatze\n', "cannot read .*a.tsv: a quote is opened and never closed"),
        ("a.tsv", "en\tde\tde\ndog\tHund\tKöter\n", "cannot read .*a.tsv: it has several columns named 'de'"),
    ],
)
def test_tables_without_translations_are_refused(name, text, why, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=why):
        load_translations([str(tmp_path / name)], "en")
    (tmp_path / name).write_bytes(b"en,de\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match="is no table in UTF-8"):
        load_translations([str(tmp_path / name)], "en")
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        load_translations(["no table"], "en")


@pytest.mark.parametrize(
    "rows",
    [
        [{"translation": {"en": "dog", "de": "Hund"}}, {"translation": {"en": "cat", "de": None}}],
        [{"id": 1, "en": "dog", "de": "Hund"}, {"id": 2, "en": None, "de": "Katze"}],
    ],
)
def test_data_sets_of_the_hub_hold_translations_in_two_forms(rows, monkeypatch):
    asked = []
    monkeypatch.setattr(translations, "needs_cache", lambda *given, **options: asked.append(given[0]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))
    assert load_translations(["owner/pairs"], "en") == [("dog", "de", "Hund")] and asked == ["owner/pairs"]


def test_a_held_out_text_is_trained_on_in_no_language_and_under_no_other_source():
    pairs = [Translation(f"text {n:02}", name, f"{name} {n:02}") for n in range(40) for name in ("de", "fr")]
    pairs += [Translation("other source", "de", pair.text) for pair in pairs if pair.language == "de"]
    training, measured = hold_out(pairs, ["TEXT 00", "other source"], 3)
    held = {pair.source for rows in measured.values() for pair in rows}
    assert len(held) == 3 and "text 00" not in held and set(measured) == {"de", "fr"}
    assert not held & {pair.source for pair in training}
    assert not {pair.text for pair in measured["de"]} & {pair.text for pair in training}
    assert len(training) == len(pairs) - 3 * 3  # two languages and the other source
    assert hold_out(pairs[:2], [], 100) == (pairs[:2], {})  # a tenth of one text is none


def test_the_wavlink_has_the_teachers_audio_tower_and_a_new_text_tower(teacher, data, table, tmp_path):
    record = run(teacher, data, table, tmp_path / "out", layers=(0, 2))
    old, new = WavLinkModel.from_pretrained(teacher), WavLinkModel.from_pretrained(tmp_path / "out")
    for name, weight in old.state_dict().items():
        assert name.startswith("text_") or torch.equal(new.state_dict()[name], weight), name
    assert new.config.match_calibration is None and new.config.matryoshka_dims == [16, 8]
    assert new.config.text_config.num_hidden_layers == 2 and new.config.text_pooling == "mean"
    processor = WavLinkProcessor.from_pretrained(tmp_path / "out")
    assert (
        processor.feature_extractor.to_dict() == WavLinkProcessor.from_pretrained(teacher).feature_extractor.to_dict()
    )
    assert processor.tokenizer.model_max_length == 24
    assert "Hund" in processor.tokenizer.decode(processor.tokenizer("der Hund")["input_ids"])
    assert record == json.loads((tmp_path / "out/distillation.json").read_text(encoding="utf-8"))
    assert record["teacher"] == "wavlink" and record["student"] is None and record["translations"] == ["pairs.tsv"]
    assert record["languages"]["de"] > 50 and record["languages"]["ru"] == 1
    scores = record["similarity"]["by_language"]["de"]
    assert (
        scores["texts"] == 4 and 0 <= scores["accuracy"]["value"] <= 1 and "teacher_accuracy" in scores
    )  # of 6 in 24 tokens
    assert record["similarity"]["captions"]["texts"] == 2 and "/" not in json.dumps(record)
    tower = TextTower(new.eval(), processor.tokenizer)
    texts = ["der Hund", "leiser Regen"]
    torch.testing.assert_close(tower.embed(tower.tokenize(texts)), vectors(tmp_path / "out", texts))
    assert AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).config.projection_dim == 16


@pytest.mark.slow
def test_translations_come_to_the_teachers_vectors(teacher, data, table, tmp_path):
    options = {"steps": 300, "learning_rate": 5e-3, "vocabulary": 120}
    record = run(teacher, data, table, tmp_path / "out", **options)
    german = record["similarity"]["by_language"]["de"]
    assert german["mean"]["value"] > 0.9 and german["accuracy"]["value"] > german["teacher_accuracy"]["value"]
    texts = ["the dog and a piano", "low rain and the bell"]
    known, found = (
        vectors(teacher, texts),
        vectors(tmp_path / "out", ["der Hund und ein Klavier", "leiser Regen und die Glocke"]),
    )
    for dim in (16, 8):
        cosines = (truncate_embeddings(known, dim) * truncate_embeddings(found, dim)).sum(-1)
        assert cosines.min() > 0.8, cosines


def test_equal_seeds_give_equal_weights(teacher, data, table, tmp_path):
    before = torch.get_rng_state()
    for name in ("a", "b"):
        run(teacher, data, table, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("model.safetensors", "tokenizer.json", "config.json", "distillation.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_published_layout_is_a_student(teacher, published, data, table, tmp_path):
    record = run(teacher, data, table, tmp_path / "out", student=str(published))
    assert record["student"] == "multilingual-MiniLM" and record["pooling"] == "mean" and record["max_length"] == 24
    model = WavLinkModel.from_pretrained(tmp_path / "out").eval()
    assert model.config.text_config.hidden_size == 24 and model.text_projection.weight.shape == (16, 24)
    texts = ["der Hund", "ein lauter Sänger und die Katze"]
    alone = torch.cat([vectors(tmp_path / "out", [text]) for text in texts])
    torch.testing.assert_close(vectors(tmp_path / "out", texts), alone, atol=1e-5, rtol=0)  # padded or not


def test_a_published_layout_gives_the_vectors_of_sentence_transformers(teacher, published):
    library = pytest.importorskip("sentence_transformers")
    wavlink, processor = WavLinkModel.from_pretrained(teacher), WavLinkProcessor.from_pretrained(teacher)
    student = published_student(TextTower(wavlink, processor.tokenizer), str(published), 128, 0)
    texts = ["der Hund", "ein lauter Sänger und die Katze"]
    with torch.no_grad():
        states = student.pooled(student.tokenize(texts))
    expected = library.SentenceTransformer(str(published), device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(states, expected.cpu(), atol=1e-5, rtol=0)


def test_the_projection_starts_as_the_best_linear_map(teacher, published):
    wavlink, processor = WavLinkModel.from_pretrained(teacher), WavLinkProcessor.from_pretrained(teacher)
    student = published_student(TextTower(wavlink, processor.tokenizer), str(published), 32, 0)
    tokens = student.tokenize([text for pair in PAIRS for text in pair])
    with torch.no_grad():
        states = student.pooled(tokens)
        targets = F.normalize(states @ torch.randn(24, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
        fit_projection(student, tokens, targets, 0)
        assert ((student(tokens) * targets).sum(-1)).mean() > 0.95


def test_the_loss_has_every_nested_dim():
    class Student:
        dims = [4, 2]

        def __init__(self):
            self.weight = torch.nn.Parameter(torch.eye(4)[[0, 1]])

        def parameters(self):
            return [self.weight]

        def __call__(self, tokens):
            return F.normalize(self.weight[[int(ids[0]) for ids in tokens]], dim=-1)

    lines = []
    targets = torch.tensor([[0.6, 0, 0.8, 0], [0, 0.6, 0, 0.8]])
    train_student(
        Student(),
        [torch.tensor([n]) for n in range(2)],
        targets,
        Distillation("t", "d", "o", steps=1, batch_size=2),
        lines.append,
    )
    assert lines == ["step 1 of 1: loss 0.2000"]  # (0.4 + 0) / 2: the first two numbers agree but for their length


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"layers": (0, 7)}, "layers must be of 0 to 2"),
        ({"max_length": 33}, "max_length must be at most the teacher's 32"),
        ({"vocabulary": 8}, "no vocabulary of 8 tokens can be made"),
        ({"language": "fr"}, "has no column 'fr'"),
        ({"student": "PUBLISHED", "layers": (0,)}, "leave out --layers or --student"),
        ({"max_length": 3}, "no text of .* fits in 3 tokens"),
    ],
)
def test_options_that_do_not_suit_are_refused(options, why, teacher, published, data, table, tmp_path):
    options = {name: str(published) if value == "PUBLISHED" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=why):
        run(teacher, data, table, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_teachers_and_students_of_other_kinds_are_refused(
    teacher, published, wavlink_folder, whisper_folder, data, table, tmp_path
):
    for other, options, why in (
        (published, {}, "is a bert: with --translations the teacher is a WavLink"),
        (teacher, {"student": str(whisper_folder)}, "cannot be the text tower"),
    ):
        with pytest.raises(ValueError, match=why):
            run(other, data, table, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="give --translations too"):
        Distillation("t", "d", "o", student=str(published))
    shutil.copytree(published, tmp_path / "max")
    (tmp_path / "max/1_Pooling/config.json").write_text('{"pooling_mode": "max"}')
    with pytest.raises(ValueError, match="pools by max"):
        run(teacher, data, table, tmp_path / "out", student=str(tmp_path / "max"))


def test_the_command_prints_each_language(teacher, data, table, tmp_path, capsys):
    command = ["distill", str(teacher), "--data", str(data), "--out", str(tmp_path / "out"), "--steps", "1"]
    command += ["--translations", str(table), "--vocabulary", "90", "--max_length", "24", "--batch_size", "8"]
    assert cli.main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"]["languages"]["ru"] == 1
    assert "source found" in captured.err and "\nde " in captured.err
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err
