"""Pruned WordPiece vocabularies: the same tokens where all are kept, and no new unknown ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from tests.wordpiece_models import LETTERS, PIECES, WORDS, wordpiece
from wavlink.training.tokenizer_pruning import WordPiece

TEACHER = wordpiece()
VOCABULARY = WordPiece(TEACHER)
TOKENS = sorted(VOCABULARY.reachable - VOCABULARY.required)
PARTS = [*LETTERS, *WORDS, *(piece.removeprefix("##") for piece in PIECES), " ", " ", "é", "7", "[MASK]", "[unused1]"]
TEXTS = st.lists(st.sampled_from(PARTS) | st.characters(), max_size=12).map("".join)
KEPT = st.sets(st.sampled_from(TOKENS)).map(lambda chosen: sorted(VOCABULARY.required | chosen))


def split(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@given(KEPT, TEXTS)
def test_a_text_whose_tokens_are_kept_has_the_same_tokens(kept, text):
    pruned, ids = VOCABULARY.pruned(kept, 16), TEACHER(text)["input_ids"]
    if set(ids) <= set(kept):
        assert [kept[new] for new in pruned(text)["input_ids"]] == ids
        assert split(pruned, text) == split(TEACHER, text)
    assert [
        kept[pruned.convert_tokens_to_ids(token)] for token in TEACHER.all_special_tokens
    ] == TEACHER.all_special_ids


@given(KEPT, TEXTS)
def test_no_text_gains_or_loses_an_unknown_token(kept, text):
    before, after = split(TEACHER, text), split(VOCABULARY.pruned(kept, 16), text)
    assert before.count("[UNK]") == after.count("[UNK]")


def test_dropped_tokens_are_spelled_with_those_that_are_left():
    texts = ["the dog barks", "rainy"]
    kept = VOCABULARY.select(texts, len(VOCABULARY.required) + 4)
    pruned = VOCABULARY.pruned(kept, 16)
    assert len(pruned) == len(kept) == len(VOCABULARY.required) + 4
    assert [split(pruned, text) for text in texts] == [split(TEACHER, text) for text in texts]
    assert split(pruned, "cat") == ["[CLS]", "c", "##a", "##t", "[SEP]"]
    assert split(pruned, "a Z\u00e9bra") == ["[CLS]", "a", "z", "##e", "##b", "##r", "##a", "[SEP]"]
    assert "[unused1]" not in pruned.get_vocab() and pruned.mask_token_id is not None


def test_the_first_tokens_by_id_fill_the_vocabulary():
    size = len(VOCABULARY.required) + 3
    kept = VOCABULARY.select(["singer"], size)
    names = TEACHER.convert_ids_to_tokens(sorted(set(kept) - VOCABULARY.required))
    assert names == ["the", "dog", "singer"]
    assert VOCABULARY.select(["singer"], 10**6) == sorted(VOCABULARY.required | VOCABULARY.reachable)
    assert VOCABULARY.words() == WORDS


def test_a_vocabulary_that_cannot_hold_what_must_stay_is_refused():
    least = len(VOCABULARY.required) + 2
    with pytest.raises(ValueError, match=f"at least {least}, got {least - 1}"):
        VOCABULARY.select(["the dog"], least - 1)
    assert len(VOCABULARY.select(["the dog"], least)) == least


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.BPE({"a": 0}, []), "BPE"),
        (models.Unigram([("a", 0.0)], 0, False), "Unigram"),
        (models.WordLevel({"a": 0}, "a"), "WordLevel"),
    ],
)
def test_other_tokenizers_are_refused_by_name(model, kind):
    with pytest.raises(ValueError, match=f"is a {kind}"):
        WordPiece(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)))


def test_a_missing_vocabulary_is_refused():
    with pytest.raises(ValueError, match="tokenizer.json or vocab.txt is missing"):
        WordPiece(BertTokenizer())  # what AutoTokenizer gives for a BERT without these files
    unknown = Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="has no '\\[UNK\\]'"):
        WordPiece(PreTrainedTokenizerFast(tokenizer_object=unknown))


def test_a_vocabulary_without_a_character_is_refused():
    with pytest.raises(ValueError, match="has 'thex' but not '##x'"):
        WordPiece(wordpiece(["thex"], "theo"))
    WordPiece(wordpiece(["the..."], "the"))  # BERT splits at dots: no text becomes this token


def test_bert_processing_and_added_tokens_are_renumbered():
    tokenizer = wordpiece()
    tokenizer.add_tokens(["<sound>"])
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.sep_token_id), ("[CLS]", tokenizer.cls_token_id)
    )
    vocabulary = WordPiece(tokenizer)
    pruned = vocabulary.pruned(vocabulary.select(["the dog"], 80), 16)
    assert split(pruned, "the <sound> dog") == ["[CLS]", "the", "<sound>", "dog", "[SEP]"]
    backend.post_processor = processors.RobertaProcessing(("[SEP]", 0), ("[CLS]", 1))
    with pytest.raises(ValueError, match="RobertaProcessing"):
        WordPiece(tokenizer).pruned(vocabulary.select([], 80), 16)


def test_without_a_pre_tokenizer_that_splits_marks_tokens_are_words_too():
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match=r"has '\[unused0\]' but not '##"):
        WordPiece(tokenizer)


@pytest.mark.real
def test_minilm_reads_kept_words_as_before_and_spells_others(weights):
    tokenizer = AutoTokenizer.from_pretrained(weights / "all-MiniLM-L6-v2")
    vocabulary = WordPiece(tokenizer)
    kept = vocabulary.select(["a woodpecker drums, then a theremin hums"], 10_600)
    pruned = vocabulary.pruned(kept, 128)
    assert len(pruned) == 10_600 and vocabulary.words()[:3] == ["the", "and", "was"]
    text = "A Woodpecker drums, then the Theremin hums like a dog in the rain!"
    assert split(pruned, text) == split(tokenizer, text)
    assert [kept[new] for new in pruned(text)["input_ids"]] == tokenizer(text)["input_ids"]
    for word in vocabulary.words():
        assert pruned.unk_token_id not in pruned(word)["input_ids"]
    assert split(pruned, "\U0001f436") == split(tokenizer, "\U0001f436") == ["[CLS]", "[UNK]", "[SEP]"]
