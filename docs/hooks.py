"""What MkDocs does to pages before it renders them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
INCLUDED = {"architecture.md": "ARCHITECTURE.md", "contributing.md": "CONTRIBUTING.md"}  # page: file of the checkout


def on_page_markdown(markdown: str, page, **_) -> str:
    """Replace a page that stands for a file of the checkout by that file."""
    source = INCLUDED.get(page.file.src_uri)
    return included((ROOT / source).read_text(encoding="utf-8")) if source else markdown


def included(text: str) -> str:
    """A file's text, with links to other files of the checkout led to their pages, or as names where there is none."""
    pages = {name: page for page, name in INCLUDED.items()}

    def led(link: re.Match) -> str:
        label, target = link.groups()
        if target.startswith(("http", "#")):
            return link[0]
        return f"[{label}]({pages[target]})" if target in pages else f"`{label.strip('`')}`"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", led, text)
