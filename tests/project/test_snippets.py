"""The snippets of README and docs run in order, in an empty folder, with the wheel installed (`make test-wheel`).

A page begins in an empty folder, or in a copy of the folder that another page leaves where it says "continue from
[that page](page.md)". Pages with the same first block share what it leaves. A block below
`<!-- not run: needs the Hub -->` is left out.
"""

import functools
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

import wavlink
from tests import snippets
from tests.processes import run_process

SITE = Path(sysconfig.get_path("purelib"))
PAGES = {path.name: path for path in [snippets.ROOT / "README.md", *sorted((snippets.ROOT / "docs").glob("*.md"))]}
BLOCKS = {name: snippets.all_blocks(path.read_text(encoding="utf-8")) for name, path in PAGES.items()}
RUN = {
    name: [block for block in blocks if not block.reason and block.language != "text"]
    for name, blocks in BLOCKS.items()
}
NOT_RUN = [block.reason for blocks in BLOCKS.values() for block in blocks if block.reason]
REASONS = ("needs a checkout", "needs the Hub", "needs a cluster", "needs hours", "needs data", "serves until stopped")
in_wheel = pytest.mark.skipif(
    SITE not in Path(wavlink.__file__).parents, reason="the checkout is imported, not a wheel: make test-wheel"
)


def before(name: str) -> str:
    """The page that a page continues from; none where it begins in an empty folder."""
    found = re.search(r"continues? from\s+(?:the\s+)?\[[^\]]+\]\((\S+\.md)\)", PAGES[name].read_text(encoding="utf-8"))
    return found[1] if found else ""


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    """A function that runs a page's snippets in a folder of one path, and returns a copy of what they leave.

    An index holds absolute paths, so that no page can go on with it in another folder.
    """
    here = tmp_path_factory.mktemp("snippets") / "here"

    @functools.cache
    def after(name: str, *blocks: snippets.Block, start: Path | None = None) -> Path:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(start, here) if start else here.mkdir()
        for block in blocks:
            run_block(block, here)
        return Path(shutil.copytree(here, tmp_path_factory.mktemp(Path(name).stem) / "here"))

    def run_page(name: str) -> Path:
        if start := before(name):
            return after(name, *RUN[name], start=run_page(start))
        first, *others = RUN[name]
        return after(name, *others, start=after("first", first))

    return run_page


def run_block(block: snippets.Block, folder: Path) -> None:
    """Run a snippet as a reader does, without a network."""
    if block.language == "python":
        printed = run([sys.executable, "-c", block.code], folder)
        assert printed or "print" not in block.code, block.code
    else:
        for words in snippets.commands_of(block.code):
            run([program(words[0]), *words[1:]], folder)


def program(name: str) -> Path:
    """A command of this environment."""
    assert name in ("wavlink", "python"), f"{name} is run by no test: mark the block with <!-- not run: ... -->"
    return Path(sys.executable).with_name(name)


def run(command: list, folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hf"), "TQDM_DISABLE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "DISABLE_MLFLOW_INTEGRATION": "true"}
    done = run_process(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@in_wheel
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(sys.platform == "win32", reason="commands of the pages are those of a POSIX shell")
@pytest.mark.parametrize("name", [name for name, blocks in RUN.items() if blocks])
def test_the_snippets_of_a_page_run_in_order(name, run_page):
    assert run_page(name).is_dir()


def test_a_block_that_is_not_run_says_why_and_these_are_few():
    assert all(reason.startswith(REASONS) for reason in NOT_RUN), NOT_RUN
    assert len(NOT_RUN) < sum(map(len, RUN.values())) / 2, NOT_RUN


def test_a_page_continues_from_one_that_begins_in_an_empty_folder():
    for name in RUN:
        if start := before(name):
            assert RUN[start] and not before(start), name


def test_an_unknown_program_would_be_found(tmp_path):
    with pytest.raises(AssertionError, match="not run"):
        run_block(snippets.Block("bash", "make demo\n", ""), tmp_path)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_block(snippets.Block("python", "1 / 0\n", ""), tmp_path)
    page = "<!-- not run: needs the Hub -->\n\n```bash\na\n```\n\n```python\nb\n```\n"
    assert snippets.all_blocks(page) == [("bash", "a\n", "needs the Hub"), ("python", "b\n", "")]
