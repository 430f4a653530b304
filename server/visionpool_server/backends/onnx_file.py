"""What an ONNX file says, read without a runtime: its inputs and outputs, what was written beside them, how its outputs end.

Neither TensorRT nor ONNX Runtime shows all of it, and `onnx` is not installed where models are served. Field numbers are those
of onnx.proto. Weights are passed over: of a gigabyte only the nodes and names are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.backends import Ending, TensorSpec
from visionpool_server.backends.onnx_endings import Node, ending
from visionpool_server.backends.protobuf import Message

_MODEL_GRAPH, _MODEL_PROPS = 7, 14
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_KIND, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_ELSEWHERE = 2, 8, 13
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "bytes", 9: "bool"},
    **{10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"},
    **{17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4"},
    23: "float4e2m1",
}
_NO_TENSORS = {4: "sequence", 5: "map", 8: "sparse_tensor", 9: "optional"}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear"}
_DEPTH = 32  # of graphs within graphs: real files have two or three


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """`operators`: types of the nodes, of those in subgraphs too; `element_types`: dtypes of weights; `external`: names of
    files with weights, relative to its folder."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    endings: Mapping[str, Ending]
    operators: frozenset[str]
    element_types: frozenset[str]
    external: tuple[str, ...]

    @property
    def quantized(self) -> bool:
        """Whether it says by itself what is computed in 8 bits."""
        return bool(_QUANTIZED & self.operators)


@dataclass(slots=True)
class _Found:
    """What is collected on the way through a graph and those in its nodes."""

    makers: dict[str, Node] = field(default_factory=dict)  # of the outermost graph
    weights: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    element_types: set[str] = field(default_factory=set)
    external: dict[str, None] = field(default_factory=dict)


def read_onnx(path: Path) -> OnnxFile:
    """Raises InvalidModel for what is no ONNX file, or a damaged one."""
    try:
        with _mapped(path) as data:
            return _model(Message(data, 0, len(data)))
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise InvalidModel(
            f"{path.name} is no ONNX file, or a damaged one: {str(error)[:200]}", hint="export it again"
        ) from error


def node_kinds(path: Path) -> tuple[str, ...]:
    """The operator type of each node of the outermost graph, in the order of the file. Raises InvalidModel."""
    try:
        with _mapped(path) as data:
            graphs = Message(data, 0, len(data)).messages(_MODEL_GRAPH)
            return tuple("".join(node.texts(_NODE_KIND)) for graph in graphs for node in graph.messages(_NODE))
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path.name} cannot be read: {str(error)[:200]}", hint="export it again") from error


def with_own_names(path: Path) -> bytes | None:
    """The file where each open dimension of its inputs that older exporters of Paddle call "?" has a name of its own: to
    TensorRT equal names are equal sizes. None where it has none of these. Raises OSError, ValueError."""
    with _mapped(path) as data:
        graphs = list(Message(data, 0, len(data)).messages(_MODEL_GRAPH))
        places = [
            name.start for graph in graphs for value in graph.messages(_INPUT) for name in _dimension_names(value)
        ]
        unknown = [
            place for place in places if data[place - 1 : place + 1] == b"\x01?"
        ]  # its length, and its only letter
        if not 1 < len(unknown) < ord(" "):
            return None
        renamed = bytearray(data)
    for number, place in enumerate(unknown, start=1):
        renamed[place] = number  # a control character: no name that anybody gives
    return bytes(renamed)


def _dimension_names(value: Message) -> Iterator[Message]:
    """TypeProto.tensor_type 1 of type 2, its shape 2, dim 1, dim_param 2."""
    tensors = (tensor for kind in value.messages(2) for tensor in kind.messages(1))
    shapes = (shape for tensor in tensors for shape in tensor.messages(2))
    return (name for shape in shapes for size in shape.messages(1) for name in size.messages(2))


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            yield data


def _model(model: Message) -> OnnxFile:
    graph = next(model.messages(_MODEL_GRAPH), None)
    if graph is None:
        raise ValueError("it has no graph")
    found = _Found()
    _walk(graph, found, 0)
    outputs = tuple(map(_spec, graph.messages(_OUTPUT)))
    if not outputs:
        raise ValueError("its graph has no outputs")
    endings = {spec.name: ending(spec.name, found.makers, found.constants | found.weights) for spec in outputs}
    return OnnxFile(
        inputs=tuple(spec for spec in map(_spec, graph.messages(_INPUT)) if spec.name not in found.weights),
        outputs=outputs,
        metadata=dict(map(_entry, model.messages(_MODEL_PROPS))),
        endings={name: known for name, known in endings.items() if known},
        operators=frozenset(found.operators),
        element_types=frozenset(found.element_types),
        external=tuple(found.external),
    )


def _walk(graph: Message, found: _Found, depth: int) -> None:
    if depth > _DEPTH:
        raise ValueError("its graphs are nested too deeply")
    for number, content in graph.fields():
        if not isinstance(content, Message):
            continue
        if number == _NODE:
            _take_node(content, found, depth)
        elif number == _INITIALIZER:
            _take_weights(content, found)
            found.weights.update(content.texts(_TENSOR_NAME) if depth == 0 else ())
        elif number == _SPARSE:
            for tensor in content.messages(1):
                _take_weights(tensor, found)


def _take_node(node: Message, found: _Found, depth: int) -> None:
    kind = "".join(node.texts(_NODE_KIND))
    found.operators.add(kind)
    if depth == 0:
        made = Node(kind, node.texts(_NODE_INPUT), node.texts(_NODE_OUTPUT))
        found.makers.update(dict.fromkeys(made.outputs, made))
        found.constants.update(made.outputs if kind == "Constant" else ())
    for attribute in node.messages(_NODE_ATTRIBUTE):
        for number, content in attribute.fields():
            if number in _ATTRIBUTE_TENSORS and isinstance(content, Message):
                _take_weights(content, found)
            elif number in _ATTRIBUTE_GRAPHS and isinstance(content, Message):
                _walk(content, found, depth + 1)


def _take_weights(tensor: Message, found: _Found) -> None:
    found.element_types.add(_dtype(tensor.number(_TENSOR_TYPE, 0)))
    for key, value in map(_entry, tensor.messages(_TENSOR_ELSEWHERE)):
        if key == "location":
            found.external[value] = None


def _entry(pair: Message) -> tuple[str, str]:
    """Of a map of strings; what is left out is empty."""
    return "".join(pair.texts(_KEY)), "".join(pair.texts(_VALUE))


def _spec(value: Message) -> TensorSpec:
    """ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its Tensor: elem_type 1, shape 2; TensorShapeProto: dim 1."""
    name = "".join(value.texts(1))
    for kind in value.messages(2):
        for number, content in kind.fields():
            if number == 1 and isinstance(content, Message):
                shape = next(content.messages(2), None)
                sizes = None if shape is None else tuple(map(_size, shape.messages(1)))
                return TensorSpec(name, sizes, _dtype(content.number(1, 0)))
            if number in _NO_TENSORS:
                return TensorSpec(name, None, _NO_TENSORS[number])
    return TensorSpec(name, None, "undefined")


def _size(dimension: Message) -> int | None:
    """TensorShapeProto.Dimension: dim_value 1, dim_param 2. Paddle writes -1 where it leaves one open, others nothing."""
    value = dimension.number(1)
    return value if value is not None and value >= 0 and not dimension.texts(2) else None


def _dtype(code: int | None) -> str:
    return _DTYPES.get(code or 0, f"type {code}")
