"""The calls of the CUDA driver that are made here, whichever Python package makes them.

Handles are plain: addresses, streams and their kin are the driver's own numbers, which TensorRT and ONNX Runtime take. Nothing
is owned at this level: `gpu.py` sees to lifetimes. Every call raises CudaError where the driver refuses, and all but
`device_count`, `properties`, `retain`, `release` and `keep` need a context that is current on the calling thread (`push`).

Reference: the CUDA Driver API, whose functions each docstring names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import numpy as np

from visionpool_server.cuda.errors import NoDriver

Handle = Any  # what a binding gives for a context, an event, a module, a function or a graph: only it can read that
Grid = tuple[int, int, int]

DRIVERS = {  # the first that is installed is taken
    "cuda-bindings": ("cuda.bindings", "visionpool_server.cuda.bindings:BindingsDriver"),
    "pycuda": ("pycuda", "visionpool_server.cuda.pycuda:PycudaDriver"),
}


@dataclass(frozen=True, slots=True)
class Properties:
    """One device. `memory`: bytes in all; `bus`: its PCI address as Linux writes it, 0000:3b:00.0."""

    name: str
    capability: tuple[int, int]  # (9, 0) is Hopper's
    memory: int
    multiprocessors: int
    bus: str


class Driver(Protocol):
    name: str  # of the Python package
    graphs: bool  # whether it can capture what a stream is told, to say it again at once

    def device_count(self) -> int:
        """cuInit, cuDeviceGetCount. 0 where there is a driver and no device. Raises NoDriver where there is none."""

    def properties(self, ordinal: int) -> Properties:
        """cuDeviceGetName, cuDeviceTotalMem, cuDeviceGetAttribute, cuDeviceGetPCIBusId."""

    def retain(self, ordinal: int) -> Handle:
        """cuDevicePrimaryCtxRetain: the context that the CUDA runtime uses too, and with it TensorRT and ONNX Runtime."""

    def release(self, ordinal: int) -> None:
        """cuDevicePrimaryCtxRelease, once for each `retain`."""

    def keep(self, ordinal: int) -> None:
        """cuDevicePrimaryCtxRetain, once a process, and never released: the last release would reset the context, and with it
        what libraries hold in it for themselves."""

    def push(self, context: Handle) -> None:
        """cuCtxPushCurrent: current on this thread, until `pop`."""

    def pop(self) -> None:
        """cuCtxPopCurrent."""

    def memory(self) -> tuple[int, int]:
        """cuMemGetInfo: bytes free and in all."""

    def allocate(self, size: int) -> int:
        """cuMemAlloc: the address of so many bytes, over 0, on the device. Raises OutOfMemory."""

    def free(self, address: int) -> None:
        """cuMemFree."""

    def allocate_pinned(self, size: int) -> int:
        """cuMemHostAlloc: the address of so many bytes, over 0, of this process that never leave RAM. Raises OutOfMemory."""

    def free_pinned(self, address: int) -> None:
        """cuMemFreeHost."""

    def create_stream(self) -> int:
        """cuStreamCreate with CU_STREAM_NON_BLOCKING: the default stream waits for it as little as it for that one."""

    def destroy_stream(self, stream: int) -> None:
        """cuStreamDestroy."""

    def synchronize(self, stream: int) -> None:
        """cuStreamSynchronize, without the GIL: until all that the stream was told is done. Raises what failed of it."""

    def create_event(self, *, timing: bool = False) -> Handle:
        """cuEventCreate with CU_EVENT_BLOCKING_SYNC, and CU_EVENT_DISABLE_TIMING unless it is to be timed: a host that waits
        leaves its core, which decodes pictures meanwhile, to others."""

    def destroy_event(self, event: Handle) -> None:
        """cuEventDestroy."""

    def record(self, event: Handle, stream: int) -> None:
        """cuEventRecord: the event happens when the stream has done what it was told so far."""

    def wait(self, stream: int, event: Handle) -> None:
        """cuStreamWaitEvent: what the stream is told from now on waits for the event's last record."""

    def synchronize_event(self, event: Handle) -> None:
        """cuEventSynchronize, without the GIL."""

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """cuEventElapsedTime between two events with timing that both have happened."""

    def upload(self, device: int, host: int, size: int, stream: int) -> None:
        """cuMemcpyHtoDAsync. The host's bytes have to stay as they are until it is done."""

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        """cuMemcpyDtoHAsync."""

    def load_module(self, image: bytes) -> Handle:
        """cuModuleLoadData of PTX or of a cubin."""

    def unload_module(self, module: Handle) -> None:
        """cuModuleUnload."""

    def function(self, module: Handle, name: str) -> Handle:
        """cuModuleGetFunction."""

    def launch(self, function: Handle, grid: Grid, block: Grid, arguments: Sequence[np.generic], stream: int) -> None:
        """cuLaunchKernel. Arguments are NumPy scalars of the kernel's own types, addresses are np.uint64."""

    def begin_capture(self, stream: int) -> None:
        """cuStreamBeginCapture, thread-local mode. Only where `graphs`."""

    def end_capture(self, stream: int) -> Handle:
        """cuStreamEndCapture and cuGraphInstantiate: a graph that can be launched. Only where `graphs`."""

    def launch_graph(self, graph: Handle, stream: int) -> None:
        """cuGraphLaunch. Only where `graphs`."""

    def destroy_graph(self, graph: Handle) -> None:
        """cuGraphExecDestroy. Only where `graphs`."""


def open_driver(name: str | None = None) -> Driver:
    """The driver interface of this name, or of the first package that is installed. Raises NoDriver."""
    if name is not None and name not in DRIVERS:
        raise NoDriver(f"no CUDA interface is called {name!r}", hint=f"there are {', '.join(DRIVERS)}")
    for key in [name] if name else DRIVERS:
        package, place = DRIVERS[key]
        if _installed(package):
            module, _, attribute = place.partition(":")
            return cast(Driver, getattr(import_module(module), attribute)())
    raise NoDriver(
        f"no Python package for the NVIDIA driver is installed: {' or '.join([name] if name else DRIVERS)}",
        hint="pip install 'visionpool[server,cuda]', which brings cuda-bindings",
    )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
