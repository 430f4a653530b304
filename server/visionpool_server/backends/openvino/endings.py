"""What a graph's last operators tell of its outputs: whether they are probabilities already, or logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov

from visionpool_server.backends import Ending

_KNOWN: dict[str, Ending] = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "TopK": "argmax",
}
_LINEAR = {"MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData"}
# Operators that move numbers and leave them what they are.
_MOVING = {"Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Result"}
_STEPS = 16  # so far back at most


def endings(model: ov.Model, names: Sequence[str]) -> dict[str, Ending]:
    """By the names of the outputs; those whose last operator does not tell are left out."""
    found = {name: _ending(port.get_node()) for name, port in zip(names, model.outputs, strict=True)}
    return {name: ending for name, ending in found.items() if ending}


def _ending(node: Any) -> Ending | None:
    shifted = False  # by a bias, which makes a linear layer's numbers no less logits, and probabilities none
    for _ in range(_STEPS):
        kind = node.get_type_name()
        if kind in _LINEAR:
            return "logits"
        if kind in _KNOWN:
            return None if shifted else _KNOWN[kind]
        computed = [port.get_node() for port in node.input_values() if not _is_constant(port.get_node())]
        if kind in ("Add", "Multiply") and len(computed) == 1:
            neutral = _is_neutral(node, 0 if kind == "Add" else 1)
            if not neutral and kind == "Multiply":
                return None
            shifted |= not neutral
        elif kind not in _MOVING or not computed:
            return None
        node = computed[0]
    return None


def _is_constant(node: Any, depth: int = 4) -> bool:
    """Also what is computed of constants alone: a bias is multiplied by 1 where a Gemm was."""
    inputs = node.input_values()
    if not inputs:
        return bool(node.get_type_name() == "Constant")
    return depth > 0 and all(_is_constant(port.get_node(), depth - 1) for port in inputs)


def _is_neutral(node: Any, value: int) -> bool:
    """Whether one input is a constant of nothing but `value`: Paddle's exporter ends graphs in `x * 1 + 0`."""
    nodes = [port.get_node() for port in node.input_values()]
    return any(each.get_type_name() == "Constant" and bool((each.data == value).all()) for each in nodes)
