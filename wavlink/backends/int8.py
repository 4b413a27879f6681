"""Static int8 of linear layers: by NNCF, with SmoothQuant and scales of activations from calibration inputs.

Convolutions, attention, norms and embeddings stay in fp32. As no scale is computed from a batch, a clip's vector does
not depend on the others in its batch.
"""

import ast
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wavlink.console import without_foreign_output

from .graphs import Tower
from .sessions import INPUTS, import_openvino, without_telemetry
from .signal_stack import kept_signal_stack

# Types of operations that stay as they are around an int8 product; every other one but products computes in fp32.
_KEPT = {"Constant", "Parameter", "Result", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Convert", "Cast"}
_PRODUCTS = {"MatMul", "Gemm"}
SMOOTHING = 0.95  # SmoothQuant's alpha (arXiv 2211.10438) for products, NNCF's default for transformers
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules that it comes from


def quantize(
    backend: str, source: Path, target: Path, inputs: Sequence[Mapping[str, np.ndarray]], in_fp32: Sequence[str] = ()
) -> list[str]:
    """Write the int8 version of a graph in fp32, and return the names of its linear layers.

    Args:
        backend: `"openvino"` or `"onnx"`.
        source: as `exported.write_graphs` writes it.
        inputs: what the scales of activations are computed from, in batches of one.
        in_fp32: names of linear layers that stay in fp32, such as `audio_model.encoder.layers.0.fc1`.
    """
    if backend == "openvino":
        openvino = import_openvino()
        graph = openvino.Core().read_model(source)
        operations = [(node.get_friendly_name(), node.get_type_name()) for node in graph.get_ordered_ops()]
        layers = [node.get_friendly_name() for node in graph.get_ordered_ops() if _is_linear(node)]
        openvino.save_model(_quantized(graph, operations, layers, inputs, in_fp32), target, compress_to_fp16=False)
    else:
        import onnx

        graph = onnx.load(source)
        layers = _name_linear_nodes(graph)
        operations = [(node.name, node.op_type) for node in graph.graph.node]
        onnx.save(_quantized(graph, operations, layers, inputs, in_fp32), target)
    return layers


def _quantized(graph: Any, operations: list[tuple[str, str]], layers: list[str], inputs: Sequence, in_fp32) -> Any:
    without_telemetry()
    import nncf

    products = [name for name, kind in operations if kind in _PRODUCTS and (name not in layers or name in in_fp32)]
    others = sorted({kind for _, kind in operations} - _KEPT - _PRODUCTS)
    with kept_signal_stack(), without_foreign_output(), redirect_stdout(io.StringIO()):  # of NNCF's progress bars
        return nncf.quantize(
            graph,
            nncf.Dataset([dict(one) for one in inputs]),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=products, types=others, validate=False),
        )


def _is_linear(node: Any) -> bool:
    """Whether an operation of OpenVINO is the product of a linear layer, which has the layer's name."""
    return node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant"


def _name_linear_nodes(graph: Any) -> list[str]:
    """Give the products of linear layers in an ONNX graph the names of the layers, and return these."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    transposed = [node for node in graph.graph.node if node.op_type == "Transpose" and node.input[0] in constants]
    constants |= {node.output[0] for node in transposed}
    layers = []
    for node in graph.graph.node:
        if node.op_type in _PRODUCTS and node.input[1] in constants:
            scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
            modules = [name for name in ast.literal_eval(scopes)[:-1] if name]
            node.name = modules[-1].removeprefix("model.") if modules else node.name
            layers.append(node.name)
    return layers


@torch.no_grad()
def rank_layers(tower: Tower, inputs: Sequence[Mapping[str, np.ndarray]]) -> list[tuple[str, float]]:
    """Rank a tower's linear layers by what int8 in that layer alone does to its vectors, the largest change first.

    The int8 product is simulated in torch, with SmoothQuant.

    Args:
        tower: in fp32.
        inputs: batches of one, from which scales are computed and vectors compared.

    Returns:
        The name of each layer, and the mean cosine of the vectors to those of fp32.
    """
    batches = [[torch.from_numpy(np.asarray(one[name])) for name in INPUTS[tower.name]] for one in inputs]
    layers = {name: layer for name, layer in tower.model.named_modules() if isinstance(layer, nn.Linear)}
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}

    def observe(name: str, values: Tensor) -> None:
        values = values.flatten(0, -2)
        low[name] = torch.minimum(low.get(name, values[0]), values.amin(0))
        high[name] = torch.maximum(high.get(name, values[0]), values.amax(0))

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: observe(name, given[0]))
        for name, layer in layers.items()
    ]
    exact = torch.cat([tower(*batch) for batch in batches])
    for hook in hooks:
        hook.remove()
    cosines = {}
    for name in low:  # those that the tower uses
        product = _Int8Product(layers[name], low[name], high[name])
        hook = layers[name].register_forward_hook(product)
        cosines[name] = (torch.cat([tower(*batch) for batch in batches]) * exact).sum(-1).mean().item()
        hook.remove()
    return sorted(cosines.items(), key=lambda item: item[1])


class _Int8Product:
    """A forward hook that replaces the output of a linear layer by that in int8.

    Args:
        low, high: `[in]`, the range of each input.
    """

    def __init__(self, layer: nn.Linear, low: Tensor, high: Tensor):
        widest = torch.maximum(low.abs(), high.abs()).clamp(min=1e-8)
        columns = layer.weight.abs().amax(0).clamp(min=1e-8)  # (in,)
        self.smoothing = (widest**SMOOTHING / columns ** (1 - SMOOTHING)).clamp(min=1e-8)
        weight = layer.weight * self.smoothing
        step = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        self.weight, self.bias = (weight / step).round() * step, layer.bias
        self.low = min(0.0, (low / self.smoothing).min().item())
        self.step = max((max(0.0, (high / self.smoothing).max().item()) - self.low) / 255, 1e-12)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        zero = round(-self.low / self.step)
        levels = (inputs[0] / self.smoothing / self.step).round().add(zero).clamp(0, 255)
        return nn.functional.linear((levels - zero) * self.step, self.weight, self.bias)
