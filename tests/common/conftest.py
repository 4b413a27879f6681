"""Which of transformers' tests are skipped, and how skips are counted."""

import os
from collections import Counter

import pytest

from .skips import MOST, SKIPPED
from .sources import VARIABLE

collect_ignore_glob = [] if VARIABLE in os.environ else ["test_*.py"]
_OURS = "WavLink: "


def pytest_collection_modifyitems(items):
    for item in items:
        reason = SKIPPED.get((item.cls.__name__ if item.cls else None, item.originalname))
        if reason:
            item.add_marker(pytest.mark.skip(reason=_OURS + reason))


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report):
    """Skips that transformers' tests decide themselves (no GPU, no generative model) are counted apart from ours."""
    if report.skipped and _OURS not in str(report.longrepr):
        return "not applicable", "n", "NOT APPLICABLE"


def pytest_terminal_summary(terminalreporter):
    ours = terminalreporter.stats.get("skipped", [])
    terminalreporter.write_sep("=", f"{len(ours)} skips of our own, at most {MOST}")
    for report in ours:
        terminalreporter.write_line(f"{report.nodeid}: {report.longrepr[2]}")
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("not applicable", []))
    terminalreporter.write_sep(
        "=", f"{sum(reasons.values())} tests that transformers' own tests skip for such a model"
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:4d}  {reason}")


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and len(reporter.stats.get("skipped", [])) > MOST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
