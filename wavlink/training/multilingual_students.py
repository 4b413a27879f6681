"""Text towers of a WavLink as sentence encoders, and multilingual students in their place."""

import copy
import json
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from modeling_wavlink import WavLinkModel
from modeling_wavlink.config_checks_wavlink import text_max_length
from modeling_wavlink.loading_wavlink import load_text_tower
from modeling_wavlink.pooling_wavlink import sentence_transformers_pooling
from processing.hub_names import needs_cache

from .sentence_encoder import SentenceEncoder, kept_layers, taken_weights

_RARE_STEP = 1e-4  # between the scores of the library's rare characters
_FITTED = 8192  # texts that a new projection is fit to


class TextTower(SentenceEncoder):
    """The text tower of a WavLink with its projection; its vectors are those of `get_text_features`."""

    def __init__(self, wavlink: WavLinkModel, tokenizer: PreTrainedTokenizerFast):
        super().__init__(wavlink.text_model, tokenizer, wavlink.config.text_pooling)
        self.wavlink, self.projection = wavlink, wavlink.text_projection
        self.dims = sorted({wavlink.config.projection_dim, *wavlink.config.matryoshka_dims}, reverse=True)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the weights that learn."""
        return [*super().parameters(), self.projection.weight]

    def __call__(self, tokens: Sequence[Tensor]) -> Tensor:
        """Embed a batch of `B` tokenized texts, to `[B, projection_dim]`, of length 1."""
        return F.normalize(self.projection(self.pooled(tokens)), dim=-1)


def new_student(
    teacher: TextTower, texts: Sequence[str], vocabulary: int, max_length: int, layers: Sequence[int], seed: int
) -> TextTower:
    """Make a student out of layers of the teacher, and a new vocabulary of XLM-R's kind: a BERT with Unigram tokens.

    A token starts as the mean of the embeddings of the teacher's tokens for the same characters, and some noise.

    Args:
        texts: that the vocabulary is made from.
        vocabulary: tokens at most.
        max_length: tokens of a text at most, special tokens included.
        layers: of the teacher, in order; empty: all.
        seed: of the noise.

    Raises:
        ValueError: the teacher's text tower is no BERT, or sizes that do not suit it.
    """
    config = copy.deepcopy(teacher.model.config)
    if config.model_type != "bert":
        raise ValueError(
            f"the teacher's text tower is a {config.model_type}, and a new student is made out of a BERT's layers: "
            "name a multilingual sentence encoder by --student"
        )
    if max_length > config.max_position_embeddings:
        raise ValueError(
            f"max_length must be at most the teacher's {config.max_position_embeddings}, got {max_length}"
        )
    layers = kept_layers(layers or range(config.num_hidden_layers), config.num_hidden_layers)
    tokenizer = _new_tokenizer(texts, vocabulary)
    tokenizer.model_max_length = max_length
    config.vocab_size, config.num_hidden_layers, config.max_position_embeddings = (
        len(tokenizer),
        len(layers),
        max_length,
    )
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    student = _in_place_of(teacher, config, tokenizer, teacher.pooling, seed)
    embeddings = "embeddings.word_embeddings.weight"
    weights = teacher.model.state_dict() | {embeddings: _token_embeddings(teacher, tokenizer, seed)}
    student.model.load_state_dict(taken_weights(student.model, weights, layers, max_length))
    student.projection.load_state_dict(teacher.projection.state_dict())
    return student


def _new_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a Unigram tokenizer; equal texts give equal ones.

    The library's own result differs from call to call: in the last digits, in the order of equal scores, and in the
    scores of rare characters, which it draws in any order from a small range above the lowest.
    """
    try:
        made = XLMRobertaTokenizer().train_new_from_iterator(texts, vocabulary, show_progress=False)
    except Exception as error:  # the library raises no other class
        raise ValueError(
            f"no vocabulary of {vocabulary} tokens can be made from {len(texts)} texts: {error}"
        ) from error
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    special, scores = len(made.all_special_ids), [(token, score) for token, score in model["vocab"]]
    low, characters = min(score for _, score in scores), sum(len(token) == 1 for token, _ in scores)
    drawn = low + _RARE_STEP * characters
    ranked = sorted((-round(low if len(x) == 1 and y <= drawn else y, 6), x) for x, y in scores[special:])
    return XLMRobertaTokenizer(vocab=[*scores[:special], *((token, -score) for score, token in ranked)])


def _token_embeddings(teacher: TextTower, tokenizer: PreTrainedTokenizerFast, seed: int) -> Tensor:
    """Return `[tokens, D]`; the noise keeps tokens apart that the teacher cannot read."""
    known = teacher.model.get_input_embeddings().weight.detach().cpu()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [tokenizer.convert_tokens_to_string([token]).strip() for token in tokens]
    ids = [teacher.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    means = torch.stack([known[row].mean(0) if row else known.mean(0) for row in ids])
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
    return means + 0.5 * known.std() * noise


def published_student(teacher: TextTower, source: str, max_length: int, seed: int) -> TextTower:
    """Load a sentence encoder as a student, with a random projection (see `fit_projection`).

    Args:
        source: a folder or Hub id; without sentence-transformers files its tokens' mean is its vector.
        max_length: tokens of a text at most, if the encoder takes as many.
        seed: of the projection.

    Raises:
        ValueError: a model that is no text encoder, or whose weights or pooling cannot be used.
    """
    needs_cache(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    pooling = sentence_transformers_pooling(source) or "mean"
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tower, _ = load_text_tower(source, config)
    tokenizer.model_max_length = min(max_length, tokenizer.model_max_length, text_max_length(config) or max_length)
    student = _in_place_of(teacher, tower.config, tokenizer, pooling, seed)
    student.model.load_state_dict(tower.state_dict())
    return student


def _in_place_of(
    teacher: TextTower, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, pooling: str, seed: int
) -> TextTower:
    """Make the teacher's WavLink with another text tower, whose weights are random; it has no calibration."""
    whole = copy.deepcopy(teacher.wavlink.config)
    whole.text_config, whole.text_pooling, whole.match_calibration = config, pooling, None
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        wavlink = WavLinkModel(whole).float().eval()
    kept = {name: x for name, x in teacher.wavlink.state_dict().items() if not name.startswith("text_")}
    wavlink.load_state_dict(kept, strict=False)
    return TextTower(wavlink.to(teacher.model.device), tokenizer)


@torch.no_grad()
def fit_projection(student: TextTower, tokens: Sequence[Tensor], targets: Tensor, seed: int) -> None:
    """Fit the projection to the teacher's vectors by ridge regression, as a start for the training.

    Args:
        tokens: of each text.
        targets: `[texts, projection_dim]`.
        seed: of the texts, if there are many.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(tokens), generator=generator)[:_FITTED]
    states = torch.cat([student.pooled([tokens[row] for row in part]) for part in rows.split(256)])  # (texts, D)
    gram = states.T @ states
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    student.projection.weight.copy_(torch.linalg.solve(gram, states.T @ targets[rows].to(states.device)).T)
