"""Code blocks and commands of pages in Markdown, and whether the package understands them."""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import wavlink
from wavlink.cli import build_parser
from wavlink.train_options import parse
from wavlink.training.command import parse_recipe, recipe_parser
from wavlink.training.recipes import Recipe
from wavlink.training.sweep import configurations, sweep_parser

ROOT = Path(__file__).parents[1]
OWN = {"wavlink", "modeling_wavlink", "processing", "hub_cards", "train"}
LANGUAGES = {"python", "bash", "console", "text"}
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n\n?)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A code block; `reason` is why no test runs it, from a comment above it: `<!-- not run: needs the Hub -->`."""

    language: str
    code: str
    reason: str


def all_blocks(page: str) -> list[Block]:
    """The code blocks of a page in order."""
    return [Block(found["language"], found["code"], found["reason"] or "") for found in _FENCE.finditer(page)]


def blocks(page: str, *languages: str) -> list[str]:
    """The code blocks in one of `languages`."""
    return [block.code for block in all_blocks(page) if block.language in languages]


def languages(page: str) -> set[str]:
    """The languages of all code blocks, "" of one without."""
    return {block.language for block in all_blocks(page)}


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command line: of `bash` blocks each line, of `console` blocks those after `$ `."""
    for code in blocks(page, "bash", "console"):
        yield from commands_of(code)


def commands_of(code: str) -> Iterator[list[str]]:
    """The words of every command line of a block: each line, or those after `$ ` where there are any."""
    console = "$ " in code
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("$ ") or (line and not console):
            yield shlex.split(line.removeprefix("$ "), comments=True)


def inline(page: str) -> list[str]:
    """Inline code outside blocks."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", page))


def missing_imports(code: str) -> list[str]:
    """The names that a Python snippet imports and that do not exist; raises SyntaxError where it does not parse."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            missing += [alias.name for alias in node.names if importlib.util.find_spec(alias.name) is None]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = importlib.import_module(node.module)
            missing += [f"{node.module}.{name}" for name in names if not hasattr(module, name)]
    return missing


def internal_imports(code: str) -> list[str]:
    """The names of this project that a Python snippet imports and that are not public."""
    internal = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            internal += [name for name in names if name.partition(".")[0] in OWN and name != "wavlink"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OWN:
            names = [alias.name for alias in node.names]
            public = {*wavlink.__all__} if node.module == "wavlink" else set()
            internal += [f"{node.module}.{name}" for name in names if name not in public]
    return internal


def check_command(words: list[str]) -> None:
    """Raise an AssertionError that says why a command line would not be understood."""
    if words[0] == "wavlink":
        check_wavlink(words[1:])
    elif words[:2] == ["accelerate", "launch"]:
        config = words[words.index("--config_file") + 1]
        assert (ROOT / config).is_file(), f"no {config}"
        check_train(words[words.index("train.py") + 1 :])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), words
    elif words[:2] == ["python", "train.py"]:
        check_train(words[2:])
    elif words[0] == "python":
        check_script(words[1], words[2:])
    else:
        assert words[:2] == ["pip", "install"], f"an unknown program: {words}"


def check_script(path: str, words: list[str]) -> None:
    """Check that a script exists and that its source has every option."""
    source = (ROOT / path).read_text(encoding="utf-8")
    known = {*re.findall(r'"(--\w+)"', source), *(["--record"] if "records.add_option(" in source else [])}
    unknown = {word for word in words if word.startswith("--")} - known
    assert not unknown, f"{path} has no {unknown}"


def check_train(words: list[str]) -> None:
    """Check a recipe and its options."""
    if words[0] == "sweep":
        assert configurations(parse(sweep_parser(recipe_parser()), words[1:]))
    else:
        assert parse_recipe(words).name == words[0]


def check_wavlink(words: list[str]) -> None:
    """Check a command of `wavlink` and its options."""
    try:
        build_parser().parse_args(words)
    except SystemExit as stopped:
        raise AssertionError(f"wavlink {shlex.join(words)} is not understood") from stopped
    if words[0] == "train":
        check_train(words[1:])


def known_options() -> set[str]:
    """Every option of a command, of a recipe and of the benchmarks."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")]
    known = {f"--{field.name}" for field in dataclasses.fields(Recipe)} | _options_of(build_parser())
    return known.union(*(re.findall(r'"(--[\w-]+)"', source) for source in sources))


def _options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its commands."""
    found = set()
    for action in parser._actions:
        found |= {*action.option_strings}
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(_options_of, action.choices.values()))
    return found
