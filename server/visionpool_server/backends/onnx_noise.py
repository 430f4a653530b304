"""What rounding to 8 bits does to each layer: how much of its signal is noise.

Each quantised layer is computed beside its original, both on the original's own inputs, so that the errors of one layer do not
count for the next. What is measured leaves the graph as a few numbers a channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from visionpool_server.backends import onnx_graph as graphs
from visionpool_server.backends.onnx_graph import ModelProto, Node

_CHANNELS_SECOND = ("Conv", "ConvTranspose")
_MEASURES = ("noise", "signal")
_TINY = 1e-12
_QUIET = 100.0  # dB, for a layer whose output is zero


def loudness_of(
    model: ModelProto, original: ModelProto, layers: Sequence[str], samples: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, float]:
    """Decibels of the signal over the noise by layer, where the noise is the mean of its share of each channel.

    `model`: `original` with Q/DQ nodes before `layers`, and all other nodes as they were.
    """
    import onnxruntime

    beside = _beside(model, original, layers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # Q/DQ nodes stay what they are
    session = onnxruntime.InferenceSession(beside.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [_named(name, what) for name in layers for what in _MEASURES]
    sums: list[NDArray[Any]] = []
    for sample in samples:
        found = session.run(names, dict(sample))
        sums = [np.add(a, b) for a, b in zip(sums, found, strict=True)] if sums else found
    return {name: _decibels(*sums[2 * index : 2 * index + 2]) for index, name in enumerate(layers)}


def _decibels(noise: NDArray[Any], signal: NDArray[Any]) -> float:
    """A channel counts as lost at most once: one that is nearly dead has more noise than signal."""
    live = signal > _TINY
    share = float(np.mean(np.minimum(noise[live] / signal[live], 1.0))) if live.any() else 0.0
    return float(-10 * np.log10(share)) if share > 10 ** (-_QUIET / 10) else _QUIET


def _beside(model: ModelProto, original: ModelProto, layers: Sequence[str]) -> ModelProto:
    wanted, originals = set(layers), {node.name: node for node in original.graph.node}
    found = onnx.ModelProto()
    found.CopyFrom(model)
    there, weights = graphs.weights_of(found), graphs.weights_of(original)
    nodes: list[Node] = []
    for node in found.graph.node:
        nodes.append(node)
        if node.name in wanted:
            twin = onnx.NodeProto()
            twin.CopyFrom(originals[node.name])
            twin.name += "_unrounded"
            for name in twin.input:
                if name in weights and name not in there:
                    found.graph.initializer.append(weights[name])
                    there[name] = weights[name]
            output = node.output[0]
            node.output[0] = output + "_rounded"
            nodes += [twin, *_measuring(node, output, weights[twin.input[1]])]
            for what in _MEASURES:
                value = helper.make_tensor_value_info(_named(node.name, what), onnx.TensorProto.FLOAT, None)
                found.graph.output.append(value)
    graphs.replace_nodes(found, nodes)
    axes = {f"visionpool_axes_{rank}": np.array([0, *range(2, rank)], np.int64) for rank in range(6)}
    graphs.add_weights(found, axes)
    return found


def _measuring(node: Node, output: str, weights: Any) -> list[Node]:
    """Sums of squares of each channel, of what is lost and of what was there; of a product, of each of its last dimension."""
    difference, made = f"{output}_difference", []
    made.append(helper.make_node("Sub", [output, node.output[0]], [difference]))
    seen, axes = (difference, output), f"visionpool_axes_{len(weights.dims)}"
    if node.op_type not in _CHANNELS_SECOND:
        columns = weights.dims[0] if _is_transposed(node) else weights.dims[-1]
        shape, axes = f"visionpool_rows_of_{node.name}", "visionpool_axes_0"
        made.append(helper.make_node("Constant", [], [shape], value_ints=[-1, columns]))
        made += [helper.make_node("Reshape", [name, shape], [f"{name}_rows_of_{node.name}"]) for name in seen]
        seen = (f"{difference}_rows_of_{node.name}", f"{output}_rows_of_{node.name}")
    for name, what in zip(seen, _MEASURES, strict=True):
        made.append(helper.make_node("ReduceSumSquare", [name, axes], [_named(node.name, what)], keepdims=0))
    return made


def _is_transposed(node: Node) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _named(layer: str, what: str) -> str:
    return f"visionpool_{what}_of_{layer}"
