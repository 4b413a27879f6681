"""The requests of docs/serve.md are answered, its limits are the defaults, and the Dockerfile starts the server."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests import snippets
from tests.conftest import tone
from tests.helpers import wav
from tests.served import as_base64
from wavlink import cli
from wavlink.serving.app import PATHS
from wavlink.serving.limits import Limits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
REQUESTS = re.findall(r"^POST (\S+)\n(.*?)\n```", PAGE, re.MULTILINE | re.DOTALL)
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STEPS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=[path for path, _ in REQUESTS])
def test_a_request_of_the_page_is_answered(client, path, body):
    content = as_base64(wav(tone(300, 3)))
    document = json.loads(
        body.replace("base64,...", f"base64,{content}").replace('"data": "..."', f'"data": "{content}"')
    )
    status, answer = client.post(path, document)
    assert status == 200, answer


def test_the_commands_of_the_page_are_understood():
    commands = re.findall(r"^wavlink serve .*$", PAGE, re.MULTILINE)
    for line in commands:
        snippets.check_command(shlex.split(line))
    assert commands


def test_the_page_lists_every_path():
    for path in PATHS:
        assert f" {path}`" in PAGE or f"`{path}`" in PAGE, path


def test_limits_of_the_page_and_the_command_line_are_the_defaults():
    limits, parsed = Limits(), cli.build_parser().parse_args(["serve"])
    stated = dict(re.findall(r"^\| `--(\w+)` \| (\d+) \|", PAGE, re.MULTILINE))
    fields = {"max_mb": limits.max_bytes / 2**20} | {
        name: getattr(limits, name) for name in stated if name != "max_mb"
    }
    assert len(stated) == 5 and {name: float(value) for name, value in stated.items()} == fields
    assert {name: getattr(parsed, name) for name in stated} == fields
    assert f"within {limits.header_seconds:g} s" in PAGE and f"each {limits.body_rate // 1024} KiB" in PAGE


def test_the_image_runs_the_command_as_a_user_without_rights():
    steps = dict(STEPS)
    command = [*json.loads(steps["ENTRYPOINT"]), *json.loads(steps["CMD"])]
    snippets.check_command(command)
    assert steps["USER"] not in ("root", "0") and [name for name, _ in STEPS].index("USER") > [
        name for name, _ in STEPS
    ].index("RUN")
    assert steps["EXPOSE"] == command[command.index("--port") + 1] and ":8000/health" in steps["HEALTHCHECK"]


def test_the_image_copies_what_exists_and_docker_may_read_it():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for step, rest in STEPS if step == "COPY" for name in shlex.split(rest)[:-1]}
    assert copied == allowed and all((ROOT / name).exists() for name in copied)
    declared = (ROOT / "setup.cfg").read_text().partition("packages =\n")[2].partition("package_dir")[0].split()
    assert {name.partition(".")[0] for name in declared} <= copied
