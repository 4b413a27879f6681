"""Three audio towers of one size with random weights, Whisper's, HTS-AT's and PaSST's, to compare architectures alone.

    python benchmarks/audio_towers.py --out TOWERS [--seed 0]

Writes TOWERS/whisper, TOWERS/htsat and TOWERS/passt (7.6 M, 7.8 M and 7.2 M parameters): folders that `--audio_model`
takes, also that of `train.py sweep`. claims.py compares them, of a seventh of the size.
"""

import argparse
from pathlib import Path

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

# Whisper-tiny's encoder; its decoder, of the least size, is never used.
WHISPER = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 6, "decoder_ffn_dim": 1, "vocab_size": 51864}
HTSAT = {"patch_embeds_hidden_size": 48, "hidden_size": 384, "depths": [2, 2, 8, 2]}
HTSAT |= {"num_attention_heads": [2, 4, 8, 16]}
PASST = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="write the towers into this folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    save_towers(options.out)


if __name__ == "__main__":
    main()
