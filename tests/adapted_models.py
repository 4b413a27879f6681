"""Tiny random models of other libraries on disk, built from their own configs and classes."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from .conftest import RATE, word_level_tokenizer

TEXT = {
    "model_type": "modernbert",
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    **{"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
}
DAC = {
    "encoder_hidden_size": 4,
    "downsampling_ratios": [2, 4, 5],
    "codebook_dim": 8,
    "hidden_size": 32,
    "decoder_hidden_size": 8,
}
PE_ENCODER = {
    "dac_config": DAC,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 8,
}
PE_RATE, PE_HOP = 2000, 40
GEMMA_TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "global_head_dim": 8,
    "num_global_key_value_heads": 1,
    "sliding_window_pattern": 2,
    "sliding_window": 4,
    "hidden_size_per_layer_input": 8,
    "embedding_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "max_position_embeddings": 1000,
}
GEMMA_AUDIO = {
    "model_type": "gemma4_audio",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [32, 4],
    "output_proj_dims": 12,
}


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Enlarge the weights: with those of an initialisation all inputs lie together, and no leak of padding shows."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model.eval()


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """float32 `[samples]`: noise with a tone."""
    rng = np.random.default_rng(seed)
    tone = np.sin(np.arange(samples) * (0.05 + 0.03 * seed))
    return (0.2 * tone + 0.1 * rng.normal(size=samples)).astype(np.float32)


def save_pe_audio(folder: Path) -> Path:
    """Write a `PeAudioModel` with its processor."""
    from transformers import PeAudioConfig, PeAudioFeatureExtractor, PeAudioModel, PeAudioProcessor

    torch.manual_seed(3)
    spread(PeAudioModel(PeAudioConfig(text_config=TEXT, audio_config=PE_ENCODER))).save_pretrained(folder)
    extractor = PeAudioFeatureExtractor(sampling_rate=PE_RATE, hop_length=PE_HOP)
    PeAudioProcessor(extractor, word_level_tokenizer("<s>", "</s>", "<pad>")).save_pretrained(folder)
    return folder


def save_pe_audio_video(folder: Path) -> Path:
    """Write the layout of a `PeAudioVideoModel`, which needs timm: a PE-Audio's weights within, and others beside."""
    save_pe_audio(folder)
    shared = load_file(folder / "model.safetensors")
    weights = {name if name.startswith("text_model.") else f"audio_model.{name}": w for name, w in shared.items()}
    weights["video_model.video_head.proj.weight"] = torch.ones(2, 2)
    weights["audio_video_head.proj.weight"] = torch.ones(2, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    encoder = {"model_type": "pe_audio_video_encoder", "audio_config": config["audio_config"]}
    whole = {"model_type": "pe_audio_video", "architectures": ["PeAudioVideoModel"], "audio_video_config": encoder}
    (folder / "config.json").write_text(json.dumps(whole | {"text_config": config["text_config"]}))
    return folder


def gemma_tokenizer():
    """A tokenizer with the tokens of EmbeddingGemma's processor; ids 40 and on, as in the config."""
    tokenizer = word_level_tokenizer("<s>", "</s>", "<pad>")
    names = {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    names |= {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    tokenizer.add_tokens([f"unused{n}" for n in range(40 - len(tokenizer))])
    tokenizer.add_special_tokens({"extra_special_tokens": list(names.values())})
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=1000,
        pad_token="<pad>",
        unk_token="[UNK]",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=names,
    )
    return tokenizer


def save_embedding_gemma(folder: Path) -> Path:
    """Write an `EmbeddingGemma2Model` with text and audio towers, its tokenizer and its extractor."""
    from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model, Gemma4AudioFeatureExtractor

    tokenizer = gemma_tokenizer()
    ids = {
        "audio_token_id": tokenizer.audio_token_id,
        "boa_token_id": tokenizer.boa_token_id,
        "eoa_token_index": tokenizer.eoa_token_id,
        "image_token_id": 58,
        "video_token_id": 59,
    }
    torch.manual_seed(4)
    config = EmbeddingGemma2Config(text_config=dict(GEMMA_TEXT), audio_config=dict(GEMMA_AUDIO), **ids)
    spread(EmbeddingGemma2Model(config)).save_pretrained(folder)
    Gemma4AudioFeatureExtractor(feature_size=32, sampling_rate=RATE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sentence_transformer(folder: Path, clap: Path, dims: int = 6, **options) -> Path:
    """Write a SentenceTransformer of a CLAP with a Dense layer, which only sentence-transformers can load."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer

    torch.manual_seed(5)
    dense = Dense(8, dims, activation_function=torch.nn.Tanh())
    SentenceTransformer(modules=[Transformer(str(clap)), dense, Normalize()], **options).save_pretrained(str(folder))
    return folder


def save_router(folder: Path, bert: Path) -> Path:
    """Write a SentenceTransformer with a Router: a BERT for texts, an audio spectrogram transformer for clips."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Router, Transformer
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(6)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    steps = {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 250, "num_mel_bins": 16}
    audio = folder.with_name("spectrogram transformer")
    spread(ASTModel(ASTConfig(**sizes, **steps))).save_pretrained(audio)
    ASTFeatureExtractor(num_mel_bins=16, max_length=250).save_pretrained(audio)
    routes = {
        "text": [Transformer(str(bert)), Pooling(32, "mean")],
        "audio": [Transformer(str(audio)), Pooling(32, "mean")],
    }
    SentenceTransformer(modules=[Router(routes)], device="cpu").save_pretrained(str(folder))
    return folder


def save_wavlink_as_sentence_transformer(folder: Path, whisper: Path, bert: Path) -> Path:
    """Write a WavLink with `SentenceTransformer.save_pretrained`."""
    from sentence_transformers import SentenceTransformer

    from modeling_wavlink import WavLinkModel
    from processing import WavLinkProcessor

    torch.manual_seed(7)
    within = folder.with_name("wavlink alone")
    model = WavLinkModel.from_audio_text_pretrained(str(whisper), str(bert), text_pooling="mean", projection_dim=16)
    spread(model).save_pretrained(within)
    WavLinkProcessor.from_audio_text_pretrained(str(whisper), str(bert)).save_pretrained(within)
    SentenceTransformer(str(within), device="cpu").save_pretrained(str(folder))
    return folder
