"""The versions that tests run with are the ones that setup.cfg promises."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    assert all(len(pin.specifier) == 1 and "==" in str(pin.specifier) for pin in found)
    return {pin.name.replace("_", "-"): Version(next(iter(pin.specifier)).version) for pin in found}


@pytest.fixture(scope="module")
def floors() -> dict[str, Version]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line for group in groups for line in group.splitlines() if line and not line.startswith("%")]
    found = {}
    for requirement in map(Requirement, lines):
        bounds = {bound.operator: bound for bound in requirement.specifier}
        floor = bounds.pop(">=")
        ceiling = {operator: bound.version for operator, bound in bounds.items()}
        assert ceiling == {"transformers": {"<": "6"}, "ray": {"<": "2.64"}}.get(requirement.name, {})
        assert found.get(requirement.name, floor.version) == floor.version
        found[requirement.name] = floor.version
    return {name: Version(version) for name, version in found.items()}


def test_minimum_versions_are_the_lower_bounds(floors):
    minimum = pins("constraints-minimum.txt")
    run = {name: minimum[name] for name in floors if name != "torch"}
    assert run == {name: version for name, version in floors.items() if name != "torch"}
    assert minimum["torch"] == pins("constraints.txt")["torch"]  # as the file says


def test_pinned_versions_are_allowed_and_complete(floors):
    exact = pins("constraints.txt")
    assert {name for name in floors if name not in exact} == set()
    assert {name for name, floor in floors.items() if exact[name] < floor} == set()


def test_files_tested_on_minimum_versions_exist():
    makefile = (ROOT / "Makefile").read_text()
    listed = re.search(r"AT_MINIMUM := \$\(call test_files,([^)]*)\)", makefile)[1].replace("\\", "").split()
    assert len(listed) > 15 and all([*ROOT.glob(f"tests/*/test_{name}.py")] for name in listed)
    assert "make test-minimum" in (ROOT / ".ci/run").read_text()
