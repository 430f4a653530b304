"""The driver's calls through pycuda. It has no CUDA graphs, and is compiled for one version of CUDA where it is installed.

pycuda gives objects that free what they stand for when Python drops them, and only on a thread where their context is current.
So they are held here by number, in no variable of a function, which an exception would keep alive, and dropped by the call that
frees. What fails in freeing pycuda writes to stderr: it raises nothing. It has a stack of contexts for each thread beside the
driver's, and aborts the process where a thread ends and has not emptied it: the two are kept in step here.
"""

from __future__ import annotations

import atexit
import ctypes
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import count
from threading import Lock, RLock
from typing import Any

import numpy as np

from visionpool_server.cuda.driver import Grid, Handle, Properties
from visionpool_server.cuda.errors import CudaError, NoDriver, no_library, not_initialised, refused, too_old

_KEEPING = Lock()
_KEPT: set[int] = set()  # the devices whose context this process never gives back
_READ, _WRITE = 0x100, 0x200  # PyBUF_READ, PyBUF_WRITE
_of_memory = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_memoryview_of = _of_memory(("PyMemoryView_FromMemory", ctypes.pythonapi))


@dataclass(slots=True)
class _Retained:
    context: Any
    times: int = 1


@dataclass(slots=True)
class _Held:
    """pycuda's objects by our numbers for them: addresses and streams are the driver's own."""

    contexts: dict[int, _Retained] = field(default_factory=dict)  # by ordinal
    streams: dict[int, Any] = field(default_factory=dict)
    events: dict[int, Any] = field(default_factory=dict)
    memory: dict[int, Any] = field(default_factory=dict)
    pinned: dict[int, Any] = field(default_factory=dict)
    modules: dict[int, Any] = field(default_factory=dict)
    functions: dict[tuple[int, str], Any] = field(default_factory=dict)  # by module and name; they keep their module


class PycudaDriver:
    """Implements `Driver`. Raises NoDriver where pycuda cannot be imported, which takes a driver."""

    name = "pycuda"
    graphs = False

    def __init__(self) -> None:
        self._cuda = _import()
        self._held = _Held()
        self._numbers = count(1)
        self._lock = RLock()  # of what is retained; what is collected as garbage meanwhile may release
        atexit.register(_abandon, self._held)

    def device_count(self) -> int:
        try:
            self._call(self._cuda.init)
        except CudaError as error:
            if error.status == "CUDA_ERROR_NO_DEVICE":
                return 0
            raise not_initialised(error.status) from error
        return int(self._call(self._cuda.Device.count))

    def properties(self, ordinal: int) -> Properties:
        device = self._call(self._cuda.Device, ordinal)
        processors = self._cuda.device_attribute.MULTIPROCESSOR_COUNT
        return Properties(
            name=self._call(device.name),
            capability=self._call(device.compute_capability),
            memory=self._call(device.total_memory),
            multiprocessors=self._call(device.get_attribute, processors),
            bus=self._call(device.pci_bus_id).lower(),
        )

    def retain(self, ordinal: int) -> Handle:
        with self._lock:
            if ordinal in self._held.contexts:
                self._held.contexts[ordinal].times += 1
            else:
                device = self._call(self._cuda.Device, ordinal)
                self._held.contexts[ordinal] = _Retained(self._call(device.retain_primary_context))
        return ordinal

    def release(self, ordinal: int) -> None:
        with self._lock:
            retained = self._find(self._held.contexts, ordinal, "cuDevicePrimaryCtxRelease")
            retained.times -= 1
            if retained.times:
                return
            del self._held.contexts[ordinal]
        # Not by pycuda, which can on one thread only, and takes it that the driver pops what is released: it is not to try again.
        _keep_for_ever(retained.context)
        if status := _library().cuDevicePrimaryCtxRelease_v2(ordinal):
            raise refused("cuDevicePrimaryCtxRelease", _status_name(status))

    def keep(self, ordinal: int) -> None:
        with _KEEPING:
            if ordinal not in _KEPT:  # not by pycuda, which would give it back at the end
                if status := _library().cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), ordinal):
                    raise refused("cuDevicePrimaryCtxRetain", _status_name(status))
                _KEPT.add(ordinal)

    def push(self, context: Handle) -> None:
        self._switch(self._find(self._held.contexts, context, "cuCtxPushCurrent").context.push)

    def pop(self) -> None:
        self._switch(self._cuda.Context.pop)

    def _switch(self, change: Callable[[], Any]) -> None:
        """pycuda has one context at a time on the driver's stack. Where the next is refused, the one before is put back."""
        try:
            self._call(change)
        except CudaError as error:
            before = self._cuda.Context.get_current() if error.call == "cuCtxPushCurrent" else None
            if before is not None:
                _library().cuCtxPushCurrent_v2(ctypes.c_void_p(before.handle))
            raise

    def memory(self) -> tuple[int, int]:
        free, total = self._call(self._cuda.mem_get_info)
        return free, total

    def allocate(self, size: int) -> int:
        allocation = self._call(self._cuda.mem_alloc, size)
        self._held.memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._find(self._held.memory, address, "cuMemFree")
        self._call(self._held.memory.pop(address).free)

    def allocate_pinned(self, size: int) -> int:
        array = self._call(self._cuda.pagelocked_empty, size, np.uint8)
        address = int(array.ctypes.data)
        self._held.pinned[address] = array.base
        return address

    def free_pinned(self, address: int) -> None:
        self._find(self._held.pinned, address, "cuMemFreeHost")
        self._call(self._held.pinned.pop(address).free)

    def create_stream(self) -> int:
        stream = self._call(self._cuda.Stream, 1)  # CU_STREAM_NON_BLOCKING, which pycuda has no name for
        self._held.streams[stream.handle] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        self._stream(stream, "cuStreamDestroy")
        del self._held.streams[stream]

    def synchronize(self, stream: int) -> None:
        self._call(self._stream(stream, "cuStreamSynchronize").synchronize)

    def create_event(self, *, timing: bool = False) -> Handle:
        flags, number = self._cuda.event_flags, next(self._numbers)
        said = flags.BLOCKING_SYNC if timing else flags.BLOCKING_SYNC | flags.DISABLE_TIMING
        self._held.events[number] = self._call(self._cuda.Event, said)
        return number

    def destroy_event(self, event: Handle) -> None:
        self._event(event, "cuEventDestroy")
        del self._held.events[event]

    def record(self, event: Handle, stream: int) -> None:
        self._call(self._event(event, "cuEventRecord").record, self._stream(stream, "cuEventRecord"))

    def wait(self, stream: int, event: Handle) -> None:
        call = "cuStreamWaitEvent"
        self._call(self._stream(stream, call).wait_for_event, self._event(event, call))

    def synchronize_event(self, event: Handle) -> None:
        self._call(self._event(event, "cuEventSynchronize").synchronize)

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        call = "cuEventElapsedTime"
        return float(self._call(self._event(end, call).time_since, self._event(start, call)))

    def upload(self, device: int, host: int, size: int, stream: int) -> None:
        view = _view(host, size, _READ)
        self._call(self._cuda.memcpy_htod_async, device, view, self._stream(stream, "cuMemcpyHtoDAsync"))

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        view = _view(host, size, _WRITE)
        self._call(self._cuda.memcpy_dtoh_async, view, device, self._stream(stream, "cuMemcpyDtoHAsync"))

    def load_module(self, image: bytes) -> Handle:
        number = next(self._numbers)
        self._held.modules[number] = self._call(self._cuda.module_from_buffer, image + b"\0")  # NUL: the end of PTX
        return number

    def unload_module(self, module: Handle) -> None:
        self._find(self._held.modules, module, "cuModuleUnload")
        for key in [key for key in list(self._held.functions) if key[0] == module]:
            del self._held.functions[key]
        del self._held.modules[module]

    def function(self, module: Handle, name: str) -> Handle:
        call = "cuModuleGetFunction"
        self._held.functions[module, name] = self._call(self._find(self._held.modules, module, call).get_function, name)
        return module, name

    def launch(self, function: Handle, grid: Grid, block: Grid, arguments: Sequence[np.generic], stream: int) -> None:
        call, values = "cuLaunchKernel", [_number(argument) for argument in arguments]
        self._call(
            self._find(self._held.functions, function, call),
            *values,
            grid=grid,
            block=block,
            stream=self._stream(stream, call),
        )

    def _no_graphs(self, *_: Any, **__: Any) -> Any:
        raise CudaError("cuStreamBeginCapture", "CUDA_ERROR_NOT_SUPPORTED")

    begin_capture = end_capture = launch_graph = destroy_graph = _no_graphs

    def _stream(self, stream: int, call: str) -> Any:
        return self._find(self._held.streams, stream, call)

    def _event(self, event: Handle, call: str) -> Any:
        return self._find(self._held.events, event, call)

    def _find(self, held: Mapping[Any, Any], number: Any, call: str) -> Any:
        """The object of this number, which here and in no other place is asked for before each use."""
        if number not in held:
            raise CudaError(call, "CUDA_ERROR_INVALID_HANDLE")
        return held[number]

    def _call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What pycuda answers, or the driver's status in place of pycuda's exception."""
        try:
            return function(*arguments, **named)
        except self._cuda.Error as error:
            failure = _failure(str(error))
        try:
            raise failure
        finally:
            del function, arguments, named, failure


def _import() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycuda's own, that its import is about to fail
            return import_module("pycuda.driver")
    except ImportError as error:
        said = str(error)
        if "libcuda" in said:
            raise no_library() from error
        if "undefined symbol: cu" in said:
            raise too_old("pycuda", said) from error
        raise NoDriver(
            f"pycuda cannot be imported: {said}", hint="install it anew, or install cuda-bindings"
        ) from error


def _failure(said: str) -> CudaError:
    """pycuda's message is the call, what cuGetErrorString says of the status, and in places more."""
    call, _, text = said.partition(" failed: ")
    known = [words for words in _statuses() if text.startswith(words)]
    return refused(call, _statuses()[max(known, key=len)] if known else text)


@cache
def _statuses() -> dict[str, str]:
    """The names of the driver's statuses by the words it has for them."""
    words, names = ctypes.c_char_p(), {}
    for status in range(1, 1000):
        if not _library().cuGetErrorString(status, ctypes.byref(words)) and words.value:
            names[words.value.decode()] = _status_name(status)
    return names


def _status_name(status: int) -> str:
    name = ctypes.c_char_p()
    _library().cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else str(status)


@cache
def _library() -> ctypes.CDLL:
    """The driver's library, which pycuda has loaded."""
    return ctypes.CDLL("libcuda.so.1")


def _view(address: int, size: int, access: int) -> memoryview:
    """So many bytes of this process, which neither owns them nor keeps them."""
    return _memoryview_of(address, size, access)  # type: ignore[no-any-return]


def _number(argument: np.generic) -> np.generic:
    """The same bytes as one of the types that pycuda packs."""
    views = {np.dtype(np.bool_): np.uint8, np.dtype(np.float16): np.uint16}
    return argument.view(views[argument.dtype]) if argument.dtype in views else argument


def _abandon(held: _Held) -> None:
    """At exit, what nobody closed is left to the process's end: freed by pycuda it would be too late, and written to stderr."""
    kept = (held.streams, held.events, held.memory, held.pinned, held.functions, held.modules)
    for thing in [
        *(retained.context for retained in held.contexts.values()),
        *(one for of in kept for one in of.values()),
    ]:
        _keep_for_ever(thing)


def _keep_for_ever(thing: Any) -> None:
    """What pycuda would do when Python drops it does not come to pass."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
