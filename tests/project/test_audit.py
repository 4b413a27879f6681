"""The linter's look for vulnerabilities: pip-audit itself, against a vulnerability service on loopback."""

import importlib.util
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("pip_audit")

PLACE = Path(__file__).parents[2] / ".ci/audit.py"
FAULT = {
    "id": "PYSEC-1",
    "summary": "reads what it should not",
    "affected": [
        {
            "package": {"name": "bad", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2"}]}],
        }
    ],
}


@pytest.fixture
def audit(tmp_path, capsys):
    """Runs the linter's audit of the packages `bad` 1 and `good` 1 and gives its exit status and output."""
    spec = importlib.util.spec_from_file_location("audit", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    requirements = tmp_path / "constraints.txt"

    def run(url: str, packages: str = "bad==1\ngood==1\n", seconds: float = 60) -> tuple[int, str]:
        requirements.write_text(packages, encoding="utf-8")
        options = ["-s", "osv", "--osv-url", url, "--cache-dir", str(tmp_path / "cache")]
        return module.main(str(requirements), *options, seconds=seconds), capsys.readouterr().out

    return run


@pytest.fixture
def service():
    """A vulnerability service of OSV's shape that knows one fault of `bad`; `answers` says how it answers."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            server.stop.wait(server.delay)
            body = json.dumps({"vulns": [FAULT]} if name == "bad" else {}).encode()
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.status, server.delay, server.stop = 200, 0, threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/v1/query"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_known_vulnerability_fails(audit, service):
    status, out = audit(service.url)
    assert status == 1
    assert "audit: bad 1: PYSEC-1, fixed in ['2']" in out and "1 known vulnerabilities in 2 of 2 packages" in out


@pytest.mark.slow
def test_no_vulnerability_passes(audit, service):
    assert audit(service.url, "good==1\n") == (0, "audit: 0 known vulnerabilities in 1 of 1 packages\n")


def test_unreachable_service_is_reported_and_passes(audit, service):
    service.server_close()
    status, out = audit(service.url)
    assert status == 0 and "cannot be reached" in out


@pytest.mark.slow
def test_failing_service_does_not_pass(audit, service):
    service.status = 500
    status, out = audit(service.url)
    assert status == 1 and out.startswith("audit: pip-audit failed: ")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 30], ids=["in all", "at one request"])
def test_late_answer_does_not_pass(audit, service, seconds):
    service.delay = 100
    began = time.monotonic()
    status, out = audit(service.url, seconds=seconds)
    assert status == 1 and ("did not answer" in out or "failed" in out)
    assert time.monotonic() - began < 100
