"""One trt.IExecutionContext: it is told shapes and addresses, and puts inferences on a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool.errors import InferenceFailed, InvalidRequest

from visionpool_server.backends.tensorrt.loaded import Loaded
from visionpool_server.backends.tensorrt.log import errors
from visionpool_server.backends.tensorrt.ranges import Shapes
from visionpool_server.cuda.gpu import DeviceBuffer, Stream


class Runner:
    """What it was told stays, and is not told again. `memory`: for what it computes in between; None: it has its own.

    One `memory` may serve several that work on one stream.
    """

    def __init__(self, loaded: Loaded, memory: DeviceBuffer | None = None) -> None:
        self._loaded = loaded
        self._context: Any = self._created(memory)  # trt.IExecutionContext
        self.profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._outputs: Shapes = {}

    def _created(self, memory: DeviceBuffer | None) -> Any:
        with errors(self._loaded.api) as found:
            context = self._loaded.api.context(self._loaded.engine, graphs=self._loaded.graphs, lent=memory is not None)
        if context is None:
            raise InferenceFailed(
                f"TensorRT makes no context on {self._loaded.device}: {found.reason}",
                hint="each worker needs device memory of its own: say fewer in workers, or a smaller max in runtime.profiles",
            )
        if memory is not None:
            context.set_device_memory(memory.address, memory.size)
        return context

    def shape(self, profile: int, shapes: Shapes, on_host: Mapping[str, int], stream: Stream) -> Shapes:
        """Outputs' shapes for inputs of these, in which -1 is what only the numbers tell. `on_host`: addresses of inputs
        that are read in RAM, whose numbers are there already. Raises InvalidRequest for shapes that the model refuses."""
        self._choose(profile, stream)
        if shapes == self._shapes and not on_host:
            return self._outputs
        self._shapes = {}
        with errors(self._loaded.api) as found:
            for name, shape in shapes.items():
                if not self._context.set_input_shape(name, shape):
                    raise InferenceFailed(f"TensorRT refuses input {name!r} of shape {list(shape)}: {found.reason}")
            for name, address in on_host.items():
                self._bind(name, address)
            self._infer_shapes(found)
        self._outputs = {each.name: tuple(self._context.get_tensor_shape(each.name)) for each in self._loaded.outputs}
        self._shapes = dict(shapes)
        return self._outputs

    def _choose(self, profile: int, stream: Stream) -> None:
        if profile == self.profile:
            return
        self.profile, self._shapes = None, {}
        with errors(self._loaded.api) as found:
            try:
                taken = self._context.set_optimization_profile_async(profile, stream.handle)
            except RuntimeError:  # the binding's own; it never gives False
                taken = False
            if not taken:
                raise InferenceFailed(f"TensorRT does not take its profile {profile}: {found.reason}")
        self.profile = profile

    def _infer_shapes(self, found: Any) -> None:
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise InvalidRequest(
                f"the model does not take inputs of these shapes together: {found.reason}",
                hint="dimensions that the model joins have to agree",
            ) from error
        if missing:
            raise InferenceFailed(f"TensorRT has not been told enough of {', '.join(map(repr, missing))}")

    def most(self, name: str) -> int:
        """The most bytes that an output may have, for the inputs' shapes as they are; 0 where that is unknown."""
        return max(0, int(self._context.get_max_output_size(name)))

    def bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            self._bind(name, address)

    def _bind(self, name: str, address: int) -> None:
        if self._addresses.get(name) == address:
            return
        self._addresses.pop(name, None)
        if not self._context.set_tensor_address(name, address):
            raise InferenceFailed(f"TensorRT does not take memory for {name!r}")
        self._addresses[name] = address

    def let_allocate(self, name: str, allocator: Any) -> None:
        """`allocator`: a trt.IOutputAllocator; it is asked for an output's memory from now on.

        Told once: the binding holds what it is given as long as the context, and each time once more.
        """
        if self._allocators.get(name) is allocator:
            return
        self._addresses.pop(name, None)
        if not self._context.set_output_allocator(name, allocator):
            raise InferenceFailed(f"TensorRT does not take an allocator for {name!r}")
        self._allocators[name] = allocator

    def enqueue(self, stream: Stream) -> None:
        """Raises InferenceFailed with TensorRT's reason."""
        with errors(self._loaded.api) as found:
            if not self._context.execute_async_v3(stream.handle):
                raise InferenceFailed(f"TensorRT failed: {found.reason}", hint="the server's log has more of it")

    def report_to(self, profiler: Any) -> None:
        """`profiler`: a trt.IProfiler, which has to stay; each `enqueue` then waits, and reports its layers' times."""
        self._context.profiler = profiler

    def close(self) -> None:
        """Nothing may be under way."""
        self._context = None
