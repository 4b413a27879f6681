"""What the linter makes of pip-audit's answer: known vulnerabilities fail it, a service out of reach does not."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[1] / ".ci/audit.py"
FAULT = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": [], "description": ""}
GOOD, BAD = ({"name": "x", "version": "1", "vulns": faults} for faults in ([], [FAULT]))
UNKNOWN = {"name": "y", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("answer", "code", "line"),
    [
        (json.dumps({"dependencies": [GOOD, UNKNOWN]}), 0, "audit: 0 known vulnerabilities in 1 of 2 packages"),
        (json.dumps({"dependencies": [GOOD, BAD]}), 1, "audit: x 1: PYSEC-1, fixed in ['2']"),
        (json.dumps({"dependencies": [UNKNOWN]}), 0, "cannot be reached"),
        ("Traceback: ConnectionError", 0, "cannot be reached"),
        (None, 0, "cannot be reached"),
    ],
)
def test_known_vulnerabilities_fail_the_linter_and_an_absent_service_does_not(answer, code, line, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("audit", PLACE)
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)

    def run(command, **options):
        if answer is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 1, answer, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.main("constraints.txt") == code
    assert line in capsys.readouterr().out
