"""Tiny towers with real layouts, a tiny WavLink on disk, and tones. Real sounds and weights where they exist."""

import copy
import gc
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import constants
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from wavlink import bundled_models

from .bundled_folders import write_bundle
from .hub_server import Hub
from .processes import started

RATE = 16000
WORDS = "a the dog cat bell rain barks meows rings falls this is sound of . low high loud quiet".split()

# The same examples in every run. `pytest --hypothesis-profile=search` looks at new ones, and at many more.
_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # models, which no example changes
settings.register_profile(
    "repeatable", derandomize=True, max_examples=25, deadline=None, database=None, suppress_health_check=_FIXTURES
)
settings.register_profile("search", settings.get_profile("repeatable"), derandomize=False, max_examples=1000)
settings.load_profile("repeatable")

torch.set_num_threads(1)  # tiny operations gain nothing from a second thread and wait for it on a busy machine


def tone(hertz: float = 440.0, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """float32 `[samples]`: a sine in a little noise, so that no two clips are alike."""
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(scale=0.01, size=len(t))
    return (0.5 * np.sin(2 * np.pi * hertz * t) + noise).astype(np.float32)


def word_level_tokenizer(first: str, last: str, pad: str) -> PreTrainedTokenizerFast:
    tokens = list(dict.fromkeys([pad, "[UNK]", first, last, *WORDS]))
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        pad_token=pad,
        unk_token="[UNK]",
        cls_token=first,
        sep_token=last,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer class over single letters."""
    letters = [chr(i) for i in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=24)


@pytest.fixture(autouse=True, scope="module")
def imports_are_no_garbage():
    """Take what was imported so far out of garbage collections, which else walk through all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def hub_cache(tmp_path_factory):
    """Keep what this process downloads from a loopback Hub out of the user's cache, and earlier runs' out of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub_cache")))
        yield


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory) -> Path:
    """A whole Whisper, decoder included."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_mel_bins=80,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A whole CLIP, vision tower included."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "projection_dim": 16,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 16,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    tokenizer = word_level_tokenizer("[CLS]", "[SEP]", "[PAD]")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def modernbert_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("modernbert")
    torch.manual_seed(4)
    tokenizer = word_level_tokenizer("[CLS]", "[SEP]", "[PAD]")
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    ModernBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def built_model(whisper_folder, bert_folder) -> tuple[WavLinkModel, torch.Tensor]:
    """What `model` is a copy of, and torch's random state after it was built."""
    torch.manual_seed(0)
    model = WavLinkModel.from_audio_text_pretrained(str(whisper_folder), str(bert_folder), text_pooling="mean")
    torch.nn.init.normal_(model.audio_model.global_token)  # far from zero, so that its position matters
    return model.eval(), torch.get_rng_state()


@pytest.fixture
def model(built_model) -> WavLinkModel:
    """Tiny Whisper + tiny BERT, in eval mode; a fresh one for each test."""
    model, random_state = built_model
    torch.set_rng_state(random_state)
    return copy.deepcopy(model)


@pytest.fixture
def sharp_model(model) -> WavLinkModel:
    """`model` with audio weights ten times as large: clips lie apart (cosines 0 to 0.8), in `model` they do not."""
    with torch.no_grad():
        for name, weight in model.audio_model.encoder.named_parameters():
            if weight.dim() > 1 and "embed_positions" not in name:
                weight.mul_(10)
    return model


@pytest.fixture(scope="session")
def processor(whisper_folder, bert_folder) -> WavLinkProcessor:
    return WavLinkProcessor.from_audio_text_pretrained(str(whisper_folder), str(bert_folder))


@pytest.fixture
def wavlink_folder(model, processor, tmp_path) -> Path:
    """What `save_pretrained` writes, code included."""
    folder = tmp_path / "wavlink"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def no_bundle(tmp_path, monkeypatch) -> Path:
    """An empty folder in place of the package's bundled models."""
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(bundled_models, "MODELS", tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def tiny_bundle(no_bundle, wavlink_folder) -> Path:
    """The tiny WavLink in place of the bundled `wavlink-tiny`."""
    return write_bundle(no_bundle, wavlink_folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub on loopback, without repositories yet."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.close()


@pytest.fixture
def start():
    """`start(command, **options)`: a `subprocess.Popen`, killed with all that it has started when the test ends."""
    with ExitStack() as processes:
        yield lambda command, **options: processes.enter_context(started(command, **options))


@pytest.fixture(scope="session")
def sounds() -> Path:
    """The real sounds: an audiofolder named by WAVLINK_SOUNDS."""
    return _real("WAVLINK_SOUNDS")


@pytest.fixture(scope="session")
def weights() -> Path:
    """Real pretrained towers: a folder, named by WAVLINK_WEIGHTS, of whisper-tiny.en, all-MiniLM-L6-v2, ..."""
    return _real("WAVLINK_WEIGHTS")


def _real(variable: str) -> Path:
    folder = Path(os.environ.get(variable, ""))
    if not os.environ.get(variable) or not folder.is_dir():
        pytest.skip(f"{variable} names no folder: real data and weights do not come with the repository")
    return folder


@pytest.fixture(scope="session")
def tones_44k(tmp_path_factory):
    """An audiofolder at 44.1 kHz, with clips of 0.5 to 2.5 s, which are one to three windows of the tiny towers."""
    root = tmp_path_factory.mktemp("tones")
    for split in ("train", "validation"):
        (root / split).mkdir()
        lines = ["file_name,duration,caption"]
        for i in range(6):
            seconds = 0.5 + 0.4 * i
            wave = np.sin(2 * np.pi * 300 * (i + 1) * np.arange(round(44100 * seconds)) / 44100)
            soundfile.write(root / split / f"{i}.wav", 0.5 * wave, 44100)
            lines.append(f"{i}.wav,{seconds},tone number {i}")
        (root / split / "metadata.csv").write_text("\n".join(lines))
    return root
