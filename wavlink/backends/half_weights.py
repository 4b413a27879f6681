"""Weights of an ONNX graph stored in fp16 and computed in fp32: half the size, for a download."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_LEAST = 1024  # numbers of a tensor that is worth a Cast


def store_in_fp16(source: Path, target: Path) -> None:
    """Write a graph whose large fp32 weights are stored in fp16, each with a Cast to fp32 behind it.

    onnxruntime computes the Casts once, as it opens the graph. Weights that fp16 cannot hold stay as they are.
    """
    model = onnx.load(source)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _LEAST:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16"))
        casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], name=f"{name}_fp32", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
