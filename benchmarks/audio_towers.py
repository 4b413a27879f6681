"""Three audio towers of one size with random weights, Whisper's, HTS-AT's and PaSST's, to compare architectures alone.

    python benchmarks/audio_towers.py --out TOWERS [--seed 0]
    python benchmarks/audio_towers.py --compare whisper htsat passt [--max_steps 300] [--batch_size 32]

The first writes TOWERS/whisper, TOWERS/htsat and TOWERS/passt (7.6 M, 7.8 M and 7.2 M parameters): folders that
`--audio_model` takes, also that of `train.py sweep`.

The second trains each from random weights beside the same new text tower, on `wavlink samples`: the same clips in the
same order, steps and learning rate. The time of a step is the processor's, forward and backward, on one thread.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import records
import tables
import torch
from transformers import (
    ClapAudioConfig,
    ClapAudioModel,
    ClapFeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
    set_seed,
)

from modeling_wavlink import WavLinkPasstConfig, WavLinkPasstModel
from processing import WavLinkPasstFeatureExtractor
from wavlink.samples import write_samples
from wavlink.training.grad_cache import backward
from wavlink.training.loop import Run, train
from wavlink.training.recipes import Recipe, load_recipe

# Whisper-tiny's encoder; its decoder, of the least size, is never used.
WHISPER = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 6, "decoder_ffn_dim": 1, "vocab_size": 51864}
HTSAT = {"patch_embeds_hidden_size": 48, "hidden_size": 384, "depths": [2, 2, 8, 2]}
HTSAT |= {"num_attention_heads": [2, 4, 8, 16]}
PASST = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536}
TOWERS = {
    "whisper": {"model_type": "whisper", **WHISPER, **DECODER, "num_mel_bins": 80},
    "htsat": {"model_type": "clap_audio_model", **HTSAT, "num_mel_bins": 64},
    "passt": {"model_type": "passt", **PASST, "num_mel_bins": 128},
}
# A third as wide; new weights have the standard deviation 1 / sqrt(128), since 0.02 starts narrow towers asleep.
SMALL_WHISPER = {"d_model": 128, "encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 512}
SMALL_WHISPER |= {**DECODER, "decoder_attention_heads": 2, "init_std": 0.088}
SMALL_HTSAT = {"patch_embeds_hidden_size": 16, "hidden_size": 128, "depths": [2, 2, 8, 2]}
SMALL_HTSAT |= {"num_attention_heads": [1, 2, 4, 8], "initializer_factor": 8**0.5}
SMALL_PASST = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 512}
SMALL_PASST |= {"initializer_range": 0.088}


def save_towers(folder: Path, small: bool = False) -> None:
    """Write the three towers with new weights; the small ones have about a million parameters each."""
    whisper = SMALL_WHISPER if small else {**WHISPER, **DECODER}
    WhisperModel(WhisperConfig(**whisper)).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    tower = ClapAudioModel(ClapAudioConfig(**(SMALL_HTSAT if small else HTSAT)))
    norm = tower.audio_encoder.batch_norm  # statistics of log-mels in dB, which training keeps as they are
    norm.running_mean.fill_(-50.0)
    norm.running_var.fill_(25.0**2)
    tower.save_pretrained(folder / "htsat")
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder / "htsat")
    config = WavLinkPasstConfig(**(SMALL_PASST if small else PASST))
    WavLinkPasstModel(config).save_pretrained(folder / "passt")
    WavLinkPasstFeatureExtractor.from_passt(config).save_pretrained(folder / "passt")


def recipe(tower: str, options: argparse.Namespace, sounds: Path, folder: Path) -> Recipe:
    return load_recipe(
        "quickstart",
        audio_config=TOWERS[tower],
        data=str(sounds),
        label_prompt="",
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        max_steps=options.max_steps,
        mixed_precision="no",
        num_workers=0,
        seed=options.seed,
        output_dir=str(folder),
    )


def step_seconds(run: Run, repeats: int = 3) -> list[float]:
    """Processor seconds of forward and backward on the same clips, one figure a repeat; the first warms up."""
    batches, seconds = iter(run.feed.batches(run.processor, 1)), []
    ready = [next(batches) for _ in range(2)]
    run.model.train()
    for _ in range(repeats + 1):
        began = time.process_time()
        for batch in ready:
            backward(run.accelerator, run.model, batch, 0)
        seconds.append((time.process_time() - began) / len(ready))
        run.optimizer.zero_grad()
    return seconds[1:]


def compared(tower: str, options: argparse.Namespace) -> tuple[list, dict]:
    """A row of the table, and what was measured for it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_samples(folder / "sounds", options.clips_per_kind)
        run = Run(recipe(tower, options, folder / "sounds", folder / "timed"))
        parameters = sum(parameter.numel() for parameter in run.model.audio_model.parameters())
        seconds = step_seconds(run)
        del run
        lines = (
            (train(recipe(tower, options, folder / "sounds", folder / "run")) / "metrics.jsonl")
            .read_text()
            .splitlines()
        )
    scores = [line["validation"] for line in map(json.loads, lines) if "validation" in line][-1]
    full = {way: next(iter(scores[way].values()))["R@10"] for way in ("text_to_audio", "audio_to_text")}
    time_cell = {"value": statistics.median(seconds), "range": [min(seconds), max(seconds)], "digits": 2, "unit": "s"}
    row = [tower, records.number(parameters / 1e6, 1, "M"), time_cell, *map(records.percent, full.values())]
    return row, {"seconds": seconds, "validation": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the towers into this folder")
    parser.add_argument("--compare", nargs="+", choices=TOWERS, default=[], metavar="TOWER", help="train these")
    parser.add_argument("--clips_per_kind", type=int, default=20, help="of each split of the sounds")
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    records.add_option(parser, "audio_towers")
    options = parser.parse_args()
    if not options.out and not options.compare:
        parser.error("give --out FOLDER, or --compare and towers")
    set_seed(options.seed)
    if options.out:
        save_towers(options.out)
    if not options.compare:
        return
    torch.set_num_threads(1)
    results = {tower: compared(tower, options) for tower in options.compare}
    columns = ["audio tower", "its parameters", "processor time of a step", "text → audio R@10", "audio → text R@10"]
    values = {"towers": records.table(columns, [row for row, _ in results.values()])}
    print(tables.markdown(values["towers"]))
    records.write(
        options.record,
        title="Audio towers of one size from random weights under one recipe",
        seed=options.seed,
        note=f"{options.clips_per_kind} sounds of each kind, about 2 s long; {options.max_steps} steps of "
        f"{options.batch_size} clips, one run each. R@10 of the validation split in percent.",
        values=values,
        raw={tower: raw for tower, (_, raw) in results.items()},
    )


if __name__ == "__main__":
    main()
