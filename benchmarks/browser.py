"""The page of a static Space in a headless Chromium: its download, its first answer, and its vectors beside Python's.

    python benchmarks/browser.py [MODEL] [--npm_packages FOLDER] [--runs 5] [--record]

MODEL is a folder or a Hub id, by default the bundled wavlink-tiny. The page is served from this machine, so that its
files arrive at once: at B megabytes per second add the download divided by B. Each run is a new browser with an empty
cache. It needs Chromium and onnxruntime-web, which npm downloads unless FOLDER holds what `npm pack` has written.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import records
import soundfile
import tables
from chromium import Chromium, served

from hub_cards.space.static_folder import write_static_space
from processing.datasets.synthetic import KINDS, render
from wavlink.embedder import Embedder
from wavlink.loading import load_for_evaluation

SECONDS = (1, 5, 10, 30)
RATE = 44100  # Hz of the files
PARTS = {
    "runtime (npm)": "npm/*",
    "audio tower": "model/audio.onnx",
    "text tower": "model/text.onnx",
    "tokenizer": "model/tokenizer*",
}
LOAD = "import('./wavlink.js').then(async (m) => { globalThis.m = m; globalThis.loaded = await m.WavLink.load(); })"
# Medians of three, after one that is not counted.
TIMES = """(async () => {
    const bytes = await (await fetch(FILE)).arrayBuffer(), times = { decoded: [], features: [], embedded: [] };
    for (let n = 0; n < 4; n++) {
        const start = performance.now(), samples = await m.decode(bytes, loaded.about.sampling_rate);
        const decoded = performance.now();
        m.logMel(samples.subarray(0, loaded.about.max_samples), loaded.about, loaded.filters);
        const features = performance.now();
        globalThis.vector = await loaded.embedSound(samples);
        const all = [decoded - start, features - decoded, performance.now() - features];
        Object.keys(times).forEach((name, at) => n && times[name].push(all[at]));
    }
    for (const name in times) times[name] = times[name].sort((a, b) => a - b)[1];
    return [times, Array.from(vector)];
})()"""


def write_clips(folder: Path) -> dict[str, int]:
    """Write a synthetic clip of each length, repeated until it is full; return the lengths by file."""
    folder.mkdir()
    files = {}
    for number, seconds in enumerate(SECONDS):
        clip, _ = render(list(KINDS)[number], np.random.default_rng(number))
        soundfile.write(folder / f"{seconds} s.wav", np.resize(clip, seconds * RATE), RATE)
        files[f"clips/{seconds} s.wav"] = seconds
    return files


def first_answer(address: str) -> tuple[dict[str, float], int]:
    """Return the seconds from the start of a browser's visit to each step, and the page's threads."""
    with Chromium() as page:
        start, times = time.perf_counter(), {}
        page.open(address)
        page.wait_for("document.querySelector('#about').innerText")
        times["page shown"] = time.perf_counter() - start
        page.evaluate("document.querySelector('#examples').click()")
        page.wait_for("document.querySelectorAll('#sounds audio').length")
        times["first sound embedded"] = time.perf_counter() - start
        page.wait_for("document.querySelectorAll('#sounds audio').length === 12")
        times["twelve sounds embedded"] = time.perf_counter() - start
        page.evaluate("document.querySelector('#name').requestSubmit()")
        page.wait_for("document.querySelectorAll('#names section').length === 12")
        times["twelve sounds named"] = time.perf_counter() - start
        threads = page.evaluate("crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1")
    return times, threads


def measure_vectors(address: str, folder: Path, files: dict[str, int], embedder: Embedder) -> list[dict]:
    """Return times in ms and the cosine distance to Python for each clip."""
    measured = []
    expected = embedder.embed_files([folder / name for name in files])
    with Chromium() as page:
        page.open(address)
        page.evaluate(LOAD)
        for (name, seconds), vector in zip(files.items(), expected, strict=True):
            times, found = page.evaluate(TIMES.replace("FILE", json.dumps(name)))
            distance = max(0.0, float(1 - np.array(found) @ vector))
            measured.append({"seconds": seconds, "distance": distance, **times})
    return measured


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="", metavar="MODEL")
    parser.add_argument("--npm_packages", default="", metavar="FOLDER")
    parser.add_argument("--runs", type=int, default=5, help="browsers that are started for the first answer")
    records.add_option(parser, "browser")
    options = parser.parse_args(arguments)
    name = options.model or "wavlink-tiny"
    with tempfile.TemporaryDirectory(prefix="wavlink-browser-") as scratch:
        folder = Path(scratch) / "space"
        space = write_static_space(folder, *load_for_evaluation(options.model), Path(name).name, options.npm_packages)
        files = write_clips(folder / "clips")
        with served(folder) as address:
            runs, threads = zip(*(first_answer(address) for _ in range(options.runs)), strict=True)
            clips = measure_vectors(address, folder, files, Embedder(options.model or None))
        sizes = {part: sum(file.stat().st_size for file in folder.glob(pattern)) for part, pattern in PARTS.items()}
    sizes["all"] = space["bytes"]
    steps = {step: sorted(run[step] for run in runs) for step in runs[0]}
    milliseconds = ("decoded", "features", "embedded")
    values = {
        "download": records.table(["", "MB"], [[part, records.number(size / 1e6, 1)] for part, size in sizes.items()]),
        "first": records.table(
            ["after", "s"],
            [
                [step, {"value": statistics.median(times), "range": [times[0], times[-1]], "digits": 1}]
                for step, times in steps.items()
            ],
        ),
        "clips": records.table(
            ["clip", "decoding and resampling, ms", "log-mel, ms", "log-mel and tower, ms", "distance to Python"],
            [
                [f"{x['seconds']} s", *(records.number(x[part], 0) for part in milliseconds), f"{x['distance']:.0e}"]
                for x in clips
            ],
        ),
    }
    print("\n\n".join(map(tables.markdown, values.values())))
    records.write(
        options.record,
        title=f"{name} in the browser",
        values=values,
        seed=0,
        note=f"Headless Chromium, {threads[0]} threads; {options.runs} visits with an empty cache, median and "
        "range; the files are on this machine, so add the time of the download.",
        raw={"space": space, "runs": runs, "clips": clips, "sizes": sizes},
        packages=("onnx", "onnxruntime"),
    )


if __name__ == "__main__":
    main()
