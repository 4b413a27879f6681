"""A small file that holds much sound takes little memory at every door that takes files of others."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from hub_cards.space.answers import Demo, Limits
from processing.audio import load_audio
from tests.conftest import RATE
from tests.sound_bytes import encoded, pure, repeated_flac

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_without_torch.py"
FAST = 655350  # Hz, the most that FLAC's frames can say

PROGRAMS = {
    "load_audio": "from processing.audio import load_audio as read",
    "stream_windows": """
from processing.windows import stream_windows
def read(path):
    for window in stream_windows(path, 10, 10): pass
""",
    "Space": """
from types import SimpleNamespace
from hub_cards.space.answers import Demo, Limits
demo = object.__new__(Demo)
demo.limits, demo.embedder = Limits(), SimpleNamespace(sampling_rate=16000)
read = demo.sound
""",
    "serve": """
from wavlink.serving.audio_input import decode
def read(path):
    decode([("it", open(path, "rb").read())], 16000, 600)
""",
    "onnx_without_torch": f"""
import importlib.util
spec = importlib.util.spec_from_file_location("onnx_without_torch", {str(EXAMPLE)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = object.__new__(module.WavLink)
model.about = {{"sampling_rate": 16000, "max_samples": 480000}}
read = lambda path: model.load(path, "it")
""",
}
MEASURE = """
import json, resource, sys
small, large = sys.argv[1:]
logged = ""
for path in (small, large):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(path)
    except ValueError as error:
        logged = str(error)
print(json.dumps([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, logged]))
"""


def peak_of(door: str, path: Path, tmp_path: Path) -> tuple[float, str]:
    """MB that reading a file takes above what reading a small one took, in a process of its own; and its error."""
    pytest.importorskip("resource")
    if door == "onnx_without_torch":
        pytest.importorskip("onnxruntime")
    small = tmp_path / "small.wav"
    small.write_bytes(encoded(np.stack([pure(440, 48000)] * 2, 1), rate=48000))
    command = [sys.executable, "-c", PROGRAMS[door] + MEASURE, str(small), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("door", PROGRAMS)
def test_a_small_flac_of_a_high_rate(door, tmp_path):
    """200 s at 655 kHz are 524 MB of samples in 0.5 MB; at 16 kHz they are 13 MB."""
    path = tmp_path / "loud.flac"
    path.write_bytes(repeated_flac(200, FAST))
    assert path.stat().st_size < 2**19
    peak, logged = peak_of(door, path, tmp_path)
    assert peak < 120
    assert logged == {"load_audio": "", "stream_windows": ""}.get(door, logged)


@pytest.mark.slow
@pytest.mark.parametrize("door", ["load_audio", "onnx_without_torch"])
def test_a_file_of_many_channels(door, tmp_path):
    path = tmp_path / "wide.wav"
    path.write_bytes(encoded(np.zeros((60_000, 1000), np.int16), "WAV", "PCM_U8", 48000))  # 60 MB, 240 MB of floats
    peak, _ = peak_of(door, path, tmp_path)
    assert peak < 120


@pytest.mark.parametrize("door", ["classify", "locate"])
def test_the_space_decodes_in_turn(door, tmp_path, monkeypatch):
    demo = object.__new__(Demo)
    demo.limits, demo._turn = Limits(wait=0.05), threading.Semaphore()

    def sound(self, path):
        assert not self._turn.acquire(blocking=False)
        raise ValueError("decoded in turn")

    monkeypatch.setattr(Demo, "sound", sound)
    with pytest.raises(ValueError, match="decoded in turn"):
        getattr(demo, door)("dog.wav", "a dog")
    with demo.turn(), pytest.raises(ValueError, match="try again in a minute"):
        getattr(demo, door)("dog.wav", "a dog")
    assert demo._turn.acquire(blocking=False)


def test_the_example_mixes_and_resamples_as_the_package_does():
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("onnx_without_torch", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = object.__new__(module.WavLink)
    model.about = {"sampling_rate": RATE, "max_samples": 30 * RATE}
    clip = pure(440, 44100, 2.3)
    quiet = np.random.default_rng(0).normal(scale=0.1, size=(3, len(clip))).astype(np.float32)
    for channels in ([clip], [clip, -clip], [clip, 0 * clip], quiet):
        for rate in (RATE, 44100):
            content = encoded(np.stack(list(channels), 1), rate=rate)
            np.testing.assert_array_equal(model.load(io.BytesIO(content), "it"), load_audio(content))
