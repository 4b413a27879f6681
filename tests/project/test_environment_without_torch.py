"""An environment with `requirements-without-torch.txt` and this package alone runs an exported model."""

import configparser
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement

from tests.conftest import RATE, tone
from tests.needed_packages import DISTRIBUTIONS, needed
from tests.processes import run_process
from tests.served import Client
from wavlink.embedder import Embedder

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements-without-torch.txt"
IN_SOURCE = ("hub_cards", "modeling_wavlink", "processing", "wavlink", "examples/sounds")
STARTS = [
    *("wavlink.classification", "wavlink.localization", "wavlink.search.command", "wavlink.search.build"),
    *("wavlink.serving.command", "wavlink.backends.standalone", "processing.datasets.load"),
]


def requirements() -> list[Requirement]:
    lines = REQUIREMENTS.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_bounds_are_those_of_all_installations():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    declared = {line.strip() for group in groups for line in group.splitlines()}
    assert {str(requirement) for requirement in requirements()} <= declared
    assert not {"torch", "transformers"} & {requirement.name for requirement in requirements()}


@pytest.mark.parametrize("start", STARTS)
def test_what_runs_without_torch_imports_what_is_listed(start):
    listed = {requirement.name for requirement in requirements()}
    missing = {name: where for name, where in needed(start).items() if DISTRIBUTIONS.get(name, name) not in listed}
    assert not missing


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The programs of a virtual environment without torch."""
    folder = tmp_path_factory.mktemp("environment")
    source = folder / "source"
    for name in IN_SOURCE:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [programs / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", folder / "venv"],
        [*pip, "install", "--retries", "1", "-r", REQUIREMENTS],
        [*pip, "install", "--retries", "1", "--no-deps", source],
    ):
        try:
            done = run_process(command, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{command[-1]} is not installed within 15 minutes")
        if done.returncode:
            pytest.skip(f"{command[-1]} cannot be installed: {done.stderr.strip().splitlines()[-1][:300]}")
    return programs


CODE = """
import importlib.util, sys
import numpy as np, wavlink
assert not any(importlib.util.find_spec(name) for name in ("torch", "transformers"))
embedder = wavlink.Embedder(sys.argv[1])
np.savez("vectors.npz", sound=next(embedder.embed_files([sys.argv[2]])), texts=embedder.embed_text(["rain", "a dog"]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_an_environment_without_torch_runs_an_exported_model(environment, wavlink_folder, tmp_path, start):
    pytest.importorskip("onnxscript")
    from wavlink.backends.export import export

    export(wavlink_folder, "onnx")
    folder = environment.parent
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"the environment without torch takes {size:.0f} MB")
    (tmp_path / "sounds").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / f"sounds/{number}.wav", tone(300 * (number + 1), 0.5 + number, number), RATE)
    file = tmp_path / "sounds/1.wav"

    def run(*command, code: int = 0) -> subprocess.CompletedProcess:
        done = run_process(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done

    run(environment / "python", "-c", CODE, wavlink_folder, file)
    found, plain = np.load(tmp_path / "vectors.npz"), Embedder(wavlink_folder, backend="torch")
    np.testing.assert_allclose(found["sound"], next(plain.embed_files([file])), atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["texts"], plain.embed_text(["rain", "a dog"]), atol=1e-5, rtol=0)
    program = environment / "wavlink"
    run(program, "classify", file, "--model", wavlink_folder, "--labels", "dog", "rain")
    run(program, "index", "sounds", "--model", wavlink_folder, "--out", "index")
    hits = json.loads(run(program, "query", "index", "a dog barks", "--json").stdout)["results"]
    assert len(hits) == 3
    refused = run(program, "train", "quickstart", "--output_dir", "run", code=2).stderr
    assert refused.count("\n") == 1 and "is not installed: pip install" in refused
    serve = [program, "serve", wavlink_folder, "--index", "index", "--port", "0", "--json"]
    server = start(serve, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    text = ""
    while not text.endswith("}\n}\n"):
        text += server.stdout.readline() or pytest.fail(f"the server has ended: {text}")
    client = Client(int(json.loads(text)["results"]["url"].rpartition(":")[2]))
    status, document = client.post("/v1/embeddings", {"input": ["rain", "a dog"]})
    assert status == 200
    vectors = [row["embedding"] for row in document["data"]]
    np.testing.assert_allclose(vectors, found["texts"], atol=1e-5, rtol=0)
    assert client.post("/v1/search", {"text": "a dog barks"})[0] == 200
