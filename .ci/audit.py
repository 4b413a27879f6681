"""Look for known vulnerabilities in the pinned versions.

    python .ci/audit.py constraints.txt [OPTIONS OF PIP-AUDIT ...]

Exits with 1 if there are some, or if the service that knows them answered late, wrongly or not in full. Where no
connection to it can be made, or it knows none of the packages, a line says so and the exit is 0: a linter must run
without a network too.
"""

import json
import subprocess
import sys

_SECONDS = 120  # for all packages; each request has a tenth of them
_NO_CONNECTION = "Could not connect", "requests.exceptions.ConnectionError", "Failed to establish a new connection"
_UNREACHABLE = "audit: the vulnerability service cannot be reached, so nothing is known of the pinned versions"


def main(requirements: str, *options: str, seconds: float = _SECONDS) -> int:
    """Print what is known of the packages pinned in `requirements` and return the exit status."""
    command = [sys.executable, "-m", "pip_audit", "-r", requirements, "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", str(max(1, round(seconds / 10))), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"audit: the vulnerability service did not answer within {seconds:g} s: run it again")
        return 1
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        if any(words in done.stderr for words in _NO_CONNECTION):
            print(_UNREACHABLE)
            return 0
        print(f"audit: pip-audit failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")
        return 1
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        print(_UNREACHABLE)
        return 0
    found = [(package, fault) for package in audited for fault in package["vulns"]]
    for package, fault in found:
        print(f"audit: {package['name']} {package['version']}: {fault['id']}, fixed in {fault['fix_versions']}")
    print(f"audit: {len(found)} known vulnerabilities in {len(audited)} of {len(packages)} packages")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
