"""Tiny BERTs with WordPiece tokenizers, as sentence encoders."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
WORDS = "the dog cat bell rain bark meow ring fall sound barking barks rainy loud low thunder piano singer".split()
PIECES = "##s ##ing ##er ##ark ##in ##og ##ell ##under".split()


def wordpiece(tokens: Iterable[str] = (*WORDS, *PIECES), letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """A BERT's tokenizer, with unused tokens and its special tokens in the middle of the vocabulary."""
    unused = [f"[unused{number}]" for number in range(3)]
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    singles = [*letters, *("##" + letter for letter in letters)]
    vocab = list(dict.fromkeys(["[PAD]", *unused, *special, *singles, *tokens]))
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def write_teacher(folder: Path, layers: int = 3, pooling: str = "mean", **config) -> Path:
    """Write a tiny sentence encoder with random weights."""
    tokenizer = wordpiece()
    tokenizer.save_pretrained(folder)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,  # so that texts lie apart
    }
    torch.manual_seed(5)
    config = BertConfig(num_hidden_layers=layers, **{**sizes, **config})
    BertModel(config).save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{x}"} for n, (path, x) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": pooling, "embedding_dimension": 16}))
    return folder
