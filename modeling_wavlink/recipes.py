"""Recipes: complete, frozen training configurations. A field is also an option of `train.py`."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on. Strings are Hub ids or folders; times are in seconds."""

    name: str
    data: str = "synthetic"  # "synthetic", an audiofolder, or a Hub id
    train_split: str = "train"
    validation_split: str = "validation"
    caption_columns: tuple[str, ...] = ()  # default: every column named like a caption
    label_prompt: str = ""  # such as "This is a sound of {}.": the label so worded is one more training caption
    init: str = ""  # a WavLink folder or Hub id to start from, instead of two towers
    audio_model: str = ""  # a Whisper; without it, towers of `audio_config` and `text_config` from scratch
    text_model: str = ""  # a CLIP, ModernBERT or BERT-like encoder
    audio_config: dict = dataclasses.field(default_factory=dict)
    text_config: dict = dataclasses.field(default_factory=dict)
    projection_dim: int = 0  # 0: the text tower's own
    matryoshka_dims: tuple[int, ...] = ()  # default: projection_dim and its three halves
    loss_type: str = "info_nce"
    padding: str = "longest"  # "longest": native length; "max_length": the paper's 30 s
    max_seconds: float = 30.0  # longer training clips are cropped at random; validation hears clips whole
    mask_false_negatives: bool = True  # clips that share a caption are no negatives of each other
    batch_size: int = 64  # over all processes
    micro_batch_size: int = 0  # clips a process embeds at once, with the same gradients; 0: its whole share
    epochs: int = 3
    max_steps: int = 0  # 0: `epochs` decides
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mixed_precision: str = "bf16"  # "bf16", "fp16" or "no"
    attn_implementation: str = "sdpa"  # or "eager", "flash_attention_2"
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile of both towers: minutes at the start, then faster steps
    num_workers: int = 1
    save_steps: int = 0  # 0: a checkpoint at the end of each epoch
    seed: int = 0
    output_dir: str = ""  # default: runs/NAME


def _quickstart() -> Recipe:
    """make demo: about 3 minutes on 2 cores.  python train.py quickstart"""
    return Recipe(
        name="quickstart",
        audio_config={
            "d_model": 128,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 512,
            "num_mel_bins": 80,
            "init_std": 0.08,  # about 1 / sqrt(128): the default 0.02 is for wide towers, and starts these asleep
        },
        text_config={
            "model_type": "bert",
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "max_position_embeddings": 64,
            "initializer_range": 0.08,
        },
        projection_dim=128,
        label_prompt="This is a sound of {}.",
        learning_rate=1e-3,
        epochs=10,
    )


def _sounds() -> Recipe:
    """Whisper-tiny.en + MiniLM on any captioned audiofolder.

    python train.py sounds --data FOLDER --audio_model openai/whisper-tiny.en \\
        --text_model sentence-transformers/all-MiniLM-L6-v2

    About an hour on 2 cores for 10,000 clips of 3 s; its result is in the README.
    """
    return Recipe(
        name="sounds",
        data="",
        audio_model="openai/whisper-tiny.en",
        text_model="sentence-transformers/all-MiniLM-L6-v2",
        max_seconds=8.0,
        epochs=6,
    )


RECIPES = {recipe().name: recipe for recipe in (_quickstart, _sounds)}


def get_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
