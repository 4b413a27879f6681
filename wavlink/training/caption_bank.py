"""Every training caption as a candidate for each clip (`Recipe.caption_bank`)."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from modeling_wavlink.losses_wavlink import bank_cross_entropy
from modeling_wavlink.modeling_wavlink import WavLinkModel
from modeling_wavlink.processes_wavlink import sizes_of, world_size
from processing import WavLinkProcessor
from processing.collator import caption_ids

_FILE = "caption_bank.safetensors"
_BATCH = 64  # captions that are embedded at once


class CaptionBank:
    """The distinct captions of a training set, as the text tower's pooled outputs `[N, D_text]`.

    They are computed without dropout and have no gradient; those of a tower that learns are as old as the last
    `refresh`. The text projection, which learns, is applied at each step. Captions are equal where their `caption_key`
    is; the first one's spelling is used.

    Args:
        model: on its device, not wrapped for several processes.
        processor: of the model.
        captions: all captions of the training set, and all wordings of its labels.
        autocast: `Accelerator.autocast`, in which the projection is applied.
    """

    def __init__(
        self,
        model: WavLinkModel,
        processor: WavLinkProcessor,
        captions: Iterable[str],
        autocast: Callable = nullcontext,
    ):
        texts = list(dict.fromkeys(captions))
        distinct = dict(zip(reversed(caption_ids([texts])[0].tolist()), reversed(texts), strict=True))
        ids = sorted(distinct)
        self.model = model
        self.autocast = autocast
        self.ids = torch.tensor(ids, device=model.device)  # (N,), ascending
        self._processor = processor
        self._texts = [distinct[number] for number in ids]
        self._outputs: Tensor | None = None

    @property
    def pooled(self) -> Tensor:
        """The outputs, computed when they are first needed: a resumed run loads them."""
        if self._outputs is None:
            self.refresh()
        return self._outputs

    def refresh(self) -> None:
        """Compute the outputs with the tower's present weights."""
        self._outputs = _pooled(self.model, self._processor, self._texts)

    def save(self, folder: Path) -> None:
        """Write the outputs into a checkpoint."""
        save_file({"pooled": self.pooled}, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            ValueError: the checkpoint has no bank, or one of other captions.
        """
        saved = load_file(folder / _FILE).get("pooled") if (folder / _FILE).is_file() else None
        if saved is None or len(saved) != len(self.ids):
            raise ValueError(f"{folder} has no bank of these captions: start anew in another --output_dir")
        self._outputs = saved.to(self.ids.device)

    def positives(self, ids: Tensor) -> Tensor:
        """Return the mask `[b, N]` of the captions with `ids`, int64 `[b, K]` of each clip; -1 is padding.

        Raises:
            ValueError: a caption is not in the bank.
        """
        columns = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        found = self.ids[columns] == ids
        if not torch.equal(found, ids >= 0):
            raise ValueError("the bank lacks a caption of a clip: make it of all captions of the training set")
        mask = torch.zeros(len(ids), len(self.ids), dtype=torch.bool, device=ids.device)
        rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
        mask[rows[found], columns[found]] = True
        return mask

    def with_pooled_texts(self, batch: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """Return a batch with `text_pooled` in place of the tokens of its texts.

        Args:
            batch: what `WavLinkModel.forward` takes, with one text a clip.
            ids: see `positives`; the first of a row is that of the clip's text.
        """
        rows = torch.searchsorted(self.ids, ids[:, 0].contiguous())
        tokens = "input_ids", "attention_mask", "token_type_ids"
        rest = {name: value for name, value in batch.items() if name not in tokens}
        return {**rest, "text_pooled": self.pooled[rows]}

    def loss_of(self, ids: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return the loss of a local batch as a function of what learns.

        Its arguments are the clips' embeddings `[b, D]`, the text projection's weight and the log of the scale. The
        value's mean over processes is the mean over the clips of all of them, as for `contrastive_loss`.

        Args:
            ids: of the clips' captions and the wordings of their labels, see `positives`.
        """
        positives = self.positives(ids)

        def loss(audio_embeds: Tensor, text_weight: Tensor, logit_scale: Tensor) -> Tensor:
            world = world_size() if self.model.training else 1
            with self.autocast():
                bank_embeds = F.linear(self.pooled, text_weight)
            with torch.autocast(audio_embeds.device.type, enabled=False):
                scale = self.model.clamped_scale(logit_scale.float())
                dims = self.model.config.matryoshka_dims
                total = bank_cross_entropy(audio_embeds.float(), bank_embeds.float(), scale, positives, dims)
            return total * (world / sum(sizes_of(audio_embeds, world)))

        return loss


@torch.no_grad()
def _pooled(model: WavLinkModel, processor: WavLinkProcessor, texts: list[str]) -> Tensor:
    """Compute what the text projection receives for each text, `[N, D_text]` fp32, in batches of similar length."""
    order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), row))
    parts: list[Tensor] = []
    training = model.training
    handle = model.text_projection.register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0].float()))
    model.eval()
    try:
        for start in range(0, len(order), _BATCH):
            batch = processor(text=[texts[row] for row in order[start : start + _BATCH]], return_tensors="pt")
            model.get_text_features(**batch.to(model.device))
    finally:
        handle.remove()
        model.train(training)
    pooled = torch.cat(parts)
    return torch.empty_like(pooled).index_copy(0, torch.tensor(order, device=pooled.device), pooled)
