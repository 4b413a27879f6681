"""A language model with sound as input: it captions a clip from a WavLink's states and captions of similar clips.

    python examples/audio_rag.py runs/sounds/best FOLDER --out runs/rag --steps 500

The WavLink is frozen. An index finds for each clip the nearest clips of the training split, whose captions are the
prompt (retrieval-augmented generation). Before it the model gets, through a linear projector, the last state of the
global token, one vector, or up to 32 means of neighbouring frames, or nothing. Each way trains a GPT-2 of its own from
the same random weights, on the same batches and for as many steps, and is scored on the test split.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from wavlink import Index, WavLinkModel, WavLinkProcessor, load_audio

# The states of the sound that are the input, and whether the prompt holds the retrieved captions.
WAYS = {"text": (None, True), "text + token": ("token", True), "text + frames": ("frames", True)}
WAYS |= {"token": ("token", False), "frames": ("frames", False)}
DIFFERENCES = (("text + token", "text"), ("text + frames", "text + token"), ("text + token", "token"))
WIDTH, LEARNING_RATE = 128, 1e-3  # of the language model
FRAMES, NEIGHBOURS, TOKENS = 32, 3, 32  # TOKENS: the most of a caption
SPECIAL = {"bos_token": "<caption>", "sep_token": "<like>", "eos_token": "<end>", "pad_token": "<pad>"}


class Clips:
    """For each clip the frozen tower's states, its captions, and those of the nearest training clips."""

    @torch.no_grad()
    def __init__(
        self,
        model: WavLinkModel,
        processor: WavLinkProcessor,
        rows: list[dict],
        index: Index,
        known: dict[str, str],
    ):
        self.captions = [row["captions"] for row in rows]
        self.retrieved, self.states = [], {"token": [], "frames": []}  # [1, D], [n, D]
        for row in tqdm(rows, desc="encoding"):
            inputs = processor(audio=load_audio(row["file"]), sampling_rate=16000, return_tensors="pt")
            output = model.audio_model(**inputs, pooling=model.config.pooling)
            token, frames = output.pooler_output, output.last_hidden_state[0]
            means = [part.mean(0) for part in frames.split(-(-len(frames) // FRAMES))]
            self.states["token"].append(token.half())
            self.states["frames"].append(torch.stack(means).half())
            vector = F.normalize(model.audio_projection(token), dim=-1)[0].numpy()
            hits = index.nearest(vector, NEIGHBOURS + 1)  # a training clip finds itself, too
            others = [known[hit.file] for hit in hits if hit.file != row["file"]]
            self.retrieved.append(others[:NEIGHBOURS])


class Captioner(nn.Module):
    """GPT-2 over `sound, prompt, caption`; the sound's states enter through one linear map."""

    def __init__(self, tokenizer: GPT2Tokenizer, width: int, input_states: str | None, with_captions: bool):
        super().__init__()
        self.tokenizer, self.input_states, self.with_captions = tokenizer, input_states, with_captions
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=WIDTH, n_layer=2, n_head=4, **special)
        self.lm = GPT2LMHeadModel(config)
        self.projector = nn.Linear(width, WIDTH)

    def prompt(self, clips: Clips, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the embeddings `[B, L, E]` before the caption, and their mask `[B, L]`."""
        texts = [clips.retrieved[i] if self.with_captions else [] for i in chosen]
        ids = [[token for text in near for token in self.tokens("<like>", text)] for near in texts]
        ids, mask = self.padded([[*row, self.tokenizer.bos_token_id] for row in ids], "left")
        embeds = self.lm.transformer.wte(ids)
        if not self.input_states:
            return embeds, mask
        states = [clips.states[self.input_states][i].float() for i in chosen]
        sound_mask = pad_sequence([torch.ones(len(state), dtype=torch.long) for state in states], batch_first=True)
        sound = self.projector(pad_sequence(states, batch_first=True))  # (B, S, E)
        return torch.cat([sound, embeds], dim=1), torch.cat([sound_mask, mask], dim=1)

    def tokens(self, *texts: str) -> list[int]:
        """Tokenize the texts as one, truncated to `TOKENS`."""
        return self.tokenizer("".join(texts), truncation=True, max_length=TOKENS)["input_ids"]

    def padded(self, ids: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
        """Return the ids `[B, L]`, padded on one side, and their mask `[B, L]`."""
        batch = self.tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def forward(self, clips: Clips, chosen: Sequence[int], captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return the caption's tokens `[B, T]`, -100 for padding, and their logits `[B, T, V]`."""
        before, mask = self.prompt(clips, chosen)
        ids, caption_mask = self.padded(
            [[*self.tokens(text), self.tokenizer.eos_token_id] for text in captions], "right"
        )
        mask = torch.cat([mask, caption_mask], dim=1)
        embeds = torch.cat([before, self.lm.transformer.wte(ids)], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # padding has no position, as in `generate`
        logits = self.lm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
        return ids.masked_fill(caption_mask == 0, -100), logits[:, before.shape[1] - 1 : -1]

    @torch.inference_mode()
    def write(self, clips: Clips, chosen: Sequence[int]) -> list[str]:
        """Generate the captions."""
        embeds, mask = self.prompt(clips, chosen)
        ids = self.lm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def train(captioner: Captioner, clips: Clips, steps: int, seed: int, batch_size: int = 32) -> None:
    """Train the language model and the projector on random batches."""
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.05)
    rng = np.random.default_rng(seed)
    captioner.train()
    for _ in tqdm(range(steps), desc="training"):
        chosen = rng.choice(len(clips.captions), min(batch_size, len(clips.captions)), replace=False)
        targets, logits = captioner(clips, chosen, [rng.choice(clips.captions[i]) for i in chosen])
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def overlap(written: str, captions: list[str]) -> float:
    """Return the F1 of the words, as sets, with the most similar caption."""
    words = {*written.lower().split()}
    others = [{*caption.lower().split()} for caption in captions]
    return max(2 * len(words & other) / (len(words) + len(other)) for other in others)


@torch.inference_mode()
def score(captioner: Captioner, clips: Clips) -> dict[str, list]:
    """Return for each clip the loss of its first caption, in nats a token, and the generated caption."""
    captioner.eval()
    results = {"loss": [], "written": []}
    for chosen in torch.arange(len(clips.captions)).split(64):
        targets, logits = captioner(clips, chosen, [clips.captions[i][0] for i in chosen])
        losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
        results["loss"] += (losses.sum(1) / (targets >= 0).sum(1)).tolist()
        results["written"] += captioner.write(clips, chosen)
    return results


def mean(values: np.ndarray) -> dict:
    """Return the mean over clips and its 95 % bootstrap interval, on the same samples of clips at each call."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(1000)]
    return {"value": float(values.mean()), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def report(results: dict[str, dict], captions: list[list[str]], path: Path) -> dict:
    """Print and save each figure's mean and 95 % interval over clips, and differences on the same samples of clips."""
    scores = {}
    for name, row in results.items():
        pairs = list(zip(row["written"], captions, strict=True))
        scores[name] = {"loss": np.array(row["loss"])} if "loss" in row else {}
        scores[name]["exact"] = np.array([float(text in references) for text, references in pairs])
        scores[name]["word F1"] = np.array([overlap(text, references) for text, references in pairs])
    for more, less in DIFFERENCES:
        scores[f"{more} - {less}"] = {key: x - scores[less][key] for key, x in scores[more].items()}
    figures = {name: {key: mean(x) for key, x in row.items()} for name, row in scores.items()}
    written = {name: row["written"][:50] for name, row in results.items()}
    path.write_text(json.dumps({"figures": figures, "written": written}, indent=2) + "\n", encoding="utf-8")
    for name, row in figures.items():
        cells = [f"{key} {x['value']:.3f} [{x['interval'][0]:.3f}, {x['interval'][1]:.3f}]" for key, x in row.items()]
        print(f"{name:30}" + "  ".join(cells))
    return figures


def load_split(folder: str, split: str) -> list[dict]:
    """Return `file` and `captions` of each row of a split's `metadata.csv`, in all columns named like captions."""
    root = Path(folder).resolve() / split
    with open(root / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    columns = [name for name in rows[0] if re.fullmatch(r"captions?(_?\d+)?|text", name)]
    captioned = [
        {"file": os.path.abspath(root / row["file_name"]), "captions": [row[name] for name in columns if row[name]]}
        for row in rows
    ]
    return [row for row in captioned if row["captions"]]


def load(
    model: WavLinkModel, processor: WavLinkProcessor, options: argparse.Namespace
) -> tuple[dict[str, Clips], GPT2Tokenizer]:
    """Index the training clips, encode both splits, and train a tokenizer on the captions."""
    splits = {name: load_split(options.folder, name) for name in ("train", "test")}
    if options.clips:
        chosen = np.random.default_rng(options.seed).permutation(len(splits["train"]))[: options.clips]
        splits["train"] = [splits["train"][i] for i in chosen]
    known = {row["file"]: row["captions"][0] for row in splits["train"]}
    folder = options.out / f"index_{len(known)}_{options.seed}"
    index = Index.build(list(known), folder, options.model)
    clips = {name: Clips(model, processor, rows, index, known) for name, rows in splits.items()}
    captions = clips["train"].captions
    return clips, GPT2Tokenizer(**SPECIAL).train_new_from_iterator(captions, 3000, show_progress=False)


def main(argv: list[str] | None = None) -> dict:
    """Train and score each variant; return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a WavLink: folder or Hub id")
    parser.add_argument("folder", help="with train and test, each with a metadata.csv: file_name, caption")
    parser.add_argument("--out", type=Path, default=Path("runs/rag"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--clips", type=int, default=0, help="of the training split; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    model = WavLinkModel.from_pretrained(options.model).eval()
    processor = WavLinkProcessor.from_pretrained(options.model)
    clips, tokenizer = load(model, processor, options)
    results = {"nearest clip's caption": {"written": [near[0] for near in clips["test"].retrieved]}}
    for name, way in WAYS.items():
        torch.manual_seed(options.seed)
        captioner = Captioner(tokenizer, model.config.audio_config.hidden_size, *way)
        train(captioner, clips["train"], options.steps, options.seed)
        results[name] = score(captioner, clips["test"])
    return report(results, clips["test"].captions, options.out / "scores.json")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a caption may hold what the terminal cannot show
    main()
