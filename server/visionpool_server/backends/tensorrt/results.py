"""A batch on its way out: where TensorRT writes the outputs of one set, and how they come to pinned memory."""

from __future__ import annotations

from visionpool.errors import InferenceFailed

from visionpool_server.backends import Tensors
from visionpool_server.backends.tensorrt.buffers import BufferSet
from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.outputs import Allocator, allocator
from visionpool_server.backends.tensorrt.ranges import Shapes
from visionpool_server.backends.tensorrt.runner import Runner
from visionpool_server.cuda.gpu import Stream


class Results:
    """The outputs of one set of buffers. What only the numbers size gets its memory by an allocator.

    `allocators`: by output, of all that use the same Runner; made where they are first needed.
    """

    def __init__(self, loaded: Loaded, buffers: BufferSet, allocators: dict[str, Allocator]) -> None:
        self._loaded = loaded
        self._buffers = buffers
        self._allocators = allocators
        self._shapes: Shapes = {}

    def expect(self, shapes: Shapes) -> None:
        """`shapes`: of the outputs, as far as the inputs tell. Reserves the memory of those that they do."""
        self._shapes = shapes
        for name, shape in shapes.items():
            slot = self._buffers.slots[name]
            if self._is_open(name):
                if name not in self._allocators:
                    self._allocators[name] = allocator(self._loaded.api)
                self._allocators[name].expect(slot)
            else:
                slot.pinned(slot.tensor.size(shape))
                if not slot.tensor.on_host:
                    slot.device(slot.tensor.size(shape))

    @property
    def open(self) -> bool:
        """Whether some output's size is known only after the inference."""
        return any(map(self._is_open, self._shapes))

    def _is_open(self, name: str) -> bool:
        return -1 in self._shapes[name]

    def addresses(self) -> dict[str, int]:
        """Where TensorRT writes those whose size is known."""
        found = {}
        for name, shape in self._shapes.items():
            slot = self._buffers.slots[name]
            if not self._is_open(name):
                size = slot.tensor.size(shape)
                found[name] = (slot.pinned(size) if slot.tensor.on_host else slot.device(size)).address
        return found

    def offer(self, runner: Runner) -> None:
        """Has TensorRT ask for the memory of the others."""
        for name in filter(self._is_open, self._shapes):
            runner.let_allocate(name, self._allocators[name])

    def enqueue(self, runner: Runner, stream: Stream) -> None:
        """Raises InferenceFailed, or what stood in the way of more memory."""
        try:
            runner.enqueue(stream)
        except InferenceFailed:
            for name in filter(self._is_open, self._shapes):
                self._allocators[name].raise_refusal()
            raise
        self._shapes = {name: self._final(name) for name in self._shapes}

    def _final(self, name: str) -> tuple[int, ...]:
        shape = self._allocators[name].shape if self._is_open(name) else self._shapes[name]
        if shape is None:
            raise InferenceFailed(f"TensorRT does not say how large its output {name!r} is")
        return shape

    def download(self, stream: Stream) -> None:
        for name, shape in self._shapes.items():
            slot = self._buffers.slots[name]
            if not slot.tensor.on_host:
                slot.download(shape, stream)

    def shapes(self) -> Shapes:
        """Of the outputs, after `enqueue`."""
        return self._shapes

    def views(self, shapes: Shapes) -> Tensors:
        return {name: self._buffers.slots[name].view(shape) for name, shape in shapes.items()}
