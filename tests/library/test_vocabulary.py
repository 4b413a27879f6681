"""Words that a vocabulary lacks are named, by every way in."""

import json
import logging

import pytest
import soundfile
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import wavlink
from hub_cards.space.answers import Demo
from hub_cards.space.pages import unknown as note
from tests.conftest import RATE, clip_tokenizer, tone, word_level_tokenizer
from wavlink import Embedder, cli, long_recordings, vocabulary
from wavlink.training.factory import subword_tokenizer


def pieces() -> PreTrainedTokenizerFast:
    """WordPiece that knows `dog`, `s` and `é`."""
    tokens = {token: n for n, token in enumerate(["[UNK]", "dog", "##s", "é", ",", "a"])}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.fixture
def messages():
    """The lines that are logged from now on, words of earlier tests forgotten."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = transformers_logging.get_logger(vocabulary.__name__)
    vocabulary._named.clear()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a dog, dogs", []),
        ("a cat, dogs, Dog; a cat", ["cat", "Dog", ";"]),
        ("é\u00e9 dog's", ["éé", "'", "s"]),
        ("", []),
        ("狗叫 🐕", ["狗叫", "🐕"]),
    ],
)
def test_unknown_words_are_found_in_order(text, words):
    assert vocabulary.unknown_words(pieces(), [text]) == words
    assert vocabulary.unknown_words(pieces(), ["a dog", text, text]) == words


def test_each_unknown_word_is_read_once():
    """A word of many unknown parts, as in a language without spaces."""

    class Counted(str):
        read = 0

        def __getitem__(self, index):
            Counted.read += 1
            return str(self)[index]

    text = Counted("狗叫" * 1000 + " a " + "犬" * 1000)
    tokenizer = pieces()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    assert vocabulary.unknown_words(tokenizer, [text]) == ["狗叫" * 1000, "犬" * 1000]
    assert Counted.read < 20 * len(text)


def test_words_of_a_slow_tokenizer_are_found():
    class Slow:
        is_fast, unk_token_id = False, 0

        def __call__(self, word, add_special_tokens):
            return {"input_ids": [0 if word == "cat" else 1]}

    assert vocabulary.unknown_words(Slow(), ["a cat barks", "cat"]) == ["cat"]


@pytest.mark.parametrize("tokenizer", [clip_tokenizer(), subword_tokenizer(["a dog barks"] * 2, 32)])
def test_a_tokenizer_that_covers_everything_lacks_nothing(tokenizer):
    """CLIP's unknown token is its end token, which closes every text."""
    texts = ["a dog barks", "", "zyx"] + (["狗叫 🐕"] if tokenizer.unk_token is None else [])
    assert vocabulary.unknown_words(tokenizer, texts) == []


def test_each_word_is_named_once_for_a_tokenizer(messages):
    first, second = (word_level_tokenizer("[CLS]", "[SEP]", "[PAD]") for _ in range(2))
    for tokenizer, texts in ((first, ["a cow", "a dog"]), (first, ["cow pig"]), (first, ["pig"]), (second, ["cow"])):
        vocabulary.warn_of_unknown_words(tokenizer, texts, "mine")
    expected = [f"mine does not know the word {word!r}" for word in ("cow", "pig", "cow")]
    assert [line.partition(":")[0] for line in messages] == expected


def test_of_many_words_the_first_are_named(messages):
    vocabulary.warn_of_unknown_words(pieces(), [f"w{n}" for n in range(50)], "mine")
    assert len(messages) == 1 and "'w19' and 30 more: " in messages[0]


@pytest.fixture
def sounds(tmp_path):
    (tmp_path / "sounds").mkdir()
    for name, hertz in (("low", 200), ("high", 2000)):
        soundfile.write(tmp_path / f"sounds/{name}.wav", tone(hertz, 0.5), RATE)
    lines = ["file_name,label", "low.wav,dog", "high.wav,tractor"]
    (tmp_path / "sounds/metadata.csv").write_text("\n".join(lines))
    return tmp_path / "sounds"


def test_every_function_names_them(messages, wavlink_folder, sounds, tmp_path):
    embedder, low = Embedder(wavlink_folder), sounds / "low.wav"

    def warned_of(words, work):
        vocabulary._named.clear()
        messages.clear()
        work()
        assert len(messages) == 1 and messages[0].startswith(str(wavlink_folder)), messages
        assert all(repr(word) in messages[0] for word in words)

    warned_of(["cow"], lambda: embedder.embed_text(["a cow"]))
    warned_of(["cow", "pig"], lambda: wavlink.classify(embedder, low, ["cow", "pig", "dog"]))
    warned_of(["siren"], lambda: wavlink.locate(embedder, low, "a siren", window=0.4))
    index = wavlink.Index.build(sounds, tmp_path / "index", embedder, progress=False, window=0.4)
    warned_of(["cow"], lambda: index.query("a cow", without="a cow"))
    warned_of(["tractor"], lambda: wavlink.evaluate(str(wavlink_folder), sounds, choices=0))


def test_the_words_of_a_reference_are_not_named(messages, wavlink_folder, sounds):
    embedder = Embedder(wavlink_folder)
    recording = long_recordings.encode_recording(embedder, str(sounds / "low.wav"), 0.4, 0.2)
    long_recordings.noise_score(embedder, recording)
    assert messages == []


def test_a_command_names_them_and_prints_json_alone(messages, wavlink_folder, sounds, capsys):
    words = ["classify", str(sounds / "low.wav"), "--model", str(wavlink_folder), "--labels", "dog", "cow", "--json"]
    assert cli.main(words) == 0
    assert len(messages) == 1 and "'cow'" in messages[0] and json.loads(capsys.readouterr().out)["results"]


def test_the_space_shows_them(wavlink_folder, sounds):
    demo = Demo(Embedder(wavlink_folder))
    answer = demo.classify(str(sounds / "low.wav"), "dog, <cow>")
    assert answer.unknown == ["<", "cow", ">"] and "&#x27;cow&#x27;" in note(answer) and "<cow>" not in note(answer)
    assert demo.embed_sentence("a pig").unknown == ["pig"] and note(demo.embed_sentence("a dog")) == ""
    assert demo.locate(str(sounds / "low.wav"), "a pig").unknown == ["pig"]
