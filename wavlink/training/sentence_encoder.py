"""Sentence encoders: a text model with its tokenizer and pooling, and a smaller BERT made out of another's parts."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from modeling_wavlink.pooling_wavlink import pool_text, sentence_transformers_pooling
from modeling_wavlink.pretrained_wavlink import from_safetensors, refuse_adapter, refuse_wrong_weights
from processing.hub_names import needs_cache

from .tokenizer_pruning import WordPiece

_EMBEDDINGS = "embeddings.word_embeddings.weight"
_MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}  # folders by class


class SentenceEncoder:
    """A text model with its tokenizer and pooling; its vectors have length 1.

    Attributes:
        dims: of its vectors, the largest first; of nested ones each prefix, normalised again, is a vector too.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pooling: str):
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self.dims = [model.config.hidden_size]

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the weights that learn: all but those of a pooler, which nothing uses."""
        return [weight for name, weight in self.model.named_parameters() if not name.startswith("pooler.")]

    def tokenize(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the ids of each text, special tokens included; nothing is truncated."""
        return [torch.tensor(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]

    def pooled(self, tokens: Sequence[Tensor]) -> Tensor:
        """Pool the last states of a batch of `B` tokenized texts, to `[B, hidden_size]`."""
        input_ids = pad_sequence(list(tokens), batch_first=True, padding_value=self.tokenizer.pad_token_id or 0)
        lengths = torch.tensor([len(ids) for ids in tokens])
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        input_ids, mask = input_ids.to(self.model.device), mask.to(self.model.device)
        states = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return pool_text(states, input_ids, mask, self.pooling, self.model.config)

    def __call__(self, tokens: Sequence[Tensor]) -> Tensor:
        """Embed a batch of `B` tokenized texts, to `[B, D]`."""
        return F.normalize(self.pooled(tokens), dim=-1)

    def save(self, folder: Path) -> None:
        """Write what AutoModel and AutoTokenizer load, and sentence-transformers with the pooling."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(_MODULES.items())
        ]
        pooling = {
            "word_embedding_dimension": self.model.config.hidden_size,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
        }
        limits = {"max_seq_length": self.tokenizer.model_max_length, "do_lower_case": False}
        (folder / "1_Pooling").mkdir()
        files = {"modules.json": modules, "1_Pooling/config.json": pooling, "sentence_bert_config.json": limits}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def embed(self, tokens: Sequence[Tensor], batch_size: int = 256) -> Tensor:
        """Embed tokenized texts in batches of similar length, to `[texts, D]` on the CPU."""
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        vectors = torch.zeros(len(tokens), self.dims[0])
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = self([tokens[row] for row in rows]).cpu()
        return vectors


def load_teacher(source: str, device: str = "cpu", seed: int = 0) -> SentenceEncoder:
    """Load a BERT with its tokenizer, in fp32.

    Args:
        seed: of the weights of a pooler, which nothing here uses, where the checkpoint has none.

    Raises:
        ValueError: another architecture or tokenizer, no safetensors, or a pooling that WavLink does not have.
    """
    needs_cache(source)
    refuse_adapter(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type != "bert" or config.is_decoder:
        kind = "decoder" if config.model_type == "bert" else config.model_type
        raise ValueError(
            f"{source} is a {kind}: the teacher must be a BERT encoder, such as MiniLM, BGE, E5 or GTE of that type"
        )
    pooling = sentence_transformers_pooling(source) or "cls"  # as a WavLink pools it
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= config.vocab_size:
        raise ValueError(f"the tokenizer of {source} has a token {last}, but it has {config.vocab_size} embeddings")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        options = {"config": config, "trust_remote_code": False, "dtype": torch.float32, "output_loading_info": True}
        model, info = from_safetensors(AutoModel.from_pretrained, source, **options)
    refuse_wrong_weights(source, {**info, "unexpected_keys": ()}, new=("pooler.",))  # heads are left out
    return SentenceEncoder(model.eval().requires_grad_(False).to(device), tokenizer, pooling)


def kept_layers(layers: Sequence[int], count: int) -> list[int]:
    """Return the layers to keep of `count`; without `layers`, every second one and the last.

    Raises:
        ValueError: a layer that does not exist, or layers out of order or twice.
    """
    kept = list(layers) or sorted({*range(0, count, 2), count - 1})
    if not all(0 <= layer < count for layer in kept) or kept != sorted(set(kept)):
        raise ValueError(f"layers must be of 0 to {count - 1}, each once and in order, got {','.join(map(str, kept))}")
    return kept


def make_student(
    teacher: SentenceEncoder, layers: Sequence[int], kept: Sequence[int], max_length: int
) -> SentenceEncoder:
    """Make a student out of layers, tokens and positions of the teacher, whose weights it starts with.

    Args:
        layers: of the teacher, in order.
        kept: ids of the tokens, sorted.
        max_length: positions, at most the teacher's.
    """
    weights, config = teacher.model.state_dict(), copy.deepcopy(teacher.model.config)
    tokenizer = WordPiece(teacher.tokenizer).pruned(list(kept), max_length)
    config.vocab_size, config.num_hidden_layers, config.max_position_embeddings = len(kept), len(layers), max_length
    config.pad_token_id = tokenizer.pad_token_id
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0  # as it is trained here
    with torch.random.fork_rng([]):  # its weights are replaced
        model = AutoModel.from_config(config)
    weights[_EMBEDDINGS] = weights[_EMBEDDINGS][list(kept)]
    model.load_state_dict(taken_weights(model, weights, layers, max_length))
    return SentenceEncoder(model.float().eval().to(teacher.model.device), tokenizer, teacher.pooling)


def taken_weights(
    model: PreTrainedModel, weights: Mapping[str, Tensor], layers: Sequence[int], max_length: int
) -> dict[str, Tensor]:
    """Return a BERT's weights as those of a smaller one, `model`: some of its layers, and its first positions."""
    taken = {}
    for name in model.state_dict():
        if name == "embeddings.position_embeddings.weight":
            taken[name] = weights[name][:max_length]
        elif name.startswith("encoder.layer."):
            number, rest = name.removeprefix("encoder.layer.").split(".", 1)
            taken[name] = weights[f"encoder.layer.{layers[int(number)]}.{rest}"]
        else:
            taken[name] = weights[name]
    return taken
