"""One tiny model and one server of it for all tests of a module."""

import pytest

from tests.conftest import tone
from tests.helpers import wav
from tests.served import serving
from wavlink.embedder import Embedder
from wavlink.search.index import Index


@pytest.fixture(scope="session")
def embedder(built_model, processor) -> Embedder:
    """The tiny WavLink with a calibration."""
    embedder = Embedder(built_model[0], processor)
    fit = {"slope": 5.0, "intercept": -1.0}
    embedder.model.config.match_calibration = {"prior": 0.1, "dims": {"32": fit, "16": fit}}
    embedder.name = "tiny"
    return embedder


@pytest.fixture(scope="session")
def index_folder(embedder, tmp_path_factory):
    """An index of eight tones."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "sounds").mkdir()
    for number in range(8):
        (folder / f"sounds/{number}.wav").write_bytes(wav(tone(200 * (number + 1), 0.5, number)))
    Index.build(folder / "sounds", folder / "index", embedder, progress=False)
    return folder / "index"


@pytest.fixture(scope="module")
def client(embedder, index_folder):
    """A client of a server with an index."""
    with serving(embedder, lambda batched: Index.open(index_folder, batched), max_seconds=40) as client:
        yield client
