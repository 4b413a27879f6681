"""Convert a tower to OpenVINO's format. A linear layer's product gets the name of the layer."""

from pathlib import Path

import torch

from .graphs import Tower, export_program
from .sessions import INPUTS, import_openvino


def write_openvino(tower: Tower, path: Path) -> None:
    """Write a tower as `path` (xml) and, beside it, its weights in fp32 (bin).

    Raises:
        ValueError: torch or OpenVINO cannot convert it.
    """
    openvino = import_openvino()
    program = export_program(tower)
    layers = linear_layers(program)
    try:
        graph = openvino.convert_model(program)
    except Exception as error:  # also those of OpenVINO's frontend
        raise ValueError(f"the {tower.name} tower cannot be converted to OpenVINO: {error}") from error
    for node, name in zip(graph.inputs, INPUTS[tower.name], strict=True):
        node.get_tensor().set_names({name})
    graph.outputs[0].get_tensor().set_names({f"{tower.name}_embeds"})
    for operation in graph.get_ordered_ops():
        layer = layers.get(operation.get_friendly_name().partition("/")[0])
        if layer and operation.get_type_name() == "MatMul":
            operation.set_friendly_name(layer)
    openvino.save_model(graph, path, compress_to_fp16=False)


def linear_layers(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return the names of linear layers in the model, such as `audio_model.encoder.layers.0.fc1`, by graph node."""
    parameters = program.graph_signature.inputs_to_parameters
    layers = {}
    for node in program.graph.nodes:
        weight = parameters.get(getattr(node.args[1], "name", "")) if len(node.args) > 1 else None
        if weight and node.target is torch.ops.aten.linear.default:
            layers[node.name] = weight.removeprefix("model.").removesuffix(".weight")
    return layers
