"""What a fresh process takes from its start to a first vector, and its peak memory. start.py starts it:

    python benchmarks/speed_cold.py clap|BACKEND:PRECISION FOLDER DTYPE WAV ...

The first file is embedded alone, then all of them. Prints one line of JSON: processor seconds since this file began of
`imported`, `loaded` and `first`, `wall` seconds to the first vector, `memory`, the most MiB that it had, and whether
`torch` was imported. DTYPE is of torch's models.
"""

import json
import sys
import time
from pathlib import Path


def wavlink(run: str, folder: str, dtype: str):
    from wavlink import Embedder

    yield
    backend, precision = run.split(":")
    options = {"dtype": dtype} if backend == "torch" else {"precision": precision}
    embedder = Embedder(folder, backend=backend, **options)
    yield lambda paths: list(embedder.embed_files(paths))


def clap(run: str, folder: str, dtype: str):
    import torch
    from transformers import ClapFeatureExtractor, ClapModel

    from processing.audio import load_audio

    yield
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    model = ClapModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def embed(paths: list[str], size: int = 4):
        for start in range(0, len(paths), size):
            clips = [load_audio(path, extractor.sampling_rate) for path in paths[start : start + size]]
            inputs = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            model.get_audio_features(inputs["input_features"].to(model.dtype), inputs["is_longer"])

    yield embed


def most_resident() -> float:
    """MiB, at most so far. By Linux alone: `ru_maxrss` begins with what the process that started this one has."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main(run: str, folder: str, dtype: str, *paths: str) -> None:
    began, clock, found = time.process_time(), time.perf_counter(), {}
    steps = (clap if run == "clap" else wavlink)(run, folder, dtype)
    next(steps)
    found["imported"] = time.process_time() - began
    embed = next(steps)
    found["loaded"] = time.process_time() - began
    embed([*paths[:1]])
    found["first"], found["wall"] = time.process_time() - began, time.perf_counter() - clock
    found["torch"] = "torch" in sys.modules
    embed([*paths])
    found["memory"] = most_resident()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
