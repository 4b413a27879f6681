"""The contracts over any input: clips of any length and form, texts of any script, any config, dim and order."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from modeling_wavlink import WavLinkConfig, WavLinkModel
from modeling_wavlink.configuration_wavlink import POOLINGS
from modeling_wavlink.losses_wavlink import LOSSES, truncate_embeddings
from processing import WavLinkFeatureExtractor
from processing.collator import AudioTextCollator
from tests.conftest import RATE, WORDS, tone
from tests.tiny_models import build
from wavlink.embedder import Embedder
from wavlink.training.grad_cache import backward

HOP = 160  # samples a mel frame


@dataclass(frozen=True)
class Clip:
    """A recipe of samples, short to read when an example fails."""

    kind: str
    samples: int
    level: float
    seed: int

    def array(self) -> np.ndarray:
        """float32 `[samples]`"""
        rng, time = np.random.default_rng(self.seed), np.arange(self.samples) / RATE
        made = {
            "noise": rng.uniform(-1, 1, self.samples),
            "tone": np.sin(2 * np.pi * rng.uniform(50, 7000) * time),
            "click": (np.arange(self.samples) == self.samples // 2) * 1.0,
            "constant": np.ones(self.samples),
            "silence": np.zeros(self.samples),
        }
        return (self.level * made[self.kind]).astype(np.float32)


# Around the frame, the STFT's window and its half, where edges differ, and anything to 1.3 s.
LENGTHS = st.one_of(
    st.integers(1, 3 * HOP), st.sampled_from([200, 399, 400, 401, 480, 481, 3200]), st.integers(1, 20800)
)
KINDS = st.sampled_from(["noise", "tone", "click", "constant", "silence"])
CLIPS = st.builds(Clip, KINDS, LENGTHS, st.sampled_from([1.0, 0.1, 1e-4]), st.integers(0, 99))
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),  # to over the limit of 32 tokens
    st.text(max_size=30),  # of every script, with control characters, without halves of surrogate pairs
)


@torch.no_grad()
def embedded(model, processor, clips, **options) -> torch.Tensor:
    inputs = processor(audio=clips, sampling_rate=RATE, return_tensors="pt", **options)
    return model.get_audio_features(**inputs).pooler_output


@torch.no_grad()
def read(model, processor, texts) -> torch.Tensor:
    return model.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output


def same(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape and torch.isfinite(actual).all()
    assert (actual - expected).abs().max() < tolerance


def unit(vectors, tolerance=1e-5):
    assert (vectors.float().norm(dim=-1) - 1).abs().max() < tolerance


@given(clips=st.lists(CLIPS, min_size=1, max_size=5), data=st.data())
def test_one_clip_one_vector(sharp_model, processor, clips, data):
    """Whatever its batch-mates, their order and the padding."""
    arrays = [clip.array() for clip in clips]
    alone = torch.cat([embedded(sharp_model, processor, [array]) for array in arrays])
    unit(alone)
    order = data.draw(st.permutations(range(len(clips))), label="order")
    same(embedded(sharp_model, processor, [arrays[place] for place in order]), alone[list(order)])
    multiple = data.draw(st.integers(1, 300), label="pad_to_multiple_of")
    padded = embedded(sharp_model, processor, arrays, audio_kwargs={"pad_to_multiple_of": multiple})
    same(padded, alone)


@settings(max_examples=4)
@given(clips=st.lists(CLIPS, min_size=2, max_size=3))
def test_one_clip_one_vector_as_padded_as_in_the_paper(sharp_model, processor, clips):
    arrays = [clip.array() for clip in clips]
    alone = torch.cat([embedded(sharp_model, processor, [array], padding="max_length") for array in arrays])
    same(embedded(sharp_model, processor, arrays[::-1], padding="max_length").flip(0), alone)


@given(clip=CLIPS)
def test_the_same_samples_in_any_form_are_one_clip(model, processor, clip):
    array = clip.array()
    expected = embedded(model, processor, array)
    forms = [array.astype(np.float64), array.tolist(), [array], torch.from_numpy(array), array.copy()[::-1][::-1]]
    for form in forms:
        assert torch.equal(embedded(model, processor, form), expected)
    half = array.astype(np.float16)
    assert torch.equal(embedded(model, processor, half), embedded(model, processor, half.astype(np.float32)))


@given(clips=st.lists(CLIPS, min_size=1, max_size=4), dtype=st.sampled_from(["bfloat16", "float16"]))
def test_lower_precision_still_gives_directions(model, processor, clips, dtype):
    dtype = getattr(torch, dtype)
    inputs = processor(audio=[clip.array() for clip in clips], sampling_rate=RATE, return_tensors="pt")
    expected = embedded(model, processor, [clip.array() for clip in clips])
    model.to(dtype)
    with torch.no_grad():
        found = model.get_audio_features(**inputs.to(dtype)).pooler_output
    model.float()
    unit(found, 0.02)
    assert (found.float() * expected).sum(-1).min() > 0.99


@given(clips=st.lists(CLIPS, min_size=1, max_size=6), padding=st.sampled_from(["longest", False]))
def test_a_clip_has_a_frame_each_10_ms_of_its_own(clips, padding):
    extractor = WavLinkFeatureExtractor()
    frames = [-(-clip.samples // HOP) for clip in clips]
    arrays = [clip.array() for clip in clips]
    batch = extractor(arrays, sampling_rate=RATE, padding=padding)
    for row, (array, count) in enumerate(zip(arrays, frames, strict=True)):
        (alone,) = extractor(array, sampling_rate=RATE, padding=False).input_features
        assert alone.shape == (80, count) and np.isfinite(alone).all()
        np.testing.assert_array_equal(np.asarray(batch.input_features[row])[:, :count], alone)
    if padding:
        assert batch.input_features.shape == (len(clips), 80, max(frames))
        np.testing.assert_array_equal(batch.input_features_mask.sum(1), frames)


@settings(max_examples=12)
@given(
    clips=st.lists(st.one_of(CLIPS, st.none()), min_size=1, max_size=8),
    lookahead=st.integers(1, 9),
    fast=st.booleans(),
)
def test_an_embedder_gives_each_file_its_own_vector_or_error(sharp_model, processor, clips, lookahead, fast):
    embedder = Embedder(sharp_model, processor, fast_kernels=fast)
    files = [b"no sound" if clip is None else {"array": clip.array(), "sampling_rate": RATE} for clip in clips]
    for found, clip in zip(embedder.embed_files(files), clips, strict=True):
        if clip is None:
            assert isinstance(found, ValueError)
        else:
            same(torch.from_numpy(found)[None], embedded(sharp_model, processor, clip.array()))
    arrays = [clip.array() for clip in clips if clip]
    vectors = list(embedder.embed_clips(arrays, lookahead=lookahead))
    assert len(vectors) == len(arrays)
    for vector, array in zip(vectors, arrays, strict=True):
        same(torch.from_numpy(vector)[None], embedded(sharp_model, processor, array))


@pytest.mark.parametrize(("tower", "pooling"), [("bert", "mean"), ("clip", "eos"), ("modernbert", "cls")])
def test_one_text_one_vector(tower, pooling, request):
    model, processor = build(request, tower, text_pooling=pooling)

    @settings(max_examples=15)
    @given(texts=st.lists(TEXTS, min_size=1, max_size=5), data=st.data())
    def check(texts, data):
        alone = torch.cat([read(model, processor, [text]) for text in texts])
        unit(alone)
        order = data.draw(st.permutations(range(len(texts))))
        same(read(model, processor, [texts[place] for place in order]), alone[list(order)])

    check()


@given(text=st.text(max_size=10), number=st.integers(0, 2), half=st.integers(0xD800, 0xDFFF), place=st.integers(0, 10))
def test_half_a_surrogate_pair_is_no_text(processor, text, number, half, place):
    texts = ["a dog", "a cat", "rain"]
    texts[number] = text[:place] + chr(half) + text[place:]
    with pytest.raises(ValueError, match=rf"text {number} .*holds half of a surrogate pair"):
        processor(text=texts, return_tensors="pt")


SHAPES = st.lists(st.integers(1, 4), max_size=2)
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@given(shape=SHAPES, width=st.integers(1, 96), dtype=st.sampled_from(list(DTYPES)), data=st.data())
def test_a_slice_of_a_slice_is_the_slice(shape, width, dtype, data):
    seed, factor = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([1e-3, 1.0, 50.0]))
    inner = data.draw(st.integers(1, width), label="inner")
    outer = data.draw(st.integers(inner, width), label="outer")
    vectors = torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors, tolerance = (vectors + vectors.sign() * 0.1).to(dtype), DTYPES[dtype]  # none near zero
    cut = truncate_embeddings(vectors, inner)
    assert cut.shape == (*shape, inner) and cut.dtype == dtype
    unit(cut, max(tolerance, 1e-6))
    same(truncate_embeddings(truncate_embeddings(vectors, outer), inner), cut, tolerance)
    same(truncate_embeddings(factor * vectors, inner), cut, tolerance)
    expected = vectors[..., :inner].double()
    same(cut.double(), expected / (expected**2).sum(-1, keepdim=True).sqrt(), tolerance)


@given(dim=st.integers(-5, 40))
def test_a_model_cuts_at_trained_dims_alone(model, dim):
    vectors = torch.randn(3, model.config.projection_dim)
    if dim in model.config.matryoshka_dims:
        unit(model.truncate_embeddings(vectors, dim))
    else:
        with pytest.raises(ValueError, match=f"dims this model was trained with, .* got {dim}$"):
            model.truncate_embeddings(vectors, dim)


CONFIGS = st.fixed_dictionaries(
    {
        "projection_dim": st.integers(1, 48),
        "loss_type": st.sampled_from(list(LOSSES)),
        "pooling": st.sampled_from(POOLINGS),
        "text_pooling": st.sampled_from(["mean", "cls"]),
        "logit_scale_init_value": st.floats(-3, 3),
        "logit_scale_max": st.floats(0.5, 200),
        "initializer_range": st.floats(1e-3, 0.5),
    }
)


@settings(max_examples=8, phases=[Phase.generate])  # loading is slow, and to shrink an example takes minutes
@given(fields=CONFIGS, pooled=st.integers(1, 3), clip=CLIPS, text=TEXTS, data=st.data())
def test_what_is_saved_is_what_is_loaded(whisper_folder, bert_folder, processor, tmp_path_factory, **drawn):
    fields, data = drawn["fields"], drawn["data"]
    width = fields["projection_dim"]
    dims = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=4, unique=True), label="matryoshka_dims")
    pooled = {"frame_pooling": drawn["pooled"], "frame_pooling_layer": data.draw(st.sampled_from([0, 1, [0, 1]]))}
    fields |= {"matryoshka_dims": dims} | pooled
    if fields["loss_type"] == "info_nce":
        fields["label_smoothing"] = data.draw(st.floats(0, 0.9), label="label_smoothing")
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(bert_folder), **fields).eval()
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    loaded = WavLinkModel.from_pretrained(folder).eval()
    assert loaded.config.to_diff_dict() == WavLinkConfig.from_pretrained(folder).to_diff_dict()
    for name, value in fields.items():
        assert getattr(loaded.config, name, None) == value or name in pooled
    assert {name: weight.tolist() for name, weight in loaded.state_dict().items()} == {
        name: weight.tolist() for name, weight in model.state_dict().items()
    }
    array, text = drawn["clip"].array(), drawn["text"]
    # Not to the last bit: weights lie elsewhere in memory, and kernels choose by alignment.
    same(embedded(loaded, processor, array), embedded(model, processor, array), 1e-6)
    same(read(loaded, processor, [text]), read(model, processor, [text]), 1e-6)
    for dim in dims:
        unit(loaded.truncate_embeddings(embedded(loaded, processor, array), dim))


@settings(max_examples=10)
@given(
    captions=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), min_size=2, max_size=6),
    micro=st.integers(1, 5),
    loss_type=st.sampled_from(list(LOSSES)),
)
def test_any_micro_batch_has_the_gradients_of_the_whole(model, processor, captions, micro, loss_type):
    model.config.loss_type = loss_type
    model.freeze_constants()
    rows = [
        {"audio": {"array": tone(150 * (n + 1), 0.05 + 0.06 * n, n), "sampling_rate": RATE}, "captions": texts}
        for n, texts in enumerate(captions)
    ]
    batch, found = AudioTextCollator(processor, all_captions=True)(rows), []
    for size in (0, micro):
        model.zero_grad()
        loss = backward(Accelerator(cpu=True), model, batch, size)
        found.append([loss, *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)])
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-4)
