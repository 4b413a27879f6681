"""The frame head: steps of a recording, the file beside its model, and where `locate` uses it."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wavlink import Embedder, frame_head, locate
from wavlink.defaults import FRAME_HEAD
from wavlink.frame_head import (
    LAYERS,
    STEP,
    Fitted,
    FrameHead,
    encode_steps,
    read_frame_head,
    step_states,
    write_frame_head,
)
from wavlink.long_recordings import encode_recording
from wavlink.probability import Logistic
from wavlink.span_search import frame_head_of

from ..conftest import RATE, tone
from ..sound_bytes import encoded


@pytest.fixture(scope="module")
def plain_folder(built_model, processor, tmp_path_factory):
    folder, (model, _) = tmp_path_factory.mktemp("plain"), built_model
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(plain_folder, tmp_path_factory):
    """A tiny model with a random head beside it."""
    folder = tmp_path_factory.mktemp("frames") / "model"
    shutil.copytree(plain_folder, folder)
    embedder = Embedder(str(folder))
    torch.manual_seed(0)
    states = step_states(embedder, [tone(440, 1.0)]).shape[-1]
    head = FrameHead(states, embedder.dims, hidden=16, kernel=3)
    write_frame_head(folder, Fitted(head.eval(), Logistic(20.0, -4.0, 0.005)), embedder.revision, "tones")
    return folder


@pytest.fixture(scope="module")
def embedder(folder):
    return Embedder(str(folder))


@pytest.fixture(scope="module")
def head(folder, embedder):
    return read_frame_head(folder, embedder).head


@pytest.mark.parametrize(("seconds", "steps"), [(10.0, 50), (1.0, 5), (0.05, 1), (0.52, 3)])
def test_a_clip_has_a_state_each_step(embedder, seconds, steps):
    states = step_states(embedder, [tone(440, seconds)] * 2)
    width = LAYERS * embedder.model.config.audio_config.hidden_size
    assert states.shape == (2, steps, width) and states.isfinite().all()
    assert torch.equal(states[0], states[1])


def test_states_are_means_of_the_encoders_frames(embedder):
    clip = tone(440, 2.0)
    inputs = embedder.processor(audio=clip, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        output = embedder.model.get_audio_features(**inputs, output_frames=True, output_hidden_states=True)
    width = embedder.model.config.audio_config.hidden_size
    last = step_states(embedder, [clip])[0, :, -width:]
    frames = output.last_hidden_state[0].unflatten(0, (10, -1)).mean(1)  # 2 s in 10 steps
    assert torch.allclose(last, frames, atol=1e-5)


def test_clip_vectors_stay_as_they_are(plain_folder, embedder):
    without = Embedder(str(plain_folder))
    clips = [tone(300, 0.7), tone(900, 1.2)]
    for one, other in zip(without.embed_clips(clips), embedder.embed_clips(clips), strict=True):
        assert np.array_equal(one, other)


def test_a_recording_is_cut_into_steps(embedder, head):
    recording = encode_steps(embedder, head, encoded(tone(440, 21.4)))
    assert recording.hop == STEP and recording.duration == pytest.approx(21.4)
    assert recording.window == pytest.approx(3 * STEP)
    assert np.allclose(np.diff(recording.starts), STEP)
    assert len(recording.vectors) == len(recording.starts) == len(recording.ends) == 107 - 2
    assert np.allclose(np.linalg.norm(recording.vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.5, 9.99, 10.0, 10.1])
def test_recordings_of_any_length_have_steps(embedder, head, seconds):
    recording = encode_steps(embedder, head, encoded(tone(440, seconds)))
    assert recording.duration == pytest.approx(seconds, abs=1e-3) and np.isfinite(recording.vectors).all()
    assert (recording.starts < recording.ends).all()


def test_a_callers_autocast_changes_no_step(embedder, head):
    expected = encode_steps(embedder, head, encoded(tone(440, 3.0))).vectors
    with torch.autocast("cpu", torch.bfloat16):
        assert np.allclose(encode_steps(embedder, head, encoded(tone(440, 3.0))).vectors, expected, atol=1e-5)


def test_overlapping_parts_weigh_more_near_their_middle(embedder, head, monkeypatch):
    """Steps 40 to 49 are in both parts: there the first one's weights fall 10 to 1, the second one's rise 1 to 10."""
    one, other = np.eye(2, embedder.dims, dtype=np.float32)
    parts = [(0.0, 10.0, np.tile(one, (50, 1))), (8.0, 18.0, np.tile(other, (50, 1)))]
    monkeypatch.setattr(frame_head, "_encoded_parts", lambda *arguments: iter(parts))
    vectors = encode_steps(embedder, head, b"").vectors
    assert np.allclose(vectors[:38], one) and np.allclose(vectors[50:], other)
    steps = [np.array([10 - number, 1 + number]) / np.hypot(10 - number, 1 + number) for number in range(3)]
    assert np.allclose(vectors[40, :2], sum(steps) / np.linalg.norm(sum(steps)))
    assert vectors[43, 0] > vectors[43, 1] and vectors[44, 0] < vectors[44, 1]


def test_locate_uses_the_head_only_where_nothing_else_is_asked(folder, embedder, monkeypatch):
    sound = encoded(tone(440, 12.0))
    used = []
    steps = "wavlink.frame_head.encode_steps"
    monkeypatch.setattr(steps, lambda *arguments: used.append(1) or encode_steps(*arguments))
    spans = locate(embedder, sound, "a tone", min_score=-1)
    assert used == [1] and all(np.isclose(span.start / STEP, round(span.start / STEP)) for span in spans)
    for other in ({"window": 2.0}, {"window": 2.0, "hop": 1.0}, {"dim": 8}):
        locate(embedder, sound, "a tone", **other)
    assert used == [1]


def test_probabilities_are_the_heads(embedder):
    spans = locate(embedder, encoded(tone(440, 12.0)), "a tone", min_score=-1, top_k=1)
    fitted = Logistic(20.0, -4.0, 0.005).at_prior(0.01)
    assert spans[0].probability == pytest.approx(float(fitted.probability(spans[0].score)))
    shifted = locate(embedder, encoded(tone(440, 12.0)), "a tone", min_score=-1, top_k=1, prior=0.5)
    assert shifted[0].probability > spans[0].probability


def test_a_model_without_a_head_is_searched_in_windows(plain_folder):
    assert frame_head_of(Embedder(str(plain_folder))) is None


def test_a_head_that_another_backend_leaves_out_is_named_once(folder, monkeypatch, caplog):
    """An export beside the model is taken without being asked for."""
    embedder = Embedder(str(folder))
    monkeypatch.setattr(embedder, "backend", "onnx")
    assert [frame_head_of(embedder) for _ in range(3)] == [None] * 3
    (line,) = caplog.messages
    assert "frame_head.safetensors is left out, as it runs in torch and not in onnx: give backend='torch'" in line


def test_an_embedder_reads_its_head_once_and_again_where_it_was_written(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "model")
    embedder, read = Embedder(str(copy)), []
    monkeypatch.setattr(frame_head, "read_frame_head", lambda *given: read.append(1) or read_frame_head(*given))
    fitted = frame_head_of(embedder)
    assert frame_head_of(embedder) is fitted and read == [1]
    assert pickle.loads(pickle.dumps(embedder)).kept_head is None
    write_frame_head(copy, fitted._replace(calibration=Logistic(5.0, -1.0, 0.01)), embedder.revision)
    assert frame_head_of(embedder).calibration.slope == 5 and read == [1, 1]
    (copy / FRAME_HEAD).unlink()
    assert frame_head_of(embedder) is None


def test_a_head_is_found_from_another_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    embedder = Embedder(folder.name)
    monkeypatch.chdir("/")
    assert embedder.folder == str(folder) and frame_head_of(embedder) is not None


def test_a_loaded_model_brings_its_head(folder):
    from wavlink import WavLinkModel, WavLinkProcessor

    model, processor = WavLinkModel.from_pretrained(folder), WavLinkProcessor.from_pretrained(folder)
    assert frame_head_of(Embedder(model, processor)) is not None
    with torch.no_grad():
        model.audio_projection.weight += 1
    with pytest.raises(ValueError, match=r"belongs to other weights.*wavlink train-frames"):
        frame_head_of(Embedder(model, processor))


@pytest.mark.parametrize("damage", ["cut", "missing", "shape"])
def test_a_damaged_head_is_refused(folder, tmp_path, damage):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    path = copy / FRAME_HEAD
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        tensors = load_file(path)
        tensors["inner.weight"] = tensors["inner.weight"][:1].contiguous()
        if damage == "missing":
            del tensors["inner.weight"]
        save_file(tensors, path, metadata={"revision": "", "slope": "1", "intercept": "0", "prior": "0.1"})
    with pytest.raises(ValueError, match="is no frame head"):
        locate(str(copy), encoded(tone(440, 1.0)), "a tone")


def test_windows_of_a_given_length_are_as_without_a_head(plain_folder, embedder):
    sound = encoded(tone(440, 5.0))
    one, other = (encode_recording(each, sound, 2.0, 1.0) for each in (Embedder(str(plain_folder)), embedder))
    assert np.array_equal(one.vectors, other.vectors)
