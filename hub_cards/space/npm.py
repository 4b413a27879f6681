"""Files of packages that npm distributes, taken from their tarballs, whose hashes are pinned here."""

import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from wavlink.temporary_paths import temporary_folder

_SECONDS = 600  # that npm may take
_GZ = ".gz"


@dataclass(frozen=True)
class Package:
    """A package of npm.

    Attributes:
        name, version: npm's.
        integrity: as npm states it, sha512 in base64.
        files: to take, as they are named in the package, and in the Space; one that gets `.gz` is compressed.
    """

    name: str
    version: str
    integrity: str
    files: dict[str, str]

    @property
    def tarball(self) -> str:
        """The file that `npm pack` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        {
            "dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs",
            "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm.gz",
        },
    ),
    Package(
        "@huggingface/tokenizers",
        "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        {"dist/tokenizers.min.mjs": "tokenizers.min.mjs", "LICENSE": "tokenizers.LICENSE"},
    ),
)


def write_packages(folder: Path, tarballs: str = "") -> None:
    """Write the files of all packages into a new folder.

    Args:
        tarballs: a folder of what `npm pack` has written; "": npm downloads them.

    Raises:
        ValueError: a tarball that is missing or is not the pinned one, or npm that is missing or fails.
    """
    folder.mkdir()
    with temporary_folder("wavlink-npm-") as downloaded:
        if not tarballs:
            _download(downloaded)
        for package in PACKAGES:
            _unpack(package, Path(tarballs or downloaded) / package.tarball, folder)


def _download(folder: Path) -> None:
    program = shutil.which("npm")
    command = ["npm", "pack", *(f"{package.name}@{package.version}" for package in PACKAGES)]
    by_hand = f"run `{' '.join(command)}` where it can be, and give its folder as --npm_packages"
    if program is None:
        raise ValueError(f"npm, which downloads onnxruntime-web, is not installed: install Node.js, or {by_hand}")
    try:
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"npm has taken over {_SECONDS} s: {by_hand}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["it says nothing"]
        raise ValueError(f"npm cannot download onnxruntime-web ({lines[0].strip()}): {by_hand}")


def _unpack(package: Package, tarball: Path, folder: Path) -> None:
    try:
        content = tarball.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{tarball} cannot be read: `npm pack {package.name}@{package.version}` writes it ({error.strerror})"
        ) from error
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.integrity:
        raise ValueError(f"{tarball} is not {package.name} {package.version} as it was published: download it again")
    with tarfile.open(tarball) as archive:
        for source, target in package.files.items():
            data = archive.extractfile(f"package/{source}").read()  # type: ignore[union-attr]  # its hash is known
            (folder / target).write_bytes(gzip.compress(data, 9, mtime=0) if target.endswith(_GZ) else data)
