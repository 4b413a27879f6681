"""GitHub's workflows and `.ci/run` run the same make targets, and none that the Makefile lacks."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def targets_of(script: str) -> set[str]:
    return set(re.findall(r"^\s*make ([a-z-]+)", script, re.MULTILINE))


def steps(path: Path) -> list[str]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_of_the_makefile(path):
    called = targets_of("\n".join(steps(path)))
    assert called and called <= TARGETS


def test_workflows_run_all_steps_of_ci():
    called = targets_of("\n".join(step for path in WORKFLOWS for step in steps(path)))
    assert targets_of((ROOT / ".ci/run").read_text(encoding="utf-8")) <= called


def test_fast_tests_run_on_every_system_and_python():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert [step.get("run") for step in jobs["test"]["steps"]][-1].startswith("make test ")


def test_fast_and_slow_tests_are_all_but_the_big_ones():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    fast, slow = (re.search(rf"^{name} := (.*)$", text, re.MULTILINE)[1] for name in ("FAST", "SLOW"))
    marks = ("slow", "real", "browser", "big")
    for number in range(2 ** len(marks)):
        values = {mark: bool(number >> place & 1) for place, mark in enumerate(marks)}
        assert eval(fast, {}, values) + eval(slow, {}, values) == (not values["big"])
