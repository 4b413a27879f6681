"""A language model that reads a sound's states through one linear map, and captions it; see audio_rag.py.

`clips` holds for each clip `captions`, `retrieved` (captions of similar clips) and `states` by name, `[n, D]` each.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

TOKENS = 32  # the most of a caption
SPECIAL = {"bos_token": "<caption>", "sep_token": "<like>", "eos_token": "<end>", "pad_token": "<pad>"}


class Captioner(nn.Module):
    """GPT-2 over `sound, prompt, caption`; the sound's states enter through one linear map."""

    def __init__(
        self, tokenizer: GPT2Tokenizer, width: int, input_states: str | None, with_captions: bool, lm_width: int = 128
    ):
        super().__init__()
        self.tokenizer, self.input_states, self.with_captions = tokenizer, input_states, with_captions
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        sizes = {"n_positions": 256, "n_embd": lm_width, "n_layer": 2, "n_head": 4}
        self.lm = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **special))
        self.projector = nn.Linear(width, lm_width)

    def prompt(self, clips, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the embeddings `[B, L, E]` before the caption, and their mask `[B, L]`."""
        texts = [clips.retrieved[i] if self.with_captions else [] for i in chosen]
        ids = [[token for text in near for token in self.tokens("<like>" + text)] for near in texts]
        ids, mask = self.padded([[*row, self.tokenizer.bos_token_id] for row in ids], "left")
        embeds = self.lm.transformer.wte(ids)
        if not self.input_states:
            return embeds, mask
        states = [clips.states[self.input_states][i].float() for i in chosen]
        sound_mask = pad_sequence([torch.ones(len(state), dtype=torch.long) for state in states], batch_first=True)
        sound = self.projector(pad_sequence(states, batch_first=True))  # (B, S, E)
        return torch.cat([sound, embeds], dim=1), torch.cat([sound_mask, mask], dim=1)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"]

    def padded(self, ids: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
        """Return the ids `[B, L]`, padded on one side, and their mask `[B, L]`."""
        batch = self.tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def forward(self, clips, chosen: Sequence[int], captions: list[str]) -> Tensor:
        """Return the loss of each caption, in nats a token, `[B]`."""
        before, mask = self.prompt(clips, chosen)
        targets = [[*self.tokens(text), self.tokenizer.eos_token_id] for text in captions]
        ids, caption_mask = self.padded(targets, "right")
        mask = torch.cat([mask, caption_mask], dim=1)
        embeds = torch.cat([before, self.lm.transformer.wte(ids)], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # padding has no position, as in `generate`
        logits = self.lm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
        losses = F.cross_entropy(logits[:, before.shape[1] - 1 : -1].transpose(1, 2), ids, reduction="none")
        return (losses * caption_mask).sum(1) / caption_mask.sum(1)

    @torch.inference_mode()
    def write(self, clips, chosen: Sequence[int]) -> list[str]:
        """Generate the captions."""
        embeds, mask = self.prompt(clips, chosen)
        ids = self.lm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def train(captioner: Captioner, clips, steps: int, learning_rate: float, seed: int, batch_size: int = 32) -> None:
    """Train the language model and the projector on random batches."""
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(steps), desc="training"):
        chosen = rng.choice(len(clips.captions), min(batch_size, len(clips.captions)), replace=False)
        optimizer.zero_grad()
        captioner(clips, chosen, [rng.choice(clips.captions[i]) for i in chosen]).mean().backward()
        nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
