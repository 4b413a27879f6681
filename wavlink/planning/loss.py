"""The cost of a step's loss: the logits of the batch's pairs, and those of a caption bank."""

from dataclasses import dataclass

from modeling_wavlink import WavLinkConfig
from modeling_wavlink.losses_wavlink import CHUNK
from wavlink.training.recipe_fields import Recipe

_LOGIT = 4  # bytes: losses are computed in fp32
# Bytes of a pair that autograd keeps for each nested dim (logits or log-probabilities, of both directions; masks), and
# bytes for a moment beside, as measured with torch 2.13.
_PAIR = {"info_nce": (2 * _LOGIT, 3 * _LOGIT + 2), "sigmoid": (2 * _LOGIT + 1, 3 * _LOGIT + 2)}
_BANK_PAIR = (_LOGIT + 1, 3 * _LOGIT + 1)


@dataclass(frozen=True)
class Loss:
    """A loss over nested dims.

    Attributes:
        kind: of the loss of the batch's pairs, `"info_nce"` or `"sigmoid"`.
        dims: the nested dims.
        width: of the embeddings.
        text_width: of what the text projection receives.
        captions: of the caption bank; 0 without one.
    """

    kind: str
    dims: tuple[int, ...]
    width: int
    text_width: int
    captions: int = 0

    def flops(self, clips: int) -> float:
        """Return the operations of a batch's loss, forward and backward.

        InfoNCE multiplies all pairs twice, once for each direction, and backward takes two products for each. Batches
        over `CHUNK` compute their logits a second time. The bank's captions pass through the text projection at each
        step, and only the projection's weight has a gradient there.
        """
        directions = 2 if self.kind == "info_nce" else 1
        passes = 4 if clips > CHUNK else 3
        pairs = 2.0 * passes * directions * clips**2 * sum(self.dims)
        bank = self.captions * (4.0 * self.text_width * self.width + 6.0 * clips * sum(self.dims))
        return pairs + bank

    def memory(self, clips: int) -> float:
        """Return the bytes at the peak of a batch's loss, those of `bank` left out."""
        kept, beside = _PAIR[self.kind]
        if clips <= CHUNK:
            pairs = clips**2.0 * (len(self.dims) * kept + beside)
        else:  # the logits of a piece, see `contrastive_loss`
            pairs = CHUNK * (CHUNK if self.kind == "info_nce" else clips) * float(kept + beside)
        kept, beside = _BANK_PAIR
        vectors = _LOGIT * (self.width + sum(self.dims))  # of a caption, projected and cut
        return pairs + self.captions * (clips * (len(self.dims) * kept + beside) + float(vectors))

    @property
    def bank(self) -> float:
        """Bytes of the bank, the text tower's output for each caption."""
        return 4.0 * self.captions * self.text_width


def loss_of(config: WavLinkConfig, recipe: Recipe, captions: int = 0) -> Loss:
    """Return a recipe's loss; `captions` are those of its caption bank, if it has one."""
    return Loss(
        recipe.loss_type,
        tuple(config.matryoshka_dims),
        config.projection_dim,
        config.text_config.hidden_size,
        captions if recipe.caption_bank else 0,
    )
