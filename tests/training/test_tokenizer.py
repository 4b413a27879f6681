"""The tokenizer of new text towers: trained on captions, and without unknown words."""

import hashlib
import os
import sys

import pytest
from transformers import AutoTokenizer

from tests.processes import run_process
from wavlink.training.factory import VOCABULARY, subword_tokenizer

CAPTIONS = ["A dog barks loudly.", "A dog barks far away.", "Rain falls on a roof; rain falls."] * 2
TEXTS = ["a dog barks", "A xylophone", "ein Hund bellt", "狗叫 🐕", "naïve cafe\u0301", "", "\x00 <tag>", "a" * 500]


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_holds_an_unknown_token(text):
    tokenizer = subword_tokenizer(CAPTIONS, 600)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id is None and ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    expected = "café" if text.endswith("cafe\u0301") else text.lower()
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() in (expected.strip(), f"naïve {expected}")


def test_words_of_the_captions_are_one_token_each():
    tokenizer = subword_tokenizer(CAPTIONS, 64)
    assert tokenizer.tokenize("Rain falls, a dog barks") == ["Ġrain", "Ġfalls", ",", "Ġa", "Ġdog", "Ġbarks"]
    assert len(tokenizer.tokenize("raining dogs")) > 2


def test_texts_differ_wherever_their_letters_do():
    tokenizer = subword_tokenizer(CAPTIONS, 64)
    assert tokenizer("A DOG")["input_ids"] == tokenizer("a dog")["input_ids"] != tokenizer("a cow")["input_ids"]
    assert tokenizer("a cow")["input_ids"] != tokenizer("a pig")["input_ids"]


def test_the_vocabulary_is_bounded_and_saved(tmp_path):
    words = (f"word{n} other{n}" for n in range(5000) for _ in range(2))
    tokenizer = subword_tokenizer(words, 32)
    assert len(tokenizer) == VOCABULARY and tokenizer.pad_token_id == 0
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("a dog, word7")["input_ids"] == tokenizer("a dog, word7")["input_ids"]
    assert (
        loaded("a b " * 50, truncation=True)["input_ids"][-1] == loaded.sep_token_id and loaded.model_max_length == 32
    )


def test_equal_captions_give_an_equal_tokenizer_whatever_the_threads():
    here = hashlib.sha256(subword_tokenizer(CAPTIONS, 64).backend_tokenizer.to_str().encode()).hexdigest()
    code = f"""
import hashlib
from wavlink.training.factory import subword_tokenizer
print(hashlib.sha256(subword_tokenizer({CAPTIONS!r}, 64).backend_tokenizer.to_str().encode()).hexdigest())
"""
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    done = run_process([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == here
