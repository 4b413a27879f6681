"""The static Space: what is written, and the page in a headless Chromium, whose vectors are Python's.

The browser's tests need Chromium, and npm or WAVLINK_NPM_PACKAGES, a folder of what `npm pack` has written.
"""

import base64
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from huggingface_hub import SpaceCard
from transformers import AutoTokenizer

import wavlink
from benchmarks import chromium
from hub_cards.space import npm, static_folder
from hub_cards.space.app import main
from hub_cards.space.npm import Package, write_packages
from processing.downmix_wavlink import mono_blocks
from tests.conftest import tone
from wavlink import Embedder, WavLinkFeatureExtractor
from wavlink.loading import load_for_evaluation
from wavlink.samples import real_samples

pytestmark = pytest.mark.timeout(1200)  # a browser beside other work

MAX_DISTANCE = 1e-4  # of the page's vectors to Python's; the promise is 1e-3
LOAD = "import('./wavlink.js').then(async (m) => { globalThis.m = m; globalThis.loaded = await m.WavLink.load(); })"
TEXTS = [
    *("a dog barks", "A dog's bark, déjà vu: 50 % of \u201cthis\u201d!", "snow_covered  path", "犬 の 声 🐶"),
    *("x" * 120, "[SEP] in brackets [UNK]", "İstanbul e\u0301 \u00a0\tzero\u200bwidth", "rain, " * 20),
]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Packages of npm.


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A tarball of the only package that is needed."""
    path = tmp_path / "packed" / "some-pages-1.2.0.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("package/dist/a.mjs", b"a"), ("package/dist/b.wasm", b"b" * 1000)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    files = {"dist/a.mjs": "a.mjs", "dist/b.wasm": "b.wasm.gz"}
    monkeypatch.setattr(npm, "PACKAGES", (Package("@some/pages", "1.2.0", digest, files),))
    return path


def test_files_of_a_package_are_taken_by_its_hash(package, tmp_path):
    write_packages(tmp_path / "npm", str(package.parent))
    assert files_of(tmp_path / "npm") == {"a.mjs", "b.wasm.gz"}
    assert (tmp_path / "npm/a.mjs").read_bytes() == b"a" and (tmp_path / "npm/b.wasm.gz").stat().st_size < 100
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"some-pages-1\.2\.0\.tgz is not @some/pages 1\.2\.0 as it was published"):
        write_packages(tmp_path / "again", str(package.parent))
    with pytest.raises(ValueError, match=r"cannot be read: `npm pack @some/pages@1\.2\.0` writes it"):
        write_packages(tmp_path / "none", str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for npm")
def test_npm_downloads_packages(package, tmp_path, monkeypatch):
    program = tmp_path / "npm-program"
    program.write_text(f'#!/bin/sh\ntest "$*" = "pack @some/pages@1.2.0" && cp {package} .')
    program.chmod(0o755)
    monkeypatch.setattr(npm.shutil, "which", lambda name: str(program))
    write_packages(tmp_path / "npm")
    assert files_of(tmp_path / "npm") == {"a.mjs", "b.wasm.gz"}
    program.write_text("#!/bin/sh\necho 'npm error code E404' >&2; exit 1")
    with pytest.raises(ValueError, match=r"npm error code E404\): run `npm pack @some/pages@1\.2\.0`"):
        write_packages(tmp_path / "failed")
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="install Node.js, or run `npm pack .*--npm_packages"):
        write_packages(tmp_path / "missing")


def test_the_pinned_packages_are_those_that_the_page_imports():
    names = {name for package in npm.PACKAGES for name in package.files.values()}
    code = (static_folder.PAGE / "wavlink.js").read_text(encoding="utf-8")
    assert set(re.findall(r'npm/([\w.-]+)"', code)) == {name for name in names if not name.endswith("LICENSE")}


# The command.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--static"], "--static and --out FOLDER need each other"),
        (["--out", "x"], "--static and --out FOLDER need each other"),
        (["--npm_packages", "x"], "--npm_packages goes with --static"),
        (["--static", "--out", "x", "--index", "real"], "--index is of the page that is served"),
        (["--static", "--out", "x", "--check"], "--check is of the page that is served"),
        (["--static", "--out", "x", "--precision", "int8"], "--precision is of the page that is served"),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    assert main(options) == 2 and message in capsys.readouterr().err


def test_nothing_is_written_without_the_packages(wavlink_folder, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    here = tmp_path / "here"
    (here / "mine").mkdir(parents=True)
    (here / "mine/notes.txt").write_text("mine")
    options = ["--static", "--model", str(wavlink_folder), "--npm_packages", str(here), "--out"]
    assert main([*options, str(here / "space")]) == 2
    assert "`npm pack onnxruntime-web@" in capsys.readouterr().err
    assert main([*options, str(here / "mine")]) == 2
    assert "new or empty" in capsys.readouterr().err and files_of(here) == {"mine/notes.txt"}


def test_other_tokenizers_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(ValueError, match="kinds WordPiece, BPE, and this one is Unigram"):
        static_folder._check_tokenizer(tmp_path)


# The page.


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> str:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    if not chromium.FOUND:
        pytest.skip("Chromium is not here")
    folder = os.environ.get("WAVLINK_NPM_PACKAGES", "")
    if not folder:
        folder = str(tmp_path_factory.mktemp("npm"))
        try:
            npm._download(folder)
        except ValueError as error:
            pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def space(packages, tmp_path_factory) -> Path:
    """A Space of wavlink-tiny, with sound files of many kinds in `tried/`."""
    folder = tmp_path_factory.mktemp("static") / "space"
    model, processor = load_for_evaluation("")
    about = static_folder.write_static_space(folder, model, processor, "wavlink-tiny", packages)
    assert json.loads((folder / "space.json").read_text()) == about
    write_sounds(folder / "tried")
    return folder


@pytest.fixture(scope="module")
def page(space):
    with chromium.served(space) as address, chromium.Chromium() as browser:
        browser.open(address)
        browser.evaluate(LOAD)
        yield browser


def write_sounds(folder: Path) -> None:
    """Write clips at many rates and in many formats, with energy up to the Nyquist rate."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    water = wavlink.load_audio(next(row["path"] for row in real_samples() if row["label"] == "water stream"))
    for rate in (8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000):
        clip = soxr.resample(water[:32000], 16000, rate)
        clip = clip + 0.02 * rng.normal(size=len(clip))
        soundfile.write(folder / f"{rate}.wav", np.stack([clip, 0.5 * np.roll(clip, 7)], 1), rate)
    clip = clip[: 96000 * 2][::2]
    for name, options in {
        "clip.flac": {"samplerate": 44100},
        "clip.mp3": {"samplerate": 44100, "format": "MP3"},
        "clip.ogg": {"samplerate": 44100, "format": "OGG", "subtype": "VORBIS"},
        "clip.opus": {"samplerate": 48000, "format": "OGG", "subtype": "OPUS"},
    }.items():
        soundfile.write(folder / name, clip, **options)
    soundfile.write(folder / "cancelled.wav", np.stack([clip, -clip], 1), 44100)
    soundfile.write(folder / "short.wav", clip[:700], 44100)
    soundfile.write(folder / "31 s.flac", np.tile(water, 8)[: 31 * 16000], 16000)


def vector_of(page, file: str) -> np.ndarray:
    code = f"fetch({json.dumps(file)}).then((r) => r.arrayBuffer()).then((b) => m.decode(b, 16000))"
    return np.array(page.evaluate(f"{code}.then((s) => loaded.embedSound(s)).then((v) => Array.from(v))"))


@pytest.mark.slow
def test_the_folder_is_complete(space):
    names = files_of(space)
    assert {"README.md", "LICENSE", "index.html", "page.js", "wavlink.js", "style.css", "sounds/CREDITS.md"} <= names
    card = SpaceCard.load(space / "README.md")
    assert card.data.sdk == "static" and card.data.custom_headers["cross-origin-opener-policy"] == "same-origin"
    about = json.loads((space / "space.json").read_text())
    assert not set("{}") & set(card.text) and len(card.data.short_description) <= 60
    assert "wavlink-tiny" in card.text and f"opset {about['opset']}" in card.text and "stored in fp16" in card.text
    assert len(about["examples"]) == 12 and all((space / "sounds" / name).is_file() for name in about["examples"])
    assert about["bytes"] < 50e6 and all(x["stored"] == "fp16" for x in about["weights"].values())
    described = json.loads((space / "model/wavlink_onnx.json").read_text())
    assert described["label_prompts"] and described["match_calibration"]["dims"]["384"]


@pytest.mark.slow
def test_vectors_are_those_of_python(space, page):
    files = sorted(name for name in files_of(space) if name.startswith(("tried/", "sounds/")) and ".md" not in name)
    embedder, distances = Embedder(), {}
    for name, expected in zip(files, embedder.embed_files([space / name for name in files]), strict=True):
        found = vector_of(page, name)
        assert found.shape == expected.shape and np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
        distances[name] = 1 - found @ expected
    for text, expected in zip(TEXTS, embedder.embed_text(TEXTS), strict=True):
        found = np.array(page.evaluate(f"loaded.embedText({json.dumps(text)}).then((v) => Array.from(v))"))
        distances[text] = 1 - found @ expected
    worst = max(distances, key=distances.__getitem__)
    print(f"\n{len(distances)} vectors, cosine distance at most {distances[worst]:.1e} ({worst})")
    assert distances[worst] < MAX_DISTANCE, distances


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_the_log_mel_is_the_extractors(padding, page):
    extractor = WavLinkFeatureExtractor(padding=padding)
    noise = np.random.default_rng(0).normal(scale=0.1, size=480000).astype(np.float32)
    for clip in (noise[:1], noise[:160], noise[:161], noise[:20001], noise, tone(440, 2.0), np.zeros(800, np.float32)):
        about = {"n_fft": 400, "hop_length": 160, "max_samples": 480000, "padding": padding}
        samples = base64.b64encode(clip.astype("<f4").tobytes()).decode()
        code = f"new Float32Array(Uint8Array.from(atob('{samples}'), (c) => c.charCodeAt(0)).buffer)"
        found = page.evaluate(f"Array.from(m.logMel({code}, {json.dumps(about)}, loaded.filters))")
        single = extractor(clip, sampling_rate=16000, return_tensors="np").input_features[0]
        found = np.array(found, np.float32).reshape(80, -1)
        assert found.shape == single.shape
        length = min((single.shape[1] + 2) * 160, 480000)
        double = extractor._np_extract_fbank_features(np.pad(clip, (0, length - len(clip)))[None], "cpu")[0]
        np.testing.assert_allclose(found, double[:, : found.shape[1]], atol=1e-5)


@pytest.mark.slow
def test_resampling_is_soxrs(page):
    noise = np.random.default_rng(0).normal(scale=0.1, size=9000).astype(np.float32)
    for rate in (8000, 11025, 22050, 44100, 48000, 95999):
        code = f"m.resample(Float32Array.from({noise.tolist()}), {rate}, 16000)"
        found, expected = np.array(page.evaluate(f"Array.from({code})")), soxr.resample(noise, rate, 16000)
        assert len(found) == len(expected)
        spectra = [np.abs(np.fft.rfft(clip[200:-200] * np.hanning(len(clip) - 400))) for clip in (found, expected)]
        passed = slice(0, int(0.9 * min(rate, 16000) / 16000 * len(spectra[0])))
        np.testing.assert_allclose(spectra[0][passed], spectra[1][passed], atol=2e-3 * spectra[1].max())


@pytest.mark.slow
def test_channels_are_mixed_as_in_python(page):
    rng = np.random.default_rng(0)
    first = rng.normal(scale=0.1, size=20000).astype(np.float32)
    for channels in ([first, first], [first, -first], [first, rng.permutation(first)], [first, -first, first, -first]):
        given = json.dumps([channel.tolist() for channel in channels])
        found = page.evaluate(f"Array.from(m.mono({given}.map((c) => Float32Array.from(c)), 8000))")
        expected = np.concatenate(list(mono_blocks([np.stack(channels, 1)], 8000)))
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["bert", "clip"])
def test_tokens_are_those_of_python(tower, request, page):
    folder = request.getfixturevalue(f"{tower}_folder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    described = [(folder / name).read_text(encoding="utf-8") for name in ("tokenizer.json", "tokenizer_config.json")]
    make = f"import('./npm/tokenizers.min.mjs').then((t) => new t.Tokenizer({described[0]}, {described[1]}))"
    found = page.evaluate(f"{make}.then((t) => {json.dumps(TEXTS)}.map((text) => t.encode(text).ids))")
    assert found == [tokenizer(text)["input_ids"] for text in TEXTS]


SHOWN = """Array.from(document.querySelectorAll('#names section')).map((section) => [
    section.querySelector('h3').innerText,
    Array.from(section.querySelectorAll('li')).map((li) => li.innerText.split('\\n'))])"""
BARS = """Array.from(document.querySelectorAll('#names section:first-of-type .bar')).map(
    (bar) => bar.offsetWidth / bar.parentElement.offsetWidth)"""
FOUND = "Array.from(document.querySelectorAll('#found li')).map((li) => [li.className, ...li.innerText.split('\\n')])"
NAMELESS = """[...document.querySelectorAll('input, textarea, button, audio, progress')]
    .filter((x) => x.checkVisibility() && !(x.ariaLabel || x.labels?.[0]?.innerText.trim() || x.innerText?.trim()))
    .map((x) => x.outerHTML)"""


@pytest.mark.slow
def test_the_page_names_and_finds_sounds_and_loads_only_its_own_files(space, tmp_path):
    files = [space / "sounds" / name for name in ("cow moo.flac", "bell.flac", "violin.flac")]
    (tmp_path / "broken.wav").write_bytes(b"RIFF no sound")
    labels, sentence = ["cow moo", "bell", "violin", "snow_storm"], "a cow moos"
    with chromium.served(space) as address, chromium.Chromium(size=(390, 844)) as page:
        page.open(address)
        page.wait_for("document.querySelector('#about').innerText")
        page.evaluate("document.querySelector('#name').requestSubmit()")
        page.wait_for("document.querySelector('#names').innerText.includes('Choose a sound first')")
        assert not [url for url in page.requests if "model/" in url]  # nothing big before it is needed
        page.choose_files("#files", [*files, tmp_path / "broken.wav"])
        page.wait_for("document.querySelectorAll('#sounds audio').length === 3")
        refused = page.wait_for("document.querySelector('#sounds li:has(.failure)')?.innerText")
        assert refused.startswith("broken.wav") and "It cannot be read: " in refused
        page.evaluate(f"document.querySelector('#labels').value = {json.dumps(', '.join(labels) + ',bell,')}")
        page.evaluate("document.querySelector('#labels').focus()")
        page.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Name the sounds"
        page.press("Enter", "\r")
        page.wait_for("document.querySelectorAll('#names section').length === 3")
        shown = page.evaluate(SHOWN)
        for (name, rows), result in zip(shown, wavlink.classify(None, files, labels), strict=True):
            assert name == Path(result["path"]).name and len(rows) == 4
            for (label, share, match), expected in zip(rows, result["labels"], strict=True):
                assert label == expected["label"]
                assert float(share.split()[0]) == pytest.approx(100 * expected["score"], abs=0.6)
                assert float(match.split()[1]) == pytest.approx(100 * expected["probability"], abs=0.6)
        bars = page.evaluate(BARS)  # the share of the track that is filled, of the first sound's names
        assert bars == pytest.approx([float(row[1].split()[0]) / 100 for row in shown[0][1]], abs=0.02)
        assert "1.0 % of all sounds do" in page.evaluate("document.querySelector('#names').innerText")
        page.evaluate(f"document.querySelector('#sentence').value = {json.dumps(sentence)}")
        page.evaluate("document.querySelector('#find').requestSubmit()")
        hits = page.wait_for(f"({FOUND}).length === 3 && {FOUND}")
        embedder = Embedder()
        cosines = np.stack(list(embedder.embed_files(files))) @ embedder.embed_text([sentence])[0]
        assert [hit[1] for hit in hits] == [files[n].name for n in np.argsort(-cosines)]
        assert [hit[0] for hit in hits] == ["", "unlikely", "unlikely"] and "probably not this" in hits[1][2]
        assert float(hits[0][2].split()[1].rstrip(",")) == pytest.approx(cosines.max(), abs=1e-3)
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate("innerWidth") == 390 >= page.evaluate("document.documentElement.scrollWidth")
        page.evaluate("document.querySelector('#sounds button').click()")
        assert page.evaluate("document.querySelectorAll('#sounds audio').length") == 2
        page.evaluate("document.querySelector('#sentence').value = 'loud '.repeat(200)")
        page.evaluate("document.querySelector('#find').requestSubmit()")
        page.wait_for("document.querySelector('#found').innerText.includes('is too long: 128 tokens are the most')")
        page.evaluate("document.querySelector('#labels').value = 'only one'")
        page.evaluate("document.querySelector('#name').requestSubmit()")
        page.wait_for("document.querySelector('#names').innerText.includes('Give two names or more')")
        assert page.errors == []
        assert all(url.startswith((address, "data:", "blob:")) for url in page.requests)
