"""Exports of tiny WavLinks whose graphs are made by hand, which is faster than tracing a model."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wavlink.backends import exported
from wavlink.backends.choice import record_name
from wavlink.backends.standalone import KEY
from wavlink.loading import load_for_evaluation

TYPES = {"audio": TensorProto.FLOAT, "text": TensorProto.INT64}
# Code of a process that finds neither torch nor transformers, as where they are not installed.
REFUSED = """
import sys
from importlib.machinery import PathFinder

class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torch", "transformers")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
"""


def write_export(folder: Path, precision: str = "fp32") -> dict:
    """Give a WavLink's folder an ONNX export, whose vectors depend on every input that is attended to.

    A clip's vector is the mean of its frames, a text's the mean of its tokens' vectors, each through a random matrix.
    """
    model, processor = load_for_evaluation(str(folder))
    target = folder / "onnx"
    target.mkdir(exist_ok=True)
    (target / record_name(precision)).unlink(missing_ok=True)
    rng, config, towers = np.random.default_rng(0), model.config, {}
    sizes = {"audio": config.audio_config.num_mel_bins, "text": config.text_config.vocab_size}
    for name, size in sizes.items():
        path = exported.graph_path(target, "onnx", name, precision)
        weights = rng.normal(size=(size, config.projection_dim)).astype(np.float32)
        onnx.save(_graph(name, weights, config.audio_config.num_mel_bins), path)
        towers[name] = {"file": path.name, "inputs": list(exported.INPUTS[name])}
    identity, facts = exported.model_identity(model), exported.standalone_facts(folder, model, processor)
    return exported.write_record(target, identity, "onnx", precision, towers, **{KEY: facts})


def change_record(folder: Path, precision: str = "fp32", **fields) -> None:
    """Change fields of an export's record; None removes one."""
    path = folder / "onnx" / record_name(precision)
    record = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def _graph(name: str, weights: np.ndarray, bands: int) -> onnx.ModelProto:
    inputs = exported.INPUTS[name]
    axes = ["batch", bands, "length"] if name == "audio" else ["batch", "length"]
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "second")]
    nodes = [helper.make_node("Cast", [inputs[1]], ["mask"], to=TensorProto.FLOAT)]
    if name == "audio":
        nodes.append(helper.make_node("Transpose", [inputs[0]], ["rows"], perm=[0, 2, 1]))
        nodes.append(helper.make_node("MatMul", ["rows", "weights"], ["states"]))
    else:
        nodes.append(helper.make_node("Gather", ["weights", inputs[0]], ["states"]))
    nodes += [
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["states", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "second"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], [f"{name}_embeds"], axis=-1, p=2),
    ]
    constants.append(numpy_helper.from_array(np.array([2]), "last"))
    graph = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info(inputs[0], TYPES[name], axes),
            helper.make_tensor_value_info(inputs[1], TensorProto.INT64, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info(f"{name}_embeds", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
