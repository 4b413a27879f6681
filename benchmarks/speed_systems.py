"""The rows of speed.py: what is compared, built with random weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speed_report import BASE, BF16, PEER, PLAIN, POOLED, compiled_name
from tokenizers import Tokenizer, models
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_wavlink import WavLinkConfig, WavLinkModel
from processing import WavLinkFeatureExtractor, WavLinkProcessor
from processing.audio import load_audio
from wavlink.backends.choice import HAS, has_bf16
from wavlink.backends.compiled_model import CompiledModel
from wavlink.backends.exported import graph_path, model_identity, standalone_facts, write_graphs, write_record
from wavlink.backends.graphs import exportable
from wavlink.backends.int8 import quantize
from wavlink.backends.sessions import INPUTS, import_openvino, open_tower
from wavlink.backends.standalone import KEY
from wavlink.backends.torch_cpu import packing_pays
from wavlink.backends.torch_model import DTYPES
from wavlink.embedder import Embedder
from wavlink.loading import load_for_evaluation


@dataclass
class System:
    """One row: `model` and `processor` embed log-mels, `embed_files(paths, batch size)` files."""

    name: str
    model: torch.nn.Module
    processor: Callable
    embed_files: Callable[[list[Path], int], list[np.ndarray]] | None = None

    @property
    def rate(self) -> int:
        return self.processor.feature_extractor.sampling_rate

    def features(self, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
        inputs = self.processor(audio=clips, sampling_rate=self.rate, return_tensors="pt")
        return {name: t.to(self.model.dtype if t.is_floating_point() else t.dtype) for name, t in inputs.items()}

    @torch.inference_mode()
    def embed(self, features: dict[str, torch.Tensor]) -> np.ndarray:
        return self.model.get_audio_features(**features).pooler_output.float().numpy()

    def one_after_the_other(self, paths: list[Path], size: int) -> list[np.ndarray]:
        """As a user of the peer would: decode a batch, its log-mels, the model."""
        batches = [paths[start : start + size] for start in range(0, len(paths), size)]
        return [self.embed(self.features([load_audio(path, self.rate) for path in batch])) for batch in batches]


def tokenizer() -> PreTrainedTokenizerFast:
    """Without a vocabulary: only sounds are embedded here."""
    options = {"unk_token": "?", "pad_token": "?", "model_max_length": 77}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), **options)


def new_clap(text_layers: int = 1) -> tuple[ClapModel, ClapProcessor]:
    """Of the size of laion/clap-htsat-unfused, whose audio tower ClapConfig's defaults are."""
    model = ClapModel(ClapConfig(text_config={"num_hidden_layers": text_layers})).eval()
    return model, ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50), tokenizer())


def new_wavlink(pooled: Sequence[int] = (1, 1), text_layers: int = 1) -> tuple[WavLinkModel, WavLinkProcessor]:
    """Base, as in the paper but for its text tower's layers and `pooled`: frames to one, then after which layers."""
    torch.manual_seed(0)  # the same weights in each backend
    config = WavLinkConfig.for_size("base")
    config.text_config.num_hidden_layers = text_layers
    config.audio_config.frame_pooling, *config.audio_config.frame_pooling_layer = pooled
    config = WavLinkConfig.from_dict(config.to_dict())  # which checks it
    return WavLinkModel(config).eval(), WavLinkProcessor(WavLinkFeatureExtractor(), tokenizer())


def build(dtype: str, trained: str | None) -> dict[str, System]:
    """All rows by name. `trained` is a WavLink whose weights Base has in place of random ones."""
    clap, clap_processor = new_clap()
    wavlink, processor = load_for_evaluation(trained) if trained else new_wavlink()
    embedders = {
        BASE: Embedder(wavlink, processor, dtype=dtype),
        POOLED: Embedder(*new_wavlink(pooled=(2, 1, 3)), dtype=dtype),
        PLAIN: Embedder(wavlink, processor, dtype=dtype, fast_kernels=False),
    }
    if dtype == "float32" and packing_pays(torch.bfloat16):
        embedders[BF16] = Embedder(wavlink, processor, dtype="bfloat16")
    peer = System(PEER, clap.to(DTYPES[dtype]), clap_processor)
    peer.embed_files = peer.one_after_the_other
    rows = [peer]
    for name, embedder in embedders.items():
        files = None if name == PLAIN else partial(_files, embedder)
        rows.append(System(name, embedder.model, embedder.processor, files))
    return {row.name: row for row in rows}


def build_compiled(backends: Sequence[str], folder: Path, trained: str | None) -> dict[str, System]:
    """Rows in OpenVINO and onnxruntime, by name. Graphs are written to a folder."""
    rows = []
    for base, pooled in ((BASE, (1, 1)), (POOLED, (2, 1, 3))):
        model, processor = load_for_evaluation(trained) if trained and base == BASE else new_wavlink(pooled)
        model = exportable(model)
        for backend in backends:
            graphs = folder / f"{backend}{len(pooled)}"
            graphs.mkdir()
            write_graphs(graphs, model, backend)
            source, small = (graph_path(graphs, backend, "audio", each) for each in ("fp32", "int8"))
            quantize(backend, source, small, noise(processor))
            for precision in HAS[backend]:
                if precision == "bf16" and not has_bf16():
                    continue
                path = small if precision == "int8" else source
                tower = open_tower(backend, path, precision, torch.get_num_threads())
                compiled = CompiledModel(model, {"audio": tower}, backend, precision)
                embedder = Embedder.borrowing(compiled, processor)
                name = compiled_name(base, backend, precision)
                rows.append(System(name, compiled, processor, partial(_files, embedder)))
    if "openvino" in backends:
        clap, processor = new_clap()
        peer = System(compiled_name(PEER, "openvino", "fp32"), CompiledClap(clap), processor)
        peer.embed_files = peer.one_after_the_other
        rows.append(peer)
    return {row.name: row for row in rows}


def write_exports(folder: Path, backend: str) -> None:
    """Give a model's folder exports in fp32 and in int8, which is calibrated on noise and has no gate."""
    model, processor = load_for_evaluation(str(folder))
    model, graphs = exportable(model), folder / backend
    identity, facts = model_identity(model), {KEY: standalone_facts(folder, model, processor)}
    graphs.mkdir()
    towers = write_graphs(graphs, model, backend)
    write_record(graphs, identity, backend, "fp32", towers, **facts)
    for name, about in towers.items():
        source, target = graphs / about["file"], graph_path(graphs, backend, name, "int8")
        if name == "audio":
            quantize(backend, source, target, noise(processor))
            about["file"] = target.name
    write_record(graphs, identity, backend, "int8", towers, **facts)


def noise(processor: WavLinkProcessor) -> list[dict[str, np.ndarray]]:
    """Log-mels of noise of 1 to 10 s, for the scales of int8."""
    generator = np.random.default_rng(0)
    clips = [generator.normal(scale=0.1, size=16000 * seconds).astype(np.float32) for seconds in (1, 5, 10)]
    inputs = [processor(audio=clip, sampling_rate=16000, return_tensors="np") for clip in clips]
    return [{name: np.asarray(one[name]) for name in INPUTS["audio"]} for one in inputs]


class CompiledClap(torch.nn.Module):
    """CLAP's audio tower in OpenVINO, converted for each batch size: HTS-AT's shapes are fixed."""

    def __init__(self, model: ClapModel):
        super().__init__()
        self.model, self.requests, self.dtype = model, {}, torch.float32

    def forward(self, input_features: torch.Tensor, is_longer: torch.Tensor) -> torch.Tensor:
        """The vectors in torch, which are converted."""
        return self.model.get_audio_features(input_features, is_longer).pooler_output

    def get_audio_features(self, input_features: torch.Tensor, is_longer: torch.Tensor) -> BaseModelOutputWithPooling:
        """The vectors in OpenVINO."""
        if len(input_features) not in self.requests:
            openvino = import_openvino()
            graph = openvino.convert_model(torch.export.export(self, (input_features, is_longer)))
            options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            self.requests[len(input_features)] = openvino.Core().compile_model(graph, "CPU", options)
        model = self.requests[len(input_features)]
        given = [value.numpy() for value in (input_features, is_longer)][: len(model.inputs)]  # it may be unused
        return BaseModelOutputWithPooling(pooler_output=torch.from_numpy(np.array(model(given)[0])))


def _files(embedder: Embedder, paths: list[Path], size: int) -> list[np.ndarray]:
    return list(embedder.embed_files(paths))  # which cuts its own batches
