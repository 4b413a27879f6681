"""`benchmarks/soak.py serve`: its requests get the answers that it expects, and a run ends with the figures."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak_requests import Traffic, requests
from tests.processes import run_process
from tests.served import serving
from wavlink.search.index import Index

ROOT = Path(__file__).parents[2]


def test_every_kind_of_request_gets_the_status_that_is_expected(embedder, index_folder):
    with serving(embedder, lambda batched: Index.open(index_folder, batched), max_seconds=60) as client:
        wrong = {}
        for number, request in enumerate(requests()):
            if request.status:
                body = request.body if request.method == "POST" else None
                answer = client.send(request.method, request.path, body, **{"Content-Type": request.kind})
                if answer[0] != request.status:
                    wrong[number] = (request.path, request.body[:60], *answer[:2])
        assert not wrong
        traffic = Traffic(client.port, 0)
        while traffic.count < 100 and not traffic.wrong:
            assert not traffic._ended.wait(0.05)
        traffic.stop()
        assert traffic.wrong == "" and 'status="429"' not in client.get("/metrics")[1]


def test_a_server_that_answers_otherwise_is_noticed(embedder):
    with serving(embedder, max_seconds=60) as client:  # without an index
        traffic = Traffic(client.port, 0)
        for thread in traffic._threads:
            thread.join(60)
        assert "/v1/search" in traffic.wrong and "404" in traffic.wrong


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_run_of_ten_seconds_ends_with_the_figures(wavlink_folder, tmp_path):
    command = [sys.executable, ROOT / "benchmarks/soak.py", "serve", "--model", wavlink_folder, "--minutes", "0.17"]
    command += ["--warm_up", "0.02", "--bound", "10000", "--record", tmp_path / "soak.json"]
    done = run_process(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert " requests in 0.1" in done.stdout and "MiB per 1000 requests" in done.stdout, done.stderr
    if done.returncode == 0:
        table = json.loads((tmp_path / "soak.json").read_text())["values"]["serve"]
        assert table["columns"][-1] == "per 1000 requests" and len(table["rows"]) == 4


def test_memory_is_a_slope_over_requests():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import soak
    finally:
        sys.path.pop(0)
    count = np.linspace(0, 24_000, 240)
    samples = np.stack([count / 50, 700 + count / 500, 700 + count / 500, 0 * count + 20, 0 * count + 9, count], 1)
    flat, rows = soak.report(samples, 1.9, 1000, "per 1000 requests")
    assert not flat and rows[0][-1]["value"] == pytest.approx(2)
    assert soak.report(samples, 2.1, 1000, "per 1000 requests")[0]
    samples[-20:, 3] = 21
    assert not soak.report(samples, 2.1, 1000, "per 1000 requests")[0]
