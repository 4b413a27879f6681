"""Cosines of stored vectors by hand, and what sentence-transformers stores of a WavLink."""

import numpy as np
import pyarrow
import pytest
import sentence_transformers
import torch
from packaging.version import Version
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings

from modeling_wavlink.losses_wavlink import truncate_embeddings
from tests.conftest import RATE, WORDS, tone
from tests.index_files import manifest
from wavlink.search.rows import fixed_size_list
from wavlink.search.scoring import Best, truncated, unit, vectors_of

as_measured = pytest.mark.skipif(
    Version(sentence_transformers.__version__) < Version("6.2"),
    reason="compared with the quantisation of 6.2, which 5.4 has not",
)


@pytest.fixture(scope="module")
def collection() -> np.ndarray:
    """700 vectors of norms other than 1."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(700, 128)) * rng.uniform(0.1, 9, (700, 1))).astype(np.float32)


def test_vectors_by_hand():
    vector = np.array([[3, -4, 0, 0, 12]], np.float32)  # cut to two dims: 0.6, -0.8
    np.testing.assert_allclose(truncated(vector, 2), [[0.6, -0.8]], rtol=1e-6)
    np.testing.assert_allclose(truncated(vector, 5), vector / 13, rtol=1e-6)
    np.testing.assert_allclose(unit(vector), vector / 13, rtol=1e-6)
    np.testing.assert_array_equal(unit(np.zeros((1, 3), np.float32)), [[0, 0, 0]])


@pytest.mark.parametrize("dim", [5, 16, 48, 128])
def test_truncated_vectors_are_the_nested_ones(dim, collection):
    found, nested = truncated(collection, dim), truncate_embeddings(torch.from_numpy(collection), dim).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, nested, atol=1e-6)
    np.testing.assert_array_equal(truncated(collection[9:10], dim), found[9:10])  # it does not depend on the others
    np.testing.assert_allclose(truncated(found, 5), truncated(collection, 5), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_vectors_have_directions(scale):
    np.testing.assert_allclose(truncated(np.float32([[scale, -scale]]), 2), [[0.5**0.5, -(0.5**0.5)]], rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones(16), r"\[N, 16 or more\], not \[16\]"),
        (np.ones((2, 15)), r"\[N, 16 or more\], not \[2, 15\]"),
        (np.eye(20), "vector 16 has no direction in 16 dims"),
        (np.where(np.eye(3, 16), np.nan, 1), "vector 0"),
        (np.array([[1.0] * 16, [np.inf] * 16]), "vector 1"),
    ],
)
def test_vectors_without_a_direction_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        truncated(rows, 16)


def test_no_dims_are_refused(collection):
    with pytest.raises(ValueError, match="dim must be 1 or more, not 0"):
        truncated(collection, 0)


@pytest.mark.parametrize(("storage", "worst"), [("fp32", 1e-7), ("fp16", 1e-3)])
def test_columns_hold_the_vectors(storage, worst, collection):
    cut = truncated(collection, 12)
    column = fixed_size_list(cut, manifest(storage))
    chunks = pyarrow.chunked_array([column.slice(0, 3), column.slice(3, 0), column.slice(3)])
    for each in (column, chunks):
        found = vectors_of(each)
        assert found.dtype == np.float32
        assert np.linalg.norm(found - cut, axis=1).max() < worst
    np.testing.assert_array_equal(vectors_of(column.slice(5, 2)), vectors_of(column)[5:7])
    assert vectors_of(column.slice(0, 0)).shape == vectors_of(chunks.slice(0, 0)).shape == (0, 12)


def test_best_scores_of_blocks_are_those_of_all():
    scores = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    best = Best(3, 7)
    assert (best.scores == -np.inf).all()
    for start, end in ((0, 2), (2, 2), (2, 30), (30, 31), (31, 50)):
        best.add(scores[:, start:end])
    np.testing.assert_array_equal(best.scores, -np.sort(-scores, 1)[:, :7])


# --- sentence-transformers


@pytest.fixture
def door(sharp_model, processor, tmp_path) -> SentenceTransformer:
    sharp_model.save_pretrained(tmp_path / "wavlink")
    processor.save_pretrained(tmp_path / "wavlink")
    return SentenceTransformer(str(tmp_path / "wavlink"), trust_remote_code=True, device="cpu")


@pytest.fixture
def clips() -> list[dict]:
    return [{"array": tone(120 * 1.2**i, 0.2 + 0.05 * i, i), "sampling_rate": RATE} for i in range(14)]


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 3 + i % 4, replace=False)) for i in range(11)]


def test_sentence_transformer_cuts_normalises_and_then_quantises(door, clips, texts):
    """In this order, for sounds as for texts."""
    for inputs in (clips, texts):
        cut = truncated(door.encode(inputs), 16)
        options = {"truncate_dim": 16, "normalize_embeddings": True}
        np.testing.assert_allclose(door.encode(inputs, **options), cut, atol=1e-6)
        bits = door.encode(inputs, precision="ubinary", **options)
        np.testing.assert_array_equal(bits, np.packbits(cut > 0, axis=1))
        signed = door.encode(inputs, precision="binary", **options)
        np.testing.assert_array_equal(signed.view(np.uint8) ^ 128, bits)
        codes = door.encode(inputs, precision="int8", **options)
        steps = codes.astype(int) - quantize_embeddings(cut, "int8")
        assert (codes.shape, codes.dtype) == ((len(inputs), 16), np.int8)
        assert abs(steps).max() <= 1 and (steps != 0).mean() < 0.1  # the last bits of fp32, at the edge of a step


@as_measured
def test_int8_of_sentence_transformer_is_measured_on_what_is_encoded_at_once(door, clips):
    """Codes of two calls do not compare, and one clip alone has none."""
    together = door.encode(clips, precision="int8")
    assert abs(door.encode(clips[:5], precision="int8").astype(int) - together[:5]).max() > 20
    with pytest.raises(ValueError, match="single embedding"):
        door.encode(clips[:1], precision="int8")
