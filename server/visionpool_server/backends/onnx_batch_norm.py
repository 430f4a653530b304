"""Batch norms of an inference graph, folded into the convolution before them, or made a product and a sum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from visionpool_server.backends import onnx_graph as graphs
from visionpool_server.backends.onnx_graph import ModelProto, Node

_EPSILON = 1e-5  # where the node does not say it


def fold_batch_norms(model: ModelProto) -> None:
    """Their variances may be too small for half precision; what is folded is not. Computed in double precision."""
    weights, types = graphs.weights_of(model), graphs.tensor_types(model)
    users = _users(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes: list[Node] = []
    for node in model.graph.node:
        if not _is_plain(node, weights):
            nodes.append(node)
            continue
        factor, offset = _affine(node, weights)
        before = makers.get(node.input[0])
        if before is not None and _takes_it(before, weights, users):
            _fold(model, before, factor, offset, weights)
            before.output[0] = node.output[0]
        elif rank := len(types[node.input[0]].shape.dim) if node.input[0] in types else 0:
            nodes.extend(_as_product_and_sum(model, node, factor, offset, rank=rank))
        else:
            nodes.append(node)
    graphs.replace_nodes(model, nodes)
    graphs.prune(model)


def _users(model: ModelProto) -> dict[str, int]:
    counts: dict[str, int] = {value.name: 1 for value in model.graph.output}
    for node in model.graph.node:
        for name in (*node.input, *graphs.captured(node)):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _is_plain(node: Node, weights: dict[str, Any]) -> bool:
    """With constants, and giving nothing but the normalised tensor."""
    if node.op_type != "BatchNormalization" or len([name for name in node.output if name]) != 1:
        return False
    return all(name in weights for name in node.input[1:5])


def _affine(node: Node, weights: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scale, bias, mean, variance = (graphs.values(weights[name]).astype(np.float64) for name in node.input[1:5])
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), _EPSILON)
    factor = scale / np.sqrt(variance + epsilon)
    return factor, bias - mean * factor


def _takes_it(node: Node, weights: dict[str, Any], users: dict[str, int]) -> bool:
    return (
        node.op_type == "Conv"
        and users.get(node.output[0]) == 1
        and all(name in weights for name in node.input[1:] if name)
    )


def _fold(
    model: ModelProto, conv: Node, factor: NDArray[np.float64], offset: NDArray[np.float64], weights: dict[str, Any]
) -> None:
    kernel = graphs.values(weights[conv.input[1]])
    bias = graphs.values(weights[conv.input[2]]) if len(conv.input) > 2 and conv.input[2] else np.zeros(len(kernel))
    shape = (-1, *[1] * (kernel.ndim - 1))
    names = (f"{conv.name}_kernel_folded", f"{conv.name}_bias_folded")
    folded = (kernel * factor.reshape(shape), bias * factor + offset)
    graphs.add_weights(model, {name: value.astype(kernel.dtype) for name, value in zip(names, folded, strict=True)})
    conv.input[:] = [conv.input[0], *names]


def _as_product_and_sum(
    model: ModelProto, node: Node, factor: NDArray[np.float64], offset: NDArray[np.float64], *, rank: int
) -> list[Node]:
    shape = (-1, *[1] * max(0, rank - 2))
    names = (f"{node.name}_factor", f"{node.name}_offset")
    arrays = (value.reshape(shape).astype(np.float32) for value in (factor, offset))
    graphs.add_weights(model, dict(zip(names, arrays, strict=True)))
    product = f"{node.output[0]}_times_factor"
    return [
        helper.make_node("Mul", [node.input[0], names[0]], [product], name=f"{node.name}_product"),
        helper.make_node("Add", [product, names[1]], [node.output[0]], name=f"{node.name}_sum"),
    ]
