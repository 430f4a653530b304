"""How much arithmetic an operator is, by the shapes of its tensors. A multiplication and an addition are two FLOPs.

Convolutions and products of matrices are counted exactly (2 * outputs * what is summed for each), recurrent cells by their
matrices, pooling and reductions by what they read, what only moves data as 0, and anything else as 1 for each output.
Shapes with an upper bound, as that of a suppression's output, count with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import openvino as ov

_UNBOUNDED = 2**31 - 1
_MOVES = frozenset(
    (
        *("Assign", "BatchToSpace", "Broadcast", "Concat", "Convert", "ConvertLike"),
        *("DepthToSpace", "ExtractImagePatches", "Gather", "GatherElements", "GatherND", "Identity"),
        *("Pad", "ReadValue", "Reshape", "Result", "Reverse", "ReverseSequence"),
        *("Roll", "ScatterElementsUpdate", "ScatterNDUpdate", "ScatterUpdate", "ShapeOf", "ShuffleChannels"),
        *("Slice", "SpaceToBatch", "SpaceToDepth", "Split", "Squeeze", "StridedSlice"),
        *("Tile", "Transpose", "Unsqueeze", "VariadicSplit", "Parameter", "Constant"),
    )
)
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "AUGRU": 3}


def flops_of(node: ov.Node) -> int | None:
    """None where a shape is not bounded, or a loop's trips are not known."""
    kind = node.get_type_name()
    if kind in _MOVES:
        return 0
    count = _COUNTS.get(kind, _read if kind.startswith("Reduce") else _outputs)
    try:
        return count(node)
    except _Open:
        return None


class _Open(Exception):
    """A dimension has no upper bound."""


def elements(port: Any) -> int:
    """How many elements a port's tensor has, at most. Raises ValueError where that is open."""
    try:
        return math.prod(_shape(port))
    except _Open as error:
        raise ValueError("open") from error


def _shape(port: Any) -> tuple[int, ...]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise _Open
    sizes = tuple(int(size.get_max_length()) for size in shape)
    if any(size < 0 or size >= _UNBOUNDED for size in sizes):
        raise _Open
    return sizes


def _outputs(node: ov.Node) -> int:
    return sum(math.prod(_shape(port)) for port in node.outputs())


def _read(node: ov.Node) -> int:
    return math.prod(_shape(node.input(0)))


def _convolution(node: ov.Node, skipped: int = 1) -> int:
    """Filters (outputs, inputs / groups, height, width), of a grouped one with the groups before: `skipped` is 2."""
    return 2 * math.prod(_shape(node.output(0))) * math.prod(_shape(node.input(1))[skipped:])


def _grouped(node: ov.Node) -> int:
    return _convolution(node, 2)


def _deformable(node: ov.Node) -> int:
    return 2 * math.prod(_shape(node.output(0))) * math.prod(_shape(node.input(2))[1:])


def _backwards(node: ov.Node, skipped: int = 1) -> int:
    """Transposed: each input is spread over outputs / groups * height * width."""
    return 2 * math.prod(_shape(node.input(0))) * math.prod(_shape(node.input(1))[skipped:])


def _grouped_backwards(node: ov.Node) -> int:
    return _backwards(node, 2)


def _product(node: ov.Node) -> int:
    first = _shape(node.input(0))
    summed: int = first[-2] if len(first) > 1 and node.get_attributes()["transpose_a"] else first[-1]
    return 2 * math.prod(_shape(node.output(0))) * summed


def _einsum(node: ov.Node) -> int:
    """All pairs of indices, as if no factor could be taken out."""
    terms = node.get_attributes()["equation"].partition("->")[0].replace(" ", "").split(",")
    if any("." in term for term in terms):
        return _outputs(node)
    sizes = {
        letter: size
        for term, port in zip(terms, node.inputs(), strict=True)
        for letter, size in zip(term, _shape(port), strict=True)
    }
    return 2 * math.prod(sizes.values())


def _pooling(node: ov.Node) -> int:
    return math.prod(_shape(node.output(0))) * int(math.prod(node.get_attributes()["kernel"]))


def _recurrent(node: ov.Node) -> int:
    """Input (N, T, I) or (N, I); the weights are the first two inputs whose last dimensions are I and the hidden size."""
    kind = node.get_type_name()
    gates = next(count for name, count in _GATES.items() if kind.startswith(name))
    data, hidden = _shape(node.input(0)), int(node.get_attributes()["hidden_size"])
    directions = 2 if node.get_attributes().get("direction") == "bidirectional" else 1
    return 2 * math.prod(data[:-1]) * directions * gates * hidden * (data[-1] + hidden)


def _loop(node: ov.Node) -> int:
    trips = node.get_num_iterations()
    if trips < 0:
        raise _Open
    return int(trips) * _body(node.get_function())


def _branches(node: ov.Node) -> int:
    return max(_body(node.get_then_body()), _body(node.get_else_body()))


def _body(model: ov.Model) -> int:
    counts = [flops_of(node) for node in model.get_ops()]
    if None in counts:
        raise _Open
    return sum(count or 0 for count in counts)


_COUNTS: dict[str, Callable[[ov.Node], int]] = {
    "Convolution": _convolution,
    "BinaryConvolution": _convolution,
    "GroupConvolution": _grouped,
    "DeformableConvolution": _deformable,
    "ConvolutionBackpropData": _backwards,
    "GroupConvolutionBackpropData": _grouped_backwards,
    "MatMul": _product,
    "Einsum": _einsum,
    "MaxPool": _pooling,
    "AvgPool": _pooling,
    **{f"{name}{part}": _recurrent for name in _GATES for part in ("Cell", "Sequence")},
    "Loop": _loop,
    "TensorIterator": _loop,
    "If": _branches,
}
