"""Which input shapes an engine holds compiled: at most so many, the one used least lately gives way.

Memory must not grow with the pictures that come. On the CPU one model of dynamic shapes serves them all, and OpenVINO keeps
the kernels of the last few (`kernels_for`). Devices that want fixed shapes get a model compiled for each size, here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

import openvino as ov

from visionpool_server.backends import ShapeUse

Shape = tuple[tuple[int, ...], ...]  # of all inputs, in their order
_FREE = {"Parameter", "Constant", "Result", "ShapeOf"}  # nothing is compiled for these


class ShapeCache:
    """`compile_for(shape)`: None where one model takes all shapes, and this only keeps count."""

    def __init__(self, limit: int, compile_for: Callable[[Shape], ov.CompiledModel] | None = None) -> None:
        self._limit = limit
        self._compile_for = compile_for
        self._held: OrderedDict[Shape, ov.CompiledModel | None] = OrderedDict()
        self._dropped = 0
        self._compiling = Lock()  # one at a time, while what is compiled goes on being found

    def get(self, shape: Shape) -> ov.CompiledModel | None:
        """The model compiled for `shape`, now if need be: whoever wants the same then waits for it. Raises InvalidModel, and
        what is held stays."""
        try:  # without a lock, which costs more than either: each is atomic, and what gives way in between is missing
            self._held.move_to_end(shape)
            return self._held[shape]
        except KeyError:
            return self._missing(shape)

    def _missing(self, shape: Shape) -> ov.CompiledModel | None:
        with self._compiling:
            with suppress(KeyError):
                return self._held[shape]  # of who compiled meanwhile
            compiled = self._compile_for(shape) if self._compile_for else None
            self._keep(shape, compiled)
            return compiled

    def _keep(self, shape: Shape, compiled: ov.CompiledModel | None) -> None:
        if len(self._held) >= self._limit:
            self._held.popitem(last=False)
            self._dropped += 1
        self._held[shape] = compiled

    def put(self, compiled: ov.CompiledModel) -> None:
        """Takes in a model of fixed shapes."""
        self._keep(tuple(tuple(port.shape) for port in compiled.inputs), compiled)

    def holds(self, compiled: ov.CompiledModel) -> bool:
        return any(held is compiled for held in list(self._held.values()))

    def use(self) -> ShapeUse:
        return ShapeUse(self._limit, len(self._held), self._dropped)


def kernels_for(model: ov.Model, shapes: int) -> int:
    """How many kernels OpenVINO's CPU plugin has to keep for so many shapes: it counts them by kind of operator."""
    kinds = Counter(kind for node in model.get_ops() if (kind := node.get_type_name()) not in _FREE)
    return shapes * max(kinds.values(), default=1)
