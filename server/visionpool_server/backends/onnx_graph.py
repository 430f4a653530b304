"""ONNX graphs as `visionpool build` rewrites them: read with their weights, brought into one form, checked when written.

    onnx_graph     read, write; which layers are learned, and what follows the last of them
    onnx_precision     -> half precision
    onnx_quantization  -> INT8, as Q/DQ nodes

It needs the package `onnx`, which what serves does not: `onnx_file` reads what serving has to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from visionpool.errors import InvalidModel

Node = Any  # onnx.NodeProto
ModelProto = Any  # onnx.ModelProto

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LEARNED = 256  # fewer weights are arithmetic in disguise, such as YOLOv8's 16 distances that a convolution sums up
_LARGE = 1024  # bytes of a tensor whose values no shape depends on
_ONE_FILE = 1 << 30  # bytes; protobuf ends at twice as many, and the checker needs a copy


def read(path: Path) -> ModelProto:
    """The model with its weights, wherever they lie; constants are initializers, and each node has a name of its own.

    Raises InvalidModel.
    """
    try:
        model = onnx.load(str(path))
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidModel(f"{path.name} is no ONNX file, or a damaged one: {reason(error)}") from error
    graph = model.graph
    if not graph.node:
        raise InvalidModel(f"{path.name} has no nodes: it is no ONNX file, or a damaged one")
    _without_constant_nodes(graph)
    weights = {tensor.name for tensor in graph.initializer}
    _replace(graph.input, [value for value in graph.input if value.name not in weights])
    name_nodes(graph)
    return model


def _without_constant_nodes(graph: Any) -> None:
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    _replace(graph.node, kept)


def name_nodes(graph: Any) -> None:
    """Exporters leave them empty, or give two nodes one."""
    taken = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_of_{node.output[0]}"
        taken.add(node.name)


def write(model: ModelProto, path: Path, source: Path) -> None:
    """Checks it, and the types and shapes of all tensors where those of `source` hold; large weights go into a file beside it.

    Raises InvalidModel.
    """
    large = model.ByteSize() > _ONE_FILE
    where = {"save_as_external_data": True, "location": path.name + ".data"} if large else {}
    onnx.save(model, str(path), **where)
    fault = _fault(path)
    if fault is not None and (_fault(path, full=False) or _fault(source) is None):
        raise InvalidModel(
            f"{source.name} cannot be converted: what comes out is no valid graph: {fault}",
            hint="simplify it first, with onnxsim say, or export it in that precision",
        )


def _fault(path: Path, *, full: bool = True) -> str | None:
    try:
        onnx.checker.check_model(str(path), full_check=full)
    except Exception as error:  # ValidationError, InferenceError and what C++ lets through
        return reason(error)
    return None


def element_types(model: ModelProto) -> dict[str, int]:
    """TensorProto's type of every tensor of the outermost graph. Raises InvalidModel where they cannot be told."""
    return {name: value.elem_type for name, value in tensor_types(model).items()}


def tensor_types(model: ModelProto) -> dict[str, Any]:
    """onnx's TypeProto.Tensor by name, inferred without the weights' values: those of a large model would not fit."""
    light = onnx.ModelProto()
    light.CopyFrom(_without_weights(model))
    try:
        found = onnx.shape_inference.infer_shapes(light, strict_mode=False).graph
    except Exception as error:  # InferenceError and what C++ lets through
        raise InvalidModel(f"the types of its tensors cannot be told: {reason(error)}") from error
    values = (*found.value_info, *found.input, *found.output)
    known = {value.name: value.type.tensor_type for value in values}
    for tensor in found.initializer:
        known[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    return known


def _without_weights(model: ModelProto) -> ModelProto:
    graph, light = model.graph, onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        if tensor.ByteSize() > _LARGE:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            light.graph.initializer.append(tensor)
    light.graph.name = graph.name or "graph"
    return light


def weights_of(model: ModelProto) -> dict[str, Any]:
    """The initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def values(tensor: Any) -> NDArray[Any]:
    """An initializer's, as an array that may be written."""
    return np.array(numpy_helper.to_array(tensor))


def subgraphs(node: Node) -> Iterator[Any]:
    """Those in a node's attributes, of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(node: Node) -> set[str]:
    """The names that a node's subgraphs read, of tensors outside among others."""
    found: set[str] = set()
    for graph in subgraphs(node):
        found.update(value.name for value in graph.output)
        for inner in graph.node:
            found.update(inner.input)
            found.update(captured(inner))
    return found


def learned_layers(model: ModelProto) -> list[Node]:
    """The convolutions and products with weights, in order."""
    sizes = {name: prod(tensor.dims) for name, tensor in weights_of(model).items()}
    return [
        node
        for node in model.graph.node
        if node.op_type in LAYERS and max(sizes.get(name, 0) for name in node.input[:2]) >= _LEARNED
    ]


def after_the_last_learned_layer(model: ModelProto) -> set[str]:
    """The names of the nodes whose results reach no further learned layer: a detector's arithmetic on boxes and scores.

    Boxes in pixels and scores in 0..1 may end in one tensor there. Empty where no layer is a learned one.
    """
    learned = {node.name for node in learned_layers(model)}
    lead: set[str] = set()  # tensors that lead to a learned layer
    rest = set()
    for node in reversed(model.graph.node):
        if node.name in learned or lead.intersection(node.output):
            lead.update(node.input, captured(node))
        else:
            rest.add(node.name)
    return rest if learned else set()


def prune(model: ModelProto) -> None:
    """Removes nodes and weights that no output needs."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input, captured(node))
            kept.append(node)
    _replace(graph.node, kept[::-1])
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def add_weights(model: ModelProto, arrays: Mapping[str, NDArray[Any]]) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())


def replace_nodes(model: ModelProto, nodes: list[Node]) -> None:
    _replace(model.graph.node, nodes)


def _replace(repeated: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del repeated[:]
    repeated.extend(copies)


def reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
