"""What the NVIDIA GPUs of this process are doing, by nvidia-ml (the package nvidia-ml-py, where it is installed).

CUDA numbers the devices that CUDA_VISIBLE_DEVICES leaves, and nvidia-ml all of the machine: their PCI addresses bring the two
together. Reference: the NVML API, whose functions are named below.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import Any

from visionpool_server.cuda.driver import Driver

log = logging.getLogger(__name__)

Nvml = Any  # the module pynvml


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU now. What the driver does not tell is None: utilisation of a part of a GPU (MIG), for one.

    `memory_used`: bytes, of all processes; `memory_own`: of this one, which the driver knows by the number that it has outside
    of any container. `utilization`: the share of the last moments in which any kernel ran, 0 .. 1.
    """

    device: str  # cuda:0
    name: str
    bus: str
    memory_used: int | None
    memory_total: int | None
    memory_own: int | None
    utilization: float | None


def buses(driver: Driver) -> dict[str, str]:
    """The PCI address of each device that this process sees. Raises NoDriver, CudaError."""
    return {f"cuda:{i}": driver.properties(i).bus for i in range(driver.device_count())}


class Monitor:
    """Reads the GPUs at some PCI addresses (`buses`: by device). It opens nvidia-ml when it is first read."""

    def __init__(self, buses: Mapping[str, str]) -> None:
        self._buses = dict(buses)
        self._nvml: Nvml | None = None
        self._handles: dict[str, Any] = {}
        self._told = False
        self._lock = Lock()

    def read(self) -> tuple[GpuUse, ...]:
        """In the order of `buses`; empty where nvidia-ml is missing or fails, and the log says why, once."""
        try:
            nvml = import_module("pynvml")
        except ModuleNotFoundError as error:
            self._tell(f"the Python package {error.name!r} is missing: pip install nvidia-ml-py")
            return ()
        with self._lock:
            try:
                self._open(nvml)
                return tuple(self._use(nvml, device, bus) for device, bus in self._buses.items())
            except nvml.NVMLError as error:
                self._tell(str(error))
                return ()

    def close(self) -> None:
        """nvmlShutdown. A later `read` opens it again."""
        with self._lock:
            nvml, self._nvml = self._nvml, None
            self._handles.clear()
            if nvml:
                nvml.nvmlShutdown()

    def _open(self, nvml: Nvml) -> None:
        if self._nvml is None:
            nvml.nvmlInit()
            self._nvml = nvml

    def _use(self, nvml: Nvml, device: str, bus: str) -> GpuUse:
        handle = self._handles.get(bus)
        if handle is None:
            handle = self._handles[bus] = nvml.nvmlDeviceGetHandleByPciBusId(bus)
        memory = _told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        rates = _told(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        processes = _told(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or ()
        own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        return GpuUse(
            device=device,
            name=nvml.nvmlDeviceGetName(handle),
            bus=bus,
            memory_used=memory and int(memory.used),
            memory_total=memory and int(memory.total),
            memory_own=own[0] if own else None,
            utilization=rates and rates.gpu / 100,
        )

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            log.warning("memory and utilization of the GPUs are not known: %s", reason)


def _told(nvml: Nvml, call: Callable[[], Any]) -> Any:
    """None for what this GPU, this user or an older driver does not get told."""
    try:
        return call()
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission, nvml.NVMLError_FunctionNotFound):
        return None
    except nvml.NVMLLibraryMismatchError:  # no NVMLError: what it makes of a function that is not found
        return None
