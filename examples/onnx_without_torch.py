"""Compare sounds with texts by numpy and onnxruntime alone, without torch, transformers or this package.

```
python examples/onnx_without_torch.py onnx/sounds dog.wav rain.flac --text "a dog barks" "rain falls"
```
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnxruntime
import soundfile
import soxr
from tokenizers import Tokenizer

RATES = 1000, 2**20  # Hz


class WavLink:
    """A folder of `wavlink export`. Inputs are computed one by one: in int8 a batch changes the vectors."""

    def __init__(self, folder: Path):
        self.about = json.loads((folder / "wavlink_onnx.json").read_text(encoding="utf-8"))
        self.filters = np.load(folder / "mel_filters.npy")  # (n_fft / 2 + 1, F)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        if self.about["text_max_length"]:
            self.tokenizer.enable_truncation(self.about["text_max_length"])
        self.audio, self.text = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("audio", "text"))

    def embed_text(self, text: str) -> np.ndarray:
        """Return the vector `[D]` of a text."""
        ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
        return self.text.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]

    def embed_sound(self, file: str | BinaryIO, name: str) -> np.ndarray:
        """Return the vector `[D]` of a sound file; `name` is for errors."""
        features = self.log_mel(self.load(file, name))[None]
        mask = np.ones((1, features.shape[2]), dtype=np.int64)
        return self.audio.run(None, {"input_features": features, "input_features_mask": mask})[0][0]

    def load(self, file: str | BinaryIO, name: str) -> np.ndarray:
        """Decode a file to float32 mono `[samples]` at the model's rate."""
        rate, longest = self.about["sampling_rate"], self.about["max_samples"]
        samples, blocks = 0, []
        try:
            with soundfile.SoundFile(file) as sound:
                if not RATES[0] <= sound.samplerate <= RATES[1]:
                    raise ValueError(f"{name} has a sampling rate of {sound.samplerate} Hz")
                resampler = soxr.ResampleStream(sound.samplerate, rate, num_channels=1, dtype="float32")
                for mono, last in mono_blocks(sound):
                    clip = resampler.resample_chunk(mono, last=last) if sound.samplerate != rate else mono
                    samples += len(clip)
                    blocks.append(clip)
                    if samples > longest:
                        break
        except (soundfile.SoundFileError, OSError, TypeError) as error:
            raise ValueError(f"cannot read {name} as sound: {getattr(error, 'error_string', error)}") from error
        clip = np.concatenate(blocks)
        if not 0 < len(clip) <= longest or not np.isfinite(clip).all():
            raise ValueError(f"{name} must have finite samples of up to {longest // rate} s: cut it into windows")
        return clip

    def log_mel(self, clip: np.ndarray) -> np.ndarray:
        """Compute Whisper's log-mel `[F, T]`, 10 ms a frame, of the clip's own length or padded to 30 s."""
        window, hop, longest = (self.about[name] for name in ("n_fft", "hop_length", "max_samples"))
        frames = longest // hop if self.about["padding"] == "max_length" else -(-len(clip) // hop)
        padded = np.zeros(min((frames + 2) * hop, longest))  # two frames past the end still overlap the clip
        padded[: len(clip)] = clip
        padded = np.pad(padded, window // 2, mode="reflect")
        pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:-1]
        power = np.abs(np.fft.rfft(pieces * np.hanning(window + 1)[:-1])) ** 2
        log = np.log10(np.maximum(power @ self.filters, 1e-10)).T
        return ((np.maximum(log, log.max() - 8) + 4) / 4)[:, :frames].astype(np.float32)


def mono_blocks(sound: soundfile.SoundFile) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield float32 mono `[samples]` of up to a second, and whether they are the last.

    As in `processing/downmix_wavlink.py` they are the mean of the channels. If channels cancel each other out, those
    are inverted that make the mean louder.
    """
    sound.seekable = lambda: False  # or the length in the header would be used
    frames, signs = min(sound.samplerate, 2**16, 2**20 // sound.channels), None
    while True:
        block = sound.read(frames, dtype="float32", always_2d=True)
        mean = block.mean(axis=1) if len(block) else np.empty(0, np.float32)
        if signs is None or len(block) == frames:
            signs, total = np.ones(sound.channels, np.float32), np.zeros(len(block), np.float32)
            if sound.channels**2 * np.vdot(mean, mean) < 0.03 * np.vdot(block, block):
                for channel in range(sound.channels):
                    signs[channel] = -1 if np.vdot(total, block[:, channel]) < 0 else 1
                    total += signs[channel] * block[:, channel]
        yield mean if (signs > 0).all() or not len(block) else (block * signs).mean(axis=1), not len(block)
        if not len(block):
            return


def main() -> None:
    """Print the cosines of sounds and texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of wavlink export")
    parser.add_argument("sounds", nargs="*", help="files that libsndfile reads")
    parser.add_argument("--text", nargs="+", default=[])
    options = parser.parse_args()
    model = WavLink(options.folder)
    texts = [(text, model.embed_text(text)) for text in options.text]
    for path in options.sounds:
        sound = model.embed_sound(path, path)
        print(path, *(f"  {sound @ vector:6.3f}  {text}" for text, vector in texts), sep="\n")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names that a console cannot write
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"onnx_without_torch: {error}")
