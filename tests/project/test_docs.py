"""README and documentation: their pages, links and code blocks are true of this checkout."""

import configparser
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import wavlink
from tests import snippets

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PATHS = {path.name: path for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
COMMANDS = [(name, words) for name, page in PAGES.items() for words in snippets.commands(page)]
# What a reader of transformers would stop at, and what stands for it.
WORDS = {
    r"\bhear[sd]?\b": "encode, embed",
    r"\bwhole or absent\b": "atomic",
    r"\bby chance\b": "at random",
    r"\bstranger": "a clean environment",
    r"\bin silence\b": "silently",
    r"\bis told\b": "is given, is printed",
    r"\bpeers?\b": "baselines",
}


def test_the_navigation_lists_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"'([\w-]+\.md)'", str(config["nav"]))
    assert sorted([*listed, "README.md"]) == sorted(PAGES) and len(listed) >= 18


def test_the_extras_of_users_are_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = re.findall(r"^\| `(\w+)` \|", PAGES["index.md"].partition("| extra |")[2], re.MULTILINE)
    assert sorted(listed) == sorted({*config["options.extras_require"]} - {"browser", "data", "demo", "dev"})


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_pages_and_files(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if not target.startswith("http"):
            page, _, anchor = target.partition("#")
            assert not page or (PATHS[name].parent / page).is_file(), target
            headings = re.findall(r"^#+ (.*)$", PAGES.get(page or name, ""), re.M)
            assert not anchor or anchor in {re.sub(r"\W+", "-", heading.lower()) for heading in headings}, target


def test_links_of_included_files_lead_to_pages_or_become_names():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = "[a](ARCHITECTURE.md), [LICENSE](LICENSE), [b](http://b), [c](#c), ![d](d.png)"
    assert hooks.included(text) == "[a](architecture.md), `LICENSE`, [b](http://b), [c](#c), ![d](d.png)"
    assert all((DOCS / page).is_file() and (ROOT / name).is_file() for page, name in hooks.INCLUDED.items())


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name):
    for code in snippets.inline(PAGES[name]):
        if path := re.fullmatch(r"(?:examples|benchmarks|tests|accelerate_configs)/[\w./-]+", code.split()[0]):
            assert (ROOT / path[0]).exists(), code


@pytest.mark.parametrize("name", PAGES)
def test_every_block_has_a_language_that_is_checked(name):
    assert snippets.languages(PAGES[name]) <= snippets.LANGUAGES


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if snippets.blocks(page, "python")])
def test_python_blocks_parse_and_import_what_exists(name):
    for code in snippets.blocks(PAGES[name], "python"):
        assert snippets.missing_imports(code) == []


@pytest.mark.parametrize(
    "name, words", COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_commands_are_understood(name, words):
    snippets.check_command(words)


@pytest.mark.parametrize("name", PAGES)
def test_options_in_the_text_exist(name):
    known = snippets.known_options()
    for code in snippets.inline(PAGES[name]):
        if not code.startswith(("pip ", "python ")):
            assert set(re.findall(r"(?<!\S)--[\w-]+", code)) <= known, code


@pytest.mark.parametrize("name", PAGES)
def test_scripts_in_the_text_have_their_options(name):
    for code in snippets.inline(PAGES[name]):
        if found := re.match(r"python ((?:benchmarks|examples)/\w+\.py)(.*)", code):
            snippets.check_script(found[1], found[2].split())


@pytest.mark.parametrize("name", PAGES)
def test_pages_use_the_terms_of_the_field(name):
    found = {words: re.findall(words, PAGES[name], re.I) for words in WORDS}
    assert {words: WORDS[words] for words, hits in found.items() if hits} == {}


def test_the_api_page_documents_every_public_name():
    listed = [line.removeprefix("::: ") for line in PAGES["api.md"].splitlines() if line.startswith("::: ")]
    assert sorted(listed) == sorted(f"wavlink.{name}" for name in wavlink.__all__)


def test_an_unknown_option_or_import_would_be_found():
    for words in (
        ["wavlink", "query", "my_index", "rain", "--top", "3", "--loudness", "2"],
        ["wavlink", "listen", "x.wav"],
        ["python", "benchmarks/where.py", "M", "F", "--minute", "3"],
        ["make", "coffee"],
        ["accelerate", "launch", "--config_file", "accelerate_configs/none.yaml", "train.py", "sounds"],
        ["rm", "-r", "my_index"],
    ):
        with pytest.raises(AssertionError):
            snippets.check_command(words)
    with pytest.raises((ValueError, SystemExit, AssertionError)):
        snippets.check_command(["wavlink", "train", "sounds", "--data", "x", "--learning_rat", "1"])
    assert snippets.missing_imports("from wavlink import Embeder\nimport no_such_module") == [
        "wavlink.Embeder",
        "no_such_module",
    ]
