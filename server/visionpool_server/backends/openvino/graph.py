"""A model as plain values: its operators and what passes between them, its weights, and the memory that it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import openvino as ov

from visionpool_server.backends.openvino.cost import elements, flops_of
from visionpool_server.backends.openvino.files import dtype_of
from visionpool_server.backends.survey import Edge, Graph, Operator, Weights

STRUCTURE = {"Parameter", "Constant", "Result"}  # graph nodes that no device "runs"
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze"}  # their output is their input's memory
_Port = tuple[int, int]  # a node's id, and which of its outputs


def graph_of(model: ov.Model, shapes: Mapping[str, tuple[int, ...]], *, fixed: bool) -> Graph:
    nodes = model.get_ordered_ops()
    constant = _constants(nodes)
    return Graph(shapes, _operators(nodes, constant), _weights(nodes), _peak(nodes, constant), fixed)


def _constants(nodes: list[ov.Node]) -> set[int]:
    """The ids of what does not depend on what a request brings: it is computed once, when the model is compiled."""
    found: set[int] = set()
    for node in nodes:
        inputs = node.inputs()
        known = node.get_type_name() == "ShapeOf" and inputs[0].get_partial_shape().is_static
        depends = any(_source(port)[0] not in found for port in inputs) or node.get_type_name() == "Parameter"
        if known or not depends:
            found.add(node.get_instance_id())
    return found


def _source(port: Any) -> _Port:
    output = port.get_source_output()
    return output.get_node().get_instance_id(), output.get_index()


def _operators(nodes: list[ov.Node], constant: set[int]) -> tuple[Operator, ...]:
    places: dict[int, int] = {}
    found: list[Operator] = []
    for node in nodes:
        if node.get_type_name() in STRUCTURE:
            continue
        still = node.get_instance_id() in constant
        edges = () if still else tuple(_edges(node, places, constant))
        places[node.get_instance_id()] = len(found)
        flops = 0 if still else flops_of(node)
        found.append(
            Operator(node.get_friendly_name(), node.get_type_name(), edges, flops, not still and _by_value(node))
        )
    return tuple(found)


def _edges(node: ov.Node, places: Mapping[int, int], constant: set[int]) -> list[Edge]:
    sources = [(_source(port), port) for port in node.inputs()]
    return [
        Edge(places[source], index, _size(port))
        for (source, index), port in sources
        if source in places and source not in constant
    ]


def _by_value(node: ov.Node) -> bool:
    return all(port.get_partial_shape().is_static for port in node.inputs()) and any(
        port.get_partial_shape().is_dynamic for port in node.outputs()
    )


def _size(port: Any) -> int | None:
    try:
        return (elements(port) * int(port.get_element_type().bitwidth) + 7) // 8
    except ValueError:
        return None


def _weights(nodes: list[ov.Node]) -> tuple[Weights, ...]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for node in nodes:
        if node.get_type_name() == "Constant":
            total = counts[dtype_of(node.get_element_type())]
            total[0] += elements(node.output(0))
            total[1] += int(node.get_byte_size())
    return tuple(Weights(dtype, *total) for dtype, total in sorted(counts.items(), key=lambda item: -item[1][1]))


def _peak(nodes: list[ov.Node], constant: set[int]) -> int:
    """The largest sum of tensors alive at once, each from where it is made to where it is last used; open ones as 0."""
    owner: dict[_Port, _Port] = {}
    last: dict[_Port, int] = {}
    sizes: dict[_Port, int] = {}
    for at, node in enumerate(nodes):
        used = [owner[source] for port in node.inputs() if (source := _source(port)) in owner]
        last.update(dict.fromkeys(used, at))
        if node.get_instance_id() in constant or node.get_type_name() == "Result":
            continue
        for port in node.outputs():
            key = (node.get_instance_id(), port.get_index())
            owner[key] = used[0] if node.get_type_name() in _VIEWS and used else key
            last[owner[key]] = at
            sizes.setdefault(owner[key], _size(port) or 0)
    return _most_alive(nodes, sizes, last)


def _most_alive(nodes: list[ov.Node], sizes: Mapping[_Port, int], last: Mapping[_Port, int]) -> int:
    at = {node.get_instance_id(): place for place, node in enumerate(nodes)}
    changes = [0] * (len(nodes) + 1)
    for key, size in sizes.items():
        changes[at[key[0]]] += size
        changes[last[key] + 1] -= size
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak
