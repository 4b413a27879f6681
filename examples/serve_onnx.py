"""Sounds against texts with numpy and onnxruntime: no torch, no transformers, nothing of this package.

```
python examples/serve_onnx.py onnx/sounds dog.wav rain.flac --text "a dog barks" "rain falls"
python examples/serve_onnx.py onnx/sounds --serve 8000
curl --data-binary @dog.wav "http://127.0.0.1:8000/?text=a+dog+barks&text=rain+falls"
```
"""

import argparse
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnxruntime
import soundfile
import soxr
from tokenizers import Tokenizer

MAX_BYTES, MAX_TEXTS = 32 * 2**20, 256  # of one request


class WavLink:
    """What `modeling_wavlink.onnx_export` wrote. One input at a time: in int8 batch-mates change a vector."""

    def __init__(self, folder: Path):
        self.about = json.loads((folder / "wavlink_onnx.json").read_text(encoding="utf-8"))
        self.filters = np.load(folder / "mel_filters.npy")  # (n_fft / 2 + 1, F)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        if self.about["text_max_length"]:
            self.tokenizer.enable_truncation(self.about["text_max_length"])
        self.audio, self.text = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("audio", "text"))

    def embed_text(self, text: str) -> np.ndarray:
        ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
        return self.text.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]

    def embed_sound(self, file, name: str) -> np.ndarray:
        features = self.log_mel(self.load(file, name))[None]
        mask = np.ones((1, features.shape[2]), dtype=np.int64)
        return self.audio.run(None, {"input_features": features, "input_features_mask": mask})[0][0]

    def load(self, file, name: str) -> np.ndarray:
        """float32 mono `[samples]` at the model's rate."""
        rate, longest = self.about["sampling_rate"], self.about["max_samples"]
        try:
            with soundfile.SoundFile(file) as sound:
                enough = (longest // rate + 1) * sound.samplerate  # to tell that it is too long
                samples = sound.read(enough, dtype="float32", always_2d=True).mean(1)
        except (soundfile.SoundFileError, OSError, TypeError) as error:
            raise ValueError(f"cannot read {name} as sound: {getattr(error, 'error_string', error)}") from error
        clip = soxr.resample(samples, sound.samplerate, rate) if len(samples) else samples
        if not 0 < len(clip) <= longest or not np.isfinite(clip).all():
            raise ValueError(f"{name} must have finite samples of up to {longest // rate} s: cut it into windows")
        return clip

    def log_mel(self, clip: np.ndarray) -> np.ndarray:
        """Whisper's log-mel `[F, T]`, 10 ms a frame: of the clip's own length, or of 30 s with silence."""
        window, hop, longest = (self.about[name] for name in ("n_fft", "hop_length", "max_samples"))
        frames = longest // hop if self.about["padding"] == "max_length" else -(-len(clip) // hop)
        padded = np.zeros(min((frames + 2) * hop, longest))  # two frames past the end still overlap the clip
        padded[: len(clip)] = clip
        padded = np.pad(padded, window // 2, mode="reflect")
        pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:-1]
        power = np.abs(np.fft.rfft(pieces * np.hanning(window + 1)[:-1])) ** 2
        log = np.log10(np.maximum(power @ self.filters, 1e-10)).T
        return ((np.maximum(log, log.max() - 8) + 4) / 4)[:, :frames].astype(np.float32)


class Handler(BaseHTTPRequestHandler):
    """POST /?text=...&text=... with a sound file as the body is answered with the cosine of each text."""

    timeout = 30  # s without a byte
    model: WavLink

    def do_POST(self):
        try:
            status, answer = 200, self._scores()
        except ValueError as error:
            status, answer = 400, {"error": str(error)}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def _scores(self) -> list[dict]:
        texts = parse_qs(urlsplit(self.path).query, max_num_fields=MAX_TEXTS).get("text", [])
        length = self.headers.get("Content-Length", "")
        if not texts:
            raise ValueError("give at least one text: POST /?text=a+dog+barks")
        if not length.isdecimal() or not 0 < int(length) <= MAX_BYTES:
            raise ValueError(f"the body must be a sound file of 1 to {MAX_BYTES} bytes, with its Content-Length")
        sound = self.model.embed_sound(io.BytesIO(self.rfile.read(int(length))), "the body")
        return [{"text": text, "cosine": float(self.model.embed_text(text) @ sound)} for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of python -m modeling_wavlink.onnx_export")
    parser.add_argument("sounds", nargs="*", help="files that libsndfile reads")
    parser.add_argument("--text", nargs="+", default=[])
    parser.add_argument("--serve", type=int, metavar="PORT", help="on 127.0.0.1; 0: any that is free")
    options = parser.parse_args()
    model = Handler.model = WavLink(options.folder)
    texts = [(text, model.embed_text(text)) for text in options.text]
    for path in options.sounds:
        sound = model.embed_sound(path, path)
        print(path, *(f"  {sound @ vector:6.3f}  {text}" for text, vector in texts), sep="\n")
    if options.serve is not None:
        with ThreadingHTTPServer(("127.0.0.1", options.serve), Handler) as server:
            print(f"http://127.0.0.1:{server.server_port}", flush=True)
            server.serve_forever()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names that a console cannot write
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"serve_onnx: {error}")
