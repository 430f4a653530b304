"""One NVIDIA GPU, and what is held on it: streams, events, memory, kernels, graphs, each closed once and never too late.

    with gpu.current():                       # on every thread that uses the device, around what it does there
        stream, buffer = gpu.stream(), gpu.buffer(1 << 20)
        buffer.upload(pinned, stream)

A `Gpu` retains its device's primary context, the one that TensorRT and ONNX Runtime use. What it hands out belongs to it:
`close()` waits for the device's streams, and frees what its holders have not closed, last made first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from visionpool_server.cuda.driver import Driver, Grid, Handle, Properties
from visionpool_server.cuda.errors import NoDriver

Held = TypeVar("Held", bound="Resource")


class Gpu:
    """Raises NoDriver where there is no such device, CudaError where its context cannot be made."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        count = driver.device_count()
        if not 0 <= ordinal < count:
            there = ", ".join(f"cuda:{i} ({driver.properties(i).name})" for i in range(count)) or "none"
            raise NoDriver(f"there is no device cuda:{ordinal}", hint=f"the driver sees {there}")
        self.driver = driver
        self.ordinal = ordinal
        self.properties: Properties = driver.properties(ordinal)
        self._context = driver.retain(ordinal)
        self._held: dict[int, Resource] = {}  # in the order in which they were made
        self._lock = Lock()
        self._closed = False

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the device this thread's own meanwhile. What other libraries had set is back afterwards."""
        self.driver.push(self._context)
        try:
            yield
        finally:
            self.driver.pop()

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all, of all processes."""
        with self.current():
            return self.driver.memory()

    def stream(self) -> Stream:
        return self._keep(Stream(self, self.driver.create_stream()))

    def event(self, *, timing: bool = False) -> Event:
        return self._keep(Event(self, self.driver.create_event(timing=timing)))

    def buffer(self, size: int) -> DeviceBuffer:
        """So many bytes on the device, at least one. Raises OutOfMemory."""
        return self._keep(DeviceBuffer(self, max(1, size)))

    def pinned(self, size: int) -> PinnedBuffer:
        """So many bytes of this process, at least one, that the device reads and writes by itself. Raises OutOfMemory."""
        return self._keep(PinnedBuffer(self, max(1, size)))

    def module(self, image: bytes) -> Module:
        """Kernels, compiled to PTX or for this device."""
        return self._keep(Module(self, self.driver.load_module(image)))

    @contextmanager
    def captured(self, stream: Stream) -> Iterator[Callable[[], Graph]]:
        """What `stream` is told meanwhile is not done, but kept: afterwards, the yielded call gives it as a graph."""
        graphs: list[Graph] = []
        self.driver.begin_capture(stream.handle)
        try:
            yield lambda: graphs[0]
        finally:
            graphs.append(self._keep(Graph(self, self.driver.end_capture(stream.handle))))

    def close(self) -> None:
        """Waits for what is under way, frees all, and gives the context back. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            held = list(self._held.values())
        with self.current():
            for resource in held:
                if isinstance(resource, Stream):
                    resource.synchronize()
            for resource in reversed(held):
                resource.close()
        self.driver.release(self.ordinal)

    def _keep(self, resource: Held) -> Held:
        with self._lock:
            self._held[id(resource)] = resource
        return resource

    def forget(self, resource: Resource) -> None:
        """Called by what is closed."""
        with self._lock:
            self._held.pop(id(resource), None)


class Resource:
    """Something on a GPU. `close()` frees it, once; the device has to be current then."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            self.gpu.forget(self)
            self._free()

    def _free(self) -> None:
        raise NotImplementedError


class Stream(Resource):
    """What it is told is done one after the other, beside what other streams do. `handle`: as other libraries take it."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        super().__init__(gpu)
        self.handle = handle

    def synchronize(self) -> None:
        self.gpu.driver.synchronize(self.handle)

    def wait(self, event: Event) -> None:
        """What follows waits until the event's last record has happened."""
        self.gpu.driver.wait(self.handle, event.handle)

    def _free(self) -> None:
        self.gpu.driver.destroy_stream(self.handle)


class Event(Resource):
    """A point in a stream's work, which other streams and the host can wait for."""

    def __init__(self, gpu: Gpu, handle: Handle) -> None:
        super().__init__(gpu)
        self.handle = handle

    def record(self, stream: Stream) -> None:
        self.gpu.driver.record(self.handle, stream.handle)

    def synchronize(self) -> None:
        """Returns when it has happened; at once where it was never recorded. Raises CudaError for what failed before it."""
        self.gpu.driver.synchronize_event(self.handle)

    def milliseconds_since(self, start: Event) -> float:
        """Both with timing, and both over."""
        return self.gpu.driver.elapsed_ms(start.handle, self.handle)

    def _free(self) -> None:
        self.gpu.driver.destroy_event(self.handle)


class PinnedBuffer(Resource):
    """Memory of this process that copies need no detour for. `bytes`: all of it, (size,) uint8; gone with `close()`."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        super().__init__(gpu)
        self.size = size
        self.address = gpu.driver.allocate_pinned(size)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))

    def _free(self) -> None:
        self.bytes = np.empty(0, np.uint8)
        self.gpu.driver.free_pinned(self.address)


class DeviceBuffer(Resource):
    """Memory of the device."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        super().__init__(gpu)
        self.size = size
        self.address = gpu.driver.allocate(size)

    def upload(self, host: PinnedBuffer, size: int, stream: Stream) -> None:
        """The first `size` bytes of `host`, which has to stay as it is until the stream is through."""
        self.gpu.driver.upload(self.address, host.address, size, stream.handle)

    def download(self, host: PinnedBuffer, size: int, stream: Stream) -> None:
        """The first `size` bytes into `host`."""
        self.gpu.driver.download(host.address, self.address, size, stream.handle)

    def _free(self) -> None:
        self.gpu.driver.free(self.address)


class Module(Resource):
    """Compiled kernels."""

    def __init__(self, gpu: Gpu, handle: Handle) -> None:
        super().__init__(gpu)
        self._handle = handle

    def kernel(self, name: str) -> Kernel:
        """Raises CudaError where there is none of this name."""
        return Kernel(self, self.gpu.driver.function(self._handle, name))

    def _free(self) -> None:
        self.gpu.driver.unload_module(self._handle)


class Kernel:
    """One kernel of a module, as long as that is open."""

    def __init__(self, module: Module, handle: Handle) -> None:
        self._module = module
        self._handle = handle

    def launch(self, grid: Grid, block: Grid, arguments: Sequence[np.generic], stream: Stream) -> None:
        """`arguments`: NumPy scalars of the kernel's own types; addresses are np.uint64."""
        self._module.gpu.driver.launch(self._handle, grid, block, arguments, stream.handle)


class Graph(Resource):
    """What a stream was told, to be said again at once."""

    def __init__(self, gpu: Gpu, handle: Handle) -> None:
        super().__init__(gpu)
        self._handle = handle

    def launch(self, stream: Stream) -> None:
        self.gpu.driver.launch_graph(self._handle, stream.handle)

    def _free(self) -> None:
        self.gpu.driver.destroy_graph(self._handle)
