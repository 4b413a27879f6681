"""The demo in a browser, on a phone and on a desk; for ten visitors at once; and what is left when it ends."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from hub_cards.space import app, pages
from tests.space_demo import demo_in, write_all
from wavlink.options import publishing as of
from wavlink.parsing import parser_of

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
needs_gradio = pytest.mark.skipif("gradio" in MISSING, reason="gradio is not here: make test-space")
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)} (make test-space)")
WINDOWS = {"desk": (1280, 800), "phone": (390, 844)}
# Whatever reaches over the window's right edge, also where the page hides it.
OVER_THE_EDGE = """() => [...document.querySelectorAll('body *')]
    .filter(x => x.checkVisibility({visibilityProperty: true, opacityProperty: true}))
    .filter(x => x.getBoundingClientRect().width > 1 && x.getBoundingClientRect().right > innerWidth + 1)
    .map(x => x.tagName + '.' + x.className)"""
NAMELESS = """() => [...document.querySelectorAll('input, textarea, button, audio, img, svg[role=img]')]
    .filter(x => x.checkVisibility({visibilityProperty: true, opacityProperty: true}))
    .filter(x => !(x.ariaLabel || x.alt || x.title || x.labels?.[0]?.innerText.trim() || x.innerText?.trim()
                   || x.getAttribute('aria-labelledby') || x.closest('label')?.innerText.trim()))
    .map(x => x.outerHTML.slice(0, 200))"""

# Keys of gradio's translations that were shown, however short, such as common.complete.
NOTE_UNTRANSLATED = r"""
    window.untranslated = [];
    new MutationObserver(() => untranslated.push(...(document.body?.innerText.match(/\b(common|audio)\.\w+/g) ?? [])))
        .observe(document, {subtree: true, childList: true, characterData: true});
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whisper_folder, bert_folder):
    return write_all(tmp_path_factory.mktemp("space"), whisper_folder, bert_folder)


@pytest.fixture(scope="module")
def demo(folder):
    return demo_in(folder)


@pytest.fixture
def served(demo, tmp_path, monkeypatch):
    """The page's address."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = app.build(demo)
    app.launch(page, _free_port(), max_mb=1)
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *microphone])
        yield browser
        browser.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("window", WINDOWS)
def test_every_tab_works_in_a_browser(window, served, chromium, demo, folder, tmp_path):
    width, height = WINDOWS[window]
    context = chromium.new_context(viewport={"width": width, "height": height}, permissions=["microphone"])
    page = context.new_page()
    page.set_default_timeout(90_000)
    wrong = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith((served, "data:", "blob:")) else wrong.append(asked.url)
    )
    page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
    page.add_init_script(NOTE_UNTRANSLATED)
    page.goto(served)

    def looks_right(name: str) -> None:
        page.screenshot(path=tmp_path / f"{window}-{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVER_THE_EDGE) == [] and page.evaluate(NAMELESS) == []

    _name(page, demo, folder, looks_right)
    _find(page, demo, looks_right)
    _locate(page, demo, folder, looks_right)
    assert wrong == [] and page.evaluate("untranslated") == []
    assert len(list(tmp_path.glob(f"{window}-*.png"))) == 5
    context.close()


def _name(page, demo, folder, looks_right) -> None:
    page.get_by_role("button", name="Name it").click()
    page.get_by_role("alert").filter(has_text="Drop or record a sound first").wait_for()
    page.locator("input[type=file]").first.set_input_files(folder / "dropped.wav")
    page.get_by_label("Names, separated by commas").fill("dog, cat, rain")
    page.locator("audio, [data-testid=waveform-x], #waveform").first.wait_for(state="attached")
    page.get_by_role("button", name="Name it").click()
    page.locator("#name-answer li").first.wait_for()
    named = demo.classify(str(folder / "dropped.wav"), "dog, cat, rain")
    _shows(page, "#name-answer", pages.labels(demo, named, 32))
    looks_right("name")
    assert not page.locator("#costs").is_visible()  # what only some want to know is folded away
    slider = _slider(page)
    slider.focus()
    assert slider.get_attribute("aria-valuetext") == "32 dims"
    assert page.locator("#ticks").inner_text().split() == ["8", "16", "32"]
    page.keyboard.press("Home")  # with the keyboard alone
    page.locator("#costs").get_by_text("8 of 32 dims").wait_for()
    page.locator("#name-answer").get_by_text("against all 32 dims").first.wait_for()
    _shows(page, "#name-answer", pages.labels(demo, named, 8))
    looks_right("dims")


def _slider(page):
    page.get_by_role("button", name="About this model").click()
    page.locator("#costs").get_by_text("32 of 32 dims").wait_for()  # the fold has opened
    return page.get_by_role("slider", name=re.compile("Dims kept"))


def _find(page, demo, looks_right) -> None:
    page.get_by_role("tab", name="Find").focus()
    page.keyboard.press("Enter")
    _type(page, "A sentence", "a low bell")
    page.keyboard.press("Enter")
    page.locator("#find-answer li").first.wait_for()
    _shows(page, "#find-answer", pages.sounds(demo, demo.embed_sentence("a low bell"), 8))
    player = page.locator("#find-answer audio").first
    page.wait_for_function("x => x.readyState > 0", arg=player.element_handle())
    assert player.evaluate("x => x.duration") == pytest.approx(1.5, abs=0.01) and player.evaluate("x => !x.error")
    looks_right("find")


def _locate(page, demo, folder, looks_right) -> None:
    page.get_by_role("tab", name="Locate").click()
    page.locator("input[type=file]").last.set_input_files(folder / "long.flac")
    _type(page, "What to look for", "a low bell")
    page.get_by_role("button", name="Look for it").click()
    page.locator("#listen-answer li").first.wait_for()
    _shows(page, "#listen-answer", pages.spans(demo, demo.locate(str(folder / "long.flac"), "a low bell"), 8))
    assert page.locator("#listen-answer img").evaluate("x => x.complete && x.naturalWidth > 0")
    looks_right("locate")
    page.get_by_label("What to look for").fill(" ")
    page.get_by_role("button", name="Look for it").click()
    page.get_by_role("alert").filter(has_text="Type a sentence first").wait_for()
    looks_right("failure")


def _type(page, label: str, words: str) -> None:
    """Into a box of a tab that has just been opened, whose first value gradio may set once more after it is seen."""
    box = page.get_by_label(label)
    box.fill(words)
    page.wait_for_timeout(1000)
    if box.input_value() != words:
        box.fill(words)


def _shows(page, place: str, html: str) -> None:
    """The words of an answer, as the plain functions give it."""
    expected = page.evaluate(
        "html => { const x = document.createElement('div'); x.innerHTML = html; return x.textContent }", html
    )
    page.wait_for_function(
        "([place, words]) => document.querySelector(place).textContent.trim() === words.trim()", arg=[place, expected]
    )


@pytest.mark.browser
@needs_browser
def test_dims_changed_during_a_request_apply_to_its_result(served, chromium, demo, monkeypatch):
    page, asked, free, embed = chromium.new_page(), threading.Event(), threading.Event(), demo.embedder.embed_text

    def slow(texts):
        asked.set()
        assert free.wait(60)
        return embed(texts)

    monkeypatch.setattr(demo.embedder, "embed_text", slow)
    page.set_default_timeout(90_000)
    page.goto(served)
    page.get_by_role("tab", name="Find").click()
    _type(page, "A sentence", "a low bell")
    page.keyboard.press("Enter")
    assert asked.wait(60)
    _slider(page).press("Home")
    page.locator("#costs").get_by_text("8 of 32 dims").wait_for()
    free.set()
    _shows(page, "#find-answer", pages.sounds(demo, demo.embed_sentence("a low bell"), 8))
    page.close()


@pytest.mark.browser
@needs_browser
def test_a_sound_is_recorded_and_named(served, chromium):
    page = chromium.new_context(permissions=["microphone"]).new_page()
    page.set_default_timeout(90_000)
    page.goto(served)
    page.get_by_role("button", name="Record audio").first.click()
    page.get_by_role("button", name="Record", exact=True).first.click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Name it").click()
    page.locator("#name-answer li").first.wait_for()
    page.context.close()


@pytest.mark.browser
@needs_browser
def test_a_sample_is_named_by_two_clicks(served, chromium):
    page = chromium.new_page()
    page.set_default_timeout(90_000)
    page.goto(served)
    page.get_by_role("button", name="Explosion").click()
    page.locator("#waveform").first.wait_for(state="attached")
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Name it").click()
    page.locator("#name-answer li").first.wait_for()
    page.close()


@needs_gradio
def test_ten_concurrent_visitors_get_their_own_results(served, demo, folder):
    from gradio_client import Client, handle_file

    sentences = [
        f"a {kind} {thing}" for kind in ("low", "high", "loud", "quiet", "falls") for thing in ("dog", "bell")
    ]

    def visit(number: int) -> tuple[str, str, str]:
        client, place = Client(served, verbose=False), 1 + number % 3
        sound = handle_file(folder / f"sounds/{200 + 100 * (number % 7)} hertz.wav")
        found = client.predict(place, sentences[number], api_name="/find")
        named = client.predict(place, sound, f"dog, {sentences[number]}", api_name="/name")
        broken = client.predict(place, handle_file(folder / "broken.wav"), "dog", api_name="/name")
        return found, named, broken

    with ThreadPoolExecutor(10) as visitors:
        answers = list(visitors.map(visit, range(10)))
    for number, (found, named, broken) in enumerate(answers):
        dim, sound = demo.dims[number % 3], str(folder / f"sounds/{200 + 100 * (number % 7)} hertz.wav")
        assert found == pages.sounds(demo, demo.embed_sentence(sentences[number]), dim)
        assert named == pages.labels(demo, demo.classify(sound, f"dog, {sentences[number]}"), dim)
        assert "cannot read broken.wav" in broken and 'role="alert"' in broken
    assert len({found for found, _, _ in answers}) == 10


@needs_gradio
def test_a_file_over_the_limit_is_refused_and_not_kept(served, tmp_path):
    import httpx

    sent = httpx.post(f"{served}gradio_api/upload", files={"files": ("large.wav", bytes(1_200_000))}, timeout=60)
    assert sent.status_code == 413
    kept = [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.stat().st_size >= 1_000_000]


@needs_gradio
def test_uploads_are_deleted_later(demo, folder, tmp_path, monkeypatch):
    from gradio_client import Client, handle_file

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(app, "_SWEPT", 1)
    monkeypatch.setattr(app, "_KEPT", 5)
    page = app.build(demo)
    app.launch(page, _free_port())
    client = Client(page.local_url, verbose=False)
    client.predict(1, handle_file(folder / "dropped.wav"), "dog", api_name="/name")

    def kept() -> list[Path]:
        return [path for path in (tmp_path / "uploads").rglob("*.wav")]

    limit = time.monotonic() + 60
    while kept() and time.monotonic() < limit:
        time.sleep(0.2)
    assert kept() == []
    page.close(verbose=False)


@pytest.mark.slow
@needs_gradio
def test_space_command_serves_until_stopped_and_leaves_no_file(folder, tmp_path, start):
    port = _free_port()
    command = [sys.executable, "hub_cards/space/app.py", "--model", str(folder / "model"), "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = start(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(6)]
    assert said[0].split() == ["model", str(folder / "model")] and said[-1].startswith("serving")
    assert b"WavLink" in urlopen(f"http://127.0.0.1:{port}/", timeout=60).read()
    assert [path.name for path in tmp_path.iterdir()][0].startswith("wavlink-space-")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_space_command_reports_errors_and_options(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert app.main(["--model", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    assert app.main(["--model", str(folder / "model"), "--index", str(folder), "--check"]) == 2
    assert "is no index" in capsys.readouterr().err
    given = ["--model", str(folder / "model"), "--index", str(folder / "index"), "--check"]
    assert app.main(given) == 0
    assert "windows   7\n" in capsys.readouterr().out
    assert app.main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["windows"] == 7
    assert list(tmp_path.iterdir()) == []
    options = {name for action in parser_of(of.space, "wavlink space")._actions for name in action.option_strings}
    expected = "help h model revision index sounds port device max_mb max_seconds max_wait json check".split()
    expected += "backend precision static out npm_packages storage_options".split()
    assert options == {"-h" if name == "h" else f"--{name}" for name in expected}
