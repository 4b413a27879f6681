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
from unittest import mock

import train
from modeling_wavlink.recipes import Recipe
from modeling_wavlink.sweep import configurations, sweep_parser

ROOT = Path(__file__).parents[1]
LANGUAGES = {"python", "bash", "console", "text"}
# What `import wavlink` gives, for a checkout that has no such package yet.
PUBLIC = {
    *("WavLinkConfig", "WavLinkModel", "WavLinkProcessor", "WavLinkFeatureExtractor", "WavLinkTrainer", "Embedder"),
    *("Index", "classify", "locate", "evaluate", "train", "load_audio", "load_recipe"),
}
# Where commands are until one parser tree has them all: a module, and words before those of the user.
_ELSEWHERE = {
    "pull": ("modeling_wavlink.search", ["pull"]),
    "push-index": ("modeling_wavlink.search", ["push"]),
    "ray": ("modeling_wavlink.ray_embedding", []),
    "lance": ("modeling_wavlink.vector_database", []),
}
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, *languages: str) -> list[str]:
    """The code blocks in one of `languages`."""
    return [code for language, code in _FENCE.findall(page) if language in languages]


def languages(page: str) -> set[str]:
    """The languages of all code blocks, "" of one without."""
    return {language for language, _ in _FENCE.findall(page)}


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command line: of `bash` blocks each line, of `console` blocks those after `$ `."""
    for code in blocks(page, "bash", "console"):
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
            if node.module == "wavlink" and importlib.util.find_spec("wavlink") is None:
                missing += [f"wavlink.{name}" for name in names if name not in PUBLIC]
                continue
            module = importlib.import_module(node.module)
            missing += [f"{node.module}.{name}" for name in names if not hasattr(module, name)]
    return missing


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
        assert configurations(train.parse(sweep_parser(train.recipe_parser()), words[1:]))
    else:
        assert train.parse_recipe(words).name == words[0]


def check_wavlink(words: list[str]) -> None:
    """Check a command of `wavlink` and its options."""
    try:
        if words[0] == "train":
            check_train(words[1:])
        elif _one_tree():
            importlib.import_module("wavlink.cli").build_parser().parse_args(words)
        else:
            _check_module(*words)
    except SystemExit as stopped:
        raise AssertionError(f"wavlink {shlex.join(words)} is not understood") from stopped


def _one_tree() -> bool:
    return importlib.util.find_spec("wavlink") is not None and importlib.util.find_spec("wavlink.cli") is not None


def _check_module(name: str, *words: str) -> None:
    from modeling_wavlink import cli

    handed = {known: (command.module, list(command.first)) for known, command in cli.COMMANDS.items()} | _ELSEWHERE
    assert name in handed, f"no command {name}"
    module, first = handed[name]
    module = importlib.import_module(module)
    if hasattr(module, "_parser"):
        _, rest = module._parser().parse_known_args([*first, *words])
        assert not [word for word in rest if word.startswith("-")], rest
        return
    with parsed_alone() as parsed:
        try:
            module.main([*first, *words])
        except _Parsed:
            pass
    assert parsed, f"wavlink {name}"


class _Parsed(BaseException):
    """Stops a command once its options are parsed."""


class parsed_alone:
    """While it is on, a parser that has understood its words raises `_Parsed`; it yields what was parsed."""

    def __enter__(self) -> list:
        parsed, self.patches = [], []
        for name in ("parse_args", "parse_intermixed_args"):
            own = getattr(argparse.ArgumentParser, name)

            def parse(parser, *arguments, own=own, **options):
                parsed.append(own(parser, *arguments, **options))
                raise _Parsed

            self.patches.append(mock.patch.object(argparse.ArgumentParser, name, parse))
        for patch in self.patches:
            patch.start()
        return parsed

    def __exit__(self, *error) -> None:
        for patch in self.patches:
            patch.stop()


def known_options() -> set[str]:
    """Every option that a source file of this checkout or a recipe names."""
    folders = ("modeling_wavlink", "processing", "hub_cards", "benchmarks", "wavlink")
    sources = [path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sources.append((ROOT / "train.py").read_text(encoding="utf-8"))
    fields = {f"--{field.name}" for field in dataclasses.fields(Recipe)}
    return fields.union(*(re.findall(r'"(--[\w-]+)"', source) for source in sources))
