"""What the last operators of an ONNX graph tell of its outputs: whether they are probabilities already, or logits."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

from visionpool_server.backends import Ending

_KNOWN: dict[str, Ending] = {"Softmax": "softmax", "Sigmoid": "sigmoid", "ArgMax": "argmax"}
_LINEAR = {"Gemm", "MatMul", "Conv", "ConvTranspose"}
_MOVING = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
_STEPS = 16  # so far back at most


class Node(NamedTuple):
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def ending(name: str, makers: Mapping[str, Node], constants: Container[str]) -> Ending | None:
    """Of the output `name`; None where its last operators do not tell. `makers`: the node that makes each tensor."""
    shifted = False  # by a bias, which makes a linear layer's numbers no less logits, and probabilities none
    for _ in range(_STEPS):
        node = makers.get(name)
        if node is None:
            return None
        if node.kind in _LINEAR:
            return "logits"
        if node.kind in _KNOWN:
            return None if shifted else _KNOWN[node.kind]
        computed = [each for each in node.inputs if each not in constants]
        if node.kind == "Add" and len(computed) == 1:
            shifted = True
        elif node.kind not in _MOVING or not computed:
            return None
        name = computed[0]
    return None
