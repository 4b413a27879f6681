"""Drive a headless Chromium by its DevTools protocol over a pipe, and serve a folder to it; without other packages.

with served(folder) as address, Chromium() as page:
    page.open(address)
    page.evaluate("document.title")
"""

import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
# Chromium reads commands from file descriptor 3 and writes to 4.
_START = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])"""
_FLAGS = "--headless=new --no-sandbox --remote-debugging-pipe --disable-gpu --no-first-run --mute-audio".split()


class Chromium:
    """A page in a new headless Chromium, which ends with the context.

    Attributes:
        requests: addresses that the page asked for.
        errors: exceptions that no code caught, and errors on the console.

    Args:
        size: of the window.
        timeout: seconds that a call takes at most.
    """

    def __init__(self, size: tuple[int, int] = (1280, 800), timeout: float = 240):
        self.timeout, self.requests, self.errors = timeout, [], []
        self._size, self._count, self._session, self._unread, self._loaded = size, 0, "", b"", False

    def __enter__(self) -> "Chromium":
        import fcntl  # not on Windows

        self._profile = tempfile.mkdtemp(prefix="chromium-")
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for pipe in (os.pipe(), os.pipe()) for end in _taken(pipe)]
        commands, to, self._from, answers = ends
        self._to = os.fdopen(to, "wb")
        flags = [*_FLAGS, f"--user-data-dir={self._profile}"]
        command = [sys.executable, "-c", _START, str(commands), str(answers), FOUND, *flags, "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        size = dict(zip(("width", "height"), self._size, strict=True))
        self.call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self._session = ""
            self.call("Browser.close")
            self._to.close()
        os.close(self._from)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result.

        Raises:
            ValueError: the browser refuses it.
            TimeoutError: no answer.
            OSError: the browser has ended.
        """
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        end = time.monotonic() + self.timeout
        while (answer := self._read(end)).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise ValueError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, address: str) -> None:
        """Load an address, and wait until it is loaded."""
        self._loaded = False
        self.call("Page.navigate", url=address)
        end = time.monotonic() + self.timeout
        while not self._loaded:
            self._note(self._read(end))

    def evaluate(self, code: str) -> Any:
        """Evaluate an expression of JavaScript, wait for its promise, and return its value as of JSON.

        Raises:
            ValueError: it throws.
        """
        done = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in done:
            raise ValueError(_thrown(done["exceptionDetails"]))
        return done["result"].get("value")

    def wait_for(self, condition: str) -> Any:
        """Return the value of an expression once it is true."""
        end = time.monotonic() + self.timeout
        while not (value := self.evaluate(condition)):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is {value!r} after {self.timeout:g} s")
            time.sleep(0.05)
        return value

    def choose_files(self, selector: str, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Choose files in an `<input type=file>`."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]
        self.call("DOM.setFileInputFiles", files=[os.path.abspath(path) for path in paths], objectId=found["objectId"])

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, such as `Tab`; `text` is what it types."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._from], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium has not answered for {self.timeout:g} s")
            if not (part := os.read(self._from, 1 << 20)):
                raise OSError("Chromium has ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(_thrown(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(str([part.get("value") for part in parameters["args"]]))
        elif method == "Page.loadEventFired":
            self._loaded = True


def _taken(pipe: tuple[int, int]) -> Iterator[int]:
    """Yield both ends of a pipe, and close each once the caller has copied it."""
    for end in pipe:
        yield end
        os.close(end)


def _thrown(details: dict[str, Any]) -> str:
    return details.get("exception", {}).get("description") or details["text"]


class _Handler(SimpleHTTPRequestHandler):
    """Serves files with the headers by which a Space's README asks for threads in WebAssembly."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
