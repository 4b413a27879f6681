"""What a clip costs by its length: native length against the paper's 30 s, interleaved in one run.

    python benchmarks/embed.py [--size base] [--repeats 5]

Weights are random, which changes no timing. Compare ratios; the absolute numbers are those of this machine today.
"""

import argparse
import time

import numpy as np
import torch

from modeling_wavlink import WavLinkAudioModel, WavLinkConfig
from processing import WavLinkFeatureExtractor

SECONDS = (1, 5, 10, 30)


@torch.inference_mode()
def milliseconds(model: WavLinkAudioModel, extractor: WavLinkFeatureExtractor, seconds: float, padding: str) -> float:
    """From samples to the token's state, one clip."""
    clip = np.random.default_rng(0).normal(scale=0.1, size=int(seconds * 16000)).astype(np.float32)
    began = time.perf_counter()
    inputs = extractor(clip, sampling_rate=16000, padding=padding, return_tensors="pt")
    model(**inputs)
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=("base", "small", "large"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = WavLinkConfig.for_size(options.size).audio_config
    model = WavLinkAudioModel(config).eval()
    extractor = WavLinkFeatureExtractor(config.num_mel_bins)
    cases = [(seconds, padding) for seconds in SECONDS for padding in ("longest", "max_length")]
    times = {case: [] for case in cases}
    for repeat in range(options.repeats + 1):
        for case in cases:
            times[case].append(milliseconds(model, extractor, *case))
            if repeat == 0:
                times[case].clear()  # warm-up
    print(f"{options.size}, {torch.get_num_threads()} threads, fp32, one clip, median of {options.repeats}")
    print(f"{'clip':>6} {'native':>10} {'30 s':>10} {'ratio':>7}")
    for seconds in SECONDS:
        native, padded = (np.median(times[seconds, padding]) for padding in ("longest", "max_length"))
        print(f"{seconds:4} s {native:7.0f} ms {padded:7.0f} ms {padded / native:7.1f}")


if __name__ == "__main__":
    main()
