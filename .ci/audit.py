"""Known vulnerabilities of the pinned versions, in a few seconds or not at all.

    python .ci/audit.py constraints.txt

Exits with 1 if there are some. Where the service that knows them cannot be reached, or knows none of the packages, a
line says so and the exit is 0: a linter must run without a network too.
"""

import json
import subprocess
import sys

_SECONDS = 10


def main(requirements: str) -> int:
    command = [sys.executable, "-m", "pip_audit", "-r", requirements, "--no-deps", "--disable-pip", "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", "3"], capture_output=True, text=True, timeout=_SECONDS
        )
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        packages = []
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        print("audit: the vulnerability service cannot be reached, so nothing is known of the pinned versions")
        return 0
    found = [(package, fault) for package in audited for fault in package["vulns"]]
    for package, fault in found:
        print(f"audit: {package['name']} {package['version']}: {fault['id']}, fixed in {fault['fix_versions']}")
    print(f"audit: {len(found)} known vulnerabilities in {len(audited)} of {len(packages)} packages")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
