"""Codes by hand, and an index whose scores and rows are those of a full matrix of cosines."""

import numpy as np
import pytest
import sentence_transformers
import torch
from packaging.version import Version
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

from modeling_wavlink.losses_wavlink import truncate_embeddings
from tests.conftest import RATE, WORDS, tone

pytest.importorskip("faiss")
from wavlink.search import quantization as vectors  # noqa: E402
from wavlink.search.quantization import STORAGES, FlatIndex, bytes_per_vector, decode, encode  # noqa: E402

as_measured = pytest.mark.skipif(
    Version(sentence_transformers.__version__) < Version("6.2"),
    reason="compared with the quantisation of 6.2, which 5.4 has not",
)
DIMS = (5, 16, 48, 64, 128)  # FAISS computes int8 by other instructions where 32 divides them


@pytest.fixture(scope="module")
def collection() -> np.ndarray:
    """700 vectors in clusters, of norms other than 1, and some of them twice."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(25, 128))
    rows = centers[rng.integers(25, size=700)] + rng.normal(size=(700, 128))
    rows[300:320] = rows[:20]
    return (rows * rng.uniform(0.1, 9, (700, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(12, 128)).astype(np.float32)


def index_of(rows: np.ndarray, dim: int, storage: str) -> FlatIndex:
    index = FlatIndex(dim, storage)
    index.add(encode(rows, dim, storage))
    return index


def cosines(queries: np.ndarray, rows: np.ndarray, dim: int, storage: str) -> np.ndarray:
    """`[Q, N]` float64, from nothing but `decode`."""
    cut = queries[:, :dim].astype(np.float64)
    decoded = decode(encode(rows, dim, storage), dim, storage).astype(np.float64)
    return cut / np.linalg.norm(cut, axis=1, keepdims=True) @ decoded.T


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows by score, of equal ones the lower, where equal means to fp32."""
    return np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize(
    ("storage", "bytes_of_512", "bytes_of_12"),
    [("fp32", 2048, 48), ("fp16", 1024, 24), ("int8", 512, 12), ("binary", 64, 2)],
)
def test_bytes_are_those_of_the_codes(storage, bytes_of_512, bytes_of_12):
    assert bytes_per_vector(512, storage) == bytes_of_512
    assert bytes_per_vector(12, storage) == bytes_of_12
    assert encode(np.ones((3, 12)), 12, storage).nbytes == 3 * bytes_of_12


def test_codes_by_hand():
    vector = np.array([[3, -4, 0, 0, 12]], np.float32)  # cut to two dims: 0.6, -0.8
    np.testing.assert_allclose(encode(vector, 2, "fp32"), [[0.6, -0.8]], rtol=1e-6)
    np.testing.assert_array_equal(encode(vector, 2, "fp16"), np.array([[0.6, -0.8]], np.float16))
    np.testing.assert_array_equal(encode(vector, 2, "int8"), [[76, -102]])  # 127 x 0.6 = 76.2, 127 x 0.8 = 101.6
    np.testing.assert_array_equal(encode(vector, 5, "binary"), [[0b10001000]])  # a zero is no 1
    back = np.array([[76, -102]]) / np.sqrt(76**2 + 102**2)
    np.testing.assert_allclose(decode(np.array([[76, -102]], np.int8), 2, "int8"), back, rtol=1e-6)
    signs = np.array([[1, -1, -1, -1, 1]]) / np.sqrt(5)
    np.testing.assert_allclose(decode(np.array([[0b10001000]], np.uint8), 5, "binary"), signs, rtol=1e-6)


def test_int8_reaches_six_standard_deviations():
    unit = np.zeros((1, 144))
    unit[0, :3] = 0.5, 0.25, -0.75  # the range is 6 / 12 = 0.5
    unit[0, 3] = np.sqrt(1 - (unit**2).sum())
    assert encode(unit, 144, "int8")[0, :3].tolist() == [127, 64, -127]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("storage", "worst"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 0.02)])
def test_decoded_vectors_are_near_the_nested_ones(dim, storage, worst, collection):
    decoded = decode(encode(collection, dim, storage), dim, storage)
    nested = truncate_embeddings(torch.from_numpy(collection), dim).numpy()
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, rtol=1e-6)
    assert np.linalg.norm(decoded - nested, axis=1).max() < worst


@as_measured
@pytest.mark.parametrize("dim", [5, 64])
def test_binary_is_ubinary_of_sentence_transformers(dim, collection):
    np.testing.assert_array_equal(
        encode(collection, dim, "binary"), quantize_embeddings(collection[:, :dim], "ubinary")
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_codes_do_not_depend_on_the_others(storage, collection, monkeypatch):
    whole = encode(collection, 48, storage)
    monkeypatch.setattr(vectors, "_ROWS", 64)
    np.testing.assert_array_equal(encode(collection, 48, storage), whole)
    np.testing.assert_array_equal(encode(collection[9:10] * 8, 48, storage), whole[9:10])
    np.testing.assert_array_equal(decode(whole, 48, storage)[9:10], decode(whole[9:10], 48, storage))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("storage", STORAGES)
def test_full_ranking_equals_the_cosine_matrix(dim, storage, collection, queries):
    expected = cosines(queries, collection, dim, storage)
    scores, rows = index_of(collection, dim, storage).search(queries, len(collection))
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(len(collection)), (len(queries), 1)))
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, 1), atol=3e-7)
    assert (np.diff(scores) <= 0).all()
    assert (np.diff(rows)[np.diff(scores) == 0] > 0).all()


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_top_10_equals_brute_force(dim, storage, collection, queries):
    expected = cosines(queries, collection, dim, storage)
    scores, rows = index_of(collection, dim, storage).search(queries, 10)
    np.testing.assert_allclose(scores, -np.sort(-expected)[:, :10], atol=3e-7)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, 1), atol=3e-7)


def test_faiss_gets_integer_int8_queries(collection, queries):
    """On some machines it truncates queries to integers."""
    integers = index_of(collection, 48, "int8")._faiss_queries(encode(queries, 48, "fp32"))
    np.testing.assert_array_equal(integers, np.rint(integers))
    np.testing.assert_array_equal(abs(integers).max(1), 127)


def test_rescoring_finds_more_by_signs(collection, queries):
    expected, index = best(cosines(queries, collection, 128, "binary"), 10), index_of(collection, 128, "binary")
    bits = np.sign(queries) @ np.sign(collection).T  # 128 minus twice the Hamming distance
    results = [best(bits, 10), index.search(queries, 10, 8)[1], index.search(queries, 10, 70)[1]]
    recall = [np.mean([np.isin(a, b).mean() for a, b in zip(rows, expected, strict=True)]) for rows in results]
    assert recall[0] + 0.1 < recall[1] < recall[2] == 1


@pytest.mark.parametrize("storage", STORAGES)
def test_results_do_not_depend_on_order_or_batches(storage, collection, queries):
    """Every vector three times: which of its copies are found, and in what order, depends on their rows alone."""
    tripled = np.concatenate([collection[:300]] * 3)
    order = np.random.default_rng(2).permutation(len(tripled))
    scores, rows = index_of(tripled, 16, storage).search(queries, 10, 1)
    portions = FlatIndex(16, storage)
    for part in np.array_split(encode(tripled, 16, storage), 7):
        portions.add(part)
    again = [np.concatenate(parts) for parts in zip(*(portions.search(q[None], 10, 1) for q in queries), strict=True)]
    np.testing.assert_array_equal(scores, again[0])
    np.testing.assert_array_equal(rows, again[1])
    shuffled_scores, shuffled = index_of(tripled[order], 16, storage).search(queries, 10, 1)
    np.testing.assert_array_equal(scores, shuffled_scores)
    codes = encode(tripled, 16, storage)
    np.testing.assert_array_equal(codes[rows], codes[order][shuffled])


@pytest.mark.parametrize("storage", STORAGES)
def test_ties_are_in_row_order(storage, collection, queries):
    """More of one vector than there are candidates."""
    index = index_of(np.concatenate([-queries[:1]] * 5 + [queries[:1]] * 500 + [collection]), 64, storage)
    scores, rows = index.search(queries[:1], 10, 2)
    np.testing.assert_array_equal(rows, [np.arange(5, 15)])
    assert (scores == scores[0, 0]).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_fewer_than_k(storage, collection, queries):
    index = FlatIndex(16, storage)
    assert len(index) == 0
    scores, rows = index.search(queries, 3)
    assert (scores == -np.inf).all() and (rows == -1).all() and scores.shape == rows.shape == (12, 3)
    index.add(encode(collection[:2], 16, storage))
    index.add(encode(collection[:0], 16, storage))
    assert len(index) == 2
    scores, rows = index.search(queries, 3)
    assert (np.sort(rows) == [-1, 0, 1]).all() and (rows[:, 2] == -1).all()
    assert np.isfinite(scores[:, :2]).all() and (scores[:, 2] == -np.inf).all()
    assert index.search(queries[:0], 3)[1].shape == (0, 3)


def test_results_do_not_depend_on_query_blocks(collection, queries, monkeypatch):
    index = index_of(collection, 48, "binary")
    expected = index.search(queries, 10)
    monkeypatch.setattr(vectors, "_ELEMENTS", 48 * 200)
    for results, whole in zip(index.search(queries, 10), expected, strict=True):
        np.testing.assert_array_equal(results, whole)


def test_huge_and_tiny_vectors_have_directions():
    for scale in (1e-30, 1e30):
        np.testing.assert_array_equal(encode(np.float32([[scale, -scale]]), 2, "int8"), [[90, -90]])


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
def test_vectors_without_a_direction_are_refused(rows, message, collection):
    for storage in STORAGES:
        with pytest.raises(ValueError, match=message):
            encode(rows, 16, storage)
    with pytest.raises(ValueError, match=message):
        index_of(collection, 16, "int8").search(rows, 1)


def test_wrong_arguments(collection, queries):
    with pytest.raises(ValueError, match="no storage 'int4'; there are fp32, fp16, int8, binary"):
        encode(collection, 16, "int4")
    with pytest.raises(ValueError, match="dim must be 1 or more, not 0"):
        FlatIndex(0, "int8")
    index = index_of(collection, 16, "int8")
    for k, rescore in ((0, 8), (10, 0)):
        with pytest.raises(ValueError, match="k and rescore must be 1 or more"):
            index.search(queries, k, rescore)


@pytest.mark.parametrize(
    "codes",
    [np.ones((2, 16), np.float32), np.ones((2, 16), np.uint8), np.ones((2, 15), np.int8), np.ones(16, np.int8)],
)
def test_codes_of_another_kind_are_refused(codes):
    for use in (FlatIndex(16, "int8").add, lambda codes: decode(codes, 16, "int8")):
        with pytest.raises(ValueError, match=r"int8 codes of 16 dims are \[N, 16\] int8"):
            use(codes)


def test_invalid_codes_add_nothing(collection, monkeypatch):
    monkeypatch.setattr(vectors, "_ROWS", 64)
    codes, index = encode(collection, 16, "int8"), FlatIndex(16, "int8")
    codes[500] = 0
    with pytest.raises(ValueError, match="vector 500"):
        index.add(codes)
    assert len(index) == 0


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


def fixed_ranges(dim: int) -> np.ndarray:
    """Fixed ranges for int8 codes: float `[2, dim]`."""
    return np.outer([-1, 1], np.full(dim, min(1, 6 / dim**0.5)))


def test_sentence_transformer_cuts_normalises_and_then_quantises(door, clips, texts):
    """In this order, for sounds as for texts."""
    for inputs in (clips, texts):
        full = door.encode(inputs)
        cut = truncate_embeddings(torch.from_numpy(full), 16).numpy()
        options = {"truncate_dim": 16, "normalize_embeddings": True}
        np.testing.assert_allclose(door.encode(inputs, **options), cut, atol=1e-6)
        bits = door.encode(inputs, precision="ubinary", **options)
        np.testing.assert_array_equal(bits, encode(full, 16, "binary"))
        signed = door.encode(inputs, precision="binary", **options)
        np.testing.assert_array_equal(signed.view(np.uint8) ^ 128, bits)
        codes = door.encode(inputs, precision="int8", **options)
        steps = codes.astype(int) - quantize_embeddings(cut, "int8")
        assert (codes.shape, codes.dtype) == ((len(inputs), 16), np.int8)
        assert abs(steps).max() <= 1 and (steps != 0).mean() < 0.1  # the last bits of fp32, at the edge of a step


@as_measured
def test_int8_of_sentence_transformer_is_measured_on_what_is_encoded_at_once(door, clips):
    """Why the ranges are given: codes of two calls do not compare, and one clip alone has none."""
    together = door.encode(clips, precision="int8")
    assert abs(door.encode(clips[:5], precision="int8").astype(int) - together[:5]).max() > 20
    with pytest.raises(ValueError, match="single embedding"):
        door.encode(clips[:1], precision="int8")
    cut = door.encode(clips, truncate_dim=16, normalize_embeddings=True)
    alone = quantize_embeddings(cut[:1], "int8", ranges=fixed_ranges(16))
    np.testing.assert_array_equal(alone, quantize_embeddings(cut, "int8", ranges=fixed_ranges(16))[:1])
    back = (alone + 128.5) * 2 * fixed_ranges(16)[1] / 255 - fixed_ranges(16)[1]
    np.testing.assert_allclose(back, cut[:1], atol=fixed_ranges(16)[1, 0] / 255 + 1e-6)


@as_measured
@pytest.mark.parametrize("dim", [16, 32])
def test_semantic_search_faiss_finds_what_we_find_by_signs(dim, door, clips, texts):
    corpus = door.encode(clips, truncate_dim=dim, precision="ubinary")
    for inputs in (texts, clips):
        queries = door.encode(inputs, truncate_dim=dim, normalize_embeddings=True)
        results, _ = semantic_search_faiss(
            queries, corpus_embeddings=corpus, corpus_precision="ubinary", top_k=5, rescore_multiplier=3
        )
        index = FlatIndex(dim, "binary")
        index.add(corpus)
        scores, rows = index.search(queries, 5, 3)
        theirs = [[hit["corpus_id"] for hit in hits] for hits in results]
        cosines = (queries @ decode(corpus, dim, "binary").T)[np.arange(len(queries))[:, None], theirs]
        np.testing.assert_allclose(cosines, scores, atol=1e-6)  # of equal signs they may name another


@as_measured
def test_semantic_search_faiss_retrieves_by_eight_bits(door, clips, texts):
    options = {"truncate_dim": 16, "normalize_embeddings": True}
    ranges, vectors = fixed_ranges(16), door.encode(clips, **options)
    corpus = quantize_embeddings(vectors, "uint8", ranges=ranges)
    for inputs in (texts, clips):
        queries = door.encode(inputs, **options)
        results, _ = semantic_search_faiss(
            queries,
            corpus_embeddings=corpus,
            corpus_precision="uint8",
            ranges=ranges,
            top_k=5,
            rescore_multiplier=3,
        )
        expected = queries @ vectors.T
        index = FlatIndex(16, "int8")
        index.add(encode(vectors, 16, "int8"))
        ours = index.search(queries, 5)[1]
        for rows in (np.array([[hit["corpus_id"] for hit in hits] for hits in results]), ours):
            lost = -np.sort(-expected)[:, :5] - np.take_along_axis(expected, rows, 1)
            assert abs(lost).max() < 0.02
        assert inputs is texts or (ours[:, 0] == np.arange(len(clips))).all()
