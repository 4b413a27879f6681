"""Training on frames: mixtures whose clips are where they are said to be, the loss by hand, and the command."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open

from processing.datasets.load import load_split
from tests.conftest import RATE, tone
from tests.paper_files import wav, write
from wavlink import Embedder, locate
from wavlink.defaults import FRAME_HEAD
from wavlink.frame_head import STEP
from wavlink.training.frame_mixtures import STEPS, Clips, compose
from wavlink.training.frame_training import Encoded, Targets, fit, frame_loss, main

HERTZ = {"low": 300, "middle": 1000, "high": 3000}


@pytest.fixture
def sounds(tmp_path):
    """Tones of three labels, two clips each, and one clip that is too short."""
    rows = ["file_name,caption,caption_2,label"]
    files = {}
    for name, hertz in HERTZ.items():
        for number, seconds in enumerate((0.8, 2.0)):
            files[f"train/{name}{number}.wav"] = wav(seconds, hertz)
            rows.append(f"{name}{number}.wav,A {name} tone,Tone {name} {number},{name} tone")
    files["train/short.wav"] = wav(0.1)
    rows.append("short.wav,A click,,click")
    return write(tmp_path / "sounds", {"train/metadata.csv": "\n".join(rows), **files})


@pytest.fixture
def clips(sounds):
    dataset = load_split(sounds, "train")
    seconds = [0.1 if "short" in row["audio"]["path"] else 1.0 for row in dataset]
    return Clips(dataset.add_column("duration", seconds), ["caption", "caption_2"], RATE)


def test_clips_have_their_texts_and_those_that_are_alike(clips):
    assert len(clips) == 6 and len(clips.of_label) == 3
    low = [number for number, texts in enumerate(clips.captions) if texts[0] == "A low tone"]
    assert clips.prompts[low[0]] == ["low tone", "This is a sound of low tone."]
    assert clips.same_label[low[0]] == clips.same_label[low[1]] and len({*clips.same_label}) == 3
    assert clips.same_caption[low[0]] == clips.same_caption[low[1]] and len({*clips.same_caption}) == 3


def test_too_few_clips_are_refused(sounds):
    dataset = load_split(sounds, "train")
    with pytest.raises(ValueError, match="two or more are needed"):
        Clips(dataset.add_column("duration", [0.1] * len(dataset)), ["caption"], RATE)


def test_a_mixture_has_its_clips_where_it_says(clips):
    """Each step's loudest frequency is that of the clip entered there, wherever a clip covers the step."""
    agreed = total = 0
    for seed in range(10):
        mixture = compose(clips, np.random.default_rng(seed))
        assert len(mixture.samples) == 10 * RATE and np.abs(mixture.samples).max() == pytest.approx(0.5)
        assert (mixture.loud >= 0).any() and len(mixture.loud) == len(mixture.quiet) == STEPS
        present = np.where(mixture.loud >= 0, mixture.loud, mixture.quiet)
        assert (present >= 0).mean() > 0.9
        for step, clip in zip(mixture.samples.reshape(STEPS, -1), present, strict=True):
            power = np.abs(np.fft.rfft(step))
            name = clips.captions[clip][0].split()[1]
            total += 1
            agreed += abs(power.argmax() * RATE / len(step) - HERTZ[name]) < 20
    assert agreed / total > 0.9  # at a clip's edges a step may hold more of its neighbour


def test_mixtures_depend_on_the_seed_alone(clips):
    one, same, other = (compose(clips, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.samples, same.samples) and np.array_equal(one.loud, same.loud)
    assert not np.array_equal(one.samples, other.samples)


class Alike:
    """Clips 0 and 1 share a label, 2 and 3 a caption, 4 is alone."""

    same_label = np.array([0, 0, 1, 2, 3])
    same_caption = np.array([0, 1, 2, 2, 3])


def test_queries_match_where_their_clip_is_heard():
    loud = np.array([[-1, 0, 0, -1], [-1, 2, -1, -1]])
    quiet = np.array([[4, 4, 1, 1], [-1, 3, 3, 4]])
    targets = Targets(Alike(), loud, quiet)
    # 4 and 1 of the first mixture are present for one step alone, and so is 3 of the second; so is 4 there
    assert targets.queries.tolist() == [0, 2]
    assert targets.matches.int().tolist() == [[[0, 1, 1, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 1, 0, 0]]]
    # ignored: 1 has the label of 0; 3 has the caption of 2; no clip is at the second mixture's first step
    assert targets.ignored.int().tolist() == [[[0, 0, 0, 1], [1, 0, 0, 0]], [[0, 0, 0, 0], [1, 0, 1, 0]]]


def test_a_background_clip_of_two_steps_is_a_query():
    targets = Targets(Alike(), np.array([[-1, -1, 0]]), np.array([[4, 4, 4]]))
    assert targets.queries.tolist() == [4, 0]
    assert targets.matches.int().tolist() == [[[1, 1, 0]], [[0, 0, 1]]]
    assert not targets.ignored[1].any() and targets.ignored[0].int().tolist() == [[0, 0, 1]]


def test_the_loss_of_equal_scores_is_known():
    """Of 2 queries at 4 steps each step costs log 2, each query of n steps log(4 / n), each pair log 2."""
    matches = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 1]]], dtype=torch.bool)
    loss = frame_loss(torch.zeros(2, 1, 4), torch.tensor(0.0), matches, torch.zeros_like(matches))
    assert float(loss) == pytest.approx(math.log(2) + (math.log(2) + math.log(4)) / 2 + 8 * math.log(2) / 3)


def test_ignored_pairs_have_no_gradient_and_matches_rise():
    matches = torch.tensor([[[1, 0, 0]], [[0, 1, 0]]], dtype=torch.bool)
    ignored = torch.tensor([[[0, 0, 1]], [[0, 0, 0]]], dtype=torch.bool)
    scores = torch.randn(2, 1, 3, requires_grad=True)
    frame_loss(scores, torch.tensor(-1.0), matches, ignored).backward()
    assert float(scores.grad[0, 0, 2]) == 0
    assert (scores.grad[matches] < 0).all() and (scores.grad[~matches & ~ignored] > 0).all()


class Texts:
    """Stands in for an `Embedder`: each label's texts have one vector, at right angles to those of other labels."""

    dims = 4

    def embed_text(self, texts):
        names = list(HERTZ)
        return np.eye(4, dtype=np.float32)[[next(n for n, name in enumerate(names) if name in text) for text in texts]]


def test_a_head_learns_what_is_at_each_step(clips):
    """States that tell the label, in noise as strong: the head's vectors are nearest to the text of that label."""
    rng = np.random.default_rng(0)
    names = np.array([list(HERTZ).index(texts[0].split()[1]) for texts in clips.captions])
    loud = rng.integers(-1, len(clips), (64, STEPS // 5)).repeat(5, axis=1)
    quiet = rng.integers(0, len(clips), (64, STEPS // 5)).repeat(5, axis=1)
    present = names[np.where(loud >= 0, loud, quiet)]
    directions = rng.normal(size=(3, 24))
    states = torch.from_numpy(directions[present] + rng.normal(size=(*present.shape, 24))).half()
    fitted, losses = fit(Texts(), clips, Encoded(states, loud, quiet), epochs=10, rate=5e-3, seed=0, progress=False)
    with torch.no_grad():
        vectors = fitted.head(states.float()).numpy()
    assert (vectors[..., :3].argmax(-1) == present).mean() > 0.95
    assert losses[-1] < losses[0] / 2
    right, wrong = (np.take_along_axis(vectors, label[..., None], -1) for label in (present, (present + 1) % 3))
    assert fitted.calibration.probability(right).mean() > 0.5 > 5 * fitted.calibration.probability(wrong).mean()


@pytest.mark.slow
def test_the_command_writes_a_head_that_locate_uses(sounds, wavlink_folder, capsys):
    before = {path.name: path.read_bytes() for path in wavlink_folder.iterdir() if path.is_file()}
    main([str(wavlink_folder), "--data", sounds, "--mixtures", "32", "--epochs", "8", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["clips"] == 6 and record["losses"][-1] < record["losses"][0]
    after = {path.name: path.read_bytes() for path in wavlink_folder.iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before and {*after} - {*before} == {FRAME_HEAD}
    with safe_open(wavlink_folder / FRAME_HEAD, framework="np") as file:
        assert file.metadata()["revision"] == Embedder(str(wavlink_folder)).revision
        assert file.metadata()["about"] == "sounds, train"
    recording = {"array": tone(3000, 12.0), "sampling_rate": RATE}
    span = locate(str(wavlink_folder), recording, "A high tone", min_score=-1, top_k=1)[0]
    assert span.probability is not None and np.isclose(span.start / STEP, round(span.start / STEP))


def test_a_bundled_model_is_not_written_to(sounds):
    with pytest.raises(ValueError, match="is a bundled model"):
        main(["wavlink-tiny", "--data", sounds])
