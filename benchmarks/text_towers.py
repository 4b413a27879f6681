"""Two small text towers of the design sweep's two architectures, CLIP's and ModernBERT's, out of one teacher.

    python benchmarks/text_towers.py FOLDER --teacher ALL_MINILM_L6_V2 --clip_tokenizer CLIP_TOKENIZER --out TOWERS

Neither architecture is published at the size of Whisper-tiny. Both students learn the teacher's sentence embeddings
of the training captions alone (no sound), so that a sweep over them compares architectures and not what they were
pretrained on. Writes TOWERS/clip and TOWERS/modernbert: folders that `--text_model` takes.
About 5 minutes on 2 cores; prints how well each student keeps the teacher's similarities of validation captions.
"""

import argparse
from pathlib import Path

import records
import torch
from torch.nn import functional as F
from tqdm import trange
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    ModernBertConfig,
    ModernBertModel,
    set_seed,
)

from processing.datasets.load import caption_columns, captions_of, load_split

WIDTH, LAYERS, HEADS = 256, 4, 4
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
MAX_TOKENS = 32
LEARNING_RATE = 1e-3


def captions(data: str, split: str) -> list[str]:
    rows = load_split(data, split)
    columns = caption_columns(rows)
    return sorted({text for row in rows.remove_columns("audio") for text in captions_of(row, columns)})


def tokenize(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    return tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")


def mean_state(model, tokens) -> torch.Tensor:
    """`[B, D]`: the mean of the tokens' last states, as MiniLM pools."""
    mask = tokens["attention_mask"][..., None]
    return (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def embed(encode, tokenizer, texts: list[str], batch_size: int = 256) -> torch.Tensor:
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    return torch.cat([F.normalize(encode(tokenize(tokenizer, batch)).float(), dim=-1) for batch in batches])


def students(options) -> dict[str, tuple]:
    """Name -> (tokenizer, tower, its pooled output of tokens)."""
    clip_tokenizer = AutoTokenizer.from_pretrained(options.clip_tokenizer)
    clip = CLIPTextModelWithProjection(
        CLIPTextConfig(
            **SHAPE,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            vocab_size=len(clip_tokenizer),
            max_position_embeddings=77,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    bert_tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    ids = {f"{name}_token_id": getattr(bert_tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    modernbert = ModernBertModel(
        ModernBertConfig(
            **SHAPE,
            **ids,
            bos_token_id=ids["cls_token_id"],
            eos_token_id=ids["sep_token_id"],
            intermediate_size=2 * WIDTH,  # gated: as many weights as CLIP's 4 x
            vocab_size=len(bert_tokenizer),
            max_position_embeddings=512,
        )
    )
    return {
        "clip": (clip_tokenizer, clip, lambda tokens: clip(**tokens).text_embeds),
        "modernbert": (
            bert_tokenizer,
            modernbert,
            lambda tokens: modernbert(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state[:, 0],
        ),
    }


def teach(tower, encode, tokenizer, texts: list[str], targets: torch.Tensor, steps: int, options) -> None:
    """The student's similarities within a batch become the teacher's: squared error, no head needed."""
    optimizer = torch.optim.AdamW(tower.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    generator = torch.Generator().manual_seed(options.seed)
    tower.train()
    bar = trange(steps, desc=type(tower).__name__)
    for _ in bar:
        rows = torch.randint(len(texts), (options.batch_size,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            embeds = encode(tokenize(tokenizer, [texts[row] for row in rows]))
        embeds = F.normalize(embeds.float(), dim=-1)
        loss = F.mse_loss(embeds @ embeds.T, targets[rows] @ targets[rows].T)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    tower.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a captioned audiofolder")
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--clip_tokenizer", default="openai/clip-vit-base-patch32")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=[400, 400], metavar=("CLIP", "MODERNBERT"))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    records.add_option(parser, "text_towers")
    options = parser.parse_args()
    teacher_tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    teacher = AutoModel.from_pretrained(options.teacher).eval()
    texts = captions(options.data, "train")
    unseen = sorted({*captions(options.data, "validation")} - {*texts})
    targets, unseen_targets = (
        embed(lambda tokens: mean_state(teacher, tokens), teacher_tokenizer, x) for x in (texts, unseen)
    )
    pairs = torch.triu_indices(len(unseen), len(unseen), 1).unbind()
    set_seed(options.seed)
    rows = []
    for (name, (tokenizer, tower, encode)), steps in zip(students(options).items(), options.steps, strict=True):
        teach(tower, encode, tokenizer, texts, targets, steps, options)
        embeds = embed(encode, tokenizer, unseen)
        kept = torch.corrcoef(torch.stack([(x @ x.T)[pairs] for x in (embeds, unseen_targets)]))[0, 1]
        size = sum(p.numel() for p in tower.parameters()) / 1e6
        print(
            f"{name}: {size:.1f} M parameters, correlation with the teacher's similarities {kept:.3f} "
            f"on {len(unseen)} captions"
        )
        rows.append([name, records.number(size, 1, "M"), steps, records.number(float(kept), 3)])
        tower.save_pretrained(Path(options.out) / name)
        tokenizer.save_pretrained(Path(options.out) / name)
    records.write(
        options.record,
        title="Small text towers taught a sentence model's similarities",
        seed=options.seed,
        note=f"On {len(unseen)} captions that no tower has learned from.",
        values={"towers": records.table(["tower", "parameters", "steps", "correlation with the teacher"], rows)},
    )


if __name__ == "__main__":
    main()
