"""README is short, in the order that a reader needs, and uses the public API alone."""

import re
from pathlib import Path

import pytest

from tests import snippets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS = [
    *("Install", "Embed and compare", "Zero-shot classification", "Search a folder", "Fine-tune", "Models", "Results"),
    *("Speed", "Guarantees", "Where to read the code", "Documentation", "Limits, licence, citation"),
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_it_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


def test_its_sections_are_in_order():
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == SECTIONS


def test_it_begins_with_a_sentence_a_picture_and_what_can_be_used_today():
    first = "\n".join(README.splitlines()[:10])
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+)\)", first)
    assert (ROOT / picture).is_file() and "use today" in first and "No trained" in first


def test_what_prints_has_its_output_below():
    blocks = snippets.all_blocks(README)
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "python" and "print(" in block.code:
            assert after and after.language == "text", block.code
    for title in ("Install", "Zero-shot classification", "Search a folder"):
        lines = [line for code in snippets.blocks(section(title), "console") for line in code.splitlines()]
        assert any(not line.startswith("$ ") for line in lines), title


def test_code_to_read_is_five_files():
    files = re.findall(r"^\d\. `([^`]+)`", section("Where to read the code"), re.MULTILINE)
    assert len(files) == 5 and all((ROOT / name).is_file() for name in files), files


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_snippets_import_public_names_alone(path):
    for code in snippets.blocks(path.read_text(encoding="utf-8"), "python"):
        assert snippets.internal_imports(code) == []


def test_the_architecture_names_every_folder_of_code():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## The folders")[2].partition("\n## ")[0]
    inits = [path for name in snippets.OWN for path in ROOT.glob(f"{name}/**/__init__.py")]
    packages = {path.parent.relative_to(ROOT).as_posix() for path in inits}
    rows = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)/`", row)}
    assert packages <= named and all((ROOT / name).is_dir() for name in named), packages ^ named
