"""The driver's calls through cuda-bindings, NVIDIA's own package: no compiler at run time, and CUDA graphs.

Written for its versions 12.9.1 to 13.x, which release the GIL in every call. It opens libcuda.so.1 with the first call, not when
it is imported, and tells of a missing library or function by a RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock, local
from typing import Any

import numpy as np
from cuda.bindings import driver as cu

from visionpool_server.cuda.driver import Grid, Handle, Properties
from visionpool_server.cuda.errors import CudaError, NoDriver, no_library, not_initialised, refused, too_old

_STARTING = Lock()  # until 12.9.8, threads whose first calls coincide see half of what cuda-bindings looks up
_KEPT: set[int] = set()  # the devices whose context this process never gives back
_SLOT = 16  # bytes, for each argument of a kernel
_PADDING = {size: bytes(_SLOT - size) for size in (1, 2, 4, 8, 16)}


class BindingsDriver:
    """Implements `Driver`."""

    name = "cuda-bindings"
    graphs = True

    def __init__(self) -> None:
        self._devices: dict[int, Any] = {}  # found once, so that nothing stands between a context and its release
        self._arguments = _Arguments()

    def device_count(self) -> int:
        with _STARTING:
            try:
                _call(cu.cuInit, 0)
            except CudaError as error:
                if error.status == "CUDA_ERROR_NO_DEVICE":
                    return 0
                raise not_initialised(error.status) from error
        return int(_call(cu.cuDeviceGetCount))

    def properties(self, ordinal: int) -> Properties:
        device = self._device(ordinal)
        attribute = cu.CUdevice_attribute
        major = _call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = _call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        return Properties(
            name=_text(_call(cu.cuDeviceGetName, 256, device)),
            capability=(major, minor),
            memory=_call(cu.cuDeviceTotalMem, device),
            multiprocessors=_call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device),
            bus=_text(_call(cu.cuDeviceGetPCIBusId, 32, device)).lower(),
        )

    def retain(self, ordinal: int) -> Handle:
        return _call(cu.cuDevicePrimaryCtxRetain, self._device(ordinal))

    def release(self, ordinal: int) -> None:
        _call(cu.cuDevicePrimaryCtxRelease, self._device(ordinal))

    def keep(self, ordinal: int) -> None:
        with _STARTING:
            if ordinal not in _KEPT:
                _call(cu.cuDevicePrimaryCtxRetain, self._device(ordinal))
                _KEPT.add(ordinal)

    def push(self, context: Handle) -> None:
        _call(cu.cuCtxPushCurrent, context)

    def pop(self) -> None:
        _call(cu.cuCtxPopCurrent)

    def memory(self) -> tuple[int, int]:
        free, total = _call(cu.cuMemGetInfo)
        return free, total

    def allocate(self, size: int) -> int:
        return int(_call(cu.cuMemAlloc, size))

    def free(self, address: int) -> None:
        _call(cu.cuMemFree, address)

    def allocate_pinned(self, size: int) -> int:
        return int(_call(cu.cuMemHostAlloc, size, 0))

    def free_pinned(self, address: int) -> None:
        _call(cu.cuMemFreeHost, address)

    def create_stream(self) -> int:
        return int(_call(cu.cuStreamCreate, int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: int) -> None:
        _call(cu.cuStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        _call(cu.cuStreamSynchronize, stream)

    def create_event(self, *, timing: bool = False) -> Handle:
        flags = cu.CUevent_flags.CU_EVENT_BLOCKING_SYNC
        return _call(cu.cuEventCreate, int(flags if timing else flags | cu.CUevent_flags.CU_EVENT_DISABLE_TIMING))

    def destroy_event(self, event: Handle) -> None:
        _call(cu.cuEventDestroy, event)

    def record(self, event: Handle, stream: int) -> None:
        _call(cu.cuEventRecord, event, stream)

    def wait(self, stream: int, event: Handle) -> None:
        _call(cu.cuStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: Handle) -> None:
        _call(cu.cuEventSynchronize, event)

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        return float(_call(cu.cuEventElapsedTime, start, end))

    def upload(self, device: int, host: int, size: int, stream: int) -> None:
        _call(cu.cuMemcpyHtoDAsync, device, host, size, stream)

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        _call(cu.cuMemcpyDtoHAsync, host, device, size, stream)

    def load_module(self, image: bytes) -> Handle:
        return _call(cu.cuModuleLoadData, image + b"\0")  # PTX is text that a NUL ends

    def unload_module(self, module: Handle) -> None:
        _call(cu.cuModuleUnload, module)

    def function(self, module: Handle, name: str) -> Handle:
        return _call(cu.cuModuleGetFunction, module, name.encode())

    def launch(self, function: Handle, grid: Grid, block: Grid, arguments: Sequence[np.generic], stream: int) -> None:
        _call(cu.cuLaunchKernel, function, *grid, *block, 0, stream, self._arguments.lay(arguments), 0)

    def begin_capture(self, stream: int) -> None:
        _call(cu.cuStreamBeginCapture, stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> Handle:
        graph = _call(cu.cuStreamEndCapture, stream)
        try:
            return _call(cu.cuGraphInstantiate, graph, 0)
        finally:
            with suppress(CudaError):  # only the description of what can be launched, or could not
                _call(cu.cuGraphDestroy, graph)

    def launch_graph(self, graph: Handle, stream: int) -> None:
        _call(cu.cuGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        _call(cu.cuGraphExecDestroy, graph)

    def _device(self, ordinal: int) -> Any:
        if ordinal not in self._devices:
            self._devices[ordinal] = _call(cu.cuDeviceGet, ordinal)
        return self._devices[ordinal]


class _Arguments(local):
    """Where a thread lays a kernel's arguments for a launch, which copies them: made once, as launches are many."""

    def __init__(self) -> None:
        self._make_room(32)

    def _make_room(self, count: int) -> None:
        self._values = np.zeros(count * _SLOT, np.uint8)
        first = self._values.ctypes.data
        self._addresses = np.arange(first, first + self._values.size, _SLOT, dtype=np.uintp)  # of each argument
        self._bytes = self._values.data
        self._address = int(self._addresses.ctypes.data)

    def lay(self, arguments: Sequence[np.generic]) -> int:
        """The address of their addresses, good until the thread lays others."""
        parts: list[Any] = []
        for argument in arguments:
            parts += (argument, _PADDING[argument.itemsize])
        laid = b"".join(parts)  # scalars are buffers; three times as quick as `tobytes`
        if len(laid) > self._values.size:
            self._make_room(len(arguments))
        self._bytes[: len(laid)] = laid
        return self._address


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the driver answers beside its status: nothing, a value, or a tuple of them."""
    try:
        status, *values = function(*arguments)
    except RuntimeError as error:
        raise _absent(error) from error
    except ValueError as error:  # a status that this version of cuda-bindings has no name for
        raise CudaError(function.__name__, str(error)) from error
    if status:
        raise refused(function.__name__, status.name)
    return values[0] if len(values) == 1 else tuple(values) or None


def _absent(error: RuntimeError) -> NoDriver:
    """No library, or one that lacks a function: cuda-bindings says the first by `dlopen` until 12.9, by cuda-pathfinder since."""
    said = str(error)
    missing = "dlopen" in said or type(error).__name__.startswith("DynamicLib")
    return no_library() if missing else too_old("cuda-bindings", said)


def _text(said: bytes) -> str:
    return said.split(b"\0", 1)[0].decode(errors="replace")
