"""Runs whose plots no test looks at do not draw them: that takes longer than the training of a tiny model."""

import pytest

from wavlink.training import log


@pytest.fixture
def plots() -> None:
    """Named by tests that look at the plots of a run, which are drawn for them alone."""


@pytest.fixture(autouse=True)
def draw_only_for_plots(request, monkeypatch):
    if "plots" not in request.fixturenames:
        for name in ("draw_loss", "draw_recall", "draw_similarities"):
            monkeypatch.setattr(log, name, lambda *arguments: arguments[-1].touch())
