"""What the last operators of an ONNX file tell of its outputs: whether they are probabilities already, or logits.

ONNX Runtime does not show its graph, so the file is read: protobuf's wire format, of which only the nodes are looked at
(field numbers of onnx.proto: ModelProto.graph 7; GraphProto.node 1, .initializer 5; NodeProto.input 1, .output 2, .op_type 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from visionpool_server.backends import Ending

_KNOWN: dict[str, Ending] = {"Softmax": "softmax", "Sigmoid": "sigmoid", "ArgMax": "argmax"}
_LINEAR = {"Gemm", "MatMul", "Conv", "ConvTranspose"}
_MOVING = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
_STEPS = 16  # so far back at most
_GRAPH, _NODE, _INITIALIZER, _INPUT, _OUTPUT, _KIND, _TENSOR_NAME = 7, 1, 5, 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def endings(weights: Path, names: Sequence[str]) -> dict[str, Ending]:
    """By the names of the outputs; those whose last operator does not tell are left out."""
    try:
        with weights.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            makers, constants = _graph(data)
    except (OSError, ValueError, IndexError):  # it runs all the same: nothing is known of its end, that is all
        return {}
    found = {name: _ending(name, makers, constants) for name in names}
    return {name: ending for name, ending in found.items() if ending}


def _ending(name: str, makers: dict[str, _Node], constants: set[str]) -> Ending | None:
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


def _graph(data: mmap) -> tuple[dict[str, _Node], set[str]]:
    """The node that makes each tensor, and the names of the constants."""
    makers: dict[str, _Node] = {}
    constants: set[str] = set()
    for _, start, end in (each for each in _fields(data, 0, len(data)) if each[0] == _GRAPH):
        for field, first, last in _fields(data, start, end):
            if field == _NODE:
                node = _node(data, first, last)
                makers.update(dict.fromkeys(node.outputs, node))
                constants.update(node.outputs if node.kind == "Constant" else ())
            elif field == _INITIALIZER:
                constants.update(_texts(data, first, last, _TENSOR_NAME))
    return makers, constants


def _node(data: mmap, start: int, end: int) -> _Node:
    kind = "".join(_texts(data, start, end, _KIND))
    return _Node(kind, _texts(data, start, end, _INPUT), _texts(data, start, end, _OUTPUT))


def _texts(data: mmap, start: int, end: int, wanted: int) -> tuple[str, ...]:
    return tuple(data[first:last].decode() for field, first, last in _fields(data, start, end) if field == wanted)


def _fields(data: mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each field that has a length: its number, where its content starts, and where it ends. Raises ValueError."""
    while at < end:
        key, at = _number(data, at)
        match key & 7:
            case 0:
                _, at = _number(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _number(data, at)
                if at + size > end:
                    raise ValueError("a field reaches beyond its message")
                yield key >> 3, at, at + size
                at += size
            case kind:
                raise ValueError(f"this is no protobuf: wire type {kind}")


def _number(data: mmap, at: int) -> tuple[int, int]:
    """A variable-length number, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
