"""One NVIDIA GPU, and what is held on it: streams, events, memory, kernels, graphs, each closed once and never too late.

    with gpu.current():                       # on every thread that uses the device, around what it does there
        stream, buffer = gpu.stream(), gpu.buffer(1 << 20)
        buffer.upload(pinned, stream)

A `Gpu` retains its device's primary context, the one that TensorRT and ONNX Runtime use. What it hands out belongs to it:
`close()` waits for the device's streams, and frees what its holders have not closed, last made first. What is closed cannot be
used again: that is a ValueError here, and would be a crash in the driver.

Threads may ask for things and close them at once; a stream and what is done on it are one thread's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from visionpool_server.cuda.driver import Driver, Grid, Handle, Properties
from visionpool_server.cuda.errors import CudaError, no_device

Held = TypeVar("Held", bound="Resource")


class Gpu:
    """Raises NoDriver where there is no such device, CudaError where its context cannot be made.

    `for_libraries`: TensorRT or ONNX Runtime works in the context, too. It then stays when the last Gpu is closed, since what
    they hold in it for the whole process would be stale when the next one is opened.
    """

    def __init__(self, driver: Driver, ordinal: int, *, for_libraries: bool = False) -> None:
        count = driver.device_count()
        if not 0 <= ordinal < count:
            raise no_device(ordinal, [driver.properties(i).name for i in range(count)])
        self.driver = driver
        self.ordinal = ordinal
        self.properties: Properties = driver.properties(ordinal)
        self._held: dict[int, Resource] = {}  # in the order in which they were made
        self._lock = RLock()  # what is collected as garbage meanwhile may close this, on this very thread
        self._closed = False
        if for_libraries:
            driver.keep(ordinal)
        self._context = driver.retain(ordinal)  # last: nothing fails after it

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
        size = max(1, size)
        return self._keep(DeviceBuffer(self, self.driver.allocate(size), size))

    def pinned(self, size: int) -> PinnedBuffer:
        """So many bytes of this process, at least one, that the device reads and writes by itself. Raises OutOfMemory."""
        size = max(1, size)
        return self._keep(PinnedBuffer(self, self.driver.allocate_pinned(size), size))

    def module(self, image: bytes) -> Module:
        """Kernels, compiled to PTX or for this device."""
        return self._keep(Module(self, self.driver.load_module(image)))

    @contextmanager
    def captured(self, stream: Stream) -> Iterator[Callable[[], Graph]]:
        """What `stream` is told meanwhile is not done, but kept: afterwards, the yielded call gives it as a graph.

        What is raised meanwhile ends the capture, and there is no graph.
        """
        graphs: list[Graph] = []
        self.driver.begin_capture(stream.handle)
        try:
            yield lambda: graphs[0]
        except BaseException:
            with suppress(CudaError):  # what was raised says more than that its capture is void
                self.driver.destroy_graph(self.driver.end_capture(stream.handle))
            raise
        graphs.append(self._keep(Graph(self, self.driver.end_capture(stream.handle))))

    def close(self) -> None:
        """Waits for what is under way, frees all, and gives the context back. A second call does nothing.

        It goes on where something fails, as all does on a device that is lost, and raises the first error at the end.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            held = list(self._held.values())
        _all([lambda: self._free(held), lambda: self.driver.release(self.ordinal)])

    def _free(self, held: Sequence[Resource]) -> None:
        with self.current():
            streams = [resource for resource in held if isinstance(resource, Stream)]
            _all([*(stream.synchronize for stream in streams), *(resource.close for resource in reversed(held))])

    def _keep(self, resource: Held) -> Held:
        with self._lock:
            if not self._closed:
                self._held[id(resource)] = resource
                return resource
        resource.discard()  # whoever closed this meanwhile has not seen it
        raise ValueError(f"cuda:{self.ordinal} is closed")

    def forget(self, resource: Resource) -> bool:
        """Called by what is closed: True once, for whoever is to free it."""
        with self._lock:
            return self._held.pop(id(resource), None) is not None


def _all(actions: Iterable[Callable[[], None]]) -> None:
    """Does each, whatever becomes of those before, and raises the first error at the end."""
    first: Exception | None = None
    for action in actions:
        try:
            action()
        except Exception as error:
            first = first or error
    if first:
        raise first


class Resource:
    """Something on a GPU. `close()` frees it, once; the device has to be current then."""

    def __init__(self, gpu: Gpu, handle: Handle) -> None:
        self.gpu = gpu
        self._handle = handle
        self._open = True

    @property
    def handle(self) -> Handle:
        """The driver's own for it. Raises ValueError once it is closed."""
        if not self._open:
            self.require_open()
        return self._handle

    def require_open(self) -> None:
        if not self._open:
            raise ValueError(f"this {type(self).__name__} of cuda:{self.gpu.ordinal} is closed")

    def close(self) -> None:
        if self.gpu.forget(self):
            self.discard()

    def discard(self) -> None:
        """Frees it, which only `close` and who made it in vain may do."""
        self._open = False
        self._free(self._handle)

    def _free(self, handle: Handle) -> None:
        raise NotImplementedError


class Stream(Resource):
    """What it is told is done one after the other, beside what other streams do. `handle`: as other libraries take it, an int."""

    def synchronize(self) -> None:
        self.gpu.driver.synchronize(self.handle)

    def wait(self, event: Event) -> None:
        """What follows waits until the event's last record has happened."""
        self.gpu.driver.wait(self.handle, event.handle)

    def _free(self, handle: Handle) -> None:
        self.gpu.driver.destroy_stream(handle)


class Event(Resource):
    """A point in a stream's work, which other streams and the host can wait for."""

    def record(self, stream: Stream) -> None:
        self.gpu.driver.record(self.handle, stream.handle)

    def synchronize(self) -> None:
        """Returns when it has happened; at once where it was never recorded. Raises CudaError for what failed before it."""
        self.gpu.driver.synchronize_event(self.handle)

    def milliseconds_since(self, start: Event) -> float:
        """Both with timing, and both over."""
        return self.gpu.driver.elapsed_ms(start.handle, self.handle)

    def _free(self, handle: Handle) -> None:
        self.gpu.driver.destroy_event(handle)


class PinnedBuffer(Resource):
    """Memory of this process that copies need no detour for. `bytes`: all of it, (size,) uint8; gone with `close()`."""

    def __init__(self, gpu: Gpu, address: int, size: int) -> None:
        super().__init__(gpu, address)
        self.size = size
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    @property
    def address(self) -> int:
        return int(self.handle)

    def _free(self, handle: Handle) -> None:
        self.bytes = np.empty(0, np.uint8)
        self.gpu.driver.free_pinned(handle)


class DeviceBuffer(Resource):
    """Memory of the device."""

    def __init__(self, gpu: Gpu, address: int, size: int) -> None:
        super().__init__(gpu, address)
        self.size = size

    @property
    def address(self) -> int:
        return int(self.handle)

    def upload(self, host: PinnedBuffer, size: int, stream: Stream) -> None:
        """The first `size` bytes of `host`, which has to stay as it is until the stream is through."""
        self.gpu.driver.upload(self.address, host.address, size, stream.handle)

    def download(self, host: PinnedBuffer, size: int, stream: Stream) -> None:
        """The first `size` bytes into `host`."""
        self.gpu.driver.download(host.address, self.address, size, stream.handle)

    def _free(self, handle: Handle) -> None:
        self.gpu.driver.free(handle)


class Module(Resource):
    """Compiled kernels."""

    def kernel(self, name: str) -> Kernel:
        """Raises CudaError where there is none of this name."""
        return Kernel(self, self.gpu.driver.function(self.handle, name))

    def _free(self, handle: Handle) -> None:
        self.gpu.driver.unload_module(handle)


class Kernel:
    """One kernel of a module, as long as that is open."""

    def __init__(self, module: Module, handle: Handle) -> None:
        self._module = module
        self._handle = handle

    def launch(self, grid: Grid, block: Grid, arguments: Sequence[np.generic], stream: Stream) -> None:
        """`arguments`: NumPy scalars of the kernel's own types; addresses are np.uint64."""
        self._module.require_open()
        self._module.gpu.driver.launch(self._handle, grid, block, arguments, stream.handle)


class Graph(Resource):
    """What a stream was told, to be said again at once."""

    def launch(self, stream: Stream) -> None:
        self.gpu.driver.launch_graph(self.handle, stream.handle)

    def _free(self, handle: Handle) -> None:
        self.gpu.driver.destroy_graph(handle)
