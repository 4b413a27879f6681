"""PE-Audio, EmbeddingGemma 2 and SentenceTransformers give the vectors of their own code, through every door."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import wavlink
from hub_cards.space.answers import Demo
from tests import adapted_models as tiny
from tests.clap_models import save_clap
from tests.conftest import RATE
from wavlink.cli import main
from wavlink.embedder import Embedder
from wavlink.loading import describe, load_for_evaluation, random_control
from wavlink.search.build import index_sounds

SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
GEMMA = pytest.mark.skipif(not hasattr(transformers, "EmbeddingGemma2Model"), reason="a newer transformers has it")
KINDS = ["pe_audio", "pe_audio_video", pytest.param("embedding_gemma", marks=GEMMA), "clap_dense", "router", "wavlink"]
DOORS = [KINDS[0], KINDS[2], "clap_dense"]
TEXTS = ["a dog barks", "the bell rings low", "rain"]
LENGTHS = (9000, 4100, 4000, 9000)  # samples


@pytest.fixture(scope="module")
def folders(tmp_path_factory, whisper_folder, bert_folder):
    """Write a model of a kind when a test first asks for it."""
    root, written = tmp_path_factory.mktemp("models"), {}

    def write(kind):
        folder = root / kind
        if kind.startswith(("pe_", "embedding_")):
            return getattr(tiny, f"save_{kind}")(folder)
        if kind == "router":
            return tiny.save_router(folder, bert_folder)
        if kind == "wavlink":
            return tiny.save_wavlink_as_sentence_transformer(folder, whisper_folder, bert_folder)
        return tiny.save_sentence_transformer(folder, save_clap(root / "clap", False))

    return lambda kind: written.get(kind) or written.setdefault(kind, write(kind))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(folders, kind):
    return folders(kind)


@pytest.fixture(scope="module")
def embedders(folders):
    loaded = {}
    return lambda kind: loaded.get(kind) or loaded.setdefault(kind, Embedder(str(folders(kind))))


@pytest.fixture
def embedder(embedders, kind):
    return embedders(kind)


@pytest.fixture
def own(folders, kind):
    """The vectors of the model's own code, one input at a time, L2-normalised."""
    return {"pe_audio": own_pe_audio, "pe_audio_video": own_pe_audio, "embedding_gemma": own_embedding_gemma}.get(
        kind, own_sentence_transformer
    )(folders("pe_audio" if kind == "pe_audio_video" else kind))


def own_pe_audio(folder):
    model = transformers.PeAudioModel.from_pretrained(folder).eval()
    processor = transformers.PeAudioProcessor.from_pretrained(folder)

    @torch.no_grad()
    def encode(clip=None, text="a"):
        audio = {"audio": [tiny.noise(4000) if clip is None else clip], "sampling_rate": tiny.PE_RATE}
        outputs = model(**processor(text=[text], return_tensors="pt", **audio))
        return F.normalize(outputs.text_audio_embeds if clip is None else outputs.audio_embeds, dim=-1)[0].numpy()

    return SimpleNamespace(audio=encode, text=lambda text: encode(text=text))


def own_embedding_gemma(folder):
    """Its model under sentence-transformers' mean pooling and normalisation; placeholders by its processor's code."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    model = transformers.EmbeddingGemma2Model.from_pretrained(folder).eval()
    extractor = transformers.Gemma4AudioFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.EmbeddingGemma2Processor
    names = {name: getattr(tokenizer, name) for name in ("boa_token", "audio_token", "eoa_token")}
    parts = SimpleNamespace(compute_sscp=processor.compute_sscp, **names)

    @torch.no_grad()
    def encode(text, **inputs):
        tokens = tokenizer([text], return_tensors="pt")
        states = model(**tokens, **inputs).last_hidden_state
        pooled = Pooling(states.shape[-1], "mean")(
            {"token_embeddings": states, "attention_mask": tokens["attention_mask"]}
        )
        return Normalize()(pooled)["sentence_embedding"][0].numpy()

    def audio(clip):
        inputs = extractor([clip], sampling_rate=RATE, return_tensors="pt")
        text = processor.replace_audio_token(parts, {"input_features_mask": inputs["input_features_mask"].numpy()}, 0)
        return encode(text, **inputs)

    return SimpleNamespace(audio=audio, text=encode)


def own_sentence_transformer(folder):
    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    rate = load_for_evaluation(str(folder))[1].feature_extractor.sampling_rate

    def audio(clip):
        return F.normalize(
            model.encode({"audio": {"array": clip, "sampling_rate": rate}}, convert_to_tensor=True), dim=-1
        ).numpy()

    return SimpleNamespace(
        audio=audio, text=lambda text: F.normalize(model.encode(text, convert_to_tensor=True), dim=-1).numpy()
    )


def clips():
    return [tiny.noise(samples, seed) for seed, samples in enumerate(LENGTHS)]


def test_vectors_are_those_of_the_model_s_own_code(embedder, own):
    found = np.stack(list(embedder.embed_clips(clips())))
    assert np.abs(found - np.stack([own.audio(clip) for clip in clips()])).max() < 1e-5
    texts = embedder.embed_text(TEXTS)
    assert np.abs(texts - np.stack([own.text(text) for text in TEXTS])).max() < 1e-5
    for vectors in (found, texts):  # else all would be equal to anything
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
        assert min(np.abs(vectors[0] - other).max() for other in vectors[1:]) > 1e-4
    assert embedder.dims == found.shape[1] == embedder.matryoshka_dims[0]


def test_vectors_do_not_depend_on_the_batch(embedder):
    model, processor = embedder.model, embedder.processor
    rate = processor.feature_extractor.sampling_rate

    @torch.no_grad()
    def embed(sounds, texts):
        audio = model.get_audio_features(**processor(audio=sounds, sampling_rate=rate, return_tensors="pt"))
        text = model.get_text_features(**processor(text=texts, return_tensors="pt"))
        return audio.pooler_output, text.pooler_output

    together = embed(clips(), TEXTS)
    for position, (clip, text) in enumerate(zip(clips(), TEXTS, strict=False)):
        for whole, alone in zip(together, embed([clip], [text]), strict=True):
            assert (whole[position] - alone[0]).abs().max() < 1e-5
    again = embed(clips(), TEXTS)
    assert all(torch.equal(first, second) for first, second in zip(together, again, strict=True))


def test_pe_audio_s_own_batches_depend_on_padding(folders):
    """Why clips of one length alone share a forward pass here."""
    model = transformers.PeAudioModel.from_pretrained(folders("pe_audio")).eval()
    extractor = transformers.PeAudioFeatureExtractor.from_pretrained(folders("pe_audio"))
    short = tiny.noise(400)
    with torch.no_grad():
        alone, padded = (
            model.get_audio_embeds(**extractor(batch, sampling_rate=tiny.PE_RATE, return_tensors="pt"))[0]
            for batch in ([short], [short, tiny.noise(4000, 1)])
        )
    assert (alone - padded).abs().max() > 1e-5


def test_long_files_are_covered_by_windows(embedder, tmp_path):
    limit = round(embedder.max_seconds * embedder.sampling_rate)
    long = tiny.noise(limit + limit // 2)
    soundfile.write(tmp_path / "long.wav", long, embedder.sampling_rate, subtype="FLOAT")
    (found,) = embedder.embed_files([tmp_path / "long.wav"])
    first, last = embedder.embed_clips([long[:limit], long[-limit:]])
    assert found == pytest.approx((first + last) / np.linalg.norm(first + last), abs=1e-5)
    with pytest.raises(ValueError, match="the limit is"):
        next(embedder.embed_clips([long]))


def test_other_sampling_rates_are_resampled_or_refused(embedder, tmp_path):
    rate, processor = embedder.sampling_rate, embedder.processor
    with pytest.raises(ValueError, match="resample them"):
        processor(audio=[tiny.noise(4000)], sampling_rate=rate + 1, return_tensors="pt")
    soundfile.write(tmp_path / "other.wav", tiny.noise(8000), 2 * rate, subtype="FLOAT")
    (found,) = embedder.embed_files([tmp_path / "other.wav"])
    (expected,) = embedder.embed_clips([wavlink.load_audio(tmp_path / "other.wav", sampling_rate=rate)])
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bad", [np.zeros(0, np.float32), np.full(4000, np.nan, np.float32), np.zeros((2, 400))])
def test_broken_clips_are_refused(embedder, bad):
    with pytest.raises(ValueError, match="clip 0 must be mono"):
        next(embedder.embed_clips([bad]))


@GEMMA
def test_clips_under_a_frame_are_refused(embedders, tmp_path):
    embedder = embedders("embedding_gemma")
    with pytest.raises(ValueError, match="clip 0 has 160 samples .* takes 161 or more"):
        next(embedder.embed_clips([tiny.noise(160)]))
    assert np.isfinite(next(embedder.embed_clips([tiny.noise(161)]))).all()
    for name, samples in (("short", 160), ("whole", 4000)):
        soundfile.write(tmp_path / f"{name}.wav", tiny.noise(samples), RATE)
    short, whole = embedder.embed_files([tmp_path / "short.wav", tmp_path / "whole.wav"])
    assert "takes 161 or more" in str(short) and whole.shape == (24,)


def test_long_texts_are_truncated_and_counted(folders):
    model, processor = load_for_evaluation(str(folders("pe_audio")))
    text = "a dog barks " * 20
    with torch.no_grad():
        long, same = model.get_text_features(**processor(text=[text, text[:-12]], return_tensors="pt")).pooler_output
    assert torch.equal(long, same) and describe(model, processor)["texts_truncated"] == 2


def test_nested_dims_of_embedding_gemma_2_are_those_of_its_card(folders, tmp_path):
    pytest.importorskip("transformers.models.embedding_gemma2")
    from wavlink.embedding_gemma import EmbeddingGemma2Embedder

    assert load_for_evaluation(str(folders("embedding_gemma")))[0].config.matryoshka_dims == [24]
    config = json.loads((folders("embedding_gemma") / "config.json").read_text())
    config["text_config"]["embedding_dim"] = 768
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert EmbeddingGemma2Embedder.read_config(str(tmp_path)).matryoshka_dims == [768, 512, 256, 128]
    (tmp_path / "config.json").write_text(json.dumps(config | {"audio_config": None}))
    with pytest.raises(ValueError, match="without an audio tower"):
        load_for_evaluation(str(tmp_path))


def test_random_baselines_have_new_weights(kind, folder):
    if kind in ("clap_dense", "router"):
        with pytest.raises(ValueError, match="no random baseline"):
            load_for_evaluation(f"random:{folder}@3")
        with pytest.raises(ValueError, match="no random baseline"):
            random_control(load_for_evaluation(str(folder))[0])
        return
    model, processor = load_for_evaluation(str(folder))
    control, _ = load_for_evaluation(f"random:{folder}@3")
    same, loaded = random_control(str(folder), 3), random_control(model, 3)
    weights, others = model.state_dict(), control.state_dict()
    assert weights.keys() == others.keys() and {weight.dtype for weight in control.parameters()} == {torch.float32}
    assert any(not torch.equal(weights[name], others[name]) for name in weights)
    for twin in (same, loaded):
        assert all(torch.equal(others[name], weight) for name, weight in twin.state_dict().items())
    assert describe(control, processor)["seed"] == 3


@pytest.fixture
def sounds(tmp_path):
    for label, seed in (("dog", 1), ("bell", 2), ("rain", 3)):
        (tmp_path / "sounds" / label).mkdir(parents=True)
        for number in range(2):
            path = tmp_path / "sounds" / label / f"{number}.wav"
            soundfile.write(path, tiny.noise(9000 + 500 * number, seed), RATE, subtype="FLOAT")
    return tmp_path / "sounds"


@pytest.mark.parametrize("kind", DOORS)
def test_classify(embedder, sounds, own):
    (row,) = wavlink.classify(embedder, sounds / "dog/0.wav", ["dog", "bell"], prompts="{}")
    clip = wavlink.load_audio(sounds / "dog/0.wav", sampling_rate=embedder.sampling_rate)
    found = {label["label"]: label["cosine"] for label in row["labels"]}
    assert found == pytest.approx(
        {text: float(own.audio(clip) @ own.text(text)) for text in ("dog", "bell")}, abs=1e-5
    )
    assert sum(label["score"] for label in row["labels"]) == pytest.approx(1)


@pytest.mark.parametrize("kind", DOORS)
def test_index_records_the_model_and_is_queried_with_it(folder, embedder, sounds, tmp_path, capsys):
    assert main(["index", str(sounds), "--model", str(folder), "--out", str(tmp_path / "index")]) == 0
    index = wavlink.Index.open(tmp_path / "index")
    assert index.manifest.model == str(folder) and index.manifest.revision == embedder.revision
    assert len(index.query("a dog barks", top_k=6)) == 6
    capsys.readouterr()
    assert main(["query", str(tmp_path / "index"), "--by_sound", str(sounds / "bell/1.wav"), "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["results"]
    assert hits[0]["path"] == "bell/1.wav" and hits[0]["score"] == pytest.approx(1, abs=0.01)


def test_index_refuses_another_model(folders, sounds, tmp_path, capsys):
    index_sounds(str(sounds), tmp_path / "index", str(folders("pe_audio")), progress=False)
    assert main(["query", str(tmp_path / "index"), "rain", "--model", str(folders("clap_dense"))]) == 2
    assert "their vectors do not compare" in capsys.readouterr().err


@pytest.mark.parametrize("kind", DOORS)
def test_where(embedder, own):
    rate = embedder.sampling_rate
    recording = np.concatenate([tiny.noise(rate // 2, seed) for seed in range(4)])
    whole = {"array": recording, "sampling_rate": rate}
    spans = wavlink.locate(embedder, whole, "a dog barks", window=0.5, hop=0.5, min_score=-1)
    cosines = [float(own.audio(part) @ own.text("a dog barks")) for part in np.split(recording, 4)]
    assert max(span.score for span in spans) == pytest.approx(max(cosines), abs=1e-5)


@pytest.mark.parametrize("kind", DOORS)
def test_eval(folder, embedder, sounds, tmp_path):
    assert (
        main(["eval", "--model", str(folder), "--benchmark", str(sounds), "--output", str(tmp_path / "s.json")]) == 0
    )
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["about"]["revision"] == embedder.revision and "zero_shot" in scores


@pytest.mark.parametrize("kind", DOORS)
def test_space(embedder, sounds, tmp_path):
    index_sounds(str(sounds), tmp_path / "index", embedder, progress=False)
    demo = Demo(embedder, str(tmp_path / "index"))
    named = demo.classify(str(sounds / "rain/0.wav"), "rain, dog")
    assert named.at(embedder.dims)[1].sum() == pytest.approx(1)
    assert len(demo.closest(demo.embed_sentence("a bell"), embedder.dims)[0]) == 5


@pytest.mark.parametrize("kind", DOORS)
def test_half_precision(folder, embedder):
    exact, half = embedder, Embedder(str(folder), dtype="bfloat16")
    for first, second in zip(exact.embed_clips(clips()), half.embed_clips(clips()), strict=True):
        assert first @ second > 0.98
    assert (exact.embed_text(TEXTS) * half.embed_text(TEXTS)).sum(1).min() > 0.98


@pytest.mark.parametrize("kind", KINDS[:3])
def test_missing_weights_are_refused(folders, kind, tmp_path):
    shutil.copytree(folders(kind), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    name = next(name for name in weights if "text" in name or "language" in name)
    save_file({k: w for k, w in weights.items() if k != name}, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights, which would start random"):
        load_for_evaluation(str(tmp_path / "model"))


def test_frame_level_pe_audio_is_refused(folders, tmp_path):
    config = json.loads((folders("pe_audio") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["PeAudioFrameLevelModel"]}))
    with pytest.raises(ValueError, match="is a frame-level PE-Audio: it gives a vector for every 40 ms"):
        load_for_evaluation(str(tmp_path))


def test_other_architectures_are_told_the_known_ones(bert_folder, whisper_folder):
    for folder, kind in ((bert_folder, "bert"), (whisper_folder, "whisper")):
        with pytest.raises(ValueError, match=f"is a '{kind}' model: give a WavLink .*CLAP.*PE-Audio.*SentenceTransf"):
            Embedder(str(folder))


def test_sentence_transformer_of_texts_alone_is_refused(bert_folder, tmp_path):
    SentenceTransformer(str(bert_folder), device="cpu").save_pretrained(str(tmp_path / "texts"))
    with pytest.raises(ValueError, match="encodes text, and not audio"):
        Embedder(str(tmp_path / "texts"))


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders("clap_dense"), tmp_path / "copied")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["evil.Module", "os.system", "sentence_transformers.util.http_get", "", None])
def test_classes_outside_sentence_transformers_are_never_imported(copied, name, monkeypatch):
    (copied / "evil.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(copied)
    edit(copied / "modules.json", lambda modules: modules[1].update(type=name))
    with pytest.raises(ValueError, match="is not of sentence-transformers: its code is not run"):
        Embedder(str(copied))


def test_classes_of_a_router_are_checked(folders, tmp_path):
    folder = shutil.copytree(folders("router"), tmp_path / "router")
    edit(folder / "router_config.json", lambda router: router["types"].update(text_1_Pooling="evil.Module"))
    with pytest.raises(ValueError, match="is not of sentence-transformers: its code is not run"):
        Embedder(str(folder))


def test_pickled_modules_and_adapters_are_refused(copied):
    (copied / "1_Dense/model.safetensors").rename(copied / "1_Dense/pytorch_model.bin")
    with pytest.raises(ValueError, match="offers 1_Dense/pytorch_model.bin and no safetensors"):
        Embedder(str(copied))
    (copied / "1_Dense/adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an 1_Dense/adapter_config.json"):
        Embedder(str(copied))


def test_broken_modules_json_is_refused(copied):
    for content, message in (("{", "is broken"), ("{}", "is not a list of modules"), ("[]", "is not a list")):
        (copied / "modules.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            Embedder(str(copied))


def test_other_kinds_of_sentence_transformers_are_refused(copied):
    edit(copied / "config_sentence_transformers.json", lambda config: config.update(model_type="CrossEncoder"))
    with pytest.raises(ValueError, match="is a CrossEncoder"):
        Embedder(str(copied))


def test_default_prompt_is_used_and_recorded(folders, copied):
    prompts = {"prompts": {"query": "the bell ", "document": "low "}, "default_prompt_name": "query"}
    edit(copied / "config_sentence_transformers.json", lambda config: config.update(prompts))
    embedder, plain = Embedder(str(copied)), Embedder(str(folders("clap_dense")))
    assert embedder.embed_text(["rings"]) == pytest.approx(plain.embed_text(["the bell rings"]), abs=1e-6)
    own = SentenceTransformer(str(copied), device="cpu").encode(["rings"])
    assert embedder.embed_text(["rings"]) == pytest.approx(own, abs=1e-5)
    assert "with its default prompt 'the bell '" in describe(embedder.model, embedder.processor)["note"]
    edit(copied / "config_sentence_transformers.json", lambda config: config.update(default_prompt_name=None))
    assert Embedder(str(copied)).embed_text(["rings"]) == pytest.approx(plain.embed_text(["rings"]), abs=1e-6)


def test_texts_that_are_paths_or_urls_are_texts(embedders, sounds, monkeypatch):
    monkeypatch.chdir(sounds)
    embedder = embedders("clap_dense")
    path, url, unknown = embedder.embed_text(["dog/0.wav", "http://127.0.0.1:9/dog.wav", "xyzzy / xyzzy . xyzzy"])
    (sound,) = embedder.embed_files([sounds / "dog/0.wav"])
    assert np.isfinite([path, url, unknown]).all() and np.abs(path - sound).max() > 1e-3


def test_randomness_of_the_caller_is_untouched(embedders):
    embedder = embedders("clap_dense")
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    list(embedder.embed_clips(clips()))
    assert (np.random.get_state()[1] == before).all()


HUB_NAMES = {"pe": "pe_audio", "st": "clap_dense"}
FROM_HUB = """
import json
from wavlink.loading import describe, load_for_evaluation, stated_dims
for name in ("user/pe", "user/st"):
    about = describe(*load_for_evaluation(name))
    again = describe(*load_for_evaluation(name, revision=about["revision"], local_files_only=True))
    print(json.dumps([about["kind"], about["revision"], again == about, stated_dims(name)]))
"""


@pytest.mark.slow
def test_from_the_hub_the_commit_is_the_revision(hub, folders, tmp_path):
    pe, st = (hub.add_repo(f"user/{name}", folders(kind), "model") for name, kind in HUB_NAMES.items())
    found = [json.loads(line) for line in hub.run(FROM_HUB, tmp_path / "home").splitlines() if line.startswith("[")]
    assert found == [["pe_audio", pe, True, [16, [16]]], ["sentence_transformer", st, True, None]]
