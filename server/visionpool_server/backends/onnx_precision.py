"""An ONNX file in half precision: weights of half the size, arithmetic in FP16, inputs and outputs as they were.

TensorRT's networks are strongly typed: what computes in FP16 is what the file says does. The types are right by construction
here: each node either computes in half or as before, and takes its inputs in its own type; a Cast stands where the two meet.
(onnxconverter_common's conversion asks the graph's value_info instead, and what shape inference does not reach comes out wrong.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from visionpool_server.backends import onnx_graph as graphs
from visionpool_server.backends.onnx_batch_norm import fold_batch_norms
from visionpool_server.backends.onnx_graph import ModelProto, Node

FULL, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_LARGEST, _SMALLEST = 65504.0, 2.0**-14  # of half precision's numbers, and of those with all their bits
_FULL_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}  # scales
_FULL = {  # these add up or grow beyond what half precision holds, or have no type for it
    *("NonMaxSuppression", "RoiAlign", "Range", "CumSum", "Exp", "Pow", "Reciprocal", "Log", "Det", "Einsum"),
    *("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"),
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization", "BatchNormalization"),
    *("MeanVarianceNormalization", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "LRN"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
}
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_TYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype"}


def to_half(source: Path, target: Path) -> None:
    """Writes `source` in half precision.

    In single precision stay: what follows the last learned layers (boxes in pixels have 11 bits otherwise), operators whose
    sums or powers overflow, nodes with weights beyond 65504 or with a constant too small for it, operators that are not
    ONNX's own, and graphs within nodes. Raises InvalidModel; ModuleNotFoundError without `onnx`.
    """
    model = graphs.read(source)
    halve(model)
    graphs.write(model, target, source)


def halve(model: ModelProto) -> None:
    """As `to_half`, in place. Nodes that are in half precision already stay so."""
    fold_batch_norms(model)
    _Halving(model).run()
    graphs.prune(model)


class _Halving:
    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._types = graphs.element_types(model)
        self._weights = graphs.weights_of(model)
        self._tail = graphs.after_the_last_learned_layer(model)
        self._outputs = {value.name for value in model.graph.output}
        self._names: dict[str, dict[int, str]] = {}  # of a tensor: by the type that it is wanted in
        self._nodes: list[Node] = []
        self._taken = set(self._types)

    def run(self) -> None:
        for node in list(self._model.graph.node):
            half = self._computes_in_half(node)
            for index, name in enumerate(node.input):
                if self._types.get(name) == FULL:
                    kept = index in _FULL_INPUTS.get(node.op_type, ())
                    node.input[index] = self._in_type(name, HALF if half and not kept else FULL, node)
            self._provide(graphs.captured(node))
            self._nodes.append(node)
            if half:
                _retype(node)
                self._give_half(node)
        graphs.replace_nodes(self._model, self._nodes)
        del self._model.graph.value_info[:]

    def _computes_in_half(self, node: Node) -> bool:
        if node.domain not in ("", "ai.onnx") or node.op_type in _FULL or node.name in self._tail:
            return False
        if any(True for _ in graphs.subgraphs(node)):
            return False
        if node.op_type == "Cast" and self._types.get(node.input[0]) == FULL:
            return False  # to another type, which it has from all bits
        if not any(self._types.get(name) == FULL for name in (*node.input, *node.output)):
            return False
        return all(_fits(node.op_type, value) for value in self._constants(node))

    def _constants(self, node: Node) -> Iterator[NDArray[Any]]:
        """Those that would become half. The scales of Q/DQ nodes may be small: who makes them chooses such that half can hold."""
        if node.op_type in ROUNDING:
            return
        kept = _FULL_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name in self._weights and self._types[name] == FULL and index not in kept:
                yield numpy_helper.to_array(self._weights[name])

    def _in_type(self, name: str, wanted: int, node: Node) -> str:
        """The name of the tensor in that type, which a Cast makes where nothing has yet."""
        known = self._names.setdefault(name, {FULL: name})
        if wanted not in known:
            known[wanted] = self._new(name, wanted)
            if name in self._weights:
                value = numpy_helper.to_array(self._weights[name])
                graphs.add_weights(self._model, {known[wanted]: _halved(node.op_type, value)})
            else:
                self._cast(next(iter(known.values())), known[wanted], wanted)
        return known[wanted]

    def _give_half(self, node: Node) -> None:
        for index, name in enumerate(node.output):
            if self._types.get(name) == FULL and name:
                node.output[index] = self._new(name, HALF)
                self._names[name] = {HALF: node.output[index]}
        self._provide(self._outputs.intersection(self._names).intersection(self._given(node)))

    def _given(self, node: Node) -> set[str]:
        made = set(node.output)
        return {name for name, known in self._names.items() if known.get(HALF) in made}

    def _provide(self, names: set[str]) -> None:
        """Tensors in single precision under their own names: outputs, and what subgraphs read."""
        for name in sorted(names):
            known = self._names.get(name, {})
            if known and FULL not in known:
                known[FULL] = name
                self._cast(known[HALF], name, FULL)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"Cast_to_{target}", to=kind))

    def _new(self, name: str, kind: int) -> str:
        found = name + ("_f16" if kind == HALF else "_f32")
        while found in self._taken:
            found += "_"
        self._taken.add(found)
        return found


def _fits(kind: str, value: NDArray[Any]) -> bool:
    """Whether half precision can hold these constants. A limit of Clip may be cut; an epsilon must not become zero."""
    finite = np.abs(value[np.isfinite(value)])
    if kind != "Clip" and finite.size and finite.max() > _LARGEST:
        return False
    return value.size != 1 or not finite.size or finite.max() == 0 or finite.max() >= _SMALLEST


def _halved(kind: str, value: NDArray[Any]) -> NDArray[np.float16]:
    if kind == "Clip":
        value = np.clip(value, -_LARGEST, _LARGEST)
    return value.astype(np.float16)


def _retype(node: Node) -> None:
    """Attributes that say the type of what the node gives."""
    for attribute in node.attribute:
        if attribute.name == _TYPE_ATTRIBUTES.get(node.op_type) and attribute.i == FULL:
            attribute.i = HALF
        if node.op_type == "ConstantOfShape" and attribute.t.data_type == FULL:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1, np.float16))
        node.attribute.append(helper.make_attribute("value", zero))
