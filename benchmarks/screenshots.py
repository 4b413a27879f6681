"""Pictures of the demo in a browser and of a map, for README and docs.

    python benchmarks/screenshots.py MODEL [--out docs/images] [--dark]

MODEL is such as `runs/quickstart/best`, which `make demo` trains. The sounds are made by code. It needs gradio,
playwright, plotly, scikit-learn and a chromium (`make test-space`'s environment and `pip install -e '.[map]'`).
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from hub_cards.space import app
from hub_cards.space.answers import Demo, trained_on
from wavlink.embedder import Embedder
from wavlink.search.map import draw_map

WINDOWS = {"find": (1280, 800), "space": (1280, 800), "space-phone": (390, 1300)}


def take_sample(page: Page, name: str) -> None:
    page.get_by_role("button", name=name).click()
    page.locator("#waveform:visible").wait_for()
    page.wait_for_timeout(3000)  # until it is drawn


def name_a_sound(page: Page) -> None:
    take_sample(page, "Church bell")
    page.get_by_role("button", name="Name it").click()
    page.locator("#name-answer li").first.wait_for()


def locate_a_sound(page: Page) -> None:
    page.get_by_role("tab", name="Locate").click()
    take_sample(page, "Faint rain")
    page.get_by_role("button", name="Look for it").click()
    page.locator("#listen-answer li").first.wait_for()


def find_sounds(page: Page) -> None:
    page.get_by_role("tab", name="Find").click()
    page.get_by_role("button", name="Find sounds").click()
    page.locator("#find-answer li").first.wait_for()


def show_details(page: Page) -> None:
    page.get_by_role("button", name="About this model").click()
    page.get_by_role("slider").wait_for()


STEPS = {"name": name_a_sound, "find": find_sounds, "locate": locate_a_sound, "details": show_details}
SHOWN = {"find": {"find": find_sounds}, "space": {"name": name_a_sound}, "space-phone": {"locate": locate_a_sound}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    parser.add_argument("--all", action="store_true", help="every tab at both widths, whole pages")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with app._temporary() as folder, sync_playwright() as playwright:
        embedder = Embedder(options.model)
        index = app._synthetic_index(embedder, folder)
        draw_map(index, folder / "map.html")
        demo = Demo(embedder, index, trained=trained_on(options.model))
        page = app.build(demo)
        app.launch(page, None)
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        scheme = "dark" if options.dark else "light"
        for name, (width, height) in WINDOWS.items():
            shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            shown.set_default_timeout(120_000)
            shown.goto(page.local_url)
            shown.get_by_role("button", name="Name it").wait_for()
            for step, take in (STEPS if options.all else SHOWN[name]).items():
                take(shown)
                shown.wait_for_timeout(500)
                file = f"{name}-{step}-{scheme}" if options.all else name
                shown.screenshot(path=options.out / f"{file}.png", full_page=options.all)
        shown = browser.new_page(viewport={"width": 1280, "height": 800})
        shown.goto((folder / "map.html").as_uri())
        shown.wait_for_timeout(1500)
        shown.screenshot(path=options.out / "map.png")
        browser.close()
        page.close(verbose=False)


if __name__ == "__main__":
    main()
