"""What a command says where the system does not let it write, read or listen."""

import errno
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import soundfile

from tests.conftest import RATE, tone
from tests.processes import run_process
from wavlink import cli, console
from wavlink.atomic_files import new_folder, write_text
from wavlink.system_errors import described, explained
from wavlink.temporary_paths import REPLACED, UNFINISHED, hidden

ROOT = Path(__file__).parents[2]


def line_of(argv: list[str], capsys) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "Errno" not in error and "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.EACCES, "no permission: name another path"),
        (errno.EPERM, "no permission: name another path"),
        (errno.EROFS, "read-only: name a path on another"),
        (errno.ENOSPC, "No space left on its disk: free space"),
        (errno.EDQUOT, "No space left on its disk: free space"),
        (errno.ENOENT, "does not exist: check the path"),
        (errno.EISDIR, "is a folder: name a file"),
        (errno.ENAMETOOLONG, "too long: name a shorter one"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "Input/output error: name another path"),
    ],
)
def test_a_system_error_names_its_path_and_what_to_do(number, words, tmp_path):
    line = described(OSError(number, os.strerror(number), str(tmp_path / "out")))
    assert str(tmp_path / "out") in line and words in line and "Errno" not in line


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as raised:
        (tmp_path / "file/a/b").mkdir(parents=True)
    line = described(raised.value)
    assert f"{tmp_path / 'file'} is a file, where a folder is needed: name another path" in line


def test_temporary_names_are_not_shown(tmp_path):
    for ending in (UNFINISHED, REPLACED):
        path = hidden(tmp_path / "out", "0123456789ab", ending)
        assert described(OSError(errno.EACCES, "denied", str(path))).startswith(f"{tmp_path / 'out'} cannot be")


def test_other_errors_keep_their_words():
    assert described(ValueError("give [Errno 3] two")) == "give two"
    assert described(OSError("the Hub does not answer")) == "the Hub does not answer"
    assert explained(RuntimeError("full")) == ("full", "free space on its disk")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("made", [False, True])
def test_a_cache_that_cannot_be_written_names_its_variable(wrapped, made, tmp_path, monkeypatch):
    import huggingface_hub.constants

    cache = tmp_path / "home/hub"
    if made:
        cache.mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    error: Exception = PermissionError(errno.EACCES, "Permission denied", str(cache / "models--a--b"))
    if wrapped:
        try:
            raise ValueError("a/b is neither a folder here nor available on the Hub") from error
        except ValueError as raised:
            error = raised
    line = described(error)
    assert line.startswith(f"the cache {cache}") and "there is no permission: set HF_HOME to a folder" in line
    outside = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "else/where"))
    assert "the cache" not in described(outside)


def test_run_command_describes_errors(tmp_path, capsys):
    def write(_):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "out"))

    assert console.run_command("wavlink x", write, as_json=True) == 2
    captured = capsys.readouterr()
    assert f"wavlink x: {tmp_path / 'out'} cannot be written, its file system is read-only" in captured.err
    assert "read-only" in json.loads(captured.out)["error"]


def test_writers_say_what_to_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "out"))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="could not write .*out: its file system is read-only; .*name a path on another"):
        write_text(tmp_path / "out", "x")
    with pytest.raises(OSError, match="Read-only"), new_folder(tmp_path / "folder"):
        pass


def outputs(target: str, sounds: Path, index: Path) -> dict[str, list[str]]:
    """The commands that write to a path that is named."""
    low = str(sounds / "low.wav")
    return {
        "samples": ["samples", target, "--kinds", "fire"],
        "index": ["index", str(sounds), "--out", target],
        "export": ["export", "wavlink-tiny", target],
        "train": ["train", "sounds", "--data", str(sounds), "--output_dir", target],
        "push": ["push", "wavlink-tiny", "me/x", "--dry_run", "--output_dir", target],
        "map": ["map", str(index), "--out", target],
        "eval": ["eval", "--benchmark", str(sounds), "--output", target],
        "distill": ["distill", "teacher", "--data", str(sounds), "--out", target],
        "where": ["where", low, "--query", "a bell", "--picture", f"{target}.png"],
        "reindex": ["reindex", str(index), "--out", target],
        "pull": ["pull", "me/x", "--out", target],
        "ray": ["ray", str(sounds), "--out", target],
    }


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A folder of captioned tones."""
    (tmp_path / "sounds").mkdir()
    lines = ["file_name,caption", *(f"{name}.wav,a {name} sound" for name in ("low", "bell", "rain"))]
    (tmp_path / "sounds/metadata.csv").write_text("\n".join(lines))
    for name, hertz in (("low", 200), ("bell", 900), ("rain", 500)):
        soundfile.write(tmp_path / f"sounds/{name}.wav", tone(hertz, 1.0), RATE)
    return tmp_path / "sounds"


@pytest.fixture
def index(tiny_bundle, sounds, tmp_path, capsys) -> Path:
    assert cli.main(["index", str(sounds), "--out", str(tmp_path / "index")]) == 0
    return tmp_path / "index"


@pytest.mark.parametrize("name", outputs("x", Path("s"), Path("i")))
def test_a_path_below_a_file_is_refused_by_every_command(name, index, sounds, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = line_of(outputs(str(tmp_path / "file/x"), sounds, index)[name], capsys)
    assert str(tmp_path / "file") in line and ("name " in line or "give " in line), line
    assert sorted(path.name for path in tmp_path.glob("file*")) == ["file"]


AS_NOBODY = """
import json, os, sys
import encodings.idna, encodings.utf_8_sig, html, symtable
from wavlink import cli
import huggingface_hub, torch, transformers, datasets, wavlink.embedder, wavlink.search.command, hub_cards.push
import wavlink.training.command, wavlink.evaluation.command, wavlink.search.map, wavlink.config_file
if os.geteuid() == 0:
    os.seteuid(65534)
for argv in json.loads(sys.argv[1]):
    print("===", argv[0], file=sys.stderr)
    code = cli.main(argv)
    assert code == 2, (argv, code)
"""


@pytest.mark.slow
def test_a_folder_without_the_right_to_write_is_refused_by_every_command(index, sounds, tiny_bundle, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest" in str(folder):  # what pytest has made; xdist adds a folder
            folder.chmod(0o755)
    read_only = tmp_path / "read_only"
    read_only.mkdir()
    commands = outputs(str(read_only / "x"), sounds, index)
    commands |= {"calibrate": ["calibrate", str(tiny_bundle), "--data", str(sounds)]}
    for name in ("map", "export"):  # import modules that only the owner of this Python may read
        del commands[name]
    read_only.chmod(0o555)
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o777)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 240}
    done = run_process([sys.executable, "-c", AS_NOBODY, json.dumps([*commands.values()])], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Errno" not in done.stderr and "Traceback" not in done.stderr
    for name, said in zip(commands, done.stderr.split("=== ")[1:], strict=True):
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"wavlink {name}: ") and ("name " in last or "give " in last or "copy" in last), last


@pytest.mark.parametrize(
    "options, words",
    [
        (["--port", "99999"], "argument --port: must be a whole number from 0 to 65535, got '99999'"),
        (["--port", "-1"], "--port"),
        (["--host", "no.such.host.invalid", "--port", "0"], "the host is unknown; give another --host or --port"),
        (["--host", "x" * 300, "--port", "0"], "the host is unknown; give another --host or --port"),
        (["--host", "192.0.2.1", "--port", "0"], "this machine has no such address; give another --host or --port"),
        (["--max_mb", "0"], "argument --max_mb: must be a number above 0, at most 1e12, got '0'"),
        (["--max_mb", "inf"], "--max_mb"),
        (["--max_seconds", "nan"], "--max_seconds"),
        (["--max_queue", "0"], "argument --max_queue: must be a whole number, 1 or more, got '0'"),
        (["--max_wait", "-3"], "--max_wait"),
        (["--max_connections", "0"], "--max_connections"),
        (["--api_key_file", "/no/such/file"], "--api_key_file /no/such/file"),
    ],
)
def test_serve_names_the_option_that_was_typed(options, words, tiny_bundle, capsys):
    line = line_of(["serve", *options], capsys)
    assert words in line, line


def test_serve_says_that_a_port_is_taken(tiny_bundle, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = line_of(["serve", "--port", str(port)], capsys)
    assert f"cannot listen on 127.0.0.1:{port}: another program listens there; give another --host or --port" in line


@pytest.mark.parametrize("name", ["max_mb", "max_seconds", "max_wait"])
def test_space_names_the_option_that_was_typed(name, capsys):
    assert f"argument --{name}: must be" in line_of(["space", f"--{name}", "0", "--check"], capsys)
