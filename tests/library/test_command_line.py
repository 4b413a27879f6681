"""The command line without the work: help, errors of usage, completion and hints, all before torch is imported."""

import inspect
import json
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from hub_cards.space.answers import Limits
from modeling_wavlink import configuration_wavlink
from processing.datasets.benchmarks import BENCHMARKS
from tests.processes import run_process
from wavlink import cli, console, defaults, installing
from wavlink.evaluation.protocol import Protocol
from wavlink.evaluation.zero_shot import CLEAN_UPS, PROMPT
from wavlink.parsing import Parser
from wavlink.search import index as querying
from wavlink.search import map as sound_map
from wavlink.search.ray import embed_with_ray
from wavlink.training import recipes

ROOT = Path(__file__).parents[2]
# In one process each: what `wavlink NAME --help` prints, what it imports, and its CPU seconds besides Python's own.
HELP = """
import sys, time
from wavlink.cli import main
code = main([*sys.argv[1].split(), "--help"])
heavy = {"torch", "transformers", "datasets", "numpy", "pyarrow", "huggingface_hub"} & set(sys.modules)
assert code == 0 and not heavy, heavy
print(time.process_time(), file=sys.stderr)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "PYTHON_COLORS": "0", **more}


def leaves(parser: Parser | None = None) -> dict[str, Parser]:
    """The parser of every command by its name."""
    found = {}
    for name, command in (parser or cli.build_parser()).commands.items():
        found |= (
            {f"{name} {inner}": one for inner, one in leaves(command).items()} if command.commands else {name: command}
        )
    return found


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_is_fast_and_imports_no_torch(name):
    done = run_process(
        [sys.executable, "-c", HELP, name], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: wavlink {name}".strip())
    assert float(done.stderr.splitlines()[-1]) < 0.6  # 0.1 on an idle machine; torch alone takes 2 and more


def test_the_overview_names_every_command_and_exit_code(capsys):
    """The commands first, then the examples of a few; the help of each has its own."""
    assert cli.main([]) == cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    listed, _, rest = out.partition("\noptions:\n")
    assert all(re.search(rf"\n +{name.split()[0]} +\w", listed) for name in cli.COMMANDS)
    assert all(f"  wavlink {name} {cli.COMMANDS[name].example}\n" in rest for name in cli.FIRST)
    assert all(f"  wavlink {name} {cli.COMMANDS[name].example}" in leaf.epilog for name, leaf in leaves().items())
    assert all(f"\n  {code} " in out for code in (0, 1, 2, 130)) and "143" in out


def test_every_option_has_help_default_and_choices():
    assert set(leaves()) == set(cli.COMMANDS)
    for name, parser in leaves().items():
        formatter, text = parser.formatter_class(parser.prog), parser.format_help()
        for action in parser._actions:
            where = f"{name}: {action.option_strings or action.dest}"
            said = formatter._expand_help(action) if action.help else ""
            assert len(said) > 4, where
            if action.option_strings and action.nargs != 0 and not action.required:
                assert "default: " in said, where
            assert all(str(choice) in text for choice in action.choices or ()), where
            if name == "train":
                assert all(choice in text for choice in recipes.CHOICES.get(action.dest, ())), where


def test_every_example_parses():
    for name, command in cli.COMMANDS.items():
        parsed = cli.build_parser().parse_args([*name.split(), *shlex.split(command.example)])
        assert parsed.command == name


@pytest.mark.parametrize(
    "words, line",
    [
        ("quer", "wavlink: no command 'quer'; did you mean query?"),
        ("x", "wavlink: no command 'x'; the commands are train, eval"),
        ("query my_index dog --wihtout rain", "wavlink query: unknown option --wihtout; did you mean --without?"),
        ("train sounds --bach_size=3", "wavlink train: unknown option --bach_size=3; did you mean --batch_size?"),
        ("where a b.wav --model c", "wavlink where: unknown option --model; wavlink where --help lists the options"),
        ("eval --model m", "wavlink eval: the following arguments are required: --benchmark"),
        ("classify a --model m --labels b c --dtype float8", "wavlink classify: argument --dtype: invalid choice"),
        ("remove i", "wavlink remove: the following arguments are required: PATH"),
        ("info i more", "wavlink info: unrecognized arguments: more"),
        ("push FOLDER user/name --dry_run", "wavlink push: --dry_run needs --output_dir"),
        ("push FOLDER user/name --index i", "wavlink push: --index goes with --space"),
        ("query i a --storage_options region", "wavlink query: --storage_options takes KEY=VALUE, got 'region'"),
        ("--verison", "wavlink: unknown option --verison; did you mean --version?"),
    ],
)
def test_a_usage_error_is_one_line_with_the_nearest_name(words, line, capsys):
    assert cli.main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line) and captured.err.count("\n") == 1 and captured.out == ""
    assert cli.main([*words.split(), "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)) == {"error"}


def test_positional_arguments_after_options_belong_to_the_query():
    parsed = cli.build_parser().parse_args(
        ["query", "my_index", "--without", "rain", "a dog", "--top_k", "3", "barks"]
    )
    assert (parsed.folder, parsed.text, parsed.without, parsed.top_k) == ("my_index", ["a dog", "barks"], ["rain"], 3)
    parsed = cli.build_parser().parse_args(["push", "--private", "runs/my/best", "--tag", "v1", "user/name"])
    assert (parsed.folder, parsed.repo_id, parsed.tag) == ("runs/my/best", "user/name", "v1")


def test_python_m_wavlink_is_the_command():
    command = [sys.executable, "-m", "wavlink"]
    done = run_process([*command, "--version"], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("wavlink")
    done = run_process([*command, "qery"], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "wavlink: no command 'qery'; did you mean query?\n"


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_scripts_name_every_command_and_parse(shell, tmp_path):
    pytest.importorskip("shtab")
    command = [sys.executable, "-m", "wavlink", "--print-completion", shell]
    script = run_process(command, env=environment(), capture_output=True, text=True, check=True).stdout
    assert all(name.split()[0] in script for name in cli.COMMANDS) and "matryoshka_dims" in script
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        run_process([program, "-n", tmp_path / "script"], check=True)


def test_completion_without_shtab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 2
    assert "shtab is not installed: pip install" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, capsys):
    given = ["info", str(tmp_path / "none")]
    assert cli.main(given) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main([*given, "--debug", "--json"]) == 2
    captured = capsys.readouterr()
    assert "Traceback" in captured.err and captured.err.splitlines()[-1].startswith("wavlink info: ")
    assert json.loads(captured.out) == {"error": captured.err.splitlines()[-1].removeprefix("wavlink info: ")}


@pytest.mark.parametrize(
    "module, wanted, extra",
    [("gradio", "space", "space"), ("pyarrow", "search", "search"), ("sklearn.manifold", "map", "map")]
    + [("datasets", "", "data"), ("lance", "push", "push"), ("torch", "train", ""), ("onnxruntime", "eval", "onnx")],
)
def test_install_hint_names_the_extra_of_the_missing_module(module, wanted, extra, monkeypatch, tmp_path):
    brackets = f"[{extra}]" if extra else ""
    monkeypatch.chdir(installing.ROOT)
    top = module.partition(".")[0]
    assert installing.install_hint(module, wanted) == f"{top} is not installed: pip install -e '.{brackets}'"
    monkeypatch.chdir(tmp_path)
    assert f"pip install -e '{ROOT}{brackets}'" in installing.install_hint(module, wanted)
    monkeypatch.setattr(installing, "ROOT", tmp_path)  # as in a wheel, beside which there is no setup.cfg
    expected = f"pip install 'wavlink[{extra}]'" if extra else "pip install wavlink"
    assert installing.install_hint(module, wanted) == f"{top} is not installed: {expected}"


def missing(module: str):
    def run(_):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    return run


def test_install_hint_prefers_the_commands_extra(capsys):
    assert console.run_command("wavlink query", missing("pyarrow"), extra="search") == 2
    assert "[search]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        console.run_command("wavlink query", missing("wavlink.nothing"))


def test_defaults_and_choices_are_those_of_the_library():
    assert defaults.CLEAN_UPS == tuple(CLEAN_UPS) and defaults.PROMPT == PROMPT
    assert set(BENCHMARKS) < {*defaults.BENCHMARKS}
    assert recipes.CHOICES["loss_type"] == configuration_wavlink.LOSS_TYPES
    assert recipes.CHOICES["pooling"] == ("", *configuration_wavlink.POOLINGS)
    parsers = leaves()
    protocol = Protocol()
    for name in "clean_up group_column choices question choice_text seed robustness".split():
        assert parsers["eval"].get_default(name) == getattr(protocol, name)
    assert tuple(parsers["eval"].get_default("prompt")) == protocol.prompts
    assert parsers["query"].get_default("weight") == querying.WEIGHT
    assert parsers["map"].get_default("most") == sound_map.MOST
    given = parsers["map"].parse_args(["i", "--out", "o", "--embed_audio"])
    assert given.embed_audio == sound_map.EMBEDDED_BYTES
    assert [parsers["space"].get_default(f"max_{name}") for name in ("mb", "seconds", "wait")] == [
        Limits.megabytes,
        Limits.seconds,
        Limits.wait,
    ]
    by_name = inspect.signature(embed_with_ray).parameters
    for name in "actors batch_size window hop device dtype".split():
        assert parsers["ray"].get_default(name) == by_name[name].default


def test_debug_masks_the_hubs_token(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")

    def run(_):
        raise ValueError("refused") from OSError("Bearer hf_secret")

    assert console.run_command("wavlink push", run, debug=True) == 2
    err = capsys.readouterr().err
    assert "OSError: Bearer ***" in err and "hf_secret" not in err


def test_foreign_warnings_are_hidden_and_errors_are_raised(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with console.without_foreign_output():
            warnings.warn("foreign", FutureWarning, stacklevel=1)
            logging.getLogger("foreign").warning("a warning")
            logging.getLogger("foreign").error("an error")
        assert [record.message for record in caplog.records] == ["an error"]
        with pytest.raises(OSError, match="disk"), console.without_foreign_output():
            raise OSError("the disk is full")
        logging.getLogger("foreign").warning("afterwards")
        assert caplog.records[-1].message == "afterwards"
        with pytest.raises(FutureWarning):
            warnings.warn("own", FutureWarning, stacklevel=1)


def test_sweep_options_are_refused_for_other_recipes(capsys):
    assert cli.main(["train", "quickstart", "--clip", "x"]) == 2
    assert "wavlink train: --clip is of `train sweep`" in capsys.readouterr().err


def test_recipe_errors_begin_with_the_command(capsys):
    assert cli.main(["train", "quickstart", "--batch_size", "1"]) == 2
    assert capsys.readouterr().err == "wavlink train: batch_size must be at least 2, got 1\n"
    assert cli.main(["train", "quickstrat"]) == 2
    assert "no recipe 'quickstrat'" in capsys.readouterr().err


def test_push_errors_begin_with_the_command(tmp_path, capsys):
    given = ["push", str(tmp_path / "gone"), "user/name", "--dry_run", "--output_dir", str(tmp_path / "out")]
    assert cli.main(given) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("wavlink push: ")
