"""Two audio towers of one size with random weights, Whisper's and HTS-AT's, to compare architectures alone.

    python benchmarks/audio_towers.py --out TOWERS [--seed 0]

Writes TOWERS/whisper and TOWERS/htsat (7.6 M and 7.8 M parameters): folders that `--audio_model` takes.
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

# Whisper-tiny's encoder; its decoder, of the least size, is never used.
WHISPER = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 6, "decoder_ffn_dim": 1, "vocab_size": 51864}
HTSAT = {"patch_embeds_hidden_size": 48, "hidden_size": 384, "depths": [2, 2, 8, 2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    whisper, htsat = Path(options.out) / "whisper", Path(options.out) / "htsat"
    WhisperModel(WhisperConfig(**WHISPER, **DECODER)).save_pretrained(whisper)
    WhisperFeatureExtractor().save_pretrained(whisper)
    tower = ClapAudioModel(ClapAudioConfig(**HTSAT, num_attention_heads=[2, 4, 8, 16]))
    norm = tower.audio_encoder.batch_norm  # statistics of log-mels in dB, which training keeps as they are
    norm.running_mean.fill_(-50.0)
    norm.running_var.fill_(25.0**2)
    tower.save_pretrained(htsat)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(htsat)


if __name__ == "__main__":
    main()
